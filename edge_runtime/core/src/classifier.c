/* Linear classifier with softmax cross-entropy (docs/arithmetic.md, section 6), forward and backward. */
#include "internal.h"

static int32_t exp2_q16(int32_t fr) /* 2^fr - in 1/65536, fr in [0, 65536) */
{
    const int64_t f = fr;
    return (int32_t)(65536 + ((f * (45549 + ((f * (14917 + ((f * 5103) >> 16))) >> 16))) >> 16));
}

/* log2 of a positive integer in 1/65536 */
static int64_t log2_q16(uint64_t v)
{
    const int b = fmpq_bitlen64(v) - 1;
    uint64_t x = b <= 30 ? v << (30 - b) : v >> (b - 30);
    int64_t res = b;
    for (int i = 0; i < 16; i++) {
        x = (x * x) >> 30;
        res *= 2;
        if (x >= (uint64_t)1 << 31) {
            x >>= 1;
            res += 1;
        }
    }
    return res;
}

static fmpq_fx logit_factor(const fmpq_session *s, uint32_t r)
{
    const int32_t t = s->p->rec[s->p->rec[r].input - 1].t_out;
    return fmpq_fx_mul(s->layer[r].step, fmpq_fx_norm(3, t - 8));
}

static void unpack_all(const fmpq_session *s, uint32_t r, int16_t *q)
{
    const fmpq_layer *l = &s->layer[r];
    fmpq_planes_unpack(s->base + s->slot[r].planes, s->d[r].theta, l->n + l->g, 0, s->d[r].theta, q);
    fmpq_effective(q, s->d[r].theta, l->n, l->g);
}

/* logits z (in 1/65536 nat) become errors e; statistics are added up */
static void cross_entropy(fmpq_session *s, int32_t *z, uint32_t n, uint32_t label)
{
    int64_t sum = 0, loss;
    uint32_t best = 0;
    const int32_t zl = z[label];
    int32_t zmax;
    for (uint32_t i = 1; i < n; i++)
        best = z[i] > z[best] ? i : best;
    zmax = z[best];
    for (uint32_t i = 0; i < n; i++) {
        const int64_t gap = (int64_t)z[i] - zmax;
        const int64_t e2 = ((gap < -4194304 ? -4194304 : gap) * 94548) >> 16;
        const int64_t ip = e2 >> 16;
        const int64_t w = ip < -30 ? 0 : ((int64_t)exp2_q16((int32_t)(e2 & 0xffff)) << 8) >> -ip;
        z[i] = (int32_t)w;
        sum += w;
    }
    for (uint32_t i = 0; i < n; i++)
        z[i] = (int32_t)fmpq_rdiv64((int64_t)z[i] * 32768, sum) - (i == label ? 32768 : 0);
    loss = (((log2_q16((uint64_t)sum) - 24 * 65536) * 45426) >> 16) + zmax - zl;
    s->stats.loss_q16 += loss;
    s->stats.correct += best == label;
    s->stats.count += 1;
}

void fmpq_forward_classifier(fmpq_session *s, uint32_t i)
{
    const fmpq_record *r = &s->p->rec[i];
    const uint32_t cin = r->cin, classes = r->cout;
    uint8_t *features = s->base + s->slot[i].xhat;
    int32_t *z = (int32_t *)(void *)(s->base + s->slot[i].y16);
    uint8_t *work = s->base + s->slot[i].work_f;
    int16_t *q = (int16_t *)(void *)work;
    uint8_t *scratch = work + fmpq_up(s->d[i].theta * 2u, FMPQ_ALIGN);
    const int32_t *bias = fmpq_params_i32(s, i, 0);
    const fmpq_fx f = fmpq_fx_scale(logit_factor(s, i), 16);
    const int32_t zero = fmpq_zero(s->p, r->input);
    unpack_all(s, i, q);
    for (uint32_t b = 0; b < s->count; b++) {
        uint8_t *p = features + (size_t)b * cin;
        int32_t *zb = z + (size_t)b * classes;
        memcpy(p, fmpq_tensor(s, r->input, b, scratch), cin);
        for (uint32_t k = 0; k < classes; k++) {
            int64_t acc = 0;
            int64_t v;
            for (uint32_t c = 0; c < cin; c++)
                acc += (p[c] - zero) * q[k * cin + c];
            v = (int64_t)fmpq_fx_apply(acc, f) + fmpq_rshift64(bias[k], 4);
            zb[k] = (int32_t)fmpq_clamp64(v, -(1 << 27), 1 << 27);
        }
        if (s->predict)
            memcpy(s->predict + (size_t)b * classes, zb, classes * 4u);
        if (s->labels)
            cross_entropy(s, zb, classes, s->labels[b]);
    }
}

