/* Weight and parameter updates, pruning (docs/arithmetic.md, sections 8 and 9; paper eq. 5-13). */
#include "internal.h"
#include "pack.h"

static void lasso_table(const fmpq_session *s, uint32_t r, int32_t *table)
{
    const fmpq_layer *l = &s->layer[r];
    const uint32_t bytes = fmpq_plane_bytes(s->d[r].theta);
    for (int i = 0; i < FMPQ_MAX_PLANES; i++)
        table[i] = 0;
    if (!s->hyper->has_lasso || !s->hyper->lasso[r].m || !s->last)
        return;
    for (int i = 0; i < l->n + l->g; i++) {
        const uint32_t k = fmpq_popcount(s->base + s->slot[r].planes + (uint32_t)(i + 1) * bytes, bytes);
        fmpq_fx f;
        int32_t v;
        if (!k)
            continue;
        f = fmpq_fx_mul(s->hyper->lr, s->hyper->lasso[r]);
        f = fmpq_fx_div(f, fmpq_fx_norm(fmpq_isqrt64((uint64_t)k << 20), -10));
        v = fmpq_fx_apply(1, fmpq_fx_scale(f, 24 + i));
        table[i] = v > 1 << 30 ? 1 << 30 : v;
    }
}

static int64_t lasso_of(const int32_t *table, int32_t q)
{
    uint32_t mag = (uint32_t)(q < 0 ? -q : q);
    int64_t sum = 0;
    for (int i = 0; mag; i++, mag >>= 1)
        sum += mag & 1u ? table[i] : 0;
    sum = fmpq_clamp64(sum, 0, 1 << 30);
    return q < 0 ? -sum : sum;
}

static fmpq_fx decay_of(const fmpq_session *s)
{
    return fmpq_fx_scale(fmpq_fx_mul(s->hyper->lr, s->hyper->decay), 24);
}

/* what decay and Lasso add to a weight */
static int64_t term_of(const fmpq_session *s, const fmpq_terms *t, fmpq_fx decay, int32_t q)
{
    return (decay.m ? fmpq_clamp64(fmpq_fx_apply(q, decay), -(1 << 30), 1 << 30) : 0) + (s->hyper->has_lasso ? lasso_of(t->lasso, q) : 0);
}

void fmpq_terms_of(const fmpq_session *s, uint32_t r, fmpq_terms *t)
{
    const fmpq_layer *l = &s->layer[r];
    const fmpq_fx decay = decay_of(s);
    const int32_t f = ((1 << l->n) - 1) << l->g;
    lasso_table(s, r, t->lasso);
    t->f = 0;
    if (f > FMPQ_TERMS || !s->last)
        return;
    for (int32_t q = -f; q <= f; q++) {
        const int64_t w = term_of(s, t, decay, q);
        if (w > 1 << 30 || w < -(1 << 30)) /* sums with U would not fit */
            return;
        t->table[q + f] = (int32_t)w;
    }
    t->f = f;
}

void fmpq_terms_scalar(int32_t *u, const int16_t *q, uint32_t n, const int32_t *table)
{
    for (uint32_t k = 0; k < n; k++) {
        const int32_t v = u[k], t = table[q[k]], h = (v >> 1) + (t >> 1); /* half of the sum, rounded down or one less */
        u[k] = (uint32_t)(h + (1 << 29)) < 1u << 30 ? v + t : h < 0 ? -(1 << 30) : 1 << 30;
    }
}

/* The same with the velocity of each weight, v8 * 2^ev; the largest magnitude of the sums. */
static uint32_t add_momentum(const fmpq_session *s, const fmpq_terms *t, fmpq_fx decay, int32_t *u, const int16_t *q, const int8_t *v8, int ev,
                             uint32_t len)
{
    const int32_t *table = t->table + t->f, rate = s->hyper->momentum_q15;
    const int some = decay.m || s->hyper->has_lasso;
    int32_t most = 0;
    for (uint32_t k = 0; k < len; k++) {
        const int64_t w = u[k] + (!some ? 0 : t->f ? table[q[k]] : term_of(s, t, decay, q[k]));
        const int32_t v = (int32_t)fmpq_clamp64(w + fmpq_rshift64((int64_t)v8[k] * ((int64_t)1 << ev) * rate, 15), -(1 << 30), 1 << 30), a = v < 0 ? -v : v;
        u[k] = v;
        most = a > most ? a : most;
    }
    return (uint32_t)most;
}

