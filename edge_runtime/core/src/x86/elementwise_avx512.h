/* Hand-written AVX-512 element-wise kernels for channel counts that are multiples of 16; others take the common code. */
#ifndef FMPQ_ELEMENTWISE_AVX512_H
#define FMPQ_ELEMENTWISE_AVX512_H
#include "bytes_sse.h"
#include <immintrin.h>

/* A tensor of a batch is read once a pass, and the hardware's prefetcher stops at every page: ask for what is needed a page from here. */
static inline void soon(const void *p)
{
    _mm_prefetch((const char *)p + 4096, _MM_HINT_T0);
}

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

/* Pairs of 16-bit words for vpdpwssd, which sums two products an int32 lane: lane i of half 0 and 1 holds word `paired(half, i)` of both operands.
 * packs_epi32 of both halves has the words in order again. */
static inline int paired(int half, int i)
{
    return 8 * (i / 4) + 4 * half + i % 4;
}
static inline __m512i pair0(__m512i a, __m512i b)
{
    return _mm512_unpacklo_epi16(a, b);
}
static inline __m512i pair1(__m512i a, __m512i b)
{
    return _mm512_unpackhi_epi16(a, b);
}
static inline __m512i words_s8(const void *p)
{
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p));
}
static inline __m512i words_u8(const void *p)
{
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)p));
}
/* 32-bit lanes of the low and the high coefficient of a pair */
static inline int32_t both16(int32_t low, int32_t high)
{
    return (int32_t)(((uint32_t)high << 16) | ((uint32_t)low & 0xffffu));
}
/* bytes of packs_epi16 / packus_epi16 of two vectors of words in order */
static inline __m512i bytes_in_order(__m512i bytes)
{
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), bytes);
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

/* The residual sum: x and the skip are one pair, gamma and 2^skip_shift the other. */
static void act_skip(const int8_t *x, uint8_t *out, int32_t end, int32_t c, const int32_t *gs, const int32_t *bs, const uint8_t *skip, int32_t skip_shift,
                     __m128i shift)
{
    int32_t lg[4][16], lb[4][16];
    __m512i g[4], b[4];
    for (int k = 0; k < 4; k++) {
        for (int i = 0; i < 16; i++) {
            const int channel = (32 * (k / 2) + paired(k % 2, i)) % c;
            lg[k][i] = both16(gs[channel], 1 << skip_shift);
            lb[k][i] = bs[channel];
        }
        g[k] = _mm512_loadu_si512(lg[k]);
        b[k] = _mm512_loadu_si512(lb[k]);
    }
#define HALF(k, PAIR, x, u) _mm512_sra_epi32(_mm512_dpwssd_epi32(b[k], PAIR(x, u), g[k]), shift)
    for (int32_t at = 0; at < end; at += 64) {
        soon(x + at);
        const __m512i x0 = words_s8(x + at), u0 = words_u8(skip + at), x1 = words_s8(x + at + 32), u1 = words_u8(skip + at + 32);
        const __m512i w0 = _mm512_packs_epi32(HALF(0, pair0, x0, u0), HALF(1, pair1, x0, u0));
        const __m512i w1 = _mm512_packs_epi32(HALF(2, pair0, x1, u1), HALF(3, pair1, x1, u1));
        _mm512_storeu_si512(out + at, bytes_in_order(_mm512_packus_epi16(w0, w1)));
    }
#undef HALF
}

