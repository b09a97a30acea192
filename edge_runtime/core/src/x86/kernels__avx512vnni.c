/* AVX-512 with VNNI: vpdpbusd multiplies 64 unsigned by 64 signed bytes and adds groups of four into 16 int32 lanes.
 * Lanes are output channels; each activation group of four bytes is broadcast. */
#define SUFFIX avx512vnni
#include "../elementwise.inc"
#include "cpu.h"
#include "elementwise_avx512.h"
#include "requant_avx512.h"
#include <immintrin.h>

static inline __m512i bcast(const uint8_t *p)
{
    int32_t v;
    __builtin_memcpy(&v, p, 4);
    return _mm512_set1_epi32(v);
}

/* acc += products of one set of weights, for NP positions x NB blocks of 16 channels */
#define SUM(NP, NB, WEIGHTS)                                                                                                                       \
    {                                                                                                                                              \
        const int8_t *w = (WEIGHTS) + cb * 64;                                                                                                     \
        for (int32_t t = 0; t < j->taps; t++) {                                                                                                    \
            const uint8_t *at = a + j->tap_off[t];                                                                                                 \
            for (int32_t c = 0; c < j->c4; c++, w += wstep, at += 4) {                                                                             \
                __m512i wv[NB];                                                                                                                    \
                for (int b = 0; b < NB; b++)                                                                                                       \
                    wv[b] = _mm512_loadu_si512(w + b * 64);                                                                                        \
                for (int p = 0; p < NP; p++) {                                                                                                     \
                    const __m512i av = bcast(at + p * apix);                                                                                       \
                    for (int b = 0; b < NB; b++)                                                                                                   \
                        acc[p][b] = _mm512_dpbusd_epi32(acc[p][b], av, wv[b]);                                                                     \
                }                                                                                                                                  \
            }                                                                                                                                      \
        }                                                                                                                                          \
    }

#define TILE(NP, NB)                                                                                                                               \
    static inline __attribute__((always_inline)) void tile_##NP##_##NB(const fmpq_igemm *j, const uint8_t *a, int16_t *out, int32_t cb,              \
                                                                            const int32_t apix)                                                     \
    {                                                                                                                                              \
        const int32_t wstep = j->cop * 4;                                                                                                          \
        const __m512i half = _mm512_set1_epi32(j->shift ? 1 << (j->shift - 1) : 0), even = _mm512_set1_epi32(-2);                                  \
        const __m512i below = _mm512_set1_epi32(j->shift ? (1 << j->shift) - 1 : -1);                                                              \
        const __m128i shift = _mm_cvtsi32_si128(j->shift);                                                                                        \
        __m512i acc[NP][NB];                                                                                                                       \
        for (int p = 0; p < NP; p++)                                                                                                               \
            for (int b = 0; b < NB; b++)                                                                                                           \
                acc[p][b] = _mm512_setzero_si512();                                                                                                \
        if (j->w_low) {                                                                                                                            \
            SUM(NP, NB, j->w)                                                                                                                      \
            for (int p = 0; p < NP; p++)                                                                                                           \
                for (int b = 0; b < NB; b++)                                                                                                       \
                    acc[p][b] = _mm512_add_epi32(acc[p][b], acc[p][b]);                                                                            \
            SUM(NP, NB, j->w_low)                                                                                                                  \
        } else {                                                                                                                                   \
            SUM(NP, NB, j->w)                                                                                                                      \
        }                                                                                                                                          \
        for (int b = 0; b < NB; b++) {                                                                                                             \
            const int32_t left = j->co - (cb + b) * 16;                                                                                            \
            const __mmask16 mask = (__mmask16)(left >= 16 ? 0xffff : (1 << left) - 1);                                                             \
            const __m512i corr = _mm512_add_epi32(_mm512_loadu_si512(j->corr + (cb + b) * 16), half);                                              \
            int16_t *o = out + (cb + b) * 16;                                                                                                      \
            for (int p = 0; p < NP; p++)                                                                                                           \
                acc[p][b] = reven512(_mm512_add_epi32(acc[p][b], corr), below, even, shift);                                                       \
            if (left >= 16)                                                                                                                        \
                for (int p = 0; p + 2 <= NP; p += 2)                                                                                               \
                    store32(o + p * j->out_pix, j->out_pix, acc[p][b], acc[p + 1 < NP ? p + 1 : p][b]);                                            \
            for (int p = left >= 16 ? NP / 2 * 2 : 0; p < NP; p++)                                                                                 \
                store16(o + p * j->out_pix, acc[p][b], mask);                                                                                      \
        }                                                                                                                                          \
    }

