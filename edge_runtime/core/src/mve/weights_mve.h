/* Kernels along the weights of a layer: the step of each, its noise, and its way from and to bit-planes. The loops are in assembly, for what
 * a compiler does not write: loops that predicate their own tails, planes' bits straight to predicates, all addresses in registers. */
#ifndef FMPQ_WEIGHTS_MVE_H
#define FMPQ_WEIGHTS_MVE_H
#include "layout_mve.h"

static void scale(const int32_t *g, int32_t *u, int32_t n, fmpq_fx mult)
{
    const int32x4_t top = vdupq_n_s32(1 << 30), bottom = vdupq_n_s32(-(1 << 30));
    const int32_t s = -mult.e;
    if (!mult.m || s < 1 || s > 62) {
        NAME(scale)(g, u, n, mult);
        return;
    }
    if (s < 32) { /* g shifted so that the product is rounded at bit 31; what saturates before would afterwards, m being 2^30 at least */
        __asm__ volatile(FOURS("vldrw.u32 q0, [%[g]], #16\n\tvqshl.s32 q0, %[shift]\n\tvqrdmulh.s32 q0, q0, %[m]\n\t" BETWEEN("q0", "bottom", "top")
                               "vstrw.32 q0, [%[u]], #16\n\t")
                         : [g] "+r"(g), [u] "+r"(u)
                         : [n] "r"(n), [shift] "r"(31 - s), [m] "r"(mult.m), [top] "w"(top), [bottom] "w"(bottom)
                         : "lr", "memory", "q0");
        return;
    }
    for (; n > 0; n -= 4, g += 4, u += 4) { /* the product's high half alone decides */
        const mve_pred16_t in = vctp32q((uint32_t)n);
        const int32x4_t m = vdupq_n_s32((int32_t)mult.m), x = vldrwq_z_s32(g, in);
        const int32x4_t v = s == 32 ? vrmulhq_s32(x, m) : vrshlq_n_s32(vmulhq_s32(x, m), 32 - s);
        vstrwq_p_s32(u, vmaxq_s32(vminq_s32(v, top), bottom), in);
    }
}

static void terms(int32_t *u, const int16_t *q, uint32_t n, const int32_t *table)
{
    const int32x4_t top = vdupq_n_s32(1 << 30), bottom = vdupq_n_s32(-(1 << 30));
    __asm__ volatile(FOURS("vldrh.s32 q0, [%[q]], #8\n\tvldrw.u32 q1, [%[table], q0, uxtw #2]\n\tvldrw.u32 q2, [%[u]]\n\tvqadd.s32 q1, q1, q2\n\t"
                           BETWEEN("q1", "bottom", "top") "vstrw.32 q1, [%[u]], #16\n\t")
                     : [u] "+r"(u), [q] "+r"(q)
                     : [n] "r"(n), [table] "r"(table), [top] "w"(top), [bottom] "w"(bottom)
                     : "lr", "memory", "q0", "q1", "q2");
}

static void apply(int16_t *q, const int32_t *v, int32_t n, int32_t f, fmpq_stream key, uint32_t base)
{
    const int32x4_t top = vdupq_n_s32(f), bottom = vdupq_n_s32(-f), noise = vdupq_n_s32(0xffffff);
    const uint32x4_t k1 = vdupq_n_u32(key.k1);
    uint32_t counter = base + key.k0;
    __asm__ volatile(FOURS("vidup.u32 q0, %[counter], #1\n\t" HASH "vand q0, q0, %q[noise]\n\tvldrw.u32 q1, [%[v]], #16\n\tvadd.i32 q0, q0, q1\n\t"
                           "vldrh.s32 q1, [%[q]]\n\tvshr.s32 q0, q0, #24\n\tvsub.i32 q0, q1, q0\n\t" BETWEEN("q0", "bottom", "top")
                           "vstrh.32 q0, [%[q]], #8\n\t")
                     : [q] "+r"(q), [v] "+r"(v), [counter] "+Te"(counter)
                     : [n] "r"(n), HASH_FACTORS, [k1] "w"(k1), [noise] "w"(noise), [top] "w"(top), [bottom] "w"(bottom)
                     : "lr", "memory", "q0", "q1");
}

static void column(const int32_t *g, int32_t *u, uint32_t n)
{
    const uint32x4_t at = steps_u32(16);
    __asm__ volatile(FOURS("vldrw.u32 q0, [%[g], %q[at], uxtw #2]\n\tadd %[g], #256\n\tvstrw.32 q0, [%[u]], #16\n\t")
                     : [g] "+r"(g), [u] "+r"(u)
                     : [n] "r"(n), [at] "w"(at)
                     : "lr", "memory", "q0");
}

