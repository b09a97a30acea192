/* The session: its arena, its weights, and the order of a step. */
#include "internal.h"

_Static_assert(sizeof(fmpq_session) <= FMPQ_SESSION_ROOM, "raise FMPQ_SESSION_ROOM to the 64-bit size of fmpq_session");

/* The tables lie behind the session's structure, the first thing in the arena. */
static void fmpq_tables(fmpq_session *s, uint32_t n)
{
    uint8_t *at = (uint8_t *)s + FMPQ_SESSION_ROOM;
    s->slot = (fmpq_slots *)(void *)at;
    at += fmpq_up(n * (uint32_t)sizeof(fmpq_slots), 8);
    s->d = (fmpq_derived *)(void *)at;
    at += fmpq_up(n * (uint32_t)sizeof(fmpq_derived), 8);
    s->layer = (fmpq_layer *)(void *)at;
    at += fmpq_up(n * (uint32_t)sizeof(fmpq_layer), 8);
    s->err = (fmpq_tensor_error *)(void *)at;
}

uint32_t fmpq_tables_size(uint32_t n)
{
    return FMPQ_SESSION_ROOM + fmpq_up(n * (uint32_t)sizeof(fmpq_slots), 8) + fmpq_up(n * (uint32_t)sizeof(fmpq_derived), 8) +
           fmpq_up(n * (uint32_t)sizeof(fmpq_layer), 8) + (n + 1) * (uint32_t)sizeof(fmpq_tensor_error);
}

int fmpq_init(const fmpq_program *program, const fmpq_plan *plan, void *buf, size_t len, void *scratch, fmpq_session **out)
{
    fmpq_session *s = buf;
    fmpq_memory mem;
    int err;
    if (!program || !plan || !buf || !scratch || !out)
        return FMPQ_E_NULL;
    if ((uintptr_t)buf % FMPQ_ALIGN)
        return FMPQ_E_ALIGN;
    err = fmpq_plan_memory(program, plan, scratch, &mem, NULL, 0);
    if (err)
        return err;
    if (len < mem.total)
        return FMPQ_E_ARENA;
    memset(buf, 0, (size_t)mem.state);
    s->p = program;
    s->k = fmpq_kernels_get();
    s->plan = *plan;
    s->base = buf;
    s->total = mem.total;
    fmpq_tables(s, program->n_records);
    err = fmpq_derive(program, plan, s->d);
    if (!err)
        err = fmpq_layout(program, plan, scratch, s->slot, &mem, NULL, 0);
    for (uint32_t r = 0; r < program->n_records; r++) {
        s->layer[r].n = plan->bits[r];
        s->layer[r].g = plan->bits[r] ? plan->guard : 0;
        s->layer[r].step = fmpq_fx_norm(1, 0);
    }
    *out = s;
    return err;
}

void fmpq_set_pool(fmpq_session *s, const fmpq_pool *pool)
{
    const fmpq_pool none = {NULL, NULL};
    if (s)
        s->pool = pool ? *pool : none;
}

static int weight_record(const fmpq_session *s, uint32_t r)
{
    return s && r < s->p->n_records && s->d[r].theta;
}

int fmpq_bits(const fmpq_session *s, uint32_t r)
{
    return weight_record(s, r) ? s->layer[r].n : -1;
}

int fmpq_load_plane(fmpq_session *s, uint32_t r, uint32_t plane, const void *data, size_t len)
{
    uint32_t bytes;
    if (!s || !data)
        return FMPQ_E_NULL;
    if (!weight_record(s, r))
        return FMPQ_E_LAYER;
    bytes = fmpq_plane_bytes(s->d[r].theta);
    if (plane > (uint32_t)(s->plan.bits[r] + s->plan.guard))
        return FMPQ_E_PLANE_COUNT;
    if (len != bytes)
        return FMPQ_E_PLANE_LENGTH;
    memcpy(s->base + s->slot[r].planes + plane * bytes, data, len);
    s->layer[r].n = s->plan.bits[r];
    return FMPQ_OK;
}

int fmpq_check_weights(const fmpq_session *s, uint32_t r)
{
    uint32_t bytes, theta;
    int planes;
    const uint8_t *p;
    if (!weight_record(s, r))
        return FMPQ_E_LAYER;
    theta = s->d[r].theta;
    bytes = fmpq_plane_bytes(theta);
    planes = s->layer[r].n + s->layer[r].g;
    p = s->base + s->slot[r].planes;
    for (int i = 0; i <= planes && theta % 8; i++)
        if (p[(uint32_t)(i + 1) * bytes - 1] >> (theta % 8))
            return FMPQ_E_PLANE_PAD;
    for (uint32_t k = 0; k < bytes; k++) {
        uint32_t any = 0;
        for (int i = 1; i <= planes; i++)
            any |= p[(uint32_t)i * bytes + k];
        if (p[k] & ~any)
            return FMPQ_E_PLANE_SIGN;
    }
    return FMPQ_OK;
}

