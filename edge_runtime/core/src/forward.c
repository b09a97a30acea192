/* Forward pass of a convolution record (docs/arithmetic.md, section 5). */
#include "internal.h"
#include "pack.h"

typedef struct forward {
    fmpq_session *s;
    uint32_t r;
    fmpq_work_forward w;
    fmpq_geometry tile;
    fmpq_igemm job;
    uint8_t *work;
    uint32_t co0; /* first output channel of the block in work */
    int32_t tap_off[FMPQ_MAX_TAPS];
    int32_t *a, *b, *sh;
} forward;

static uint8_t *thread_part(const forward *f, uint32_t worker)
{
    return f->work + f->w.thread0 + worker * f->w.thread_size;
}

static void count_up(const forward *f, uint32_t sample, uint32_t worker)
{
    const fmpq_session *s = f->s;
    const fmpq_record *r = &s->p->rec[f->r];
    int64_t *m1 = (int64_t *)(void *)(f->work + f->w.stats) + (size_t)worker * r->cout * 2;
    const int16_t *y = (const int16_t *)(const void *)(s->base + s->slot[f->r].y16) + (size_t)sample * s->d[f->r].out_size;
    if (s->training && !(r->flags & FMPQ_BIASED))
        s->k->stats(y, r->h_out * r->w_out, r->cout, m1, m1 + r->cout);
}

/* One sample's convolution for a block of output channels, strip by strip; a strip keeps the last rows of the tile before it. */
static void convolve(void *arg, uint32_t sample, uint32_t worker)
{
    const forward *f = arg;
    const fmpq_session *s = f->s;
    const fmpq_record *r = &s->p->rec[f->r];
    uint8_t *mine = thread_part(f, worker);
    int16_t *y = (int16_t *)(void *)(s->base + s->slot[f->r].y16) + (size_t)sample * s->d[f->r].out_size;
    const int32_t strip = s->d[f->r].strip;
    fmpq_igemm job = f->job;
    fmpq_window win = {0, 0, 0, 0};
    job.a = mine + f->w.tile;
    for (int32_t y0 = 0; y0 < r->h_out; y0 += strip) {
        job.rows = r->h_out - y0 < strip ? r->h_out - y0 : strip;
        job.out = y + y0 * job.out_row + f->co0;
        win.have = y0 && r->kh > r->stride ? r->kh - r->stride : 0;
        win.before = win.rows;
        win.from = y0 * r->stride;
        win.rows = s->d[f->r].compact ? (job.rows - 1) * r->stride + r->kh : f->tile.rows;
        fmpq_input_rows(s, f->r, sample, &f->tile, win, mine + f->w.tile, mine + f->w.stream);
        if (r->groups > 1)
            fmpq_grouped_forward(r, &job, (const int16_t *)(const void *)(f->work + f->w.pack));
        else
            s->k->igemm(&job);
    }
    if (!s->d[f->r].compact)
        count_up(f, sample, worker);
}

static void normalise(void *arg, uint32_t sample, uint32_t worker)
{
    const forward *f = arg;
    fmpq_session *s = f->s;
    const fmpq_record *r = &s->p->rec[f->r];
    const fmpq_slots *sl = &s->slot[f->r];
    const fmpq_derived *d = &s->d[f->r];
    const size_t at = (size_t)sample * d->out_size;
    const uint32_t row = (uint32_t)r->w_out * r->cout;
    uint8_t *mine = thread_part(f, worker);
    const int16_t *y = (const int16_t *)(const void *)(s->base + sl->y16) + at;
    int8_t *x = (int8_t *)(s->base + sl->xhat) + at;
    for (uint32_t y0 = 0; y0 < r->h_out; y0 += d->strip_out) {
        const uint32_t rows = r->h_out - y0 < d->strip_out ? r->h_out - y0 : d->strip_out;
        if (d->compact) { /* x-hat takes the place of y */
            s->k->norm(y + y0 * row, (int8_t *)mine, (int32_t)(rows * r->w_out), r->cout, f->a, f->b, f->sh);
            memcpy(x + y0 * row, mine, rows * row);
        } else {
            s->k->norm(y + y0 * row, x + y0 * row, (int32_t)(rows * r->w_out), r->cout, f->a, f->b, f->sh);
        }
    }
    if (sl->stream == FMPQ_NONE)
        return;
    /* the residual sum; its skip is at hand, kept or one step from its x-hat */
    for (uint32_t y0 = 0; y0 < r->h_out; y0 += d->strip_out) {
        const uint32_t rows = r->h_out - y0 < d->strip_out ? r->h_out - y0 : d->strip_out;
        uint8_t *to = s->base + sl->stream + at + y0 * row;
        if (fmpq_tensor_make_room(s->p, f->r + 1, rows, 1) <= rows * row) {
            fmpq_tensor_make(s, f->r + 1, sample, y0, rows, to);
            continue;
        }
        fmpq_tensor_make(s, f->r + 1, sample, y0, rows, mine);
        memcpy(to, mine, rows * row);
    }
}

