/* Convolution with 3x3 taps over neighbouring positions. */
#ifndef FMPQ_SLIDE_MVE_H
#define FMPQ_SLIDE_MVE_H
#include "convolution_mve.h"

/* Where taps and positions are equally far apart, six vectors of a row serve four positions and three taps: 36 instructions for 24 products,
 * in q0 to q5. The sums are r0, r2, … r6 of one output channel and r8, r10, r12, r14 of the next. */
typedef struct slide {
    const uint8_t *taps[3]; /* first position under each row of taps */
    const int8_t *w;        /* [row][16 input channels][tap][2 output channels][16] */
    int32_t tiles;          /* of four positions, in a row */
    int32_t *sums;          /* [row][tile][2 output channels][4 positions] */
    int32_t rows, skip;     /* rows left; bytes from the end of one to the next */
} slide;

#define TAP(op, x0, x1, x2, x3)                                                                                                                    \
    "vldrb.8 q6, [r7], #16\n\tvldrb.8 q7, [r7], #16\n\t" op " r0, " x0 ", q6\n\t" op " r2, " x1 ", q6\n\t" op " r4, " x2 ", q6\n\t" op " r6, " x3      \
    ", q6\n\t" op " r8, " x0 ", q7\n\t" op " r10, " x1 ", q7\n\t" op " r12, " x2 ", q7\n\t" op " r14, " x3 ", q7\n\t"
#define LOAD(x, row, number, apart, from) "vldrw.u32 " x ", [" row ", #(" #number "*" #apart "+" #from ")]\n\t"
#define TAPS(op, row, apart, from)                                                                                                                 \
    LOAD("q0", row, 0, apart, from) LOAD("q1", row, 1, apart, from) LOAD("q2", row, 2, apart, from) LOAD("q3", row, 3, apart, from)                \
    TAP(op, "q0", "q1", "q2", "q3") LOAD("q4", row, 4, apart, from) TAP("vmladava.s8", "q1", "q2", "q3", "q4")                                     \
    LOAD("q5", row, 5, apart, from) TAP("vmladava.s8", "q2", "q3", "q4", "q5")
#define MORE(row, apart, from) TAPS("vmladava.s8", row, apart, from)
#define ROW_16(first, row) TAPS(first, row, 16, 0)
#define ROW_32(first, row) TAPS(first, row, 32, 0) MORE(row, 32, 16)
#define ROW_64(first, row) TAPS(first, row, 64, 0) MORE(row, 64, 16) MORE(row, 64, 32) MORE(row, 64, 48)
#define SLIDE(name, all, apart)                                                                                                                    \
    FUNCTION(name(slide *t), "vpush {d8-d15}\n\tpush {r0}\n\tldmia r0, {r1, r3, r5, r7, r9, r11}\n1:\n\t" all("vmladav.s8", "r1")                          \
             all("vmladava.s8", "r3") all("vmladava.s8", "r5") "stmia r11!, {r0, r2, r4, r6, r8, r10, r12, r14}\n\t"                               \
             "add r1, #(4*" #apart ")\n\tadd r3, #(4*" #apart ")\n\tadd r5, #(4*" #apart ")\n\tsub r7, #(18*" #apart ")\n\t"                      \
             "subs r9, #1\n\tbne.w 1b\n\tldr r0, [sp]\n\tldrd r2, r4, [r0, #24]\n\tldr r9, [r0, #16]\n\tadd r1, r4\n\tadd r3, r4\n\tadd r5, r4\n\t" \
             "subs r2, #1\n\tstr r2, [r0, #24]\n\tbne.w 1b\n\tpop {r0}\n\tvpop {d8-d15}\n\t")
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
SLIDE(slide_16, ROW_16, 16)
SLIDE(slide_32, ROW_32, 32)
SLIDE(slide_64, ROW_64, 64)
#pragma GCC diagnostic pop
typedef void slide_case(slide *t);

static slide_case *slides(const fmpq_igemm *j, const runs *r)
{
    const int32_t v = j->c4 * 3 / 4, bits = (int32_t)((uintptr_t)j->a | (uintptr_t)j->out) | j->a_row | 2 * (j->out_pix | j->out_row);
    if (j->taps != 9 || j->a_pix != 4 * j->c4 || j->cols % 4 || bits % 4)
        return NULL;
    for (int i = 0; i < 3; i++)
        if (r->of[i].vectors != v)
            return NULL;
    return j->c4 == 4 ? slide_16 : j->c4 == 8 ? slide_32 : j->c4 == 16 ? slide_64 : NULL;
}

/* The weights of two output channels in the order of `slide`; adds `times` their sums. */
static void copy_sliding(const fmpq_igemm *j, const runs *r, const int8_t *w, int8_t *out, int32_t *sums, int32_t times)
{
    const int32_t parts = j->c4 / 4;
    int32_t s[2] = {0, 0};
    for (int32_t row = 0; row < 3; row++)
        for (int32_t part = 0; part < parts; part++)
            for (int32_t tap = 0; tap < 3; tap++, out += 32) {
                const int32x4_t at = vldrwq_s32(r->from + ((row * 3 + tap) * parts + part) * 4);
                const int8x16_t x = vreinterpretq_s8_s32(vldrwq_gather_offset_s32((const void *)w, vreinterpretq_u32_s32(at)));
                const int8x16_t y = vreinterpretq_s8_s32(vldrwq_gather_offset_s32((const void *)(w + 4), vreinterpretq_u32_s32(at)));
                vstrbq_s8(out, x);
                vstrbq_s8(out + 16, y);
                s[0] = vaddvaq_s8(s[0], x);
                s[1] = vaddvaq_s8(s[1], y);
            }
    sums[0] += times * s[0];
    sums[1] += times * s[1];
}

