/* Compares every kernel table of this build with the scalar one over generated shapes: tails, strides, padded channels, every
 * bound of the operands, saturating inputs. A new table is tested by being in kernels.c. Prints a line for each table and kernel; exit code 1 at the first difference.
 *
 *     variants [SEED] [ROUNDS] [TABLE] */
#include "../src/fx.h"
#include "../src/kernels.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef ROOM
#define ROOM (1u << 17) /* elements of the largest operand */
#endif
#define TAIL 64u

static uint32_t state;

static uint32_t random32(void)
{
    state = state * 1664525u + 1013904223u;
    return fmpq_mix(state, 0x9e3779b9u);
}

static int32_t between(int32_t low, int32_t high)
{
    return (int32_t)((uint32_t)low + random32() % ((uint32_t)high - (uint32_t)low + 1));
}

static int32_t one_of(const int32_t *list, size_t n)
{
    return list[random32() % n];
}
#define ONE_OF(...) one_of((const int32_t[]){__VA_ARGS__}, sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

/* operands; `mine` and `theirs` get the results of the scalar table and of the one under test */
static union {
    uint8_t u8[ROOM];
    int8_t s8[ROOM];
    int16_t s16[ROOM];
    int32_t s32[ROOM];
} in[4], mine, theirs;
static int64_t sums[2][2][4096];
static int32_t vec[4][4096], peak[2][4096];

/* now and then something larger, where there is room for it */
static int wide(void)
{
    return ROOM >= 1u << 17 && random32() % 6 == 0;
}

/* mostly any value of the range, often its ends */
static int32_t extreme(int32_t low, int32_t high)
{
    const uint32_t r = random32() % 8;
    return r == 0 ? low : r == 1 ? high : between(low, high);
}

static void fill8(int which, uint32_t n, int32_t low, int32_t high)
{
    const int all_ends = random32() % 4 == 0;
    for (uint32_t i = 0; i < n; i++)
        in[which].s8[i] = (int8_t)(all_ends ? (random32() & 1u ? low : high) : extreme(low, high));
}

static void fill16(int which, uint32_t n, int32_t low, int32_t high)
{
    for (uint32_t i = 0; i < n; i++)
        in[which].s16[i] = (int16_t)extreme(low, high);
}

static int differs(const fmpq_kernels *k, const char *op, const void *a, const void *b, size_t bytes, const char *shape)
{
    if (!memcmp(a, b, bytes))
        return 0;
    for (size_t i = 0; i < bytes; i++)
        if (((const uint8_t *)a)[i] != ((const uint8_t *)b)[i]) {
            printf("%s %s differs at byte %u of %u: %s\n", k->name, op, (unsigned)i, (unsigned)bytes, shape);
            break;
        }
    return 1;
}

static char shape[256];
#define SHAPE(...) snprintf(shape, sizeof(shape), __VA_ARGS__)

