/* Element-wise kernels of the M-profile vector extension. Statistics and errors run along the positions of one channel, gathered, because
 * sums across a vector go into a register; the others along eight channels. What eight does not divide is left to elementwise.inc. */
#ifndef FMPQ_ELEMENTWISE_MVE_H
#define FMPQ_ELEMENTWISE_MVE_H
#include <arm_mve.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* 128 in each byte: what lies between a signed and an unsigned byte */
ALWAYS_INLINE uint8x16_t top_bits(void)
{
    return vdupq_n_u8(128);
}

/* 0, step, 2 step, … */
ALWAYS_INLINE uint16x8_t steps_u16(uint32_t step)
{
    return vmulq_n_u16(vidupq_n_u16(0, 1), (uint16_t)step);
}
ALWAYS_INLINE uint32x4_t steps_u32(uint32_t step)
{
    return vmulq_n_u32(vidupq_n_u32(0, 1), step);
}

static void stats(const int16_t *y, int32_t n, int32_t c, int64_t *m1, int64_t *m2)
{
    const uint16x8_t at = steps_u16((uint32_t)c);
    if (c > 8191) { /* the offsets would not fit */
        NAME(stats)(y, n, c, m1, m2);
        return;
    }
    for (int32_t k = 0; k < c; k++) {
        for (int32_t p0 = 0; p0 < n; p0 += 65528) {
            const int16_t *from = y + p0 * c + k;
            int32_t left = min32(n - p0, 65528), sum = 0;
            int64_t squares = 0;
            for (; left >= 8; left -= 8, from += 8 * c) {
                const int16x8_t v = vldrhq_gather_shifted_offset_s16(from, at);
                sum = vaddvaq_s16(sum, v);
                squares = vmlaldavaq_s16(squares, v, v);
            }
            if (left > 0) {
                const int16x8_t v = vldrhq_gather_shifted_offset_z_s16(from, at, vctp16q((uint32_t)left));
                sum = vaddvaq_s16(sum, v);
                squares = vmlaldavaq_s16(squares, v, v);
            }
            m1[k] += sum;
            m2[k] += squares;
        }
    }
}

/* every other of eight values */
ALWAYS_INLINE int32x4_t even_of(const int32_t *v)
{
    return vld2q_s32(v).val[0];
}
ALWAYS_INLINE int32x4_t odd_of(const int32_t *v)
{
    return vld2q_s32(v).val[1];
}

static void norm(const int16_t *y, int8_t *x, int32_t n, int32_t c, const int32_t *a, const int32_t *b, const int32_t *sh)
{
    int32_t k = 0;
    for (; k + 8 <= c; k += 8) {
        /* |a| < 2^14 */
        const int16x8_t factor = vmovntq_s32(vmovnbq_s32(vdupq_n_s16(0), even_of(a + k)), odd_of(a + k));
        const int32x4_t b0 = even_of(b + k), b1 = odd_of(b + k), s0 = vnegq_s32(even_of(sh + k)), s1 = vnegq_s32(odd_of(sh + k));
        const int16_t *from = y + k;
        int8_t *to = x + k;
        for (int32_t p = n; p > 0; p--, from += c, to += c) {
            const int16x8_t v = vldrhq_s16(from);
            const int32x4_t v0 = vshlq_s32(vaddq_s32(vmullbq_int_s16(v, factor), b0), s0);
            const int32x4_t v1 = vshlq_s32(vaddq_s32(vmulltq_int_s16(v, factor), b1), s1);
            int16x8_t w = vqmovntq_s32(vqmovnbq_s32(v, v0), v1);
            const int8x16_t bytes = vqmovnbq_s16(vreinterpretq_s8_s16(w), w);
            vstrbq_s16(to, vreinterpretq_s16_s8(vmaxq_s8(bytes, vdupq_n_s8(-127))));
        }
    }
    if (k < c)
        for (; k < c; k += LANES)
            norm_block(y + k, x + k, n, c, min32(c - k, LANES), a + k, b + k, sh + k);
}

