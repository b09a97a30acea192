/* The planner: derived constants, buffer lifetimes, offsets, exact bytes. Exporter, coordinator and device all call it. */
#include "internal.h"

#define MAX_BUFFERS (FMPQ_MAX_RECORDS * 11)

typedef struct scratch {
    fmpq_derived d[FMPQ_MAX_RECORDS];
    fmpq_slots slots[FMPQ_MAX_RECORDS];
    fmpq_buffer buf[MAX_BUFFERS];
    uint16_t order[MAX_BUFFERS], best[MAX_BUFFERS];
    uint32_t n_order;
    uint64_t live[4 * FMPQ_MAX_RECORDS];
    uint16_t tensor_buf[FMPQ_MAX_RECORDS + 1], pending[FMPQ_MAX_RECORDS + 1];
    uint16_t id_xhat[FMPQ_MAX_RECORDS], id_y16[FMPQ_MAX_RECORDS], id_stream[FMPQ_MAX_RECORDS], id_again[FMPQ_MAX_RECORDS], id_eout[FMPQ_MAX_RECORDS], id_ein[FMPQ_MAX_RECORDS];
    uint16_t id_work[FMPQ_MAX_RECORDS][4], id_pack[FMPQ_MAX_RECORDS];
    /* buffers that lie at a fixed distance from another one, their leader: placed together */
    uint16_t leader[MAX_BUFFERS], next[MAX_BUFFERS], rest[MAX_BUFFERS];
    uint32_t delta[MAX_BUFFERS];
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

/* the largest sum of `terms` products of a value up to `most` and a weight of record r */
static uint64_t most_of_sum(const fmpq_plan *plan, uint32_t r, uint32_t terms, uint32_t most)
{
    return (uint64_t)terms * most * ((1u << plan->bits[r]) - 1u);
}

int fmpq_derive(const fmpq_program *p, const fmpq_plan *plan, fmpq_derived *d)
{
    uint32_t kept = 0;
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
        /* what a convolution adds up, forward and to its input, is int32; errors are read with 128 added */
        if (r->kind == FMPQ_CONV && (most_of_sum(plan, i, x->row_len, (uint32_t)x->amax) > INT32_MAX ||
                                     (r->input && most_of_sum(plan, i, (uint32_t)r->kh * r->kw * (r->cout / r->groups), 128) > INT32_MAX)))
            return FMPQ_E_PLAN_SUMS;
        x->act_shift = r->input ? p->rec[r->input - 1].t_out + 8 - plan->act_bits : 0;
        x->gs = fmpq_bitlen64((uint64_t)x->amax * 127u * m) - 31;
        x->gs = x->gs > 0 ? x->gs : 0;
        /* one gradient tile: small batches save bytes, large ones read the activations less often */
        x->tile_rows = plan->batch <= 4 ? 16 : 32;
        x->tile_rows = x->tile_rows < r->cout ? x->tile_rows : r->cout;
        kept += r->kind == FMPQ_CONV ? x->out_size : 0;
    }
    for (uint32_t i = 0; i < p->n_records; i++)
        fmpq_derive_strips(p, plan, i, kept, &d[i]);
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
    s->leader[s->n] = s->next[s->n] = s->rest[s->n] = NO_BUF;
    return (uint16_t)s->n++;
}

/* Buffer `id` lies `delta` bytes behind the start of `leader`. */
static uint16_t tie(scratch *s, uint16_t id, uint16_t leader, uint64_t delta)
{
    s->leader[id] = leader;
    s->delta[id] = delta > 0x7fffffffu ? 0x7fffffffu : (uint32_t)delta;
    s->next[id] = s->next[leader];
    s->next[leader] = id;
    return id;
}

static void extend_part(scratch *s, uint16_t id, uint32_t last)
{
    if (s->buf[id].last < last)
        s->buf[id].last = (uint16_t)last;
}

/* The buffer, and the one that holds the rest of its tensor, live until op `last`. */
static void extend(scratch *s, uint16_t id, uint32_t last)
{
    extend_part(s, id, last);
    if (s->rest[id] != NO_BUF)
        extend_part(s, s->rest[id], last);
}

/* The same for an error of which only the channels that record r's shortcut carries are needed any more. */
static void extend_carried(const fmpq_program *p, scratch *s, uint32_t r, uint16_t id, uint32_t last)
{
    const fmpq_record *x = &p->rec[r];
    if (s->d[r].compact && x->skip_kind == FMPQ_SKIP_OPTION_A && (uint64_t)x->h_out * x->w_out * p->rec[x->skip - 1].cout * 2u <= s->buf[id].size)
        extend_part(s, id, last);
    else
        extend(s, id, last);
}