static int try_igemm(const fmpq_kernels *k)
{
    fmpq_igemm j;
    int32_t off[49];
    const int usual = random32() % 3 == 0; /* for which a table may have loops of its own */
    const int32_t kh = usual ? 3 : between(1, 5), kw = usual ? 3 : between(1, 5), stride = usual ? 1 : between(1, 2);
    const int wide = random32() % 6 == 0;
    const int32_t c4 = usual ? ONE_OF(4, 8, 16) : wide ? between(10, 20) : between(1, 9), pad4 = usual ? 0 : between(0, 1);
    const int32_t rows = between(1, usual ? 19 : 5), cols = usual ? 4 * between(1, 17) : between(1, random32() % 6 ? 19 : 70), tile_cols = (cols - 1) * stride + kw, n = between(1, 8);
    uint32_t weights, bytes, outs;
    memset(&j, 0, sizeof(j));
    j.c4 = c4;
    j.co = between(1, 70);
    j.cop = (j.co + 15) / 16 * 16;
    j.taps = kh * kw;
    j.rows = rows;
    j.cols = cols;
    j.a_pix = (c4 + pad4) * 4 * stride;
    j.a_row = tile_cols * (c4 + pad4) * 4 * stride;
    for (int32_t t = 0; t < j.taps; t++)
        off[t] = (t / kw * tile_cols + t % kw) * (c4 + pad4) * 4;
    j.tap_off = off;
    j.shift = between(0, 12);
    j.a_max = ONE_OF(15, 15, 127, 255, 255);
    j.w_max = n > 7 ? 128 : (1 << n) - 1;
    j.out_pix = j.co * between(1, 2);
    j.out_row = cols * j.out_pix;
    weights = (uint32_t)(j.taps * c4 * j.cop * 4);
    bytes = (uint32_t)(((rows - 1) * stride + kh) * tile_cols * (c4 + pad4) * 4);
    outs = (uint32_t)(rows * j.out_row);
    if (weights > ROOM || bytes > ROOM || outs > ROOM)
        return 0;
    fill8(0, bytes, 0, 0); /* then unsigned */
    for (uint32_t i = 0; i < bytes; i++)
        in[0].u8[i] = (uint8_t)extreme(0, j.a_max);
    fill8(1, weights, n > 7 ? -128 : -j.w_max, n > 7 ? 127 : j.w_max);
    fill8(2, weights, 0, 1);
    for (int32_t i = 0; i < j.cop; i++)
        vec[0][i] = between(-40000000, 40000000);
    j.a = in[0].u8;
    j.w = in[1].s8;
    j.w_low = n > 7 ? in[2].s8 : NULL;
    j.corr = vec[0];
    memset(mine.s16, 0x55, outs * 2 + TAIL);
    memset(theirs.s16, 0x55, outs * 2 + TAIL);
    j.out = mine.s16;
    fmpq_kernels_scalar.igemm(&j);
    j.out = theirs.s16;
    k->igemm(&j);
    SHAPE("%dx%d taps, %d*4 channels, %d outputs, %dx%d positions, stride %d, n %d, a_max %d, shift %d", kh, kw, c4, j.co, rows, cols, stride, n,
          j.a_max, j.shift);
    return differs(k, "igemm", mine.s16, theirs.s16, outs * 2 + TAIL, shape);
}

static int try_dw(const fmpq_kernels *k)
{
    fmpq_dw j;
    int32_t off[25];
    const int32_t kh = between(1, 5), kw = between(1, 5), rows = between(1, wide() ? 40 : 7), cols4 = between(1, wide() ? 18 : 9);
    const int32_t row = cols4 * 4 + kw - 1 + between(0, 3);
    uint32_t planes, errors, cells;
    memset(&j, 0, sizeof(j));
    j.taps = kh * kw;
    j.ci = wide() ? 16 * between(1, 3) : between(1, 19);
    j.a_row = row;
    j.plane = (rows + kh - 1) * row;
    j.rows = rows;
    j.cols4 = cols4;
    j.cop = between(1, 4) * 16;
    j.cb1 = j.cop / 16;
    j.a_max = ONE_OF(15, 15, 127, 255);
    for (int32_t t = 0; t < j.taps; t++)
        off[t] = t / kw * row + t % kw;
    j.tap_off = off;
    planes = (uint32_t)(j.plane * j.ci);
    errors = (uint32_t)(rows * cols4 * j.cop * 4);
    cells = (uint32_t)(j.taps * j.ci * j.cop);
    if (planes + 16 > ROOM || errors > ROOM || cells > ROOM)
        return 0;
    for (uint32_t i = 0; i < planes + 16; i++)
        in[0].u8[i] = (uint8_t)extreme(0, j.a_max);
    fill8(1, errors, -127, 127);
    for (uint32_t i = 0; i < cells; i++)
        mine.s32[i] = theirs.s32[i] = between(-1000000000, 1000000000);
    j.a = in[0].u8;
    j.e = in[1].s8;
    j.g = mine.s32;
    fmpq_kernels_scalar.dw(&j);
    j.g = theirs.s32;
    k->dw(&j);
    SHAPE("%dx%d taps, %d inputs, %d outputs, %dx%d*4 positions, a_max %d", kh, kw, j.ci, j.cop, rows, cols4, j.a_max);
    return differs(k, "dw", mine.s32, theirs.s32, cells * 4, shape);
}

