/* Reading and checking a program: every byte of it is checked before it is used. */
#include "internal.h"

#define HEADER 64u
#define RECORD 64u

static uint32_t le16(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static uint32_t le32(const uint8_t *p)
{
    return le16(p) | le16(p + 2) << 16;
}

static int zeros(const uint8_t *p, uint32_t n)
{
    uint32_t any = 0;
    for (uint32_t i = 0; i < n; i++)
        any |= p[i];
    return any == 0;
}

size_t fmpq_sizeof_program(void)
{
    return sizeof(fmpq_program);
}

uint32_t fmpq_record_theta(const fmpq_record *r)
{
    if (r->kind == FMPQ_CONV)
        return (uint32_t)r->cout * (uint32_t)(r->cin / r->groups) * r->kh * r->kw;
    if (r->kind == FMPQ_CLASSIFIER)
        return (uint32_t)r->cout * r->cin;
    return 0;
}

size_t fmpq_params_size(const fmpq_record *r)
{
    return r->kind == FMPQ_CONV ? r->cout * 20u : r->kind == FMPQ_CLASSIFIER ? r->cout * 4u : 0u;
}

static uint32_t size_of(const fmpq_record *r)
{
    return (uint32_t)r->h_out * r->w_out * r->cout;
}

static int window_fits(const fmpq_record *r)
{
    const int32_t h = (int32_t)r->h_in + 2 * r->pad - r->kh, w = (int32_t)r->w_in + 2 * r->pad - r->kw;
    return h >= 0 && w >= 0 && h / r->stride + 1 == r->h_out && w / r->stride + 1 == r->w_out;
}

static int check_skip(const fmpq_program *p, const fmpq_record *r, uint32_t i)
{
    const fmpq_record *s;
    if (r->skip_kind == FMPQ_SKIP_NONE)
        return r->skip == FMPQ_NO_TENSOR && !r->skip_pad_c ? FMPQ_OK : FMPQ_E_PROGRAM_TOPOLOGY;
    if (r->skip_kind != FMPQ_SKIP_IDENTITY && r->skip_kind != FMPQ_SKIP_OPTION_A)
        return FMPQ_E_PROGRAM_KIND;
    if (r->skip == 0 || r->skip > i || r->skip == r->input)
        return FMPQ_E_PROGRAM_TOPOLOGY;
    s = &p->rec[r->skip - 1];
    if (r->skip_kind == FMPQ_SKIP_IDENTITY)
        return s->h_out == r->h_out && s->w_out == r->w_out && s->cout == r->cout && r->skip_pad_c == 0 ? FMPQ_OK : FMPQ_E_PROGRAM_SHAPE;
    return (s->h_out + 1) / 2 == r->h_out && (s->w_out + 1) / 2 == r->w_out && (uint32_t)s->cout + r->skip_pad_c <= r->cout ? FMPQ_OK
                                                                                                                 : FMPQ_E_PROGRAM_SHAPE;
}

static int check_concat(const fmpq_program *p, const fmpq_record *r, uint32_t i)
{
    const fmpq_record *a = &p->rec[r->input - 1], *b;
    if (!r->input || r->skip_kind != FMPQ_SKIP_CONCAT || !r->skip || r->skip > i || r->skip == r->input)
        return FMPQ_E_PROGRAM_TOPOLOGY;
    b = &p->rec[r->skip - 1];
    if (r->kh != 1 || r->kw != 1 || r->stride != 1 || r->pad || r->groups != 1 || r->skip_pad_c || r->t_out < a->t_out || r->t_out < b->t_out ||
        ((a->flags ^ b->flags) & FMPQ_LINEAR))
        return FMPQ_E_PROGRAM_KIND;
    if (r->h_in != a->h_out || r->w_in != a->w_out || b->h_out != a->h_out || b->w_out != a->w_out || r->h_out != r->h_in || r->w_out != r->w_in ||
        r->cin != r->cout || (uint32_t)a->cout + b->cout != r->cout || size_of(r) > 1u << 24)
        return FMPQ_E_PROGRAM_SHAPE;
    return FMPQ_OK;
}

static int check_record(const fmpq_program *p, uint32_t i)
{
    const fmpq_record *r = &p->rec[i];
    uint32_t h = p->in_h, w = p->in_w, c = p->in_c;
    if (r->kind < FMPQ_CONV || r->kind > FMPQ_CONCAT || r->flags > (r->kind == FMPQ_CONV ? FMPQ_LINEAR | FMPQ_BIASED : 0) || r->t_out > 6 ||
        r->name[31] != 0)
        return FMPQ_E_PROGRAM_KIND;
    if (r->input > i)
        return FMPQ_E_PROGRAM_TOPOLOGY;
    if (r->input) {
        const fmpq_record *s = &p->rec[r->input - 1];
        h = s->h_out, w = s->w_out, c = s->cout;
    } else if (r->kind != FMPQ_CONV) {
        return FMPQ_E_PROGRAM_TOPOLOGY;
    }
    if (!r->kh || !r->kw || !r->stride || !r->groups || !r->cin || !r->cout || !r->h_out || !r->w_out || r->cout > 4096 || r->h_out > 512 ||
        r->w_out > 512 || r->h_in > 512 || r->w_in > 512)
        return FMPQ_E_PROGRAM_SHAPE;
    if (r->kind == FMPQ_CLASSIFIER) {
        const int ok = i + 1u == p->n_records && r->kh == 1 && r->kw == 1 && r->stride == 1 && !r->pad && r->groups == 1 &&
                       r->cout == p->classes && r->h_in == 1 && r->w_in == 1 && r->h_out == 1 && r->w_out == 1 && (uint32_t)r->cin == h * w * c &&
                       r->skip_kind == FMPQ_SKIP_NONE && !r->t_out;
        return ok ? check_skip(p, r, i) : FMPQ_E_PROGRAM_SHAPE;
    }
    if (i + 1u == p->n_records)
        return FMPQ_E_PROGRAM_TOPOLOGY;
    if (r->kind == FMPQ_CONCAT)
        return check_concat(p, r, i);
    if (r->kind == FMPQ_CONV && r->h_in == 1 && r->w_in == 1 && r->kh == 1 && r->kw == 1) {
        if (r->cin != h * w * c) /* a hidden linear layer may flatten its input */
            return FMPQ_E_PROGRAM_SHAPE;
    } else if (r->h_in != h || r->w_in != w || r->cin != c) {
        return FMPQ_E_PROGRAM_SHAPE;
    }
    if (!window_fits(r) || size_of(r) > 1u << 24 || r->pad >= r->kh || r->pad >= r->kw)
        return FMPQ_E_PROGRAM_SHAPE;
    if (r->kind == FMPQ_CONV) {
        if (r->kh > 7 || r->kw > 7 || r->stride > 4 || r->cin % r->groups || r->cout % r->groups)
            return FMPQ_E_PROGRAM_KIND;
        if (fmpq_record_theta(r) > 1u << 26)
            return FMPQ_E_PROGRAM_SHAPE;
        return check_skip(p, r, i);
    }
    if (r->groups != 1 || r->cin != r->cout || r->skip_kind || r->skip != FMPQ_NO_TENSOR || r->skip_pad_c)
        return FMPQ_E_PROGRAM_KIND;
    if (r->t_out || (r->kind != FMPQ_MAXPOOL && r->pad))
        return FMPQ_E_PROGRAM_KIND;
    if (r->kind == FMPQ_GLOBALPOOL && (r->h_out != 1 || r->w_out != 1 || r->kh > 64 || r->kw > 64 || r->kh != r->h_in || r->kw != r->w_in))
        return FMPQ_E_PROGRAM_SHAPE;
    if (r->kind != FMPQ_GLOBALPOOL && (r->kh > 16 || r->kw > 16))
        return FMPQ_E_PROGRAM_KIND;
    return FMPQ_OK;
}

/* Every tensor must be read, and an option-A source must be read by an earlier record too (its error is merged there). */
static int check_topology(const fmpq_program *p)
{
    for (uint32_t t = 1; t < p->n_records; t++) {
        uint32_t readers = 0;
        for (uint32_t i = t; i < p->n_records; i++)
            readers += (uint32_t)(p->rec[i].input == t) + (uint32_t)(p->rec[i].skip == t);
        if (!readers)
            return FMPQ_E_PROGRAM_TOPOLOGY;
        if (p->rec[t - 1].kind == FMPQ_GLOBALPOOL && p->rec[p->n_records - 1u].input == t && readers > 1)
            return FMPQ_E_PROGRAM_TOPOLOGY;
    }
    for (uint32_t i = 0; i < p->n_records; i++) {
        uint32_t main_reader = 0;
        if (p->rec[i].skip_kind != FMPQ_SKIP_OPTION_A)
            continue;
        for (uint32_t j = p->rec[i].skip; j < i; j++)
            main_reader += p->rec[j].input == p->rec[i].skip;
        for (uint32_t j = 0; j < p->n_records; j++)
            if (j != i && p->rec[j].skip_kind == FMPQ_SKIP_OPTION_A && p->rec[j].skip == p->rec[i].skip)
                main_reader = 0;
        if (!main_reader)
            return FMPQ_E_PROGRAM_TOPOLOGY;
    }
    return FMPQ_OK;
}

int fmpq_program_parse(const void *data, size_t len, fmpq_program *p)
{
    const uint8_t *b = data;
    int err;
    if (!data || !p)
        return FMPQ_E_NULL;
    if (len < HEADER || memcmp(b, "FMPQPROG", 8))
        return FMPQ_E_PROGRAM_MAGIC;
    if (le16(b + 8) != 1)
        return FMPQ_E_PROGRAM_VERSION;
    memset(p, 0, sizeof(*p));
    p->n_records = (uint16_t)le16(b + 10);
    if (p->n_records < 2 || p->n_records > FMPQ_MAX_RECORDS || le32(b + 12) != len || len != HEADER + RECORD * (size_t)p->n_records)
        return FMPQ_E_PROGRAM_LENGTH;
    p->in_h = (uint16_t)le16(b + 16);
    p->in_w = (uint16_t)le16(b + 18);
    p->in_c = (uint16_t)le16(b + 20);
    p->classes = (uint16_t)le16(b + 22);
    p->crop_pad = b[24];
    memcpy(p->mean, b + 28, 16);
    if (!p->in_h || p->in_h > 512 || !p->in_w || p->in_w > 512 || !p->in_c || p->in_c > 16 || p->classes < 2 || p->classes > 1024 ||
        p->crop_pad > 16 || b[25] || le16(b + 26) || !zeros(b + 44, 20) || !zeros(p->mean + p->in_c, 16u - p->in_c))
        return FMPQ_E_PROGRAM_SHAPE;
    for (uint32_t i = 0; i < p->n_records; i++) {
        const uint8_t *q = b + HEADER + RECORD * i;
        fmpq_record *r = &p->rec[i];
        r->kind = q[0], r->kh = q[1], r->kw = q[2], r->stride = q[3], r->pad = q[4], r->skip_kind = q[5], r->t_out = q[6], r->flags = q[7];
        r->groups = (uint16_t)le16(q + 8), r->cin = (uint16_t)le16(q + 10), r->cout = (uint16_t)le16(q + 12);
        r->h_in = (uint16_t)le16(q + 14), r->w_in = (uint16_t)le16(q + 16), r->h_out = (uint16_t)le16(q + 18), r->w_out = (uint16_t)le16(q + 20);
        r->input = (uint16_t)le16(q + 22), r->skip = (uint16_t)le16(q + 24), r->skip_pad_c = (uint16_t)le16(q + 26);
        memcpy(r->name, q + 32, 32);
        if (!zeros(q + 28, 4))
            return FMPQ_E_PROGRAM_KIND;
        err = check_record(p, i);
        if (err)
            return err;
        if (r->kind != FMPQ_CONV)
            r->flags = p->rec[r->input - 1].flags & FMPQ_LINEAR;
        if (r->kind != FMPQ_CONV && r->kind != FMPQ_CLASSIFIER && r->kind != FMPQ_CONCAT)
            r->t_out = p->rec[r->input - 1].t_out; /* pools inherit the exponent of what they read */
    }
    if (p->rec[p->n_records - 1u].kind != FMPQ_CLASSIFIER)
        return FMPQ_E_PROGRAM_TOPOLOGY;
    return check_topology(p);
}
