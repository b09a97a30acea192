/* Sizes and parts of the work area of each op. The planner and the ops call the same functions: planned = used. */
#include "internal.h"

static uint32_t take(uint32_t *at, uint64_t bytes)
{
    const uint32_t here = *at;
    /* the planner refuses an arena over 4 GiB, so a saturated sum is never used */
    const uint64_t next = (uint64_t)here + (bytes + FMPQ_ALIGN - 1) / FMPQ_ALIGN * FMPQ_ALIGN;
    *at = next > 0xffffffc0u ? 0xffffffc0u : (uint32_t)next;
    return here;
}

fmpq_geometry fmpq_tile_forward(const fmpq_record *r, const fmpq_derived *d)
{
    fmpq_geometry t;
    t.top = t.left = r->pad;
    t.rows = r->h_in + 2 * r->pad;
    t.cols = r->w_in + 2 * r->pad;
    t.c = d->cp;
    t.halo = 0;
    return t;
}

/* For one axis: margins so that every output position and tap of the transposed convolution stays inside. */
static void margin(int32_t in, int32_t out, int32_t k, int32_t stride, int32_t pad, int32_t *low, int32_t *size, int32_t *reach)
{
    int32_t lo = 0, hi = out - 1, most = 0;
    for (int32_t ph = 0; ph < stride && ph < in; ph++) {
        const int32_t last = (in - 1 - ph) / stride;
        for (int32_t i = 0; i < k; i++) {
            const int32_t o = ph + pad - i;
            int32_t off;
            if (((o % stride) + stride) % stride)
                continue;
            off = o / stride; /* exact */
            lo = off < lo ? off : lo;
            hi = last + off > hi ? last + off : hi;
            most = off > most ? off : most;
        }
    }
    *low = -lo;
    *size = hi - lo + 1;
    *reach = most - lo;
}

fmpq_geometry fmpq_tile_backward(const fmpq_record *r, const fmpq_derived *d)
{
    fmpq_geometry t;
    int32_t across;
    margin(r->h_in, r->h_out, r->kh, r->stride, r->pad, &t.top, &t.rows, &t.halo);
    margin(r->w_in, r->w_out, r->kw, r->stride, r->pad, &t.left, &t.cols, &across);
    (void)across;
    t.c = (int32_t)fmpq_up(r->groups > 1 ? r->cout : (uint32_t)d->rows, 4);
    return t;
}

int32_t fmpq_taps_backward(const fmpq_record *r, const fmpq_geometry *t, int32_t py, int32_t px, int32_t *off, uint8_t *index)
{
    int32_t n = 0;
    for (int32_t i = 0; i < r->kh; i++) {
        const int32_t oy = py + r->pad - i;
        if (((oy % r->stride) + r->stride) % r->stride)
            continue;
        for (int32_t j = r->kw - 1; j >= 0; j--) { /* rising offsets: taps side by side are one run to a matrix kernel */
            const int32_t ox = px + r->pad - j;
            if (((ox % r->stride) + r->stride) % r->stride)
                continue;
            off[n] = ((oy / r->stride + t->top) * t->cols + ox / r->stride + t->left) * t->c;
            index[n++] = (uint8_t)(i * r->kw + j);
        }
    }
    return n;
}

/* bytes of one row of a planar tile (one phase of a strided one): tap reads of 4 positions may run past the width */
int32_t fmpq_planar_row(const fmpq_record *r)
{
    const int32_t cols = r->w_in + 2 * r->pad;
    const int32_t phase = (cols + r->stride - 1) / r->stride;
    const int32_t need = (int32_t)fmpq_up(r->w_out, 4) + (r->kw - 1) / r->stride;
    return phase > need ? phase : need;
}

int32_t fmpq_strip_backward(const fmpq_record *r, const fmpq_geometry *t, int32_t rows)
{
    return rows >= r->h_in ? t->rows : (rows + r->stride - 1) / r->stride + t->halo;
}

