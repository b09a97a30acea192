/* The planner: derived constants, buffer lifetimes, offsets, exact bytes. Exporter, coordinator and device all call it. */
#include "internal.h"

#define MAX_BUFFERS (FMPQ_MAX_RECORDS * 9)

typedef struct scratch {
    fmpq_derived d[FMPQ_MAX_RECORDS];
    fmpq_slots slots[FMPQ_MAX_RECORDS];
    fmpq_buffer buf[MAX_BUFFERS];
    uint16_t order[MAX_BUFFERS];
    uint16_t tensor_buf[FMPQ_MAX_RECORDS + 1], pending[FMPQ_MAX_RECORDS + 1];
    uint16_t id_xhat[FMPQ_MAX_RECORDS], id_y16[FMPQ_MAX_RECORDS], id_stream[FMPQ_MAX_RECORDS], id_again[FMPQ_MAX_RECORDS], id_eout[FMPQ_MAX_RECORDS], id_ein[FMPQ_MAX_RECORDS];
    uint16_t id_work[FMPQ_MAX_RECORDS][4];
    uint32_t n;
} scratch;

#define NO_BUF 0xffffu

size_t fmpq_plan_scratch(void)
{
    return sizeof(scratch);
}

static int has_weights(const fmpq_record *r)
{
    return r->kind == FMPQ_CONV || r->kind == FMPQ_CLASSIFIER;
}

int fmpq_derive(const fmpq_program *p, const fmpq_plan *plan, fmpq_derived *d)
{
    if (!plan->batch || plan->batch > 4096 || (plan->act_bits != 4 && plan->act_bits != 8) || plan->guard > 8 || !plan->threads ||
        plan->threads > 64)
        return FMPQ_E_PLAN_RANGE;
    for (uint32_t i = 0; i < p->n_records; i++) {
        const fmpq_record *r = &p->rec[i];
        fmpq_derived *x = &d[i];
        const uint64_t m = (uint64_t)plan->batch * r->h_out * r->w_out;
        memset(x, 0, sizeof(*x));
        x->out_size = (uint32_t)r->h_out * r->w_out * r->cout;
        x->in_size = r->input ? d[r->input - 1].out_size : (uint32_t)p->in_h * p->in_w * p->in_c;
        if (!has_weights(r)) {
            if (plan->bits[i])
                return FMPQ_E_PLAN_BITS;
            continue;
        }
        if (plan->bits[i] < 1 || plan->bits[i] > 8 || plan->bits[i] + plan->guard > 15)
            return FMPQ_E_PLAN_BITS;
        if (m > 1u << 22)
            return FMPQ_E_PLAN_OVERFLOW;
        x->theta = fmpq_record_theta(r);
        x->rows = r->cout;
        x->row_len = x->theta / r->cout;
        x->cp = (int32_t)fmpq_up(r->cin, 4);
        x->cop = (int32_t)fmpq_up(r->cout, 16);
        x->amax = r->input ? (1 << plan->act_bits) - 1 : 255;
        x->act_shift = r->input ? p->rec[r->input - 1].t_out + 8 - plan->act_bits : 0;
        x->gs = fmpq_bitlen64((uint64_t)x->amax * 127u * m) - 31;
        x->gs = x->gs > 0 ? x->gs : 0;
        /* one gradient tile: small batches save bytes, large ones read the activations less often */
        x->tile_rows = plan->batch <= 4 ? 16 : 32;
        x->tile_rows = x->tile_rows < r->cout ? x->tile_rows : r->cout;
    }
    return FMPQ_OK;
}

static uint16_t add(scratch *s, uint64_t size, uint32_t first, uint32_t last, int kind, uint32_t record)
{
    fmpq_buffer *b = &s->buf[s->n];
    const uint64_t up = (size + FMPQ_ALIGN - 1) / FMPQ_ALIGN * FMPQ_ALIGN;
    memset(b, 0, sizeof(*b));
    b->size = up > 0x7fffffc0u ? 0x7fffffc0u : (uint32_t)up;
    b->first = (uint16_t)first;
    b->last = (uint16_t)last;
    b->kind = (uint8_t)kind;
    b->record = (uint8_t)record;
    return (uint16_t)s->n++;
}

static void extend(scratch *s, uint16_t id, uint32_t last)
{
    if (s->buf[id].last < last)
        s->buf[id].last = (uint16_t)last;
}