static int try_stats(const fmpq_kernels *k)
{
    const int32_t c = between(1, 70), n = between(1, 300);
    fill16(0, (uint32_t)(n * c), -32767, 32767);
    for (int32_t i = 0; i < c; i++)
        for (int w = 0; w < 2; w++)
            sums[0][w][i] = sums[1][w][i] = (int64_t)random32() << 10;
    fmpq_kernels_scalar.stats(in[0].s16, n, c, sums[0][0], sums[0][1]);
    k->stats(in[0].s16, n, c, sums[1][0], sums[1][1]);
    SHAPE("%d positions, %d channels", n, c);
    return differs(k, "stats", sums[0][0], sums[1][0], (size_t)c * 8, shape) || differs(k, "stats", sums[0][1], sums[1][1], (size_t)c * 8, shape);
}

static int try_norm(const fmpq_kernels *k)
{
    const int32_t c = between(1, 70), n = between(1, 200);
    fill16(0, (uint32_t)(n * c), -32767, 32767);
    for (int32_t i = 0; i < c; i++) {
        vec[2][i] = between(5, 24);
        vec[0][i] = extreme(1, 16383);
        vec[1][i] = between(-(1 << 29), 1 << 29);
    }
    memset(mine.s8, 0x55, (size_t)(n * c) + TAIL);
    memset(theirs.s8, 0x55, (size_t)(n * c) + TAIL);
    fmpq_kernels_scalar.norm(in[0].s16, mine.s8, n, c, vec[0], vec[1], vec[2]);
    k->norm(in[0].s16, theirs.s8, n, c, vec[0], vec[1], vec[2]);
    SHAPE("%d positions, %d channels", n, c);
    return differs(k, "norm", mine.s8, theirs.s8, (size_t)(n * c) + TAIL, shape);
}

static int try_act(const fmpq_kernels *k)
{
    const int32_t c = between(1, 70), n = between(1, 200), kind = between(0, 2), skip_shift = between(12, 18), out_shift = between(12, 18),
                  offset = (between(0, 1) << (out_shift + 7)) - (kind && between(0, 1) ? 128 << skip_shift : 0);
    const size_t size = (size_t)(n * c);
    fill8(0, (uint32_t)size, -127, 127);
    for (size_t i = 0; i < size + TAIL; i++)
        mine.u8[i] = theirs.u8[i] = in[1].u8[i] = (uint8_t)extreme(0, 255);
    for (int32_t i = 0; i < c; i++) {
        vec[0][i] = extreme(-(32767 << 16), 32767 << 16);
        vec[1][i] = extreme(-(1 << 30), 1 << 30);
    }
    fmpq_kernels_scalar.act(in[0].s8, mine.u8, n, c, vec[0], vec[1], kind == 0 ? NULL : kind == 1 ? in[1].u8 : mine.u8, skip_shift, out_shift,
                            offset);
    k->act(in[0].s8, theirs.u8, n, c, vec[0], vec[1], kind == 0 ? NULL : kind == 1 ? in[1].u8 : theirs.u8, skip_shift, out_shift, offset);
    SHAPE("%d positions, %d channels, skip %d << %d, >> %d", n, c, kind, skip_shift, out_shift);
    return differs(k, "act", mine.u8, theirs.u8, size + TAIL, shape);
}

static int try_reduce(const fmpq_kernels *k)
{
    const int32_t c = between(1, 70), n = between(1, 1100) % (60000 / c) + 1;
    const size_t size = (size_t)(n * c);
    fill8(0, (uint32_t)size, -127, 127);
    for (size_t i = 0; i < size; i++) {
        in[1].u8[i] = (uint8_t)extreme(0, 255);
        mine.s16[i] = theirs.s16[i] = (int16_t)extreme(-32767, 32767);
    }
    for (int32_t i = 0; i < c; i++) {
        for (int w = 0; w < 2; w++)
            sums[0][w][i] = sums[1][w][i] = (int64_t)random32();
        peak[0][i] = peak[1][i] = between(0, 100);
    }
    fmpq_kernels_scalar.reduce(mine.s16, in[1].u8, in[0].s8, n, c, sums[0][0], sums[0][1], peak[0]);
    k->reduce(theirs.s16, in[1].u8, in[0].s8, n, c, sums[1][0], sums[1][1], peak[1]);
    SHAPE("%d positions, %d channels", n, c);
    return differs(k, "reduce", mine.s16, theirs.s16, size * 2, shape) || differs(k, "reduce", sums[0][0], sums[1][0], (size_t)c * 8, shape) ||
           differs(k, "reduce", sums[0][1], sums[1][1], (size_t)c * 8, shape) || differs(k, "reduce", peak[0], peak[1], (size_t)c * 4, shape);
}

