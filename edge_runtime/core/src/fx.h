/* Small floats in integers and the rounding primitives (docs/arithmetic.md, notation and section 1). */
#ifndef FMPQ_FX_H
#define FMPQ_FX_H
#include <fmpq/fmpq.h>

static inline int fmpq_bitlen64(uint64_t x)
{
    int n = 0;
#if defined(__GNUC__)
    n = x ? 64 - __builtin_clzll(x) : 0;
#else
    while (x) {
        x >>= 1;
        n++;
    }
#endif
    return n;
}

static inline uint64_t fmpq_abs64(int64_t x)
{
    return x < 0 ? 0u - (uint64_t)x : (uint64_t)x;
}

static inline int64_t fmpq_clamp64(int64_t x, int64_t lo, int64_t hi)
{
    return x < lo ? lo : x > hi ? hi : x;
}

/* Round half up by a power of two; a negative amount shifts left (the caller knows that it fits). */
static inline int64_t fmpq_rshift64(int64_t x, int s)
{
    if (s <= 0)
        return s < -62 ? 0 : (int64_t)((uint64_t)x << -s);
    if (s > 62)
        return 0;
    return (x + ((int64_t)1 << (s - 1))) >> s;
}

/* The same with ties to even, for values whose sums must carry no bias (section 7); s <= 62. */
static inline int64_t fmpq_reven64(int64_t x, int s)
{
    if (s <= 0)
        return fmpq_rshift64(x, s);
    return (x + ((int64_t)1 << (s - 1)) - 1 + ((x >> s) & 1)) >> s;
}

/* floor((a + floor(d/2)) / d), d > 0 */
static inline int64_t fmpq_rdiv64(int64_t a, int64_t d)
{
    const int64_t n = a + d / 2;
    const int64_t q = n / d;
    return q - (n % d < 0);
}

static inline uint32_t fmpq_isqrt64(uint64_t x)
{
    uint64_t r = 0, bit = (uint64_t)1 << 62;
    while (bit > x)
        bit >>= 2;
    while (bit) {
        if (x >= r + bit) {
            x -= r + bit;
            r = (r >> 1) + bit;
        } else {
            r >>= 1;
        }
        bit >>= 2;
    }
    return (uint32_t)r;
}

static inline fmpq_fx fmpq_fx_norm(uint64_t v, int32_t e)
{
    fmpq_fx r = {0, 0};
    if (v) {
        const int b = fmpq_bitlen64(v);
        r.m = (uint32_t)(b > 31 ? v >> (b - 31) : v << (31 - b));
        r.e = e + b - 31;
    }
    return r;
}

static inline fmpq_fx fmpq_fx_mul(fmpq_fx a, fmpq_fx b)
{
    return fmpq_fx_norm((uint64_t)a.m * b.m, a.e + b.e);
}

static inline fmpq_fx fmpq_fx_div(fmpq_fx a, fmpq_fx b)
{
    const fmpq_fx zero = {0, 0};
    if (!b.m)
        return zero;
    return fmpq_fx_norm(((uint64_t)a.m << 31) / b.m, a.e - b.e - 31);
}

static inline fmpq_fx fmpq_fx_scale(fmpq_fx a, int32_t e)
{
    a.e += a.m ? e : 0;
    return a;
}

static inline int fmpq_fx_valid(fmpq_fx a)
{
    return a.e >= -512 && a.e <= 512 && (!a.m || (a.m >= 0x40000000u && a.m < 0x80000000u));
}

/* x * a, rounded, saturated to +-(2^31 - 1); |x| <= 2^31. */
static inline int32_t fmpq_fx_apply(int64_t x, fmpq_fx a)
{
    const int64_t top = 0x7fffffff;
    int64_t p;
    if (!a.m || !x)
        return 0;
    p = x * (int64_t)a.m;
    if (a.e > 0)
        p = a.e > 31 || fmpq_abs64(p) >= ((uint64_t)1 << 31) >> a.e ? (p < 0 ? -top : top) : (int64_t)((uint64_t)p << a.e);
    else
        p = fmpq_rshift64(p, -a.e);
    return (int32_t)fmpq_clamp64(p, -top, top);
}

static inline int32_t fmpq_fx_apply64(int64_t x, fmpq_fx a)
{
    const int j = fmpq_bitlen64(fmpq_abs64(x)) - 31;
    if (j <= 0)
        return fmpq_fx_apply(x, a);
    return fmpq_fx_apply(fmpq_rshift64(x, j), fmpq_fx_scale(a, j));
}
#endif
