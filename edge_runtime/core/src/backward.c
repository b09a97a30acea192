/* Backward pass of a convolution record (docs/arithmetic.md, section 7): error through batch-norm, error to the input, weight gradient. */
#include "pack.h"

/* ---- error through mask and batch-norm -------------------------------------------------------------------- */

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
    const uint8_t *u = fmpq_tensor(s, f->r + 1, sample, mine + f->w.stream);
    int64_t *sums = partial_sums(f, worker);
    s->k->reduce((int16_t *)(void *)(s->base + s->slot[f->r].e_out) + at, u, (int8_t *)(s->base + s->slot[f->r].xhat) + at, r->h_out * r->w_out,
                 r->cout, sums, sums + r->cout, partial_max(f, worker));
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
    uint64_t most = 0;
    int shift;
    for (uint32_t c = 0; c < r->cout; c++) {
        const int64_t g = (int64_t)fmpq_gamma(gacc[c]) * coef[2 * c];
        const int d = 24 - coef[2 * c + 1];
        uint64_t bnd, v;
        if (!mx[c])
            continue;
        bnd = (uint64_t)(mx[c] + fmpq_rdiv64((int64_t)fmpq_abs64(s1[c]), m) + 1 + fmpq_rdiv64(127 * (int64_t)fmpq_abs64(s2[c]), 1024 * m) + 1);
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
        f->c0[c] = (int32_t)-fmpq_rdiv64(ce * s1[c], m);
        f->cx[c] = (int32_t)-fmpq_rdiv64(ce * s2[c], 1024 * m);
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
    fmpq_tensor_make(s, f->r + 1, sample, mine + f->w.stream);
    memcpy(s->base + s->slot[f->r].again + (size_t)sample * s->d[f->r].out_size, mine + f->w.stream, s->d[f->r].out_size);
}

static void refill_streams(fmpq_session *s, uint32_t i)
{
    refill_pass f;
    f.s = s;
    f.i = i;
    f.w = fmpq_plan_error(s->p, &s->plan, i);
    for (f.r = 0; f.r < i; f.r++)
        if (s->slot[f.r].refill == i + 1) {
            fmpq_run(s, refill, &f, s->count);
            s->slot[f.r].refilled = 1;
        }
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
    f.w = fmpq_plan_error(s->p, &s->plan, i);
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
}

/* ---- contributions to the error of a tensor --------------------------------------------------------------- */

static void merge_shifts(const fmpq_tensor_error *a, int32_t ex2, int32_t mx2, int32_t *xo, int32_t *s1, int32_t *s2)
{
    const int32_t t1 = fmpq_bitlen64((uint64_t)a->mx) + a->ex, t2 = fmpq_bitlen64((uint64_t)mx2) + ex2;
    *xo = (t1 > t2 ? t1 : t2) + 1 - 15;
    *s1 = *xo - a->ex;
    *s2 = *xo - ex2;
}

/* error of tensor t += other (same shape) */
static void merge_same(fmpq_session *s, uint32_t t, uint32_t other, int32_t ex2, int32_t mx2, uint32_t size)
{
    fmpq_tensor_error *a = &s->err[t];
    int16_t *e1 = (int16_t *)(void *)(s->base + a->offset);
    const int16_t *e2 = (const int16_t *)(const void *)(s->base + other);
    int32_t xo, s1, s2;
    if (!mx2)
        return;
    if (!a->mx) {
        memcpy(e1, e2, (size_t)size * 2);
        a->ex = ex2;
        a->mx = mx2;
        return;
    }
    merge_shifts(a, ex2, mx2, &xo, &s1, &s2);
    a->mx = s->k->merge(e1, e2, size, s1, s2);
    a->ex = xo;
}

