/* NEON without the dot product (Cortex-A53, A72; armv7): smull multiplies 8 signed bytes into int16 lanes, sadalp adds neighbours
 * into int32. Several products are summed in int16 first, as many as the operands' bounds allow. Lanes are groups of four operands
 * of one output channel; unsigned activations above 127 are moved down by 128 and the weights' sum makes up for it. */
#define SUFFIX neon
#include "../elementwise.inc"
#include "cpu.h"
#include "tile.h"

#if defined(__aarch64__)
#define QUADS 2 /* vectors of four channels in a tile: 32 registers hold two */
#else
#define QUADS 1
#endif

/* products that fit an int16: |a| <= 128 after the move, |w| <= w_max */
static int32_t chain(int32_t a_max, int32_t w_max)
{
    return 32767 / ((a_max > 127 ? 128 : a_max) * w_max);
}

typedef struct sums {
    int16x8_t low[QUADS], high[QUADS]; /* channels 0 and 1 of a quad, channels 2 and 3; four partial sums each */
} sums;

ALWAYS_INLINE void clear(sums *s)
{
    for (int q = 0; q < QUADS; q++)
        s->low[q] = s->high[q] = vdupq_n_s16(0);
}

ALWAYS_INLINE void add(sums *s, int8x16_t a, const int8x16_t *w)
{
    for (int q = 0; q < QUADS; q++) {
        s->low[q] = vmlal_s8(s->low[q], vget_low_s8(a), vget_low_s8(w[q]));
#if defined(__aarch64__)
        s->high[q] = vmlal_high_s8(s->high[q], a, w[q]);
#else
        s->high[q] = vmlal_s8(s->high[q], vget_high_s8(a), vget_high_s8(w[q]));
#endif
    }
}

typedef struct wide {
    int32x4_t low[QUADS], high[QUADS];
} wide;

ALWAYS_INLINE void flush(wide *to, sums *s)
{
    for (int q = 0; q < QUADS; q++) {
        to->low[q] = vpadalq_s16(to->low[q], s->low[q]);
        to->high[q] = vpadalq_s16(to->high[q], s->high[q]);
    }
    clear(s);
}

/* the two partial sums of each of four channels, added */
ALWAYS_INLINE int32x4_t channels(int32x4_t low, int32x4_t high)
{
#if defined(__aarch64__)
    return vpaddq_s32(low, high);
#else
    return vcombine_s32(vpadd_s32(vget_low_s32(low), vget_high_s32(low)), vpadd_s32(vget_low_s32(high), vget_high_s32(high)));
#endif
}

ALWAYS_INLINE void accumulate(const fmpq_igemm *j, wide *acc, const int8_t *w, const uint8_t *a, int np, uint8x16_t move, int32_t most)
{
    sums s[2];
    int32_t room = most;
    for (int p = 0; p < np; p++)
        clear(&s[p]);
    for (int32_t t = 0; t < j->taps; t++) {
        const uint8_t *at = a + j->tap_off[t];
        for (int32_t c = 0; c < j->c4; c++, w += j->cop * 4, at += 4) {
            int8x16_t wv[QUADS];
            for (int q = 0; q < QUADS; q++)
                wv[q] = vld1q_s8(w + 16 * q);
            for (int p = 0; p < np; p++)
                add(&s[p], vreinterpretq_s8_u8(veorq_u8(dup4(at + p * j->a_pix), move)), wv);
            if (--room)
                continue;
            for (int p = 0; p < np; p++)
                flush(&acc[p], &s[p]);
            room = most;
        }
    }
    for (int p = 0; p < np; p++)
        flush(&acc[p], &s[p]);
}

ALWAYS_INLINE void tile(const fmpq_igemm *j, int np, const uint8_t *a, int16_t *out, int32_t cb, const int32x4_t *start, uint8x16_t move,
                        int32_t most)
{
    wide acc[2];
    for (int p = 0; p < np; p++)
        for (int q = 0; q < QUADS; q++)
            acc[p].low[q] = acc[p].high[q] = vdupq_n_s32(0);
    accumulate(j, acc, j->w + cb * QUADS * 16, a, np, move, most);
    if (j->w_low) {
        for (int p = 0; p < np; p++)
            for (int q = 0; q < QUADS; q++) {
                acc[p].low[q] = vaddq_s32(acc[p].low[q], acc[p].low[q]);
                acc[p].high[q] = vaddq_s32(acc[p].high[q], acc[p].high[q]);
            }
        accumulate(j, acc, j->w_low + cb * QUADS * 16, a, np, move, most);
    }
    for (int p = 0; p < np; p++) {
        int32x4_t v[QUADS];
        for (int q = 0; q < QUADS; q++)
            v[q] = vaddq_s32(channels(acc[p].low[q], acc[p].high[q]), start[q]);
        store(j, out + p * j->out_pix, v, QUADS, cb * QUADS * 4);
    }
}

