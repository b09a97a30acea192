/* Element-wise kernels where halves and quarters of a register help. Words of four channels or bytes; what four does not divide is left to
 * elementwise.inc. */
#ifndef FMPQ_ELEMENTWISE_DSP_H
#define FMPQ_ELEMENTWISE_DSP_H
#include "lanes.h"

/* four bytes from four values in 0…255 */
ALWAYS_INLINE uint32_t joined(uint32_t v0, uint32_t v1, uint32_t v2, uint32_t v3)
{
    return (uint32_t)low_halves((int32_t)v0, (int32_t)v2) | (uint32_t)low_halves((int32_t)v1, (int32_t)v3) << 8;
}

static void act(const int8_t *x, uint8_t *out, int32_t n, int32_t c, const int32_t *gacc, const int32_t *bacc, const uint8_t *skip, int32_t skip_shift,
                int32_t out_shift, int32_t offset)
{
    const int32_t half = (1 << (out_shift - 1)) + offset, unit = 1 << skip_shift;
    int32_t k = 0;
    for (; k + 4 <= c; k += 4) {
        int32_t g[4], b[4];
        int32_t even, odd;
        const int8_t *from = x + k;
        const uint8_t *other = skip ? skip + k : NULL;
        uint8_t *to = out + k;
        for (int32_t i = 0; i < 4; i++) {
            g[i] = max32(min32((int32_t)fmpq_rshift64(gacc[k + i], 16), 32767), -32767);
            b[i] = (int32_t)fmpq_rshift64(bacc[k + i], 8) + half;
        }
        even = low_halves(g[0], g[2]);
        odd = low_halves(g[1], g[3]);
        for (int32_t p = n; p > 0; p--, from += c, to += c) {
            const uint32_t w = word(from);
            const int32_t xe = signed_even(w), xo = signed_odd(w);
            int32_t v0 = multiply_low(xe, even, b[0]), v1 = multiply_low(xo, odd, b[1]);
            int32_t v2 = multiply_high(xe, even, b[2]), v3 = multiply_high(xo, odd, b[3]);
            if (other) {
                const uint32_t s = word(other);
                v0 += (int32_t)(s & 255u) * unit;
                v1 += (int32_t)((s >> 8) & 255u) * unit;
                v2 += (int32_t)((s >> 16) & 255u) * unit;
                v3 += (int32_t)(s >> 24) * unit;
                other += c;
            }
            put_word(to, joined((uint32_t)saturated_u8((uint32_t)(v0 >> out_shift)), (uint32_t)saturated_u8((uint32_t)(v1 >> out_shift)),
                                (uint32_t)saturated_u8((uint32_t)(v2 >> out_shift)), (uint32_t)saturated_u8((uint32_t)(v3 >> out_shift))));
        }
    }
    if (k < c)
        act_block(x + k, out + k, n, c, c - k, gacc + k, bacc + k, skip ? skip + k : 0, skip_shift, out_shift, offset);
}

/* the larger halves, the smaller halves */
ALWAYS_INLINE int32_t larger16(int32_t x, int32_t y)
{
    int32_t r;
    __asm__("ssub16 %0, %1, %2\n\tsel %0, %1, %2" : "=&r"(r) : "r"(x), "r"(y));
    return r;
}
ALWAYS_INLINE int32_t smaller16(int32_t x, int32_t y)
{
    int32_t r;
    __asm__("ssub16 %0, %1, %2\n\tsel %0, %2, %1" : "=&r"(r) : "r"(x), "r"(y));
    return r;
}

static int32_t max16(const int16_t *e, uint32_t n)
{
    int32_t high = 0, low = 0, top;
    for (; n >= 4; n -= 4, e += 4) {
        const int32_t a = (int32_t)word(e), b = (int32_t)word(e + 2);
        high = larger16(larger16(high, a), b);
        low = smaller16(smaller16(low, a), b);
    }
    top = max32(max32((int16_t)high, high >> 16), -min32((int16_t)low, low >> 16));
    for (; n > 0; n--, e++)
        top = max32(top, max32(*e, -*e));
    return top;
}

static void quant(const uint8_t *u, uint8_t *a, int32_t n, int32_t bits)
{
    if (bits == 8) {
        memcpy(a, u, (size_t)n);
        return;
    }
    for (; n >= 8; n -= 8, u += 8, a += 8) {
        const uint32_t x = (uint32_t)add_saturated_u8((int32_t)word(u), 0x08080808), y = (uint32_t)add_saturated_u8((int32_t)word(u + 4), 0x08080808);
        put_word(a, (x >> 4) & 0x0f0f0f0fu);
        put_word(a + 4, (y >> 4) & 0x0f0f0f0fu);
    }
    for (; n > 0; n--, u++, a++)
        *a = (uint8_t)min32((*u + 8) >> 4, 15);
}