static void act(const int8_t *x, uint8_t *out, int32_t n, int32_t c, const int32_t *gacc, const int32_t *bacc, const uint8_t *skip, int32_t skip_shift,
                int32_t out_shift, int32_t offset)
{
    int32_t k = 0;
    for (; k + 8 <= c; k += 8) {
        int16_t g[8];
        int32_t b[8];
        const int8_t *from = x + k;
        const uint8_t *other = skip ? skip + k : 0;
        uint8_t *to = out + k;
        int16x8_t gamma;
        int32x4_t b0, b1;
        for (int i = 0; i < 8; i++) {
            g[i] = (int16_t)max32(min32((int32_t)fmpq_rshift64(gacc[k + i], 16), 32767), -32767);
            b[i] = (int32_t)fmpq_rshift64(bacc[k + i], 8) + (1 << (out_shift - 1)) + offset;
        }
        gamma = vldrhq_s16(g);
        b0 = even_of(b);
        b1 = odd_of(b);
        for (int32_t p = n; p > 0; p--, from += c, to += c) {
            const int16x8_t v = vldrbq_s16(from);
            int32x4_t v0 = vaddq_s32(vmullbq_int_s16(v, gamma), b0), v1 = vaddq_s32(vmulltq_int_s16(v, gamma), b1);
            uint16x8_t w;
            if (other) {
                const uint16x8_t s = vldrbq_u16(other);
                v0 = vaddq_s32(v0, vshlq_r_s32(vreinterpretq_s32_u32(vmovlbq_u16(s)), skip_shift));
                v1 = vaddq_s32(v1, vshlq_r_s32(vreinterpretq_s32_u32(vmovltq_u16(s)), skip_shift));
                other += c;
            }
            w = vqmovunbq_s32(vreinterpretq_u16_s16(v), vshlq_r_s32(v0, -out_shift));
            w = vqmovuntq_s32(w, vshlq_r_s32(v1, -out_shift));
            vstrbq_u16(to, vreinterpretq_u16_u8(vqmovnbq_u16(vreinterpretq_u8_u16(w), w)));
        }
    }
    for (; k < c; k += LANES)
        act_block(x + k, out + k, n, c, min32(c - k, LANES), gacc + k, bacc + k, skip ? skip + k : 0, skip_shift, out_shift, offset);
}

static void reduce(int16_t *e, const uint8_t *u, const int8_t *x, int32_t n, int32_t c, int64_t *s1, int64_t *s2, int32_t *mx)
{
    const uint16x8_t at = steps_u16((uint32_t)c);
    if (c > 8191) {
        NAME(reduce)(e, u, x, n, c, s1, s2, mx);
        return;
    }
    for (int32_t k = 0; k < c; k++) {
        int16_t *error = e + k;
        const uint8_t *out = u + k;
        const int8_t *hat = x + k;
        int64_t product = 0;
        uint16_t top = 0;
        int32_t left = n;
        for (; left > 0;) {
            int32_t sum = 0;
            for (int32_t some = min32(left, 65528), m = some; m > 0; m -= 8, left -= 8, error += 8 * c, out += 8 * c, hat += 8 * c) {
                const mve_pred16_t in = vctp16q((uint32_t)m);
                int16x8_t v = vldrhq_gather_shifted_offset_z_s16(error, at, in);
                const uint16x8_t pass = vsubq_n_u16(vldrbq_gather_offset_z_u16(out, at, in), 1);
                v = vpselq_s16(v, vdupq_n_s16(0), vcmphiq_u16(vdupq_n_u16(254), pass));
                vstrhq_scatter_shifted_offset_p_s16(error, at, v, in);
                sum = vaddvaq_s16(sum, v);
                product = vmlaldavaq_s16(product, v, vldrbq_gather_offset_z_s16(hat, at, in));
                top = vmaxavq_s16(top, v);
            }
            s1[k] += sum;
        }
        s2[k] += product;
        mx[k] = max32(mx[k], top);
    }
}

/* mix() of four counters (docs/arithmetic.md, section 2) */
ALWAYS_INLINE uint32x4_t hashed(uint32x4_t x, uint32x4_t k1)
{
    x = veorq_u32(x, vshrq_n_u32(x, 16));
    x = vmulq_n_u32(x, 0x7feb352du);
    x = veorq_u32(x, k1);
    x = veorq_u32(x, vshrq_n_u32(x, 15));
    x = vmulq_n_u32(x, 0x846ca68bu);
    return veorq_u32(x, vshrq_n_u32(x, 16));
}

