/* What the NEON kernels share: loads of four bytes, the end of a convolution tile, the walk over a map's positions. */
#ifndef FMPQ_NEON_TILE_H
#define FMPQ_NEON_TILE_H
#include "../kernels.h"
#include <arm_neon.h>
#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* four bytes, four times over */
ALWAYS_INLINE uint8x16_t dup4(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return vreinterpretq_u8_u32(vdupq_n_u32(v));
}

/* sat16(reven(acc, shift)) of four channels: srshl rounds half up, one less before it turns ties to even */
ALWAYS_INLINE int16x4_t narrow(int32x4_t acc, int32x4_t minus_shift)
{
    const int32x4_t even = vbicq_s32(vdupq_n_s32(1), vshlq_s32(acc, minus_shift));
    const int32x4_t less = vandq_s32(even, vreinterpretq_s32_u32(vcltq_s32(minus_shift, vdupq_n_s32(0))));
    return vmax_s16(vqmovn_s32(vrshlq_s32(vsubq_s32(acc, less), minus_shift)), vdup_n_s16(-32767));
}

/* 4 * blocks channels from `first` on, of which co exist in all */
ALWAYS_INLINE void store(const fmpq_igemm *j, int16_t *out, const int32x4_t *acc, int blocks, int32_t first)
{
    const int32x4_t minus_shift = vdupq_n_s32(-j->shift);
    const int32_t left = j->co - first;
    int16_t v[16];
    if (left >= 4 * blocks) {
        for (int b = 0; b < blocks; b++)
            vst1_s16(out + first + 4 * b, narrow(acc[b], minus_shift));
        return;
    }
    for (int b = 0; b < blocks; b++)
        vst1_s16(v + 4 * b, narrow(acc[b], minus_shift));
    for (int32_t i = 0; i < left; i++)
        out[first + i] = v[i];
}

/* TILE(np, y, x, cb): np positions from (y, x) on, a group of CHANNELS channels from cb * CHANNELS on */
#define FOR_EACH_TILE(j, NP, CHANNELS, TILE)                         \
    for (int32_t cb = 0; cb * (CHANNELS) < (j)->co; cb++) {          \
        PREPARE(cb);                                                 \
        for (int32_t y = 0; y < (j)->rows; y++) {                    \
            const uint8_t *a = (j)->a + y * (j)->a_row;              \
            int16_t *out = (j)->out + y * (j)->out_row;              \
            int32_t x = 0;                                           \
            for (; x + (NP) <= (j)->cols; x += (NP))                 \
                TILE(NP, a + x * (j)->a_pix, out + x * (j)->out_pix, cb); \
            for (; x < (j)->cols; x++)                               \
                TILE(1, a + x * (j)->a_pix, out + x * (j)->out_pix, cb);  \
        }                                                            \
    }
#endif