static int try_bn_back(const fmpq_kernels *k)
{
    const int32_t c = between(1, 70), n = between(1, 200);
    const size_t size = (size_t)(n * c);
    const fmpq_stream key = {random32(), random32()};
    const uint32_t base = random32();
    fill16(0, (uint32_t)size, -32767, 32767);
    for (size_t i = 0; i < size + TAIL; i++)
        mine.s8[i] = theirs.s8[i] = (int8_t)extreme(-127, 127);
    for (int32_t i = 0; i < c; i++) {
        vec[0][i] = extreme(-16000, 16000);
        vec[1][i] = extreme(-2000000, 2000000);
        vec[2][i] = extreme(-200000000, 200000000);
    }
    fmpq_kernels_scalar.bn_back(in[0].s16, mine.s8, n, c, vec[0], vec[1], vec[2], key, base);
    k->bn_back(in[0].s16, theirs.s8, n, c, vec[0], vec[1], vec[2], key, base);
    SHAPE("%d positions, %d channels", n, c);
    return differs(k, "bn_back", mine.s8, theirs.s8, size + TAIL, shape);
}

static int try_merge(const fmpq_kernels *k)
{
    const uint32_t n = (uint32_t)between(1, 3000);
    const int32_t s1 = between(-15, 3), s2 = ONE_OF(-14, -3, 0, 1, 5, 15, 29, 30, 31, 40, 63);
    int32_t a, b;
    /* a left shift keeps within int16, as the exponents of a merge see to */
    fill16(0, n, -(32767 >> (s2 < 0 ? -s2 : 0)), 32767 >> (s2 < 0 ? -s2 : 0));
    for (uint32_t i = 0; i < n + TAIL; i++)
        mine.s16[i] = theirs.s16[i] = (int16_t)extreme(-(32767 >> (s1 < 0 ? -s1 : 0)), 32767 >> (s1 < 0 ? -s1 : 0));
    a = fmpq_kernels_scalar.merge(mine.s16, in[0].s16, n, s1, s2);
    b = k->merge(theirs.s16, in[0].s16, n, s1, s2);
    SHAPE("%u elements, shifts %d and %d", n, s1, s2);
    if (a != b || k->max16(theirs.s16, n) != a) {
        printf("%s merge: maximum %d, %d expected: %s\n", k->name, b, a, shape);
        return 1;
    }
    return differs(k, "merge", mine.s16, theirs.s16, (n + TAIL) * 2, shape);
}

static int try_bytes(const fmpq_kernels *k)
{
    const int32_t n = between(1, 3000), bits = ONE_OF(4, 8);
    for (int32_t i = 0; i < n; i++)
        in[0].u8[i] = (uint8_t)extreme(0, 255);
    memset(mine.u8, 0x55, (size_t)n + TAIL);
    memset(theirs.u8, 0x55, (size_t)n + TAIL);
    fmpq_kernels_scalar.quant(in[0].u8, mine.u8, n, bits);
    k->quant(in[0].u8, theirs.u8, n, bits);
    SHAPE("%d bytes, %d bits", n, bits);
    if (differs(k, "quant", mine.u8, theirs.u8, (size_t)n + TAIL, shape))
        return 1;
    fmpq_kernels_scalar.bias(in[0].s8, mine.u8, n);
    k->bias(in[0].s8, theirs.u8, n);
    return differs(k, "bias", mine.u8, theirs.u8, (size_t)n + TAIL, shape);
}

