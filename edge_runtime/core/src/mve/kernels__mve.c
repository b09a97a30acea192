/* Cortex-M55 and later (M-profile vector extension, integers only): vmladava multiplies 16 pairs of bytes and adds all products to one
 * register. So vectors run along the sum: input channels and taps of a convolution, positions of a weight gradient. A tile is two
 * positions (input channels) by three output channels: six sums are what the even-numbered registers hold. The weights (errors) of
 * three output channels are copied to the stack in the order of their use and serve all positions (all taps and input channels). */
#define SUFFIX mve
#pragma GCC diagnostic ignored "-Wunused-function" /* of elementwise.inc: what this table does itself */
#include <string.h>
#include "../elementwise.inc"
#include "elementwise_mve.h"

#include "layout_mve.h"

enum {
    COPY = 4096,  /* bytes of copied weights or errors */
    CHANNELS = 3, /* output channels of a tile */
    SUMS = 6,     /* of a tile: [channel][stream] */
    MOST_WORDS = COPY / 4 / CHANNELS,
    MOST_TAPS = 49,
    MOST_COLUMNS = 32
};

/* The loops, in assembly: six sums and seven addresses are all the registers there are, which no compiler keeps apart. The sums of a tile are
 * r0, r2, … r10, first both streams of one channel; q0 and q1 hold the streams. FLIP: bytes over 127 become signed by taking off 128 (q3). */
#define FUNCTION(name, body) __attribute__((naked, noinline)) static void name { __asm__ volatile("push {r4-r11, lr}\n\t" body "pop {r4-r11, pc}"); }
#define CLEAR "movs r0, #0\n\tmovs r2, #0\n\tmovs r4, #0\n\tmovs r6, #0\n\tmov r8, #0\n\tmov r10, #0\n\t"
#define SUMS_OF_TILE "{r0, r2, r4, r6, r8, r10}\n\t"
#define TOP "vmov.i8 q3, #128\n\t"
#define FLIP "veor q0, q0, q3\n\tveor q1, q1, q3\n\t"
#define MULTIPLY(w, x, y) "vldrb.8 q2, [" w "], #16\n\tvmladava.s8 " x ", q0, q2\n\tvmladava.s8 " y ", q1, q2\n\t"
#define CHANNELS_1(w) MULTIPLY(w, "r0", "r2")
#define CHANNELS_2(w) CHANNELS_1(w) MULTIPLY(w, "r4", "r6")
#define CHANNELS_3(w) CHANNELS_2(w) MULTIPLY(w, "r8", "r10")

/* ---- convolution -------------------------------------------------------------------------------------------- */

/* Neighbouring taps are one run of bytes: `vectors` of 16, the last filled up with zero weights. A run of none ends the list. */
typedef struct run {
    int32_t at, vectors;
} run;

typedef struct runs {
    int32_t vectors;
    run of[MOST_TAPS + 1];
    int32_t from[MOST_WORDS]; /* of each word of weights in that order: its offset in j->w, or NOTHING */
} runs;

#define NOTHING (-1)

/* The taps in the order of their addresses; 0 where there are too many. */
static int find_runs(const fmpq_igemm *j, runs *r)
{
    uint8_t order[MOST_TAPS];
    int32_t words = 0, n = 0;
    if (j->taps > MOST_TAPS)
        return 0;
    for (int32_t t = 0; t < j->taps; t++) {
        int32_t k = t;
        for (; k > 0 && j->tap_off[order[k - 1]] > j->tap_off[t]; k--)
            order[k] = order[k - 1];
        order[k] = (uint8_t)t;
    }
    for (int32_t t = 0; t < j->taps; t++) {
        const int32_t off = j->tap_off[order[t]], step = j->cop * 4, first = order[t] * j->c4 * step;
        if (!t || off != j->tap_off[order[t - 1]] + 4 * j->c4) {
            for (; words % 4; words++)
                r->from[words] = NOTHING;
            r->of[n].at = off;
            r->of[n++].vectors = -(words / 4); /* its length, once it has ended */
        }
        if (words + j->c4 + 3 > MOST_WORDS)
            return 0;
        for (int32_t c = 0; c < j->c4; c++)
            r->from[words++] = first + c * step;
        if (t + 1 == j->taps || j->tap_off[order[t + 1]] != off + 4 * j->c4)
            r->of[n - 1].vectors += (words + 3) / 4;
    }
    for (; words % 4; words++)
        r->from[words] = NOTHING;
    r->of[n].at = r->of[n].vectors = 0;
    r->vectors = words / 4;
    return 1;
}

