/* Error to the input of a convolution record: the transposed convolution of e8 (docs/arithmetic.md, section 7). */
#include "pack.h"

typedef struct input_pass {
    fmpq_session *s;
    uint32_t r;
    fmpq_work_input w;
    fmpq_geometry tile;
    uint8_t *work, *pack; /* the packed weights may lie in a buffer of their own */
    fmpq_igemm job;
    int32_t phase0, phase1; /* phases in work: all of them, or one */
    uint32_t ci0;           /* first input channel of the block in work */
    int32_t *mx;
} input_pass;

/* Rows [from, from + rows) of the padded tile of the error, 128 outside of the map; the last `have` are the first ones of the strip before. */
static void fill(const input_pass *f, const int8_t *e, uint8_t *tile, fmpq_window win)
{
    const fmpq_session *s = f->s;
    const fmpq_record *r = &s->p->rec[f->r];
    const fmpq_geometry *t = &f->tile;
    const int32_t tile_row = t->cols * t->c, first = win.from - t->top, end = win.from + win.rows - win.have - t->top;
    if (win.have)
        memmove(tile + (win.rows - win.have) * tile_row, tile, (size_t)win.have * (size_t)tile_row);
    memset(tile, 128, (size_t)(win.rows - win.have) * (size_t)tile_row);
    for (int32_t y = first > 0 ? first : 0; y < end && y < r->h_out; y++) {
        uint8_t *o = tile + ((y + t->top - win.from) * t->cols + t->left) * t->c;
        const int8_t *in = e + y * r->w_out * r->cout;
        if (t->c == r->cout && r->w_out + t->left <= t->cols)
            s->k->bias(in, o, r->w_out * r->cout);
        else
            for (int32_t x = 0; x < r->w_out && x + t->left < t->cols; x++)
                s->k->bias(in + x * r->cout, o + x * t->c, r->cout);
    }
}

/* input rows [y0, y0 + rows) of the phases in work, from the tile that starts at phase row y0 / stride */
static void strip_of(const input_pass *f, const uint8_t *tile, int32_t rows, int16_t *out)
{
    const fmpq_session *s = f->s;
    const fmpq_record *r = &s->p->rec[f->r];
    size_t at = 0;
    if (r->groups > 1) {
        fmpq_grouped_input(r, rows, tile, &f->tile, (const int16_t *)(const void *)(f->pack + f->w.pack), f->job.shift, out);
        return;
    }
    for (int32_t ph = f->phase0; ph < f->phase1; ph++) {
        const int32_t py = ph / r->stride, px = ph % r->stride;
        int32_t off[FMPQ_MAX_TAPS];
        uint8_t index[FMPQ_MAX_TAPS];
        fmpq_igemm job = f->job;
        job.taps = fmpq_taps_backward(r, &f->tile, py, px, off, index);
        job.tap_off = off;
        job.a = tile;
        job.w = f->job.w + at;
        job.w_low = f->job.w_low ? f->job.w_low + at : NULL;
        job.corr = f->job.corr + (uint32_t)(ph - f->phase0) * (uint32_t)job.cop;
        job.rows = (rows - py + r->stride - 1) / r->stride;
        job.cols = (r->w_in - px + r->stride - 1) / r->stride;
        job.out = out + (py * r->w_in + px) * r->cin + f->ci0;
        at += (size_t)job.taps * (size_t)f->tile.c * (size_t)job.cop;
        if (job.rows > 0 && job.cols > 0)
            s->k->igemm(&job);
    }
}

static void to_input(void *arg, uint32_t sample, uint32_t worker)
{
    const input_pass *f = arg;
    const fmpq_session *s = f->s;
    const fmpq_record *r = &s->p->rec[f->r];
    const fmpq_derived *d = &s->d[f->r];
    uint8_t *tile = f->work + f->w.thread0 + worker * f->w.thread_size + f->w.tile;
    const int8_t *e = (const int8_t *)(s->base + s->slot[f->r].xhat) + (size_t)sample * d->out_size;
    int16_t *out = (int16_t *)(void *)(s->base + s->slot[f->r].e_in) + (size_t)sample * d->in_size;
    fmpq_window win = {0, 0, 0, 0};
    int32_t most = 0;
    /* from the last strip to the first: the errors to the input may grow over e8 */
    for (int32_t y0 = (r->h_in - 1) / d->strip_in * d->strip_in; y0 >= 0; y0 -= d->strip_in) {
        const int32_t rows = r->h_in - y0 < d->strip_in ? r->h_in - y0 : d->strip_in;
        int16_t *to = out + y0 * r->w_in * r->cin;
        win.have = win.rows ? f->tile.halo : 0;
        win.from = y0 / r->stride;
        win.rows = fmpq_strip_backward(r, &f->tile, rows);
        fill(f, e, tile, win);
        strip_of(f, tile, rows, to);
        if (!d->compact)
            most = s->k->max16(to, d->in_size);
    }
    f->mx[worker] = most > f->mx[worker] ? most : f->mx[worker];
}