static void bias(const int8_t *e, uint8_t *a, int32_t n)
{
    for (; n >= 4; n -= 4, e += 4, a += 4)
        put_word(a, word(e) ^ 0x80808080u);
    for (; n > 0; n--, e++, a++)
        *a = (uint8_t)(*e ^ -128);
}

static void scale(const int32_t *g, int32_t *u, int32_t n, fmpq_fx mult)
{
    const int32_t s = -mult.e, top = 1 << 30;
    if (!mult.m || s < 1 || s > 62) {
        NAME(scale)(g, u, n, mult);
        return;
    }
    if (s > 32) { /* the product's high half alone decides */
        const int32_t shift = s - 32, half = 1 << (shift - 1);
        for (; n > 0; n--)
            *u++ = max32(min32((high_product(*g++, (int32_t)mult.m) + half) >> shift, top), -top);
        return;
    }
    if (s < 2 || s > 31) {
        NAME(scale)(g, u, n, mult);
        return;
    }
    for (; n > 0; n--) {
        const int64_t v = (int64_t)*g++ * (int32_t)mult.m + ((int64_t)1 << (s - 1));
        const int32_t high = (int32_t)(v >> 32), quarter = 1 << (s - 2);
        if ((uint32_t)(high + quarter) >= 2u * (uint32_t)quarter) /* at least 2^30, less than -2^30 */
            *u++ = high < 0 ? -top : top;
        else
            *u++ = (int32_t)((uint32_t)high << (32 - s) | (uint32_t)v >> s);
    }
}

ALWAYS_INLINE int64_t add_square_low(int32_t v, int64_t sum)
{
    uint32_t low = (uint32_t)sum, high = (uint32_t)((uint64_t)sum >> 32);
    __asm__("smlalbb %0, %1, %2, %2" : "+r"(low), "+r"(high) : "r"(v));
    return (int64_t)((uint64_t)high << 32 | low);
}
ALWAYS_INLINE int64_t add_square_high(int32_t v, int64_t sum)
{
    uint32_t low = (uint32_t)sum, high = (uint32_t)((uint64_t)sum >> 32);
    __asm__("smlaltt %0, %1, %2, %2" : "+r"(low), "+r"(high) : "r"(v));
    return (int64_t)((uint64_t)high << 32 | low);
}

static void stats(const int16_t *y, int32_t n, int32_t c, int64_t *m1, int64_t *m2)
{
    int32_t k = 0;
    for (; k + 2 <= c; k += 2)
        for (int32_t p0 = 0; p0 < n; p0 += 65536) {
            int32_t a0 = 0, a1 = 0;
            int64_t b0 = 0, b1 = 0;
            const int16_t *from = y + p0 * c + k;
            for (int32_t p = min32(n - p0, 65536); p > 0; p--, from += c) {
                const int32_t v = (int32_t)word(from);
                a0 = multiply_low(v, 1, a0);
                a1 = multiply_high_low(v, 1, a1);
                b0 = add_square_low(v, b0);
                b1 = add_square_high(v, b1);
            }
            m1[k] += a0;
            m1[k + 1] += a1;
            m2[k] += b0;
            m2[k + 1] += b1;
        }
    if (k < c)
        stats_block(y + k, n, c, c - k, m1 + k, m2 + k);
}

static void bn_back(const int16_t *e, int8_t *x, int32_t n, int32_t c, const int32_t *ce, const int32_t *cx, const int32_t *c0, fmpq_stream key,
                    uint32_t base)
{
    for (int32_t k = 0; k < c; k++) {
        const uint32_t fe = (uint32_t)ce[k], fx = (uint32_t)cx[k], f0 = (uint32_t)c0[k];
        const int16_t *error = e + k;
        int8_t *hat = x + k;
        uint32_t at = base + (uint32_t)k;
        for (int32_t p = n; p > 0; p--, error += c, hat += c, at += (uint32_t)c) {
            const uint32_t sum = (uint32_t)*error * fe + f0 + (uint32_t)*hat * fx + (fmpq_rand(key, at) & 0x3fffffu);
            int32_t v;
            __asm__("ssat %0, #8, %1, asr #22" : "=r"(v) : "r"(sum));
            *hat = (int8_t)max32(v, -127);
        }
    }
}