void fmpq_update_row(fmpq_session *s, uint32_t r, uint32_t row, uint32_t off, uint32_t len, int32_t *u, int16_t *q, const fmpq_terms *t)
{
    const fmpq_layer *l = &s->layer[r];
    const fmpq_derived *d = &s->d[r];
    const uint32_t first = row * d->row_len + off;
    const int planes = l->n + l->g;
    uint8_t *where = s->base + s->slot[r].planes;
    const fmpq_fx decay = decay_of(s);
    int8_t *v8 = NULL;
    uint8_t *ev = NULL;
    uint32_t most = 0;
    if (s->slot[r].sums != FMPQ_NONE && s->plan.accumulate) {
        int32_t *sum = (int32_t *)(void *)(s->base + s->slot[r].sums) + first;
        if (!s->first || !s->last)
            for (uint32_t k = 0; k < len; k++) {
                sum[k] = (int32_t)fmpq_clamp64((s->first ? 0 : (int64_t)sum[k]) + u[k], -(1 << 30), 1 << 30);
                u[k] = sum[k];
            }
    }
    if (!s->last)
        return;
    fmpq_planes_unpack(where, d->theta, planes, first, len, q);
    if (s->plan.momentum) {
        v8 = (int8_t *)(s->base + s->slot[r].velocity) + first;
        ev = s->base + s->slot[r].velocity_exp + row;
    }
    /* u is within 2^30 already: nothing to do where nothing is added */
    if (v8)
        most = add_momentum(s, t, decay, u, q, v8, *ev, len);
    else if (t->f && (decay.m || s->hyper->has_lasso))
        s->k->terms(u, q, len, t->table + t->f);
    else if (decay.m || s->hyper->has_lasso)
        for (uint32_t k = 0; k < len; k++)
            u[k] = (int32_t)fmpq_clamp64(u[k] + term_of(s, t, decay, q[k]), -(1 << 30), 1 << 30);
    if (v8) {
        const fmpq_stream key = fmpq_stream_of(s->key, FMPQ_STREAM_MOMENTUM(r));
        const int bits = fmpq_bitlen64(most) - 7, shift = bits < 0 ? 0 : bits;
        const uint32_t mask = (1u << shift) - 1u;
        *ev = (uint8_t)shift;
        for (uint32_t k = 0; k < len; k++)
            v8[k] = (int8_t)fmpq_clamp64(((int64_t)u[k] + (fmpq_rand(key, first + k) & mask)) >> shift, -127, 127);
    }
    s->k->apply(q, u, (int32_t)len, ((1 << l->n) - 1) << l->g, fmpq_stream_of(s->key, FMPQ_STREAM_WEIGHT(r)), first);
    fmpq_planes_pack(where, d->theta, planes, first, len, q);
}

/* One parameter: gradient g, value p, velocity v (may be null), sum over micro-batches (may be null). */
static void move(const fmpq_session *s, int32_t g, int32_t *p, int32_t *v, int32_t *sum, int32_t lim)
{
    const fmpq_fx decay = fmpq_fx_mul(s->hyper->lr, s->hyper->decay);
    int64_t w = fmpq_clamp64(g, -(1 << 28), 1 << 28);
    if (sum && (!s->first || !s->last)) {
        *sum = (int32_t)fmpq_clamp64((s->first ? 0 : (int64_t)*sum) + w, -(1 << 30), 1 << 30);
        w = *sum;
    }
    if (!s->last)
        return;
    if (s->plan.decay_bn)
        w += fmpq_clamp64(fmpq_fx_apply(*p, decay), -(1 << 28), 1 << 28);
    if (v) {
        w += fmpq_rshift64((int64_t)*v * s->hyper->momentum_q15, 15);
        *v = (int32_t)fmpq_clamp64(w, -(1 << 29), 1 << 29);
    }
    *p = (int32_t)fmpq_clamp64(*p - fmpq_clamp64(w, -(1 << 29), 1 << 29), -lim, lim);
}

static int32_t *at32(const fmpq_session *s, uint32_t offset)
{
    return offset == FMPQ_NONE ? NULL : (int32_t *)(void *)(s->base + offset);
}

void fmpq_update_params(fmpq_session *s, uint32_t i, const int64_t *s1, const int64_t *s2)
{
    const uint32_t n = s->p->rec[i].cout;
    const fmpq_fx lr = fmpq_fx_div(s->hyper->lr, fmpq_fx_norm(s->total_count, 0));
    const fmpq_fx nine = fmpq_fx_norm(9, 0);
    const int32_t ex = s->layer[i].ex;
    const fmpq_fx fg = fmpq_fx_scale(fmpq_fx_mul(lr, fmpq_fx_div(fmpq_fx_norm(1, 30), nine)), 16 + ex - 12);
    const fmpq_fx fb = fmpq_fx_scale(fmpq_fx_mul(lr, fmpq_fx_div(fmpq_fx_norm(1, 40), nine)), 8 + ex - 12);
    int32_t *gamma = fmpq_params_i32(s, i, 0), *beta = fmpq_params_i32(s, i, 1);
    int32_t *v = at32(s, s->slot[i].velocity_bn), *sum = at32(s, s->slot[i].sums_bn);
    for (uint32_t c = 0; c < n; c++) {
        if (!(s->p->rec[i].flags & FMPQ_BIASED))
            move(s, fmpq_fx_apply64(s2[c], fg), &gamma[c], v ? v + c : NULL, sum ? sum + c : NULL, 32767 << 16);
        move(s, fmpq_fx_apply64(s1[c], fb), &beta[c], v ? v + n + c : NULL, sum ? sum + n + c : NULL, 1 << 30);
    }
}

