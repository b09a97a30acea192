/* Hand-written AVX-512 element-wise kernels for channel counts that are multiples of 16; others take the common code. */
#ifndef FMPQ_ELEMENTWISE_AVX512_H
#define FMPQ_ELEMENTWISE_AVX512_H
#include "bytes_sse.h"
#include <immintrin.h>

static inline __m512i load_i8(const void *p)
{
    return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p));
}
static inline __m512i load_u8(const void *p)
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
}
static inline __m512i load_i16(const void *p)
{
    return _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)p));
}
/* int32 lanes that hold an int16 multiplied by an int16 coefficient whose high half is zero: one vpmaddwd */
static inline __m512i low16(__m512i v)
{
    return _mm512_and_si512(v, _mm512_set1_epi32(0xffff));
}

/* 64 int32 in order to unsigned bytes, saturated; the same to signed bytes of at least -127 */
static inline __m512i in_order(__m512i bytes)
{
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), bytes);
}
static inline void store64(uint8_t *out, __m512i v0, __m512i v1, __m512i v2, __m512i v3)
{
    _mm512_storeu_si512(out, in_order(_mm512_packus_epi16(_mm512_packs_epi32(v0, v1), _mm512_packs_epi32(v2, v3))));
}
static inline void store64_signed(int8_t *out, __m512i v0, __m512i v1, __m512i v2, __m512i v3)
{
    const __m512i v = _mm512_packs_epi16(_mm512_packs_epi32(v0, v1), _mm512_packs_epi32(v2, v3));
    _mm512_storeu_si512(out, in_order(_mm512_max_epi8(v, _mm512_set1_epi8(-127))));
}

static void act_strided(const int8_t *x, uint8_t *out, int32_t n, int32_t c, const int32_t *gacc, const int32_t *bacc, const uint8_t *skip,
                   int32_t skip_shift, int32_t out_shift, int32_t offset)
{
    if (c % 16) {
        NAME(act)(x, out, n, c, gacc, bacc, skip, skip_shift, out_shift, offset);
        return;
    }
    for (int32_t k = 0; k < c; k += 16) {
        int32_t gs[16], bs[16];
        __m512i g, b;
        const __m512i zero = _mm512_setzero_si512();
        const __m128i so = _mm_cvtsi32_si128(out_shift), ss = _mm_cvtsi32_si128(skip_shift);
        for (int i = 0; i < 16; i++) {
            gs[i] = max32(min32((int32_t)fmpq_rshift64(gacc[k + i], 16), 32767), -32767);
            bs[i] = (int32_t)fmpq_rshift64(bacc[k + i], 8) + (1 << (out_shift - 1)) + offset;
        }
        g = low16(_mm512_loadu_si512(gs));
        b = _mm512_loadu_si512(bs);
        if (skip)
            for (int32_t p = 0; p < n; p++) {
                const int32_t at = p * c + k;
                const __m512i v = _mm512_add_epi32(_mm512_madd_epi16(load_i8(x + at), g), b);
                const __m512i w = _mm512_sra_epi32(_mm512_add_epi32(v, _mm512_sll_epi32(load_u8(skip + at), ss)), so);
                _mm_storeu_si128((__m128i *)(void *)(out + at), _mm512_cvtusepi32_epi8(_mm512_max_epi32(w, zero)));
            }
        else
            for (int32_t p = 0; p < n; p++) {
                const int32_t at = p * c + k;
                const __m512i w = _mm512_sra_epi32(_mm512_add_epi32(_mm512_madd_epi16(load_i8(x + at), g), b), so);
                _mm_storeu_si128((__m128i *)(void *)(out + at), _mm512_cvtusepi32_epi8(_mm512_max_epi32(w, zero)));
            }
    }
}

/* Where 16, 32 or 64 channels repeat in every 64 elements these are taken as they lie in memory, with four vectors of coefficients; returns the
 * positions that are left over to the loops over channels. */
#define WIDE(c) ((c) == 16 || (c) == 32 || (c) == 64)

