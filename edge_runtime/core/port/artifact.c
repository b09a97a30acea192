#include "artifact.h"
#include "json.h"
#include "sha256.h"
#include <string.h>

enum { HEADER = 64, ENTRY = 64, LAYER = 32, MAX_SECTIONS = 16 };
enum { PROGRAM, WEIGHTS, PLAN, MANIFEST, SECTIONS };
static const char section_names[SECTIONS][9] = {"program", "weights", "plan", "manifest"}; /* zero padded as in the table */

const char *fmpq_port_error_name(int code)
{
    switch (code) {
#define X(name, number, text) \
    case number:              \
        return #name;
#include "artifact_errors.inc"
#undef X
    default:
        return fmpq_error_name(code);
    }
}

const char *fmpq_port_error_text(int code)
{
    switch (code) {
#define X(name, number, text) \
    case number:              \
        return text;
#include "artifact_errors.inc"
#undef X
    default:
        return fmpq_error_text(code);
    }
}

static uint32_t get16(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}
static uint32_t get32(const uint8_t *p)
{
    return get16(p) | get16(p + 2) << 16;
}
static uint64_t get64(const uint8_t *p)
{
    return get32(p) | (uint64_t)get32(p + 4) << 32;
}

static int all_zero(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i])
            return 0;
    return 1;
}

static int hash_differs(const void *data, size_t len, const uint8_t want[32])
{
    uint8_t got[32];
    fmpq_sha256_of(data, len, got);
    return memcmp(got, want, 32) != 0;
}

typedef struct span {
    size_t at, len, entry;
} span;

/* ---- container ---------------------------------------------------------------------------------------------- */

static void table_hash(const uint8_t *d, size_t start, uint8_t out[32])
{
    fmpq_sha256 sha;
    fmpq_sha256_init(&sha);
    fmpq_sha256_add(&sha, d, 24); /* the header up to this hash, then the table */
    fmpq_sha256_add(&sha, d + HEADER, start - HEADER);
    fmpq_sha256_end(&sha, out);
}

static int sections(const uint8_t *d, size_t len, span out[SECTIONS])
{
    uint32_t count;
    size_t start, expected;
    uint64_t total;
    uint8_t hash[32];
    if (len < 8 || memcmp(d, "FMPQART1", 8))
        return FMPQ_E_FILE_MAGIC;
    if (len < HEADER)
        return FMPQ_E_FILE_TRUNCATED;
    if (get16(d + 8) != 1)
        return FMPQ_E_FILE_VERSION;
    count = get16(d + 10);
    start = get32(d + 12);
    total = get64(d + 16);
    if (!count || count > MAX_SECTIONS || start != HEADER + (size_t)ENTRY * count || !all_zero(d + 56, 8))
        return FMPQ_E_FILE_TABLE;
    if (len < total || len < start)
        return FMPQ_E_FILE_TRUNCATED;
    if (len > total)
        return FMPQ_E_FILE_LONG;
    table_hash(d, start, hash);
    if (memcmp(hash, d + 24, 32))
        return FMPQ_E_FILE_HASH;
    expected = start;
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *e = d + HEADER + (size_t)ENTRY * i;
        const uint64_t at = get64(e + 8), n = get64(e + 16);
        const size_t padded = n <= len ? (size_t)(n + 7) / 8 * 8 : 0;
        if (!all_zero(e + 56, 8) || at != expected || n > len || padded > len - expected)
            return FMPQ_E_FILE_TABLE;
        if (hash_differs(d + at, (size_t)n, e + 24))
            return FMPQ_E_FILE_HASH;
        if (!all_zero(d + at + n, padded - (size_t)n))
            return FMPQ_E_FILE_TABLE;
        if (i >= SECTIONS || memcmp(e, section_names[i], 8))
            return FMPQ_E_FILE_SECTION;
        out[i].at = (size_t)at;
        out[i].len = (size_t)n;
        out[i].entry = (size_t)(e - d);
        expected += padded;
    }
    if (expected != len)
        return FMPQ_E_FILE_TABLE;
    return count == SECTIONS ? FMPQ_OK : FMPQ_E_FILE_SECTION;
}