/* Ops of record r's backward pass: the error to its input comes before the gradient of its weights, or after it where it works in place. */
static uint32_t op_input(const fmpq_program *p, const scratch *s, uint32_t r)
{
    return p->n_records + 3 * (p->n_records - 1u - r) + (s->d[r].in_place ? 2 : 1);
}

static uint32_t op_weight(const fmpq_program *p, const scratch *s, uint32_t r)
{
    return p->n_records + 3 * (p->n_records - 1u - r) + (s->d[r].in_place ? 1 : 2);
}

static uint64_t rounded(uint64_t bytes)
{
    return (bytes + FMPQ_ALIGN - 1) / FMPQ_ALIGN * FMPQ_ALIGN;
}

/* The buffer of record r's error to its input. In place it starts where e8 starts and goes on behind it; where only the channels of an option-A
 * shortcut will be needed of it later, those have a part of their own. */
static uint16_t add_error(const fmpq_program *p, const fmpq_plan *plan, scratch *s, uint32_t r)
{
    const fmpq_record *x = &p->rec[r];
    const uint32_t op = op_input(p, s, r);
    const uint64_t bytes = (uint64_t)plan->batch * s->d[r].in_size * 2;
    uint16_t id;
    if (s->d[r].in_place) {
        const uint64_t first = rounded(s->d[r].out_size);
        id = s->id_xhat[r];
        if (bytes > first)
            s->rest[id] = tie(s, add(s, bytes - first, op, op, FMPQ_BUF_ERROR, r), id, first);
        return id;
    }
    if (s->d[r].compact && p->rec[x->input - 1].skip_kind == FMPQ_SKIP_OPTION_A) {
        const fmpq_record *from = &p->rec[x->input - 1];
        const uint64_t carried = rounded((uint64_t)from->h_out * from->w_out * p->rec[from->skip - 1].cout * 2u);
        if (carried < bytes) {
            id = add(s, carried, op, op, FMPQ_BUF_ERROR, r);
            s->rest[id] = tie(s, add(s, bytes - carried, op, op, FMPQ_BUF_ERROR, r), id, carried);
            return id;
        }
    }
    return add(s, bytes, op, op, FMPQ_BUF_ERROR, r);
}

