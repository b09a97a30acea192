/* AVX-VNNI, of x86 processors without AVX-512: vpdpbusd in 256-bit registers, exact for all operands; the rest as with AVX2. */
#define SUFFIX avxvnni
#include "../elementwise.inc"
#include "cpu.h"
#include "elementwise_avx2.h"
#include <immintrin.h>

static inline __attribute__((always_inline)) __m256i dot4(__m256i acc, __m256i a, __m256i w, int narrow)
{
    (void)narrow;
    return _mm256_dpbusd_avx_epi32(acc, a, w);
}

#define PAIRS_FIT(a, w) ((void)(a), (void)(w), 1)
#include "products_ymm.inc"

const fmpq_kernels fmpq_kernels_avxvnni = {.name = "avxvnni", .available = fmpq_cpu_avxvnni, .igemm = igemm, .dw = dw, ELEMENTWISE_TABLE};
