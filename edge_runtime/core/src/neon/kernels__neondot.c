/* NEON with the dot product (Cortex-A55, A76, A78): sdot multiplies 16 signed bytes and adds groups of four into 4 int32 lanes. Lanes
 * are output channels, the indexed operand holds the activations of four channel groups. Unsigned activations above 127 are
 * moved down by 128 and the weights' sum makes up for it. */
#if defined(__aarch64__)
#define SUFFIX neondot
#include "../elementwise.inc"
#include "cpu.h"
#include "tile.h"

ALWAYS_INLINE int8x16_t moved16(const uint8_t *p, uint8x16_t move)
{
    return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p), move));
}

ALWAYS_INLINE int8x16_t moved4(const uint8_t *p, uint8x16_t move)
{
    return vreinterpretq_s8_u8(veorq_u8(dup4(p), move));
}

/* One group of four operands: 16 channels of `w` with lane LANE of each of np activation vectors. */
#define DOT(LANE)                                                     \
    for (int b = 0; b < 4; b++) {                                     \
        const int8x16_t wv = vld1q_s8(w + 16 * b);                    \
        for (int p = 0; p < np; p++)                                  \
            acc[p][b] = vdotq_laneq_s32(acc[p][b], wv, av[p], LANE);  \
    }                                                                 \
    w += step;

ALWAYS_INLINE void accumulate(const fmpq_igemm *j, int32x4_t acc[][4], const int8_t *w, const uint8_t *a, int np, uint8x16_t move)
{
    const int32_t step = j->cop * 4;
    int8x16_t av[4];
    for (int32_t t = 0; t < j->taps; t++) {
        const uint8_t *at = a + j->tap_off[t];
        int32_t c = 0;
        for (; c + 4 <= j->c4; c += 4, at += 16) {
            for (int p = 0; p < np; p++)
                av[p] = moved16(at + p * j->a_pix, move);
            DOT(0)
            DOT(1)
            DOT(2)
            DOT(3)
        }
        for (; c < j->c4; c++, at += 4) {
            for (int p = 0; p < np; p++)
                av[p] = moved4(at + p * j->a_pix, move);
            DOT(0)
        }
    }
}

ALWAYS_INLINE void tile(const fmpq_igemm *j, int np, const uint8_t *a, int16_t *out, int32_t cb, const int32x4_t *start, uint8x16_t move)
{
    int32x4_t acc[4][4];
    for (int p = 0; p < np; p++)
        for (int b = 0; b < 4; b++)
            acc[p][b] = vdupq_n_s32(0);
    accumulate(j, acc, j->w + cb * 64, a, np, move);
    if (j->w_low) {
        for (int p = 0; p < np; p++)
            for (int b = 0; b < 4; b++)
                acc[p][b] = vaddq_s32(acc[p][b], acc[p][b]);
        accumulate(j, acc, j->w_low + cb * 64, a, np, move);
    }
    for (int p = 0; p < np; p++) {
        for (int b = 0; b < 4; b++)
            acc[p][b] = vaddq_s32(acc[p][b], start[b]);
        store(j, out + p * j->out_pix, acc[p], 4, cb * 16);
    }
}

/* corr, and 128 times the weights' sum where activations are moved */
ALWAYS_INLINE void starts(const fmpq_igemm *j, int32_t cb, int moved, int32x4_t *start)
{
    const int8x16_t one = vdupq_n_s8(1), two = vdupq_n_s8(2);
    for (int b = 0; b < 4; b++) {
        const int32_t at = cb * 64 + 16 * b;
        int32x4_t sum = vdupq_n_s32(0);
        for (int32_t k = 0; moved && k < j->taps * j->c4; k++) {
            sum = vdotq_s32(sum, vld1q_s8(j->w + at + k * j->cop * 4), j->w_low ? two : one);
            if (j->w_low)
                sum = vdotq_s32(sum, vld1q_s8(j->w_low + at + k * j->cop * 4), one);
        }
        start[b] = vaddq_s32(vld1q_s32(j->corr + at / 4), vshlq_n_s32(sum, 7));
    }
}

static void igemm(const fmpq_igemm *j)
{
    const int moved = j->a_max > 127;
    const uint8x16_t move = vdupq_n_u8(moved ? 128 : 0);
    int32x4_t start[4];
#define PREPARE(cb) starts(j, cb, moved, start)
#define TILE(np, a, out, cb) tile(j, np, a, out, cb, start, move)
    FOR_EACH_TILE(j, 4, 16, TILE)
#undef PREPARE
#undef TILE
}

/* np input channels of one tap, 16 output channels */
ALWAYS_INLINE void dw_tile(const fmpq_dw *j, int np, const uint8_t *a, const int8_t *w, int32_t *g, const int32x4_t *start, uint8x16_t move)
{
    const int32_t step = j->cop * 4;
    int32x4_t acc[4][4];
    int8x16_t av[4];
    for (int p = 0; p < np; p++)
        for (int b = 0; b < 4; b++)
            acc[p][b] = vaddq_s32(vld1q_s32(g + 16 * p + 4 * b), start[b]);
    for (int32_t y = 0; y < j->rows; y++) {
        const uint8_t *at = a + y * j->a_row;
        int32_t x = 0;
        for (; x + 4 <= j->cols4; x += 4, at += 16) {
            for (int p = 0; p < np; p++)
                av[p] = moved16(at + p * j->plane, move);
            DOT(0)
            DOT(1)
            DOT(2)
            DOT(3)
        }
        for (; x < j->cols4; x++, at += 4) {
            for (int p = 0; p < np; p++)
                av[p] = moved4(at + p * j->plane, move);
            DOT(0)
        }
    }
    for (int p = 0; p < np; p++)
        for (int b = 0; b < 4; b++)
            vst1q_s32(g + 16 * p + 4 * b, acc[p][b]);
}

static void dw(const fmpq_dw *j)
{
    const int moved = j->a_max > 127;
    const uint8x16_t move = vdupq_n_u8(moved ? 128 : 0);
    const int8x16_t one = vdupq_n_s8(1);
    for (int32_t cb = j->cb0; cb < j->cb1; cb++) {
        const int8_t *e = j->e + cb * 64;
        int32x4_t start[4];
        for (int b = 0; b < 4; b++) {
            start[b] = vdupq_n_s32(0);
            for (int32_t k = 0; moved && k < j->rows * j->cols4; k++)
                start[b] = vdotq_s32(start[b], vld1q_s8(e + k * j->cop * 4 + 16 * b), one);
            start[b] = vshlq_n_s32(start[b], 7);
        }
        for (int32_t t = 0; t < j->taps; t++) {
            int32_t *g = j->g + ((cb - j->cb0) * j->taps + t) * j->ci * 16;
            const uint8_t *a = j->a + j->tap_off[t];
            int32_t ci = 0;
            for (; ci + 4 <= j->ci; ci += 4)
                dw_tile(j, 4, a + ci * j->plane, e, g + ci * 16, start, move);
            for (; ci < j->ci; ci++)
                dw_tile(j, 1, a + ci * j->plane, e, g + ci * 16, start, move);
        }
    }
}

static int available(void)
{
    return HAS_DOTPROD();
}

const fmpq_kernels fmpq_kernels_neondot = {.name = "neondot", .available = available, .igemm = igemm, .dw = dw, ELEMENTWISE_TABLE};
#endif