/* Buffer `id` holds an error to tensor t at op `op`: 0 it becomes the tensor's, 1 it merges into that, 2 a pending one merges into it. */
static uint8_t take_error(const fmpq_program *p, scratch *s, uint32_t t, uint16_t id, uint32_t op)
{
    const uint16_t waits = s->pending[t];
    if (s->tensor_buf[t] != NO_BUF) {
        extend(s, s->tensor_buf[t], op);
        return 1;
    }
    s->tensor_buf[t] = id;
    if (waits == NO_BUF)
        return 0;
    extend_carried(p, s, waits, s->id_eout[waits], op);
    s->pending[t] = NO_BUF;
    return 2;
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
        const uint32_t to_input = op_input(p, s, r);
        const uint16_t out = s->tensor_buf[r + 1];
        s->id_eout[r] = out;
        if (x->kind != FMPQ_CLASSIFIER) {
            if (out == NO_BUF)
                return FMPQ_E_PROGRAM_TOPOLOGY;
            extend(s, out, x->kind == FMPQ_CONV ? op : to_input);
        }
        if (x->input) {
            s->id_ein[r] = add_error(p, plan, s, r);
            sl->e_in_merges = take_error(p, s, x->input, s->id_ein[r], to_input);
        }
        if (x->kind == FMPQ_CONCAT) {
            s->id_xhat[r] = add(s, (uint64_t)plan->batch * s->d[x->skip - 1].out_size * 2, to_input, to_input, FMPQ_BUF_ERROR, r);
            sl->skip_merges = take_error(p, s, x->skip, s->id_xhat[r], to_input);
        } else if (x->skip_kind == FMPQ_SKIP_IDENTITY) {
            extend(s, out, to_input);
            sl->skip_merges = take_error(p, s, x->skip, out, to_input);
        } else if (x->skip_kind == FMPQ_SKIP_OPTION_A) {
            extend_carried(p, s, r, out, to_input);
            if (s->tensor_buf[x->skip] != NO_BUF) {
                sl->skip_merges = 1;
                extend(s, s->tensor_buf[x->skip], to_input);
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
        s->id_xhat[r] = s->id_y16[r] = s->id_stream[r] = s->id_again[r] = s->id_pack[r] = NO_BUF;
        for (int k = 0; k < 4; k++)
            s->id_work[r][k] = NO_BUF;
        if (x->kind == FMPQ_CONV) {
            s->id_xhat[r] = add(s, (uint64_t)b * d->out_size, r, back + 2, FMPQ_BUF_XHAT, r);
            if (d->compact) /* x-hat takes the place of y's first half; the residual sum may take that of the second */
                s->id_y16[r] = tie(s, add(s, d->out_size, r, r, x->skip_kind == FMPQ_SKIP_NONE ? FMPQ_BUF_Y16 : FMPQ_BUF_STREAM, r), s->id_xhat[r],
                                   rounded(d->out_size));
            else
                s->id_y16[r] = add(s, (uint64_t)b * d->out_size * 2, r, r, FMPQ_BUF_Y16, r);
            s->id_work[r][0] = add(s, fmpq_plan_forward(p, plan, s->d, r).total, r, r, FMPQ_BUF_WORK, r);
            s->id_work[r][1] = add(s, fmpq_plan_error(p, plan, s->d, r).total, back, back, FMPQ_BUF_WORK, r);
        } else if (x->kind == FMPQ_CLASSIFIER) {
            s->id_xhat[r] = add(s, (uint64_t)b * x->cin, r, back + 2, FMPQ_BUF_XHAT, r);
            s->id_y16[r] = add(s, (uint64_t)b * x->cout * 4, r, back + 2, FMPQ_BUF_ERROR, r);
            /* features are read through the tensors before them */
            s->id_work[r][0] = add(s, fmpq_up(d->theta * 2u, FMPQ_ALIGN) + fmpq_tensor_room(p, x->input, fmpq_tensor_rows_of(p, x->input), 1), r, r,
                                   FMPQ_BUF_WORK, r);
        }
        s->id_work[r][2] = add(s, fmpq_plan_input(p, plan, s->d, r).total, op_input(p, s, r), op_input(p, s, r), FMPQ_BUF_WORK, r);
        if (has_weights(x))
            s->id_work[r][3] = add(s, fmpq_plan_weight(p, plan, s->d, r).total, op_weight(p, s, r), op_weight(p, s, r), FMPQ_BUF_WORK, r);
        if (d->in_place) {
            fmpq_work_input w;
            s->id_pack[r] = add(s, fmpq_plan_pack(plan, x, d, r, &w), back + 1, back + 2, FMPQ_BUF_WORK, r);
        }
        if (x->kind == FMPQ_CONV && x->skip_kind != FMPQ_SKIP_NONE) {
            uint32_t last = last_reader(p, r + 1);
            if (!plan->recompute) {
                last = back;
                for (uint32_t j = r + 1; j < n; j++) /* readers' weight gradients come before our own backward pass */
                    last = last > n + 3 * (n - 1 - j) + 2 ? last : n + 3 * (n - 1 - j) + 2;
                s->slots[r].stream_in_backward = 1;
            }
            if (d->compact)
                extend(s, s->id_stream[r] = s->id_y16[r], last);
            else
                s->id_stream[r] = add(s, (uint64_t)b * d->out_size, r, last, FMPQ_BUF_STREAM, r);
        }
        plan_refill(p, plan, s, r);
    }
}

static int overlap(const fmpq_buffer *a, const fmpq_buffer *b)
{
    return a->first <= b->last && b->first <= a->last;
}

/* The order in which buffers are placed: the largest first, the one with the most byte-ops, the one that lives through the fullest op, the
 * longest-lived, or in the order of their birth. */
#define ORDERS 5
static uint64_t weight_of(const scratch *s, const fmpq_buffer *b, int order)
{
    const uint64_t life = 1u + b->last - b->first;
    uint64_t full = 0;
    switch (order) {
    case 0:
        return b->size;
    case 1:
        return b->size * life;
    case 2:
        for (uint32_t op = b->first; op <= b->last; op++)
            full = s->live[op] > full ? s->live[op] : full;
        return full << 32 | b->size;
    case 3:
        return life << 32 | b->size;
    default:
        return (uint64_t)(0xffffu - b->first) << 32 | b->size;
    }
}

static void sort_by(scratch *s, int order)
{
    s->n_order = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        uint32_t j = s->n_order;
        const uint64_t w = weight_of(s, &s->buf[i], order);
        if (s->leader[i] != NO_BUF)
            continue;
        for (; j > 0 && weight_of(s, &s->buf[s->order[j - 1]], order) < w; j--)
            s->order[j] = s->order[j - 1];
        s->order[j] = (uint16_t)i;
        s->n_order++;
    }
}

