/* Convolutions with groups (depthwise included), in plain loops over the same tiles. */
#include "pack.h"

static int16_t narrow(int32_t acc, int32_t shift)
{
    return (int16_t)fmpq_clamp64(fmpq_reven64(acc, shift), -32767, 32767);
}

void fmpq_grouped_forward(const fmpq_record *r, const fmpq_igemm *j, const int16_t *q)
{
    const int32_t cig = r->cin / r->groups, cog = r->cout / r->groups, len = cig * r->kh * r->kw;
    for (int32_t y = 0; y < j->rows; y++)
        for (int32_t x = 0; x < j->cols; x++)
            for (int32_t co = 0; co < j->co; co++) {
                const uint8_t *a = j->a + y * j->a_row + x * j->a_pix + co / cog * cig;
                const int16_t *w = q + co * len;
                int32_t acc = j->corr[co];
                for (int32_t t = 0; t < j->taps; t++)
                    for (int32_t c = 0; c < cig; c++)
                        acc += a[j->tap_off[t] + c] * *w++;
                j->out[y * j->out_row + x * j->out_pix + co] = narrow(acc, j->shift);
            }
}

void fmpq_grouped_input(const fmpq_record *r, int32_t rows, const uint8_t *e, const fmpq_geometry *t, const int16_t *q, int32_t shift, int16_t *out)
{
    const int32_t cig = r->cin / r->groups, cog = r->cout / r->groups, len = cig * r->kh * r->kw;
    int32_t off[FMPQ_MAX_TAPS];
    uint8_t index[FMPQ_MAX_TAPS];
    for (int32_t y = 0; y < rows; y++)
        for (int32_t x = 0; x < r->w_in; x++) {
            const int32_t n = fmpq_taps_backward(r, t, y % r->stride, x % r->stride, off, index);
            const uint8_t *at = e + (y / r->stride * t->cols + x / r->stride) * t->c;
            for (int32_t c = 0; c < r->cin; c++) {
                int32_t acc = 0;
                for (int32_t k = 0; k < n; k++)
                    for (int32_t o = 0; o < cog; o++) {
                        const int32_t co = c / cig * cog + o;
                        acc += (at[off[k] + co] - 128) * q[co * len + index[k] * cig + c % cig];
                    }
                out[(y * r->w_in + x) * r->cin + c] = narrow(acc, shift);
            }
        }
}

void fmpq_grouped_weight(const fmpq_record *r, int32_t rows, const uint8_t *a, const fmpq_geometry *t, const int8_t *e, int32_t *g)
{
    const int32_t cig = r->cin / r->groups, cog = r->cout / r->groups, taps = r->kh * r->kw;
    for (int32_t y = 0; y < rows; y++)
        for (int32_t x = 0; x < r->w_out; x++) {
            const uint8_t *from = a + (y * t->cols + x) * t->c * r->stride;
            const int8_t *err = e + (y * r->w_out + x) * r->cout;
            for (int32_t co = 0; co < r->cout; co++)
                for (int32_t tap = 0; tap < taps; tap++) {
                    const uint8_t *in = from + (tap / r->kw * t->cols + tap % r->kw) * t->c + co / cog * cig;
                    for (int32_t c = 0; c < cig; c++)
                        g[(co * taps + tap) * cig + c] += in[c] * err[co];
                }
        }
}
