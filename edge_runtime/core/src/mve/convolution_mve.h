/* Convolution: vectors run along input channels and neighbouring taps. A tile is two positions by three output channels: six sums are what the
 * even-numbered registers hold beside all addresses. The weights of three output channels are copied to the stack in the order of their use and
 * serve all positions. slide_mve.h has a faster way for the usual taps. */
#ifndef FMPQ_CONVOLUTION_MVE_H
#define FMPQ_CONVOLUTION_MVE_H
#include "elementwise_mve.h"
#include <string.h>

enum {
    COPY = 4096,  /* bytes of copied weights or errors */
    CHANNELS = 3, /* output channels of a tile */
    SUMS = 6,     /* of a tile: [channel][stream] */
    MOST_WORDS = COPY / 4 / CHANNELS,
    MOST_TAPS = 49,
    MOST_COLUMNS = 32
};

/* The loops, in assembly: six sums and seven addresses are all the registers there are, which no compiler keeps apart. The sums of a tile are
 * r0, r2, … r10, first both streams of one channel; q0 and q1 hold the streams. */
#define FUNCTION(name, body) __attribute__((naked, noinline)) static void name { __asm__ volatile("push {r4-r11, lr}\n\t" body "pop {r4-r11, pc}"); }
#define CLEAR "movs r0, #0\n\tmovs r2, #0\n\tmovs r4, #0\n\tmovs r6, #0\n\tmov r8, #0\n\tmov r10, #0\n\t"
#define SUMS_OF_TILE "{r0, r2, r4, r6, r8, r10}\n\t"
#define MULTIPLY(w, x, y) "vldrb.8 q2, [" w "], #16\n\tvmladava.s8 " x ", q0, q2\n\tvmladava.s8 " y ", q1, q2\n\t"
#define CHANNELS_1(w) MULTIPLY(w, "r0", "r2")
#define CHANNELS_2(w) CHANNELS_1(w) MULTIPLY(w, "r4", "r6")
#define CHANNELS_3(w) CHANNELS_2(w) MULTIPLY(w, "r8", "r10")

/* Bytes over 127 become signed by taking off 128, and unsigned again by the same: the callers' inputs are free to change meanwhile. */
static void flip_bytes(const uint8_t *a, int32_t n)
{
    uint8_t *p = (uint8_t *)(uintptr_t)a;
    __asm__ volatile("dlstp.8 lr, %[n]\n1:\n\tvldrb.8 q0, [%[p]]\n\tveor q0, q0, %q[top]\n\tvstrb.8 q0, [%[p]], #16\n\tletp lr, 1b\n"
                     : [p] "+r"(p)
                     : [n] "r"(n), [top] "w"(top_bits())
                     : "lr", "memory", "q0");
}

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
#define ROW(name, channels)                                                                                                                        \
    FUNCTION(name(const run *of, const uint8_t *base, int32_t apart, const int8_t *w, int32_t *out, int32_t pairs),                               \
             "sub sp, #16\n\tstrd r0, r3, [sp]\n\tldrd r9, r0, [sp, #52]\n\tstr r0, [sp, #8]\n\tmov r7, r2\n"                                     \
             "1:\n\tldrd r5, r3, [sp]\n\t" CLEAR                                                                                                  \
             "2:\n\tldrd r11, lr, [r5], #8\n\twls lr, lr, 4f\n\tadd r11, r1\n\tadd r12, r11, r7\n"                                                \
             "3:\n\tvldrb.8 q0, [r11], #16\n\tvldrb.8 q1, [r12], #16\n\t" channels("r3") "le lr, 3b\n\tb 2b\n"                                   \
             "4:\n\tstmia r9!, " SUMS_OF_TILE "add r1, r1, r7, lsl #1\n\tldr r0, [sp, #8]\n\tsubs r0, #1\n\tstr r0, [sp, #8]\n\tbne 1b\n\t"        \
             "add sp, #16\n\t")
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
ROW(row_1, CHANNELS_1)
ROW(row_2, CHANNELS_2)
ROW(row_3, CHANNELS_3)
#pragma GCC diagnostic pop
typedef void row_case(const run *of, const uint8_t *base, int32_t apart, const int8_t *w, int32_t *out, int32_t pairs);
static row_case *const row_cases[CHANNELS] = {row_1, row_2, row_3};

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
    row_case *of_case = row_cases[n - 1];
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
#endif
