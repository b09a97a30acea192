/* AVX2: vpmaddubsw adds pairs of unsigned x signed bytes in int16, which is exact while 2 * a_max * w_max < 2^15 (4-bit activations, few bits);
 * otherwise both operands are widened and vpmaddwd does the work. */
#define SUFFIX avx2
#include "../elementwise.inc"
#include "cpu.h"
#include "elementwise_avx2.h"
#include <immintrin.h>

static inline __attribute__((always_inline)) __m256i dot4(__m256i acc, __m256i a, __m256i w, int narrow)
{
    if (narrow)
        return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(a, w), _mm256_set1_epi16(1)));
    /* even and odd bytes apart: a zero-extended, w sign-extended */
    const __m256i ae = _mm256_and_si256(a, _mm256_set1_epi16(255)), ao = _mm256_srli_epi16(a, 8);
    const __m256i we = _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8), wo = _mm256_srai_epi16(w, 8);
    return _mm256_add_epi32(acc, _mm256_add_epi32(_mm256_madd_epi16(ae, we), _mm256_madd_epi16(ao, wo)));
}

#define PAIRS_FIT(a, w) (2 * (a) * (w) < 32768)
#include "products_ymm.inc"

const fmpq_kernels fmpq_kernels_avx2 = {.name = "avx2", .available = fmpq_cpu_avx2, .igemm = igemm, .dw = dw, ELEMENTWISE_TABLE};