static int try_weights(const fmpq_kernels *k)
{
    const int32_t n = between(1, 700), f = (1 << between(1, 15)) - 1;
    const int32_t e = random32() & 1u ? between(-64, -1) : ONE_OF(-80, -62, -61, -45, -33, -32, -31, -30, -8, -1, 0, 1, 31, 40);
    const fmpq_fx mult = {random32() % 16 ? 0x40000000u + (random32() & 0x3fffffffu) : 0, e};
    const fmpq_stream key = {random32(), random32()};
    const uint32_t base = random32();
    for (int32_t i = 0; i < n; i++)
        in[0].s32[i] = extreme(-0x7fffffff, 0x7fffffff);
    memset(mine.s32, 0x55, (size_t)n * 4 + TAIL);
    memset(theirs.s32, 0x55, (size_t)n * 4 + TAIL);
    fmpq_kernels_scalar.scale(in[0].s32, mine.s32, n, mult);
    k->scale(in[0].s32, theirs.s32, n, mult);
    SHAPE("%d weights, m %u, e %d, bound %d", n, mult.m, e, f);
    if (differs(k, "scale", mine.s32, theirs.s32, (size_t)n * 4 + TAIL, shape))
        return 1;
    for (int32_t i = 0; i < n; i++) {
        in[0].s32[i] = random32() & 1u ? extreme(-(1 << 30), 1 << 30) : between(-(1 << 24), 1 << 24);
        mine.s16[i] = theirs.s16[i] = (int16_t)extreme(-f, f);
    }
    fmpq_kernels_scalar.apply(mine.s16, in[0].s32, n, f, key, base);
    k->apply(theirs.s16, in[0].s32, n, f, key, base);
    return differs(k, "apply", mine.s16, theirs.s16, (size_t)n * 2, shape);
}

static int try_terms(const fmpq_kernels *k)
{
    const int32_t n = between(1, 700), f = (1 << between(1, 11)) - 1;
    for (int32_t i = 0; i <= 2 * f; i++)
        vec[0][i] = random32() & 1u ? extreme(-(1 << 30), 1 << 30) : between(-(1 << 20), 1 << 20);
    memset(mine.s32, 0x55, (size_t)n * 4 + TAIL);
    memset(theirs.s32, 0x55, (size_t)n * 4 + TAIL);
    for (int32_t i = 0; i < n; i++) {
        mine.s32[i] = theirs.s32[i] = extreme(-(1 << 30), 1 << 30);
        in[0].s16[i] = (int16_t)extreme(-f, f);
    }
    fmpq_kernels_scalar.terms(mine.s32, in[0].s16, (uint32_t)n, vec[0] + f);
    k->terms(theirs.s32, in[0].s16, (uint32_t)n, vec[0] + f);
    SHAPE("%d weights, bound %d", n, f);
    if (differs(k, "terms", mine.s32, theirs.s32, (size_t)n * 4 + TAIL, shape))
        return 1;
    fmpq_kernels_scalar.column(in[1].s32, mine.s32, (uint32_t)n);
    k->column(in[1].s32, theirs.s32, (uint32_t)n);
    return differs(k, "column", mine.s32, theirs.s32, (size_t)n * 4 + TAIL, shape);
}

static int try_planes(const fmpq_kernels *k)
{
    const uint32_t planes = (uint32_t)between(1, 15), count = 8u * (uint32_t)between(0, 40), bytes = count / 8 + (uint32_t)between(1, 9);
    const uint32_t n = (uint32_t)between(1, 60), apart = n + (uint32_t)between(0, 9), step = 4u * (uint32_t)between(1, 40), fours = (n + 3) / 4;
    const int32_t f = (1 << planes) - 1;
    for (uint32_t i = 0; i < (planes + 1) * bytes; i++)
        in[0].u8[i] = (uint8_t)random32();
    memset(mine.u8, 0x55, count * 2 + TAIL);
    memset(theirs.u8, 0x55, count * 2 + TAIL);
    fmpq_kernels_scalar.unpack(in[0].u8, bytes, (int)planes, count, mine.s16);
    k->unpack(in[0].u8, bytes, (int)planes, count, theirs.s16);
    SHAPE("%u planes of %u weights, %u bytes apart", (unsigned)planes, (unsigned)count, (unsigned)bytes);
    if (differs(k, "unpack", mine.u8, theirs.u8, count * 2 + TAIL, shape))
        return 1;
    fill16(0, count, -f, f);
    memset(mine.u8, 0x55, (planes + 1) * bytes + TAIL);
    memset(theirs.u8, 0x55, (planes + 1) * bytes + TAIL);
    fmpq_kernels_scalar.pack(mine.u8, bytes, (int)planes, count, in[0].s16);
    k->pack(theirs.u8, bytes, (int)planes, count, in[0].s16);
    if (differs(k, "pack", mine.u8, theirs.u8, (planes + 1) * bytes + TAIL, shape))
        return 1;
    fill16(0, 4 * apart, -128, 127);
    memset(mine.u8, 0x55, fours * step + TAIL);
    memset(theirs.u8, 0x55, fours * step + TAIL);
    fmpq_kernels_scalar.deal(in[0].s16, fours * 4, mine.u8, step);
    k->deal(in[0].s16, fours * 4, theirs.u8, step);
    SHAPE("%u weights, %u apart, every %u bytes", (unsigned)n, (unsigned)apart, (unsigned)step);
    if (differs(k, "deal", mine.u8, theirs.u8, fours * step + TAIL, shape))
        return 1;
    for (uint32_t i = 0; i < n; i++)
        peak[0][i] = peak[1][i] = between(-1000000, 1000000);
    memset(mine.u8, 0x55, n * 4 + TAIL);
    memset(theirs.u8, 0x55, n * 4 + TAIL);
    fmpq_kernels_scalar.quads(in[0].s16, apart, n, mine.u8, peak[0]);
    k->quads(in[0].s16, apart, n, theirs.u8, peak[1]);
    return differs(k, "quads", mine.u8, theirs.u8, n * 4 + TAIL, shape) || differs(k, "quads", peak[0], peak[1], n * 4, shape);
}

