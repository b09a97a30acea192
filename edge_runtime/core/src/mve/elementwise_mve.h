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

/* `body` once for each four of n words; the last ones are predicated */
#define FOURS(body) "wlstp.32 lr, %[n], 2f\n1:\n\t" body "letp lr, 1b\n2:\n"
#define BETWEEN(x, low, high) "vmin.s32 " x ", " x ", %q[" high "]\n\tvmax.s32 " x ", " x ", %q[" low "]\n\t"
/* four counters in q0 become mix() of them (docs/arithmetic.md, section 2); q1 is lost */
#define HASH                                                                                                                                  \
    "vshr.u32 q1, q0, #16\n\tveor q0, q0, q1\n\tvmul.i32 q0, q0, %[first]\n\tveor q0, q0, %q[k1]\n\tvshr.u32 q1, q0, #15\n\tveor q0, q0, q1\n\t" \
    "vmul.i32 q0, q0, %[second]\n\tvshr.u32 q1, q0, #16\n\tveor q0, q0, q1\n\t"
#define HASH_FACTORS [first] "r"(0x7feb352du), [second] "r"(0x846ca68bu)

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
    for (; k + 8 <= c && skip_shift < 16; k += 8) {
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
#define ACT(sum)                                                                                                                                   \
    __asm__ volatile("dls lr, %[n]\n1:\n\tvldrb.s16 q0, [%[x]]\n\tvmullb.s16 q1, q0, %q[gamma]\n\tvmullt.s16 q2, q0, %q[gamma]\n\t"                 \
                     "vadd.i32 q1, q1, %q[b0]\n\tvadd.i32 q2, q2, %q[b1]\n\t" sum "vshl.s32 q1, %[down]\n\tvshl.s32 q2, %[down]\n\t"                 \
                     "vqmovunb.s32 q0, q1\n\tvqmovunt.s32 q0, q2\n\tvqmovnb.u16 q0, q0\n\tvstrb.16 q0, [%[out]]\n\t"                              \
                     "add %[x], %[c]\n\tadd %[out], %[c]\n\tle lr, 1b\n"                                                                         \
                     : [x] "+r"(from), [out] "+r"(to), [skip] "+r"(other)                                                                         \
                     : [n] "r"(n), [c] "r"(c), [gamma] "w"(gamma), [b0] "w"(b0), [b1] "w"(b1), [down] "r"(-out_shift),                            \
                       [up] "w"(vdupq_n_u16((uint16_t)(1u << skip_shift)))                                                                        \
                     : "lr", "memory", "q0", "q1", "q2", "q3")
        if (other)
            ACT("vldrb.u16 q0, [%[skip]]\n\tadd %[skip], %[c]\n\tvmullb.u16 q3, q0, %q[up]\n\tvmullt.u16 q0, q0, %q[up]\n\t"
                "vadd.i32 q1, q1, q3\n\tvadd.i32 q2, q2, q0\n\t");
        else
            ACT("");
#undef ACT
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
        register uint32_t low __asm__("r4") = 0, high __asm__("r5") = 0;
        uint32_t top = 0;
        for (int32_t left = n; left > 0; left -= 65528) { /* a sum of 16-bit errors that fits */
            int32_t sum = 0;
            __asm__ volatile("dlstp.16 lr, %[n]\n1:\n\tvldrh.u16 q0, [%[e], %q[at], uxtw #1]\n\tvldrb.u16 q1, [%[u], %q[at]]\n\t"
                             "vsub.i16 q1, q1, %q[one]\n\tvpt.u16 cs, q1, %q[most]\n\tvmovt.i16 q0, #0\n\tvstrh.16 q0, [%[e], %q[at], uxtw #1]\n\t"
                             "vaddva.s16 %[sum], q0\n\tvldrb.s16 q1, [%[x], %q[at]]\n\tvmlaldava.s16 %[low], %[high], q0, q1\n\tvmaxav.s16 %[top], q0\n\t"
                             "add %[e], %[e], %[c], lsl #1\n\tadd %[u], %[c]\n\tadd %[x], %[c]\n\tletp lr, 1b\n"
                             : [e] "+r"(error), [u] "+r"(out), [x] "+r"(hat), [sum] "+Te"(sum), [low] "+r"(low), [high] "+r"(high), [top] "+r"(top)
                             : [n] "r"(min32(left, 65528)), [c] "r"(8 * c), [one] "w"(vdupq_n_u16(1)), [most] "w"(vdupq_n_u16(254)), [at] "w"(at)
                             : "lr", "memory", "q0", "q1");
            s1[k] += sum;
        }
        s2[k] += (int64_t)((uint64_t)high << 32 | low);
        mx[k] = max32(mx[k], (int32_t)top);
    }
}

static void bn_back(const int16_t *e, int8_t *x, int32_t n, int32_t c, const int32_t *ce, const int32_t *cx, const int32_t *c0, fmpq_stream key,
                    uint32_t base)
{
    const uint32x4_t at = steps_u32((uint32_t)c), k1 = vdupq_n_u32(key.k1), dither = vdupq_n_u32(0x3fffff);
    const int32x4_t bottom = vdupq_n_s32(-127);
    for (int32_t k = 0; k < c; k++) {
        const int16_t *error = e + k;
        int8_t *hat = x + k;
        uint32x4_t counter = vaddq_n_u32(at, base + key.k0 + (uint32_t)k);
        /* saturated at 30 bits and shifted by 24: within a byte */
        __asm__ volatile(FOURS("vmov q0, %q[counter]\n\tvadd.i32 %q[counter], %q[counter], %[c4]\n\t" HASH "vand q0, q0, %q[dither]\n\t"
                               "vldrh.s32 q1, [%[e], %q[at], uxtw #1]\n\tvmla.s32 q0, q1, %[ce]\n\tvldrb.s32 q1, [%[x], %q[at]]\n\t"
                               "vmla.s32 q0, q1, %[cx]\n\tvadd.i32 q0, q0, %[c0]\n\tvqshl.s32 q0, q0, #2\n\tvshr.s32 q0, q0, #24\n\t"
                               "vmax.s32 q0, q0, %q[bottom]\n\tvstrb.32 q0, [%[x], %q[at]]\n\tadd %[e], %[e], %[c4], lsl #1\n\tadd %[x], %[c4]\n\t")
                         : [e] "+r"(error), [x] "+r"(hat), [counter] "+w"(counter)
                         : [n] "r"(n), [c4] "r"(4 * c), [ce] "r"(ce[k]), [cx] "r"(cx[k]), [c0] "r"(c0[k]), [at] "w"(at), HASH_FACTORS, [k1] "w"(k1),
                           [dither] "w"(dither), [bottom] "w"(bottom)
                         : "lr", "memory", "q0", "q1");
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
#endif
