#include "serial_server.h"
#include "sha256.h"
#include <string.h>

#define HELLO_BYTES 120

typedef struct request { /* what is left of a payload; `bad` once more was read than there is: numbers are then 0 */
    const uint8_t *p;
    uint32_t left;
    int bad;
} request;

static const uint8_t *take(request *q, uint32_t n)
{
    static const uint8_t none[4];
    const uint8_t *at = q->p;
    if (n > q->left) {
        q->bad = 1;
        q->left = 0;
        return none;
    }
    q->p += n;
    q->left -= n;
    return at;
}

static uint32_t u8(request *q)
{
    return *take(q, 1);
}

static uint32_t u16(request *q)
{
    const uint8_t *p = take(q, 2);
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static uint32_t u32(request *q)
{
    const uint8_t *p = take(q, 4);
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static fmpq_fx scale(request *q)
{
    fmpq_fx v;
    v.m = u32(q);
    v.e = (int32_t)u32(q);
    return v;
}

/* ---- replies are built in place, behind the frame's head ------------------------------------------------------- */

static void put(fmpq_server *s, const void *data, uint32_t n)
{
    memcpy(s->out + FMPQ_SERIAL_HEAD + s->reply_len, data, n);
    s->reply_len += n;
}

static void put8(fmpq_server *s, uint32_t v)
{
    const uint8_t b = (uint8_t)v;
    put(s, &b, 1);
}

static void put16(fmpq_server *s, uint32_t v)
{
    put8(s, v);
    put8(s, v >> 8);
}

static void put32(fmpq_server *s, uint32_t v)
{
    put16(s, v);
    put16(s, v >> 16);
}

static void put64(fmpq_server *s, uint64_t v)
{
    put32(s, (uint32_t)v);
    put32(s, (uint32_t)(v >> 32));
}

static void put_text(fmpq_server *s, const char *text, uint32_t room)
{
    for (uint32_t i = 0; i < room; i++)
        put8(s, (uint8_t)*text ? (uint8_t)*text++ : 0);
}

static const char *problem(int code)
{
    switch (code) {
    case FMPQ_S_LENGTH:
        return "the request has another length than its type";
    case FMPQ_S_TYPE:
        return "this firmware does not know the request";
    case FMPQ_S_STRANGER:
        return "no gateway has said hello since the device started";
    case FMPQ_S_ORDER:
        return "the request needs a program or a session that is not there";
    case FMPQ_S_ROOM:
        return "the bytes lie outside the device's memory";
    case FMPQ_S_CRC:
        return "what was sent has another checksum";
    case FMPQ_S_IMAGES:
        return "the device holds no such images";
    default:
        return fmpq_error_text(code);
    }
}

static void refuse(fmpq_server *s, int code)
{
    const char *text = problem(code);
    s->type = FMPQ_REFUSED;
    s->reply_len = 0;
    put16(s, (uint32_t)code);
    put(s, text, (uint32_t)(strlen(text) < 100 ? strlen(text) : 100));
}

/* ---- memory: the mailbox takes what comes in before it is used, samples wait behind the session --------------------
 * The mailbox is everything behind the session's state, for a plane may be larger than a step's buffers. It may cover samples, which is no
 * harm: each step's are sent before it and checked with it. */

static size_t mailbox_at(const fmpq_server *s)
{
    return s->session ? (size_t)s->mem.state : 0;
}

static void *planning(const fmpq_server *s)
{
    const size_t bytes = (fmpq_plan_scratch() + 63) / 64 * 64, end = s->limit / 64 * 64;
    if (s->scratch)
        return s->scratch;
    return end < bytes || (s->session && end - bytes < (size_t)s->mem.state) ? NULL : s->arena + end - bytes;
}

static int write_bytes(fmpq_server *s, request *q)
{
    const uint32_t space = u8(q), offset = u32(q), n = q->left;
    const size_t at = space ? (size_t)s->samples_at : mailbox_at(s), end = s->limit;
    if (q->bad || space > 1)
        return FMPQ_S_LENGTH;
    if (space && !s->session)
        return FMPQ_S_ORDER;
    if (at > end || offset > end - at || n > end - at - offset)
        return FMPQ_S_ROOM;
    memcpy(s->arena + at + offset, take(q, n), n);
    return FMPQ_OK;
}

/* the mailbox's first `len` bytes if their checksum is right */
static const uint8_t *mail(const fmpq_server *s, uint32_t len, uint32_t crc, int *err)
{
    const uint8_t *p = s->arena + mailbox_at(s);
    if (len > s->limit - mailbox_at(s))
        *err = FMPQ_S_ROOM;
    else if (fmpq_crc32(0, p, len) != crc)
        *err = FMPQ_S_CRC;
    return p;
}

/* ---- requests ------------------------------------------------------------------------------------------------- */

/* Answered from a buffer of its own: the reply that an interrupted request waits for is kept. */
static void hello(fmpq_server *s, const fmpq_frame *f)
{
    uint8_t frame[FMPQ_SERIAL_HEAD + HELLO_BYTES + 4];
    request q = {f->payload, f->len, 0};
    const uint32_t kept = s->reply_len;
    uint32_t link, flags;
    u32(&q); /* the gateway's version: it judges, as this reply has the same layout in every version */
    link = u32(&q);
    if (q.bad || !link)
        return;
    flags = link == s->link;
    if (!flags) {
        s->session = NULL;
        s->steps = 0;
        s->link = link;
        s->answered = 0;
    }
    flags |= (s->has_program ? 2u : 0u) | (s->session ? 4u : 0u) | (s->shard ? 8u : 0u);
    s->out = frame;
    s->reply_len = 0;
    put16(s, FMPQ_SERIAL_VERSION);
    put16(s, FMPQ_SERIAL_PAYLOAD);
    put32(s, flags);
    put64(s, s->limit);
    put32(s, FMPQ_MAX_RECORDS);
    put32(s, s->steps);
    put_text(s, fmpq_version(), 16);
    put_text(s, fmpq_isa(), 16);
    put_text(s, s->board, 32);
    put(s, s->program_hash, 32);
    s->send(s->line, fmpq_frame_code(FMPQ_HELLO | FMPQ_REPLY, f->seq, frame, s->reply_len, s->line));
    s->out = s->frame;
    s->reply_len = kept;
}

static int take_program(fmpq_server *s, request *q)
{
    const uint32_t len = u32(q), crc = u32(q);
    const uint8_t *data;
    int err = FMPQ_OK;
    if (q->bad)
        return FMPQ_S_LENGTH;
    s->session = NULL; /* the mailbox is the whole arena, from its start */
    data = mail(s, len, crc, &err);
    if (err)
        return err;
    s->has_program = 0;
    err = fmpq_program_parse(data, len, &s->program);
    if (err)
        return err;
    s->has_program = 1;
    fmpq_sha256_of(data, len, s->program_hash);
    put(s, s->program_hash, 32);
    return FMPQ_OK;
}

static int parse_plan(const fmpq_server *s, request *q, fmpq_plan *plan)
{
    uint32_t layers, layer = 0;
    const uint8_t *bits;
    memset(plan, 0, sizeof(*plan));
    plan->batch = u32(q);
    plan->accumulate = u8(q);
    plan->act_bits = (uint8_t)u8(q);
    plan->guard = (uint8_t)u8(q);
    plan->momentum = (uint8_t)u8(q);
    plan->threads = 1;
    plan->crop = (uint8_t)u8(q);
    plan->flip = (uint8_t)u8(q);
    plan->decay_bn = (uint8_t)u8(q);
    plan->recompute = (uint8_t)u8(q);
    layers = u8(q);
    bits = take(q, layers);
    if (q->bad)
        return FMPQ_S_LENGTH;
    if (!s->has_program)
        return FMPQ_S_ORDER;
    for (uint32_t r = 0; r < s->program.n_records; r++)
        if (fmpq_record_theta(&s->program.rec[r])) {
            if (layer == layers)
                return FMPQ_E_PLAN_BITS;
            plan->bits[r] = bits[layer++];
        }
    return layer == layers ? FMPQ_OK : FMPQ_E_PLAN_BITS;
}

static int plan_only(fmpq_server *s, request *q)
{
    fmpq_plan plan;
    fmpq_memory mem;
    void *scratch = planning(s);
    int err = parse_plan(s, q, &plan);
    if (!err && !scratch)
        err = FMPQ_S_ROOM;
    if (!err)
        err = fmpq_plan_memory(&s->program, &plan, scratch, &mem, NULL, 0);
    if (err)
        return err;
    put64(s, mem.total);
    put64(s, mem.state);
    return FMPQ_OK;
}

static int open_session(fmpq_server *s, request *q)
{
    void *scratch;
    fmpq_session *session;
    int err;
    s->session = NULL;
    scratch = planning(s);
    err = parse_plan(s, q, &s->plan);
    if (!err && !scratch)
        err = FMPQ_S_ROOM;
    if (!err)
        err = fmpq_plan_memory(&s->program, &s->plan, scratch, &s->mem, NULL, 0);
    if (!err && (s->mem.total > s->limit || (!s->scratch && (uint8_t *)scratch < s->arena + s->mem.state)))
        err = FMPQ_E_ARENA;
    if (!err)
        err = fmpq_init(&s->program, &s->plan, s->arena, s->limit, scratch, &session);
    if (err)
        return err;
    s->session = session;
    s->steps = 0;
    s->samples_at = (s->mem.total + 63) / 64 * 64;
    memset(&s->rates, 0, sizeof(s->rates));
    put64(s, s->mem.total);
    put64(s, s->mem.state);
    put64(s, s->samples_at < s->limit ? s->limit - s->samples_at : 0);
    return FMPQ_OK;
}

/* the record of weight layer `layer`; FMPQ_MAX_RECORDS when there is none */
static uint32_t record_of(const fmpq_server *s, uint32_t layer)
{
    uint32_t r = 0;
    for (; r < s->program.n_records; r++)
        if (fmpq_record_theta(&s->program.rec[r]) && !layer--)
            return r;
    return FMPQ_MAX_RECORDS;
}

static int load_plane(fmpq_server *s, request *q)
{
    const uint32_t r = record_of(s, u16(q)), number = u16(q), len = u32(q), crc = u32(q);
    int err = q->bad ? FMPQ_S_LENGTH : FMPQ_OK;
    const uint8_t *data = err ? NULL : mail(s, len, crc, &err);
    return err ? err : fmpq_load_plane(s->session, r, number, data, len);
}

static int load_params(fmpq_server *s, request *q)
{
    const uint32_t r = record_of(s, u16(q)), spare = u16(q);
    const fmpq_fx step = scale(q);
    const uint32_t len = u32(q), crc = u32(q);
    int err = q->bad || spare ? FMPQ_S_LENGTH : fmpq_check_weights(s->session, r);
    const uint8_t *data = err ? NULL : mail(s, len, crc, &err);
    return err ? err : fmpq_load_params(s->session, r, step, data, len);
}

static int put_part(fmpq_server *s, const uint8_t *data, size_t size, uint32_t offset, uint32_t n)
{
    if (offset > size || n > size - offset || s->reply_len + n > FMPQ_SERIAL_PAYLOAD)
        return FMPQ_S_ROOM;
    put(s, data + offset, n);
    return FMPQ_OK;
}

static int read_plane(fmpq_server *s, request *q)
{
    const uint32_t r = record_of(s, u16(q)), number = u16(q), offset = u32(q), n = u16(q);
    uint8_t *copy = s->arena + mailbox_at(s);
    size_t size;
    int err;
    if (q->bad)
        return FMPQ_S_LENGTH;
    if (r == FMPQ_MAX_RECORDS)
        return FMPQ_E_LAYER;
    size = (fmpq_record_theta(&s->program.rec[r]) + 7u) / 8u;
    if (size > s->limit - mailbox_at(s))
        return FMPQ_S_ROOM;
    err = fmpq_read_plane(s->session, r, number, copy, size);
    return err ? err : put_part(s, copy, size, offset, n);
}

static int read_params(fmpq_server *s, request *q)
{
    const uint32_t r = record_of(s, u16(q)), spare = u16(q), offset = u32(q), n = u16(q);
    uint8_t *copy = s->arena + mailbox_at(s);
    fmpq_fx step;
    size_t size;
    int err;
    if (q->bad || spare)
        return FMPQ_S_LENGTH;
    if (r == FMPQ_MAX_RECORDS)
        return FMPQ_E_LAYER;
    size = fmpq_params_size(&s->program.rec[r]);
    if (size > s->limit - mailbox_at(s))
        return FMPQ_S_ROOM;
    err = fmpq_read_params(s->session, r, &step, copy, size);
    if (err)
        return err;
    put16(s, (uint32_t)fmpq_bits(s->session, r));
    put32(s, step.m);
    put32(s, (uint32_t)step.e);
    return put_part(s, copy, size, offset, n);
}

static int take_rates(fmpq_server *s, request *q)
{
    uint32_t layers, layer = 0;
    fmpq_hyper h;
    memset(&h, 0, sizeof(h));
    h.lr = scale(q);
    h.decay = scale(q);
    h.momentum_q15 = (int32_t)u32(q);
    layers = u8(q);
    h.has_lasso = layers > 0;
    for (uint32_t r = 0; r < s->program.n_records && layer < layers; r++)
        if (fmpq_record_theta(&s->program.rec[r])) {
            h.lasso[r] = scale(q);
            layer++;
        }
    if (q->bad || q->left || layer != layers)
        return FMPQ_S_LENGTH;
    s->rates = h;
    return FMPQ_OK;
}

typedef struct samples { /* in the sample space: images, padded to even, labels behind them */
    uint32_t count;
    uint8_t *images;
    uint16_t *labels;
    size_t bytes; /* of both */
} samples;

static int place_samples(const fmpq_server *s, uint32_t count, samples *out)
{
    const size_t pixels = (size_t)s->program.in_h * s->program.in_w * s->program.in_c;
    if (count > s->limit / pixels)
        return FMPQ_S_ROOM;
    out->count = count;
    out->bytes = (count * pixels + 1) / 2 * 2;
    out->images = s->arena + s->samples_at;
    out->labels = (uint16_t *)(void *)(out->images + out->bytes);
    out->bytes += 2u * count;
    return s->samples_at > s->limit || out->bytes > s->limit - s->samples_at ? FMPQ_S_ROOM : FMPQ_OK;
}

static void shard_facts(fmpq_server *s)
{
    static const fmpq_shard none;
    const fmpq_shard *d = s->shard ? s->shard : &none;
    put32(s, d->count);
    put16(s, d->height);
    put16(s, d->width);
    put16(s, d->channels);
    put16(s, d->classes);
    if (s->shard)
        put(s, fmpq_shard_hash(d), 32);
}

/* samples of the step, number of the first slot, indices: from the device's own images into the sample space */
static int pick(fmpq_server *s, request *q)
{
    const uint32_t count = u32(q), first = u32(q), n = q->left / 4;
    samples to;
    int err;
    if (q->bad || q->left % 4)
        return FMPQ_S_LENGTH;
    if (!s->shard || fmpq_shard_fits(s->shard, &s->program))
        return FMPQ_S_IMAGES;
    err = place_samples(s, count, &to);
    if (!err && (first > count || n > count - first))
        err = FMPQ_S_ROOM;
    for (uint32_t i = 0; i < n && !err; i++) {
        const uint32_t index = u32(q);
        if (index >= s->shard->count)
            err = FMPQ_S_IMAGES;
        else
            fmpq_shard_gather(s->shard, &index, 1, to.images + (first + i) * s->shard->image_bytes, to.labels + first + i);
    }
    if (!err)
        put32(s, fmpq_crc32(0, to.images, to.bytes));
    return err;
}

static int train(fmpq_server *s, request *q, int training)
{
    fmpq_key key;
    fmpq_stats stats;
    samples in;
    uint32_t count, crc;
    int err;
    key.seed = u32(q);
    key.round = u32(q);
    key.client = u32(q);
    key.step = u32(q);
    count = u32(q);
    crc = u32(q);
    err = q->bad ? FMPQ_S_LENGTH : place_samples(s, count, &in);
    if (!err && fmpq_crc32(0, in.images, in.bytes) != crc)
        err = FMPQ_S_CRC;
    if (!err)
        err = training ? fmpq_step(s->session, in.images, in.labels, count, &s->rates, key, &stats)
                       : fmpq_evaluate(s->session, in.images, in.labels, count, &stats);
    if (err)
        return err;
    s->steps += (uint32_t)training;
    put64(s, (uint64_t)stats.loss_q16);
    put32(s, stats.correct);
    put32(s, stats.count);
    return FMPQ_OK;
}

static int prune(fmpq_server *s, request *q)
{
    const uint32_t eps = u32(q);
    const int err = q->bad ? FMPQ_S_LENGTH : fmpq_prune(s->session, eps);
    for (uint32_t r = 0; r < s->program.n_records && !err; r++)
        if (fmpq_record_theta(&s->program.rec[r]))
            put8(s, (uint32_t)fmpq_bits(s->session, r));
    return err;
}

static int facts(fmpq_server *s)
{
    fmpq_server_facts f;
    memset(&f, 0, sizeof(f));
    if (s->facts)
        s->facts(&f);
    put64(s, s->limit);
    put64(s, s->session ? s->mem.total : 0);
    put32(s, f.data);
    put32(s, f.bss);
    put32(s, f.stack_kept);
    put32(s, f.stack_used);
    put32(s, f.resident_peak);
    return FMPQ_OK;
}

static int answer(fmpq_server *s, const fmpq_frame *f)
{
    request q = {f->payload, f->len, 0};
    int err;
    if (!s->link)
        return FMPQ_S_STRANGER;
    if (((f->type >= FMPQ_PLANE && f->type <= FMPQ_PRUNE) || f->type == FMPQ_PICK) && !s->session)
        return FMPQ_S_ORDER;
    switch (f->type) {
    case FMPQ_WRITE:
        return write_bytes(s, &q);
    case FMPQ_PROGRAM:
        err = take_program(s, &q);
        break;
    case FMPQ_PLAN:
        err = plan_only(s, &q);
        break;
    case FMPQ_OPEN:
        err = open_session(s, &q);
        break;
    case FMPQ_PLANE:
        err = load_plane(s, &q);
        break;
    case FMPQ_PARAMS:
        err = load_params(s, &q);
        break;
    case FMPQ_READ_PLANE:
        err = read_plane(s, &q);
        break;
    case FMPQ_READ_PARAMS:
        err = read_params(s, &q);
        break;
    case FMPQ_RATES:
        err = take_rates(s, &q);
        break;
    case FMPQ_STEP:
    case FMPQ_EVALUATE:
        err = train(s, &q, f->type == FMPQ_STEP);
        break;
    case FMPQ_PRUNE:
        err = prune(s, &q);
        break;
    case FMPQ_FACTS:
        err = facts(s);
        break;
    case FMPQ_SHARD_FACTS:
        shard_facts(s);
        err = FMPQ_OK;
        break;
    case FMPQ_PICK:
        err = pick(s, &q);
        break;
    case FMPQ_CLOSE:
        s->session = NULL;
        err = FMPQ_OK;
        break;
    default:
        err = FMPQ_S_TYPE;
    }
    return !err && (q.bad || q.left) ? FMPQ_S_LENGTH : err;
}

/* ---- the line --------------------------------------------------------------------------------------------------- */

void fmpq_server_reset(fmpq_server *s)
{
    const fmpq_server given = {.board = s->board, .arena = s->arena, .limit = s->limit, .shard = s->shard, .scratch = s->scratch,
                               .send = s->send, .facts = s->facts};
    memset(s, 0, sizeof(*s));
    s->board = given.board;
    s->arena = given.arena;
    s->limit = given.limit;
    s->shard = given.shard;
    s->scratch = given.scratch;
    s->send = given.send;
    s->facts = given.facts;
}

void fmpq_server_feed(fmpq_server *s, uint8_t byte)
{
    fmpq_frame f;
    int err;
    switch (fmpq_frame_feed(&s->reader, byte, &f)) {
    case FMPQ_FRAME_NONE:
        return;
    case FMPQ_FRAME_DAMAGED: { /* not to be kept: the last reply stays for its own request */
        uint8_t frame[FMPQ_SERIAL_HEAD + 4], line[16];
        s->send(line, fmpq_frame_code(FMPQ_DAMAGED, 0, frame, 0, line));
        return;
    }
    default:
        break;
    }
    if (f.type & FMPQ_REPLY)
        return; /* our own voice, echoed by the line */
    if (f.type == FMPQ_HELLO) {
        hello(s, &f);
        return;
    }
    if (!s->answered || f.seq != s->seq) { /* otherwise it is done already and the reply was lost */
        s->out = s->frame;
        s->type = f.type | FMPQ_REPLY;
        s->reply_len = 0;
        err = answer(s, &f);
        if (err)
            refuse(s, err);
        s->answered = 1;
        s->seq = f.seq;
    }
    s->send(s->line, fmpq_frame_code(s->type, f.seq, s->frame, s->reply_len, s->line));
}
