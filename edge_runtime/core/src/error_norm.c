/* Error of a convolution record through its mask and batch-norm: E to e8 (docs/arithmetic.md, section 7). */
#include "pack.h"

typedef struct error_pass {
    fmpq_session *s;
    uint32_t r;
    fmpq_work_error w;
    uint8_t *work;
    int32_t *ce, *cx, *c0;
    fmpq_stream key;
} error_pass;

static int64_t *partial_sums(const error_pass *f, uint32_t worker)
{
    const uint32_t c = f->s->p->rec[f->r].cout;
    return (int64_t *)(void *)(f->work + f->w.sums) + (size_t)worker * c * 2;
}

static int32_t *partial_max(const error_pass *f, uint32_t worker)
{
    const uint32_t c = f->s->p->rec[f->r].cout;
    return (int32_t *)(void *)(f->work + f->w.sums + (size_t)f->s->plan.threads * c * 16) + (size_t)worker * c;
}

static void reduce(void *arg, uint32_t sample, uint32_t worker)
{
    const error_pass *f = arg;
    fmpq_session *s = f->s;
    const fmpq_record *r = &s->p->rec[f->r];
    const size_t at = (size_t)sample * s->d[f->r].out_size;
    uint8_t *mine = f->work + f->w.thread0 + worker * f->w.thread_size;
    const uint32_t strip = s->d[f->r].strip_out, row = (uint32_t)r->w_out * r->cout;
    int16_t *e = (int16_t *)(void *)(s->base + s->slot[f->r].e_out) + at;
    const int8_t *x = (const int8_t *)(s->base + s->slot[f->r].xhat) + at;
    int64_t *sums = partial_sums(f, worker);
    for (uint32_t y = 0; y < r->h_out; y += strip) {
        const uint32_t rows = r->h_out - y < strip ? r->h_out - y : strip;
        const uint8_t *u = fmpq_tensor_rows(s, f->r + 1, sample, y, rows, mine + f->w.stream);
        s->k->reduce(e + y * row, u, x + y * row, (int32_t)(rows * r->w_out), r->cout, sums, sums + r->cout, partial_max(f, worker));
    }
}

static void through_norm(void *arg, uint32_t sample, uint32_t worker)
{
    const error_pass *f = arg;
    fmpq_session *s = f->s;
    const fmpq_record *r = &s->p->rec[f->r];
    const size_t at = (size_t)sample * s->d[f->r].out_size;
    (void)worker;
    s->k->bn_back((int16_t *)(void *)(s->base + s->slot[f->r].e_out) + at, (int8_t *)(s->base + s->slot[f->r].xhat) + at, r->h_out * r->w_out,
                  r->cout, f->ce, f->cx, f->c0, f->key, (uint32_t)at);
}

static void add_up(const error_pass *f)
{
    const uint32_t c = f->s->p->rec[f->r].cout;
    int64_t *sums = partial_sums(f, 0);
    int32_t *mx = partial_max(f, 0);
    for (uint32_t t = 1; t < f->s->plan.threads; t++) {
        const int64_t *from = partial_sums(f, t);
        const int32_t *m = partial_max(f, t);
        for (uint32_t i = 0; i < 2 * c; i++)
            sums[i] += from[i];
        for (uint32_t i = 0; i < c; i++)
            mx[i] = m[i] > mx[i] ? m[i] : mx[i];
    }
}

/* Per-channel factors of e8 and the layer's exponent; bnd bounds the true magnitude, so e8 fills its range without saturating. */
static void factors(error_pass *f)
{
    fmpq_session *s = f->s;
    const fmpq_record *r = &s->p->rec[f->r];
    const int64_t m = (int64_t)s->count * r->h_out * r->w_out;
    const int16_t *coef = (const int16_t *)(const void *)(s->base + s->slot[f->r].coef);
    const int32_t *gacc = fmpq_params_i32(s, f->r, 0);
    const int64_t *s1 = partial_sums(f, 0), *s2 = s1 + r->cout;
    const int32_t *mx = partial_max(f, 0);
    const int constant = r->flags & FMPQ_BIASED; /* no statistics of the batch */
    uint64_t most = 0;
    int shift;
    for (uint32_t c = 0; c < r->cout; c++) {
        const int64_t g = (int64_t)fmpq_gamma(gacc[c]) * coef[2 * c];
        const int d = 24 - coef[2 * c + 1];
        uint64_t bnd, v;
        if (!mx[c])
            continue;
        bnd = (uint64_t)mx[c] + 1;
        if (!constant)
            bnd += (uint64_t)(fmpq_rdiv64((int64_t)fmpq_abs64(s1[c]), m) + fmpq_rdiv64(127 * (int64_t)fmpq_abs64(s2[c]), 1024 * m) + 1);
        v = ((fmpq_abs64(g) * bnd) >> 8) << d;
        most = v > most ? v : most;
    }
    shift = fmpq_bitlen64(most) - 7;
    s->layer[f->r].S = most ? shift : 0;
    for (uint32_t c = 0; c < r->cout; c++) {
        const int64_t g = (int64_t)fmpq_gamma(gacc[c]) * coef[2 * c];
        const int d = 24 - coef[2 * c + 1];
        const int64_t ce = most && mx[c] ? fmpq_rshift64(g, -(d + 14 - shift)) : 0;
        f->ce[c] = (int32_t)ce;
        f->c0[c] = constant ? 0 : (int32_t)-fmpq_rdiv64(ce * s1[c], m);
        f->cx[c] = constant ? 0 : (int32_t)-fmpq_rdiv64(ce * s2[c], 1024 * m);
    }
}

