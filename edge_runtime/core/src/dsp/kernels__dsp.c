/* Cortex-M4 and M7: smlad multiplies two pairs of int16 and adds both products to an int32. The weights (errors) of four output channels are
 * widened once, to the stack, in the order of their use, and serve all positions (all taps and input channels); the other operand's bytes
 * are widened two at a time, the even and the odd ones of a word. So 16 products take 13 instructions. */
#define SUFFIX dsp
#include <string.h>
#pragma GCC diagnostic ignored "-Wunused-function"  /* of elementwise.inc: what this table does itself */
#pragma GCC diagnostic ignored "-Wunused-parameter" /* of the functions in assembly */
#include "../elementwise.inc"
#include "elementwise_dsp.h"
#include "planes_dsp.h"

enum {
    CHANNELS = 4,
    GROUP = CHANNELS * 8, /* bytes of four widened operands of each channel */
    COPY = 4608,
    MOST_GROUPS = COPY / GROUP,
    MOST_TAPS = 49
};

/* The loops, in assembly: r0 the bytes, r1 the widened operands, r4 to r7 the sums of four channels, r8 to r11 what is loaded. */
#define FUNCTION(name, body) __attribute__((naked, noinline)) static void name { __asm__ volatile("push {r4-r11, lr}\n\t" body "pop {r4-r11, pc}"); }
#define MULTIPLY                                                                                                                                  \
    "ldr r2, [r0], #4\n\tldmia r1!, {r8-r11}\n\tuxtb16 r3, r2, ror #8\n\tuxtb16 r2, r2\n\t"                                                       \
    "smlad r4, r2, r8, r4\n\tsmlad r5, r2, r10, r5\n\tsmlad r4, r3, r9, r4\n\tsmlad r5, r3, r11, r5\n\t"                                          \
    "ldmia r1!, {r8-r11}\n\t"                                                                                                                     \
    "smlad r6, r2, r8, r6\n\tsmlad r7, r2, r10, r7\n\tsmlad r6, r3, r9, r6\n\tsmlad r7, r3, r11, r7\n\t"
/* as many groups as lr says, at least one */
#define GROUPS                                                                                                                                    \
    "lsrs lr, lr, #1\n\tbcc 7f\n\t" MULTIPLY "cmp lr, #0\n\tbeq 9f\n"                                                                              \
    "7:\n\t" MULTIPLY MULTIPLY "subs lr, #1\n\tbne 7b\n"                                                                                           \
    "9:\n\t"

/* the same, where the number is a multiple of four */
#define FOURS "lsrs lr, lr, #2\n7:\n\t" MULTIPLY MULTIPLY MULTIPLY MULTIPLY "subs lr, #1\n\tbne 7b\n\t"

/* ---- convolution -------------------------------------------------------------------------------------------- */

/* Neighbouring taps are one run of bytes, of so many groups of four; a run of none ends the list. */
typedef struct run {
    int32_t at, groups;
} run;

typedef struct runs {
    int32_t fours; /* each run is a multiple of four groups */
    run of[MOST_TAPS + 1];
    uint8_t order[MOST_TAPS]; /* of the taps */
} runs;

/* The taps in the order of their addresses; 0 where the copy cannot hold them. */
static int find_runs(const fmpq_igemm *j, runs *r)
{
    int32_t n = 0;
    if (j->taps > MOST_TAPS || j->taps * j->c4 > MOST_GROUPS)
        return 0;
    for (int32_t t = 0; t < j->taps; t++) {
        int32_t k = t;
        for (; k > 0 && j->tap_off[r->order[k - 1]] > j->tap_off[t]; k--)
            r->order[k] = r->order[k - 1];
        r->order[k] = (uint8_t)t;
    }
    for (int32_t t = 0; t < j->taps; t++) {
        const int32_t off = j->tap_off[r->order[t]];
        if (!t || off != j->tap_off[r->order[t - 1]] + 4 * j->c4) {
            r->of[n].at = off;
            r->of[n++].groups = 0;
        }
        r->of[n - 1].groups += j->c4;
    }
    r->of[n].at = r->of[n].groups = 0;
    r->fours = j->c4 % 4 == 0;
    return 1;
}

/* Weights of four output channels, [group][channel][even, odd]; split ones are put together. */
static void copy_weights(const fmpq_igemm *j, const runs *r, int32_t co, int32_t *out)
{
    const int32_t step = j->cop * 4;
    for (int32_t t = 0; t < j->taps; t++) {
        int32_t at = r->order[t] * j->c4 * step + co * 4;
        for (int32_t c = 0; c < j->c4; c++, at += step)
            for (int32_t i = 0; i < CHANNELS; i++) {
                const uint32_t w = word(j->w + at + 4 * i);
                int32_t e = signed_even(w), o = signed_odd(w);
                if (j->w_low) {
                    const uint32_t low = word(j->w_low + at + 4 * i);
                    e = add16(add16(e, e), signed_even(low));
                    o = add16(add16(o, o), signed_odd(low));
                }
                *out++ = e;
                *out++ = o;
            }
    }
}