/* corr, and 128 times the weights' sum where activations are moved */
ALWAYS_INLINE void starts(const fmpq_igemm *j, int32_t cb, int moved, int32x4_t *start)
{
    for (int q = 0; q < QUADS; q++) {
        const int32_t at = (cb * QUADS + q) * 16;
        int32x4_t low = vdupq_n_s32(0), high = low;
        for (int32_t k = 0; moved && k < j->taps * j->c4; k++) {
            const int8x16_t w = vld1q_s8(j->w + at + k * j->cop * 4);
            int16x8_t l = vmovl_s8(vget_low_s8(w)), h = vmovl_s8(vget_high_s8(w));
            if (j->w_low) {
                const int8x16_t v = vld1q_s8(j->w_low + at + k * j->cop * 4);
                l = vaddw_s8(vaddq_s16(l, l), vget_low_s8(v));
                h = vaddw_s8(vaddq_s16(h, h), vget_high_s8(v));
            }
            low = vpadalq_s16(low, l);
            high = vpadalq_s16(high, h);
        }
        start[q] = vaddq_s32(vld1q_s32(j->corr + at / 4), vshlq_n_s32(channels(low, high), 7));
    }
}

static void igemm(const fmpq_igemm *j)
{
    const int moved = j->a_max > 127;
    const uint8x16_t move = vdupq_n_u8(moved ? 128 : 0);
    const int32_t most = chain(j->a_max, j->w_max);
    int32x4_t start[QUADS];
#define PREPARE(cb) starts(j, cb, moved, start)
#define TILE(np, a, out, cb) tile(j, np, a, out, cb, start, move, most)
    FOR_EACH_TILE(j, 2, 4 * QUADS, TILE)
#undef PREPARE
#undef TILE
}

/* np input channels of one tap, four or eight output channels from co on */
ALWAYS_INLINE void dw_tile(const fmpq_dw *j, int np, const uint8_t *a, const int8_t *e, int32_t *g, const int32x4_t *start, uint8x16_t move,
                           int32_t most)
{
    sums s[2];
    wide acc[2];
    int32_t room = most;
    for (int p = 0; p < np; p++) {
        clear(&s[p]);
        for (int q = 0; q < QUADS; q++)
            acc[p].low[q] = acc[p].high[q] = vdupq_n_s32(0);
    }
    for (int32_t y = 0; y < j->rows; y++) {
        const uint8_t *at = a + y * j->a_row;
        for (int32_t x = 0; x < j->cols4; x++, e += j->cop * 4, at += 4) {
            int8x16_t ev[QUADS];
            for (int q = 0; q < QUADS; q++)
                ev[q] = vld1q_s8(e + 16 * q);
            for (int p = 0; p < np; p++)
                add(&s[p], vreinterpretq_s8_u8(veorq_u8(dup4(at + p * j->plane), move)), ev);
            if (--room)
                continue;
            for (int p = 0; p < np; p++)
                flush(&acc[p], &s[p]);
            room = most;
        }
    }
    for (int p = 0; p < np; p++) {
        flush(&acc[p], &s[p]);
        for (int q = 0; q < QUADS; q++) {
            int32_t *to = g + 16 * p + 4 * q;
            vst1q_s32(to, vaddq_s32(vaddq_s32(vld1q_s32(to), start[q]), channels(acc[p].low[q], acc[p].high[q])));
        }
    }
}

static void dw(const fmpq_dw *j)
{
    const int moved = j->a_max > 127;
    const uint8x16_t move = vdupq_n_u8(moved ? 128 : 0);
    const int32_t most = chain(j->a_max, 127);
    for (int32_t co = j->cb0 * 16; co < j->cb1 * 16; co += 4 * QUADS) {
        const int8_t *e = j->e + co * 4;
        int32x4_t start[QUADS];
        for (int q = 0; q < QUADS; q++) {
            int32x4_t low = vdupq_n_s32(0), high = low;
            for (int32_t k = 0; moved && k < j->rows * j->cols4; k++) {
                const int8x16_t v = vld1q_s8(e + k * j->cop * 4 + 16 * q);
                low = vpadalq_s16(low, vmovl_s8(vget_low_s8(v)));
                high = vpadalq_s16(high, vmovl_s8(vget_high_s8(v)));
            }
            start[q] = vshlq_n_s32(channels(low, high), 7);
        }
        for (int32_t t = 0; t < j->taps; t++) {
            int32_t *g = j->g + ((co / 16 - j->cb0) * j->taps + t) * j->ci * 16 + co % 16;
            const uint8_t *a = j->a + j->tap_off[t];
            int32_t ci = 0;
            for (; ci + 2 <= j->ci; ci += 2)
                dw_tile(j, 2, a + ci * j->plane, e, g + ci * 16, start, move, most);
            for (; ci < j->ci; ci++)
                dw_tile(j, 1, a + ci * j->plane, e, g + ci * 16, start, move, most);
        }
    }
}

static int available(void)
{
    return HAS_NEON();
}

const fmpq_kernels fmpq_kernels_neon = {.name = "neon", .available = available, .igemm = igemm, .dw = dw, ELEMENTWISE_TABLE};