int fmpq_load_params(fmpq_session *s, uint32_t r, fmpq_fx step, const void *params, size_t len)
{
    const fmpq_record *rec;
    uint32_t n;
    if (!s || !params)
        return FMPQ_E_NULL;
    if (!weight_record(s, r))
        return FMPQ_E_LAYER;
    if (!step.m || !fmpq_fx_valid(step))
        return FMPQ_E_STEP;
    rec = &s->p->rec[r];
    n = rec->cout;
    if (len != fmpq_params_size(rec))
        return FMPQ_E_PARAMS;
    if (rec->kind == FMPQ_CONV) {
        int64_t *rv = fmpq_params_rv(s, r);
        const int32_t *gamma = fmpq_params_i32(s, r, 0), *beta = fmpq_params_i32(s, r, 1);
        memcpy(fmpq_params_i32(s, r, 0), params, n * 12u);
        memcpy(rv, (const uint8_t *)params + n * 12u, n * 8u);
        for (uint32_t c = 0; c < n; c++)
            if (rv[c] < 0 || rv[c] >= (int64_t)1 << 47 || gamma[c] > 32767 << 16 || gamma[c] < -(32767 << 16) || beta[c] > 1 << 30 ||
                beta[c] < -(1 << 30)) { /* what is refused must not stay behind */
                memset(fmpq_params_i32(s, r, 0), 0, n * 12u);
                memset(rv, 0, n * 8u);
                return FMPQ_E_PARAMS;
            }
    } else {
        int32_t *bias = fmpq_params_i32(s, r, 0);
        memcpy(bias, params, n * 4u);
        for (uint32_t c = 0; c < n; c++)
            if (bias[c] > 1 << 30 || bias[c] < -(1 << 30)) {
                memset(bias, 0, n * 4u);
                return FMPQ_E_PARAMS;
            }
    }
    s->layer[r].step = step;
    if (s->plan.momentum) {
        memset(s->base + s->slot[r].velocity, 0, s->d[r].theta);
        memset(s->base + s->slot[r].velocity_exp, 0, s->d[r].rows);
        memset(s->base + s->slot[r].velocity_bn, 0, n * (rec->kind == FMPQ_CONV ? 8u : 4u));
    }
    return FMPQ_OK;
}

int fmpq_reset_momentum(fmpq_session *s)
{
    if (!s)
        return FMPQ_E_NULL;
    for (uint32_t r = 0; r < s->p->n_records && s->plan.momentum; r++) {
        if (!s->d[r].theta)
            continue;
        memset(s->base + s->slot[r].velocity, 0, s->d[r].theta);
        memset(s->base + s->slot[r].velocity_exp, 0, s->d[r].rows);
        memset(s->base + s->slot[r].velocity_bn, 0, s->p->rec[r].cout * (s->p->rec[r].kind == FMPQ_CONV ? 8u : 4u));
    }
    return FMPQ_OK;
}

int fmpq_read_plane(const fmpq_session *s, uint32_t r, uint32_t plane, void *data, size_t len)
{
    uint32_t bytes;
    if (!s || !data)
        return FMPQ_E_NULL;
    if (!weight_record(s, r))
        return FMPQ_E_LAYER;
    bytes = fmpq_plane_bytes(s->d[r].theta);
    if (plane > (uint32_t)(s->layer[r].n + s->layer[r].g))
        return FMPQ_E_PLANE_COUNT;
    if (len != bytes)
        return FMPQ_E_PLANE_LENGTH;
    memcpy(data, s->base + s->slot[r].planes + plane * bytes, len);
    return FMPQ_OK;
}

int fmpq_read_params(const fmpq_session *s, uint32_t r, fmpq_fx *step, void *params, size_t len)
{
    const fmpq_record *rec;
    if (!s || !step || !params)
        return FMPQ_E_NULL;
    if (!weight_record(s, r))
        return FMPQ_E_LAYER;
    rec = &s->p->rec[r];
    if (len != fmpq_params_size(rec))
        return FMPQ_E_PARAMS;
    if (rec->kind == FMPQ_CONV) {
        memcpy(params, fmpq_params_i32(s, r, 0), rec->cout * 12u);
        memcpy((uint8_t *)params + rec->cout * 12u, fmpq_params_rv(s, r), rec->cout * 8u);
    } else {
        memcpy(params, fmpq_params_i32(s, r, 0), len);
    }
    *step = s->layer[r].step;
    return FMPQ_OK;
}

static void forward(fmpq_session *s)
{
    s->backward = 0;
    for (uint32_t r = 0; r < s->p->n_records; r++) {
        if (s->p->rec[r].kind == FMPQ_CONV)
            fmpq_forward_conv(s, r);
        else if (s->p->rec[r].kind == FMPQ_CLASSIFIER)
            fmpq_forward_classifier(s, r);
        /* pools are computed where they are read */
    }
}