typedef struct row {
    const run *of;
    const int32_t *w;
    const uint8_t *a;
    int32_t a_pix, cols;
    const int32_t *corr;
    int32_t *out; /* [position][channel] */
} row;

/* r0 comes as the row. On the stack: it. */
#define ROW(name, groups)                                                                                                                         \
    FUNCTION(name(const row *r),                                                                                                                  \
             "push {r0, r1}\n"                                                                                                                    \
             "1:\n\tldr r3, [sp]\n\tldr r2, [r3, #20]\n\tldmia r2, {r4-r7}\n\tldrd r12, r1, [r3]\n"                                                \
             "2:\n\tldrd r2, lr, [r12], #8\n\tcmp lr, #0\n\tbeq 3f\n\tldr r0, [sp]\n\tldr r0, [r0, #8]\n\tadd r0, r2\n\t" groups "b 2b\n"           \
             "3:\n\tldr r3, [sp]\n\tldr r0, [r3, #24]\n\tstmia r0!, {r4-r7}\n\tstr r0, [r3, #24]\n\t"                                              \
             "ldrd r0, r1, [r3, #8]\n\tadd r0, r1\n\tstr r0, [r3, #8]\n\tldr r0, [r3, #16]\n\tsubs r0, #1\n\tstr r0, [r3, #16]\n\tbne 1b\n\t"      \
             "pop {r0, r1}\n\t")
ROW(sums_of_row, GROUPS)
ROW(sums_of_row_fours, FOURS)

enum { COLUMNS = 16 };

/* sat16(reven(sum, shift)); sums stay far enough from the ends of int32 to add half */
ALWAYS_INLINE int32_t rounded(int32_t v, int32_t half, int32_t odd, int32_t shift)
{
    return saturated16((uint32_t)((v + half + ((v >> shift) & odd)) >> shift));
}

/* at least -32767 in each half, where no half is above 32767 */
ALWAYS_INLINE uint32_t symmetric(int32_t v)
{
    return (uint32_t)add16(subtract_saturated16(v, 0x00010001), 0x00010001);
}

/* n channels of each position */
ALWAYS_INLINE void store_row(const int32_t *sums, int16_t *out, int32_t pix, int32_t cols, int32_t shift, int32_t n)
{
    const int32_t half = shift ? (1 << (shift - 1)) - 1 : 0, odd = shift > 0;
    for (; n == CHANNELS && cols > 0; cols--, sums += CHANNELS, out += pix) {
        put_word(out, symmetric(low_halves(rounded(sums[0], half, odd, shift), rounded(sums[1], half, odd, shift))));
        put_word(out + 2, symmetric(low_halves(rounded(sums[2], half, odd, shift), rounded(sums[3], half, odd, shift))));
    }
    for (; cols > 0; cols--, sums += CHANNELS, out += pix)
        for (int32_t i = 0; i < n; i++)
            out[i] = (int16_t)max32(rounded(sums[i], half, odd, shift), -32767);
}

static void igemm(const fmpq_igemm *j)
{
    int32_t copy[COPY / 4], sums[COLUMNS * CHANNELS], corr[CHANNELS] = {0, 0, 0, 0};
    runs r;
    if (!find_runs(j, &r)) { /* in plain loops */
        fmpq_kernels_scalar.igemm(j);
        return;
    }
    for (int32_t co = 0; co < j->co; co += CHANNELS) {
        const int32_t n = min32(j->co - co, CHANNELS);
        copy_weights(j, &r, co, copy);
        for (int32_t i = 0; i < n; i++)
            corr[i] = j->corr[co + i];
        for (int32_t y = 0; y < j->rows; y++)
            for (int32_t x = 0; x < j->cols; x += COLUMNS) {
                const int32_t cols = min32(j->cols - x, COLUMNS);
                int16_t *out = j->out + y * j->out_row + x * j->out_pix + co;
                row of;
                of.of = r.of;
                of.w = copy;
                of.a = j->a + y * j->a_row + x * j->a_pix;
                of.a_pix = j->a_pix;
                of.cols = cols;
                of.corr = corr;
                of.out = sums;
                if (r.fours)
                    sums_of_row_fours(&of);
                else
                    sums_of_row(&of);
                store_row(sums, out, j->out_pix, cols, j->shift, n);
            }
    }
}

/* ---- weight gradient ---------------------------------------------------------------------------------------- */

