/* Hand-written AVX2 element-wise kernels for channel counts that are multiples of 16; others take the common code. */
#ifndef FMPQ_ELEMENTWISE_AVX2_H
#define FMPQ_ELEMENTWISE_AVX2_H
#include "bytes_sse.h"
#include <immintrin.h>

static inline __m256i load8_i8(const void *p)
{
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
}
static inline __m256i load8_u8(const void *p)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
}
static inline __m256i load8(const void *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}
/* int32 lanes of an int16 coefficient with a zero high half: vpmaddwd then multiplies by it */
static inline __m256i low8(__m256i v)
{
    return _mm256_and_si256(v, _mm256_set1_epi32(0xffff));
}
/* two registers of int32 to 16 int16 in order, saturated */
static inline __m256i narrow16(__m256i a, __m256i b)
{
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
}

static void act256(const int8_t *x, uint8_t *out, int32_t n, int32_t c, const int32_t *gacc, const int32_t *bacc, const uint8_t *skip,
                   int32_t skip_shift, int32_t out_shift, int32_t offset)
{
    if (c % 16) {
        NAME(act)(x, out, n, c, gacc, bacc, skip, skip_shift, out_shift, offset);
        return;
    }
    for (int32_t k = 0; k < c; k += 16) {
        int32_t gs[16], bs[16];
        __m256i g[2], b[2];
        const __m128i so = _mm_cvtsi32_si128(out_shift), ss = _mm_cvtsi32_si128(skip_shift);
        for (int i = 0; i < 16; i++) {
            gs[i] = max32(min32((int32_t)fmpq_rshift64(gacc[k + i], 16), 32767), -32767);
            bs[i] = (int32_t)fmpq_rshift64(bacc[k + i], 8) + (1 << (out_shift - 1)) + offset;
        }
        for (int h = 0; h < 2; h++) {
            g[h] = low8(load8(gs + 8 * h));
            b[h] = load8(bs + 8 * h);
        }
        for (int32_t p = 0; p < n; p++) {
            const int32_t at = p * c + k;
            __m256i v[2], w;
            for (int h = 0; h < 2; h++) {
                v[h] = _mm256_add_epi32(_mm256_madd_epi16(load8_i8(x + at + 8 * h), g[h]), b[h]);
                if (skip)
                    v[h] = _mm256_add_epi32(v[h], _mm256_sll_epi32(load8_u8(skip + at + 8 * h), ss));
                v[h] = _mm256_sra_epi32(v[h], so);
            }
            w = narrow16(v[0], v[1]);
            _mm_storeu_si128((__m128i *)(void *)(out + at), _mm_packus_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)));
        }
    }
}

/* 16 int16 to int8 in -127..127 */
static inline void store_i8(int8_t *out, __m256i w)
{
    const __m256i v = _mm256_max_epi16(w, _mm256_set1_epi16(-127));
    _mm_storeu_si128((__m128i *)(void *)out, _mm_packs_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
}

static void norm256(const int16_t *y, int8_t *x, int32_t n, int32_t c, const int32_t *a, const int32_t *b, const int32_t *sh)
{
    if (c % 16) {
        NAME(norm)(y, x, n, c, a, b, sh);
        return;
    }
    for (int32_t k = 0; k < c; k += 16)
        for (int32_t p = 0; p < n; p++) {
            __m256i v[2];
            for (int h = 0; h < 2; h++) {
                const int32_t at = k + 8 * h;
                const __m256i w = _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(y + p * c + at)));
                v[h] = _mm256_srav_epi32(_mm256_add_epi32(_mm256_madd_epi16(w, load8(a + at)), load8(b + at)), load8(sh + at));
            }
            store_i8(x + p * c + k, narrow16(v[0], v[1]));
        }
}

static void reduce256(int16_t *e, const uint8_t *u, const int8_t *x, int32_t n, int32_t c, int64_t *s1, int64_t *s2, int32_t *mx)
{
    if (c % 16) {
        NAME(reduce)(e, u, x, n, c, s1, s2, mx);
        return;
    }
    for (int32_t k = 0; k < c; k += 16) {
        __m256i top = _mm256_setzero_si256();
        int16_t tops[16];
        for (int32_t p0 = 0; p0 < n; p0 += 512) { /* 512 * 32767 * 127 < 2^31 */
            const int32_t p1 = min32(n, p0 + 512);
            __m256i a[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()}, b[2] = {a[0], a[0]};
            int32_t sums[16];
            for (int32_t p = p0; p < p1; p++) {
                const int32_t at = p * c + k;
                const __m256i uw = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(u + at)));
                const __m256i drop = _mm256_or_si256(_mm256_cmpeq_epi16(uw, _mm256_setzero_si256()), _mm256_cmpeq_epi16(uw, _mm256_set1_epi16(255)));
                const __m256i v = _mm256_andnot_si256(drop, load8(e + at));
                const __m256i xw = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(x + at)));
                _mm256_storeu_si256((__m256i *)(void *)(e + at), v);
                top = _mm256_max_epi16(top, _mm256_abs_epi16(v));
                for (int h = 0; h < 2; h++) {
                    const __m128i vh = h ? _mm256_extracti128_si256(v, 1) : _mm256_castsi256_si128(v);
                    const __m128i xh = h ? _mm256_extracti128_si256(xw, 1) : _mm256_castsi256_si128(xw);
                    a[h] = _mm256_add_epi32(a[h], _mm256_cvtepi16_epi32(vh));
                    b[h] = _mm256_add_epi32(b[h], _mm256_madd_epi16(_mm256_cvtepu16_epi32(vh), _mm256_cvtepi16_epi32(xh)));
                }
            }
            for (int h = 0; h < 2; h++)
                _mm256_storeu_si256((__m256i *)(void *)(sums + 8 * h), a[h]);
            for (int i = 0; i < 16; i++)
                s1[k + i] += sums[i];
            for (int h = 0; h < 2; h++)
                _mm256_storeu_si256((__m256i *)(void *)(sums + 8 * h), b[h]);
            for (int i = 0; i < 16; i++)
                s2[k + i] += sums[i];
        }
        _mm256_storeu_si256((__m256i *)(void *)tops, top);
        for (int i = 0; i < 16; i++)
            mx[k + i] = max32(mx[k + i], tops[i]);
    }
}