static void norm(const int16_t *y, int8_t *x, int32_t n, int32_t c, const int32_t *a, const int32_t *b, const int32_t *sh)
{
    int32_t k = 0;
    for (; k + 2 <= c; k += 2) {
        const int32_t factors = low_halves(a[k], a[k + 1]), b0 = b[k], b1 = b[k + 1], s0 = sh[k], s1 = sh[k + 1]; /* a < 2^14 */
        const int16_t *from = y + k;
        int8_t *to = x + k;
        for (int32_t p = n; p > 0; p--, from += c, to += c) {
            const int32_t v = (int32_t)word(from);
            const int32_t v0 = saturated_s8((uint32_t)(multiply_low(v, factors, b0) >> s0));
            const int32_t v1 = saturated_s8((uint32_t)(multiply_high(v, factors, b1) >> s1));
            const uint32_t both = (uint32_t)add16(subtract_saturated16(low_halves(v0, v1), 0x7f817f81), 0x7f817f81); /* at least -127 */
            to[0] = (int8_t)both;
            to[1] = (int8_t)(both >> 16);
        }
    }
    if (k < c)
        norm_block(y + k, x + k, n, c, c - k, a + k, b + k, sh + k);
}

static void reduce(int16_t *e, const uint8_t *u, const int8_t *x, int32_t n, int32_t c, int64_t *s1, int64_t *s2, int32_t *mx)
{
    int32_t k = 0;
    for (; k + 2 <= c; k += 2) {
        int32_t high = 0, low = 0;
        int16_t *error = e + k;
        const uint8_t *out = u + k;
        const int8_t *hat = x + k;
        for (int32_t left = n; left > 0;) { /* 512 * 32767 * 127 < 2^31 */
            int32_t a0 = 0, a1 = 0, b0 = 0, b1 = 0;
            for (int32_t p = min32(left, 512); p > 0; p--, left--, error += c, out += c, hat += c) {
                int32_t v = (int32_t)word(error);
                v &= ((uint32_t)(out[0] - 1) < 254u ? 0xffff : 0) | ((uint32_t)(out[1] - 1) < 254u ? (int32_t)0xffff0000u : 0);
                put_word(error, (uint32_t)v);
                a0 = multiply_low(v, 1, a0);
                a1 = multiply_high_low(v, 1, a1);
                b0 = multiply_low(v, hat[0], b0);
                b1 = multiply_high_low(v, hat[1], b1);
                high = larger16(high, v);
                low = smaller16(low, v);
            }
            s1[k] += a0;
            s1[k + 1] += a1;
            s2[k] += b0;
            s2[k + 1] += b1;
        }
        mx[k] = max32(mx[k], max32((int16_t)high, -(int16_t)low));
        mx[k + 1] = max32(mx[k + 1], max32(high >> 16, -(low >> 16)));
    }
    if (k < c)
        reduce_block(e + k, u + k, x + k, n, c, c - k, s1 + k, s2 + k, mx + k);
}

/* a left shift, or a right shift with ties to even, of both halves */
ALWAYS_INLINE int32_t aligned(int32_t v, int32_t shift, int32_t half, const int right)
{
    int32_t a = (int16_t)v, b = v >> 16;
    if (!right)
        return (int32_t)((uint32_t)v << -shift & (0xffffu << -shift & 0xffffu) * 0x00010001u);
    a = (a + half + ((a >> shift) & 1)) >> shift;
    b = (b + half + ((b >> shift) & 1)) >> shift;
    return low_halves(a, b);
}

ALWAYS_INLINE int32_t merged(int16_t *e1, const int16_t *e2, uint32_t n, int32_t s1, int32_t s2, const int right1, const int right2)
{
    const int32_t h1 = right1 ? (1 << (s1 - 1)) - 1 : 0, h2 = right2 ? (1 << (s2 - 1)) - 1 : 0;
    int32_t high = 0, low = 0;
    for (; n >= 2; n -= 2, e1 += 2, e2 += 2) {
        int32_t v = add_saturated16(aligned((int32_t)word(e1), s1, h1, right1), aligned((int32_t)word(e2), s2, h2, right2));
        v = add16(subtract_saturated16(v, 0x00010001), 0x00010001); /* at least -32767 */
        put_word(e1, (uint32_t)v);
        high = larger16(high, v);
        low = smaller16(low, v);
    }
    return max32(max32((int16_t)high, high >> 16), -min32((int16_t)low, low >> 16));
}