/* Errors of four output channels in rows y0..y1, [group of positions][channel][even, odd] */
static void copy_errors(const fmpq_dw *j, int32_t co, int32_t y0, int32_t y1, int32_t *out)
{
    const int8_t *e = j->e + (y0 * j->cols4 * j->cop + co) * 4;
    for (int32_t n = (y1 - y0) * j->cols4; n > 0; n--, e += j->cop * 4)
        for (int32_t i = 0; i < CHANNELS; i++) {
            const uint32_t w = word(e + 4 * i);
            *out++ = signed_even(w);
            *out++ = signed_odd(w);
        }
}

typedef struct planes {
    const uint8_t *a;
    const int32_t *e;
    int32_t *g;
    int32_t a_row, rows, cols4, plane, ci;
} planes;

#define NEXT_PLANE                                                                                                                                \
    "ldr r3, [sp]\n\tldr r2, [r3, #8]\n\tstmia r2, {r4-r7}\n\tadds r2, #64\n\tstr r2, [r3, #8]\n\t"                                                 \
    "ldr r0, [r3]\n\tldrd r1, r2, [r3, #24]\n\tadd r0, r1\n\tstr r0, [r3]\n\tsubs r2, #1\n\tstr r2, [r3, #28]\n\tbne 1b\n\tpop {r0, r1}\n\t"

/* All input channels of one tap: g[ci][16] += … of four output channels. r0 comes as the planes. [sp]: it, rows left. */
FUNCTION(sums_of_tap(const planes *p),
         "push {r0, r1}\n"
         "1:\n\tldr r3, [sp]\n\tldr r2, [r3, #8]\n\tldmia r2, {r4-r7}\n\tldr r2, [r3, #16]\n\tstr r2, [sp, #4]\n\tldrd r12, r1, [r3]\n"
         "2:\n\tldr r3, [sp]\n\tldr lr, [r3, #20]\n\tmov r0, r12\n\tldr r2, [r3, #12]\n\tadd r12, r2\n\t" GROUPS
         "ldr r2, [sp, #4]\n\tsubs r2, #1\n\tstr r2, [sp, #4]\n\tbne 2b\n\t" NEXT_PLANE)
/* The same for rows of two, four and eight groups; a_row comes less what they read. */
#define TAP(name, row)                                                                                                                            \
    FUNCTION(name(const planes *p),                                                                                                               \
             "push {r0, r1}\n"                                                                                                                    \
             "1:\n\tldr r3, [sp]\n\tldr r2, [r3, #8]\n\tldmia r2, {r4-r7}\n\tldrd r12, lr, [r3, #12]\n\tldrd r0, r1, [r3]\n"                        \
             "2:\n\t" row "add r0, r12\n\tsubs lr, #1\n\tbne 2b\n\t" NEXT_PLANE)
#define MULTIPLY_4 MULTIPLY MULTIPLY MULTIPLY MULTIPLY
TAP(tap_2, MULTIPLY MULTIPLY)
TAP(tap_4, MULTIPLY_4)
TAP(tap_8, MULTIPLY_4 MULTIPLY_4)

static void dw(const fmpq_dw *j)
{
    const int32_t most = MOST_GROUPS / j->cols4;
    const int special = j->cols4 == 2 || j->cols4 == 4 || j->cols4 == 8;
    int32_t copy[COPY / 4];
    if (!most) { /* rows of more than 576 positions */
        fmpq_kernels_scalar.dw(j);
        return;
    }
    for (int32_t co = j->cb0 * 16; co < j->cb1 * 16; co += CHANNELS)
        for (int32_t y = 0; y < j->rows; y += most) {
            const int32_t rows = min32(most, j->rows - y);
            copy_errors(j, co, y, y + rows, copy);
            for (int32_t t = 0; t < j->taps; t++) {
                planes p;
                p.a = j->a + y * j->a_row + j->tap_off[t];
                p.e = copy;
                p.g = j->g + (co / 16 - j->cb0) * j->taps * j->ci * 16 + t * j->ci * 16 + co % 16;
                p.a_row = j->a_row - (special ? 4 * j->cols4 : 0);
                p.rows = rows;
                p.cols4 = j->cols4;
                p.plane = j->plane;
                p.ci = j->ci;
                if (j->cols4 == 2)
                    tap_2(&p);
                else if (j->cols4 == 4)
                    tap_4(&p);
                else if (j->cols4 == 8)
                    tap_8(&p);
                else
                    sums_of_tap(&p);
            }
        }
}

static int available(void)
{
    return 1;
}

const fmpq_kernels fmpq_kernels_dsp = {
    .name = "dsp", .available = available, .igemm = igemm, .dw = dw, .stats = stats, .norm = norm, .act = act,
    .reduce = reduce, .bn_back = bn_back, .merge = merge, .max16 = max16, .quant = quant, .bias = bias, .scale = scale,
    .apply = NAME(apply), .planar = planar, .interleave = interleave, .unpack = unpack, .pack = pack,
    ROW_TABLE};
