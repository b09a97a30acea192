#include "golden.h"
#include "../src/fx.h"
#include "../src/rng.h"
#include "sha256.h"
#include <string.h>

#define SEED 20260101u
#define ROUND 3u
#define CLIENT 0xfffffff0u
#define STREAM_LABEL 0xfffe0001u
#define STREAM_PATTERN 0xfffe0002u
#define STREAM_NOISE 0xfffe0003u
#define STREAM_WEIGHT 0xfffe0004u
#define STREAM_PARAM 0xfffe0005u
#define CLASSES 10u

/* name blocks steps batch micro bits act_bits guard momentum lasso. The cases called -b1 are those of microcontrollers. */
const fmpq_golden fmpq_goldens[] = {
    {"resnet8-n1", 1, 20, 2, 2, {1, 1, 1, 1, 1}, 4, 2, 0, 0},
    {"resnet8-n2", 1, 20, 2, 2, {2, 2, 2, 2, 2}, 4, 0, 1, 0},
    {"resnet8-n4", 1, 20, 2, 2, {4, 4, 4, 4, 4}, 4, 0, 1, 0},
    {"resnet8-n8", 1, 20, 2, 2, {8, 8, 8, 8, 8}, 8, 0, 1, 0},
    {"resnet8-mixed", 1, 20, 2, 1, {4, 8, 2, 1, 6}, 4, 1, 1, 1},
    {"resnet8-n1-b1", 1, 20, 1, 1, {1, 1, 1, 1, 1}, 4, 0, 0, 0},
    {"resnet8-n2-b1", 1, 20, 1, 1, {2, 2, 2, 2, 2}, 4, 0, 0, 0},
    {"resnet8-n4-b1", 1, 20, 1, 1, {4, 4, 4, 4, 4}, 4, 0, 0, 0},
    {"resnet8-n8-b1", 1, 20, 1, 1, {8, 8, 8, 8, 8}, 4, 0, 0, 0},
    {"resnet8-mixed-b1", 1, 20, 1, 1, {4, 8, 2, 1, 6}, 4, 0, 0, 1},
    {"resnet20-n1", 3, 3, 2, 2, {1, 1, 1, 1, 1}, 4, 2, 0, 0},
    {"resnet20-n2", 3, 3, 2, 2, {2, 2, 2, 2, 2}, 4, 0, 1, 0},
    {"resnet20-n4", 3, 3, 2, 2, {4, 4, 4, 4, 4}, 4, 0, 1, 0},
    {"resnet20-n8", 3, 3, 2, 2, {8, 8, 8, 8, 8}, 8, 0, 1, 0},
    {"resnet20-mixed", 3, 3, 2, 1, {4, 8, 2, 1, 6}, 4, 1, 1, 1},
    {"branches-n4-b1", 0, 10, 1, 1, {4, 4, 4, 4, 4}, 4, 0, 0, 0},
    {"branches-mixed", 0, 10, 4, 2, {4, 8, 2, 1, 6}, 8, 1, 1, 1},
};
const unsigned fmpq_golden_count = sizeof(fmpq_goldens) / sizeof(fmpq_goldens[0]);

const fmpq_golden *fmpq_golden_find(const char *name)
{
    for (unsigned i = 0; i < fmpq_golden_count; i++)
        if (!strcmp(name, fmpq_goldens[i].name))
            return &fmpq_goldens[i];
    return NULL;
}

/* ---- the program ------------------------------------------------------------------------------------------- */