/* error of tensor t += the option-A error of record i's output, spread to even positions and the skip's channels */
static void merge_option_a(fmpq_session *s, uint32_t t, uint32_t i)
{
    fmpq_tensor_error *a = &s->err[t];
    const fmpq_tensor_error *b = &s->err[i + 1];
    const fmpq_record *r = &s->p->rec[i], *from = &s->p->rec[t - 1];
    const uint32_t c = from->cout, w = from->w_out, n = (uint32_t)from->h_out * w * c;
    int32_t xo, s1, s2, mx2 = 0;
    /* the largest error among the channels that the shortcut carries */
    for (uint32_t k = 0; k < s->count * r->h_out * r->w_out; k++) {
        const int32_t top = s->k->max16((const int16_t *)(const void *)(s->base + b->offset) + (size_t)k * r->cout + r->skip_pad_c, c);
        mx2 = top > mx2 ? top : mx2;
    }
    if (!mx2)
        return;
    if (!a->mx) {
        s1 = s2 = 0;
        xo = b->ex;
    } else {
        merge_shifts(a, b->ex, mx2, &xo, &s1, &s2);
    }
    a->mx = 0;
    for (uint32_t k = 0; k < s->count; k++) {
        int16_t *e1 = (int16_t *)(void *)(s->base + a->offset) + (size_t)k * n;
        const int16_t *e2 = (const int16_t *)(const void *)(s->base + b->offset) + (size_t)k * s->d[i].out_size;
        int32_t most;
        for (uint32_t y = 0; y < from->h_out; y++)
            for (uint32_t x = 0; x < w; x++) {
                int16_t *o = e1 + (y * w + x) * c;
                if ((y | x) & 1u) {
                    s->k->merge(o, o, c, s1, 63);
                    continue;
                }
                s->k->merge(o, e2 + (y / 2 * r->w_out + x / 2) * r->cout + r->skip_pad_c, c, s1, s2);
            }
        most = s->k->max16(e1, n);
        a->mx = most > a->mx ? most : a->mx;
    }
    a->ex = xo;
}

/* Record i's e_in holds its error to `input` with (ex, mx): make it, or merge it into, the error of that tensor. */
static void contribute_input(fmpq_session *s, uint32_t i, int32_t ex, int32_t mx)
{
    const fmpq_record *r = &s->p->rec[i];
    fmpq_tensor_error *t = &s->err[r->input];
    const uint32_t size = s->count * s->d[i].in_size;
    if (s->slot[i].e_in_merges == 1) {
        merge_same(s, r->input, s->slot[i].e_in, ex, mx, size);
        return;
    }
    t->offset = s->slot[i].e_in;
    t->ex = ex;
    t->mx = mx;
    if (s->slot[i].e_in_merges == 2) {
        merge_option_a(s, r->input, t->pending);
        t->pending = FMPQ_NO_TENSOR;
    }
}

static void contribute_skip(fmpq_session *s, uint32_t i)
{
    const fmpq_record *r = &s->p->rec[i];
    const fmpq_tensor_error *e = &s->err[i + 1];
    fmpq_tensor_error *t = &s->err[r->skip];
    if (r->skip_kind == FMPQ_SKIP_NONE)
        return;
    if (s->slot[i].skip_merges) {
        if (r->skip_kind == FMPQ_SKIP_IDENTITY)
            merge_same(s, r->skip, e->offset, e->ex, e->mx, s->count * s->d[i].out_size);
        else
            merge_option_a(s, r->skip, i);
    } else if (r->skip_kind == FMPQ_SKIP_IDENTITY) {
        t->offset = e->offset;
        t->ex = e->ex;
        t->mx = e->mx;
    } else {
        t->pending = (uint16_t)i;
    }
}

/* ---- error to the input ------------------------------------------------------------------------------------ */

typedef struct input_pass {
    fmpq_session *s;
    uint32_t r;
    fmpq_work_input w;
    fmpq_geometry tile;
    uint8_t *work;
    fmpq_igemm job;
    int32_t *mx;
} input_pass;

