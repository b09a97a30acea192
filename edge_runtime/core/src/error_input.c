/* Error to the input of a convolution record: the transposed convolution of e8 (docs/arithmetic.md, section 7). */
#include "pack.h"

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
    fmpq_contribute_input(s, i, l->ey + f.job.shift - s->d[i].act_shift, most);
}

void fmpq_backward_input(fmpq_session *s, uint32_t i)
{
    if (s->p->rec[i].input)
        conv_input(s, i);
    fmpq_contribute_skip(s, i);
}