static void bn_back256(const int16_t *e, int8_t *x, int32_t n, int32_t c, const int32_t *ce, const int32_t *cx, const int32_t *c0, fmpq_stream key,
                       uint32_t base)
{
    const __m256i m1 = _mm256_set1_epi32(0x7feb352d), m2 = _mm256_set1_epi32((int)0x846ca68bu), k1 = _mm256_set1_epi32((int)key.k1);
    const __m256i mask = _mm256_set1_epi32(0x3fffff), lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    if (c % 16) {
        NAME(bn_back)(e, x, n, c, ce, cx, c0, key, base);
        return;
    }
    for (int32_t k = 0; k < c; k += 16)
        for (int32_t p = 0; p < n; p++) {
            const int32_t at = p * c + k;
            __m256i v[2];
            for (int h = 0; h < 2; h++) {
                const int32_t j = k + 8 * h;
                __m256i r = _mm256_add_epi32(lane, _mm256_set1_epi32((int)(base + (uint32_t)(at + 8 * h) + key.k0)));
                r = _mm256_xor_si256(r, _mm256_srli_epi32(r, 16));
                r = _mm256_xor_si256(_mm256_mullo_epi32(r, m1), k1);
                r = _mm256_mullo_epi32(_mm256_xor_si256(r, _mm256_srli_epi32(r, 15)), m2);
                r = _mm256_and_si256(_mm256_xor_si256(r, _mm256_srli_epi32(r, 16)), mask);
                v[h] = _mm256_mullo_epi32(_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(e + at + 8 * h))), load8(ce + j));
                v[h] = _mm256_add_epi32(v[h], _mm256_mullo_epi32(load8_i8(x + at + 8 * h), load8(cx + j)));
                v[h] = _mm256_srai_epi32(_mm256_add_epi32(v[h], _mm256_add_epi32(load8(c0 + j), r)), 22);
            }
            store_i8(x + at, narrow16(v[0], v[1]));
        }
}

static void interleave256(const int8_t *e, int8_t *out, int32_t rows, int32_t cols, int32_t pix, int32_t co, int32_t *sums)
{
    if (co % 16 || cols % 4) {
        NAME(interleave)(e, out, rows, cols, pix, co, sums);
        return;
    }
    for (int32_t k = 0; k < co; k += 16)
        for (int32_t q = 0; q < rows * cols / 4; q++) {
            int8_t *o = out + q * co * 4 + k * 4;
            __m128i v[4];
            interleave4(e + q * 4 * pix + k, pix, v);
            for (int i = 0; i < 4; i++) {
                const __m128i pairs = _mm_maddubs_epi16(_mm_set1_epi8(1), v[i]);
                __m128i *s = (__m128i *)(void *)(sums + k + 4 * i);
                _mm_storeu_si128((__m128i *)(void *)(o + 16 * i), v[i]);
                _mm_storeu_si128(s, _mm_add_epi32(_mm_loadu_si128(s), _mm_madd_epi16(pairs, _mm_set1_epi16(1))));
            }
        }
}

static void planar256(const uint8_t *in, uint8_t *out, int32_t rows, int32_t cols, int32_t in_row, int32_t c_of, int32_t plane, int32_t row,
                      int32_t stride)
{
    if ((c_of & 0xffff) % 16)
        NAME(planar)(in, out, rows, cols, in_row, c_of, plane, row, stride);
    else
        planar16(in, out, rows, cols, in_row, c_of, plane, row, stride);
}

#undef ELEMENTWISE_TABLE
#define ELEMENTWISE_TABLE                                                                                                                          \
    .stats = NAME(stats), .norm = norm256, .act = act256, .reduce = reduce256, .bn_back = bn_back256, .merge = NAME(merge),                        \
    .max16 = NAME(max16), .quant = NAME(quant), .bias = NAME(bias), .scale = NAME(scale), .apply = NAME(apply), .planar = planar256,               \
    .interleave = interleave256, .unpack = fmpq_unpack_scalar, .pack = fmpq_pack_scalar, ROW_TABLE
#endif