/* ---- weights ------------------------------------------------------------------------------------------------ */

static int weights(fmpq_artifact *a, span w)
{
    const uint8_t *d = a->data + w.at;
    size_t offset;
    uint32_t layer = 0;
    if (w.len < 8)
        return FMPQ_E_FILE_TRUNCATED;
    a->n_layers = get32(d);
    if (!a->n_layers || a->n_layers > FMPQ_MAX_RECORDS || get32(d + 4) || w.len < 8 + (size_t)LAYER * a->n_layers)
        return FMPQ_E_FILE_WEIGHTS;
    offset = 8 + (size_t)LAYER * a->n_layers;
    for (uint32_t r = 0; r < a->parsed.n_records; r++) {
        const fmpq_record *rec = &a->parsed.rec[r];
        const uint32_t theta = fmpq_record_theta(rec);
        fmpq_artifact_layer *l = &a->layer[layer];
        const uint8_t *e = d + 8 + (size_t)LAYER * layer;
        size_t size;
        if (!theta)
            continue;
        if (layer++ == a->n_layers)
            return FMPQ_E_FILE_WEIGHTS;
        l->record = r;
        l->theta = theta;
        l->bits = e[0];
        l->step.m = get32(e + 8);
        l->step.e = (int32_t)get32(e + 12);
        l->plane_bytes = (theta + 7) / 8;
        l->params_bytes = get32(e + 20);
        if (l->bits < 1 || l->bits > 8 || e[1] > 8 || e[1] != a->plan.guard || get16(e + 2) || get32(e + 4) != theta || get32(e + 16) != offset ||
            l->params_bytes != fmpq_params_size(rec) || !all_zero(e + 24, 8) || l->bits != a->plan.bits[r])
            return FMPQ_E_FILE_WEIGHTS;
        size = l->plane_bytes * (1u + l->bits + e[1]) + l->params_bytes;
        if (size > w.len - offset)
            return FMPQ_E_FILE_TRUNCATED;
        l->planes = w.at + offset;
        l->params = w.at + offset + size - l->params_bytes;
        offset += size;
    }
    return layer == a->n_layers && offset == w.len ? FMPQ_OK : FMPQ_E_FILE_WEIGHTS;
}

/* ---- plan --------------------------------------------------------------------------------------------------- */

/* sorted by name, as canonical JSON has them */
enum { ACT_BITS, BATCH, BITS, CROP, DECAY_BN, FLIP, GUARD, MICRO, MOMENTUM, RECOMPUTE, THREADS, FIELDS };
static const struct {
    const char *name;
    int64_t low, high; /* low = high = 0: a boolean */
} fields[FIELDS] = {
    [ACT_BITS] = {"act_bits", 4, 8},
    [BATCH] = {"batch", 1, 65535},
    [BITS] = {"bits", 1, 8}, /* a list */
    [CROP] = {"crop", 0, 0},
    [DECAY_BN] = {"decay_bn", 0, 0},
    [FLIP] = {"flip", 0, 0},
    [GUARD] = {"guard", 0, 8},
    [MICRO] = {"micro_batch", 1, 65535},
    [MOMENTUM] = {"momentum", 0, 0},
    [RECOMPUTE] = {"recompute", 0, 0},
    [THREADS] = {"threads", 1, 256},
};

static int plan_bits(fmpq_artifact *a, fmpq_json *j)
{
    uint32_t r = 0;
    if (!fmpq_json_take(j, '['))
        return FMPQ_E_FILE_PLAN;
    do {
        int64_t n;
        while (r < a->parsed.n_records && !fmpq_record_theta(&a->parsed.rec[r]))
            r++;
        if (r == a->parsed.n_records || !fmpq_json_int(j, &n) || n < fields[BITS].low || n > fields[BITS].high)
            return FMPQ_E_FILE_PLAN;
        a->plan.bits[r++] = (uint8_t)n;
    } while (fmpq_json_take(j, ','));
    return fmpq_json_take(j, ']') ? FMPQ_OK : FMPQ_E_FILE_PLAN;
}

