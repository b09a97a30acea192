/* Weight gradient: vectors run along positions. */
#ifndef FMPQ_GRADIENT_MVE_H
#define FMPQ_GRADIENT_MVE_H
#include "convolution_mve.h"

enum { MOST_BLOCKS = 8 }; /* of 16 output channels at a time: COPY holds two vectors of errors for each */

/* A vector of positions: part of a row, or several narrow rows. */
typedef struct slice {
    int32_t a, e, words; /* offsets of its first position and of its first four errors; errors in fours, those beyond are zero */
    uint8x16_t at;       /* of its bytes, where rows are narrow */
} slice;

/* Errors of `channels` output channels from co on to out[channel][2][16]; adds them to sums. */
static void copy_errors(const fmpq_dw *j, const slice *s, int32_t co, int32_t channels, int8_t *out, int32_t *sums)
{
    const uint32x4_t step = steps_u32((uint32_t)j->cop * 4u);
    const mve_pred16_t some = vctp32q((uint32_t)s->words);
    const int8_t *e = j->e + (s->e * j->cop + co) * 4;
    for (int32_t i = 0; i < channels; i++, e += 4, out += 32) {
        const int8x16_t x = vreinterpretq_s8_s32(vldrwq_gather_offset_z_s32((const void *)e, step, some));
        vstrbq_s8(out, x);
        if (sums)
            sums[i] = vaddvaq_s8(sums[i], x);
    }
}

/* Two input channels' vectors of two slices stay in q0 and q1, q2 and q3; the errors of 16 output channels go by: 16 loads, sums and
 * multiplications for each eight vectors' products. The gradients of an output channel's input channels lie 16 words apart. */
#define ERROR(x, a) "vldrb.8 q4, [%[e]], #16\n\tvmladava.s8 " x ", " a ", q4\n\t"
#define BOTH(x, y) ERROR(x, "q0") "vmladava.s8 " y ", q2, q4\n\t" ERROR(x, "q1") "vmladava.s8 " y ", q3, q4\n\t"
#define SINGLE(x, y) ERROR(x, "q0") ERROR(x, "q1")
#define TWO_OUTPUTS "ldrd r0, r2, [%[g]]\n\tldrd r4, r6, [%[g], #64]\n\t" BOTH("r0", "r4") BOTH("r2", "r6") "strd r4, r6, [%[g], #64]\n\tstrd r0, r2, [%[g]], #8\n\t"
#define TWO_OUTPUTS_OF_ONE "ldrd r0, r2, [%[g]]\n\t" SINGLE("r0", ) SINGLE("r2", ) "strd r0, r2, [%[g]], #8\n\t"
#define OUTPUTS(two) "mov lr, #4\n2:\n\t" two two "le lr, 2b\n\tsub %[e], #512\n\t"
#define PLANE(load, x, y) load(x, "%[a0]", "%q[at0]") load(y, "%[a1]", "%q[at1]") "add %[a0], %[plane]\n\tadd %[a1], %[plane]\n\t"
#define IN_A_ROW(x, a, at) "vldrb.8 " x ", [" a "]\n\t"
#define IN_ROWS(x, a, at) "vldrb.u8 " x ", [" a ", " at "]\n\t"
#define INPUTS(load)                                                                                                                               \
    "1:\n\t" PLANE(load, "q0", "q1") PLANE(load, "q2", "q3") OUTPUTS(TWO_OUTPUTS) "add %[g], #64\n\tsubs %[pairs], #1\n\tbne.w 1b\n"
#define LAST_INPUT(load) PLANE(load, "q0", "q1") OUTPUTS(TWO_OUTPUTS_OF_ONE)

