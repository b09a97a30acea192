#include "pack.h"

#define ROW_CHUNK 512u

int32_t fmpq_y_shift(const fmpq_record *r, int32_t amax, int n)
{
    const uint64_t k = (uint64_t)r->kh * r->kw * (uint32_t)(r->cin / r->groups);
    const int s = fmpq_bitlen64((uint64_t)fmpq_isqrt64(k) * (uint32_t)amax * ((1u << n) - 1u)) - 13;
    return s > 0 ? s : 0;
}

int32_t fmpq_e_shift(const fmpq_record *r, int n)
{
    const uint64_t k = (uint64_t)r->kh * r->kw * (uint32_t)(r->cout / r->groups);
    const int s = fmpq_bitlen64((uint64_t)fmpq_isqrt64(k) * 127u * ((1u << n) - 1u)) - 13;
    return s > 0 ? s : 0;
}

static void unpack(const fmpq_session *s, uint32_t r, uint32_t first, uint32_t count, int16_t *q)
{
    const fmpq_layer *l = &s->layer[r];
    fmpq_planes_unpack(s->base + s->slot[r].planes, s->d[r].theta, l->n + l->g, first, count, q);
    fmpq_effective(q, count, l->n, l->g);
}

void fmpq_deal_scalar(const int16_t *q, uint32_t n, uint8_t *w, uint32_t step)
{
    for (uint32_t k = 0; k < n; k += 4, w += step)
        for (uint32_t i = 0; i < 4; i++)
            w[i] = (uint8_t)q[k + i];
}

void fmpq_quads_scalar(const int16_t *q, uint32_t apart, uint32_t n, uint8_t *w, int32_t *sum)
{
    for (uint32_t k = 0; k < n; k++) {
        int32_t all = 0;
        for (uint32_t j = 0; j < 4; j++) {
            all += q[j * apart + k];
            w[4 * k + j] = (uint8_t)q[j * apart + k];
        }
        sum[k] -= 128 * all;
    }
}

/* weights of eight bits as twice their upper part, the lowest bit to `low` */
static void deal_split(const int16_t *q, uint32_t n, uint8_t *w, uint8_t *low, uint32_t step)
{
    for (uint32_t k = 0; k < n; k += 4, w += step, low += step)
        for (uint32_t i = 0; i < 4; i++) {
            w[i] = (uint8_t)(q[k + i] >> 1);
            low[i] = (uint8_t)(q[k + i] & 1);
        }
}

/* one output channel; its input channels fill fours */
static void pack_row(const fmpq_session *s, uint32_t i, uint32_t co, uint8_t *w, uint8_t *low, uint32_t step, int32_t *corr)
{
    const fmpq_record *r = &s->p->rec[i];
    const uint32_t len = s->d[i].row_len;
    const int split = s->layer[i].n > 7, signed_input = !r->input || fmpq_zero(s->p, r->input);
    int16_t q[ROW_CHUNK];
    for (uint32_t k0 = 0; k0 < len; k0 += ROW_CHUNK) {
        const uint32_t n = len - k0 < ROW_CHUNK ? len - k0 : ROW_CHUNK;
        unpack(s, i, co * len + k0, n, q);
        if (split)
            deal_split(q, n, w + k0 / 4 * step, low + k0 / 4 * step, step);
        else
            s->k->deal(q, n, w + k0 / 4 * step, step);
        for (uint32_t k = 0; signed_input && k < n; k++)
            *corr -= q[k] * fmpq_zero_read(s->p, r, s->plan.act_bits, (k0 + k) % r->cin);
    }
}

void fmpq_pack_forward(const fmpq_session *s, uint32_t i, uint32_t co0, uint32_t n_co, uint8_t *w, uint8_t *low, int32_t *corr)
{
    const fmpq_record *r = &s->p->rec[i];
    const fmpq_derived *d = &s->d[i];
    const uint32_t ci = r->cin, taps = (uint32_t)r->kh * r->kw, cop = fmpq_up(n_co, 16), cp = (uint32_t)d->cp;
    const int split = s->layer[i].n > 7, signed_input = !r->input || fmpq_zero(s->p, r->input);
    int16_t q[ROW_CHUNK];
    memset(corr, 0, cop * 4u);
    if (r->groups > 1) {
        int16_t *all = (int16_t *)(void *)w;
        unpack(s, i, 0, d->theta, all);
        for (uint32_t t = 0; signed_input && t < d->theta; t++) { /* the zero of the input channel that the weight reads */
            const uint32_t co = t / d->row_len, cig = ci / r->groups;
            corr[co] -= all[t] * fmpq_zero_read(s->p, r, s->plan.act_bits, co / ((uint32_t)r->cout / r->groups) * cig + t % cig);
        }
        return;
    }
    memset(w, 0, (size_t)taps * cp * cop);
    if (split)
        memset(low, 0, (size_t)taps * cp * cop);
    if (cp == ci) {
        for (uint32_t co = 0; co < n_co; co++)
            pack_row(s, i, co0 + co, w + co * 4, low + (split ? co * 4 : 0), cop * 4, corr + co);
        return;
    }
    for (uint32_t co = 0; co < n_co; co++)
        for (uint32_t tap = 0; tap < taps; tap++)
            for (uint32_t c0 = 0; c0 < ci; c0 += ROW_CHUNK) {
                const uint32_t n = ci - c0 < ROW_CHUNK ? ci - c0 : ROW_CHUNK;
                unpack(s, i, (co0 + co) * d->row_len + tap * ci + c0, n, q);
                for (uint32_t k = 0; k < n; k++) {
                    const uint32_t c = c0 + k, at = ((tap * (cp / 4) + c / 4) * cop + co) * 4 + c % 4;
                    w[at] = (uint8_t)(split ? q[k] >> 1 : q[k]);
                    if (split)
                        low[at] = (uint8_t)(q[k] & 1);
                    if (signed_input)
                        corr[co] -= q[k] * fmpq_zero_read(s->p, r, s->plan.act_bits, c);
                }
            }
}

