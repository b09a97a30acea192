/* AVX2: vpmaddubsw adds pairs of unsigned x signed bytes in int16, which is exact while 2 * a_max * w_max < 2^15 (4-bit activations, few bits);
 * otherwise both operands are widened and vpmaddwd does the work. Eight output channels a register. */
#define SUFFIX avx2
#include "../elementwise.inc"
#include "cpu.h"
#include "elementwise_avx2.h"
#include <immintrin.h>

static inline __m256i bcast(const uint8_t *p)
{
    int32_t v;
    __builtin_memcpy(&v, p, 4);
    return _mm256_set1_epi32(v);
}

static inline __attribute__((always_inline)) __m256i dot4(__m256i acc, __m256i a, __m256i w, int narrow)
{
    if (narrow)
        return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(a, w), _mm256_set1_epi16(1)));
    /* even and odd bytes apart: a zero-extended, w sign-extended */
    const __m256i ae = _mm256_and_si256(a, _mm256_set1_epi16(255)), ao = _mm256_srli_epi16(a, 8);
    const __m256i we = _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8), wo = _mm256_srai_epi16(w, 8);
    return _mm256_add_epi32(acc, _mm256_add_epi32(_mm256_madd_epi16(ae, we), _mm256_madd_epi16(ao, wo)));
}

/* 8 int32 lanes -> sat16(reven(acc, shift)); the first `lanes` are stored; half = 2^(shift - 1) - 1, odd = 1 (both 0 for shift = 0) */
static inline void store8(int16_t *out, __m256i acc, __m256i half, __m256i odd, __m128i shift, int32_t lanes)
{
    const __m256i up = _mm256_add_epi32(half, _mm256_and_si256(_mm256_sra_epi32(acc, shift), odd));
    const __m256i v = _mm256_sra_epi32(_mm256_add_epi32(acc, up), shift);
    const __m256i w = _mm256_max_epi32(_mm256_min_epi32(v, _mm256_set1_epi32(32767)), _mm256_set1_epi32(-32767));
    const __m128i p = _mm_packs_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
    if (lanes >= 8) {
        _mm_storeu_si128((__m128i *)(void *)out, p);
    } else {
        int16_t t[8];
        _mm_storeu_si128((__m128i *)(void *)t, p);
        for (int32_t i = 0; i < lanes; i++)
            out[i] = t[i];
    }
}

/* NP positions x 16 output channels (two registers) */
static inline __attribute__((always_inline)) void tile(const fmpq_igemm *j, const uint8_t *a, int16_t *out, int32_t cb, int np, int narrow)
{
    const int32_t wstep = j->cop * 4, apix = j->a_pix, left = j->co - cb * 16;
    const __m256i half = _mm256_set1_epi32(j->shift ? (1 << (j->shift - 1)) - 1 : 0), odd = _mm256_set1_epi32(j->shift != 0);
    const __m128i shift = _mm_cvtsi32_si128(j->shift);
    __m256i acc[4][2];
    for (int p = 0; p < np; p++)
        acc[p][0] = acc[p][1] = _mm256_setzero_si256();
    for (int pass = 0; pass < (j->w_low ? 2 : 1); pass++) {
        const int8_t *w = (pass ? j->w_low : j->w) + cb * 64;
        for (int p = 0; pass && p < np; p++)
            for (int b = 0; b < 2; b++)
                acc[p][b] = _mm256_add_epi32(acc[p][b], acc[p][b]);
        for (int32_t t = 0; t < j->taps; t++) {
            const uint8_t *at = a + j->tap_off[t];
            for (int32_t c = 0; c < j->c4; c++, w += wstep, at += 4) {
                const __m256i w0 = _mm256_loadu_si256((const __m256i *)(const void *)w);
                const __m256i w1 = _mm256_loadu_si256((const __m256i *)(const void *)(w + 32));
                for (int p = 0; p < np; p++) {
                    const __m256i av = bcast(at + p * apix);
                    acc[p][0] = dot4(acc[p][0], av, w0, narrow);
                    acc[p][1] = dot4(acc[p][1], av, w1, narrow);
                }
            }
        }
    }
    for (int b = 0; b < 2; b++) {
        const __m256i corr = _mm256_loadu_si256((const __m256i *)(const void *)(j->corr + cb * 16 + b * 8));
        for (int p = 0; p < np; p++)
            if (left > b * 8)
                store8(out + p * j->out_pix + cb * 16 + b * 8, _mm256_add_epi32(acc[p][b], corr), half, odd, shift, left - b * 8);
    }
}