static void deal(const int16_t *q, uint32_t n, uint8_t *w, uint32_t step)
{
    const uint32x4_t at = steps_u32(step);
    const uint32_t sixteens = n / 16;
    __asm__ volatile("wls lr, %[n], 2f\n1:\n\tvld20.16 {q0, q1}, [%[q]]\n\tvld21.16 {q0, q1}, [%[q]]!\n\tvmovnt.i16 q0, q1\n\t"
                     "vstrw.32 q0, [%[w], %q[at]]\n\tadd %[w], %[four]\n\tle lr, 1b\n2:\n"
                     : [q] "+r"(q), [w] "+r"(w)
                     : [n] "r"(sixteens), [four] "r"(4 * step), [at] "w"(at)
                     : "lr", "memory", "q0", "q1");
    fmpq_deal_scalar(q, n % 16, w, step);
}

static void quads(const int16_t *q, uint32_t apart, uint32_t n, uint8_t *w, int32_t *sum)
{
    const uint32_t sixteens = n / 16;
    const int16_t *q0 = q, *q1 = q0 + apart, *q2 = q1 + apart, *q3 = q2 + apart;
    __asm__ volatile("wls lr, %[n], 2f\n1:\n\t"
                     "vld20.16 {q0, q1}, [%[r0]]\n\tvld21.16 {q0, q1}, [%[r0]]!\n\tvmov q6, q0\n\tvmov q7, q1\n\tvmovnt.i16 q0, q1\n\t"
                     "vld20.16 {q1, q2}, [%[r1]]\n\tvld21.16 {q1, q2}, [%[r1]]!\n\tvadd.i16 q6, q6, q1\n\tvadd.i16 q7, q7, q2\n\tvmovnt.i16 q1, q2\n\t"
                     "vld20.16 {q2, q3}, [%[r2]]\n\tvld21.16 {q2, q3}, [%[r2]]!\n\tvadd.i16 q6, q6, q2\n\tvadd.i16 q7, q7, q3\n\tvmovnt.i16 q2, q3\n\t"
                     "vld20.16 {q3, q4}, [%[r3]]\n\tvld21.16 {q3, q4}, [%[r3]]!\n\tvadd.i16 q6, q6, q3\n\tvadd.i16 q7, q7, q4\n\tvmovnt.i16 q3, q4\n\t"
                     "vst40.8 {q0, q1, q2, q3}, [%[w]]\n\tvst41.8 {q0, q1, q2, q3}, [%[w]]\n\tvst42.8 {q0, q1, q2, q3}, [%[w]]\n\t"
                     "vst43.8 {q0, q1, q2, q3}, [%[w]]!\n\t"
                     "vld40.32 {q0, q1, q2, q3}, [%[sum]]\n\tvld41.32 {q0, q1, q2, q3}, [%[sum]]\n\tvld42.32 {q0, q1, q2, q3}, [%[sum]]\n\t"
                     "vld43.32 {q0, q1, q2, q3}, [%[sum]]\n\t"
                     "vshllb.s16 q4, q6, #7\n\tvsub.i32 q0, q0, q4\n\tvshllb.s16 q4, q7, #7\n\tvsub.i32 q1, q1, q4\n\t"
                     "vshllt.s16 q4, q6, #7\n\tvsub.i32 q2, q2, q4\n\tvshllt.s16 q4, q7, #7\n\tvsub.i32 q3, q3, q4\n\t"
                     "vst40.32 {q0, q1, q2, q3}, [%[sum]]\n\tvst41.32 {q0, q1, q2, q3}, [%[sum]]\n\tvst42.32 {q0, q1, q2, q3}, [%[sum]]\n\t"
                     "vst43.32 {q0, q1, q2, q3}, [%[sum]]!\n\tle lr, 1b\n2:\n"
                     : [r0] "+r"(q0), [r1] "+r"(q1), [r2] "+r"(q2), [r3] "+r"(q3), [w] "+r"(w), [sum] "+r"(sum)
                     : [n] "r"(sixteens)
                     : "lr", "memory", "q0", "q1", "q2", "q3", "q4", "q6", "q7");
    fmpq_quads_scalar(q0, apart, n % 16, w, sum);
}

/* ---- bit-planes: 16 bits of one choose the bytes of a vector ------------------------------------------------- */

ALWAYS_INLINE mve_pred16_t bits_at(const uint8_t *p, const int two)
{
    return (mve_pred16_t)(two ? p[0] | p[1] << 8 : p[0]);
}