static void act512(const int8_t *x, uint8_t *out, int32_t n, int32_t c, const int32_t *gacc, const int32_t *bacc, const uint8_t *skip,
                   int32_t skip_shift, int32_t out_shift, int32_t offset)
{
    const int32_t end = WIDE(c) ? n * c / 64 * 64 : 0;
    if (end) {
        int32_t gs[64], bs[64];
        __m512i g[4], b[4];
        const __m512i so = _mm512_set1_epi32(out_shift), ss = _mm512_set1_epi32(skip_shift);
        for (int i = 0; i < c; i++) {
            gs[i] = max32(min32((int32_t)fmpq_rshift64(gacc[i], 16), 32767), -32767);
            bs[i] = (int32_t)fmpq_rshift64(bacc[i], 8) + (1 << (out_shift - 1)) + offset;
        }
        for (int i = 0; i < 4; i++) {
            g[i] = low16(_mm512_loadu_si512(gs + 16 * i % c));
            b[i] = _mm512_loadu_si512(bs + 16 * i % c);
        }
#define Z(i) _mm512_add_epi32(_mm512_madd_epi16(load_i8(x + at + 16 * (i)), g[i]), b[i])
#define SKIP(i) _mm512_sllv_epi32(load_u8(skip + at + 16 * (i)), ss)
        if (skip)
            for (int32_t at = 0; at < end; at += 64)
                store64(out + at, _mm512_srav_epi32(_mm512_add_epi32(Z(0), SKIP(0)), so), _mm512_srav_epi32(_mm512_add_epi32(Z(1), SKIP(1)), so),
                        _mm512_srav_epi32(_mm512_add_epi32(Z(2), SKIP(2)), so), _mm512_srav_epi32(_mm512_add_epi32(Z(3), SKIP(3)), so));
        else
            for (int32_t at = 0; at < end; at += 64)
                store64(out + at, _mm512_srav_epi32(Z(0), so), _mm512_srav_epi32(Z(1), so), _mm512_srav_epi32(Z(2), so), _mm512_srav_epi32(Z(3), so));
#undef Z
#undef SKIP
    }
    if (end < n * c)
        act_strided(x + end, out + end, n - end / c, c, gacc, bacc, skip ? skip + end : 0, skip_shift, out_shift, offset);
}

static void norm512(const int16_t *y, int8_t *x, int32_t n, int32_t c, const int32_t *a, const int32_t *b, const int32_t *sh)
{
    if (c % 16) {
        NAME(norm)(y, x, n, c, a, b, sh);
        return;
    }
    if (WIDE(c)) {
        const int32_t end = n * c / 64 * 64;
        __m512i va[4], vb[4], vs[4];
        for (int i = 0; i < 4; i++) {
            va[i] = _mm512_loadu_si512(a + 16 * i % c);
            vb[i] = _mm512_loadu_si512(b + 16 * i % c);
            vs[i] = _mm512_loadu_si512(sh + 16 * i % c);
        }
#define X(i) _mm512_srav_epi32(_mm512_add_epi32(_mm512_madd_epi16(load_i16(y + at + 16 * (i)), va[i]), vb[i]), vs[i])
        for (int32_t at = 0; at < end; at += 64)
            store64_signed(x + at, X(0), X(1), X(2), X(3));
#undef X
        y += end;
        x += end;
        n -= end / c;
    }
    for (int32_t k = 0; k < c && n; k += 16) {
        const __m512i va = _mm512_loadu_si512(a + k), vb = _mm512_loadu_si512(b + k), vs = _mm512_loadu_si512(sh + k);
        const __m512i lo = _mm512_set1_epi32(-127);
        for (int32_t p = 0; p < n; p++) {
            const __m512i v = _mm512_srav_epi32(_mm512_add_epi32(_mm512_madd_epi16(load_i16(y + p * c + k), va), vb), vs);
            _mm_storeu_si128((__m128i *)(void *)(x + p * c + k), _mm512_cvtsepi32_epi8(_mm512_max_epi32(v, lo)));
        }
    }
}