/* Raises `at` until buffer b, `delta` bytes behind it, clears buffer o and those tied to that; 1 where it had to move. */
static int clear(const fmpq_buffer *b, uint32_t delta, const scratch *s, uint16_t o, uint64_t *at)
{
    int moved = 0;
    for (; o != NO_BUF; o = s->next[o]) {
        const fmpq_buffer *other = &s->buf[o];
        const uint64_t end = (uint64_t)other->offset + other->size, here = *at + delta;
        if (other->size && overlap(b, other) && here < end && other->offset < here + b->size) {
            *at = end - delta; /* more than before: end > here */
            moved = 1;
        }
    }
    return moved;
}

/* Each buffer, with those tied to it, at the lowest offset where no buffer alive at the same time lies; the place in the order of the one that
 * reaches highest. */
static uint64_t place_in(scratch *s, uint32_t *highest)
{
    uint64_t top = 0;
    for (uint32_t i = 0; i < s->n_order; i++) {
        const uint16_t lead = s->order[i];
        uint64_t at = 0;
        int moved = 1;
        while (moved) {
            moved = 0;
            for (uint32_t j = 0; j < i; j++)
                for (uint16_t k = lead; k != NO_BUF; k = s->next[k])
                    moved |= clear(&s->buf[k], k == lead ? 0 : s->delta[k], s, s->order[j], &at);
        }
        for (uint16_t k = lead; k != NO_BUF; k = s->next[k]) {
            const uint64_t here = at + (k == lead ? 0 : s->delta[k]);
            if (here + s->buf[k].size > 0x7fffffffu)
                return 0xffffffffu;
            s->buf[k].offset = (uint32_t)here;
            if (here + s->buf[k].size > top) {
                top = here + s->buf[k].size;
                *highest = i;
            }
        }
    }
    return top;
}

/* Bytes alive at each op: no placement can do with less than the most of them. */
static uint64_t count_live(scratch *s, uint32_t ops)
{
    uint64_t most = 0;
    memset(s->live, 0, sizeof(s->live));
    for (uint32_t i = 0; i < s->n; i++)
        for (uint32_t op = s->buf[i].first; op <= s->buf[i].last; op++)
            s->live[op] += s->buf[i].size;
    for (uint32_t op = 0; op < ops; op++)
        most = s->live[op] > most ? s->live[op] : most;
    return most;
}

/* Tries the orders; then, as long as bytes are lost between buffers, puts whichever reached highest in front and tries again. */
#define TRIES 60
static uint64_t place(scratch *s, uint32_t ops)
{
    const uint64_t least = count_live(s, ops);
    uint64_t best = ~(uint64_t)0;
    uint32_t highest = 0;
    for (int order = 0; order < ORDERS && best > least; order++) {
        sort_by(s, order);
        for (int i = 0; i < TRIES && best > least; i++) {
            const uint64_t top = place_in(s, &highest);
            uint16_t moved;
            if (top < best) {
                best = top;
                memcpy(s->best, s->order, sizeof(s->best));
            }
            if (!highest)
                break;
            moved = s->order[highest];
            memmove(&s->order[1], &s->order[0], highest * sizeof(s->order[0]));
            s->order[0] = moved;
        }
    }
    memcpy(s->order, s->best, sizeof(s->order));
    return place_in(s, &highest);
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
    step = place(s, 4u * p->n_records);
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
        sl->y16 = OFFSET(s->d[r].compact && x->kind == FMPQ_CONV ? s->id_xhat[r] : s->id_y16[r]);
        sl->stream = OFFSET(s->id_stream[r]);
        sl->again = OFFSET(s->id_again[r]);
        sl->e_out = x->kind == FMPQ_CLASSIFIER ? FMPQ_NONE : OFFSET(s->id_eout[r]);
        sl->e_in = x->input ? OFFSET(s->id_ein[r]) : FMPQ_NONE;
        sl->work_f = OFFSET(s->id_work[r][0]);
        sl->work_b0 = OFFSET(s->id_work[r][1]);
        sl->work_b1 = OFFSET(s->id_work[r][2]);
        sl->work_b2 = OFFSET(s->id_work[r][3]);
        sl->pack_b = OFFSET(s->id_pack[r]);
    }
#undef OFFSET
    return FMPQ_OK;
}

int fmpq_layout(const fmpq_program *p, const fmpq_plan *plan, void *scratch_, fmpq_slots *slots, fmpq_memory *mem, fmpq_buffer *buffers,
                uint32_t cap)
{
    scratch *s = scratch_;
    const int err = layout(p, plan, s, mem);
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
    return fmpq_layout(p, plan, scratch_, NULL, out, buffers, cap);
}