static void act512(const int8_t *x, uint8_t *out, int32_t n, int32_t c, const int32_t *gacc, const int32_t *bacc, const uint8_t *skip,
                   int32_t skip_shift, int32_t out_shift, int32_t offset)
{
    const int32_t end = WIDE(c) && (!skip || skip_shift <= 14) ? n * c / 64 * 64 : 0;
    if (end) {
        int32_t gs[64], bs[64];
        __m512i g[4], b[4];
        const __m128i shift = _mm_cvtsi32_si128(out_shift);
        for (int i = 0; i < c; i++) {
            gs[i] = max32(min32((int32_t)fmpq_rshift64(gacc[i], 16), 32767), -32767);
            bs[i] = (int32_t)fmpq_rshift64(bacc[i], 8) + (1 << (out_shift - 1)) + offset;
        }
        if (skip) {
            act_skip(x, out, end, c, gs, bs, skip, skip_shift, shift);
        } else {
            for (int i = 0; i < 4; i++) {
                g[i] = low16(_mm512_loadu_si512(gs + 16 * i % c));
                b[i] = _mm512_loadu_si512(bs + 16 * i % c);
            }
#define Z(i) _mm512_sra_epi32(_mm512_dpwssd_epi32(b[i], load_i8(x + at + 16 * (i)), g[i]), shift)
            for (int32_t at = 0; at < end; at += 64) {
                soon(x + at);
                store64(out + at, Z(0), Z(1), Z(2), Z(3));
            }
#undef Z
        }
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
#define X(i) _mm512_srav_epi32(_mm512_dpwssd_epi32(vb[i], load_i16(y + at + 16 * (i)), va[i]), vs[i])
        for (int32_t at = 0; at < end; at += 64) {
            soon(y + at);
            soon(y + at + 32);
            store64_signed(x + at, X(0), X(1), X(2), X(3));
        }
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

/* which of 64 activations are neither 0 nor 255 */
static inline __mmask64 kept(const uint8_t *u)
{
    return _mm512_cmplt_epu8_mask(_mm512_sub_epi8(_mm512_loadu_si512(u), _mm512_set1_epi8(1)), _mm512_set1_epi8((char)254));
}

static void reduce512(int16_t *e, const uint8_t *u, const int8_t *x, int32_t n, int32_t c, int64_t *s1, int64_t *s2, int32_t *mx)
{
    if (c % 16) {
        NAME(reduce)(e, u, x, n, c, s1, s2, mx);
        return;
    }
    if (WIDE(c)) { /* pairs of an element and the one 64 further on, of the same channel */
        const int32_t end = n * c / 128 * 128;
        const __m512i one = _mm512_set1_epi16(1);
        __m512i top[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
        for (int32_t from = 0; from < end; from += 512 * 64) { /* 512 * 32767 * 127 < 2^31 */
            const int32_t to = min32(end, from + 512 * 64);
            __m512i a[4], b[4];
            for (int i = 0; i < 4; i++)
                a[i] = b[i] = _mm512_setzero_si512();
            for (int32_t at = from; at < to; at += 128) {
                const __mmask64 keep0 = kept(u + at), keep1 = kept(u + at + 64);
                soon(x + at);
                soon(x + at + 64);
                for (int h = 0; h < 2; h++) {
                    int16_t *lo = e + at + 32 * h, *hi = lo + 64;
                    const __m512i v0 = _mm512_maskz_loadu_epi16((__mmask32)(keep0 >> (32 * h)), lo);
                    const __m512i v1 = _mm512_maskz_loadu_epi16((__mmask32)(keep1 >> (32 * h)), hi);
                    const __m512i x0 = words_s8(x + at + 32 * h), x1 = words_s8(x + at + 64 + 32 * h);
                    const __m512i p0 = pair0(v0, v1), p1 = pair1(v0, v1);
                    soon(lo);
                    soon(hi);
                    _mm512_storeu_si512(lo, v0);
                    _mm512_storeu_si512(hi, v1);
                    a[2 * h] = _mm512_dpwssd_epi32(a[2 * h], p0, one);
                    a[2 * h + 1] = _mm512_dpwssd_epi32(a[2 * h + 1], p1, one);
                    b[2 * h] = _mm512_dpwssd_epi32(b[2 * h], p0, pair0(x0, x1));
                    b[2 * h + 1] = _mm512_dpwssd_epi32(b[2 * h + 1], p1, pair1(x0, x1));
                    top[h] = _mm512_max_epu16(top[h], _mm512_max_epu16(_mm512_abs_epi16(v0), _mm512_abs_epi16(v1)));
                }
            }
            for (int i = 0; i < 4; i++) {
                int32_t la[16], lb[16];
                _mm512_storeu_si512(la, a[i]);
                _mm512_storeu_si512(lb, b[i]);
                for (int k = 0; k < 16; k++) {
                    const int channel = (32 * (i / 2) + paired(i % 2, k)) % c;
                    s1[channel] += la[k];
                    s2[channel] += lb[k];
                }
            }
        }
        for (int i = 0; i < 4; i++) {
            const __m256i part = i % 2 ? _mm512_extracti64x4_epi64(top[i / 2], 1) : _mm512_castsi512_si256(top[i / 2]);
            _mm512_storeu_si512(mx + 16 * i % c, _mm512_max_epi32(_mm512_cvtepu16_epi32(part), _mm512_loadu_si512(mx + 16 * i % c)));
        }
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
    if (WIDE(c)) { /* e and x are one pair, ce and cx the other, in halves of 16 bits: all sums modulo 2^32 */
        const int32_t end = n * c / 64 * 64;
        const __m512i k1 = _mm512_set1_epi32((int)key.k1);
        int32_t lane[4][16], low[4][16], high[4][16], add[4][16], any = 0;
        __m512i first[4], lo[4], hi[4], l0[4];
        for (int k = 0; k < 4; k++) {
            for (int i = 0; i < 16; i++) {
                const int at = 32 * (k / 2) + paired(k % 2, i), channel = at % c;
                const int32_t he = (ce[channel] + 32768) >> 16, hx = (cx[channel] + 32768) >> 16;
                lane[k][i] = at;
                low[k][i] = both16(ce[channel], cx[channel]);
                high[k][i] = both16(he, hx);
                add[k][i] = c0[channel];
                any |= he | hx;
            }
            first[k] = _mm512_loadu_si512(lane[k]);
            lo[k] = _mm512_loadu_si512(low[k]);
            hi[k] = _mm512_loadu_si512(high[k]);
            l0[k] = _mm512_loadu_si512(add[k]);
        }
        for (int32_t at = 0; at < end; at += 64) {
            const __m512i index = _mm512_set1_epi32((int)(base + (uint32_t)at + key.k0));
            __m512i w[2];
            soon(x + at);
            for (int h = 0; h < 2; h++) {
                soon(e + at + 32 * h);
                const __m512i ev = _mm512_loadu_si512(e + at + 32 * h), xv = words_s8(x + at + 32 * h);
                __m512i v[2];
                for (int i = 0; i < 2; i++) {
                    const int k = 2 * h + i;
                    const __m512i p = i ? pair1(ev, xv) : pair0(ev, xv);
                    v[i] = _mm512_add_epi32(l0[k], dither512(_mm512_add_epi32(index, first[k]), k1));
                    v[i] = _mm512_dpwssd_epi32(v[i], p, lo[k]);
                    if (any)
                        v[i] = _mm512_add_epi32(v[i], _mm512_slli_epi32(_mm512_madd_epi16(p, hi[k]), 16));
                    v[i] = _mm512_srai_epi32(v[i], 22);
                }
                w[h] = _mm512_packs_epi32(v[0], v[1]);
            }
            _mm512_storeu_si512(x + at, bytes_in_order(_mm512_max_epi8(_mm512_packs_epi16(w[0], w[1]), _mm512_set1_epi8(-127))));
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
            soon(e1 + i);
            soon(e2 + i);
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

static int32_t max512(const int16_t *e, uint32_t n)
{
    __m512i top = _mm512_setzero_si512();
    uint32_t i = 0;
    int32_t most, rest;
    for (; i + 32 <= n; i += 32)
        top = _mm512_max_epu16(top, _mm512_abs_epi16(_mm512_loadu_si512(e + i)));
    most = _mm512_reduce_max_epi32(_mm512_max_epi32(low16(top), _mm512_srli_epi32(top, 16)));
    rest = NAME(max16)(e + i, n - i);
    return rest > most ? rest : most;
}

static void stats512(const int16_t *y, int32_t n, int32_t c, int64_t *m1, int64_t *m2)
{
    if (c % 16) {
        NAME(stats)(y, n, c, m1, m2);
        return;
    }
    if (WIDE(c) && n * c < 65536 * 64) { /* pairs as in reduce512; the sum of two squares is at most 2^31 */
        const int32_t end = n * c / 128 * 128;
        const __m512i one = _mm512_set1_epi16(1);
        __m512i sum[4], low[4], high[4];
        for (int i = 0; i < 4; i++)
            sum[i] = low[i] = high[i] = _mm512_setzero_si512();
        for (int32_t at = 0; at < end; at += 128)
            for (int i = 0; i < 4; i++) {
                soon(y + at + 32 * i);
                const __m512i v0 = _mm512_loadu_si512(y + at + 32 * (i / 2)), v1 = _mm512_loadu_si512(y + at + 32 * (i / 2) + 64);
                const __m512i p = i % 2 ? pair1(v0, v1) : pair0(v0, v1), sq = _mm512_madd_epi16(p, p);
                sum[i] = _mm512_dpwssd_epi32(sum[i], p, one);
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
                const int channel = (32 * (i / 2) + paired(i % 2, k)) % c;
                m1[channel] += ls[k];
                m2[channel] += (int64_t)ll[k] + ((int64_t)lh[k] << 16);
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

static void quant512(const uint8_t *u, uint8_t *a, int32_t n, int32_t bits)
{
    const int32_t end = bits == 4 ? n / 64 * 64 : 0;
    const __m512i half = _mm512_set1_epi8(8), mask = _mm512_set1_epi8(15);
    for (int32_t k = 0; k < end; k += 64)
        _mm512_storeu_si512(a + k, _mm512_and_si512(_mm512_srli_epi16(_mm512_adds_epu8(_mm512_loadu_si512(u + k), half), 4), mask));
    NAME(quant)(u + end, a + end, n - end, bits);
}

/* Up to 16 positions x 16 channels of bytes, transposed: out[ch * plane + x] for the positions in `mask`; those from n on are zero. */
static inline void transpose512(const uint8_t *in, int32_t pix, int32_t n, uint8_t *out, int32_t plane, __mmask16 mask)
{
    const __m512i lanes = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    __m512i z[4];
    for (int k = 0; k < 4; k++) { /* dword ch of z[k]: positions 4k to 4k + 3 of channel ch */
        if (pix == 16 && 4 * k + 4 <= n) {
            z[k] = _mm512_loadu_si512(in + 64 * k);
        } else {
            z[k] = _mm512_setzero_si512();
#define POSITION(i)                                                                                                                                \
    if (4 * k + (i) < n)                                                                                                                           \
        z[k] = _mm512_inserti32x4(z[k], _mm_loadu_si128((const __m128i *)(const void *)(in + (4 * k + (i)) * pix)), i);
            POSITION(0)
            POSITION(1)
            POSITION(2)
            POSITION(3)
#undef POSITION
        }
        z[k] = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(lanes, z[k]), bytes);
    }
    {
        const __m512i a = _mm512_unpacklo_epi32(z[0], z[1]), b = _mm512_unpackhi_epi32(z[0], z[1]);
        const __m512i c = _mm512_unpacklo_epi32(z[2], z[3]), d = _mm512_unpackhi_epi32(z[2], z[3]);
        z[0] = _mm512_unpacklo_epi64(a, c); /* lane i: channel 4i */
        z[1] = _mm512_unpackhi_epi64(a, c);
        z[2] = _mm512_unpacklo_epi64(b, d);
        z[3] = _mm512_unpackhi_epi64(b, d);
    }
#define CHANNEL(i, k) _mm_mask_storeu_epi8(out + (4 * (i) + (k)) * plane, mask, _mm512_extracti32x4_epi32(z[k], i));
#define CHANNELS(i) CHANNEL(i, 0) CHANNEL(i, 1) CHANNEL(i, 2) CHANNEL(i, 3)
    CHANNELS(0)
    CHANNELS(1)
    CHANNELS(2)
    CHANNELS(3)
#undef CHANNELS
#undef CHANNEL
}

static void planar512(const uint8_t *in, uint8_t *out, int32_t rows, int32_t cols, int32_t in_row, int32_t c_of, int32_t plane, int32_t row,
                      int32_t stride)
{
    const int32_t pix = c_of >> 16, c = c_of & 0xffff;
    if (c % 16) {
        NAME(planar)(in, out, rows, cols, in_row, c_of, plane, row, stride);
        return;
    }
    for (int32_t k = 0; k < c; k += 16)
        for (int32_t y = 0; y < rows; y++)
            for (int32_t ph = 0; ph < stride; ph++) {
                const int32_t n = (cols - ph + stride - 1) / stride;
                for (int32_t x = 0; x < row; x += 16) {
                    const int32_t wide = min32(row - x, 16);
                    transpose512(in + y * in_row + (ph + x * stride) * pix + k, stride * pix, n - x, out + k * plane + (y * stride + ph) * row + x, plane,
                                 (__mmask16)((1u << wide) - 1));
                }
            }
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
    .stats = stats512, .norm = norm512, .act = act512, .reduce = reduce512, .bn_back = bn_back512, .merge = merge512, .max16 = max512,     \
    .quant = quant512, .bias = NAME(bias), .scale = NAME(scale), .apply = NAME(apply), .planar = planar512, .interleave = interleave512, .unpack = unpack512,        \
    .pack = pack512, ROW_TABLE
#endif