/* Error buffers, walked in the order of the backward pass. */
static int plan_errors(const fmpq_program *p, const fmpq_plan *plan, scratch *s)
{
    const uint32_t n = p->n_records;
    for (uint32_t t = 0; t <= n; t++)
        s->tensor_buf[t] = s->pending[t] = NO_BUF;
    for (uint32_t r = n; r-- > 0;) {
        const fmpq_record *x = &p->rec[r];
        fmpq_slots *sl = &s->slots[r];
        const uint32_t op = n + 3 * (n - 1 - r);
        const uint64_t in_bytes = (uint64_t)plan->batch * s->d[r].in_size * 2;
        const uint16_t out = s->tensor_buf[r + 1];
        s->id_eout[r] = out;
        if (x->kind != FMPQ_CLASSIFIER) {
            if (out == NO_BUF)
                return FMPQ_E_PROGRAM_TOPOLOGY;
            extend(s, out, op + (x->kind == FMPQ_CONV ? 0 : 1));
        }
        if (x->input) {
            s->id_ein[r] = add(s, in_bytes, op + 1, op + 1, FMPQ_BUF_ERROR, r);
            if (s->tensor_buf[x->input] != NO_BUF) {
                sl->e_in_merges = 1;
                extend(s, s->tensor_buf[x->input], op + 1);
            } else {
                s->tensor_buf[x->input] = s->id_ein[r];
                if (s->pending[x->input] != NO_BUF) {
                    sl->e_in_merges = 2;
                    extend(s, s->id_eout[s->pending[x->input]], op + 1);
                    s->pending[x->input] = NO_BUF;
                }
            }
        }
        if (x->skip_kind != FMPQ_SKIP_NONE) {
            extend(s, out, op + 1);
            if (s->tensor_buf[x->skip] != NO_BUF) {
                sl->skip_merges = 1;
                extend(s, s->tensor_buf[x->skip], op + 1);
            } else if (x->skip_kind == FMPQ_SKIP_IDENTITY) {
                s->tensor_buf[x->skip] = out;
            } else {
                s->pending[x->skip] = (uint16_t)r;
            }
        }
    }
    return FMPQ_OK;
}

/* Last forward op that reads tensor t. Pools are computed where they are read, so their readers read t. */
static uint32_t last_reader(const fmpq_program *p, uint32_t t)
{
    uint32_t last = t - 1;
    for (uint32_t j = t; j < p->n_records; j++) {
        const fmpq_record *x = &p->rec[j];
        uint32_t at = j;
        if (x->input != t && x->skip != t)
            continue;
        if (x->kind != FMPQ_CONV && x->kind != FMPQ_CLASSIFIER)
            at = last_reader(p, j + 1);
        last = at > last ? at : last;
    }
    return last;
}

static void plan_refill(const fmpq_program *p, const fmpq_plan *plan, scratch *s, uint32_t r)
{
    const uint32_t n = p->n_records, at = fmpq_refill_at(p, plan, r);
    s->id_again[r] = NO_BUF;
    s->slots[r].refill = (uint8_t)at;
    if (at)
        s->id_again[r] = add(s, (uint64_t)plan->batch * s->d[r].out_size, n + 3 * (n - at), n + 3 * (n - 1 - r), FMPQ_BUF_STREAM, r);
}