/* any number of planes; 16 weights, or 8 */
static void unpack_some(const uint8_t *planes, uint32_t bytes, int n, int16_t *q, const int two)
{
    const uint8_t *p = planes + bytes;
    const mve_pred16_t sign = bits_at(planes, two);
    uint8x16_t low = vdupq_n_u8(0), high = low;
    const int8x16_t s = vpselq_s8(vdupq_n_s8(-1), vdupq_n_s8(0), sign);
    int16x8x2_t v;
    int16_t all[16];
    for (int k = 0; k < n && k < 8; k++, p += bytes)
        low = vaddq_m_n_u8(low, low, (uint8_t)(1 << k), bits_at(p, two));
    for (int k = 8; k < n; k++, p += bytes)
        high = vaddq_m_n_u8(high, high, (uint8_t)(1 << (k - 8)), bits_at(p, two));
    for (int i = 0; i < 2; i++) {
        const int16x8_t m = i ? vmovltq_s8(s) : vmovlbq_s8(s);
        const uint16x8_t l = i ? vmovltq_u8(low) : vmovlbq_u8(low), h = i ? vmovltq_u8(high) : vmovlbq_u8(high);
        v.val[i] = vsubq_s16(veorq_s16(vreinterpretq_s16_u16(vorrq_u16(l, vshlq_n_u16(h, 8))), m), m);
    }
    vst2q_s16(two ? q : all, v);
    if (!two)
        vstrhq_s16(q, vldrhq_s16(all));
}

static void pack_some(uint8_t *planes, uint32_t bytes, int n, const int16_t *q, const int two)
{
    int16_t all[16];
    if (!two) {
        vstrhq_s16(all, vldrhq_s16(q));
        vstrhq_s16(all + 8, vdupq_n_s16(0));
    }
    const int16x8x2_t v = vld2q_s16(two ? q : all);
    const int16x8_t m0 = vabsq_s16(v.val[0]), m1 = vabsq_s16(v.val[1]);
    int8x16_t bits = vmovntq_s16(vmovnbq_s16(vdupq_n_s8(0), vshrq_n_s16(v.val[0], 8)), vshrq_n_s16(v.val[1], 8)); /* a sign: the top bit */
    for (int k = n;; k--) { /* the plane at hand is the top bit of a byte: the sign, then n - 1 to 0 */
        const mve_pred16_t some = vcmpltq_n_s8(bits, 0);
        uint8_t *p = planes + (k == n ? 0 : (uint32_t)(k + 1) * bytes);
        p[0] = (uint8_t)some;
        if (two)
            p[1] = (uint8_t)(some >> 8);
        if (!k)
            return;
        if (k == n && n > 8)
            bits = vshlq_r_s8(vmovntq_s16(vmovnbq_s16(bits, vshrq_n_s16(m0, 8)), vshrq_n_s16(m1, 8)), 16 - n);
        else if (k == n || k == 8)
            bits = vshlq_r_s8(vmovntq_s16(vmovnbq_s16(bits, m0), m1), 8 - (n < 8 ? n : 8));
        else
            bits = vaddq_s8(bits, bits);
    }
}

/* Up to six planes, 16 weights at a time; a register for the address in each plane. */
enum { FEW_PLANES = 6 };
#define BITS_OF(k) "ldrh %[t], [%[p" #k "]], #2\n\tvmsr p0, %[t]\n\t"
#define ADD_BITS(k, value) BITS_OF(k) "vpst\n\tvaddt.i8 q0, q0, " value "\n\t"
#define ADD_1 "vmov.i32 q0, #0\n\t" ADD_BITS(1, "q2")
#define ADD_2 ADD_1 ADD_BITS(2, "q3")
#define ADD_3 ADD_2 ADD_BITS(3, "q4")
#define ADD_4 ADD_3 ADD_BITS(4, "q5")
#define ADD_5 ADD_4 ADD_BITS(5, "q6")
#define ADD_6 ADD_5 ADD_BITS(6, "q7")
#define UNPACK(add)                                                                                                                               \
    __asm__ volatile("vmov.i8 q2, #1\n\tvmov.i8 q3, #2\n\tvmov.i8 q4, #4\n\tvmov.i8 q5, #8\n\tvmov.i8 q6, #16\n\tvmov.i8 q7, #32\n\t"              \
                     "dls lr, %[n]\n1:\n\t" add BITS_OF(0) "vpst\n\tvnegt.s8 q0, q0\n\tvmovlt.s8 q1, q0\n\tvmovlb.s8 q0, q0\n\t"                     \
                     "vst20.16 {q0, q1}, [%[q]]\n\tvst21.16 {q0, q1}, [%[q]]!\n\tle lr, 1b\n"                                                      \
                     : [q] "+r"(q), [p0] "+r"(p[0]), [p1] "+r"(p[1]), [p2] "+r"(p[2]), [p3] "+r"(p[3]), [p4] "+r"(p[4]), [p5] "+r"(p[5]),         \
                       [p6] "+r"(p[6]), [t] "=&r"(t)                                                                                              \
                     : [n] "r"(sixteens)                                                                                                          \
                     : "lr", "memory", "q0", "q1", "q2", "q3", "q4", "q5", "q6", "q7");                                                           \
    break