void fmpq_update_bias(fmpq_session *s, uint32_t i, const int64_t *gb)
{
    const fmpq_fx lr = fmpq_fx_div(s->hyper->lr, fmpq_fx_norm(s->total_count, 0));
    const fmpq_fx f = fmpq_fx_scale(lr, 20 - 15);
    int32_t *bias = fmpq_params_i32(s, i, 0);
    int32_t *v = at32(s, s->slot[i].velocity_bn), *sum = at32(s, s->slot[i].sums_bn);
    for (uint32_t k = 0; k < s->p->rec[i].cout; k++)
        move(s, fmpq_fx_apply64(gb[k], f), &bias[k], v ? v + k : NULL, sum ? sum + k : NULL, 1 << 30);
}

int fmpq_set_counts(const fmpq_session *s, uint32_t r, uint32_t *counts, uint32_t cap)
{
    uint32_t bytes;
    int planes;
    if (!s || !counts)
        return FMPQ_E_NULL;
    if (r >= s->p->n_records || !s->d[r].theta)
        return FMPQ_E_LAYER;
    planes = s->layer[r].n + s->layer[r].g;
    bytes = fmpq_plane_bytes(s->d[r].theta);
    for (int i = 0; i < planes && (uint32_t)i < cap; i++)
        counts[i] = fmpq_popcount(s->base + s->slot[r].planes + (uint32_t)(i + 1) * bytes, bytes);
    return FMPQ_OK;
}

/* Saturates the weights to one plane less and moves the running statistics to the new unit of y. */
static void drop_top(fmpq_session *s, uint32_t r)
{
    fmpq_layer *l = &s->layer[r];
    const fmpq_derived *d = &s->d[r];
    const fmpq_record *rec = &s->p->rec[r];
    uint8_t *planes = s->base + s->slot[r].planes;
    const int old = l->n + l->g;
    const int32_t f = ((1 << (l->n - 1)) - 1) << l->g;
    int16_t q[256];
    int k;
    for (uint32_t at = 0; at < d->theta; at += 256) {
        const uint32_t n = d->theta - at < 256 ? d->theta - at : 256;
        fmpq_planes_unpack(planes, d->theta, old, at, n, q);
        for (uint32_t j = 0; j < n; j++)
            q[j] = (int16_t)fmpq_clamp64(q[j], -f, f);
        fmpq_planes_pack(planes, d->theta, old, at, n, q);
    }
    if (rec->kind == FMPQ_CONV) {
        int32_t *rm = fmpq_params_i32(s, r, 2);
        int64_t *rv = fmpq_params_rv(s, r);
        const int64_t rv_most = ((int64_t)1 << 47) - 1;
        k = fmpq_y_shift(rec, d->amax, l->n) - fmpq_y_shift(rec, d->amax, l->n - 1);
        for (uint32_t c = 0; c < rec->cout; c++) {
            rm[c] = (int32_t)fmpq_clamp64((int64_t)rm[c] * ((int64_t)1 << k), -0x7fffffff, 0x7fffffff);
            /* a state that was loaded may hold anything: no product that does not fit */
            rv[c] = rv[c] > rv_most >> (2 * k) ? rv_most : rv[c] < 0 ? 0 : rv[c] * ((int64_t)1 << (2 * k));
        }
    }
    l->n = (uint8_t)(l->n - 1);
}

int fmpq_prune(fmpq_session *s, uint32_t eps_q16)
{
    if (!s)
        return FMPQ_E_NULL;
    if (eps_q16 > 65536)
        return FMPQ_E_ARGUMENT;
    for (uint32_t r = 0; r < s->p->n_records; r++) {
        const fmpq_derived *d = &s->d[r];
        const uint32_t bytes = fmpq_plane_bytes(d->theta);
        while (d->theta && s->layer[r].n > 1) {
            const uint8_t *top = s->base + s->slot[r].planes + (uint32_t)(s->layer[r].n + s->layer[r].g) * bytes;
            if (((uint64_t)fmpq_popcount(top, bytes) << 16) >= (uint64_t)eps_q16 * d->theta)
                break;
            drop_top(s, r);
        }
    }
    return FMPQ_OK;
}
