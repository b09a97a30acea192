#include "shard.h"
#include "../src/rng.h"
#include "artifact.h"
#include "sha256.h"
#include <string.h>

enum { HEADER = 128, HASH_AT = 64 };
#define ORDER_STREAM 0xffff0001u

static uint32_t get16(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}
static uint32_t get32(const uint8_t *p)
{
    return get16(p) | get16(p + 2) << 16;
}

int fmpq_shard_open(const void *data, size_t len, fmpq_shard *s)
{
    static const uint8_t zeros[32] = {0};
    const uint8_t *d = data;
    uint64_t total, start;
    fmpq_sha256 sha;
    uint8_t hash[32];
    if (len < 8 || memcmp(d, "FMPQSHRD", 8))
        return FMPQ_E_FILE_MAGIC;
    if (len < HEADER)
        return FMPQ_E_FILE_TRUNCATED;
    if (get16(d + 8) != 1)
        return FMPQ_E_FILE_VERSION;
    s->count = get32(d + 12);
    s->height = get16(d + 16);
    s->width = get16(d + 18);
    s->channels = get16(d + 20);
    s->classes = get16(d + 22);
    if (!s->count || !s->height || !s->width || !s->channels || s->channels > 16 || s->classes < 2 || s->classes > 1024)
        return FMPQ_E_SHARD_RANGE;
    s->image_bytes = (size_t)s->height * s->width * s->channels;
    start = (HEADER + 2ull * s->count + 63) / 64 * 64;
    total = start + (uint64_t)s->count * s->image_bytes;
    if (len < total)
        return FMPQ_E_FILE_TRUNCATED;
    if (len > total)
        return FMPQ_E_FILE_LONG;
    if (get16(d + 10) || memcmp(d + 48, zeros, 16) || (get32(d + 40) | (uint64_t)get32(d + 44) << 32) != total)
        return FMPQ_E_FILE_TABLE;
    fmpq_sha256_init(&sha);
    fmpq_sha256_add(&sha, d, HASH_AT);
    fmpq_sha256_add(&sha, zeros, 32);
    fmpq_sha256_add(&sha, d + HASH_AT + 32, len - HASH_AT - 32);
    fmpq_sha256_end(&sha, hash);
    if (memcmp(hash, d + HASH_AT, 32))
        return FMPQ_E_FILE_HASH;
    s->labels = d + HEADER;
    s->images = d + start;
    for (uint32_t i = 0; i < s->count; i++)
        if (get16(s->labels + 2 * (size_t)i) >= s->classes)
            return FMPQ_E_SHARD_RANGE;
    return FMPQ_OK;
}

int fmpq_shard_fits(const fmpq_shard *s, const fmpq_program *p)
{
    return s->height == p->in_h && s->width == p->in_w && s->channels == p->in_c && s->classes <= p->classes ? FMPQ_OK : FMPQ_E_SHARD_SHAPE;
}

const uint8_t *fmpq_shard_hash(const fmpq_shard *s)
{
    return s->labels - HEADER + HASH_AT;
}

void fmpq_shard_order(uint32_t count, fmpq_key key, uint32_t *order)
{
    const fmpq_stream k = fmpq_stream_of(key, ORDER_STREAM);
    for (uint32_t i = 0; i < count; i++)
        order[i] = i;
    for (uint32_t i = count; i-- > 1;) {
        const uint32_t j = (uint32_t)(((uint64_t)fmpq_rand(k, i) * (i + 1)) >> 32), v = order[i];
        order[i] = order[j];
        order[j] = v;
    }
}

void fmpq_shard_gather(const fmpq_shard *s, const uint32_t *indices, uint32_t n, uint8_t *images, uint16_t *labels)
{
    for (uint32_t i = 0; i < n; i++) {
        memcpy(images + i * s->image_bytes, s->images + indices[i] * s->image_bytes, s->image_bytes);
        labels[i] = (uint16_t)get16(s->labels + 2 * (size_t)indices[i]);
    }
}