static void bn_back(const int16_t *e, int8_t *x, int32_t n, int32_t c, const int32_t *ce, const int32_t *cx, const int32_t *c0, fmpq_stream key,
                    uint32_t base)
{
    const uint32x4_t at = steps_u32((uint32_t)c), k1 = vdupq_n_u32(key.k1);
    for (int32_t k = 0; k < c; k++) {
        const int16_t *error = e + k;
        int8_t *hat = x + k;
        uint32x4_t counter = vaddq_n_u32(at, base + key.k0 + (uint32_t)k);
        for (int32_t m = n; m > 0; m -= 4, error += 4 * c, hat += 4 * c, counter = vaddq_n_u32(counter, (uint32_t)c * 4u)) {
            const mve_pred16_t in = vctp32q((uint32_t)m);
            const uint32x4_t dither = vshrq_n_u32(vshlq_n_u32(hashed(counter, k1), 10), 10);
            int32x4_t v = vmulq_n_s32(vldrhq_gather_shifted_offset_z_s32(error, at, in), ce[k]);
            v = vmlaq_n_s32(v, vldrbq_gather_offset_z_s32(hat, at, in), cx[k]);
            v = vaddq_s32(vaddq_n_s32(v, c0[k]), vreinterpretq_s32_u32(dither));
            /* saturated at 30 bits and shifted by 24: within a byte */
            v = vmaxq_s32(vshrq_n_s32(vqshlq_n_s32(v, 2), 24), vdupq_n_s32(-127));
            vstrbq_scatter_offset_p_s32(hat, at, v, in);
        }
    }
}

/* left shift, or right shift with ties to even, of |v| < 2^15: what falls to an even neighbour is one less before a rounding shift */
ALWAYS_INLINE int16x8_t aligned(int16x8_t v, int32_t shift, const int right)
{
    if (!right)
        return vshlq_r_s16(v, -shift);
    v = vsubq_s16(v, vbicq_s16(vdupq_n_s16(1), vshlq_r_s16(v, -shift)));
    return vrshlq_n_s16(v, -shift);
}

ALWAYS_INLINE int32_t merged(int16_t *e1, const int16_t *e2, uint32_t n, int32_t s1, int32_t s2, const int right1, const int right2)
{
    uint16_t top = 0;
    for (int32_t left = (int32_t)n; left > 0; left -= 8, e1 += 8, e2 += 8) {
        const mve_pred16_t in = vctp16q((uint32_t)left);
        int16x8_t v = vqaddq_s16(aligned(vldrhq_z_s16(e1, in), s1, right1), aligned(vldrhq_z_s16(e2, in), s2, right2));
        v = vmaxq_s16(v, vdupq_n_s16(-32767));
        vstrhq_p_s16(e1, v, in);
        top = vmaxavq_s16(top, v);
    }
    return top;
}

/* one of the two adds nothing */
ALWAYS_INLINE int32_t alone(int16_t *e1, const int16_t *from, uint32_t n, int32_t s, const int right)
{
    uint16_t top = 0;
    for (int32_t left = (int32_t)n; left > 0; left -= 8, e1 += 8, from += 8) {
        const mve_pred16_t in = vctp16q((uint32_t)left);
        const int16x8_t v = aligned(vldrhq_z_s16(from, in), s, right);
        vstrhq_p_s16(e1, v, in);
        top = vmaxavq_s16(top, v);
    }
    return top;
}

static int32_t merge(int16_t *e1, const int16_t *e2, uint32_t n, int32_t s1, int32_t s2)
{
    if (s1 > 15 && s2 > 15) { /* half a unit and less is nothing */
        memset(e1, 0, (size_t)n * 2);
        return 0;
    }
    if (s2 > 15)
        return s1 > 0 ? alone(e1, e1, n, s1, 1) : alone(e1, e1, n, s1, 0);
    if (s1 > 15)
        return s2 > 0 ? alone(e1, e2, n, s2, 1) : alone(e1, e2, n, s2, 0);
    if (s1 > 0)
        return s2 > 0 ? merged(e1, e2, n, s1, s2, 1, 1) : merged(e1, e2, n, s1, s2, 1, 0);
    return s2 > 0 ? merged(e1, e2, n, s1, s2, 0, 1) : merged(e1, e2, n, s1, s2, 0, 0);
}