static void unpack(const uint8_t *planes, uint32_t bytes, int n, uint32_t count, int16_t *q)
{
    const uint32_t sixteens = n <= FEW_PLANES ? count / 16 : 0;
    if (sixteens) {
        const uint8_t *p[FEW_PLANES + 1];
        uint32_t t;
        for (uint32_t k = 0; k <= FEW_PLANES; k++) /* only those up to n are read */
            p[k] = planes + k * bytes;
        switch (n) {
        case 1: UNPACK(ADD_1);
        case 2: UNPACK(ADD_2);
        case 3: UNPACK(ADD_3);
        case 4: UNPACK(ADD_4);
        case 5: UNPACK(ADD_5);
        default: UNPACK(ADD_6);
        }
        planes += 2 * sixteens;
        count -= 16 * sixteens;
    }
    for (; count >= 16; count -= 16, planes += 2, q += 16)
        unpack_some(planes, bytes, n, q, 1);
    if (count >= 8)
        unpack_some(planes, bytes, n, q, 0);
}

#define PUT_BITS(k) "vcmp.s8 lt, q0, zr\n\tvmrs %[t], p0\n\tstrh %[t], [%[p" #k "]], #2\n\t"
#define PUT_1 PUT_BITS(1)
#define PUT_2 PUT_BITS(2) "vadd.i8 q0, q0, q0\n\t" PUT_1
#define PUT_3 PUT_BITS(3) "vadd.i8 q0, q0, q0\n\t" PUT_2
#define PUT_4 PUT_BITS(4) "vadd.i8 q0, q0, q0\n\t" PUT_3
#define PUT_5 PUT_BITS(5) "vadd.i8 q0, q0, q0\n\t" PUT_4
#define PUT_6 PUT_BITS(6) "vadd.i8 q0, q0, q0\n\t" PUT_5
#define PACK(put)                                                                                                                                 \
    __asm__ volatile("dls lr, %[n]\n1:\n\tvld20.16 {q0, q1}, [%[q]]\n\tvld21.16 {q0, q1}, [%[q]]!\n\tvmovnt.i16 q0, q1\n\t" PUT_BITS(0)              \
                     "vabs.s8 q0, q0\n\tvshl.s8 q0, %[up]\n\t" put "le lr, 1b\n"                                                                  \
                     : [q] "+r"(q), [p0] "+r"(p[0]), [p1] "+r"(p[1]), [p2] "+r"(p[2]), [p3] "+r"(p[3]), [p4] "+r"(p[4]), [p5] "+r"(p[5]),         \
                       [p6] "+r"(p[6]), [t] "=&r"(t)                                                                                              \
                     : [n] "r"(sixteens), [up] "r"(8 - n)                                                                                         \
                     : "lr", "memory", "q0", "q1");                                                                                               \
    break

static void pack(uint8_t *planes, uint32_t bytes, int n, uint32_t count, const int16_t *q)
{
    const uint32_t sixteens = n <= FEW_PLANES ? count / 16 : 0;
    if (sixteens) {
        uint8_t *p[FEW_PLANES + 1];
        uint32_t t;
        for (uint32_t k = 0; k <= FEW_PLANES; k++) /* only those up to n are written */
            p[k] = planes + k * bytes;
        switch (n) {
        case 1: PACK(PUT_1);
        case 2: PACK(PUT_2);
        case 3: PACK(PUT_3);
        case 4: PACK(PUT_4);
        case 5: PACK(PUT_5);
        default: PACK(PUT_6);
        }
        planes += 2 * sixteens;
        count -= 16 * sixteens;
    }
    for (; count >= 16; count -= 16, planes += 2, q += 16)
        pack_some(planes, bytes, n, q, 1);
    if (count >= 8)
        pack_some(planes, bytes, n, q, 0);
}
#endif