static inline __attribute__((always_inline)) void igemm_as(const fmpq_igemm *j, int narrow)
{
    for (int32_t cb = 0; cb < j->cop / 16; cb++)
        for (int32_t y = 0; y < j->rows; y++) {
            const uint8_t *a = j->a + y * j->a_row;
            int16_t *o = j->out + y * j->out_row;
            int32_t x = 0;
            for (; x + 4 <= j->cols; x += 4)
                tile(j, a + x * j->a_pix, o + x * j->out_pix, cb, 4, narrow);
            for (; x < j->cols; x++)
                tile(j, a + x * j->a_pix, o + x * j->out_pix, cb, 1, narrow);
        }
}

static void igemm(const fmpq_igemm *j)
{
    if (2 * j->a_max * j->w_max < 32768)
        igemm_as(j, 1);
    else
        igemm_as(j, 0);
}

static inline __attribute__((always_inline)) void dw_block(const fmpq_dw *j, int32_t cb, int32_t tap, int32_t ci, int nt, int nc, int narrow)
{
    __m256i acc[3][2][2];
    const uint8_t *base = j->a + ci * j->plane;
    const int32_t estep = j->cop * 4;
    const int8_t *e = j->e + cb * 64;
    int32_t *g = j->g + (((cb - j->cb0) * j->taps + tap) * j->ci + ci) * 16;
    for (int t = 0; t < nt; t++)
        for (int c = 0; c < nc; c++)
            for (int b = 0; b < 2; b++)
                acc[t][c][b] = _mm256_loadu_si256((const __m256i *)(const void *)(g + (t * j->ci + c) * 16 + b * 8));
    for (int32_t y = 0; y < j->rows; y++) {
        const uint8_t *row = base + y * j->a_row;
        for (int32_t x = 0; x < j->cols4; x++, e += estep) {
            const __m256i e0 = _mm256_loadu_si256((const __m256i *)(const void *)e);
            const __m256i e1 = _mm256_loadu_si256((const __m256i *)(const void *)(e + 32));
            for (int t = 0; t < nt; t++)
                for (int c = 0; c < nc; c++) {
                    const __m256i av = bcast(row + c * j->plane + j->tap_off[tap + t] + 4 * x);
                    acc[t][c][0] = dot4(acc[t][c][0], av, e0, narrow);
                    acc[t][c][1] = dot4(acc[t][c][1], av, e1, narrow);
                }
        }
    }
    for (int t = 0; t < nt; t++)
        for (int c = 0; c < nc; c++)
            for (int b = 0; b < 2; b++)
                _mm256_storeu_si256((__m256i *)(void *)(g + (t * j->ci + c) * 16 + b * 8), acc[t][c][b]);
}

static inline __attribute__((always_inline)) void dw_as(const fmpq_dw *j, int narrow)
{
    for (int32_t cb = j->cb0; cb < j->cb1; cb++) {
        int32_t t = 0;
        for (; t + 3 <= j->taps; t += 3) {
            int32_t ci = 0;
            for (; ci + 2 <= j->ci; ci += 2)
                dw_block(j, cb, t, ci, 3, 2, narrow);
            for (; ci < j->ci; ci++)
                dw_block(j, cb, t, ci, 3, 1, narrow);
        }
        for (; t < j->taps; t++)
            for (int32_t ci = 0; ci < j->ci; ci++)
                dw_block(j, cb, t, ci, 1, 1, narrow);
    }
}

static void dw(const fmpq_dw *j)
{
    if (2 * j->a_max * 127 < 32768)
        dw_as(j, 1);
    else
        dw_as(j, 0);
}

const fmpq_kernels fmpq_kernels_avx2 = {.name = "avx2", .available = fmpq_cpu_avx2, .igemm = igemm, .dw = dw, ELEMENTWISE_TABLE};
