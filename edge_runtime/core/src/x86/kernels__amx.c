/* AMX: tdpbusd multiplies a tile of 16 positions x up to 64 unsigned bytes by one of as many signed bytes x 16 channels, into 16 x 16 int32.
 * Its time is that of the rows of its first operand, however few bytes they have, so taps that lie side by side are taken as one long row. The packed
 * weights and the interleaved errors have the second operand's layout as they are. */
#define _GNU_SOURCE /* syscall */
#include "amx.h"
#include "cpu.h"
#include "requant_avx512.h"
#include <string.h>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

extern const fmpq_kernels fmpq_kernels_avx512vnni;

/* The operating system hands out the tiles' state, 8 KB a thread, only to processes that ask for it. */
int fmpq_cpu_amx(void)
{
    const uint32_t need = 1u << 24 | 1u << 25; /* AMX-TILE, AMX-INT8 */
    uint32_t a, b, c, d;
    if (!fmpq_cpu_avx512vnni() || (fmpq_xcr0() & 0x60000u) != 0x60000u || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & need) != need)
        return 0;
#if defined(__linux__) && defined(SYS_arch_prctl)
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */) == 0;
#else
    return 0;
#endif
}

typedef struct tile_shapes {
    uint8_t palette, start, zero[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} tile_shapes;

/* GCC's intrinsics do not tell the compiler that tiles and their shapes are read from memory: what is written for them must be there by now. */
#define WRITTEN(p) __asm__ volatile("" : : "r"(p) : "memory")

/* Tiles from 0 on: `sums` of rows x 16 int32, `firsts` of rows x bytes for first operands, the others of bytes/4 x 64 for second ones. */
static void shape(int sums, int firsts, int32_t rows, int32_t bytes)
{
    tile_shapes s;
    memset(&s, 0, sizeof(s));
    s.palette = 1;
    for (int i = 0; i < 8; i++) {
        const int second = i >= sums + firsts;
        s.rows[i] = (uint8_t)(second ? bytes / 4 : rows);
        s.bytes[i] = (uint16_t)(i >= sums && !second ? bytes : 64);
    }
    WRITTEN(&s);
    _tile_loadconfig(&s);
}

static int32_t largest_divisor(int32_t n, int32_t most)
{
    int32_t d = n < most ? n : most;
    while (n % d)
        d--;
    return d;
}

/* --- convolution ------------------------------------------------------------------------------------------------- */

typedef struct conv {
    const fmpq_igemm *j;
    int32_t runs, run_taps; /* runs of taps that lie side by side */
    int32_t steps, bytes;   /* of a run: steps of so many bytes */
    int32_t m, across;      /* positions of a tile, tiles of a row */
    __m512i half, below;
    __m128i shift;
} conv;

static int plan_conv(conv *f, const fmpq_igemm *j)
{
    const int32_t c = j->c4 * 4;
    int32_t n = 1;
    while (n < j->taps && j->tap_off[n] == j->tap_off[n - 1] + c)
        n++;
    for (int32_t t = 0; t < j->taps && n > 1; t++)
        if (j->taps % n || (t % n && j->tap_off[t] != j->tap_off[t - 1] + c))
            n = 1;
    f->j = j;
    f->run_taps = n;
    f->runs = j->taps / n;
    f->bytes = largest_divisor(n * j->c4, 16) * 4;
    f->steps = n * c / f->bytes;
    f->m = j->cols < 16 ? j->cols : 16;
    f->across = (j->cols + f->m - 1) / f->m;
    f->half = _mm512_set1_epi32(j->shift ? 1 << (j->shift - 1) : 0);
    f->below = _mm512_set1_epi32(j->shift ? (1 << j->shift) - 1 : -1);
    f->shift = _mm_cvtsi32_si128(j->shift);
    return f->bytes >= 12 && f->m >= 4;
}

/* First position of tile t; the last tile of a row overlaps the one before where the width is not a multiple. A tile past the end is the last one. */
static void position(const conv *f, int32_t t, const uint8_t **a, int16_t **out)
{
    const fmpq_igemm *j = f->j;
    const int32_t last = f->across * j->rows - 1, at = t < last ? t : last, y = at / f->across;
    const int32_t wish = at % f->across * f->m, x = wish < j->cols - f->m ? wish : j->cols - f->m;
    *a = j->a + y * j->a_row + x * j->a_pix;
    *out = j->out + y * j->out_row + x * j->out_pix;
}

/* int32 sums of one tile (twice them and `low` where given) to its outputs of block cb */
static void finish(const conv *f, const int32_t *sums, const int32_t *low, int16_t *out, int32_t cb)
{
    const fmpq_igemm *j = f->j;
    const int32_t left = j->co - cb * 16, pix = j->out_pix;
    const __mmask16 mask = (__mmask16)(left >= 16 ? 0xffff : (1 << left) - 1);
    const __m512i corr = _mm512_add_epi32(_mm512_loadu_si512(j->corr + cb * 16), f->half), even = _mm512_set1_epi32(-2);
    int32_t p = 0;
    out += cb * 16;
#define VALUE(p)                                                                                                                                    \
    __extension__({                                                                                                                                 \
        __m512i v = _mm512_load_si512(sums + (p) * 16);                                                                                             \
        if (low)                                                                                                                                    \
            v = _mm512_add_epi32(_mm512_add_epi32(v, v), _mm512_load_si512(low + (p) * 16));                                                        \
        reven512(_mm512_add_epi32(v, corr), f->below, even, f->shift);                                                                              \
    })
    if (left >= 16)
        for (; p + 2 <= f->m; p += 2)
            store32(out + p * pix, pix, VALUE(p), VALUE(p + 1));
    for (; p < f->m; p++)
        store16(out + p * pix, VALUE(p), mask);
#undef VALUE
}

#define EVERY_STEP(BODY)                                                                                                                           \
    for (int32_t r = 0, s = 0; r < f->runs; r++)                                                                                                   \
        for (int32_t k = 0; k < f->steps; k++, s++) {                                                                                              \
            const int32_t off = j->tap_off[r * f->run_taps] + k * f->bytes;                                                                        \
            BODY                                                                                                                                   \
        }

/* Two tiles of positions by two sets of weights: two blocks of channels, or the high and the low part of one. */
static void two_by_two(const conv *f, int32_t t, const int8_t *w0, const int8_t *w1, int32_t (*sums)[256], int16_t **out)
{
    const fmpq_igemm *j = f->j;
    const uint8_t *a0, *a1;
    const size_t wrow = (size_t)j->cop * 4, wstep = wrow * (size_t)(f->bytes / 4), apix = (size_t)j->a_pix;
    position(f, t, &a0, &out[0]);
    position(f, t + 1, &a1, &out[1]);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    EVERY_STEP({
        _tile_loadd(4, a0 + off, apix);
        _tile_loadd(6, w0 + (size_t)s * wstep, wrow);
        _tile_dpbusd(0, 4, 6);
        _tile_loadd(7, w1 + (size_t)s * wstep, wrow);
        _tile_dpbusd(1, 4, 7);
        _tile_loadd(5, a1 + off, apix);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    })
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
}

/* Four tiles of positions by one block of channels. */
static void four_by_one(const conv *f, int32_t t, const int8_t *w, int32_t (*sums)[256], int16_t **out)
{
    const fmpq_igemm *j = f->j;
    const uint8_t *a[4];
    const size_t wrow = (size_t)j->cop * 4, wstep = wrow * (size_t)(f->bytes / 4), apix = (size_t)j->a_pix;
    for (int i = 0; i < 4; i++)
        position(f, t + i, &a[i], &out[i]);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    EVERY_STEP({
        _tile_loadd(6, w + (size_t)s * wstep, wrow);
        _tile_loadd(4, a[0] + off, apix);
        _tile_dpbusd(0, 4, 6);
        _tile_loadd(5, a[1] + off, apix);
        _tile_dpbusd(1, 5, 6);
        _tile_loadd(4, a[2] + off, apix);
        _tile_dpbusd(2, 4, 6);
        _tile_loadd(5, a[3] + off, apix);
        _tile_dpbusd(3, 5, 6);
    })
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
}

void fmpq_igemm_amx(const fmpq_igemm *j)
{
    const int32_t blocks = j->cop / 16;
    int32_t sums[4][256] __attribute__((aligned(64)));
    int16_t *out[4];
    int32_t cb = 0;
    conv f;
    if (!plan_conv(&f, j)) {
        fmpq_kernels_avx512vnni.igemm(j);
        return;
    }
    const int32_t tiles = f.across * j->rows;
    shape(4, 2, f.m, f.bytes);
    if (j->w_low)
        for (; cb < blocks; cb++)
            for (int32_t t = 0; t < tiles; t += 2) {
                two_by_two(&f, t, j->w + cb * 64, j->w_low + cb * 64, sums, out);
                finish(&f, sums[0], sums[1], out[0], cb);
                finish(&f, sums[2], sums[3], out[1], cb);
            }
    for (; cb + 2 <= blocks; cb += 2)
        for (int32_t t = 0; t < tiles; t += 2) {
            two_by_two(&f, t, j->w + cb * 64, j->w + cb * 64 + 64, sums, out);
            for (int i = 0; i < 4; i++)
                finish(&f, sums[i], NULL, out[i / 2], cb + i % 2);
        }
    for (; cb < blocks; cb++)
        for (int32_t t = 0; t < tiles; t += 4) {
            four_by_one(&f, t, j->w + cb * 64, sums, out);
            for (int i = 0; i < 4; i++)
                finish(&f, sums[i], NULL, out[i], cb);
        }
    _tile_release();
}

/* --- weight gradient --------------------------------------------------------------------------------------------- */

/* A map is taken in one of two ways. As one long row, with the planes' own pitch and errors that are zero between the rows: long tiles cost no
 * more than short ones. A tile of activations lies anywhere and is slow to load, so neighbouring taps share it: the tap one to the right has the
 * errors one further instead. Or row by row, where rows are far apart or taps have no neighbours. */
typedef struct gradient {
    const fmpq_dw *j;
    int32_t m;             /* input channels of a tile */
    int32_t groups, steps; /* steps of so many groups of four positions */
} gradient;

#define LONG_ROW 320 /* groups that a long row may have */
#define SHARED 3     /* taps that share a tile of activations */
#define STEP 96      /* groups between the sums of all taps: three rows of errors stay in the first-level cache */

/* taps from t on that read one position further each, up to SHARED */
static int32_t neighbours(const fmpq_dw *j, int32_t t)
{
    int32_t n = 1;
    while (n < SHARED && t + n < j->taps && j->tap_off[t + n] == j->tap_off[t] + n)
        n++;
    return n;
}

/* Groups of a long row, at most 2 more than needed, for few steps; 0 where rows are better. */
static int32_t long_row(const fmpq_dw *j)
{
    const int32_t need = (j->rows * j->a_row + SHARED - 1 + 3) / 4;
    int32_t best = 0, fewest = INT32_MAX;
    for (int32_t n = need; n <= need + 2 && n <= LONG_ROW; n++)
        if (n / largest_divisor(n, 16) < fewest) {
            best = n;
            fewest = n / largest_divisor(n, 16);
        }
    return best && neighbours(j, 0) > 1 && fewest * 3 < j->rows * (j->cols4 / largest_divisor(j->cols4, 16)) * 2 ? best : 0;
}

/* Groups [from, to) of the long row of block cb's errors: position (y, x) at y * a_row + x + further. */
static void lengthen(const fmpq_dw *j, int32_t cb, int32_t from, int32_t to, int32_t further, int8_t *out)
{
    const size_t next = (size_t)j->cop * 4;
    const int32_t before = (from * 4 - further) / j->a_row - 1, end = to - from;
    int32_t g = 0;                         /* group that is written next, */
    __m512i part = _mm512_setzero_si512(); /* and what is in it already */
    for (int32_t y = before < 0 ? 0 : before; y < j->rows && g < end; y++) {
        const int32_t at = y * j->a_row + further, o = at / 4 - from; /* groups o + x and the next one get group x of the row */
        const int32_t x0 = o < 0 ? -o : 0, x1 = end - o < j->cols4 ? end - o : j->cols4;
        const __m128i left = _mm_cvtsi32_si128(at % 4 * 8), right = _mm_cvtsi32_si128(32 - at % 4 * 8);
        const int8_t *e;
        if (x0 > j->cols4)
            continue;
        e = j->e + cb * 64 + (size_t)(y * j->cols4 + x0) * next;
        for (; g < o && g < end; g++, part = _mm512_setzero_si512())
            _mm512_store_si512(out + g * 64, part);
        if (x0)
            part = _mm512_srl_epi32(_mm512_loadu_si512(e - next), right);
        for (int32_t x = x0; x < x1; x++, g++, e += next) {
            const __m512i v = _mm512_loadu_si512(e);
            _mm512_store_si512(out + g * 64, _mm512_or_si512(part, _mm512_sll_epi32(v, left)));
            part = _mm512_srl_epi32(v, right);
        }
    }
    for (; g < end; g++, part = _mm512_setzero_si512())
        _mm512_store_si512(out + g * 64, part);
}

static int32_t *cells_of(const gradient *f, int32_t cb, int32_t tap, int32_t ci)
{
    return f->j->g + ((cb - f->j->cb0) * f->j->taps + tap) * f->j->ci * 16 + ci * 16;
}

/* A statement for each of up to five taps: t, a first operand, a second one; neighbours take turns with the operands. */
#define EACH_TAP(NT, DO)                                                                                                                           \
    DO(0, 5, 6)                                                                                                                                    \
    if (NT > 1) { DO(1, 6, 7) }                                                                                                                    \
    if (NT > 2) { DO(2, 5, 6) }                                                                                                                    \
    if (NT > 3) { DO(3, 6, 7) }                                                                                                                    \
    if (NT > 4) { DO(4, 5, 6) }
#define LOAD(t, first, second) _tile_loadd(t, g + (size_t)(t) * tap_step, 64);
#define STORE(t, first, second) _tile_stored(t, g + (size_t)(t) * tap_step, 64);

/* NT neighbouring taps over steps [from, to) of the long row; `row` holds its errors for each of them */
#define SHIFTED(t, first, second)                                                                                                                      \
    _tile_loadd(second, e + (size_t)(t) * (STEP * 64), 64);                                                                                        \
    _tile_dpbusd(t, 5, second);
#define LONG(NT)                                                                                                                                   \
    static void long_##NT(const gradient *f, const int8_t *row, int32_t cb, int32_t tap, int32_t ci, int32_t from, int32_t to)                     \
    {                                                                                                                                              \
        const size_t plane = (size_t)f->j->plane, tap_step = (size_t)f->j->ci * 16;                                                                \
        const uint8_t *a = f->j->a + ci * f->j->plane + f->j->tap_off[tap];                                                                        \
        int32_t *g = cells_of(f, cb, tap, ci);                                                                                                     \
        EACH_TAP(NT, LOAD)                                                                                                                         \
        for (int32_t k = from; k < to; k++) {                                                                                                      \
            const int8_t *e = row + (k - from) * f->groups * 64;                                                                                   \
            _tile_loadd(5, a + k * f->groups * 4, plane);                                                                                          \
            EACH_TAP(NT, SHIFTED)                                                                                                                  \
        }                                                                                                                                          \
        EACH_TAP(NT, STORE)                                                                                                                        \
    }
LONG(1)
LONG(2)
LONG(3)

static void by_long_row(const fmpq_dw *j, int32_t groups)
{
    int8_t row[SHARED][STEP * 64] __attribute__((aligned(64)));
    gradient f = {j, largest_divisor(j->ci, 16), largest_divisor(groups, 16), 0};
    const int32_t chunk = STEP / f.groups;
    f.steps = groups / f.groups;
    shape(5, 1, f.m, f.groups * 4);
    for (int32_t cb = j->cb0; cb < j->cb1; cb++)
        for (int32_t from = 0; from < f.steps; from += chunk) {
            const int32_t to = f.steps - from < chunk ? f.steps : from + chunk;
            for (int32_t n = 0; n < SHARED; n++)
                lengthen(j, cb, from * f.groups, to * f.groups, n, row[n]);
            WRITTEN(row);
            for (int32_t ci = 0; ci < j->ci; ci += f.m)
                for (int32_t t = 0, n; t < j->taps; t += n) {
                    n = neighbours(j, t);
                    if (n == 3)
                        long_3(&f, row[0], cb, t, ci, from, to);
                    else if (n == 2)
                        long_2(&f, row[0], cb, t, ci, from, to);
                    else
                        long_1(&f, row[0], cb, t, ci, from, to);
                }
        }
}

/* NT taps row by row */
#define PLAIN(t, first, second)                                                                                                                      \
    _tile_loadd(first, at + j->tap_off[tap + (t)], plane);                                                                                         \
    _tile_dpbusd(t, first, 7);
#define ROWS(NT)                                                                                                                                   \
    static void rows_##NT(const gradient *f, int32_t cb, int32_t tap, int32_t ci)                                                                  \
    {                                                                                                                                              \
        const fmpq_dw *j = f->j;                                                                                                                   \
        const size_t plane = (size_t)j->plane, erow = (size_t)j->cop * 4, tap_step = (size_t)j->ci * 16;                                           \
        const int8_t *e = j->e + cb * 64;                                                                                                          \
        int32_t *g = cells_of(f, cb, tap, ci);                                                                                                     \
        EACH_TAP(NT, LOAD)                                                                                                                         \
        for (int32_t y = 0; y < j->rows; y++) {                                                                                                    \
            const uint8_t *at = j->a + ci * j->plane + y * j->a_row;                                                                               \
            for (int32_t k = 0; k < f->steps; k++, e += erow * (size_t)f->groups, at += 4 * f->groups) {                                           \
                _tile_loadd(7, e, erow);                                                                                                           \
                EACH_TAP(NT, PLAIN)                                                                                                                \
            }                                                                                                                                      \
        }                                                                                                                                          \
        EACH_TAP(NT, STORE)                                                                                                                        \
    }
ROWS(1)
ROWS(3)
ROWS(4)
ROWS(5)

static void by_rows(const fmpq_dw *j)
{
    gradient f = {j, largest_divisor(j->ci, 16), largest_divisor(j->cols4, 16), 0};
    f.steps = j->cols4 / f.groups;
    shape(5, 2, f.m, f.groups * 4);
    for (int32_t cb = j->cb0; cb < j->cb1; cb++)
        for (int32_t ci = 0; ci < j->ci; ci += f.m)
            for (int32_t t = 0, left; (left = j->taps - t) > 0;)
                if (left >= 5 && left != 6) {
                    rows_5(&f, cb, t, ci);
                    t += 5;
                } else if (left == 4) {
                    rows_4(&f, cb, t, ci);
                    t += 4;
                } else if (left >= 3) {
                    rows_3(&f, cb, t, ci);
                    t += 3;
                } else {
                    rows_1(&f, cb, t, ci);
                    t += 1;
                }
}

void fmpq_dw_amx(const fmpq_dw *j)
{
    const int32_t groups = long_row(j);
    if ((largest_divisor(j->ci, 16) < 8 && j->ci > 16) || largest_divisor(groups ? groups : j->cols4, 16) < 2) {
        fmpq_kernels_avx512vnni.dw(j);
        return;
    }
    if (groups)
        by_long_row(j, groups);
    else
        by_rows(j);
    _tile_release();
}