static int32_t max16(const int16_t *e, uint32_t n)
{
    uint16_t top = 0;
    int32_t left = (int32_t)n;
    for (; left >= 8; left -= 8, e += 8)
        top = vmaxavq_s16(top, vldrhq_s16(e));
    if (left > 0)
        top = vmaxavq_s16(top, vldrhq_z_s16(e, vctp16q((uint32_t)left)));
    return top;
}

static void quant(const uint8_t *u, uint8_t *a, int32_t n, int32_t bits)
{
    if (bits == 8) {
        memcpy(a, u, (size_t)n);
        return;
    }
    for (; n > 0; n -= 16, u += 16, a += 16) {
        const mve_pred16_t in = vctp8q((uint32_t)n);
        vstrbq_p_u8(a, vshrq_n_u8(vqaddq_n_u8(vldrbq_z_u8(u, in), 8), 4), in);
    }
}

static void bias(const int8_t *e, uint8_t *a, int32_t n)
{
    for (; n > 0; n -= 16, e += 16, a += 16) {
        const mve_pred16_t in = vctp8q((uint32_t)n);
        vstrbq_p_u8(a, veorq_u8(vreinterpretq_u8_s8(vldrbq_z_s8(e, in)), top_bits()), in);
    }
}

static void scale(const int32_t *g, int32_t *u, int32_t n, fmpq_fx mult)
{
    const int32x4_t top = vdupq_n_s32(1 << 30), bottom = vdupq_n_s32(-(1 << 30)), m = vdupq_n_s32((int32_t)mult.m);
    const int32_t s = -mult.e;
    if (!mult.m || s < 1 || s > 62) {
        NAME(scale)(g, u, n, mult);
        return;
    }
    if (s > 32) { /* the product's high half alone decides */
        for (; n > 0; n -= 4, g += 4, u += 4) {
            const mve_pred16_t in = vctp32q((uint32_t)n);
            const int32x4_t v = vrshlq_n_s32(vmulhq_s32(vldrwq_z_s32(g, in), m), 32 - s);
            vstrwq_p_s32(u, vmaxq_s32(vminq_s32(v, top), bottom), in);
        }
        return;
    }
    for (; n > 0; n -= 4, g += 4, u += 4) {
        const mve_pred16_t in = vctp32q((uint32_t)n);
        const int32x4_t v = vldrwq_z_s32(g, in);
        int32x4_t high = vmulhq_s32(v, m);
        const uint32x4_t low = vreinterpretq_u32_s32(vmulq_s32(v, m)), half = vdupq_n_u32(1u << (s - 1)), sum = vaddq_u32(low, half);
        mve_pred16_t far;
        high = vaddq_m_n_s32(high, high, 1, vcmphiq_u32(half, sum)); /* carry */
        /* what saturates is far outside +-2^30; below, the low bits would spoil it */
        far = vcmpltq_n_s32(high, (int32_t)(~0u << (s - 1)));
        high = vorrq_s32(vqshlq_r_s32(high, 32 - s), vreinterpretq_s32_u32(vshlq_u32(sum, vdupq_n_s32(-s))));
        high = vpselq_s32(bottom, high, far);
        vstrwq_p_s32(u, vmaxq_s32(vminq_s32(high, top), bottom), in);
    }
}

static void apply(int16_t *q, const int32_t *v, int32_t n, int32_t f, fmpq_stream key, uint32_t base)
{
    const uint32x4_t k1 = vdupq_n_u32(key.k1);
    uint32x4_t counter = vaddq_n_u32(vidupq_n_u32(0, 1), base + key.k0);
    for (; n > 0; n -= 4, q += 4, v += 4, counter = vaddq_n_u32(counter, 4)) {
        const mve_pred16_t in = vctp32q((uint32_t)n);
        const int32x4_t r = vreinterpretq_s32_u32(vshrq_n_u32(vshlq_n_u32(hashed(counter, k1), 8), 8));
        const int32x4_t d = vsubq_s32(vldrhq_z_s32(q, in), vshrq_n_s32(vaddq_s32(vldrwq_z_s32(v, in), r), 24));
        vstrhq_p_s32(q, vmaxq_s32(vminq_s32(d, vdupq_n_s32(f)), vdupq_n_s32(-f)), in);
    }
}
#endif