static void to_input(void *arg, uint32_t sample, uint32_t worker)
{
    const input_pass *f = arg;
    fmpq_session *s = f->s;
    const fmpq_record *r = &s->p->rec[f->r];
    const fmpq_geometry *t = &f->tile;
    uint8_t *tile = f->work + f->w.thread0 + worker * f->w.thread_size + f->w.tile;
    const int8_t *e = (const int8_t *)(s->base + s->slot[f->r].xhat) + (size_t)sample * s->d[f->r].out_size;
    int16_t *out = (int16_t *)(void *)(s->base + s->slot[f->r].e_in) + (size_t)sample * s->d[f->r].in_size;
    const uint32_t cip = fmpq_up(r->cin, 16);
    int32_t most;
    size_t at = 0;
    memset(tile, 128, (size_t)t->rows * (size_t)t->cols * (size_t)t->c);
    for (int32_t y = 0; y < r->h_out && y + t->top < t->rows; y++)
        if (t->c == r->cout && r->w_out + t->left <= t->cols)
            s->k->bias(e + y * r->w_out * r->cout, tile + ((y + t->top) * t->cols + t->left) * t->c, r->w_out * r->cout);
        else for (int32_t x = 0; x < r->w_out && x + t->left < t->cols; x++) {
            uint8_t *o = tile + ((y + t->top) * t->cols + x + t->left) * t->c;
            const int8_t *in = e + (y * r->w_out + x) * r->cout;
            s->k->bias(in, o, r->cout);
        }
    if (r->groups > 1) {
        fmpq_grouped_input(r, tile, t, (const int16_t *)(const void *)(f->work + f->w.pack), f->job.shift, out);
    } else {
        for (int32_t py = 0; py < r->stride; py++)
            for (int32_t px = 0; px < r->stride; px++) {
                const int32_t ph = py * r->stride + px;
                int32_t off[FMPQ_MAX_TAPS];
                uint8_t index[FMPQ_MAX_TAPS];
                fmpq_igemm job = f->job;
                job.taps = fmpq_taps_backward(r, t, py, px, off, index);
                job.tap_off = off;
                job.a = tile;
                job.w = f->job.w + at;
                job.w_low = f->job.w_low ? f->job.w_low + at : NULL;
                job.corr = f->job.corr + (uint32_t)ph * cip;
                job.rows = (r->h_in - py + r->stride - 1) / r->stride;
                job.cols = (r->w_in - px + r->stride - 1) / r->stride;
                job.out = out + (py * r->w_in + px) * r->cin;
                at += (size_t)job.taps * (size_t)t->c * cip;
                if (job.rows > 0 && job.cols > 0)
                    s->k->igemm(&job);
            }
    }
    most = s->k->max16(out, s->d[f->r].in_size);
    f->mx[worker] = most > f->mx[worker] ? most : f->mx[worker];
}

static void conv_input(fmpq_session *s, uint32_t i)
{
    const fmpq_record *r = &s->p->rec[i];
    const fmpq_layer *l = &s->layer[i];
    input_pass f;
    int32_t most = 0;
    memset(&f, 0, sizeof(f));
    f.s = s;
    f.r = i;
    f.w = fmpq_plan_input(s->p, &s->plan, s->d, i);
    f.tile = fmpq_tile_backward(r, &s->d[i]);
    f.work = s->base + s->slot[i].work_b1;
    f.mx = (int32_t *)(void *)(f.work + f.w.maxima);
    f.job.w = (const int8_t *)(f.work + f.w.pack);
    f.job.w_low = l->n > 7 ? (const int8_t *)(f.work + f.w.pack_low) : NULL;
    f.job.corr = (const int32_t *)(const void *)(f.work + f.w.corr);
    f.job.c4 = f.tile.c / 4;
    f.job.cop = (int32_t)fmpq_up(r->cin, 16);
    f.job.co = r->cin;
    f.job.a_row = f.tile.cols * f.tile.c;
    f.job.a_pix = f.tile.c;
    f.job.out_row = r->w_in * r->cin * r->stride;
    f.job.out_pix = r->cin * r->stride;
    f.job.shift = fmpq_e_shift(r, l->n);
    f.job.a_max = 255;
    f.job.w_max = l->n > 7 ? 128 : (1 << l->n) - 1;
    fmpq_pack_backward(s, i, &f.tile, f.work + f.w.pack, f.work + f.w.pack_low, (int32_t *)(void *)(f.work + f.w.corr));
    memset(f.mx, 0, s->plan.threads * 4u);
    fmpq_run(s, to_input, &f, s->count);
    for (uint32_t t = 0; t < s->plan.threads; t++)
        most = f.mx[t] > most ? f.mx[t] : most;
    contribute_input(s, i, l->ey + f.job.shift - s->d[i].act_shift, most);
}

void fmpq_backward_input(fmpq_session *s, uint32_t i)
{
    if (s->p->rec[i].input)
        conv_input(s, i);
    contribute_skip(s, i);
}

/* ---- weight gradient ---------------------------------------------------------------------------------------- */

typedef struct weight_pass {
    fmpq_session *s;
    uint32_t r;
    fmpq_work_weight w;
    fmpq_geometry tile;
    uint8_t *work;
    uint32_t row0, rows, cells;
    int32_t plane, planar_row;
    int32_t tap_off[FMPQ_MAX_TAPS];
} weight_pass;