static void plan_buffers(const fmpq_program *p, const fmpq_plan *plan, scratch *s)
{
    const uint32_t n = p->n_records, b = plan->batch;
    for (uint32_t r = 0; r < n; r++) {
        const fmpq_record *x = &p->rec[r];
        const fmpq_derived *d = &s->d[r];
        const uint32_t back = n + 3 * (n - 1 - r);
        s->id_xhat[r] = s->id_y16[r] = s->id_stream[r] = s->id_again[r] = NO_BUF;
        for (int k = 0; k < 4; k++)
            s->id_work[r][k] = NO_BUF;
        if (x->kind == FMPQ_CONV) {
            s->id_xhat[r] = add(s, (uint64_t)b * d->out_size, r, back + 2, FMPQ_BUF_XHAT, r);
            s->id_y16[r] = add(s, (uint64_t)b * d->out_size * 2, r, r, FMPQ_BUF_Y16, r);
            s->id_work[r][0] = add(s, fmpq_plan_forward(p, plan, s->d, r).total, r, r, FMPQ_BUF_WORK, r);
            s->id_work[r][1] = add(s, fmpq_plan_error(p, plan, r).total, back, back, FMPQ_BUF_WORK, r);
        } else if (x->kind == FMPQ_CLASSIFIER) {
            s->id_xhat[r] = add(s, (uint64_t)b * x->cin, r, back + 2, FMPQ_BUF_XHAT, r);
            s->id_y16[r] = add(s, (uint64_t)b * x->cout * 4, r, back + 2, FMPQ_BUF_ERROR, r);
            /* features are read through the tensors before them */
            s->id_work[r][0] = add(s, fmpq_up(d->theta * 2u, FMPQ_ALIGN) + fmpq_tensor_room(p, x->input, 1), r, r,
                                   FMPQ_BUF_WORK, r);
        }
        s->id_work[r][2] = add(s, fmpq_plan_input(p, plan, s->d, r).total, back + 1, back + 1, FMPQ_BUF_WORK, r);
        if (has_weights(x))
            s->id_work[r][3] = add(s, fmpq_plan_weight(p, plan, s->d, r).total, back + 2, back + 2, FMPQ_BUF_WORK, r);
        if (x->skip_kind != FMPQ_SKIP_NONE) {
            uint32_t last = last_reader(p, r + 1);
            if (!plan->recompute) {
                last = back;
                for (uint32_t j = r + 1; j < n; j++) /* readers' weight gradients come before our own backward pass */
                    last = last > n + 3 * (n - 1 - j) + 2 ? last : n + 3 * (n - 1 - j) + 2;
                s->slots[r].stream_in_backward = 1;
            }
            s->id_stream[r] = add(s, (uint64_t)b * d->out_size, r, last, FMPQ_BUF_STREAM, r);
        }
        plan_refill(p, plan, s, r);
    }
}

static int overlap(const fmpq_buffer *a, const fmpq_buffer *b)
{
    return a->first <= b->last && b->first <= a->last;
}

/* The order in which buffers are placed: the largest first, or the one with the most byte-ops first, or in the order of their birth. */
static uint64_t weight_of(const fmpq_buffer *b, int order)
{
    if (order == 0)
        return b->size;
    if (order == 1)
        return (uint64_t)b->size * (1u + b->last - b->first);
    return (uint64_t)(0xffffu - b->first) << 32 | b->size;
}

/* Each buffer at the lowest offset where no buffer alive at the same time lies. */
static uint64_t place_in(scratch *s, int order)
{
    uint64_t top = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        uint32_t j = i;
        for (; j > 0 && weight_of(&s->buf[s->order[j - 1]], order) < weight_of(&s->buf[i], order); j--)
            s->order[j] = s->order[j - 1];
        s->order[j] = (uint16_t)i;
    }
    for (uint32_t i = 0; i < s->n; i++) {
        fmpq_buffer *b = &s->buf[s->order[i]];
        uint64_t at = 0;
        int moved = 1;
        while (moved) {
            moved = 0;
            for (uint32_t j = 0; j < i; j++) {
                const fmpq_buffer *o = &s->buf[s->order[j]];
                if (o->size && overlap(b, o) && at < (uint64_t)o->offset + o->size && o->offset < at + b->size) {
                    at = (uint64_t)o->offset + o->size;
                    moved = 1;
                }
            }
        }
        if (at + b->size > 0x7fffffffu)
            return 0xffffffffu;
        b->offset = (uint32_t)at;
        top = at + b->size > top ? at + b->size : top;
    }
    return top;
}

/* The best of the orders; the first of equals. */
static uint64_t place(scratch *s)
{
    uint64_t best = ~(uint64_t)0;
    int chosen = 0;
    for (int order = 0; order < 3; order++) {
        const uint64_t top = place_in(s, order);
        if (top < best) {
            best = top;
            chosen = order;
        }
    }
    return place_in(s, chosen);
}

