/* NEON with int8 matrix multiplication (Armv8.6): usmmla multiplies a 2x8 matrix of unsigned by an 8x2 one of signed bytes. Rows are
 * two positions (two input channels for the weight gradient), columns two output channels; two groups of four operands are
 * zipped to the eight of a row. Unsigned by signed: no activation has to be moved. */
#if defined(__aarch64__)
#define SUFFIX neoni8mm
#include "../elementwise.inc"
#include "cpu.h"
#include "tile.h"

/* weights of 16 channels for eight operands, as rows of two channels; `second`: 0 where there is no second group */
ALWAYS_INLINE void columns(int8x16_t *z, const int8_t *w, int32_t step, int second)
{
    for (int b = 0; b < 4; b++) {
        const int32x4_t first = vreinterpretq_s32_s8(vld1q_s8(w + 16 * b));
        const int32x4_t next = second ? vreinterpretq_s32_s8(vld1q_s8(w + step + 16 * b)) : vdupq_n_s32(0);
        z[2 * b] = vreinterpretq_s8_s32(vzip1q_s32(first, next));
        z[2 * b + 1] = vreinterpretq_s8_s32(vzip2q_s32(first, next));
    }
}

ALWAYS_INLINE uint8x8_t four(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return vcreate_u8(v);
}

/* acc[pair][k] += rows (p, q) by columns z[k] */
ALWAYS_INLINE void multiply(int32x4_t *acc, uint8x8_t p, uint8x8_t q, const int8x16_t *z)
{
    const uint8x16_t rows = vcombine_u8(p, q);
    for (int k = 0; k < 8; k++)
        acc[k] = vusmmlaq_s32(acc[k], rows, z[k]);
}

/* the 16 channels of the pair's first or second row */
ALWAYS_INLINE void row(const int32x4_t *acc, int second, int32x4_t *v)
{
    for (int b = 0; b < 4; b++)
        v[b] = second ? vcombine_s32(vget_high_s32(acc[2 * b]), vget_high_s32(acc[2 * b + 1]))
                      : vcombine_s32(vget_low_s32(acc[2 * b]), vget_low_s32(acc[2 * b + 1]));
}

/* np positions in (np + 1) / 2 pairs; a single one is multiplied twice */
ALWAYS_INLINE void accumulate(const fmpq_igemm *j, int32x4_t acc[][8], const int8_t *w, const uint8_t *a, int np)
{
    const int32_t step = j->cop * 4, odd = np > 1 ? j->a_pix : 0;
    for (int32_t t = 0; t < j->taps; t++) {
        const uint8_t *at = a + j->tap_off[t];
        int32_t c = 0;
        int8x16_t z[8];
        for (; c + 2 <= j->c4; c += 2, at += 8, w += 2 * step) {
            columns(z, w, step, 1);
            for (int p = 0; p < np; p += 2)
                multiply(acc[p / 2], vld1_u8(at + p * j->a_pix), vld1_u8(at + p * j->a_pix + odd), z);
        }
        if (c < j->c4) {
            columns(z, w, step, 0);
            for (int p = 0; p < np; p += 2)
                multiply(acc[p / 2], four(at + p * j->a_pix), four(at + p * j->a_pix + odd), z);
            w += step;
        }
    }
}

ALWAYS_INLINE void tile(const fmpq_igemm *j, int np, const uint8_t *a, int16_t *out, int32_t cb)
{
    int32x4_t acc[2][8];
    for (int p = 0; p < np; p += 2)
        for (int k = 0; k < 8; k++)
            acc[p / 2][k] = vdupq_n_s32(0);
    accumulate(j, acc, j->w + cb * 64, a, np);
    if (j->w_low) {
        for (int p = 0; p < np; p += 2)
            for (int k = 0; k < 8; k++)
                acc[p / 2][k] = vaddq_s32(acc[p / 2][k], acc[p / 2][k]);
        accumulate(j, acc, j->w_low + cb * 64, a, np);
    }
    for (int p = 0; p < np; p++) {
        int32x4_t v[4];
        row(acc[p / 2], p & 1, v);
        for (int b = 0; b < 4; b++)
            v[b] = vaddq_s32(v[b], vld1q_s32(j->corr + cb * 16 + 4 * b));
        store(j, out + p * j->out_pix, v, 4, cb * 16);
    }
}

static void igemm(const fmpq_igemm *j)
{
#define PREPARE(cb)
#define TILE(np, a, out, cb) tile(j, np, a, out, cb)
    FOR_EACH_TILE(j, 4, 16, TILE)
#undef PREPARE
#undef TILE
}

/* np input channels of one tap, 16 output channels; reads up to 4 bytes past a row of the planar activations */
ALWAYS_INLINE void dw_tile(const fmpq_dw *j, int np, const uint8_t *a, const int8_t *e, int32_t *g)
{
    const int32_t step = j->cop * 4, odd = np > 1 ? j->plane : 0;
    int32x4_t acc[2][8];
    for (int p = 0; p < np; p += 2)
        for (int k = 0; k < 8; k++)
            acc[p / 2][k] = vdupq_n_s32(0);
    for (int32_t y = 0; y < j->rows; y++) {
        const uint8_t *at = a + y * j->a_row;
        int8x16_t z[8];
        for (int32_t x = 0; x < j->cols4; x += 2, at += 8) {
            columns(z, e, step, x + 1 < j->cols4);
            e += x + 1 < j->cols4 ? 2 * step : step;
            for (int p = 0; p < np; p += 2)
                multiply(acc[p / 2], vld1_u8(at + p * j->plane), vld1_u8(at + p * j->plane + odd), z);
        }
    }
    for (int p = 0; p < np; p++) {
        int32x4_t v[4];
        row(acc[p / 2], p & 1, v);
        for (int b = 0; b < 4; b++)
            vst1q_s32(g + 16 * p + 4 * b, vaddq_s32(vld1q_s32(g + 16 * p + 4 * b), v[b]));
    }
}

static void dw(const fmpq_dw *j)
{
    for (int32_t cb = j->cb0; cb < j->cb1; cb++)
        for (int32_t t = 0; t < j->taps; t++) {
            int32_t *g = j->g + ((cb - j->cb0) * j->taps + t) * j->ci * 16;
            const uint8_t *a = j->a + j->tap_off[t];
            int32_t ci = 0;
            for (; ci + 4 <= j->ci; ci += 4)
                dw_tile(j, 4, a + ci * j->plane, j->e + cb * 64, g + ci * 16);
            for (; ci < j->ci; ci++)
                dw_tile(j, 1, a + ci * j->plane, j->e + cb * 64, g + ci * 16);
        }
}

static int available(void)
{
    return HAS_I8MM();
}

const fmpq_kernels fmpq_kernels_neoni8mm = {.name = "neoni8mm", .available = available, .igemm = igemm, .dw = dw, ELEMENTWISE_TABLE};
#endif