static void to_weights(void *arg, uint32_t sample, uint32_t worker)
{
    const weight_pass *f = arg;
    fmpq_session *s = f->s;
    const fmpq_record *r = &s->p->rec[f->r];
    const fmpq_derived *d = &s->d[f->r];
    uint8_t *mine = f->work + f->w.thread0 + worker * f->w.thread_size;
    uint8_t *tile = mine + f->w.tile;
    int32_t *g = (int32_t *)(void *)(mine + f->w.g);
    int32_t *sums = (int32_t *)(void *)(mine + f->w.sums);
    const int8_t *e = (const int8_t *)(s->base + s->slot[f->r].xhat) + (size_t)sample * d->out_size;
    if (d->gs)
        memset(g, 0, f->cells * 4u);
    if (r->input)
        fmpq_act_tile(s, f->r, sample, &f->tile, tile, mine + f->w.stream);
    else
        fmpq_input_tile(s, r, sample, &f->tile, tile);
    if (r->groups > 1) {
        fmpq_grouped_weight(r, tile, &f->tile, e, g);
        for (int32_t p = 0; p < r->h_out * r->w_out; p++)
            for (int32_t c = 0; c < r->cout; c++)
                sums[c] += e[p * r->cout + c];
    } else {
        fmpq_dw job;
        s->k->planar(tile, mine + f->w.planar, f->tile.rows, f->tile.cols, f->tile.cols * f->tile.c, f->tile.c << 16 | r->cin, f->plane,
                     f->planar_row, r->stride);
        s->k->interleave(e + f->row0, (int8_t *)(mine + f->w.e4), r->h_out, r->w_out, r->cout, (int32_t)f->rows, sums + f->row0);
        job.a = mine + f->w.planar;
        job.e = (const int8_t *)(mine + f->w.e4);
        job.g = g;
        job.tap_off = f->tap_off;
        job.taps = r->kh * r->kw;
        job.ci = r->cin;
        job.plane = f->plane;
        job.a_row = f->planar_row * r->stride * r->stride;
        job.rows = r->h_out;
        job.cols4 = (r->w_out + 3) / 4;
        job.cop = (int32_t)fmpq_up(f->rows, 16);
        job.cb0 = 0;
        job.cb1 = job.cop / 16;
        job.a_max = d->amax;
        s->k->dw(&job);
    }
    if (d->gs) {
        int64_t *wide = (int64_t *)(void *)(mine + f->w.g64);
        for (uint32_t k = 0; k < f->cells; k++)
            wide[k] += g[k];
    }
}

/* gradient of row `row` (relative to the tile) into u: G' = rshift(G - mean * sum of errors, gs) */
static void gather_row(const weight_pass *f, uint32_t row, int32_t *u)
{
    const fmpq_session *s = f->s;
    const fmpq_record *r = &s->p->rec[f->r];
    const fmpq_derived *d = &s->d[f->r];
    const uint32_t ci = (uint32_t)(r->cin / r->groups), taps = (uint32_t)r->kh * r->kw, co = f->row0 + row;
    const uint32_t step = r->groups > 1 ? 1 : 16;
    const size_t first = r->groups > 1 ? (size_t)row * d->row_len : (size_t)(row / 16) * d->row_len * 16 + row % 16;
    const uint8_t *mine = f->work + f->w.thread0;
    const int32_t *g = (const int32_t *)(const void *)(mine + f->w.g) + first;
    const int64_t *g64 = (const int64_t *)(const void *)(mine + f->w.g64) + first;
    const int64_t sum = ((const int32_t *)(const void *)(mine + f->w.sums))[co];
    if (!d->gs && r->input) {
        for (uint32_t k = 0; k < taps * ci; k++)
            u[k] = g[k * step];
        return;
    }
    for (uint32_t k = 0; k < taps * ci; k++) {
        const int64_t mean = r->input ? 0 : s->p->mean[((uint32_t)co / ((uint32_t)r->cout / r->groups) * ci + k % ci) % s->p->in_c];
        u[k] = (int32_t)fmpq_rshift64((d->gs ? g64[k * step] : g[k * step]) - mean * sum, d->gs);
    }
}

/* Sums the threads' tiles into the first. */
static void add_threads(const weight_pass *f)
{
    const fmpq_session *s = f->s;
    uint8_t *first = f->work + f->w.thread0;
    for (uint32_t t = 1; t < s->plan.threads; t++) {
        uint8_t *mine = first + t * f->w.thread_size;
        const uint32_t cop = (uint32_t)s->d[f->r].cop;
        for (uint32_t k = 0; k < cop; k++)
            ((int32_t *)(void *)(first + f->w.sums))[k] += ((int32_t *)(void *)(mine + f->w.sums))[k];
        if (s->d[f->r].gs)
            for (uint32_t k = 0; k < f->cells; k++)
                ((int64_t *)(void *)(first + f->w.g64))[k] += ((int64_t *)(void *)(mine + f->w.g64))[k];
        else
            for (uint32_t k = 0; k < f->cells; k++)
                ((int32_t *)(void *)(first + f->w.g))[k] += ((int32_t *)(void *)(mine + f->w.g))[k];
    }
}

