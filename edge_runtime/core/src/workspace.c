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
    return t;
}

/* For one axis: margins so that every output position and tap of the transposed convolution stays inside. */
static void margin(int32_t in, int32_t out, int32_t k, int32_t stride, int32_t pad, int32_t *low, int32_t *size)
{
    int32_t lo = 0, hi = out - 1;
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
        }
    }
    *low = -lo;
    *size = hi - lo + 1;
}

fmpq_geometry fmpq_tile_backward(const fmpq_record *r, const fmpq_derived *d)
{
    fmpq_geometry t;
    margin(r->h_in, r->h_out, r->kh, r->stride, r->pad, &t.top, &t.rows);
    margin(r->w_in, r->w_out, r->kw, r->stride, r->pad, &t.left, &t.cols);
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
        for (int32_t j = 0; j < r->kw; j++) {
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

static uint32_t low_needed(const fmpq_plan *plan, uint32_t r)
{
    return plan->bits[r] > 7;
}

fmpq_work_forward fmpq_plan_forward(const fmpq_program *p, const fmpq_plan *plan, const fmpq_derived *d, uint32_t i)
{
    const fmpq_record *r = &p->rec[i];
    fmpq_work_forward w;
    uint32_t at = 0, th = 0;
    const fmpq_geometry t = fmpq_tile_forward(r, &d[i]);
    const uint64_t pack = r->groups > 1 ? d[i].theta * 2ull : (uint64_t)r->kh * r->kw * (uint32_t)d[i].cp * (uint32_t)d[i].cop;
    memset(&w, 0, sizeof(w));
    w.pack = take(&at, pack);
    w.pack_low = take(&at, low_needed(plan, i) ? pack : 0);
    w.corr = take(&at, (uint32_t)d[i].cop * 4u);
    w.coef = take(&at, r->cout * 12u);
    w.stats = take(&at, plan->threads * (uint64_t)r->cout * 16u);
    w.tile = take(&th, (uint64_t)t.rows * (uint32_t)t.cols * (uint32_t)t.c + FMPQ_ALIGN);
    w.stream = take(&th, fmpq_tensor_room(p, r->input, 1));
    /* after the convolutions the same thread part holds the residual sum on its way to its buffer */
    if (r->skip_kind) {
        const uint32_t need = fmpq_up(fmpq_tensor_make_room(p, i + 1, 1), FMPQ_ALIGN);
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

fmpq_work_error fmpq_plan_error(const fmpq_program *p, const fmpq_plan *plan, uint32_t i)
{
    const fmpq_record *r = &p->rec[i];
    fmpq_work_error w;
    uint32_t at = 0, th = 0, room;
    memset(&w, 0, sizeof(w));
    w.coef = take(&at, r->cout * 12u);
    w.sums = take(&at, plan->threads * (uint64_t)r->cout * 20u);
    room = fmpq_tensor_room(p, i + 1, !plan->recompute);
    for (uint32_t k = 0; k < i; k++) /* this op may fill other tensors first */
        if (fmpq_refill_at(p, plan, k) == i + 1 && fmpq_tensor_make_room(p, k + 1, 0) > room)
            room = fmpq_tensor_make_room(p, k + 1, 0);
    w.stream = take(&th, room);
    w.thread_size = th;
    w.thread0 = take(&at, (uint64_t)plan->threads * th);
    w.total = at;
    return w;
}

fmpq_work_input fmpq_plan_input(const fmpq_program *p, const fmpq_plan *plan, const fmpq_derived *d, uint32_t i)
{
    const fmpq_record *r = &p->rec[i];
    fmpq_work_input w;
    uint32_t at = 0, th = 0;
    memset(&w, 0, sizeof(w));
    if (r->kind == FMPQ_CONV && r->input) {
        const fmpq_geometry t = fmpq_tile_backward(r, &d[i]);
        const uint32_t cip = fmpq_up(r->cin, 16);
        const uint64_t pack = r->groups > 1 ? d[i].theta * 2ull : (uint64_t)r->kh * r->kw * (uint32_t)t.c * cip;
        w.pack = take(&at, pack);
        w.pack_low = take(&at, low_needed(plan, i) ? pack : 0);
        w.corr = take(&at, (uint64_t)r->stride * r->stride * cip * 4u);
        w.maxima = take(&at, plan->threads * 4u);
        w.tile = take(&th, (uint64_t)t.rows * (uint32_t)t.cols * (uint32_t)t.c + FMPQ_ALIGN);
    } else if (r->kind == FMPQ_MAXPOOL) {
        w.maxima = take(&at, plan->threads * 4u);
        w.stream = take(&th, fmpq_tensor_room(p, r->input, !plan->recompute));
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

fmpq_work_weight fmpq_plan_weight(const fmpq_program *p, const fmpq_plan *plan, const fmpq_derived *d, uint32_t i)
{
    const fmpq_record *r = &p->rec[i];
    fmpq_work_weight w;
    uint32_t at = 0, th = 0;
    memset(&w, 0, sizeof(w));
    w.row_u = take(&at, d[i].row_len * 4u);
    w.row_q = take(&at, d[i].row_len * 2u);
    if (r->kind == FMPQ_CLASSIFIER) {
        w.g64 = take(&at, d[i].row_len * 8u);
        w.sums = take(&at, r->cout * 8u);
    } else {
        const uint64_t cells = r->groups > 1 ? d[i].theta : (uint64_t)fmpq_up(d[i].tile_rows, 16) * d[i].row_len;
        const uint32_t cols4 = fmpq_up(r->w_out, 4);
        const uint64_t plane = (uint64_t)(r->h_in + 2u * r->pad) * (uint32_t)fmpq_planar_row(r) * r->stride;
        const fmpq_geometry t = fmpq_tile_forward(r, &d[i]);
        w.g = take(&th, cells * 4u);
        w.g64 = take(&th, d[i].gs ? cells * 8u : 0);
        w.sums = take(&th, (uint32_t)d[i].cop * 4u);
        w.tile = take(&th, (uint64_t)t.rows * (uint32_t)t.cols * (uint32_t)t.c + FMPQ_ALIGN);
        /* the activations are gone once the tile is made; planes and interleaved errors take their place */
        w.stream = th;
        if (r->groups == 1) {
            w.planar = take(&th, plane * r->cin + FMPQ_ALIGN);
            w.e4 = take(&th, (uint64_t)r->h_out * cols4 * fmpq_up(d[i].tile_rows, 16));
        }
        if (th < w.stream + fmpq_up(fmpq_tensor_room(p, r->input, !plan->recompute), FMPQ_ALIGN))
            th = w.stream + fmpq_up(fmpq_tensor_room(p, r->input, !plan->recompute), FMPQ_ALIGN);
    }
    w.thread_size = th;
    w.thread0 = take(&at, (uint64_t)plan->threads * th);
    w.total = at;
    return w;
}