static void reduce512(int16_t *e, const uint8_t *u, const int8_t *x, int32_t n, int32_t c, int64_t *s1, int64_t *s2, int32_t *mx)
{
    if (c % 16) {
        NAME(reduce)(e, u, x, n, c, s1, s2, mx);
        return;
    }
    if (WIDE(c)) {
        const int32_t end = n * c / 64 * 64;
        __m512i top[4];
        for (int i = 0; i < 4; i++)
            top[i] = _mm512_setzero_si512();
        for (int32_t from = 0; from < end; from += 512 * 64) { /* 512 * 32767 * 127 < 2^31 */
            const int32_t to = min32(end, from + 512 * 64);
            __m512i a[4], b[4];
            for (int i = 0; i < 4; i++)
                a[i] = b[i] = _mm512_setzero_si512();
            for (int32_t at = from; at < to; at += 64) {
                const __m512i um = _mm512_sub_epi8(_mm512_loadu_si512(u + at), _mm512_set1_epi8(1));
                const __mmask64 keep = _mm512_cmplt_epu8_mask(um, _mm512_set1_epi8((char)254));
                for (int h = 0; h < 2; h++) {
                    const __m512i ev = _mm512_maskz_loadu_epi16((__mmask32)(keep >> (32 * h)), e + at + 32 * h);
                    _mm512_storeu_si512(e + at + 32 * h, ev);
                    for (int k = 0; k < 2; k++) {
                        const int i = 2 * h + k;
                        const __m256i part = k ? _mm512_extracti64x4_epi64(ev, 1) : _mm512_castsi512_si256(ev);
                        const __m512i v = _mm512_cvtepi16_epi32(part);
                        a[i] = _mm512_add_epi32(a[i], v);
                        b[i] = _mm512_add_epi32(b[i], _mm512_madd_epi16(low16(v), load_i8(x + at + 16 * i)));
                        top[i] = _mm512_max_epi32(top[i], _mm512_abs_epi32(v));
                    }
                }
            }
            for (int i = 0; i < 4; i++) {
                int32_t la[16], lb[16];
                _mm512_storeu_si512(la, a[i]);
                _mm512_storeu_si512(lb, b[i]);
                for (int k = 0; k < 16; k++) {
                    s1[16 * i % c + k] += la[k];
                    s2[16 * i % c + k] += lb[k];
                }
            }
        }
        for (int i = 0; i < 4; i++)
            _mm512_storeu_si512(mx + 16 * i % c, _mm512_max_epi32(top[i], _mm512_loadu_si512(mx + 16 * i % c)));
        e += end;
        u += end;
        x += end;
        n -= end / c;
    }
    for (int32_t k = 0; k < c && n; k += 16) {
        __m512i top = _mm512_loadu_si512(mx + k);
        for (int32_t p0 = 0; p0 < n; p0 += 512) { /* 512 * 32767 * 127 < 2^31 */
            const int32_t p1 = min32(n, p0 + 512);
            __m512i a = _mm512_setzero_si512(), b = a;
            int32_t la[16], lb[16];
            for (int32_t p = p0; p < p1; p++) {
                const int32_t at = p * c + k;
                const __m128i um = _mm_sub_epi8(_mm_loadu_si128((const __m128i *)(const void *)(u + at)), _mm_set1_epi8(1));
                const __mmask16 keep = _mm_cmplt_epu8_mask(um, _mm_set1_epi8((char)254));
                const __m256i ev = _mm256_maskz_loadu_epi16(keep, e + at);
                const __m512i v = _mm512_cvtepi16_epi32(ev);
                _mm256_storeu_si256((__m256i *)(void *)(e + at), ev);
                a = _mm512_add_epi32(a, v);
                b = _mm512_add_epi32(b, _mm512_madd_epi16(_mm512_cvtepu16_epi32(ev), load_i8(x + at)));
                top = _mm512_max_epi32(top, _mm512_abs_epi32(v));
            }
            _mm512_storeu_si512(la, a);
            _mm512_storeu_si512(lb, b);
            for (int i = 0; i < 16; i++) {
                s1[k + i] += la[i];
                s2[k + i] += lb[i];
            }
        }
        _mm512_storeu_si512(mx + k, top);
    }
}