/* Fills tensors that the records from here on read through long chains. */
typedef struct refill_pass {
    fmpq_session *s;
    uint32_t r, i;
    fmpq_work_error w;
} refill_pass;

static void refill(void *arg, uint32_t sample, uint32_t worker)
{
    const refill_pass *f = arg;
    fmpq_session *s = f->s;
    uint8_t *mine = s->base + s->slot[f->i].work_b0 + f->w.thread0 + worker * f->w.thread_size;
    fmpq_tensor_make(s, f->r + 1, sample, 0, s->p->rec[f->r].h_out, mine + f->w.stream);
    memcpy(s->base + s->slot[f->r].again + (size_t)sample * s->d[f->r].out_size, mine + f->w.stream, s->d[f->r].out_size);
}

static void refill_streams(fmpq_session *s, uint32_t i)
{
    refill_pass f;
    f.s = s;
    f.i = i;
    f.w = fmpq_plan_error(s->p, &s->plan, s->d, i);
    for (f.r = 0; f.r < i; f.r++)
        if (s->slot[f.r].refill == i + 1) {
            fmpq_run(s, refill, &f, s->count);
            s->slot[f.r].refilled = 1;
        }
}

/* Of an error that an option-A shortcut passes on only the channels that it carries are needed: they move together. */
static void keep_carried(fmpq_session *s, uint32_t i)
{
    const fmpq_record *r = &s->p->rec[i];
    const uint32_t c = s->p->rec[r->skip - 1].cout;
    int16_t *e = (int16_t *)(void *)(s->base + s->slot[i].e_out);
    for (uint32_t p = 0; p < (uint32_t)r->h_out * r->w_out; p++)
        memmove(e + p * c, e + p * r->cout + r->skip_pad_c, c * 2u);
}

void fmpq_backward_error(fmpq_session *s, uint32_t i)
{
    const fmpq_record *r = &s->p->rec[i];
    fmpq_tensor_error *t = &s->err[i + 1];
    fmpq_layer *l = &s->layer[i];
    error_pass f;
    int32_t most = 0;
    f.s = s;
    f.r = i;
    f.w = fmpq_plan_error(s->p, &s->plan, s->d, i);
    f.work = s->base + s->slot[i].work_b0;
    f.ce = (int32_t *)(void *)(f.work + f.w.coef);
    f.cx = f.ce + r->cout;
    f.c0 = f.cx + r->cout;
    f.key = fmpq_stream_of(s->key, FMPQ_STREAM_ERROR(i));
    memset(f.work + f.w.sums, 0, (size_t)s->plan.threads * r->cout * 20);
    refill_streams(s, i);
    fmpq_run(s, reduce, &f, s->count);
    add_up(&f);
    factors(&f);
    for (uint32_t c = 0; c < r->cout; c++)
        most = partial_max(&f, 0)[c] > most ? partial_max(&f, 0)[c] : most;
    t->mx = most; /* of the masked error, which the skip passes on */
    l->ex = t->ex;
    l->ey = t->ex + l->S - 28 - fmpq_y_shift(r, s->d[i].amax, l->n);
    fmpq_run(s, through_norm, &f, s->count);
    fmpq_update_params(s, i, partial_sums(&f, 0), partial_sums(&f, 0) + r->cout);
    if (s->d[i].compact && r->skip_kind == FMPQ_SKIP_OPTION_A)
        keep_carried(s, i);
}