void fmpq_normaliser(int64_t v8, int64_t mu8, int32_t *a, int32_t *b, int32_t *sh)
{
    const int bits = fmpq_bitlen64((uint64_t)v8);
    const int j = bits & 1 ? 29 - bits : 30 - bits;
    const uint64_t v = j >= 0 ? (uint64_t)v8 << j : (uint64_t)v8 >> -j;
    const int64_t top = fmpq_rdiv64((int64_t)1 << 28, fmpq_isqrt64(v));
    *a = (int32_t)(top > 16383 ? 16383 : top);
    *sh = 19 - j / 2;
    *b = (int32_t)(-((mu8 * *a + 128) >> 8) + ((int64_t)1 << (*sh - 1)));
}

/* Statistics of the micro-batch (or the running ones) to the per-channel normaliser; moves the running statistics. */
static void coefficients(forward *f)
{
    fmpq_session *s = f->s;
    const fmpq_record *r = &s->p->rec[f->r];
    const int64_t m = (int64_t)s->count * r->h_out * r->w_out;
    int64_t *sums = (int64_t *)(void *)(f->work + f->w.stats);
    int32_t *rm = fmpq_params_i32(s, f->r, 2);
    int64_t *rv = fmpq_params_rv(s, f->r);
    int16_t *coef = (int16_t *)(void *)(s->base + s->slot[f->r].coef);
    for (uint32_t c = 0; c < r->cout; c++) {
        int64_t mu8, v8;
        if (s->training && !(r->flags & FMPQ_BIASED)) {
            int64_t m1 = 0, m2 = 0, mu0, c1, c2, d8;
            for (uint32_t t = 0; t < s->plan.threads; t++) {
                m1 += sums[(size_t)t * r->cout * 2 + c];
                m2 += sums[(size_t)t * r->cout * 2 + r->cout + c];
            }
            mu0 = fmpq_rdiv64(m1, m);
            c1 = m1 - m * mu0;
            c2 = m2 - 2 * mu0 * m1 + m * mu0 * mu0;
            d8 = fmpq_rdiv64(256 * c1, m);
            mu8 = 256 * mu0 + d8;
            v8 = 256 * c2 / m - ((d8 * d8 + 128) >> 8) + 1;
            v8 = v8 < 1 ? 1 : v8;
            rm[c] = (int32_t)(rm[c] + fmpq_rshift64(mu8 * 256 - rm[c], 3));
            rv[c] += fmpq_rshift64(v8 * 256 - rv[c], 3);
        } else {
            mu8 = fmpq_rshift64(rm[c], 8);
            v8 = fmpq_rshift64(rv[c], 8);
            v8 = v8 < 1 ? 1 : v8;
        }
        fmpq_normaliser(v8, mu8, &f->a[c], &f->b[c], &f->sh[c]);
        coef[2 * c] = (int16_t)f->a[c];
        coef[2 * c + 1] = (int16_t)f->sh[c];
    }
}

void fmpq_forward_conv(fmpq_session *s, uint32_t i)
{
    const fmpq_record *r = &s->p->rec[i];
    const fmpq_derived *d = &s->d[i];
    const fmpq_layer *l = &s->layer[i];
    forward f;
    memset(&f, 0, sizeof(f));
    f.s = s;
    f.r = i;
    f.w = fmpq_plan_forward(s->p, &s->plan, s->d, i);
    f.tile = fmpq_tile_forward(r, d);
    f.work = s->base + s->slot[i].work_f;
    f.a = (int32_t *)(void *)(f.work + f.w.coef);
    f.b = f.a + r->cout;
    f.sh = f.b + r->cout;
    for (int32_t t = 0; t < r->kh * r->kw; t++)
        f.tap_off[t] = (t / r->kw * f.tile.cols + t % r->kw) * f.tile.c;
    f.job.w = (const int8_t *)(f.work + f.w.pack);
    f.job.w_low = l->n > 7 ? (const int8_t *)(f.work + f.w.pack_low) : NULL;
    f.job.corr = (const int32_t *)(const void *)(f.work + f.w.corr);
    f.job.tap_off = f.tap_off;
    f.job.taps = r->kh * r->kw;
    f.job.c4 = d->cp / 4;
    f.job.cols = r->w_out;
    f.job.a_row = f.tile.cols * f.tile.c * r->stride;
    f.job.a_pix = f.tile.c * r->stride;
    f.job.out_row = r->w_out * r->cout;
    f.job.out_pix = r->cout;
    f.job.shift = fmpq_y_shift(r, d->amax, l->n);
    f.job.a_max = d->amax;
    f.job.w_max = l->n > 7 ? 128 : (1 << l->n) - 1;
    memset(f.work + f.w.stats, 0, (size_t)s->plan.threads * r->cout * 16);
    for (f.co0 = 0; f.co0 < r->cout; f.co0 += d->block_f) {
        const uint32_t n = r->cout - f.co0 < d->block_f ? r->cout - f.co0 : d->block_f;
        f.job.cop = (int32_t)fmpq_up(n, 16);
        f.job.co = (int32_t)n;
        fmpq_pack_forward(s, i, f.co0, n, f.work + f.w.pack, f.work + f.w.pack_low, (int32_t *)(void *)(f.work + f.w.corr));
        fmpq_run(s, convolve, &f, s->count);
    }
    if (d->compact)
        count_up(&f, 0, 0);
    coefficients(&f);
    fmpq_run(s, normalise, &f, s->count);
}