/* 16 dithers of 22 bits for the indices (plus the key) in the lanes */
static inline __m512i dither512(__m512i index, __m512i k1)
{
    const __m512i m1 = _mm512_set1_epi32(0x7feb352d), m2 = _mm512_set1_epi32((int)0x846ca68bu);
    __m512i r = _mm512_xor_si512(index, _mm512_srli_epi32(index, 16));
    r = _mm512_xor_si512(_mm512_mullo_epi32(r, m1), k1);
    r = _mm512_mullo_epi32(_mm512_xor_si512(r, _mm512_srli_epi32(r, 15)), m2);
    return _mm512_and_si512(_mm512_xor_si512(r, _mm512_srli_epi32(r, 16)), _mm512_set1_epi32(0x3fffff));
}

static void bn_back512(const int16_t *e, int8_t *x, int32_t n, int32_t c, const int32_t *ce, const int32_t *cx, const int32_t *c0, fmpq_stream key,
                       uint32_t base)
{
    if (c % 16) {
        NAME(bn_back)(e, x, n, c, ce, cx, c0, key, base);
        return;
    }
    if (WIDE(c)) {
        const int32_t end = n * c / 64 * 64;
        const __m512i k1 = _mm512_set1_epi32((int)key.k1), lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        __m512i le[4], lx[4], l0[4], index = _mm512_add_epi32(lane, _mm512_set1_epi32((int)(base + key.k0)));
        for (int i = 0; i < 4; i++) {
            le[i] = _mm512_loadu_si512(ce + 16 * i % c);
            lx[i] = _mm512_loadu_si512(cx + 16 * i % c);
            l0[i] = _mm512_loadu_si512(c0 + 16 * i % c);
        }
        for (int32_t at = 0; at < end; at += 64, index = _mm512_add_epi32(index, _mm512_set1_epi32(64))) {
            __m512i v[4];
            for (int i = 0; i < 4; i++) {
                const __m512i r = dither512(_mm512_add_epi32(index, _mm512_set1_epi32(16 * i)), k1);
                v[i] = _mm512_add_epi32(_mm512_mullo_epi32(load_i16(e + at + 16 * i), le[i]), _mm512_mullo_epi32(load_i8(x + at + 16 * i), lx[i]));
                v[i] = _mm512_srai_epi32(_mm512_add_epi32(v[i], _mm512_add_epi32(l0[i], r)), 22);
            }
            store64_signed(x + at, v[0], v[1], v[2], v[3]);
        }
        e += end;
        x += end;
        n -= end / c;
        base += (uint32_t)end;
    }
    for (int32_t k = 0; k < c && n; k += 16) {
        const __m512i le = _mm512_loadu_si512(ce + k), lx = _mm512_loadu_si512(cx + k), l0 = _mm512_loadu_si512(c0 + k);
        const __m512i k1 = _mm512_set1_epi32((int)key.k1), lo = _mm512_set1_epi32(-127), step = _mm512_set1_epi32(c);
        const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        __m512i index = _mm512_add_epi32(lane, _mm512_set1_epi32((int)(base + (uint32_t)k + key.k0)));
        for (int32_t p = 0; p < n; p++, index = _mm512_add_epi32(index, step)) {
            const int32_t at = p * c + k;
            const __m512i r = dither512(index, k1);
            __m512i v = _mm512_add_epi32(_mm512_mullo_epi32(load_i16(e + at), le), _mm512_mullo_epi32(load_i8(x + at), lx));
            v = _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_add_epi32(l0, r)), 22);
            _mm_storeu_si128((__m128i *)(void *)(x + at), _mm512_cvtsepi32_epi8(_mm512_max_epi32(v, lo)));
        }
    }
}

/* One side of a merge: reven(v, s) of 32 int16, 0 <= s <= 14, as the floor and what the cut-off bits add to it. */
typedef struct even512 {
    __m512i below, odd, half;
    __m128i shift;
} even512;
static inline even512 even_of(int32_t s)
{
    const even512 c = {_mm512_set1_epi16((int16_t)((1 << s) - 1)), _mm512_set1_epi16(s > 0), _mm512_set1_epi16((int16_t)(s > 0 ? (1 << (s - 1)) - 1 : 0)),
                       _mm_cvtsi32_si128(s)};
    return c;
}
static inline __m512i even16(__m512i x, even512 c)
{
    const __m512i v = _mm512_sra_epi16(x, c.shift), cut = _mm512_and_si512(x, c.below);
    return _mm512_add_epi16(v, _mm512_srl_epi16(_mm512_add_epi16(_mm512_add_epi16(cut, c.half), _mm512_and_si512(v, c.odd)), c.shift));
}