static int32_t merge(int16_t *e1, const int16_t *e2, uint32_t n, int32_t s1, int32_t s2)
{
    const uint32_t even = n & ~1u;
    int32_t top, last;
    if (s1 > 15 || s2 > 15) /* one of them is nothing */
        return NAME(merge)(e1, e2, n, s1, s2);
    if (s1 > 0)
        top = s2 > 0 ? merged(e1, e2, even, s1, s2, 1, 1) : merged(e1, e2, even, s1, s2, 1, 0);
    else
        top = s2 > 0 ? merged(e1, e2, even, s1, s2, 0, 1) : merged(e1, e2, even, s1, s2, 0, 0);
    last = n & 1u ? NAME(merge)(e1 + even, e2 + even, 1, s1, s2) : 0;
    return max32(top, last);
}

/* four words of four bytes, transposed */
ALWAYS_INLINE void transpose(const uint32_t *in, uint32_t *out)
{
    const uint32_t p = (uint32_t)unsigned_even(in[0]) | (uint32_t)unsigned_even(in[1]) << 8;
    const uint32_t q = (uint32_t)unsigned_even(in[2]) | (uint32_t)unsigned_even(in[3]) << 8;
    const uint32_t r = (uint32_t)unsigned_odd(in[0]) | (uint32_t)unsigned_odd(in[1]) << 8;
    const uint32_t s = (uint32_t)unsigned_odd(in[2]) | (uint32_t)unsigned_odd(in[3]) << 8;
    out[0] = (uint32_t)low_halves((int32_t)p, (int32_t)q);
    out[1] = (uint32_t)low_halves((int32_t)r, (int32_t)s);
    out[2] = (uint32_t)high_halves((int32_t)p, (int32_t)q);
    out[3] = (uint32_t)high_halves((int32_t)r, (int32_t)s);
}

static void planar(const uint8_t *in, uint8_t *out, int32_t rows, int32_t cols, int32_t in_row, int32_t c_of, int32_t plane, int32_t row, int32_t stride)
{
    const int32_t pix = c_of >> 16, c = c_of & 0xffff, step = stride * pix;
    if (c % 4) {
        NAME(planar)(in, out, rows, cols, in_row, c_of, plane, row, stride);
        return;
    }
    for (int32_t y = 0; y < rows; y++)
        for (int32_t ph = 0; ph < stride; ph++) {
            const int32_t n = (cols - ph + stride - 1) / stride;
            for (int32_t k = 0; k < c; k += 4) {
                const uint8_t *from = in + y * in_row + ph * pix + k;
                uint8_t *to = out + k * plane + (y * stride + ph) * row;
                int32_t x = 0;
                for (; x + 4 <= n; x += 4, to += 4) {
                    uint32_t v[4], t[4];
                    for (int i = 0; i < 4; i++, from += step)
                        v[i] = word(from);
                    transpose(v, t);
                    put_word(to, t[0]);
                    put_word(to + plane, t[1]);
                    put_word(to + 2 * plane, t[2]);
                    put_word(to + 3 * plane, t[3]);
                }
                for (; x < row; x++, to++, from += step)
                    for (int32_t i = 0; i < 4; i++)
                        to[i * plane] = x < n ? from[i] : 0;
            }
        }
}

static void interleave(const int8_t *e, int8_t *out, int32_t rows, int32_t cols, int32_t pix, int32_t co, int32_t *sums)
{
    const int32_t cop = (co + 15) / 16 * 16, cols4 = (cols + 3) / 4;
    if (co % 16 || cols % 4) {
        NAME(interleave)(e, out, rows, cols, pix, co, sums);
        return;
    }
    for (int32_t c = 0; c < co; c += 4) {
        int32_t s[4] = {0, 0, 0, 0};
        for (int32_t y = 0; y < rows; y++) {
            const int8_t *from = e + y * cols * pix + c;
            int8_t *to = out + (y * cols4 * cop + c) * 4;
            for (int32_t x = cols4; x > 0; x--, to += 4 * cop) {
                uint32_t v[4], t[4];
                for (int i = 0; i < 4; i++, from += pix)
                    v[i] = word(from);
                transpose(v, t);
                for (int i = 0; i < 4; i++) {
                    put_word(to + 4 * i, t[i]);
                    s[i] = multiply_add(add16(signed_even(t[i]), signed_odd(t[i])), 0x00010001, s[i]);
                }
            }
        }
        for (int i = 0; i < 4; i++)
            sums[c + i] += s[i];
    }
}
#endif
