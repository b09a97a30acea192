/* Weight gradient of a convolution record, tile by tile, each tile updated at once (docs/arithmetic.md, sections 7 and 8). */
#include "pack.h"

typedef struct weight_pass {
    fmpq_session *s;
    uint32_t r;
    fmpq_work_weight w;
    fmpq_geometry tile;
    uint8_t *work;
    uint32_t row0, rows, cells;
    uint32_t tap0, taps; /* taps of the tile in work */
    uint8_t begun[64];   /* threads that have started on the tile in work */
    fmpq_fx mult;
    const fmpq_terms *terms;
    int32_t plane, planar_row;
    int32_t tap_off[FMPQ_MAX_TAPS];
} weight_pass;

/* The padded input's rows in the tile from row `skip` on, channel by channel, to where row `row` of the planes lies. */
static void to_planes(const weight_pass *f, uint8_t *mine, int32_t skip, int32_t rows, int32_t row)
{
    const fmpq_record *r = &f->s->p->rec[f->r];
    const int32_t tile_row = f->tile.cols * f->tile.c;
    f->s->k->planar(mine + f->w.tile + skip * tile_row, mine + f->w.planar + row * f->planar_row * r->stride, rows - skip, f->tile.cols, tile_row,
                    f->tile.c << 16 | r->cin, f->plane, f->planar_row, r->stride);
}