TILE(16, 1)
TILE(8, 1)
TILE(4, 1)
TILE(1, 1)
TILE(8, 2)
TILE(4, 2)
TILE(1, 2)
TILE(4, 4)
TILE(1, 4)

/* apix is a constant where it is a common one, so that the compiler folds the positions' offsets into the addresses */
static inline __attribute__((always_inline)) void igemm_as(const fmpq_igemm *j, const int32_t apix)
{
    const int32_t blocks = j->cop / 16;
    int32_t cb = 0;
#define ROWS(STEPS)                                                                                                                                \
    for (int32_t y = 0; y < j->rows; y++) {                                                                                                        \
        const uint8_t *a = j->a + y * j->a_row;                                                                                                    \
        int16_t *o = j->out + y * j->out_row;                                                                                                      \
        int32_t x = 0;                                                                                                                             \
        STEPS                                                                                                                                      \
    }
#define STEP(NP, NB)                                                                                                                               \
    for (; x + NP <= j->cols; x += NP)                                                                                                             \
        tile_##NP##_##NB(j, a + x * apix, o + x * j->out_pix, cb, apix);
    for (; cb + 4 <= blocks; cb += 4)
        ROWS(STEP(4, 4) STEP(1, 4))
    for (; cb + 2 <= blocks; cb += 2)
        ROWS(STEP(8, 2) STEP(4, 2) STEP(1, 2))
    for (; cb < blocks; cb++)
        ROWS(STEP(16, 1) STEP(8, 1) STEP(4, 1) STEP(1, 1))
#undef STEP
#undef ROWS
}

static void igemm(const fmpq_igemm *j)
{
    switch (j->a_pix) {
    case 16:
        igemm_as(j, 16);
        break;
    case 32:
        igemm_as(j, 32);
        break;
    case 64:
        igemm_as(j, 64);
        break;
    default:
        igemm_as(j, j->a_pix);
    }
}

