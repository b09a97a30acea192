/* Byte transpositions in 128-bit registers, shared by the x86 kernel files. */
#ifndef FMPQ_BYTES_SSE_H
#define FMPQ_BYTES_SSE_H
#include <immintrin.h>
#include <stdint.h>

/* 4 positions x 16 channels -> v[i] holds channels 4i..4i+3, four positions each */
static inline __attribute__((always_inline)) void interleave4(const int8_t *in, int32_t pix, __m128i v[4])
{
    const __m128i r0 = _mm_loadu_si128((const __m128i *)(const void *)in);
    const __m128i r1 = _mm_loadu_si128((const __m128i *)(const void *)(in + pix));
    const __m128i r2 = _mm_loadu_si128((const __m128i *)(const void *)(in + 2 * pix));
    const __m128i r3 = _mm_loadu_si128((const __m128i *)(const void *)(in + 3 * pix));
    const __m128i a = _mm_unpacklo_epi8(r0, r1), b = _mm_unpackhi_epi8(r0, r1);
    const __m128i c = _mm_unpacklo_epi8(r2, r3), d = _mm_unpackhi_epi8(r2, r3);
    v[0] = _mm_unpacklo_epi16(a, c);
    v[1] = _mm_unpackhi_epi16(a, c);
    v[2] = _mm_unpacklo_epi16(b, d);
    v[3] = _mm_unpackhi_epi16(b, d);
}

/* 16 positions x 16 channels of bytes, transposed: out[ch * plane + x] */
static inline __attribute__((always_inline)) void transpose16(const uint8_t *in, int32_t pix, uint8_t *out, int32_t plane)
{
    __m128i a[16], b[16];
    for (int i = 0; i < 16; i++)
        a[i] = _mm_loadu_si128((const __m128i *)(const void *)(in + i * pix));
    for (int s = 0; s < 4; s++) { /* four rounds of interleaving row i with row i + 8 */
        for (int i = 0; i < 8; i++) {
            b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
            b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
        }
        for (int i = 0; i < 16; i++)
            a[i] = b[i];
    }
    for (int i = 0; i < 16; i++)
        _mm_storeu_si128((__m128i *)(void *)(out + i * plane), a[i]);
}

/* NHWC -> planar for channel counts that are multiples of 16; arguments as fmpq_kernels.planar */
static inline void planar16(const uint8_t *in, uint8_t *out, int32_t rows, int32_t cols, int32_t in_row, int32_t c_of, int32_t plane, int32_t row,
                            int32_t stride)
{
    const int32_t pix = c_of >> 16, c = c_of & 0xffff;
    for (int32_t k = 0; k < c; k += 16)
        for (int32_t y = 0; y < rows; y++)
            for (int32_t ph = 0; ph < stride; ph++) {
                const int32_t n = (cols - ph + stride - 1) / stride;
                uint8_t *o = out + k * plane + (y * stride + ph) * row;
                const uint8_t *from = in + y * in_row + ph * pix + k;
                int32_t x = 0;
                for (; x + 16 <= n; x += 16)
                    transpose16(from + x * stride * pix, stride * pix, o + x, plane);
                for (; x < n; x++)
                    for (int i = 0; i < 16; i++)
                        o[i * plane + x] = from[x * stride * pix + i];
                for (; x < row; x++)
                    for (int i = 0; i < 16; i++)
                        o[i * plane + x] = 0;
            }
}
#endif
