/* Bit-planes: sign, then magnitude planes, least significant first; LSB-first bits in row-major weight order. */
#include "internal.h"

uint32_t fmpq_plane_bytes(uint32_t theta)
{
    return (theta + 7u) / 8u;
}

/* the 8 bits of b, one a byte */
static inline uint64_t spread(uint32_t b)
{
    const uint64_t x = ((uint64_t)b * 0x0101010101010101ull) & 0x8040201008040201ull;
    return ((x + 0x7f7f7f7f7f7f7f7full) >> 7) & 0x0101010101010101ull;
}

/* bit 0 of each byte, gathered */
static inline uint8_t gather(uint64_t x)
{
    return (uint8_t)(((x & 0x0101010101010101ull) * 0x0102040810204080ull) >> 56);
}

static int16_t unpack_one(const uint8_t *planes, uint32_t bytes, int n, uint32_t i)
{
    const uint32_t at = i >> 3, bit = i & 7u;
    int32_t mag = 0;
    for (int k = 0; k < n; k++)
        mag |= ((planes[(uint32_t)(k + 1) * bytes + at] >> bit) & 1) << k;
    return (int16_t)((planes[at] >> bit) & 1 ? -mag : mag);
}

static void pack_one(uint8_t *planes, uint32_t bytes, int n, uint32_t i, int32_t q)
{
    const uint32_t at = i >> 3;
    const uint32_t keep = ~(1u << (i & 7u));
    const uint32_t mag = (uint32_t)(q < 0 ? -q : q), sign = q < 0;
    planes[at] = (uint8_t)((planes[at] & keep) | sign << (i & 7u));
    for (int k = 0; k < n; k++) {
        uint8_t *b = planes + (uint32_t)(k + 1) * bytes + at;
        *b = (uint8_t)((*b & keep) | ((mag >> k) & 1u) << (i & 7u));
    }
}

void fmpq_planes_unpack(const uint8_t *planes, uint32_t theta, int n_planes, uint32_t first, uint32_t count, int16_t *q)
{
    const fmpq_kernels *k = fmpq_kernels_get();
    const uint32_t bytes = fmpq_plane_bytes(theta), end = first + count;
    uint32_t i = first, whole;
    for (; i < end && (i & 7u); i++)
        *q++ = unpack_one(planes, bytes, n_planes, i);
    whole = (end - i) & ~7u;
    k->unpack(planes + (i >> 3), bytes, n_planes, whole, q);
    q += whole;
    for (i += whole; i < end; i++)
        *q++ = unpack_one(planes, bytes, n_planes, i);
}

void fmpq_unpack_scalar(const uint8_t *planes, uint32_t bytes, int n_planes, uint32_t count, int16_t *q)
{
    for (uint32_t i = 0; i + 8 <= count; i += 8, q += 8) {
        const uint8_t *b = planes + (i >> 3);
        uint64_t low = 0, high = 0;
        const uint64_t sign = spread(b[0]);
        for (int k = 0; k < n_planes && k < 8; k++)
            low |= spread(b[(uint32_t)(k + 1) * bytes]) << k;
        for (int k = 8; k < n_planes; k++)
            high |= spread(b[(uint32_t)(k + 1) * bytes]) << (k - 8);
        for (int j = 0; j < 8; j++) {
            const int32_t mag = (int32_t)((low >> (8 * j)) & 255u) | (int32_t)((high >> (8 * j)) & 255u) << 8;
            const int32_t s = -(int32_t)((sign >> (8 * j)) & 1u);
            q[j] = (int16_t)((mag ^ s) - s);
        }
    }
}

void fmpq_planes_pack(uint8_t *planes, uint32_t theta, int n_planes, uint32_t first, uint32_t count, const int16_t *q)
{
    const fmpq_kernels *k = fmpq_kernels_get();
    const uint32_t bytes = fmpq_plane_bytes(theta), end = first + count;
    uint32_t i = first, whole;
    for (; i < end && (i & 7u); i++)
        pack_one(planes, bytes, n_planes, i, *q++);
    whole = (end - i) & ~7u;
    k->pack(planes + (i >> 3), bytes, n_planes, whole, q);
    q += whole;
    for (i += whole; i < end; i++)
        pack_one(planes, bytes, n_planes, i, *q++);
}

void fmpq_pack_scalar(uint8_t *planes, uint32_t bytes, int n_planes, uint32_t count, const int16_t *q)
{
    for (uint32_t i = 0; i + 8 <= count; i += 8, q += 8) {
        uint8_t *b = planes + (i >> 3);
        uint64_t low = 0, high = 0, sign = 0;
        for (int j = 0; j < 8; j++) {
            const uint32_t neg = (uint32_t)(q[j] < 0);
            const uint32_t mag = (uint32_t)(q[j] < 0 ? -q[j] : q[j]);
            low |= (uint64_t)(mag & 255u) << (8 * j);
            high |= (uint64_t)(mag >> 8) << (8 * j);
            sign |= (uint64_t)neg << (8 * j);
        }
        b[0] = gather(sign);
        for (int k = 0; k < n_planes && k < 8; k++)
            b[(uint32_t)(k + 1) * bytes] = gather(low >> k);
        for (int k = 8; k < n_planes; k++)
            b[(uint32_t)(k + 1) * bytes] = gather(high >> (k - 8));
    }
}

uint32_t fmpq_popcount(const uint8_t *data, uint32_t bytes)
{
    uint32_t n = 0, i = 0;
    for (; i + 8 <= bytes; i += 8) {
        uint64_t x;
        memcpy(&x, data + i, 8);
        x = x - ((x >> 1) & 0x5555555555555555ull);
        x = (x & 0x3333333333333333ull) + ((x >> 2) & 0x3333333333333333ull);
        x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0full;
        n += (uint32_t)((x * 0x0101010101010101ull) >> 56);
    }
    for (; i < bytes; i++)
        for (uint32_t b = data[i]; b; b &= b - 1)
            n++;
    return n;
}

void fmpq_effective(int16_t *q, uint32_t count, int n, int g)
{
    const int32_t top = (1 << n) - 1, half = (1 << g) / 2;
    if (!g)
        return;
    for (uint32_t i = 0; i < count; i++) {
        const int32_t mag = ((q[i] < 0 ? -q[i] : q[i]) + half) >> g;
        const int32_t m = mag > top ? top : mag;
        q[i] = (int16_t)(q[i] < 0 ? -m : m);
    }
}