/* The weights of n output channels to `out`, [vector][n][16]; adds `times` their sums. */
static void copy_weights(const runs *r, const int8_t *w, int8_t *out, int32_t *sums, int32_t times, int32_t n)
{
    int32_t s[CHANNELS] = {0, 0, 0};
    for (int32_t v = 0; v < r->vectors; v++) {
        const int32x4_t at = vldrwq_s32(r->from + 4 * v);
        const mve_pred16_t some = vcmpneq_n_s32(at, NOTHING);
        for (int i = 0; i < n; i++, out += 16) {
            const void *from = w + 4 * i;
            const int8x16_t x = vreinterpretq_s8_s32(vldrwq_gather_offset_z_s32(from, vreinterpretq_u32_s32(at), some));
            vstrbq_s8(out, x);
            s[i] = vaddvaq_s8(s[i], x);
        }
    }
    for (int i = 0; i < n; i++)
        sums[i] += times * s[i];
}

/* Sums of `pairs` pairs of positions, `apart` bytes apart each, to `out`. [sp]: first run, weights, pairs left. */
#define ROW(name, flip, channels)                                                                                                                 \
    FUNCTION(name(const run *of, const uint8_t *base, int32_t apart, const int8_t *w, int32_t *out, int32_t pairs),                               \
             "sub sp, #16\n\tstrd r0, r3, [sp]\n\tldrd r9, r0, [sp, #52]\n\tstr r0, [sp, #8]\n\tmov r7, r2\n" TOP                                 \
             "1:\n\tldrd r5, r3, [sp]\n\t" CLEAR                                                                                                  \
             "2:\n\tldrd r11, lr, [r5], #8\n\twls lr, lr, 4f\n\tadd r11, r1\n\tadd r12, r11, r7\n"                                                \
             "3:\n\tvldrb.8 q0, [r11], #16\n\tvldrb.8 q1, [r12], #16\n\t" flip channels("r3") "le lr, 3b\n\tb 2b\n"                              \
             "4:\n\tstmia r9!, " SUMS_OF_TILE "add r1, r1, r7, lsl #1\n\tldr r0, [sp, #8]\n\tsubs r0, #1\n\tstr r0, [sp, #8]\n\tbne 1b\n\t"        \
             "add sp, #16\n\t")
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
ROW(row_1, "", CHANNELS_1)
ROW(row_2, "", CHANNELS_2)
ROW(row_3, "", CHANNELS_3)
ROW(row_1_flip, FLIP, CHANNELS_1)
ROW(row_2_flip, FLIP, CHANNELS_2)
ROW(row_3_flip, FLIP, CHANNELS_3)
#pragma GCC diagnostic pop
typedef void row_case(const run *of, const uint8_t *base, int32_t apart, const int8_t *w, int32_t *out, int32_t pairs);
static row_case *const row_cases[2][CHANNELS] = {{row_1, row_2, row_3}, {row_1_flip, row_2_flip, row_3_flip}};

static void row(row_case *of_case, const runs *r, const uint8_t *a, int32_t apart, const int8_t *w, int32_t *out, int32_t cols)
{
    if (cols > 1)
        of_case(r->of, a, apart, w, out, cols / 2);
    if (cols % 2)
        of_case(r->of, a + (cols - 1) * apart, 0, w, out + (cols - 1) * SUMS / 2, 1);
}

typedef struct narrowing {
    int32x4_t down, odd;
    int32_t half;
} narrowing;

/* reven of four sums, not yet in 16 bits */
ALWAYS_INLINE int32x4_t rounded(int32x4_t v, int32_t corr, narrowing k)
{
    v = vaddq_n_s32(v, corr);
    v = vaddq_s32(v, vandq_s32(vshlq_s32(v, k.down), k.odd));
    return vshlq_s32(vaddq_n_s32(v, k.half), k.down);
}