static uint32_t low_needed(const fmpq_plan *plan, uint32_t r)
{
    return plan->bits[r] > 7;
}

/* rows of a tensor that `rows` rows of record r's padded input need; all of a map that it reads as one pixel */
static uint32_t source_rows(const fmpq_program *p, const fmpq_record *r, uint32_t rows)
{
    const uint32_t all = fmpq_tensor_rows_of(p, r->input);
    return all != r->h_in || rows > all ? all : rows;
}

static uint32_t window_rows(const fmpq_record *r, uint32_t strip)
{
    return (strip - 1u) * r->stride + r->kh;
}

fmpq_work_forward fmpq_plan_forward(const fmpq_program *p, const fmpq_plan *plan, const fmpq_derived *d, uint32_t i)
{
    const fmpq_record *r = &p->rec[i];
    fmpq_work_forward w;
    uint32_t at = 0, th = 0;
    const fmpq_geometry t = fmpq_tile_forward(r, &d[i]);
    const uint32_t rows = d[i].compact ? window_rows(r, d[i].strip) : (uint32_t)t.rows;
    const uint64_t pack = r->groups > 1 ? d[i].theta * 2ull : (uint64_t)r->kh * r->kw * (uint32_t)d[i].cp * fmpq_up(d[i].block_f, 16);
    memset(&w, 0, sizeof(w));
    w.pack = take(&at, pack);
    w.pack_low = take(&at, low_needed(plan, i) ? pack : 0);
    w.corr = take(&at, fmpq_up(d[i].block_f, 16) * 4u);
    w.coef = take(&at, r->cout * 12u);
    w.stats = take(&at, plan->threads * (uint64_t)r->cout * 16u);
    w.tile = take(&th, (uint64_t)rows * (uint32_t)t.cols * (uint32_t)t.c + FMPQ_ALIGN);
    w.stream = take(&th, fmpq_tensor_room(p, r->input, source_rows(p, r, rows), 1));
    /* after the convolutions the same thread part holds rows of x-hat and of the residual sum on their way to their buffers */
    if (d[i].compact || r->skip_kind) {
        uint32_t need = d[i].compact ? (uint32_t)d[i].strip_out * r->w_out * r->cout : 0;
        if (r->skip_kind && fmpq_tensor_make_room(p, i + 1, d[i].strip_out, 1) > need)
            need = fmpq_tensor_make_room(p, i + 1, d[i].strip_out, 1);
        need = fmpq_up(need, FMPQ_ALIGN);
        th = th < need ? need : th;
    }
    w.thread_size = th;
    w.thread0 = take(&at, (uint64_t)plan->threads * th);
    w.total = at;
    return w;
}

/* Where a shortcut shrinks the map, the chain of residual sums behind it would be computed again for every record after it. The backward pass
 * instead fills that tensor once, when it reaches the records that read the chain, and keeps it until the last of them is done. A batch of one
 * or two samples does without: there the bytes matter more. Returns 1 + the record whose error pass fills record r's output, 0: none. */
uint32_t fmpq_refill_at(const fmpq_program *p, const fmpq_plan *plan, uint32_t r)
{
    const uint32_t n = p->n_records, t = r + 1;
    uint32_t reader = n, next = 0;
    if (!plan->recompute || plan->batch < 3 || p->rec[r].kind != FMPQ_CONV || p->rec[r].skip_kind == FMPQ_SKIP_NONE)
        return 0;
    for (uint32_t j = n; j-- > t;)
        if (p->rec[j].skip_kind == FMPQ_SKIP_OPTION_A && p->rec[j].skip == t)
            reader = j;
    if (reader == n)
        return 0;
    /* the next tensor of this kind ends the stretch: from its own error pass on this one is read */
    for (uint32_t j = n; j-- > reader + 1;)
        if (p->rec[j].skip_kind == FMPQ_SKIP_OPTION_A && p->rec[j].skip > t)
            next = p->rec[j].skip - 1u;
    if (!next)
        next = n - 2;
    while (next > r && p->rec[next].kind != FMPQ_CONV)
        next--;
    return next > r ? next + 1 : 0;
}