/* `rows` rows of the output; their padded input starts at row `row` of the planes (or of the tile, for grouped convolutions) */
static void strip_of(const weight_pass *f, uint8_t *mine, const int8_t *e, int32_t rows, int32_t row)
{
    const fmpq_session *s = f->s;
    const fmpq_record *r = &s->p->rec[f->r];
    const fmpq_derived *d = &s->d[f->r];
    int32_t *g = (int32_t *)(void *)(mine + f->w.g);
    int32_t *sums = (int32_t *)(void *)(mine + f->w.sums);
    fmpq_dw job;
    if (d->gs)
        memset(g, 0, f->cells * 4u);
    if (r->groups > 1) {
        fmpq_grouped_weight(r, rows, mine + f->w.tile + row * f->tile.cols * f->tile.c, &f->tile, e, g);
        for (int32_t p = 0; p < rows * r->w_out; p++)
            for (int32_t c = 0; c < r->cout; c++)
                sums[c] += e[p * r->cout + c];
    } else {
        s->k->interleave(e + f->row0, (int8_t *)(mine + f->w.e4), rows, r->w_out, r->cout, (int32_t)f->rows, sums + f->row0);
        job.a = mine + f->w.planar + row * f->planar_row * r->stride;
        job.e = (const int8_t *)(mine + f->w.e4);
        job.g = g;
        job.tap_off = f->tap_off + f->tap0;
        job.taps = (int32_t)f->taps;
        job.ci = r->cin;
        job.plane = f->plane;
        job.a_row = f->planar_row * r->stride * r->stride;
        job.rows = rows;
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

enum { PLANES_ONLY, GRADIENT };

/* One sample, strip by strip: its input as planes, their products with its errors. */
static void sample_of(const weight_pass *f, uint32_t sample, uint32_t worker, int what)
{
    const fmpq_session *s = f->s;
    const fmpq_record *r = &s->p->rec[f->r];
    const fmpq_derived *d = &s->d[f->r];
    uint8_t *mine = f->work + f->w.thread0 + worker * f->w.thread_size;
    const int8_t *e = (const int8_t *)(s->base + s->slot[f->r].xhat) + (size_t)sample * d->out_size;
    /* rows whose products fit an int32 together; fewer than a strip has only in large maps, where d->gs > 0 adds them up in 64 bits */
    const int32_t most = INT32_MAX / (d->amax * 127 * r->w_out);
    fmpq_window win = {0, 0, 0, 0};
    for (int32_t y0 = 0; y0 < r->h_out; y0 += d->strip) {
        const int32_t rows = r->h_out - y0 < d->strip ? r->h_out - y0 : d->strip;
        if (!d->planar_once || what == PLANES_ONLY) {
            win.have = y0 && r->kh > r->stride ? r->kh - r->stride : 0;
            win.before = win.rows;
            win.from = y0 * r->stride;
            win.rows = d->compact ? (rows - 1) * r->stride + r->kh : f->tile.rows;
            fmpq_input_rows(s, f->r, sample, &f->tile, win, mine + f->w.tile, mine + f->w.stream);
            if (d->planar_once)
                to_planes(f, mine, win.have, win.rows, win.from + win.have);
            else if (r->groups == 1)
                to_planes(f, mine, 0, win.rows, 0);
        }
        for (int32_t y = 0; what == GRADIENT && y < rows; y += most)
            strip_of(f, mine, e + (y0 + y) * r->w_out * r->cout, rows - y < most ? rows - y : most,
                     ((d->planar_once ? y0 : 0) + y) * r->stride);
    }
}

/* zero gradients of a thread */
static void begin(weight_pass *f, uint32_t worker)
{
    const fmpq_derived *d = &f->s->d[f->r];
    uint8_t *mine = f->work + f->w.thread0 + worker * f->w.thread_size;
    f->begun[worker] = 1;
    memset(mine + f->w.g, 0, f->cells * 4u);
    memset(mine + f->w.sums, 0, (uint32_t)d->cop * 4u);
    if (d->gs)
        memset(mine + f->w.g64, 0, f->cells * 8u);
}

static void to_weights(void *arg, uint32_t sample, uint32_t worker)
{
    weight_pass *f = arg;
    if (!f->begun[worker])
        begin(f, worker);
    sample_of(f, sample, worker, GRADIENT);
}

void fmpq_column_scalar(const int32_t *g, int32_t *u, uint32_t n)
{
    for (uint32_t k = 0; k < n; k++)
        u[k] = g[16 * k];
}

/* gradient of the taps in work of row `row` (relative to the tile) into u: G' = rshift(G - zero * sum of errors, gs) */
static void gather_row(const weight_pass *f, uint32_t row, int32_t *u)
{
    const fmpq_session *s = f->s;
    const fmpq_record *r = &s->p->rec[f->r];
    const fmpq_derived *d = &s->d[f->r];
    const uint32_t ci = (uint32_t)(r->cin / r->groups), taps = f->taps, co = f->row0 + row;
    const uint32_t step = r->groups > 1 ? 1 : 16;
    const size_t first = r->groups > 1 ? (size_t)row * d->row_len : (size_t)(row / 16) * taps * ci * 16 + row % 16;
    const uint8_t *mine = f->work + f->w.thread0;
    const int32_t *g = (const int32_t *)(const void *)(mine + f->w.g) + first;
    const int64_t *g64 = (const int64_t *)(const void *)(mine + f->w.g64) + first;
    const int64_t sum = ((const int32_t *)(const void *)(mine + f->w.sums))[co];
    if (!d->gs && r->input && !fmpq_zero(s->p, r->input)) {
        if (step == 16)
            s->k->column(g, u, taps * ci);
        else
            memcpy(u, g, taps * ci * sizeof(*u));
        return;
    }
    for (uint32_t k = 0; k < taps * ci; k++) {
        const int64_t zero = fmpq_zero_read(s->p, r, s->plan.act_bits, co / ((uint32_t)r->cout / r->groups) * ci + k % ci);
        u[k] = (int32_t)fmpq_rshift64((d->gs ? g64[k * step] : g[k * step]) - zero * sum, d->gs);
    }
}

#define BLOCK 16 /* rows that are updated together: cells of one block of channels, whole bytes of every plane */

/* Sums of the threads' gradients of rows [row, end) into the first thread's. */
static void add_threads(const weight_pass *f, uint32_t row, uint32_t end)
{
    const fmpq_session *s = f->s;
    const fmpq_record *r = &s->p->rec[f->r];
    const uint32_t len = r->groups > 1 ? s->d[f->r].row_len : f->taps * r->cin;
    const uint32_t from = row * len, to = (r->groups > 1 ? end : fmpq_up(end, BLOCK)) * len;
    uint8_t *first = f->work + f->w.thread0;
    for (uint32_t t = 1; t < s->plan.threads; t++) {
        const uint8_t *mine = first + t * f->w.thread_size;
        if (!f->begun[t])
            continue;
        for (uint32_t k = f->row0 + row; k < f->row0 + end; k++)
            ((int32_t *)(void *)(first + f->w.sums))[k] += ((const int32_t *)(const void *)(mine + f->w.sums))[k];
        if (s->d[f->r].gs)
            for (uint32_t k = from; k < to; k++)
                ((int64_t *)(void *)(first + f->w.g64))[k] += ((const int64_t *)(const void *)(mine + f->w.g64))[k];
        else
            for (uint32_t k = from; k < to; k++)
                ((int32_t *)(void *)(first + f->w.g))[k] += ((const int32_t *)(const void *)(mine + f->w.g))[k];
    }
}

static void update_block(void *arg, uint32_t block, uint32_t worker)
{
    const weight_pass *f = arg;
    fmpq_session *s = f->s;
    const fmpq_record *r = &s->p->rec[f->r];
    const uint32_t ci = (uint32_t)r->cin / r->groups, len = f->taps * ci, row0 = block * BLOCK;
    const uint32_t end = f->rows - row0 < BLOCK ? f->rows : row0 + BLOCK;
    int32_t *u = (int32_t *)(void *)(f->work + f->w.row_u) + worker * len;
    int16_t *q = (int16_t *)(void *)(f->work + f->w.row_q) + worker * len;
    add_threads(f, row0, end);
    for (uint32_t row = row0; row < end; row++) {
        gather_row(f, row, u);
        s->k->scale(u, u, (int32_t)len, f->mult);
        fmpq_update_row(s, f->r, f->row0 + row, f->tap0 * ci, len, u, q, f->terms);
    }
}

/* Gradient and update of the rows and taps in work. */
static void one_tile(weight_pass *f)
{
    fmpq_session *s = f->s;
    const fmpq_record *r = &s->p->rec[f->r];
    const fmpq_derived *d = &s->d[f->r];
    const uint32_t len = f->taps * (uint32_t)r->cin / r->groups, blocks = (f->rows + BLOCK - 1) / BLOCK;
    f->cells = r->groups > 1 ? d->theta : fmpq_up(f->rows, 16) * len;
    memset(f->begun, 0, sizeof(f->begun));
    fmpq_run(s, to_weights, f, s->count);
    if (!f->begun[0])
        begin(f, 0);
    if (len == d->row_len && f->row0 % 8 == 0) /* blocks share no byte of a plane */
        fmpq_run(s, update_block, f, blocks);
    else
        for (uint32_t b = 0; b < blocks; b++)
            update_block(f, b, 0);
}

void fmpq_backward_weight(fmpq_session *s, uint32_t i)
{
    const fmpq_record *r = &s->p->rec[i];
    const fmpq_derived *d = &s->d[i];
    const fmpq_layer *l = &s->layer[i];
    const uint32_t all_taps = (uint32_t)r->kh * r->kw;
    const uint32_t tile_rows = r->groups > 1 ? d->rows : d->tile_rows, tile_taps = r->groups > 1 ? all_taps : d->tile_taps;
    weight_pass f;
    fmpq_terms terms;
    fmpq_fx mult = s->hyper->lr;
    memset(&f, 0, sizeof(f));
    f.s = s;
    f.r = i;
    f.w = fmpq_plan_weight(s->p, &s->plan, s->d, i);
    f.tile = fmpq_tile_forward(r, d);
    f.work = s->base + s->slot[i].work_b2;
    f.planar_row = fmpq_planar_row(r);
    f.plane = (d->compact && !d->planar_once ? (d->strip - 1) * r->stride + r->kh : f.tile.rows) * f.planar_row * r->stride;
    for (int32_t t = 0; t < r->kh * r->kw; t++) {
        const int32_t y = t / r->kw, x = t % r->kw;
        f.tap_off[t] = (y * r->stride + x % r->stride) * f.planar_row + x / r->stride;
    }
    mult.e += l->g;
    mult = fmpq_fx_div(fmpq_fx_div(mult, fmpq_fx_mul(l->step, l->step)), fmpq_fx_norm(s->total_count, 0));
    mult = fmpq_fx_scale(mult, 24 + l->ey + d->gs);
    fmpq_terms_of(s, i, &terms);
    f.mult = mult;
    f.terms = &terms;
    if (d->planar_once)
        sample_of(&f, 0, 0, PLANES_ONLY);
    for (f.row0 = 0; f.row0 < d->rows; f.row0 += tile_rows)
        for (f.tap0 = 0; f.tap0 < all_taps; f.tap0 += tile_taps) {
            f.rows = d->rows - f.row0 < tile_rows ? d->rows - f.row0 : tile_rows;
            f.taps = all_taps - f.tap0 < tile_taps ? all_taps - f.tap0 : tile_taps;
            one_tile(&f);
        }
}