/* Sums of up to 32 positions of one channel to the output; twice the high part where weights are split. */
static void store_channel(const int32_t *sums, const int32_t *low, int16_t *out, uint16x8_t at, int32_t cols, int32_t corr, narrowing k)
{
    const uint32x4_t even = steps_u32(4 * SUMS), odd = vaddq_n_u32(even, 4); /* of each pair the first, the second */
    for (; cols > 0; cols -= 8, sums += 4 * SUMS, out += 8 * vgetq_lane_u16(at, 1)) {
        const mve_pred16_t some = vctp16q((uint32_t)cols);
        int32x4_t v0 = vldrwq_gather_offset_s32(sums, even), v1 = vldrwq_gather_offset_s32(sums, odd);
        int16x8_t both;
        if (low) {
            v0 = vaddq_s32(vaddq_s32(v0, v0), vldrwq_gather_offset_s32(low, even));
            v1 = vaddq_s32(vaddq_s32(v1, v1), vldrwq_gather_offset_s32(low, odd));
            low += 4 * SUMS;
        }
        both = vqmovnbq_s32(vdupq_n_s16(0), rounded(v0, corr, k));
        both = vqmovntq_s32(both, rounded(v1, corr, k));
        vstrhq_scatter_shifted_offset_p_s16(out, at, vmaxq_s16(both, vdupq_n_s16(-32767)), some);
    }
}

/* n output channels from co on */
static void channels(const fmpq_igemm *j, const runs *r, int8_t *copy, int32_t *sums, int32_t co, int32_t n)
{
    const int flip = j->a_max > 127;
    int8_t *low = copy + r->vectors * 16 * n;
    int32_t *sums_low = sums + (MOST_COLUMNS / 2 + 4) * SUMS, corr[CHANNELS] = {0, 0, 0};
    const uint16x8_t at = steps_u16((uint32_t)j->out_pix);
    row_case *of_case = row_cases[flip][n - 1];
    narrowing k;
    copy_weights(r, j->w + co * 4, copy, corr, j->w_low ? 256 : 128, n);
    if (j->w_low)
        copy_weights(r, j->w_low + co * 4, low, corr, 128, n);
    for (int i = 0; i < n; i++)
        corr[i] = j->corr[co + i] + (flip ? corr[i] : 0);
    k.down = vdupq_n_s32(-j->shift);
    k.odd = vdupq_n_s32(j->shift > 0);
    k.half = j->shift > 0 ? (1 << (j->shift - 1)) - 1 : 0;
    for (int32_t y = 0; y < j->rows; y++)
        for (int32_t x = 0; x < j->cols; x += MOST_COLUMNS) {
            const int32_t cols = min32(j->cols - x, MOST_COLUMNS);
            const uint8_t *a = j->a + y * j->a_row + x * j->a_pix;
            int16_t *out = j->out + y * j->out_row + x * j->out_pix + co;
            row(of_case, r, a, j->a_pix, copy, sums, cols);
            if (j->w_low)
                row(of_case, r, a, j->a_pix, low, sums_low, cols);
            for (int i = 0; i < n; i++)
                store_channel(sums + 2 * i, j->w_low ? sums_low + 2 * i : NULL, out + i, at, cols, corr[i], k);
        }
}

static void igemm(const fmpq_igemm *j)
{
    int8_t copy[COPY];
    int32_t sums[2 * (MOST_COLUMNS / 2 + 4) * SUMS]; /* reads of eight positions may run past the last */
    runs r;
    int32_t co = 0;
    /* more weights a channel than the copy holds, or positions too far apart: in plain loops */
    if (!find_runs(j, &r) || r.vectors * 16 * CHANNELS * (j->w_low ? 2 : 1) > COPY || j->out_pix > 8191) {
        fmpq_kernels_scalar.igemm(j);
        return;
    }
    for (int32_t n; co < j->co; co += n) {
        n = j->co - co;
        n = n == 4 ? 2 : min32(n, CHANNELS);
        channels(j, &r, copy, sums, co, n);
    }
}

/* ---- weight gradient ---------------------------------------------------------------------------------------- */

/* Up to 32 columns and how their positions lie in vectors of 16: two or one a row, or several narrow rows in one. */
typedef struct strip {
    int32_t cols4, vectors, rows; /* groups of four positions; vectors of a step, rows of a step */
    uint8x16_t at;                /* offsets of the bytes of a vector */
    uint32x4_t word;              /* offsets of the words of a vector of errors */
} strip;