/* Tiles of two output channels to the output, both at once: ties to even, an odd neighbour's being one less before a rounding shift. */
static void store_two(const int32_t *sums, int32_t tiles, int16_t *out, int32_t pix, const int32_t *corr, int32_t shift)
{
    const uint32x4_t at = steps_u32(2u * (uint32_t)pix);
    const int32x4_t odd = vdupq_n_s32(shift > 0);
    const int16x8_t bottom = vdupq_n_s16(-32767);
    __asm__ volatile("dls lr, %[tiles]\n1:\n\tvldrw.u32 q0, [%[sums]], #16\n\tvldrw.u32 q1, [%[sums]], #16\n\t"
                     "vadd.i32 q0, q0, %[c0]\n\tvadd.i32 q1, q1, %[c1]\n\tvshl.s32 q2, q0, %q[lanes]\n\tvshl.s32 q3, q1, %q[lanes]\n\t"
                     "vbic q2, %q[odd], q2\n\tvbic q3, %q[odd], q3\n\tvsub.i32 q0, q0, q2\n\tvsub.i32 q1, q1, q3\n\t"
                     "vrshl.s32 q0, %[down]\n\tvrshl.s32 q1, %[down]\n\tvqmovnb.s32 q2, q0\n\tvqmovnt.s32 q2, q1\n\t"
                     "vmax.s16 q2, q2, %q[bottom]\n\tvstrw.32 q2, [%[out], %q[at]]\n\tadd %[out], %[step]\n\tle lr, 1b\n"
                     : [sums] "+r"(sums), [out] "+r"(out)
                     : [tiles] "r"(tiles), [c0] "r"(corr[0]), [c1] "r"(corr[1]), [down] "r"(-shift), [step] "r"(8 * pix), [odd] "w"(odd),
                       [bottom] "w"(bottom), [at] "w"(at), [lanes] "w"(vdupq_n_s32(-shift))
                     : "lr", "memory", "q0", "q1", "q2", "q3");
}

enum { MOST_TILES = 16 };

/* `rows` rows of `tiles` tiles from position (y, x) on, of output channels co and co + 1 */
static void slide_rows(const fmpq_igemm *j, const runs *r, slide_case *of_case, const int8_t *copy, int32_t *sums, int32_t co, const int32_t *corr,
                       int32_t x, int32_t y, int32_t tiles, int32_t rows)
{
    const uint8_t *a = j->a + y * j->a_row + x * j->a_pix;
    int16_t *out = j->out + y * j->out_row + x * j->out_pix + co;
    slide t = {{a + r->of[0].at, a + r->of[1].at, a + r->of[2].at}, copy, tiles, sums, rows, j->a_row - 4 * tiles * j->a_pix};
    if (j->w_low) {
        slide low = t;
        low.w = copy + j->c4 * 9 * 4 * 2;
        low.sums = sums + 8 * MOST_TILES;
        of_case(&low);
    }
    of_case(&t);
    for (int32_t i = 0; j->w_low && i < 8 * tiles * rows; i += 4) { /* twice the high part */
        const int32x4_t v = vldrwq_s32(sums + i);
        vstrwq_s32(sums + i, vaddq_s32(vaddq_s32(v, v), vldrwq_s32(sums + 8 * MOST_TILES + i)));
    }
    if (j->out_row == 4 * tiles * j->out_pix) {
        store_two(sums, tiles * rows, out, j->out_pix, corr, j->shift);
        return;
    }
    for (; rows > 0; rows--, sums += 8 * tiles, out += j->out_row)
        store_two(sums, tiles, out, j->out_pix, corr, j->shift);
}

/* pairs of output channels; returns how many channels that were */
static int32_t sliding(const fmpq_igemm *j, const runs *r, slide_case *of_case, int8_t *copy, int32_t *sums)
{
    const int flip = j->a_max > 127;
    int8_t *low = copy + j->c4 * 9 * 4 * 2;
    int32_t co = 0;
    for (; co + 2 <= j->co; co += 2) {
        int32_t corr[2] = {0, 0};
        copy_sliding(j, r, j->w + co * 4, copy, corr, j->w_low ? 256 : 128);
        if (j->w_low)
            copy_sliding(j, r, j->w_low + co * 4, low, corr, 128);
        for (int i = 0; i < 2; i++)
            corr[i] = j->corr[co + i] + (flip ? corr[i] : 0);
        for (int32_t x = 0; x < j->cols; x += 4 * MOST_TILES) {
            const int32_t tiles = min32(j->cols / 4 - x / 4, MOST_TILES), many = MOST_TILES / tiles;
            for (int32_t y = 0; y < j->rows; y += many)
                slide_rows(j, r, of_case, copy, sums, co, corr, x, y, tiles, min32(many, j->rows - y));
        }
    }
    return co;
}
#endif