static int plan(fmpq_artifact *a, span w)
{
    fmpq_json j = {(const char *)a->data + w.at, (const char *)a->data + w.at + w.len};
    int64_t value[FIELDS];
    unsigned next = 0, seen = 0;
    if (!fmpq_json_take(&j, '{'))
        return FMPQ_E_FILE_JSON;
    do {
        const char *name;
        size_t len;
        unsigned k = 0;
        if (!fmpq_json_string(&j, &name, &len) || !fmpq_json_take(&j, ':'))
            return FMPQ_E_FILE_JSON;
        while (k < FIELDS && (strlen(fields[k].name) != len || memcmp(fields[k].name, name, len)))
            k++;
        if (k == FIELDS)
            return FMPQ_E_FILE_PLAN;
        if (k < next) /* twice, or not in order */
            return FMPQ_E_FILE_JSON;
        next = k + 1;
        seen++;
        if (k == BITS) {
            const int err = plan_bits(a, &j);
            if (err)
                return err;
        } else if (!fields[k].high) {
            if (!fmpq_json_bool(&j, &value[k]))
                return FMPQ_E_FILE_PLAN;
        } else if (!fmpq_json_int(&j, &value[k]) || value[k] < fields[k].low || value[k] > fields[k].high) {
            return FMPQ_E_FILE_PLAN;
        }
    } while (fmpq_json_take(&j, ','));
    if (!fmpq_json_take(&j, '}') || j.p != j.end)
        return FMPQ_E_FILE_JSON;
    if (seen != FIELDS || value[MICRO] > value[BATCH])
        return FMPQ_E_FILE_PLAN;
    a->batch = (uint32_t)value[BATCH];
    a->plan.batch = (uint32_t)value[MICRO];
    a->plan.accumulate = value[MICRO] < value[BATCH];
    a->plan.act_bits = (uint8_t)value[ACT_BITS];
    a->plan.guard = (uint8_t)value[GUARD];
    a->plan.momentum = (uint8_t)value[MOMENTUM];
    a->plan.threads = (uint8_t)(value[THREADS] > 64 ? 64 : value[THREADS]);
    a->plan.crop = (uint8_t)value[CROP];
    a->plan.flip = (uint8_t)value[FLIP];
    a->plan.decay_bn = (uint8_t)value[DECAY_BN];
    a->plan.recompute = (uint8_t)value[RECOMPUTE];
    return FMPQ_OK;
}

/* ---- manifest ----------------------------------------------------------------------------------------------- */

/* the object {"plan":"…","program":"…","weights":"…"} */
static int manifest_hashes(fmpq_artifact *a, fmpq_json *j, const span w[SECTIONS])
{
    static const uint8_t sorted[MANIFEST] = {PLAN, PROGRAM, WEIGHTS};
    for (unsigned i = 0; i < MANIFEST; i++) {
        const char *name, *hex;
        size_t len, digits;
        char want[65];
        uint8_t hash[32];
        const unsigned k = sorted[i];
        if (!fmpq_json_take(j, i ? ',' : '{'))
            return FMPQ_E_FILE_MANIFEST;
        if (!fmpq_json_string(j, &name, &len) || !fmpq_json_take(j, ':') || !fmpq_json_string(j, &hex, &digits))
            return FMPQ_E_FILE_JSON;
        if (strlen(section_names[k]) != len || memcmp(section_names[k], name, len))
            return FMPQ_E_FILE_MANIFEST;
        fmpq_sha256_of(a->data + w[k].at, w[k].len, hash);
        fmpq_hex(hash, 32, want);
        if (digits != 64 || memcmp(hex, want, 64))
            return FMPQ_E_FILE_HASH;
        if (k == WEIGHTS)
            a->manifest_hash = (size_t)((const uint8_t *)hex - a->data);
    }
    return fmpq_json_take(j, '}') ? FMPQ_OK : FMPQ_E_FILE_JSON;
}

