/* Backward pass of the pools (docs/arithmetic.md, section 6). */
#include "pack.h"

static int32_t pool_back(const fmpq_record *r, const uint8_t *in, const int16_t *e, int16_t *out, int32_t x, int32_t y, int32_t c, int32_t scale,
                         int32_t over)
{
    int64_t sum = 0;
    const int32_t window = r->kh * r->kw;
    /* the windows that cover position (y, x) */
    for (int32_t i = 0; i < r->kh; i++)
        for (int32_t j = 0; j < r->kw; j++) {
            const int32_t ny = y + r->pad - i, nx = x + r->pad - j;
            int64_t v;
            if (ny < 0 || nx < 0 || ny % r->stride || nx % r->stride || ny / r->stride >= r->h_out || nx / r->stride >= r->w_out)
                continue;
            v = e[(ny / r->stride * r->w_out + nx / r->stride) * r->cout + c];
            if (r->kind == FMPQ_MAXPOOL) {
                /* is (y, x) the first maximum of that window? */
                const int32_t here = in[(y * r->w_in + x) * r->cin + c];
                int first = 1;
                for (int32_t a = 0; a < window && first; a++) {
                    const int32_t iy = ny + a / r->kw - r->pad, ix = nx + a % r->kw - r->pad;
                    int32_t other;
                    if (iy < 0 || ix < 0 || iy >= r->h_in || ix >= r->w_in)
                        continue;
                    other = in[(iy * r->w_in + ix) * r->cin + c];
                    first = a < i * r->kw + j ? other < here : other <= here;
                }
                v = first ? v : 0;
            } else if (scale >= 0) {
                v = fmpq_rdiv64(v * ((int64_t)1 << scale), window);
            }
            sum += v;
        }
    sum = fmpq_clamp64(fmpq_reven64(sum, over), -32767, 32767);
    out[(y * r->w_in + x) * r->cin + c] = (int16_t)sum;
    return (int32_t)(sum < 0 ? -sum : sum);
}

void fmpq_backward_pool(fmpq_session *s, uint32_t i)
{
    const fmpq_record *r = &s->p->rec[i];
    const fmpq_tensor_error *e = &s->err[i + 1];
    const fmpq_work_input w = fmpq_plan_input(s->p, &s->plan, s->d, i);
    uint8_t *mine = s->base + s->slot[i].work_b1 + w.thread0;
    const int32_t window = r->kh * r->kw;
    const int folded = r->kind == FMPQ_GLOBALPOOL && s->p->rec[s->p->n_records - 1u].input == i + 1;
    const int32_t scale = r->kind == FMPQ_MAXPOOL || folded ? -1 : fmpq_bitlen64((uint64_t)window) - 1;
    const int32_t ky = (r->kh + r->stride - 1) / r->stride, kx = (r->kw + r->stride - 1) / r->stride;
    /* windows that can cover one position; their sum keeps int16 */
    const uint32_t covers = (uint32_t)(ky < r->h_out ? ky : r->h_out) * (uint32_t)(kx < r->w_out ? kx : r->w_out);
    const int32_t over = fmpq_bitlen64(covers - 1u);
    int32_t most = 0;
    for (uint32_t b = 0; b < s->count; b++) {
        const int16_t *from = (const int16_t *)(const void *)(s->base + e->offset) + (size_t)b * s->d[i].out_size;
        int16_t *to = (int16_t *)(void *)(s->base + s->slot[i].e_in) + (size_t)b * s->d[i].in_size;
        const uint8_t *in = NULL;
        if (r->kind == FMPQ_GLOBALPOOL) { /* one window, every position the same */
            for (int32_t c = 0; c < r->cin; c++) {
                const int64_t v = scale < 0 ? from[c] : fmpq_clamp64(fmpq_rdiv64((int64_t)from[c] * ((int64_t)1 << scale), window), -32767, 32767);
                const int32_t a = (int32_t)(v < 0 ? -v : v);
                most = a > most ? a : most;
                to[c] = (int16_t)v;
            }
            for (int32_t k = 1; k < r->h_in * r->w_in; k++)
                memcpy(to + k * r->cin, to, r->cin * 2u);
            continue;
        }
        if (r->kind == FMPQ_MAXPOOL)
            in = fmpq_tensor(s, r->input, b, mine + w.stream);
        for (int32_t y = 0; y < r->h_in; y++)
            for (int32_t x = 0; x < r->w_in; x++)
                for (int32_t c = 0; c < r->cin; c++) {
                    const int32_t v = pool_back(r, in, from, to, x, y, c, scale, over);
                    most = v > most ? v : most;
                }
    }
    fmpq_contribute_input(s, i, e->ex - (scale > 0 ? scale : 0) + over, most);
}