static int32_t merge512(int16_t *e1, const int16_t *e2, uint32_t n, int32_t s1, int32_t s2)
{
    uint32_t i = 0;
    int32_t most = 0, rest;
    if (s1 >= 0 && s1 <= 14 && s2 >= 0 && s2 <= 14) {
        const even512 c1 = even_of(s1), c2 = even_of(s2);
        __m512i top = _mm512_setzero_si512();
        for (; i + 32 <= n; i += 32) {
            const __m512i sum = _mm512_adds_epi16(even16(_mm512_loadu_si512(e1 + i), c1), even16(_mm512_loadu_si512(e2 + i), c2));
            const __m512i v = _mm512_max_epi16(sum, _mm512_set1_epi16(-32767));
            _mm512_storeu_si512(e1 + i, v);
            top = _mm512_max_epi16(top, _mm512_abs_epi16(v));
        }
        most = _mm512_reduce_max_epi32(_mm512_max_epi32(low16(top), _mm512_srli_epi32(top, 16)));
    }
    rest = NAME(merge)(e1 + i, e2 + i, n - i, s1, s2);
    return rest > most ? rest : most;
}

static void stats512(const int16_t *y, int32_t n, int32_t c, int64_t *m1, int64_t *m2)
{
    if (c % 16) {
        NAME(stats)(y, n, c, m1, m2);
        return;
    }
    if (WIDE(c) && n * c < 65536 * 64) {
        const int32_t end = n * c / 64 * 64;
        __m512i sum[4], low[4], high[4];
        for (int i = 0; i < 4; i++)
            sum[i] = low[i] = high[i] = _mm512_setzero_si512();
        for (int32_t at = 0; at < end; at += 64)
            for (int i = 0; i < 4; i++) {
                const __m512i v = load_i16(y + at + 16 * i), w = low16(v), sq = _mm512_madd_epi16(w, w);
                sum[i] = _mm512_add_epi32(sum[i], v);
                low[i] = _mm512_add_epi32(low[i], low16(sq));
                high[i] = _mm512_add_epi32(high[i], _mm512_srli_epi32(sq, 16));
            }
        for (int i = 0; i < 4; i++) {
            int32_t ls[16];
            uint32_t ll[16], lh[16];
            _mm512_storeu_si512(ls, sum[i]);
            _mm512_storeu_si512(ll, low[i]);
            _mm512_storeu_si512(lh, high[i]);
            for (int k = 0; k < 16; k++) {
                m1[16 * i % c + k] += ls[k];
                m2[16 * i % c + k] += (int64_t)ll[k] + ((int64_t)lh[k] << 16);
            }
        }
        y += end;
        n -= end / c;
    }
    for (int32_t k = 0; k < c && n; k += 16)
        for (int32_t p0 = 0; p0 < n; p0 += 65536) {
            const int32_t p1 = min32(n, p0 + 65536);
            __m512i sum = _mm512_setzero_si512(), low = sum, high = sum;
            int32_t ls[16];
            uint32_t ll[16], lh[16];
            for (int32_t p = p0; p < p1; p++) {
                const __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(y + p * c + k));
                const __m512i w = _mm512_cvtepu16_epi32(v), sq = _mm512_madd_epi16(w, w);
                sum = _mm512_add_epi32(sum, _mm512_cvtepi16_epi32(v));
                low = _mm512_add_epi32(low, low16(sq));
                high = _mm512_add_epi32(high, _mm512_srli_epi32(sq, 16));
            }
            _mm512_storeu_si512(ls, sum);
            _mm512_storeu_si512(ll, low);
            _mm512_storeu_si512(lh, high);
            for (int i = 0; i < 16; i++) {
                m1[k + i] += ls[i];
                m2[k + i] += (int64_t)ll[i] + ((int64_t)lh[i] << 16);
            }
        }
}