void fmpq_backward_weight(fmpq_session *s, uint32_t i)
{
    const fmpq_record *r = &s->p->rec[i];
    const fmpq_derived *d = &s->d[i];
    const fmpq_layer *l = &s->layer[i];
    const uint32_t tile_rows = r->groups > 1 ? d->rows : d->tile_rows;
    weight_pass f;
    int32_t lasso[FMPQ_MAX_PLANES];
    fmpq_fx mult = s->hyper->lr;
    memset(&f, 0, sizeof(f));
    f.s = s;
    f.r = i;
    f.w = fmpq_plan_weight(s->p, &s->plan, s->d, i);
    f.tile = fmpq_tile_forward(r, d);
    f.work = s->base + s->slot[i].work_b2;
    f.planar_row = fmpq_planar_row(r);
    f.plane = f.tile.rows * f.planar_row * r->stride;
    for (int32_t t = 0; t < r->kh * r->kw; t++) {
        const int32_t y = t / r->kw, x = t % r->kw;
        f.tap_off[t] = (y * r->stride + x % r->stride) * f.planar_row + x / r->stride;
    }
    mult.e += l->g;
    mult = fmpq_fx_div(fmpq_fx_div(mult, fmpq_fx_mul(l->step, l->step)), fmpq_fx_norm(s->total_count, 0));
    mult = fmpq_fx_scale(mult, 24 + l->ey + d->gs);
    fmpq_lasso_table(s, i, lasso);
    for (f.row0 = 0; f.row0 < d->rows; f.row0 += tile_rows) {
        int32_t *u = (int32_t *)(void *)(f.work + f.w.row_u);
        int16_t *q = (int16_t *)(void *)(f.work + f.w.row_q);
        f.rows = d->rows - f.row0 < tile_rows ? d->rows - f.row0 : tile_rows;
        f.cells = r->groups > 1 ? d->theta : fmpq_up(f.rows, 16) * d->row_len;
        for (uint32_t t = 0; t < s->plan.threads; t++) {
            uint8_t *mine = f.work + f.w.thread0 + t * f.w.thread_size;
            memset(mine + f.w.g, 0, f.cells * 4u);
            memset(mine + f.w.sums, 0, (uint32_t)d->cop * 4u);
            if (d->gs)
                memset(mine + f.w.g64, 0, f.cells * 8u);
        }
        fmpq_run(s, to_weights, &f, s->count);
        add_threads(&f);
        for (uint32_t row = 0; row < f.rows; row++) {
            gather_row(&f, row, u);
            s->k->scale(u, u, (int32_t)d->row_len, mult);
            fmpq_update_row(s, i, f.row0 + row, u, q, lasso);
        }
    }
}

/* ---- pools --------------------------------------------------------------------------------------------------- */

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
    sum = fmpq_clamp64(fmpq_rshift64(sum, over), -32767, 32767);
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
        if (r->kind == FMPQ_MAXPOOL)
            in = fmpq_tensor(s, r->input, b, mine + w.stream);
        for (int32_t y = 0; y < r->h_in; y++)
            for (int32_t x = 0; x < r->w_in; x++)
                for (int32_t c = 0; c < r->cin; c++) {
                    const int32_t v = r->kind == FMPQ_GLOBALPOOL ? -1 : pool_back(r, in, from, to, x, y, c, scale, over);
                    most = v > most ? v : most;
                }
        if (r->kind == FMPQ_GLOBALPOOL) /* one window, every position the same */
            for (int32_t c = 0; c < r->cin; c++) {
                const int64_t v = scale < 0 ? from[c] : fmpq_clamp64(fmpq_rdiv64((int64_t)from[c] << scale, window), -32767, 32767);
                const int32_t a = (int32_t)(v < 0 ? -v : v);
                most = a > most ? a : most;
                for (int32_t k = 0; k < r->h_in * r->w_in; k++)
                    to[k * r->cin + c] = (int16_t)v;
            }
    }
    contribute_input(s, i, e->ex - (scale > 0 ? scale : 0) + over, most);
}
