/* Kernels that change how values lie: planes of channels, groups of four positions, bit-planes. */
#ifndef FMPQ_LAYOUT_MVE_H
#define FMPQ_LAYOUT_MVE_H
#include "elementwise_mve.h"

static void planar(const uint8_t *in, uint8_t *out, int32_t rows, int32_t cols, int32_t in_row, int32_t c_of, int32_t plane, int32_t row, int32_t stride)
{
    const int32_t pix = c_of >> 16, c = c_of & 0xffff, step = stride * pix;
    const uint16x8_t at = steps_u16((uint32_t)step);
    if (step > 8191) {
        NAME(planar)(in, out, rows, cols, in_row, c_of, plane, row, stride);
        return;
    }
    for (int32_t y = 0; y < rows; y++)
        for (int32_t ph = 0; ph < stride; ph++) {
            const int32_t n = (cols - ph + stride - 1) / stride;
            uint8_t *to = out + (y * stride + ph) * row;
            const uint8_t *from = in + y * in_row + ph * pix;
            for (int32_t k = 0; k < c; k++, to += plane, from++) {
                const uint8_t *p = from;
                int32_t x = 0;
                for (; x + 8 <= n; x += 8, p += 8 * step)
                    vstrbq_u16(to + x, vldrbq_gather_offset_u16(p, at));
                for (; x < row; x += 8, p += 8 * step) /* zero past the width */
                    vstrbq_p_u16(to + x, vldrbq_gather_offset_z_u16(p, at, vctp16q((uint32_t)max32(n - x, 0))), vctp16q((uint32_t)(row - x)));
            }
        }
}

static void interleave(const int8_t *e, int8_t *out, int32_t rows, int32_t cols, int32_t pix, int32_t co, int32_t *sums)
{
    const int32_t cop = (co + 15) / 16 * 16, cols4 = (cols + 3) / 4;
    for (int32_t b = 0; b < co; b += 16) {
        const mve_pred16_t used = vctp8q((uint32_t)min32(co - b, 16));
        int16_t part[16];
        int16x8_t even = vdupq_n_s16(0), odd = vdupq_n_s16(0);
        int32_t steps = 0;
        for (int32_t y = 0; y < rows; y++) {
            const int8_t *from = e + y * cols * pix + b;
            int8_t *to = out + (y * cols4 * cop + b) * 4;
            for (int32_t x = 0; x < cols4; x++, from += 4 * pix, to += 4 * cop) {
                const int32_t left = cols - 4 * x;
                int8x16x4_t v;
                v.val[0] = vldrbq_z_s8(from, used);
                v.val[1] = left > 1 ? vldrbq_z_s8(from + pix, used) : vdupq_n_s8(0);
                v.val[2] = left > 2 ? vldrbq_z_s8(from + 2 * pix, used) : vdupq_n_s8(0);
                v.val[3] = left > 3 ? vldrbq_z_s8(from + 3 * pix, used) : vdupq_n_s8(0);
                vst4q_s8(to, v);
                for (int i = 0; i < 4; i++) {
                    even = vaddq_s16(even, vmovlbq_s8(v.val[i]));
                    odd = vaddq_s16(odd, vmovltq_s8(v.val[i]));
                }
                if (++steps < 60 && (x + 1 < cols4 || y + 1 < rows)) /* 60 * 4 * 127 < 2^15 */
                    continue;
                vst2q_s16(part, ((int16x8x2_t){{even, odd}}));
                for (int32_t i = 0; i < 16 && b + i < co; i++)
                    sums[b + i] += part[i];
                even = odd = vdupq_n_s16(0);
                steps = 0;
            }
        }
    }
}

/* 16 bits of a plane choose bytes of a vector */
ALWAYS_INLINE mve_pred16_t bits_at(const uint8_t *p, const int two)
{
    return (mve_pred16_t)(two ? p[0] | p[1] << 8 : p[0]);
}