/* Error to the features: two passes, the first finds the exponent. */
void fmpq_backward_classifier(fmpq_session *s, uint32_t i)
{
    const fmpq_record *r = &s->p->rec[i];
    const fmpq_record *before = &s->p->rec[r->input - 1];
    const uint32_t cin = r->cin, classes = r->cout;
    const int32_t *e = (const int32_t *)(const void *)(s->base + s->slot[i].y16);
    const fmpq_work_input w = fmpq_plan_input(s->p, &s->plan, s->d, i);
    uint8_t *work = s->base + s->slot[i].work_b1;
    int16_t *q = (int16_t *)(void *)(work + w.pack);
    int64_t *row = (int64_t *)(void *)(work + w.maxima);
    int16_t *out = (int16_t *)(void *)(s->base + s->slot[i].e_in);
    fmpq_fx f = logit_factor(s, i);
    uint64_t most = 0;
    int sh = 0;
    int32_t ex = 0, mx = 0;
    if (before->kind == FMPQ_GLOBALPOOL)
        f = fmpq_fx_div(f, fmpq_fx_norm((uint64_t)before->kh * before->kw, 0));
    unpack_all(s, i, q);
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t b = 0; b < s->count; b++) {
            memset(row, 0, cin * 8u);
            for (uint32_t k = 0; k < classes; k++)
                for (uint32_t c = 0; c < cin; c++)
                    row[c] += (int64_t)e[(size_t)b * classes + k] * q[k * cin + c];
            for (uint32_t c = 0; c < cin; c++) {
                const uint64_t a = fmpq_abs64(row[c]);
                if (!pass) {
                    most = a > most ? a : most;
                } else {
                    const int64_t v = most ? fmpq_clamp64(fmpq_rshift64(row[c] * (int64_t)f.m, sh), -32767, 32767) : 0;
                    out[(size_t)b * cin + c] = (int16_t)v;
                    mx = v > mx ? (int32_t)v : -v > mx ? (int32_t)-v : mx;
                }
            }
        }
        if (!pass && most && f.m) {
            sh = fmpq_bitlen64(most * f.m) - 15;
            ex = sh + f.e - 15 - before->t_out;
        }
    }
    s->err[r->input].offset = s->slot[i].e_in;
    s->err[r->input].ex = ex;
    s->err[r->input].mx = mx;
}

/* weight gradient and update, one class a time */
void fmpq_backward_classifier_weight(fmpq_session *s, uint32_t i)
{
    const fmpq_record *r = &s->p->rec[i];
    const uint32_t cin = r->cin, classes = r->cout;
    const int32_t *e = (const int32_t *)(const void *)(s->base + s->slot[i].y16);
    const uint8_t *p = s->base + s->slot[i].xhat;
    const fmpq_work_weight w = fmpq_plan_weight(s->p, &s->plan, s->d, i);
    uint8_t *work = s->base + s->slot[i].work_b2;
    int32_t *u = (int32_t *)(void *)(work + w.row_u);
    int16_t *q = (int16_t *)(void *)(work + w.row_q);
    int64_t *g = (int64_t *)(void *)(work + w.g64), *gb = (int64_t *)(void *)(work + w.sums);
    const fmpq_layer *l = &s->layer[i];
    const int32_t zero = fmpq_zero(s->p, r->input);
    fmpq_fx mult = s->hyper->lr;
    fmpq_terms terms;
    mult.e += l->g;
    mult = fmpq_fx_div(fmpq_fx_div(mult, fmpq_fx_mul(l->step, l->step)), fmpq_fx_norm(s->total_count, 0));
    mult = fmpq_fx_scale(fmpq_fx_mul(mult, logit_factor(s, i)), 24 - 15);
    fmpq_terms_of(s, i, &terms);
    for (uint32_t k = 0; k < classes; k++) {
        memset(g, 0, cin * 8u);
        gb[k] = 0;
        for (uint32_t b = 0; b < s->count; b++) {
            const int64_t eb = e[(size_t)b * classes + k];
            gb[k] += eb;
            for (uint32_t c = 0; c < cin; c++)
                g[c] += (p[(size_t)b * cin + c] - zero) * eb;
        }
        for (uint32_t c = 0; c < cin; c++)
            u[c] = (int32_t)fmpq_clamp64(fmpq_fx_apply64(g[c], mult), -(1 << 30), 1 << 30);
        fmpq_update_row(s, i, k, 0, cin, u, q, &terms);
    }
    fmpq_update_bias(s, i, gb);
}
