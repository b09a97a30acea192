/* Bit-planes to and from weights, four bytes of a register at a time. */
#ifndef FMPQ_PLANES_DSP_H
#define FMPQ_PLANES_DSP_H
#include "lanes.h"

/* bits 0 to 3 of b, one a byte */
ALWAYS_INLINE uint32_t spread(uint32_t b)
{
    return ((b & 15u) * 0x00204081u) & 0x01010101u;
}

/* the lowest bit of each byte, in bits 0 to 3 */
ALWAYS_INLINE uint32_t gather(uint32_t x)
{
    return ((x & 0x01010101u) * 0x10204080u) >> 28;
}

/* bytes of values and signs (0 or 1) to four int16 */
ALWAYS_INLINE void widen(uint32_t mag, uint32_t sign, int16_t *q)
{
    const uint32_t mask = (sign << 8) - sign; /* 255 where negative */
    const uint32_t v = (uint32_t)sub8((int32_t)(mag ^ mask), (int32_t)mask);
    const int32_t even = signed_even(v), odd = signed_odd(v);
    put_word(q, (uint32_t)low_halves(even, odd));
    put_word(q + 2, (uint32_t)high_halves(even, odd));
}

/* two bytes at any address */
ALWAYS_INLINE uint32_t pair_of(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, 2);
    return v;
}

static void unpack(const uint8_t *planes, uint32_t bytes, int n, uint32_t count, int16_t *q)
{
    if (n > 7) { /* more than a byte holds */
        fmpq_unpack_scalar(planes, bytes, n, count, q);
        return;
    }
    for (; count >= 16; count -= 16, planes += 2, q += 16) { /* two bytes a plane */
        const uint8_t *p = planes + (uint32_t)n * bytes;
        uint32_t v[4] = {0, 0, 0, 0}, b;
        for (int k = n; k > 0; k--, p -= bytes) {
            b = pair_of(p);
            for (int i = 0; i < 4; i++)
                v[i] = spread(b >> (4 * i)) | v[i] << 1;
        }
        b = pair_of(planes);
        for (int i = 0; i < 4; i++)
            widen(v[i], spread(b >> (4 * i)), q + 4 * i);
    }
    if (count >= 8) {
        const uint8_t *p = planes + (uint32_t)n * bytes;
        uint32_t low = 0, high = 0, b;
        for (int k = n; k > 0; k--, p -= bytes) {
            b = *p;
            low = spread(b) | low << 1;
            high = spread(b >> 4) | high << 1;
        }
        b = *planes;
        widen(low, spread(b), q);
        widen(high, spread(b >> 4), q + 4);
    }
}

/* magnitudes and signs of four weights of up to 8 bits */
ALWAYS_INLINE uint32_t magnitudes(const int16_t *q, uint32_t *sign)
{
    const uint32_t a = word(q), b = word(q + 2);
    const uint32_t even = (uint32_t)low_halves((int32_t)a, (int32_t)b), odd = (uint32_t)high_halves((int32_t)a, (int32_t)b);
    /* bytes 0 and 2 of the low bytes, 1 and 3 of the odd ones: the order of the weights */
    const uint32_t v = (even & 0x00ff00ffu) | (odd & 0x00ff00ffu) << 8;
    const uint32_t s = ((even >> 15) & 0x00010001u) | ((odd >> 7) & 0x01000100u), mask = (s << 8) - s;
    *sign = s;
    return (uint32_t)sub8((int32_t)(v ^ mask), (int32_t)mask);
}

static void pack(uint8_t *planes, uint32_t bytes, int n, uint32_t count, const int16_t *q)
{
    if (n > 8) {
        fmpq_pack_scalar(planes, bytes, n, count, q);
        return;
    }
    for (; count >= 8; count -= 8, planes++, q += 8) {
        uint8_t *p = planes;
        uint32_t s0, s1, low = magnitudes(q, &s0), high = magnitudes(q + 4, &s1);
        *p = (uint8_t)(gather(s0) | gather(s1) << 4);
        for (int k = 0; k < n; k++, low >>= 1, high >>= 1) {
            p += bytes;
            *p = (uint8_t)(gather(low) | gather(high) << 4);
        }
    }
}
#endif