static strip lay_out(const fmpq_dw *j, int32_t cols4)
{
    strip s;
    uint8_t at[16];
    const int32_t width = cols4 * 4;
    s.cols4 = cols4;
    s.vectors = (cols4 + 3) / 4;
    s.rows = width < 16 && cols4 == j->cols4 ? 16 / width : 1;
    if ((s.rows - 1) * j->a_row + width > 255)
        s.rows = 1;
    for (int32_t i = 0; i < 16; i++)
        at[i] = (uint8_t)(s.rows == 1 ? i : i < s.rows * width ? i / width * j->a_row + i % width : 0);
    s.at = vldrbq_u8(at);
    s.word = steps_u32((uint32_t)j->cop * 4u);
    return s;
}

/* Errors of n output channels in rows y0..y1 and columns from 4*x4 to `out`, [vector][n][16], zero where a vector has no position; their sums. */
static void copy_errors(const fmpq_dw *j, const strip *s, int32_t co, int32_t y0, int32_t y1, int32_t x4, int8_t *out, int32_t *sums, int32_t n)
{
    for (int32_t y = y0; y < y1; y += s->rows) {
        const int32_t words = s->rows > 1 ? min32(s->rows, y1 - y) * s->cols4 : s->cols4;
        for (int32_t v = 0; v < s->vectors; v++)
            for (int i = 0; i < n; i++, out += 16) {
                const void *e = j->e + ((y * j->cols4 + x4 + 4 * v) * j->cop + co + i) * 4;
                const mve_pred16_t some = vctp32q((uint32_t)(words - 4 * v));
                const int8x16_t x = vreinterpretq_s8_s32(vldrwq_gather_offset_z_s32(e, s->word, some));
                vstrbq_s8(out, x);
                sums[i] = vaddvaq_s8(sums[i], x);
            }
    }
}

/* What a tile's loop reads, in the order of its registers. */
typedef struct tile {
    const uint8_t *a, *b;
    const int8_t *w;
    int32_t steps, step;
    int32_t *out;
    uint8x16_t at;
} tile;

#define TILE(name, prepare, load, again, flip, channels)                                                                                          \
    FUNCTION(name(const tile *t),                                                                                                                 \
             "vpush {d8-d9}\n\tldmia r0, {r1, r3, r5, r7, r9, r11}\n\t" prepare TOP CLEAR "dls lr, r7\n"                                            \
             "1:\n\t" load flip channels("r5") again "add r1, r9\n\tadd r3, r9\n\tle lr, 1b\n\tstmia r11, " SUMS_OF_TILE "vpop {d8-d9}\n\t")
#define FIRST "vldrb.8 q0, [r1]\n\tvldrb.8 q1, [r3]\n\t"
#define SECOND "vldrb.8 q0, [r1, #16]\n\tvldrb.8 q1, [r3, #16]\n\t"
#define GATHER "vldrb.u8 q0, [r1, q4]\n\tvldrb.u8 q1, [r3, q4]\n\t"
#define OFFSETS "vldrb.8 q4, [r0, #24]\n\t"
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
TILE(one_2, "", FIRST, "", "", CHANNELS_2)
TILE(one_3, "", FIRST, "", "", CHANNELS_3)
TILE(one_2_flip, "", FIRST, "", FLIP, CHANNELS_2)
TILE(one_3_flip, "", FIRST, "", FLIP, CHANNELS_3)
TILE(two_2, "", FIRST, SECOND CHANNELS_2("r5"), "", CHANNELS_2)
TILE(two_3, "", FIRST, SECOND CHANNELS_3("r5"), "", CHANNELS_3)
TILE(two_2_flip, "", FIRST, SECOND FLIP CHANNELS_2("r5"), FLIP, CHANNELS_2)
TILE(two_3_flip, "", FIRST, SECOND FLIP CHANNELS_3("r5"), FLIP, CHANNELS_3)
TILE(narrow_2, OFFSETS, GATHER, "", "", CHANNELS_2)
TILE(narrow_3, OFFSETS, GATHER, "", "", CHANNELS_3)
TILE(narrow_2_flip, OFFSETS, GATHER, "", FLIP, CHANNELS_2)
TILE(narrow_3_flip, OFFSETS, GATHER, "", FLIP, CHANNELS_3)
#pragma GCC diagnostic pop
typedef void tile_case(const tile *t);
enum { ONE, TWO, NARROW };
/* [kind][bytes over 127][three channels, else two] */
static tile_case *const tile_cases[3][2][2] = {
    {{one_2, one_3}, {one_2_flip, one_3_flip}}, {{two_2, two_3}, {two_2_flip, two_3_flip}}, {{narrow_2, narrow_3}, {narrow_2_flip, narrow_3_flip}}};

