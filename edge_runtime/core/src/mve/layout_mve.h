/* Kernels that change how values lie: planes of channels, groups of four positions. */
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
#endif
