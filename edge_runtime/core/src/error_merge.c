/* Contributions of several readers to the error of one tensor (docs/arithmetic.md, section 7). */
#include "pack.h"

static void merge_shifts(const fmpq_tensor_error *a, int32_t ex2, int32_t mx2, int32_t *xo, int32_t *s1, int32_t *s2)
{
    const int32_t t1 = fmpq_bitlen64((uint64_t)a->mx) + a->ex, t2 = fmpq_bitlen64((uint64_t)mx2) + ex2;
    *xo = (t1 > t2 ? t1 : t2) + 1 - 15;
    *s1 = *xo - a->ex;
    *s2 = *xo - ex2;
}

typedef struct merge_pass {
    const fmpq_session *s;
    int16_t *e1;
    const int16_t *e2;
    uint32_t size;
    int32_t s1, s2;
    int32_t top[64]; /* a worker each (fmpq_plan.threads is at most 64) */
} merge_pass;

static void merge_part(void *arg, uint32_t part, uint32_t worker)
{
    merge_pass *f = arg;
    const uint32_t step = f->size / f->s->count, at = part * step;
    const int32_t top = f->s->k->merge(f->e1 + at, f->e2 + at, step, f->s1, f->s2);
    f->top[worker] = top > f->top[worker] ? top : f->top[worker];
}

/* error of tensor t += other (same shape) */
static void merge_same(fmpq_session *s, uint32_t t, uint32_t other, int32_t ex2, int32_t mx2, uint32_t size)
{
    fmpq_tensor_error *a = &s->err[t];
    int16_t *e1 = (int16_t *)(void *)(s->base + a->offset);
    const int16_t *e2 = (const int16_t *)(const void *)(s->base + other);
    merge_pass f;
    int32_t xo;
    if (!mx2)
        return;
    if (!a->mx) {
        memcpy(e1, e2, (size_t)size * 2);
        a->ex = ex2;
        a->mx = mx2;
        return;
    }
    memset(&f, 0, sizeof(f));
    f.s = s;
    f.e1 = e1;
    f.e2 = e2;
    f.size = size;
    merge_shifts(a, ex2, mx2, &xo, &f.s1, &f.s2);
    fmpq_run(s, merge_part, &f, s->count);
    a->mx = 0;
    for (uint32_t k = 0; k < s->plan.threads; k++)
        a->mx = f.top[k] > a->mx ? f.top[k] : a->mx;
    a->ex = xo;
}

/* The error of a record with an option-A shortcut, spread to the even positions and the channels of the tensor that the shortcut reads. */
typedef struct spread_pass {
    const fmpq_session *s;
    const fmpq_record *r;
    int16_t *e1;
    const int16_t *e2;
    uint32_t out_size;
    uint32_t h, w, c;     /* of the tensor */
    uint32_t step, first; /* channels of e2 a position, first one carried */
    int32_t s1, s2;
    int32_t top[64]; /* a worker each */
} spread_pass;

/* the largest error among the channels that the shortcut carries */
static void carried_max(void *arg, uint32_t sample, uint32_t worker)
{
    spread_pass *f = arg;
    const int16_t *e2 = f->e2 + (size_t)sample * f->out_size + f->first;
    for (uint32_t k = 0; k < (uint32_t)f->r->h_out * f->r->w_out; k++) {
        const int32_t top = f->s->k->max16(e2 + (size_t)k * f->step, f->c);
        f->top[worker] = top > f->top[worker] ? top : f->top[worker];
    }
}

static void spread(void *arg, uint32_t sample, uint32_t worker)
{
    spread_pass *f = arg;
    int16_t *e1 = f->e1 + (size_t)sample * f->h * f->w * f->c;
    const int16_t *e2 = f->e2 + (size_t)sample * f->out_size + f->first;
    int32_t top;
    for (uint32_t y = 0; y < f->h; y++)
        for (uint32_t x = 0; x < f->w; x++) {
            int16_t *o = e1 + (y * f->w + x) * f->c;
            if ((y | x) & 1u)
                f->s->k->merge(o, o, f->c, f->s1, 63);
            else
                f->s->k->merge(o, e2 + (y / 2 * f->r->w_out + x / 2) * f->step, f->c, f->s1, f->s2);
        }
    top = f->s->k->max16(e1, f->h * f->w * f->c);
    f->top[worker] = top > f->top[worker] ? top : f->top[worker];
}