/* NT taps x NC input channels x NB blocks of output channels, summed over every position of the map */
#define DW(NT, NC, NB)                                                                                                                             \
    static inline __attribute__((always_inline)) void dw_##NT##_##NC##_##NB(const fmpq_dw *j, int32_t cb, int32_t tap, int32_t ci)                 \
    {                                                                                                                                              \
        __m512i acc[NT][NC][NB];                                                                                                                   \
        const uint8_t *base = j->a + ci * j->plane;                                                                                                \
        const int32_t estep = j->cop * 4;                                                                                                          \
        const int8_t *e = j->e + cb * 64;                                                                                                          \
        int32_t *g = j->g + ((cb - j->cb0) * j->taps + tap) * j->ci * 16 + ci * 16;                                                               \
        const int32_t bstep = j->taps * j->ci * 16;                                                                                                \
        for (int t = 0; t < NT; t++)                                                                                                               \
            for (int c = 0; c < NC; c++)                                                                                                           \
                for (int b = 0; b < NB; b++)                                                                                                       \
                    acc[t][c][b] = _mm512_loadu_si512(g + b * bstep + (t * j->ci + c) * 16);                                                      \
        for (int32_t y = 0; y < j->rows; y++) {                                                                                                    \
            const uint8_t *row = base + y * j->a_row;                                                                                              \
            for (int32_t x = 0; x < j->cols4; x++, e += estep) {                                                                                   \
                __m512i ev[NB];                                                                                                                    \
                for (int b = 0; b < NB; b++)                                                                                                       \
                    ev[b] = _mm512_loadu_si512(e + b * 64);                                                                                        \
                for (int t = 0; t < NT; t++)                                                                                                       \
                    for (int c = 0; c < NC; c++) {                                                                                                 \
                        const __m512i av = bcast(row + c * j->plane + j->tap_off[tap + t] + 4 * x);                                                \
                        for (int b = 0; b < NB; b++)                                                                                               \
                            acc[t][c][b] = _mm512_dpbusd_epi32(acc[t][c][b], av, ev[b]);                                                           \
                    }                                                                                                                              \
            }                                                                                                                                      \
        }                                                                                                                                          \
        for (int t = 0; t < NT; t++)                                                                                                               \
            for (int c = 0; c < NC; c++)                                                                                                           \
                for (int b = 0; b < NB; b++)                                                                                                       \
                    _mm512_storeu_si512(g + b * bstep + (t * j->ci + c) * 16, acc[t][c][b]);                                                      \
    }

DW(3, 8, 1)
DW(3, 4, 2)
DW(3, 2, 4)
DW(3, 1, 1)
DW(1, 16, 1)
DW(1, 8, 2)
DW(1, 1, 1)

static void dw(const fmpq_dw *j)
{
    int32_t cb = j->cb0;
#define LOOP(NT, NC, NB)                                                                                                                           \
    for (; ci + NC <= j->ci; ci += NC)                                                                                                             \
        dw_##NT##_##NC##_##NB(j, cb, t, ci);
#define TAPS(WIDE, NB, ONE)                                                                                                                        \
    {                                                                                                                                              \
        int32_t t = 0;                                                                                                                             \
        for (; t + 3 <= j->taps; t += 3) {                                                                                                         \
            int32_t ci = 0;                                                                                                                        \
            LOOP(3, WIDE, NB)                                                                                                                      \
            for (int32_t b = 0; b < NB; b++, cb++)                                                                                                 \
                for (int32_t k = ci; k < j->ci; k++)                                                                                               \
                    dw_3_1_1(j, cb, t, k);                                                                                                         \
            cb -= NB;                                                                                                                              \
        }                                                                                                                                          \
        for (; t < j->taps; t++) {                                                                                                                 \
            int32_t ci = 0;                                                                                                                        \
            ONE                                                                                                                                    \
            for (int32_t b = 0; b < NB; b++, cb++)                                                                                                 \
                for (int32_t k = ci; k < j->ci; k++)                                                                                               \
                    dw_1_1_1(j, cb, t, k);                                                                                                         \
            cb -= NB;                                                                                                                              \
        }                                                                                                                                          \
    }
    for (; cb + 4 <= j->cb1; cb += 4)
        TAPS(2, 4, )
    for (; cb + 2 <= j->cb1; cb += 2)
        TAPS(4, 2, LOOP(1, 8, 2))
    for (; cb < j->cb1; cb++)
        TAPS(8, 1, LOOP(1, 16, 1))
#undef TAPS
#undef LOOP
}

const fmpq_kernels fmpq_kernels_avx512vnni = {.name = "avx512vnni", .available = fmpq_cpu_avx512vnni, .igemm = igemm, .dw = dw, ELEMENTWISE_TABLE};
#if defined(FMPQ_AMX_KERNELS)
#include "amx.h"
/* the same element-wise kernels beside the matrix unit's products */
const fmpq_kernels fmpq_kernels_amx = {.name = "amx", .available = fmpq_cpu_amx, .igemm = fmpq_igemm_amx, .dw = fmpq_dw_amx, ELEMENTWISE_TABLE};
#endif