/* Four output channels of one tap, from input channel c0 on: [input channel][4] bytes; sums: -128 times the weights */
static void pack_four(const fmpq_session *s, uint32_t i, uint32_t first, uint32_t n, uint8_t *w, uint8_t *low, int32_t *sum)
{
    const int split = s->layer[i].n > 7;
    int16_t q[4][ROW_CHUNK / 4];
    for (uint32_t j = 0; j < 4; j++)
        unpack(s, i, first + j * s->d[i].row_len, n, q[j]);
    if (!split) {
        s->k->quads(q[0], ROW_CHUNK / 4, n, w, sum);
        return;
    }
    for (uint32_t k = 0; k < n; k++) {
        for (uint32_t j = 0; j < 4; j++) {
            w[4 * k + j] = (uint8_t)(q[j][k] >> 1);
            low[4 * k + j] = (uint8_t)(q[j][k] & 1);
        }
        sum[k] -= 128 * (q[0][k] + q[1][k] + q[2][k] + q[3][k]);
    }
}

void fmpq_pack_backward(const fmpq_session *s, uint32_t i, const fmpq_geometry *t, int32_t phase, uint32_t ci0, uint32_t n_ci, uint8_t *w,
                        uint8_t *low, int32_t *corr)
{
    const fmpq_record *r = &s->p->rec[i];
    const fmpq_derived *d = &s->d[i];
    const uint32_t ci = r->cin, taps = (uint32_t)r->kh * r->kw, cip = fmpq_up(n_ci, 16), cot = (uint32_t)t->c;
    const int split = s->layer[i].n > 7;
    uint32_t slot_of[FMPQ_MAX_TAPS], phase_of[FMPQ_MAX_TAPS], slots = 0;
    int16_t q[ROW_CHUNK];
    if (r->groups > 1) {
        unpack(s, i, 0, d->theta, (int16_t *)(void *)w);
        return;
    }
    for (int32_t ph = 0; ph < r->stride * r->stride; ph++) {
        int32_t off[FMPQ_MAX_TAPS];
        uint8_t index[FMPQ_MAX_TAPS];
        const int32_t n = fmpq_taps_backward(r, t, ph / r->stride, ph % r->stride, off, index);
        const int wanted = phase < 0 || phase == ph;
        for (int32_t k = 0; k < n; k++) {
            slot_of[index[k]] = wanted ? slots++ : FMPQ_NONE;
            phase_of[index[k]] = phase < 0 ? (uint32_t)ph : 0;
        }
    }
    memset(corr, 0, (phase < 0 ? (size_t)r->stride * r->stride : 1u) * cip * 4u);
    memset(w, 0, (size_t)slots * cot * cip);
    if (split)
        memset(low, 0, (size_t)slots * cot * cip);
    for (uint32_t co = 0; co + 4 <= r->cout; co += 4)
        for (uint32_t tap = 0; tap < taps; tap++)
            for (uint32_t c0 = 0; c0 < n_ci && slot_of[tap] != FMPQ_NONE; c0 += ROW_CHUNK / 4) {
                const uint32_t n = n_ci - c0 < ROW_CHUNK / 4 ? n_ci - c0 : ROW_CHUNK / 4;
                const uint32_t at = ((slot_of[tap] * (cot / 4) + co / 4) * cip + c0) * 4;
                pack_four(s, i, co * d->row_len + tap * ci + ci0 + c0, n, w + at, low + (split ? at : 0), corr + phase_of[tap] * cip + c0);
            }
    for (uint32_t co = r->cout & ~3u; co < r->cout; co++)
        for (uint32_t tap = 0; tap < taps; tap++)
            for (uint32_t c0 = 0; c0 < n_ci && slot_of[tap] != FMPQ_NONE; c0 += ROW_CHUNK) {
                const uint32_t n = n_ci - c0 < ROW_CHUNK ? n_ci - c0 : ROW_CHUNK;
                unpack(s, i, co * d->row_len + tap * ci + ci0 + c0, n, q);
                const uint32_t at = ((slot_of[tap] * (cot / 4) + co / 4) * cip + c0) * 4 + co % 4;
                int32_t *sum = corr + phase_of[tap] * cip + c0;
                for (uint32_t k = 0; k < n; k++)
                    w[at + 4 * k] = (uint8_t)(split ? q[k] >> 1 : q[k]);
                for (uint32_t k = 0; split && k < n; k++)
                    low[at + 4 * k] = (uint8_t)(q[k] & 1);
                for (uint32_t k = 0; k < n; k++)
                    sum[k] -= 128 * q[k];
            }
}