static int32_t most_of(spread_pass *f)
{
    int32_t most = 0;
    for (uint32_t k = 0; k < f->s->plan.threads; k++)
        most = f->top[k] > most ? f->top[k] : most;
    memset(f->top, 0, sizeof(f->top));
    return most;
}

/* error of tensor t += the option-A error of record i's output */
static void merge_option_a(fmpq_session *s, uint32_t t, uint32_t i)
{
    fmpq_tensor_error *a = &s->err[t];
    const fmpq_tensor_error *b = &s->err[i + 1];
    const fmpq_record *r = &s->p->rec[i], *from = &s->p->rec[t - 1];
    const int kept = s->d[i].compact; /* only the carried channels are there */
    spread_pass f;
    int32_t mx2;
    memset(&f, 0, sizeof(f));
    f.s = s;
    f.r = r;
    f.e1 = (int16_t *)(void *)(s->base + a->offset);
    f.e2 = (const int16_t *)(const void *)(s->base + b->offset);
    f.out_size = s->d[i].out_size;
    f.h = from->h_out;
    f.w = from->w_out;
    f.c = from->cout;
    f.step = kept ? f.c : r->cout;
    f.first = kept ? 0 : r->skip_pad_c;
    fmpq_run(s, carried_max, &f, s->count);
    mx2 = most_of(&f);
    if (!mx2)
        return;
    if (a->mx) {
        int32_t xo;
        merge_shifts(a, b->ex, mx2, &xo, &f.s1, &f.s2);
        a->ex = xo;
    } else {
        a->ex = b->ex;
    }
    fmpq_run(s, spread, &f, s->count);
    a->mx = most_of(&f);
}

/* A buffer of `size` elements holds an error to a tensor with (ex, mx): make it, or merge it into, that tensor's error. */
static void contribute(fmpq_session *s, uint32_t tensor, uint32_t offset, int merges, int32_t ex, int32_t mx, uint32_t size)
{
    fmpq_tensor_error *t = &s->err[tensor];
    if (merges == 1) {
        merge_same(s, tensor, offset, ex, mx, size);
        return;
    }
    t->offset = offset;
    t->ex = ex;
    t->mx = mx;
    if (merges == 2) {
        merge_option_a(s, tensor, t->pending);
        t->pending = FMPQ_NO_TENSOR;
    }
}

void fmpq_contribute_input(fmpq_session *s, uint32_t i, int32_t ex, int32_t mx)
{
    contribute(s, s->p->rec[i].input, s->slot[i].e_in, s->slot[i].e_in_merges, ex, mx, s->count * s->d[i].in_size);
}

/* The error of a concatenation, channel by channel, to the tensors it joins. */
void fmpq_backward_concat(fmpq_session *s, uint32_t i)
{
    const fmpq_record *r = &s->p->rec[i];
    const fmpq_tensor_error *e = &s->err[i + 1];
    const int16_t *from = (const int16_t *)(const void *)(s->base + e->offset);
    const uint32_t positions = s->count * r->h_out * r->w_out;
    uint32_t first = 0;
    for (int part = 0; part < 2; part++) {
        const uint32_t tensor = part ? r->skip : r->input, c = s->p->rec[tensor - 1].cout;
        const uint32_t offset = part ? s->slot[i].xhat : s->slot[i].e_in;
        int16_t *to = (int16_t *)(void *)(s->base + offset);
        for (uint32_t k = 0; k < positions; k++)
            memcpy(to + k * c, from + k * r->cout + first, c * 2u);
        contribute(s, tensor, offset, part ? s->slot[i].skip_merges : s->slot[i].e_in_merges, e->ex, s->k->max16(to, positions * c), positions * c);
        first += c;
    }
}

void fmpq_contribute_skip(fmpq_session *s, uint32_t i)
{
    const fmpq_record *r = &s->p->rec[i];
    const fmpq_tensor_error *e = &s->err[i + 1];
    if (r->skip_kind == FMPQ_SKIP_IDENTITY)
        contribute(s, r->skip, e->offset, s->slot[i].skip_merges, e->ex, e->mx, s->count * s->d[i].out_size);
    else if (r->skip_kind == FMPQ_SKIP_OPTION_A && s->slot[i].skip_merges)
        merge_option_a(s, r->skip, i);
    else if (r->skip_kind == FMPQ_SKIP_OPTION_A)
        s->err[r->skip].pending = (uint16_t)i;
}