static int manifest(fmpq_artifact *a, const span w[SECTIONS])
{
    fmpq_json j = {(const char *)a->data + w[MANIFEST].at, (const char *)a->data + w[MANIFEST].at + w[MANIFEST].len};
    int found = 0;
    if (!fmpq_json_take(&j, '{'))
        return FMPQ_E_FILE_JSON;
    do {
        const char *name;
        size_t len;
        if (!fmpq_json_string(&j, &name, &len) || !fmpq_json_take(&j, ':'))
            return FMPQ_E_FILE_JSON;
        if (len == 6 && !memcmp(name, "sha256", 6)) {
            const int err = found ? FMPQ_E_FILE_JSON : manifest_hashes(a, &j, w);
            if (err)
                return err;
            found = 1;
        } else if (!fmpq_json_skip(&j, 0)) {
            return FMPQ_E_FILE_JSON;
        }
    } while (fmpq_json_take(&j, ','));
    if (!fmpq_json_take(&j, '}') || j.p != j.end)
        return FMPQ_E_FILE_JSON;
    return found ? FMPQ_OK : FMPQ_E_FILE_MANIFEST;
}

/* ---- the whole ---------------------------------------------------------------------------------------------- */

int fmpq_artifact_open(const void *data, size_t len, fmpq_artifact *a)
{
    span w[SECTIONS];
    int err;
    memset(a, 0, sizeof(*a));
    a->data = data;
    a->len = len;
    err = sections(data, len, w);
    if (err)
        return err;
    a->program = w[PROGRAM].at;
    a->program_len = w[PROGRAM].len;
    a->weights = w[WEIGHTS].at;
    a->weights_len = w[WEIGHTS].len;
    a->weights_entry = w[WEIGHTS].entry;
    a->manifest = w[MANIFEST].at;
    a->manifest_len = w[MANIFEST].len;
    a->manifest_entry = w[MANIFEST].entry;
    err = fmpq_program_parse(a->data + a->program, a->program_len, &a->parsed);
    if (!err)
        err = plan(a, w[PLAN]);
    if (!err)
        err = weights(a, w[WEIGHTS]);
    return err ? err : manifest(a, w);
}

int fmpq_artifact_load(const fmpq_artifact *a, fmpq_session *s)
{
    for (uint32_t i = 0; i < a->n_layers; i++) {
        const fmpq_artifact_layer *l = &a->layer[i];
        int err = FMPQ_OK;
        for (uint32_t k = 0; k <= l->bits + a->plan.guard && !err; k++)
            err = fmpq_load_plane(s, l->record, k, a->data + l->planes + k * l->plane_bytes, l->plane_bytes);
        if (!err)
            err = fmpq_check_weights(s, l->record);
        if (!err)
            err = fmpq_load_params(s, l->record, l->step, a->data + l->params, l->params_bytes);
        if (err)
            return err;
    }
    return FMPQ_OK;
}

int fmpq_artifact_store(const fmpq_artifact *a, const fmpq_session *s, uint8_t *file)
{
    for (uint32_t i = 0; i < a->n_layers; i++) {
        const fmpq_artifact_layer *l = &a->layer[i];
        fmpq_fx step;
        int err = fmpq_bits(s, l->record) == (int)l->bits ? FMPQ_OK : FMPQ_E_PLANE_COUNT;
        for (uint32_t k = 0; k <= l->bits + a->plan.guard && !err; k++)
            err = fmpq_read_plane(s, l->record, k, file + l->planes + k * l->plane_bytes, l->plane_bytes);
        if (!err)
            err = fmpq_read_params(s, l->record, &step, file + l->params, l->params_bytes);
        if (err)
            return err;
    }
    fmpq_artifact_seal(a, file);
    return FMPQ_OK;
}

void fmpq_artifact_seal(const fmpq_artifact *a, uint8_t *file)
{
    uint8_t hash[32];
    char hex[65];
    fmpq_sha256_of(file + a->weights, a->weights_len, hash);
    memcpy(file + a->weights_entry + 24, hash, 32);
    fmpq_hex(hash, 32, hex);
    memcpy(file + a->manifest_hash, hex, 64);
    fmpq_sha256_of(file + a->manifest, a->manifest_len, hash);
    memcpy(file + a->manifest_entry + 24, hash, 32);
    table_hash(file, get32(file + 12), file + 24);
}