static void interleave512(const int8_t *e, int8_t *out, int32_t rows, int32_t cols, int32_t pix, int32_t co, int32_t *sums)
{
    if (co % 16 || cols % 4) {
        NAME(interleave)(e, out, rows, cols, pix, co, sums);
        return;
    }
    for (int32_t k = 0; k < co; k += 16) {
        __m512i total = _mm512_loadu_si512(sums + k);
        for (int32_t q = 0; q < rows * cols / 4; q++) {
            __m128i part[4];
            __m512i v;
            interleave4(e + q * 4 * pix + k, pix, part);
            v = _mm512_inserti32x4(_mm512_castsi128_si512(part[0]), part[1], 1);
            v = _mm512_inserti32x4(_mm512_inserti32x4(v, part[2], 2), part[3], 3);
            _mm512_storeu_si512(out + q * co * 4 + k * 4, v);
            total = _mm512_dpbusd_epi32(total, _mm512_set1_epi8(1), v);
        }
        _mm512_storeu_si512(sums + k, total);
    }
}

static void planar512(const uint8_t *in, uint8_t *out, int32_t rows, int32_t cols, int32_t in_row, int32_t c_of, int32_t plane, int32_t row,
                      int32_t stride)
{
    if ((c_of & 0xffff) % 16)
        NAME(planar)(in, out, rows, cols, in_row, c_of, plane, row, stride);
    else
        planar16(in, out, rows, cols, in_row, c_of, plane, row, stride);
}

/* 32 weights a round: a plane's four bytes are the lanes' mask */
static void unpack512(const uint8_t *planes, uint32_t bytes, int n, uint32_t count, int16_t *q)
{
    uint32_t i = 0, bits;
    for (; i + 32 <= count; i += 32) {
        const uint8_t *b = planes + (i >> 3);
        __m512i v = _mm512_setzero_si512();
        for (int k = 0; k < n; k++) {
            __builtin_memcpy(&bits, b + (uint32_t)(k + 1) * bytes, 4);
            v = _mm512_or_si512(v, _mm512_maskz_set1_epi16(bits, (int16_t)(1 << k)));
        }
        __builtin_memcpy(&bits, b, 4);
        _mm512_storeu_si512(q + i, _mm512_mask_sub_epi16(v, bits, _mm512_setzero_si512(), v));
    }
    if (i + 16 <= count) {
        const uint8_t *b = planes + (i >> 3);
        __m256i v = _mm256_setzero_si256();
        uint16_t half;
        for (int k = 0; k < n; k++) {
            __builtin_memcpy(&half, b + (uint32_t)(k + 1) * bytes, 2);
            v = _mm256_or_si256(v, _mm256_maskz_set1_epi16(half, (int16_t)(1 << k)));
        }
        __builtin_memcpy(&half, b, 2);
        _mm256_storeu_si256((__m256i *)(void *)(q + i), _mm256_mask_sub_epi16(v, half, _mm256_setzero_si256(), v));
        i += 16;
    }
    fmpq_unpack_scalar(planes + (i >> 3), bytes, n, count - i, q + i);
}

static void pack512(uint8_t *planes, uint32_t bytes, int n, uint32_t count, const int16_t *q)
{
    uint32_t i = 0, bits;
    for (; i + 32 <= count; i += 32) {
        uint8_t *b = planes + (i >> 3);
        const __m512i v = _mm512_loadu_si512(q + i), mag = _mm512_abs_epi16(v);
        bits = _mm512_movepi16_mask(v);
        __builtin_memcpy(b, &bits, 4);
        for (int k = 0; k < n; k++) {
            bits = _mm512_test_epi16_mask(mag, _mm512_set1_epi16((int16_t)(1 << k)));
            __builtin_memcpy(b + (uint32_t)(k + 1) * bytes, &bits, 4);
        }
    }
    fmpq_pack_scalar(planes + (i >> 3), bytes, n, count - i, q + i);
}

#undef ELEMENTWISE_TABLE
#define ELEMENTWISE_TABLE                                                                                                                          \
    .stats = stats512, .norm = norm512, .act = act512, .reduce = reduce512, .bn_back = bn_back512, .merge = merge512, .max16 = NAME(max16),     \
    .quant = NAME(quant), .bias = NAME(bias), .scale = NAME(scale), .apply = NAME(apply), .planar = planar512, .interleave = interleave512, .unpack = unpack512,        \
    .pack = pack512
#endif