static int try_layouts(const fmpq_kernels *k)
{
    const int32_t rows = between(1, 9), cols = between(1, 35), c = between(1, 40), pix = c + between(0, 4), stride = between(1, 2);
    const int32_t row = (cols + stride - 1) / stride + between(0, 7), plane = rows * stride * row, in_row = cols * pix;
    const int32_t co = between(1, c), cop = (co + 15) / 16 * 16, cols4 = (cols + 3) / 4;
    const size_t out = (size_t)(plane * c), e4 = (size_t)(rows * cols4 * cop * 4);
    fill8(0, (uint32_t)(rows * in_row), -127, 127);
    if (out + TAIL > ROOM || e4 + TAIL > ROOM)
        return 0;
    memset(mine.u8, 0x55, out + TAIL);
    memset(theirs.u8, 0x55, out + TAIL);
    fmpq_kernels_scalar.planar(in[0].u8, mine.u8, rows, cols, in_row, pix << 16 | c, plane, row, stride);
    k->planar(in[0].u8, theirs.u8, rows, cols, in_row, pix << 16 | c, plane, row, stride);
    SHAPE("%dx%d positions of %d (%d used) bytes, stride %d, row %d", rows, cols, pix, c, stride, row);
    if (differs(k, "planar", mine.u8, theirs.u8, out + TAIL, shape))
        return 1;
    for (int32_t i = 0; i < cop; i++)
        peak[0][i] = peak[1][i] = between(-1000, 1000);
    memset(mine.u8, 0x55, e4 + TAIL);
    memset(theirs.u8, 0x55, e4 + TAIL);
    fmpq_kernels_scalar.interleave(in[0].s8, mine.s8, rows, cols, pix, co, peak[0]);
    k->interleave(in[0].s8, theirs.s8, rows, cols, pix, co, peak[1]);
    SHAPE("%dx%d positions of %d bytes, %d channels", rows, cols, pix, co);
    return differs(k, "interleave", mine.u8, theirs.u8, e4 + TAIL, shape) || differs(k, "interleave", peak[0], peak[1], (size_t)cop * 4, shape);
}

static const struct {
    const char *name;
    int (*run)(const fmpq_kernels *k);
} tries[] = {{"igemm", try_igemm},     {"dw", try_dw},       {"stats", try_stats}, {"norm", try_norm},       {"act", try_act},        {"reduce", try_reduce},
             {"bn_back", try_bn_back}, {"merge", try_merge}, {"bytes", try_bytes}, {"weights", try_weights}, {"layouts", try_layouts},
             {"terms", try_terms},     {"planes", try_planes}};

int main(int argc, char **argv)
{
    const uint32_t seed = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 1u;
    const uint32_t rounds = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 200u;
    unsigned tables = 0;
    for (unsigned i = 0; fmpq_kernels_table(i); i++) {
        const fmpq_kernels *k = fmpq_kernels_table(i);
        if (!k->available() || (argc > 3 && strcmp(argv[3], k->name)))
            continue;
        tables++;
        for (unsigned t = 0; t < sizeof(tries) / sizeof(tries[0]); t++) {
            state = seed;
            for (uint32_t r = 0; r < rounds; r++)
                if (tries[t].run(k))
                    return 1;
            printf("%s %s equal %u\n", k->name, tries[t].name, rounds);
        }
    }
    return tables ? 0 : 1;
}
