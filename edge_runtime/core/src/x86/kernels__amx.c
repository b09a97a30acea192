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

/* tiles 0 to 5 are rows x 16 int32, 6 and 7 operands; `first` of the operand tiles from `operand` on hold rows x bytes, the others bytes/4 x 64 */
typedef struct tile_shapes {
    uint8_t palette, start, zero[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} tile_shapes;

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

/* The errors of one block of channels, four positions a group, and where the activations of a step begin. Maps are taken in one of two ways: row
 * by row, or as one long row with the planes' own pitch, where the errors between the rows are zero: long tiles cost no more than short ones. */
typedef struct gradient {
    const fmpq_dw *j;
    int32_t m;              /* input channels of a tile */
    int32_t groups, steps;  /* of a row: steps of so many groups */
    int32_t rows, pitch;    /* rows, and bytes of activations from one to the next */
} gradient;

#define LONG_ROW 320 /* groups that a long row may have: 20 KB */

/* A long row of at most 2 groups more than needed, in steps of at least half a tile; 0 if there is none. */
static int32_t long_row(const fmpq_dw *j)
{
    const int32_t need = (j->rows * j->a_row + 3) / 4;
    int32_t best = 0, fewest = INT32_MAX;
    for (int32_t n = need; n <= need + 2 && n <= LONG_ROW; n++)
        if (n / largest_divisor(n, 16) < fewest) {
            best = n;
            fewest = n / largest_divisor(n, 16);
        }
    return fewest * 3 < j->rows * (j->cols4 / largest_divisor(j->cols4, 16)) * 2 ? best : 0;
}

/* e of block cb, position (y, x) at y * a_row + x */
static void lengthen(const fmpq_dw *j, int32_t cb, int8_t *out, int32_t groups)
{
    const int8_t *e = j->e + cb * 64;
    memset(out, 0, (size_t)groups * 64);
    for (int32_t y = 0; y < j->rows; y++) {
        const int32_t at = y * j->a_row;
        const __m128i left = _mm_cvtsi32_si128(at % 4 * 8), right = _mm_cvtsi32_si128(32 - at % 4 * 8);
        int8_t *o = out + at / 4 * 64;
        __m512i before = _mm512_load_si512(o); /* the row above may end in this group */
        for (int32_t x = 0; x < j->cols4; x++, e += (size_t)j->cop * 4, o += 64) {
            const __m512i v = _mm512_loadu_si512(e);
            _mm512_store_si512(o, _mm512_or_si512(before, _mm512_sll_epi32(v, left)));
            before = _mm512_srl_epi32(v, right);
        }
        if (at % 4)
            _mm512_store_si512(o, before);
    }
}

/* Sums over the map for `NT` taps of m input channels and 16 output channels. */
#define EACH_TAP(NT, DO) DO(0, 5) if (NT > 1) { DO(1, 6) } if (NT > 2) { DO(2, 5) } if (NT > 3) { DO(3, 6) } if (NT > 4) { DO(4, 5) }
#define LOAD(t, operand) _tile_loadd(t, g + (size_t)(t) * tap_step, 64);
#define STORE(t, operand) _tile_stored(t, g + (size_t)(t) * tap_step, 64);
#define SUM_BY(t, operand)                                                                                                                         \
    _tile_loadd(operand, at + j->tap_off[tap + (t)], plane);                                                                                       \
    _tile_dpbusd(t, operand, 7);
#define TAPS(NT)                                                                                                                                   \
    static void taps_##NT(const gradient *f, const int8_t *e, size_t erow, int32_t cb, int32_t tap, int32_t ci)                                    \
    {                                                                                                                                              \
        const fmpq_dw *j = f->j;                                                                                                                   \
        const size_t plane = (size_t)j->plane, tap_step = (size_t)j->ci * 16;                                                                      \
        int32_t *g = j->g + ((cb - j->cb0) * j->taps + tap) * j->ci * 16 + ci * 16;                                                               \
        EACH_TAP(NT, LOAD)                                                                                                                         \
        for (int32_t y = 0; y < f->rows; y++) {                                                                                                    \
            const uint8_t *at = j->a + ci * j->plane + y * f->pitch;                                                                               \
            for (int32_t k = 0; k < f->steps; k++, e += erow * (size_t)f->groups, at += 4 * f->groups) {                                           \
                _tile_loadd(7, e, erow);                                                                                                           \
                EACH_TAP(NT, SUM_BY)                                                                                                               \
            }                                                                                                                                      \
        }                                                                                                                                          \
        EACH_TAP(NT, STORE)                                                                                                                        \
    }

TAPS(1)
TAPS(3)
TAPS(4)
TAPS(5)

void fmpq_dw_amx(const fmpq_dw *j)
{
    int8_t row[LONG_ROW * 64] __attribute__((aligned(64)));
    const int32_t groups = long_row(j);
    gradient f = {j, largest_divisor(j->ci, 16), largest_divisor(groups ? groups : j->cols4, 16), 0, groups ? 1 : j->rows, j->a_row};
    f.steps = (groups ? groups : j->cols4) / f.groups;
    if ((f.m < 8 && j->ci > 16) || f.groups < 2) {
        fmpq_kernels_avx512vnni.dw(j);
        return;
    }
    shape(5, 2, f.m, f.groups * 4);
    for (int32_t cb = j->cb0; cb < j->cb1; cb++) {
        const int8_t *e = groups ? row : j->e + cb * 64;
        const size_t erow = groups ? 64 : (size_t)j->cop * 4;
        if (groups)
            lengthen(j, cb, row, groups);
        for (int32_t ci = 0; ci < j->ci; ci += f.m)
            for (int32_t t = 0, left; (left = j->taps - t) > 0;)
                if (left >= 5 && left != 6) {
                    taps_5(&f, e, erow, cb, t, ci);
                    t += 5;
                } else if (left == 4) {
                    taps_4(&f, e, erow, cb, t, ci);
                    t += 4;
                } else if (left >= 3) {
                    taps_3(&f, e, erow, cb, t, ci);
                    t += 3;
                } else {
                    taps_1(&f, e, erow, cb, t, ci);
                    t += 1;
                }
    }
    _tile_release();
}