static uint64_t plan_state(const fmpq_program *p, const fmpq_plan *plan, scratch *s)
{
    uint64_t at = fmpq_up(fmpq_tables_size(p->n_records), FMPQ_ALIGN);
#define TAKE(field, bytes)                                                                                                                        \
    do {                                                                                                                                          \
        s->slots[r].field = (uint32_t)at;                                                                                                         \
        at += ((uint64_t)(bytes) + 7) / 8 * 8;                                                                                                    \
    } while (0)
    for (uint32_t r = 0; r < p->n_records; r++) {
        const fmpq_record *x = &p->rec[r];
        const fmpq_derived *d = &s->d[r];
        fmpq_slots *sl = &s->slots[r];
        sl->planes = sl->params = sl->velocity = sl->velocity_exp = sl->velocity_bn = sl->sums = sl->sums_bn = sl->coef = FMPQ_NONE;
        if (!has_weights(x))
            continue;
        TAKE(planes, (uint64_t)fmpq_plane_bytes(d->theta) * (1u + plan->bits[r] + plan->guard));
        TAKE(params, x->kind == FMPQ_CONV ? fmpq_up(x->cout * 12u, 8) + x->cout * 8u : x->cout * 4u);
        if (x->kind == FMPQ_CONV)
            TAKE(coef, x->cout * 4u);
        if (plan->momentum) {
            TAKE(velocity, d->theta);
            TAKE(velocity_exp, d->rows);
            TAKE(velocity_bn, x->cout * (x->kind == FMPQ_CONV ? 8u : 4u));
        }
        if (plan->accumulate) {
            TAKE(sums, d->theta * 4ull);
            TAKE(sums_bn, x->cout * (x->kind == FMPQ_CONV ? 8u : 4u));
        }
    }
#undef TAKE
    return (at + FMPQ_ALIGN - 1) / FMPQ_ALIGN * FMPQ_ALIGN;
}

static int layout(const fmpq_program *p, const fmpq_plan *plan, scratch *s, fmpq_memory *mem)
{
    uint64_t state, step;
    int err;
    memset(s, 0, sizeof(*s));
    err = fmpq_derive(p, plan, s->d);
    if (err)
        return err;
    state = plan_state(p, plan, s);
    plan_buffers(p, plan, s);
    err = plan_errors(p, plan, s);
    if (err)
        return err;
    step = place(s);
    if (state + step > 0x7fffffffu)
        return FMPQ_E_PLAN_OVERFLOW;
    mem->state = state;
    mem->step = step;
    mem->total = state + step;
    mem->n_ops = 4u * p->n_records;
#define OFFSET(id) ((id) == NO_BUF ? FMPQ_NONE : s->buf[id].offset + (uint32_t)state)
    for (uint32_t r = 0; r < p->n_records; r++) {
        fmpq_slots *sl = &s->slots[r];
        const fmpq_record *x = &p->rec[r];
        sl->xhat = OFFSET(s->id_xhat[r]);
        sl->y16 = OFFSET(s->id_y16[r]);
        sl->stream = OFFSET(s->id_stream[r]);
        sl->again = OFFSET(s->id_again[r]);
        sl->e_out = x->kind == FMPQ_CLASSIFIER ? FMPQ_NONE : OFFSET(s->id_eout[r]);
        sl->e_in = x->input ? OFFSET(s->id_ein[r]) : FMPQ_NONE;
        sl->work_f = OFFSET(s->id_work[r][0]);
        sl->work_b0 = OFFSET(s->id_work[r][1]);
        sl->work_b1 = OFFSET(s->id_work[r][2]);
        sl->work_b2 = OFFSET(s->id_work[r][3]);
    }
#undef OFFSET
    return FMPQ_OK;
}

int fmpq_layout(const fmpq_program *p, const fmpq_plan *plan, const fmpq_derived *d, void *scratch_, fmpq_slots *slots, fmpq_memory *mem,
                fmpq_buffer *buffers, uint32_t cap)
{
    scratch *s = scratch_;
    const int err = layout(p, plan, s, mem);
    (void)d;
    if (err)
        return err;
    if (slots)
        memcpy(slots, s->slots, p->n_records * sizeof(s->slots[0]));
    mem->n_buffers = s->n + 1;
    if (buffers && cap) {
        memset(&buffers[0], 0, sizeof(buffers[0]));
        buffers[0].size = (uint32_t)mem->state;
        buffers[0].last = (uint16_t)(mem->n_ops - 1);
        buffers[0].kind = FMPQ_BUF_STATE;
        for (uint32_t i = 0; i < s->n && i + 1 < cap; i++) {
            buffers[i + 1] = s->buf[i];
            buffers[i + 1].offset += (uint32_t)mem->state;
        }
    }
    return FMPQ_OK;
}

int fmpq_plan_memory(const fmpq_program *p, const fmpq_plan *plan, void *scratch_, fmpq_memory *out, fmpq_buffer *buffers, uint32_t cap)
{
    if (!p || !plan || !scratch_ || !out)
        return FMPQ_E_NULL;
    return fmpq_layout(p, plan, NULL, scratch_, NULL, out, buffers, cap);
}