static void backward(fmpq_session *s)
{
    s->backward = 1;
    for (uint32_t r = 0; r < s->p->n_records; r++)
        s->slot[r].refilled = 0;
    for (uint32_t t = 0; t <= s->p->n_records; t++) {
        s->err[t].offset = FMPQ_NONE;
        s->err[t].pending = FMPQ_NO_TENSOR;
        s->err[t].ex = s->err[t].mx = 0;
    }
    for (uint32_t r = s->p->n_records; r-- > 0;)
        switch (s->p->rec[r].kind) {
        case FMPQ_CLASSIFIER:
            fmpq_backward_classifier(s, r);
            fmpq_backward_classifier_weight(s, r);
            break;
        case FMPQ_CONV:
            fmpq_backward_error(s, r);
            if (s->d[r].in_place) {
                fmpq_pack_before_update(s, r);
                fmpq_backward_weight(s, r);
                fmpq_backward_input(s, r);
            } else {
                fmpq_backward_input(s, r);
                fmpq_backward_weight(s, r);
            }
            break;
        case FMPQ_CONCAT:
            fmpq_backward_concat(s, r);
            break;
        default:
            fmpq_backward_pool(s, r);
        }
}

static int check_batch(const fmpq_session *s, const uint8_t *images, const uint16_t *labels, uint32_t count)
{
    if (!s || !images)
        return FMPQ_E_NULL;
    if (!count)
        return FMPQ_E_BATCH;
    for (uint32_t i = 0; labels && i < count; i++)
        if (labels[i] >= s->p->classes)
            return FMPQ_E_LABEL;
    return FMPQ_OK;
}

int fmpq_step(fmpq_session *s, const uint8_t *images, const uint16_t *labels, uint32_t count, const fmpq_hyper *h, fmpq_key key, fmpq_stats *out)
{
    const int err = check_batch(s, images, labels, count);
    size_t pixels;
    if (err)
        return err;
    if (!labels || !h || !out)
        return FMPQ_E_NULL;
    if (count > s->plan.batch && !s->plan.accumulate)
        return FMPQ_E_BATCH;
    if (!fmpq_fx_valid(h->lr) || !fmpq_fx_valid(h->decay) || h->momentum_q15 < 0 || h->momentum_q15 > 32767)
        return FMPQ_E_ARGUMENT;
    for (uint32_t r = 0; h->has_lasso && r < s->p->n_records; r++)
        if (!fmpq_fx_valid(h->lasso[r]))
            return FMPQ_E_ARGUMENT;
    pixels = (size_t)s->p->in_h * s->p->in_w * s->p->in_c;
    memset(&s->stats, 0, sizeof(s->stats));
    s->hyper = h;
    s->key = key;
    s->training = 1;
    s->total_count = count;
    s->predict = NULL;
    for (uint32_t at = 0; at < count; at += s->plan.batch) {
        s->count = count - at < s->plan.batch ? count - at : s->plan.batch;
        s->images = images + at * pixels;
        s->labels = labels + at;
        s->first = at == 0;
        s->last = at + s->count == count;
        forward(s);
        backward(s);
        s->key.step++;
    }
    s->images = NULL;
    s->labels = NULL;
    s->hyper = NULL;
    *out = s->stats;
    return FMPQ_OK;
}

static int run_forward(fmpq_session *s, const uint8_t *images, const uint16_t *labels, uint32_t count, int32_t *logits)
{
    const int err = check_batch(s, images, labels, count);
    const size_t pixels = err ? 0 : (size_t)s->p->in_h * s->p->in_w * s->p->in_c;
    if (err)
        return err;
    memset(&s->stats, 0, sizeof(s->stats));
    s->training = 0;
    for (uint32_t at = 0; at < count; at += s->plan.batch) {
        s->count = count - at < s->plan.batch ? count - at : s->plan.batch;
        s->images = images + at * pixels;
        s->labels = labels ? labels + at : NULL;
        s->predict = logits ? logits + (size_t)at * s->p->classes : NULL;
        forward(s);
    }
    s->images = NULL;
    s->labels = NULL;
    s->predict = NULL;
    return FMPQ_OK;
}

int fmpq_evaluate(fmpq_session *s, const uint8_t *images, const uint16_t *labels, uint32_t count, fmpq_stats *out)
{
    int err;
    if (!labels || !out)
        return FMPQ_E_NULL;
    err = run_forward(s, images, labels, count, NULL);
    if (!err)
        *out = s->stats;
    return err;
}

int fmpq_predict(fmpq_session *s, const uint8_t *images, uint32_t count, int32_t *logits)
{
    return logits ? run_forward(s, images, NULL, count, logits) : FMPQ_E_NULL;
}