/* adds a tile's sums to g: [stream] 16 cells apart, [channel] next to each other */
ALWAYS_INLINE void add_tile(int32_t *g, const int32_t *sums, uint32x4_t where, mve_pred16_t planes, int32_t n)
{
    const mve_pred16_t last = planes & 0xff;
    int32x4_t v = vaddq_s32(vldrwq_s32(sums), vldrwq_gather_shifted_offset_z_s32(g, where, planes));
    vstrwq_scatter_shifted_offset_p_s32(g, where, v, planes);
    if (n < 3)
        return;
    g += 2;
    v = vaddq_s32(vldrwq_s32(sums + 4), vldrwq_gather_shifted_offset_z_s32(g, where, last));
    vstrwq_scatter_shifted_offset_p_s32(g, where, v, last);
}

/* n output channels from co on, columns from 4*x4 on */
static void gradient(const fmpq_dw *j, const strip *s, int32_t x4, int8_t *copy, int32_t co, int32_t n)
{
    const uint32_t cells[4] = {0, 16, 1, 17};
    const uint32x4_t where = vldrwq_u32(cells);
    const int flip = j->a_max > 127;
    tile_case *of_case = tile_cases[s->rows > 1 ? NARROW : s->vectors > 1 ? TWO : ONE][flip][n > 2];
    int32_t *g0 = j->g + (co / 16 - j->cb0) * j->taps * j->ci * 16 + co % 16;
    const int32_t most = COPY / (s->vectors * 16 * n) * s->rows;
    for (int32_t y = 0; y < j->rows; y += most) {
        const int32_t rows = min32(most, j->rows - y), steps = rows / s->rows, rest = rows % s->rows, step = s->rows * j->a_row;
        int32_t start[CHANNELS] = {0, 0, 0}, sums[SUMS + 2];
        int32_t *g = g0;
        tile t;
        t.out = sums;
        t.step = step;
        copy_errors(j, s, co, y, y + rows, x4, copy, start, n);
        for (int32_t tap = 0; tap < j->taps; tap++) {
            const uint8_t *a = j->a + y * j->a_row + 4 * x4 + j->tap_off[tap];
            for (int32_t ci = 0; ci < j->ci; ci += 2, a += 2 * j->plane, g += 32) {
                const int two = ci + 1 < j->ci;
                const mve_pred16_t planes = two ? 0xffff : 0x0f0f;
                t.a = a;
                t.b = two ? a + j->plane : a;
                t.w = copy;
                t.steps = steps;
                t.at = s->at;
                if (steps) {
                    of_case(&t);
                    add_tile(g, sums, where, planes, n);
                }
                if (rest) { /* no byte below the last row is read */
                    t.a += steps * step;
                    t.b += steps * step;
                    t.w += steps * 16 * n;
                    t.steps = 1;
                    t.at = vpselq_u8(t.at, vdupq_n_u8(0), vctp8q((uint32_t)(rest * s->cols4 * 4)));
                    of_case(&t);
                    add_tile(g, sums, where, planes, n);
                }
                for (int i = 0; flip && i < n; i++) {
                    g[i] += 128 * start[i];
                    if (two)
                        g[16 + i] += 128 * start[i];
                }
                if (!two)
                    g -= 16;
            }
        }
    }
}

static void dw(const fmpq_dw *j)
{
    int8_t copy[COPY];
    for (int32_t x4 = 0; x4 < j->cols4; x4 += MOST_COLUMNS / 4) {
        const strip s = lay_out(j, min32(j->cols4 - x4, MOST_COLUMNS / 4));
        for (int32_t co = j->cb0 * 16; co < j->cb1 * 16; co += co % 16 < 12 ? 3 : 2) /* 3 + 3 + 3 + 3 + 2 + 2 */
            gradient(j, &s, x4, copy, co, co % 16 < 12 ? 3 : 2);
    }
}

static int available(void)
{
    return 1;
}

const fmpq_kernels fmpq_kernels_mve = {
    .name = "mve", .available = available, .igemm = igemm, .dw = dw, .stats = stats, .norm = norm, .act = act, .reduce = reduce,
    .bn_back = bn_back, .merge = merge, .max16 = max16, .quant = quant, .bias = bias, .scale = scale, .apply = apply, .planar = planar,
    .interleave = interleave, .unpack = unpack, .pack = pack};