fmpq_work_error fmpq_plan_error(const fmpq_program *p, const fmpq_plan *plan, const fmpq_derived *d, uint32_t i)
{
    const fmpq_record *r = &p->rec[i];
    fmpq_work_error w;
    uint32_t at = 0, th = 0, room;
    memset(&w, 0, sizeof(w));
    w.coef = take(&at, r->cout * 12u);
    w.sums = take(&at, plan->threads * (uint64_t)r->cout * 20u);
    room = fmpq_tensor_room(p, i + 1, d[i].strip_out, !plan->recompute);
    for (uint32_t k = 0; k < i; k++) /* this op may fill other tensors first */
        if (fmpq_refill_at(p, plan, k) == i + 1 && fmpq_tensor_make_room(p, k + 1, p->rec[k].h_out, 0) > room)
            room = fmpq_tensor_make_room(p, k + 1, p->rec[k].h_out, 0);
    w.stream = take(&th, room);
    w.thread_size = th;
    w.thread0 = take(&at, (uint64_t)plan->threads * th);
    w.total = at;
    return w;
}

/* most taps that one phase of the transposed convolution has */
static uint32_t phase_taps(const fmpq_record *r)
{
    return (uint32_t)((r->kh + r->stride - 1) / r->stride) * (uint32_t)((r->kw + r->stride - 1) / r->stride);
}

uint64_t fmpq_pack_bytes(const fmpq_record *r, const fmpq_derived *d, int whole)
{
    const fmpq_geometry t = fmpq_tile_backward(r, d);
    if (r->groups > 1)
        return d->theta * 2ull;
    if (whole || !d->compact)
        return (uint64_t)r->kh * r->kw * (uint32_t)t.c * fmpq_up(r->cin, 16);
    return (uint64_t)phase_taps(r) * (uint32_t)t.c * fmpq_up(d->block_b, 16);
}

/* the pack's parts behind `base`; returns their bytes */
uint32_t fmpq_plan_pack(const fmpq_plan *plan, const fmpq_record *r, const fmpq_derived *d, uint32_t i, fmpq_work_input *w)
{
    uint32_t at = 0;
    const int whole = d->in_place;
    const uint64_t pack = fmpq_pack_bytes(r, d, whole);
    w->pack = take(&at, pack);
    w->pack_low = take(&at, low_needed(plan, i) ? pack : 0);
    w->corr = take(&at, whole || !d->compact ? (uint64_t)r->stride * r->stride * fmpq_up(r->cin, 16) * 4u : fmpq_up(d->block_b, 16) * 4u);
    return at;
}

fmpq_work_input fmpq_plan_input(const fmpq_program *p, const fmpq_plan *plan, const fmpq_derived *d, uint32_t i)
{
    const fmpq_record *r = &p->rec[i];
    fmpq_work_input w;
    uint32_t at = 0, th = 0;
    memset(&w, 0, sizeof(w));
    if (r->kind == FMPQ_CONV && r->input) {
        const fmpq_geometry t = fmpq_tile_backward(r, &d[i]);
        const uint32_t pack = fmpq_plan_pack(plan, r, &d[i], i, &w);
        at = d[i].in_place ? 0 : pack; /* in place: packed before, in a buffer of its own */
        w.maxima = take(&at, plan->threads * 4u);
        w.tile = take(&th, (uint64_t)fmpq_strip_backward(r, &t, d[i].strip_in) * (uint32_t)t.cols * (uint32_t)t.c + FMPQ_ALIGN);
    } else if (r->kind == FMPQ_MAXPOOL) {
        w.maxima = take(&at, plan->threads * 4u);
        w.stream = take(&th, fmpq_tensor_room(p, r->input, fmpq_tensor_rows_of(p, r->input), !plan->recompute));
    } else if (r->kind == FMPQ_CLASSIFIER) {
        w.pack = take(&at, d[i].theta * 2ull);
        w.maxima = take(&at, r->cin * 8u);
    } else {
        w.maxima = take(&at, plan->threads * 4u);
    }
    w.thread_size = th;
    w.thread0 = take(&at, (uint64_t)plan->threads * th);
    w.total = at;
    return w;
}

