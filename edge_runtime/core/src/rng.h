/* Random bits from a counter hash (docs/arithmetic.md, section 2). */
#ifndef FMPQ_RNG_H
#define FMPQ_RNG_H
#include <fmpq/fmpq.h>

typedef struct fmpq_stream {
    uint32_t k0, k1;
} fmpq_stream;

static inline uint32_t fmpq_mix(uint32_t x, uint32_t k1)
{
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= k1;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    x ^= x >> 16;
    return x;
}

static inline uint32_t fmpq_rand(fmpq_stream k, uint32_t i)
{
    return fmpq_mix(i + k.k0, k.k1);
}

static inline fmpq_stream fmpq_stream_of(fmpq_key key, uint32_t stream)
{
    const uint32_t v[5] = {key.seed, key.round, key.client, key.step, stream};
    fmpq_stream k = {0x9e3779b9u, 0x85ebca6bu};
    for (int i = 0; i < 5; i++) {
        k.k0 = fmpq_mix(k.k0 ^ v[i], k.k1);
        k.k1 = fmpq_mix(k.k1 + v[i], k.k0);
    }
    return k;
}

#define FMPQ_STREAM_ERROR(l) (4u * (l))
#define FMPQ_STREAM_WEIGHT(l) (4u * (l) + 1u)
#define FMPQ_STREAM_MOMENTUM(l) (4u * (l) + 2u)
#define FMPQ_STREAM_CROP 0xffff0000u
#endif