static void put16(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static void put32(uint8_t *p, uint32_t v)
{
    put16(p, v & 0xffffu);
    put16(p + 2, v >> 16);
}

typedef struct net {
    uint8_t *out;
    uint32_t n; /* records so far = number of the last tensor */
} net;

static uint8_t *record(net *b, uint32_t kind, const char *stage, const char *name, uint32_t window, uint32_t cin, uint32_t cout, uint32_t in,
                       uint32_t out, uint32_t input)
{
    uint8_t *r = b->out + 64 + 64 * b->n++;
    memset(r, 0, 64);
    r[0] = (uint8_t)kind;
    r[1] = r[2] = (uint8_t)window;
    r[3] = 1;
    put16(r + 8, 1);
    put16(r + 10, cin);
    put16(r + 12, cout);
    put16(r + 14, in);
    put16(r + 16, in);
    put16(r + 18, out);
    put16(r + 20, out);
    put16(r + 22, input);
    put16(r + 24, FMPQ_NO_TENSOR);
    memcpy(r + 32, stage, strlen(stage));
    memcpy(r + 32 + strlen(stage), name, strlen(name));
    return r;
}

/* one block: two 3x3 convolutions and a shortcut; returns the tensor it makes */
static uint32_t block(net *b, uint32_t stage, uint32_t number, uint32_t cin, uint32_t cout, uint32_t size, uint32_t x)
{
    char name[] = "layer0.0.";
    const uint32_t shrink = cin != cout, out = shrink ? size / 2 : size;
    uint8_t *r;
    name[5] = (char)('1' + stage);
    name[7] = (char)('0' + number);
    r = record(b, FMPQ_CONV, name, "conv1", 3, cin, cout, size, out, x);
    r[3] = (uint8_t)(1 + shrink);
    r[4] = 1;
    r = record(b, FMPQ_CONV, name, "conv2", 3, cout, cout, out, out, b->n);
    r[4] = 1;
    r[5] = shrink ? FMPQ_SKIP_OPTION_A : FMPQ_SKIP_IDENTITY;
    r[6] = 1;
    put16(r + 24, x);
    put16(r + 26, (cout - cin) / 2);
    return b->n;
}

/* the residual net up to its pool; returns its channels, at `size` maps */
static uint32_t resnet(net *b, uint32_t blocks, uint32_t *size)
{
    uint32_t x, channels = 16;
    record(b, FMPQ_CONV, "", "conv1", 3, 3, channels, *size, *size, 0)[4] = 1;
    x = b->n;
    for (uint32_t stage = 0; stage < 3; stage++)
        for (uint32_t i = 0; i < blocks; i++) {
            const uint32_t cout = 16u << stage;
            x = block(b, stage, i, channels, cout, *size, x);
            *size = cout != channels ? *size / 2 : *size;
            channels = cout;
        }
    return channels;
}

/* records with biases, without ReLU, of groups, pools, concatenations of both kinds of tensors, and what may read them */
static uint32_t branches(net *b, uint32_t *size)
{
    static const struct {
        const char *name;
        uint8_t kind, window, stride, pad, skip_kind, t_out, flags, groups, cin, cout, in, out, input, skip, skip_pad;
    } of[] = {
        {"stem", FMPQ_CONV, 3, 1, 1, 0, 0, FMPQ_BIASED, 1, 3, 8, 32, 32, 0, 0, 0},
        {"side", FMPQ_CONV, 1, 2, 0, 0, 1, FMPQ_LINEAR, 1, 8, 12, 32, 16, 1, 0, 0},
        {"inner", FMPQ_CONV, 3, 2, 1, 0, 0, FMPQ_BIASED, 1, 8, 12, 32, 16, 1, 0, 0},
        {"signed", FMPQ_CONV, 3, 1, 1, FMPQ_SKIP_IDENTITY, 2, FMPQ_LINEAR | FMPQ_BIASED, 1, 12, 12, 16, 16, 3, 2, 0},
        {"deep", FMPQ_CONV, 3, 1, 1, 0, 0, FMPQ_LINEAR, 12, 12, 12, 16, 16, 4, 0, 0},
        {"max", FMPQ_MAXPOOL, 3, 1, 1, 0, 0, 0, 1, 12, 12, 16, 16, 5, 0, 0},
        {"joined", FMPQ_CONCAT, 1, 1, 0, FMPQ_SKIP_CONCAT, 3, 0, 1, 24, 24, 16, 16, 4, 6, 0},
        {"read", FMPQ_CONV, 3, 2, 1, 0, 0, 0, 1, 24, 20, 16, 8, 7, 0, 0},
        {"shrunk", FMPQ_CONV, 3, 1, 1, FMPQ_SKIP_OPTION_A, 0, 0, 1, 20, 28, 8, 8, 8, 7, 2},
        {"both", FMPQ_CONCAT, 1, 1, 0, FMPQ_SKIP_CONCAT, 1, 0, 1, 48, 48, 8, 8, 8, 9, 0},
    };
    for (size_t i = 0; i < sizeof(of) / sizeof(of[0]); i++) {
        uint8_t *r = record(b, of[i].kind, "", of[i].name, of[i].window, of[i].cin, of[i].cout, of[i].in, of[i].out, of[i].input);
        r[3] = of[i].stride;
        r[4] = of[i].pad;
        r[5] = of[i].skip_kind;
        r[6] = of[i].t_out;
        r[7] = of[i].flags;
        put16(r + 8, of[i].groups);
        if (of[i].skip_kind)
            put16(r + 24, of[i].skip);
        put16(r + 26, of[i].skip_pad);
    }
    *size = 8;
    return 48;
}

size_t fmpq_golden_program(const fmpq_golden *g, uint8_t *out)
{
    static const uint8_t mean[3] = {125, 123, 114};
    net b = {out, 0};
    uint32_t size = 32;
    const uint32_t channels = g->blocks ? resnet(&b, g->blocks, &size) : branches(&b, &size);
    record(&b, FMPQ_GLOBALPOOL, "", "pool", size, channels, channels, size, 1, b.n);
    record(&b, FMPQ_CLASSIFIER, "", "fc", 1, channels, CLASSES, 1, 1, b.n);
    memset(out, 0, 64);
    memcpy(out, "FMPQPROG", 8);
    put16(out + 8, 1);
    put16(out + 10, b.n);
    put32(out + 12, 64 + 64 * b.n);
    put16(out + 16, 32);
    put16(out + 18, 32);
    put16(out + 20, 3);
    put16(out + 22, CLASSES);
    out[24] = 4;
    memcpy(out + 28, mean, sizeof(mean));
    return 64 + 64 * b.n;
}

void fmpq_golden_plan(const fmpq_golden *g, const fmpq_program *p, uint32_t threads, fmpq_plan *plan)
{
    uint32_t layer = 0;
    memset(plan, 0, sizeof(*plan));
    plan->batch = g->micro_batch;
    plan->accumulate = g->micro_batch < g->batch;
    plan->act_bits = g->act_bits;
    plan->guard = g->guard;
    plan->momentum = g->momentum;
    plan->threads = (uint8_t)threads;
    plan->crop = plan->flip = plan->decay_bn = plan->recompute = 1;
    for (uint32_t r = 0; r < p->n_records; r++)
        if (fmpq_record_theta(&p->rec[r]))
            plan->bits[r] = g->bits[layer++ % 5];
}

/* ---- weights, images, labels ------------------------------------------------------------------------------- */

static fmpq_stream key(uint32_t a, uint32_t b, uint32_t c, uint32_t stream)
{
    const fmpq_key k = {SEED, a, b, c};
    return fmpq_stream_of(k, stream);
}

/* Weights of low width spread over their few values instead of all being zero. */
static int32_t boost(uint32_t n)
{
    return n == 1 ? 4 : n == 2 ? 2 : 1;
}

/* sum of four uniform bytes, centred and scaled to the planes' range */
static int32_t weight(fmpq_stream k, uint32_t i, uint32_t n, uint32_t guard)
{
    const uint32_t r = fmpq_rand(k, i);
    const int32_t sum = (int32_t)((r & 255u) + ((r >> 8) & 255u) + ((r >> 16) & 255u) + (r >> 24)) - 510;
    const int32_t top = ((1 << n) - 1) << guard;
    return (int32_t)fmpq_clamp64(fmpq_rdiv64((int64_t)sum * top * boost(n), 510), -top, top);
}

static int load_planes(const fmpq_record *r, fmpq_session *s, uint32_t i, uint32_t n, uint32_t guard, uint8_t *plane)
{
    const uint32_t theta = fmpq_record_theta(r);
    const fmpq_stream k = key(0, 0, i, STREAM_WEIGHT);
    for (uint32_t number = 0; number <= n + guard; number++) {
        int err;
        memset(plane, 0, (theta + 7) / 8);
        for (uint32_t j = 0; j < theta; j++) {
            const int32_t q = weight(k, j, n, guard);
            const uint32_t bit = number ? ((uint32_t)(q < 0 ? -q : q) >> (number - 1)) & 1u : q < 0;
            plane[j / 8] = (uint8_t)(plane[j / 8] | bit << (j % 8));
        }
        err = fmpq_load_plane(s, i, number, plane, (theta + 7) / 8);
        if (err)
            return err;
    }
    return fmpq_check_weights(s, i);
}

static int load_params(const fmpq_record *r, fmpq_session *s, uint32_t i, uint32_t n, uint8_t *blob)
{
    const uint32_t c = r->cout, fan_in = fmpq_record_theta(r) / c;
    const fmpq_stream k = key(0, 0, i, STREAM_PARAM);
    /* step = 3.45 sqrt(2 / fan_in) / (boost (2^n - 1)): a weight's spread is that of the usual start */
    const fmpq_fx spread = fmpq_fx_mul(fmpq_fx_norm(fmpq_isqrt64(((uint64_t)2 << 40) / fan_in), -20), fmpq_fx_norm(345, 0));
    const fmpq_fx step = fmpq_fx_div(spread, fmpq_fx_norm(100u * (uint32_t)boost(n) * ((1u << n) - 1u), 0));
    memset(blob, 0, fmpq_params_size(r));
    for (uint32_t j = 0; j < c; j++) {
        const uint32_t a = fmpq_rand(k, j), b = fmpq_rand(k, c + j);
        if (r->kind == FMPQ_CONV) {
            put32(blob + 4 * j, 10923u * 65536u - (1u << 27) + (a >> 4)); /* gamma 1.0 +- 0.19 */
            put32(blob + 4 * (c + j), (b >> 6) - (1u << 25));             /* beta 0 +- 0.37 */
            put32(blob + 12 * c + 8 * j, 256u * 65536u);                  /* running variance; the mean stays 0 */
        } else {
            put32(blob + 4 * j, (a >> 13) - (1u << 18)); /* bias 0 +- 0.25 nat */
        }
    }
    return fmpq_load_params(s, i, step, blob, fmpq_params_size(r));
}

size_t fmpq_golden_scratch(const fmpq_program *p)
{
    size_t most = 0;
    for (uint32_t i = 0; i < p->n_records; i++) {
        const size_t plane = (fmpq_record_theta(&p->rec[i]) + 7u) / 8u, params = fmpq_params_size(&p->rec[i]);
        most = plane > most ? plane : most;
        most = fmpq_record_theta(&p->rec[i]) && params > most ? params : most;
    }
    return most;
}

int fmpq_golden_load(const fmpq_golden *g, const fmpq_program *p, fmpq_session *s, uint8_t *scratch)
{
    int err = FMPQ_OK;
    uint32_t layer = 0;
    for (uint32_t i = 0; i < p->n_records && !err; i++) {
        uint32_t n;
        if (!fmpq_record_theta(&p->rec[i]))
            continue;
        n = g->bits[layer++ % 5];
        err = load_planes(&p->rec[i], s, i, n, g->guard, scratch);
        if (!err)
            err = load_params(&p->rec[i], s, i, n, scratch);
    }
    return err;
}

void fmpq_golden_batch(const fmpq_golden *g, uint32_t step, uint8_t *images, uint16_t *labels)
{
    for (uint32_t b = 0; b < g->batch; b++) {
        const uint32_t label = (uint32_t)(((uint64_t)fmpq_rand(key(step, 0, 0, STREAM_LABEL), b) * CLASSES) >> 32);
        const fmpq_stream pattern = key(label, 0, 0, STREAM_PATTERN), noise = key(step, b, 0, STREAM_NOISE);
        uint8_t *image = images + (size_t)b * FMPQ_GOLDEN_PIXELS;
        labels[b] = (uint16_t)label;
        for (uint32_t i = 0; i < FMPQ_GOLDEN_PIXELS; i++)
            image[i] = (uint8_t)((fmpq_rand(pattern, i) >> 25) + (fmpq_rand(noise, i) >> 25));
    }
}

/* ---- the run ------------------------------------------------------------------------------------------------ */

static void rates(const fmpq_golden *g, const fmpq_program *p, fmpq_hyper *h)
{
    memset(h, 0, sizeof(*h));
    h->lr = fmpq_fx_norm(1, -4);
    h->decay = fmpq_fx_norm(1, -11);
    h->momentum_q15 = 29491;
    h->has_lasso = g->lasso;
    for (uint32_t i = 0; i < p->n_records && g->lasso; i++)
        if (fmpq_record_theta(&p->rec[i]))
            h->lasso[i] = fmpq_fx_norm(1, -9);
}

int fmpq_golden_step(const fmpq_golden *g, const fmpq_program *p, fmpq_session *s, uint32_t step, uint8_t *images, uint16_t *labels,
                     fmpq_golden_result *r)
{
    const fmpq_key k = {SEED, ROUND, CLIENT, step * (g->batch / g->micro_batch)};
    fmpq_hyper h;
    fmpq_stats stats;
    int err;
    rates(g, p, &h);
    fmpq_golden_batch(g, step, images, labels);
    err = fmpq_step(s, images, labels, g->batch, &h, k, &stats);
    if (err)
        return err;
    r->loss_q16 += stats.loss_q16;
    r->correct += stats.correct;
    r->count += stats.count;
    return FMPQ_OK;
}

int fmpq_golden_run(const fmpq_golden *g, const fmpq_program *p, fmpq_session *s, uint8_t *scratch, uint8_t *images, uint16_t *labels,
                    fmpq_golden_result *r)
{
    fmpq_stats stats;
    int err = fmpq_golden_load(g, p, s, scratch);
    if (!err)
        err = fmpq_state_hash(s, p, g->guard, scratch, r->start);
    for (uint32_t step = 0; step < g->steps && !err; step++)
        err = fmpq_golden_step(g, p, s, step, images, labels, r);
    if (!err)
        err = fmpq_evaluate(s, images, labels, g->batch, &stats);
    if (err)
        return err;
    r->eval_loss_q16 = stats.loss_q16;
    return fmpq_state_hash(s, p, g->guard, scratch, r->state);
}

int fmpq_state_hash(const fmpq_session *s, const fmpq_program *p, uint32_t guard, uint8_t *scratch, uint8_t out[32])
{
    fmpq_sha256 sha;
    fmpq_sha256_init(&sha);
    for (uint32_t i = 0; i < p->n_records; i++) {
        const fmpq_record *r = &p->rec[i];
        const size_t bytes = (fmpq_record_theta(r) + 7u) / 8u;
        fmpq_fx step;
        int err;
        if (!bytes)
            continue;
        for (uint32_t number = 0; number <= (uint32_t)fmpq_bits(s, i) + guard; number++) {
            err = fmpq_read_plane(s, i, number, scratch, bytes);
            if (err)
                return err;
            fmpq_sha256_add(&sha, scratch, bytes);
        }
        err = fmpq_read_params(s, i, &step, scratch, fmpq_params_size(r));
        if (err)
            return err;
        fmpq_sha256_add(&sha, scratch, fmpq_params_size(r));
    }
    fmpq_sha256_end(&sha, out);
    return FMPQ_OK;
}