static uint64_t planar_bytes(const fmpq_record *r, const fmpq_geometry *t)
{
    return (uint64_t)t->rows * (uint32_t)fmpq_planar_row(r) * r->stride * r->cin + FMPQ_ALIGN;
}

fmpq_work_weight fmpq_plan_weight(const fmpq_program *p, const fmpq_plan *plan, const fmpq_derived *d, uint32_t i)
{
    const fmpq_record *r = &p->rec[i];
    fmpq_work_weight w;
    const uint32_t ci = (uint32_t)r->cin / r->groups, piece = r->kind == FMPQ_CLASSIFIER || r->groups > 1 ? d[i].row_len : d[i].tile_taps * ci;
    uint32_t at = 0, th = 0;
    memset(&w, 0, sizeof(w));
    w.row_u = take(&at, (uint64_t)plan->threads * piece * 4u);
    w.row_q = take(&at, (uint64_t)plan->threads * piece * 2u);
    if (r->kind == FMPQ_CLASSIFIER) {
        w.g64 = take(&at, d[i].row_len * 8u);
        w.sums = take(&at, r->cout * 8u);
    } else {
        const uint64_t cells = r->groups > 1 ? d[i].theta : (uint64_t)fmpq_up(d[i].tile_rows, 16) * piece;
        const uint32_t cols4 = fmpq_up(r->w_out, 4);
        const fmpq_geometry t = fmpq_tile_forward(r, &d[i]);
        const uint32_t rows = d[i].compact ? window_rows(r, d[i].strip) : (uint32_t)t.rows;
        const uint64_t plane = (uint64_t)rows * (uint32_t)fmpq_planar_row(r) * r->stride;
        const uint32_t room = fmpq_up(fmpq_tensor_room(p, r->input, source_rows(p, r, rows), !plan->recompute), FMPQ_ALIGN);
        w.g = take(&th, cells * 4u);
        w.g64 = take(&th, d[i].gs ? cells * 8u : 0);
        w.sums = take(&th, (uint32_t)d[i].cop * 4u);
        if (d[i].planar_once)
            w.planar = take(&th, planar_bytes(r, &t));
        w.tile = take(&th, (uint64_t)rows * (uint32_t)t.cols * (uint32_t)t.c + FMPQ_ALIGN);
        /* the activations are gone once the tile is made; planes and interleaved errors take their place */
        w.stream = th;
        if (r->groups == 1 && !d[i].planar_once) {
            w.planar = take(&th, plane * r->cin + FMPQ_ALIGN);
            w.e4 = take(&th, (uint64_t)d[i].strip * cols4 * fmpq_up(d[i].tile_rows, 16));
        }
        if (th < w.stream + room)
            th = w.stream + room;
        if (d[i].planar_once) { /* the tile is gone too */
            uint32_t after = w.tile;
            w.e4 = take(&after, (uint64_t)d[i].strip * cols4 * fmpq_up(d[i].tile_rows, 16));
            th = th < after ? after : th;
        }
    }
    w.thread_size = th;
    w.thread0 = take(&at, (uint64_t)plan->threads * th);
    w.total = at;
    return w;
}

static uint16_t rows_within(uint32_t bytes, uint32_t row_bytes, uint32_t extra, uint32_t step, uint32_t all)
{
    uint32_t n = 1;
    while (n < all && (uint64_t)((n + 1) * step + extra) * row_bytes <= bytes)
        n++;
    return (uint16_t)n;
}

static uint16_t block_within(uint32_t bytes, uint64_t bytes16, uint32_t channels)
{
    uint32_t n = 16;
    while (n < channels && (n / 16 + 1) * bytes16 <= bytes)
        n += 16;
    return (uint16_t)(n < channels ? n : channels);
}

