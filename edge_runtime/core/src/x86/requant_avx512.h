/* From the int32 sums of a convolution to its int16 outputs, 16 channels at a time. */
#ifndef FMPQ_REQUANT_AVX512_H
#define FMPQ_REQUANT_AVX512_H
#include <immintrin.h>
#include <stdint.h>

/* The rounding of sat16(reven(acc, shift)): half = 2^(shift - 1) is in the accumulator already, so a tie has nothing below the cut; it goes to the
 * even neighbour. below = 2^shift - 1; shift = 0 has none of both. */
static inline __m512i reven512(__m512i acc, __m512i below, __m512i even, __m128i shift)
{
    const __mmask16 tie = _mm512_testn_epi32_mask(acc, below);
    const __m512i v = _mm512_sra_epi32(acc, shift);
    return _mm512_mask_and_epi32(v, tie, v, even);
}

/* 16 channels of one position */
static inline void store16(int16_t *out, __m512i v, __mmask16 mask)
{
    _mm256_mask_storeu_epi16(out, mask, _mm512_cvtsepi32_epi16(_mm512_max_epi32(v, _mm512_set1_epi32(-32767))));
}

/* 16 channels of two positions */
static inline void store32(int16_t *out, int32_t pix, __m512i v0, __m512i v1)
{
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    const __m512i both = _mm512_max_epi16(_mm512_permutexvar_epi64(order, _mm512_packs_epi32(v0, v1)), _mm512_set1_epi16(-32767));
    _mm256_storeu_si256((__m256i *)(void *)out, _mm512_castsi512_si256(both));
    _mm256_storeu_si256((__m256i *)(void *)(out + pix), _mm512_extracti64x4_epi64(both, 1));
}
#endif