static void prepare(input_pass *f, fmpq_session *s, uint32_t i)
{
    const fmpq_record *r = &s->p->rec[i];
    memset(f, 0, sizeof(*f));
    f->s = s;
    f->r = i;
    f->w = fmpq_plan_input(s->p, &s->plan, s->d, i);
    f->tile = fmpq_tile_backward(r, &s->d[i]);
    f->work = s->base + s->slot[i].work_b1;
    f->pack = s->d[i].in_place ? s->base + s->slot[i].pack_b : f->work;
    f->phase1 = r->stride * r->stride;
}

static void pack(const input_pass *f, int32_t phase, uint32_t n)
{
    fmpq_pack_backward(f->s, f->r, &f->tile, phase, f->ci0, n, f->pack + f->w.pack, f->pack + f->w.pack_low, (int32_t *)(void *)(f->pack + f->w.corr));
}

void fmpq_pack_before_update(fmpq_session *s, uint32_t i)
{
    input_pass f;
    prepare(&f, s, i);
    pack(&f, -1, s->p->rec[i].cin);
}

static void conv_input(fmpq_session *s, uint32_t i)
{
    const fmpq_record *r = &s->p->rec[i];
    const fmpq_derived *d = &s->d[i];
    const fmpq_layer *l = &s->layer[i];
    const int by_phase = d->compact && !d->in_place && r->groups == 1;
    const uint32_t block = by_phase ? d->block_b : r->cin;
    input_pass f;
    int32_t most = 0;
    prepare(&f, s, i);
    f.mx = (int32_t *)(void *)(f.work + f.w.maxima);
    f.job.w = (const int8_t *)(f.pack + f.w.pack);
    f.job.w_low = l->n > 7 ? (const int8_t *)(f.pack + f.w.pack_low) : NULL;
    f.job.corr = (const int32_t *)(const void *)(f.pack + f.w.corr);
    f.job.c4 = f.tile.c / 4;
    f.job.a_row = f.tile.cols * f.tile.c;
    f.job.a_pix = f.tile.c;
    f.job.out_row = r->w_in * r->cin * r->stride;
    f.job.out_pix = r->cin * r->stride;
    f.job.shift = fmpq_e_shift(r, l->n);
    f.job.a_max = 255;
    f.job.w_max = l->n > 7 ? 128 : (1 << l->n) - 1;
    memset(f.mx, 0, s->plan.threads * 4u);
    for (f.ci0 = 0; f.ci0 < r->cin; f.ci0 += block) {
        const uint32_t n = r->cin - f.ci0 < block ? r->cin - f.ci0 : block;
        f.job.cop = (int32_t)fmpq_up(n, 16);
        f.job.co = (int32_t)n;
        for (int32_t ph = 0; ph < (by_phase ? r->stride * r->stride : 1); ph++) {
            if (by_phase) {
                f.phase0 = ph;
                f.phase1 = ph + 1;
            }
            if (!d->in_place)
                pack(&f, by_phase ? ph : -1, n);
            fmpq_run(s, to_input, &f, s->count);
        }
    }
    if (d->compact)
        most = s->k->max16((const int16_t *)(const void *)(s->base + s->slot[i].e_in), d->in_size);
    for (uint32_t t = 0; t < s->plan.threads; t++)
        most = f.mx[t] > most ? f.mx[t] : most;
    fmpq_contribute_input(s, i, l->ey + f.job.shift - d->act_shift, most);
}

void fmpq_backward_input(fmpq_session *s, uint32_t i)
{
    if (s->p->rec[i].input)
        conv_input(s, i);
    fmpq_contribute_skip(s, i);
}