/* Can the errors to the input be written over e8, which lies at the start of their buffer? From the last strip to the first, with the rows that two
 * strips share kept in the tile, no row may be overwritten before it was read. */
static int may_grow(const fmpq_record *r, const fmpq_derived *d)
{
    const fmpq_geometry t = fmpq_tile_backward(r, d);
    const uint64_t row_in = 2ull * r->w_in * r->cin, row_e = (uint64_t)r->w_out * r->cout;
    if (2ull * d->in_size <= d->out_size)
        return 0;
    for (int32_t y = 0; y < r->h_in; y += d->strip_in) {
        const int32_t unread = y / r->stride - t.top; /* rows of the error before the tile */
        if (unread > 0 && (uint64_t)y * row_in < (uint64_t)unread * row_e)
            return 0;
    }
    return 1;
}

/* `kept` is what the activations of all layers take: the work areas of a batch of one are small shares of it. */
void fmpq_derive_strips(const fmpq_program *p, const fmpq_plan *plan, uint32_t i, uint32_t kept, fmpq_derived *d)
{
    const fmpq_record *r = &p->rec[i];
    /* larger shares: a third fewer instructions on a microcontroller, a fifth more bytes; whole maps: a tenth fewer, a quarter more bytes */
    const uint32_t level = plan->recompute > 2 ? 2u : plan->recompute > 1 ? 1u : 0;
    static const uint8_t shares[3][3] = {{32, 12, 16}, {16, 4, 4}, {1, 1, 1}};
    const uint32_t tile = kept / shares[level][0], block = kept / shares[level][1], gradient = kept / shares[level][2];
    const uint32_t ci = (uint32_t)r->cin / r->groups;
    fmpq_geometry t;
    d->strip = r->h_out;
    d->strip_in = r->h_in;
    d->strip_out = r->h_out;
    d->block_f = r->cout;
    d->block_b = r->cin;
    d->tile_taps = (uint32_t)r->kh * r->kw;
    d->compact = plan->batch == 1;
    d->in_place = d->planar_once = 0;
    if (!d->compact || r->kind != FMPQ_CONV)
        return;
    t = fmpq_tile_forward(r, d);
    d->strip = rows_within(tile, (uint32_t)(t.cols * t.c), (uint32_t)(r->kh > r->stride ? r->kh - r->stride : 0), r->stride, r->h_out);
    d->strip_out = 1;
    while (d->strip_out < r->h_out && fmpq_tensor_make_room(p, i + 1, d->strip_out + 1u, 0) <= tile)
        d->strip_out++;
    t = fmpq_tile_backward(r, d);
    d->strip_in = (uint16_t)(r->stride * rows_within(tile, (uint32_t)(t.cols * t.c), (uint32_t)t.halo, 1,
                                                     (uint32_t)(r->h_in + r->stride - 1) / r->stride));
    if (r->groups == 1) {
        d->block_f = block_within(block, 16ull * (uint32_t)d->cp * r->kh * r->kw, r->cout);
        d->block_b = block_within(block, 16ull * phase_taps(r) * (uint32_t)t.c, r->cin);
        /* momentum needs whole rows: the exponent of its row is that of the row's largest value */
        while (!plan->momentum && d->tile_taps > 1 && d->tile_taps * ci * 64ull > gradient)
            d->tile_taps--;
        t = fmpq_tile_forward(r, d);
        d->planar_once = (d->tile_taps < (uint32_t)r->kh * r->kw || d->tile_rows < r->cout) && planar_bytes(r, &t) <= gradient;
    }
    /* worth it where e8 is larger than what packing everything before the weights change costs */
    if (r->input)
        d->in_place = (uint8_t)(may_grow(r, d) && fmpq_pack_bytes(r, d, 1) < fmpq_pack_bytes(r, d, 0) + d->out_size);
}