ALWAYS_INLINE void unpack_16(const uint8_t *planes, uint32_t bytes, int n, int16_t *q, const int two)
{
    const uint8_t *p = planes + bytes;
    const mve_pred16_t sign = bits_at(planes, two);
    uint8x16_t low = vdupq_n_u8(0), high = low;
    int16x8x2_t v;
    for (int k = 0; k < n && k < 8; k++, p += bytes)
        low = vaddq_m_n_u8(low, low, (uint8_t)(1 << k), bits_at(p, two));
    if (n < 8) {
        const int8x16_t s = vnegq_m_s8(vreinterpretq_s8_u8(low), vreinterpretq_s8_u8(low), sign);
        v.val[0] = vmovlbq_s8(s);
        v.val[1] = vmovltq_s8(s);
    } else {
        const int8x16_t s = vpselq_s8(vdupq_n_s8(-1), vdupq_n_s8(0), sign);
        for (int k = 8; k < n; k++, p += bytes)
            high = vaddq_m_n_u8(high, high, (uint8_t)(1 << (k - 8)), bits_at(p, two));
        for (int i = 0; i < 2; i++) {
            const int16x8_t m = i ? vmovltq_s8(s) : vmovlbq_s8(s);
            const uint16x8_t l = i ? vmovltq_u8(low) : vmovlbq_u8(low), h = i ? vmovltq_u8(high) : vmovlbq_u8(high);
            v.val[i] = vsubq_s16(veorq_s16(vreinterpretq_s16_u16(vorrq_u16(l, vshlq_n_u16(h, 8))), m), m);
        }
    }
    if (two) {
        vst2q_s16(q, v);
    } else {
        int16_t all[16];
        vst2q_s16(all, v);
        vstrhq_s16(q, vldrhq_s16(all));
    }
}

static void unpack(const uint8_t *planes, uint32_t bytes, int n, uint32_t count, int16_t *q)
{
    for (; count >= 16; count -= 16, planes += 2, q += 16)
        unpack_16(planes, bytes, n, q, 1);
    if (count >= 8)
        unpack_16(planes, bytes, n, q, 0);
}

ALWAYS_INLINE void put_bits(uint8_t *p, mve_pred16_t bits, const int two)
{
    p[0] = (uint8_t)bits;
    if (two)
        p[1] = (uint8_t)(bits >> 8);
}

ALWAYS_INLINE void pack_16(uint8_t *planes, uint32_t bytes, int n, int16x8x2_t v, const int two)
{
    const int16x8_t m0 = vabsq_s16(v.val[0]), m1 = vabsq_s16(v.val[1]);
    /* a sign: the high byte's top bit */
    const int8x16_t signs = vmovntq_s16(vmovnbq_s16(vdupq_n_s8(0), vshrq_n_s16(v.val[0], 8)), vshrq_n_s16(v.val[1], 8));
    const int low_planes = n < 8 ? n : 8;
    int8x16_t mag = vmovntq_s16(vmovnbq_s16(signs, m0), m1);
    uint8_t *p = planes + (uint32_t)low_planes * bytes;
    put_bits(planes, vcmpltq_n_s8(signs, 0), two);
    /* the plane at hand is the top bit of a byte */
    mag = vshlq_r_s8(mag, 8 - low_planes);
    for (int k = low_planes; k > 0; k--, p -= bytes) {
        put_bits(p, vcmpltq_n_s8(mag, 0), two);
        mag = vaddq_s8(mag, mag);
    }
    if (n <= 8)
        return;
    mag = vmovntq_s16(vmovnbq_s16(mag, vshrq_n_s16(m0, 8)), vshrq_n_s16(m1, 8));
    mag = vshlq_r_s8(mag, 16 - n);
    p = planes + (uint32_t)n * bytes;
    for (int k = n; k > 8; k--, p -= bytes) {
        put_bits(p, vcmpltq_n_s8(mag, 0), two);
        mag = vaddq_s8(mag, mag);
    }
}

static void pack(uint8_t *planes, uint32_t bytes, int n, uint32_t count, const int16_t *q)
{
    for (; count >= 16; count -= 16, planes += 2, q += 16)
        pack_16(planes, bytes, n, vld2q_s16(q), 1);
    if (count >= 8) {
        int16_t all[16];
        vstrhq_s16(all, vldrhq_s16(q));
        vstrhq_s16(all + 8, vdupq_n_s16(0));
        pack_16(planes, bytes, n, vld2q_s16(all), 0);
    }
}
#endif