/* g of 16 output channels += two slices of all input channels of one tap, times their errors */
ALWAYS_INLINE void two_slices(const fmpq_dw *j, const slice s[2], const uint8_t *a, const int8_t *e, int32_t *g, const int narrow)
{
    const uint8_t *a0 = a + s[0].a, *a1 = a + s[1].a;
    int32_t pairs = j->ci / 2;
#define RUN(loop)                                                                                                                                  \
    __asm__ volatile(loop                                                                                                                          \
                     : [g] "+r"(g), [e] "+r"(e), [a0] "+r"(a0), [a1] "+r"(a1), [pairs] "+r"(pairs)                                                 \
                     : [plane] "r"(j->plane), [at0] "w"(s[0].at), [at1] "w"(s[1].at)                                                               \
                     : "r0", "r2", "r4", "r6", "lr", "cc", "memory", "q0", "q1", "q2", "q3", "q4")
    if (pairs && narrow)
        RUN(INPUTS(IN_ROWS));
    else if (pairs)
        RUN(INPUTS(IN_A_ROW));
    if (j->ci % 2 && narrow)
        RUN(LAST_INPUT(IN_ROWS));
    else if (j->ci % 2)
        RUN(LAST_INPUT(IN_A_ROW));
#undef RUN
}

/* what signed inputs lack: 128 times the errors' sums */
static void add_top_bits(const fmpq_dw *j, int32_t *g, int32_t blocks, const int32_t *sums)
{
    for (int32_t b = 0; b < blocks; b++, sums += 16)
        for (int32_t cell = 0; cell < j->taps * j->ci; cell++, g += 16)
            for (int i = 0; i < 16; i += 4)
                vstrwq_s32(g + i, vaddq_s32(vldrwq_s32(g + i), vshlq_n_s32(vldrwq_s32(sums + i), 7)));
}

static void gradient(const fmpq_dw *j, int32_t *g, int32_t co, int32_t blocks)
{
    const int32_t width = j->cols4 * 4, in_vector = width <= 8 && j->a_row * (16 / width - 1) + width <= 256 ? 16 / width : 1;
    const int flip = j->a_max > 127;
    int8_t errors[COPY];
    int32_t sums[16 * MOST_BLOCKS] = {0};
    uint8_t at[16];
    slice s[2];
    for (int32_t i = 0; i < 16; i++)
        at[i] = (uint8_t)(in_vector == 1 ? i : i < in_vector * width ? i / width * j->a_row + i % width : 0);
    for (int32_t y = 0, x4 = 0, n = 0; y < j->rows;) {
        const int32_t rows = min32(in_vector, j->rows - y);
        s[n].a = y * j->a_row + 4 * x4;
        s[n].e = y * j->cols4 + x4;
        s[n].words = in_vector > 1 ? rows * j->cols4 : min32(4, j->cols4 - x4);
        /* nothing below the last row is read */
        s[n].at = vpselq_u8(vldrbq_u8(at), vdupq_n_u8(0), vctp8q((uint32_t)s[n].words * 4));
        copy_errors(j, &s[n], co, 16 * blocks, errors + 16 * n, flip ? sums : NULL);
        x4 += 4;
        if (in_vector > 1 || x4 >= j->cols4) {
            y += in_vector;
            x4 = 0;
        }
        if (n++ == 0 && y < j->rows)
            continue;
        if (n == 1) { /* an odd one is left: beside it nothing */
            s[1] = s[0];
            s[1].words = 0;
            copy_errors(j, &s[1], co, 16 * blocks, errors + 16, NULL);
        }
        for (int32_t b = 0; b < blocks; b++)
            for (int32_t tap = 0; tap < j->taps; tap++) {
                const uint8_t *a = j->a + j->tap_off[tap];
                const int8_t *e = errors + 512 * b;
                int32_t *cells = g + (b * j->taps + tap) * j->ci * 16;
                if (in_vector > 1)
                    two_slices(j, s, a, e, cells, 1);
                else
                    two_slices(j, s, a, e, cells, 0);
            }
        n = 0;
    }
    if (flip)
        add_top_bits(j, g, blocks, sums);
}

static void dw(const fmpq_dw *j)
{
    const int flip = j->a_max > 127;
    int32_t last = 0;
    for (int32_t t = 0; t < j->taps; t++)
        last = max32(last, j->tap_off[t]);
    last += (j->ci - 1) * j->plane + (j->rows - 1) * j->a_row + 4 * j->cols4;
    if (flip)
        flip_bytes(j->a, last);
    for (int32_t cb = j->cb0; cb < j->cb1; cb += MOST_BLOCKS)
        gradient(j, j->g + (cb - j->cb0) * j->taps * j->ci * 16, cb * 16, min32(j->cb1 - cb, MOST_BLOCKS));
    if (flip)
        flip_bytes(j->a, last);
}
#endif
