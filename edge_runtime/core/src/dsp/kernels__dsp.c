/* Cortex-M4 and M7: smlad multiplies two pairs of int16 and adds both products to an int32. Bytes are widened two at a time: the even
 * ones and the odd ones of a word of four operands. A tile is two positions (input channels) by two output channels, which is
 * what fits 14 registers. */
#define SUFFIX dsp
#include "../elementwise.inc"
#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

ALWAYS_INLINE uint32_t word(const void *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

ALWAYS_INLINE int32_t unsigned_even(uint32_t x)
{
    int32_t r;
    __asm__("uxtb16 %0, %1" : "=r"(r) : "r"(x));
    return r;
}
ALWAYS_INLINE int32_t unsigned_odd(uint32_t x)
{
    int32_t r;
    __asm__("uxtb16 %0, %1, ror #8" : "=r"(r) : "r"(x));
    return r;
}
ALWAYS_INLINE int32_t signed_even(uint32_t x)
{
    int32_t r;
    __asm__("sxtb16 %0, %1" : "=r"(r) : "r"(x));
    return r;
}
ALWAYS_INLINE int32_t signed_odd(uint32_t x)
{
    int32_t r;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(r) : "r"(x));
    return r;
}
ALWAYS_INLINE int32_t smlad(int32_t a, int32_t b, int32_t acc)
{
    int32_t r;
    __asm__("smlad %0, %1, %2, %3" : "=r"(r) : "r"(a), "r"(b), "r"(acc));
    return r;
}

typedef struct tile22 {
    int32_t p0c0, p0c1, p1c0, p1c1;
} tile22;

/* count groups of four operands; `apart`: bytes between the two rows of a; w: two neighbouring channels, step bytes to the next group */
ALWAYS_INLINE tile22 multiply(tile22 acc, const uint8_t *a, int32_t apart, const int8_t *w, int32_t step, int32_t count)
{
    for (; count > 0; count--, a += 4, w += step) {
        const uint32_t x0 = word(a), x1 = word(a + apart);
        const int32_t e0 = unsigned_even(x0), o0 = unsigned_odd(x0), e1 = unsigned_even(x1), o1 = unsigned_odd(x1);
        const uint32_t w0 = word(w);
        int32_t e = signed_even(w0), o = signed_odd(w0);
        uint32_t w1;
        acc.p0c0 = smlad(o0, o, smlad(e0, e, acc.p0c0));
        acc.p1c0 = smlad(o1, o, smlad(e1, e, acc.p1c0));
        w1 = word(w + 4);
        e = signed_even(w1);
        o = signed_odd(w1);
        acc.p0c1 = smlad(o0, o, smlad(e0, e, acc.p0c1));
        acc.p1c1 = smlad(o1, o, smlad(e1, e, acc.p1c1));
    }
    return acc;
}

ALWAYS_INLINE tile22 taps(const fmpq_igemm *j, tile22 acc, const uint8_t *a, int32_t apart, const int8_t *w)
{
    const int32_t step = j->cop * 4, next = step * j->c4;
    for (int32_t t = 0; t < j->taps; t++, w += next)
        acc = multiply(acc, a + j->tap_off[t], apart, w, step, j->c4);
    return acc;
}

/* sat16(reven(acc, s)); sums stay far enough from the ends of int32 to add half */
ALWAYS_INLINE int16_t narrow(int32_t acc, int32_t s)
{
    const int32_t v = s ? (acc + (1 << (s - 1)) - 1 + ((acc >> s) & 1)) >> s : acc;
    return (int16_t)max32(min32(v, 32767), -32767);
}

ALWAYS_INLINE void store(const fmpq_igemm *j, int16_t *out, int32_t co, int32_t c0, int32_t c1)
{
    out[co] = narrow(c0 + j->corr[co], j->shift);
    if (co + 1 < j->co)
        out[co + 1] = narrow(c1 + j->corr[co + 1], j->shift);
}

static void igemm(const fmpq_igemm *j)
{
    for (int32_t y = 0; y < j->rows; y++)
        for (int32_t x = 0; x < j->cols; x += 2) {
            const int32_t two = x + 1 < j->cols;
            const uint8_t *a = j->a + y * j->a_row + x * j->a_pix;
            int16_t *out = j->out + y * j->out_row + x * j->out_pix;
            for (int32_t co = 0; co < j->co; co += 2) {
                const tile22 zero = {0, 0, 0, 0};
                tile22 acc = taps(j, zero, a, two ? j->a_pix : 0, j->w + co * 4);
                if (j->w_low) {
                    const tile22 twice = {2 * acc.p0c0, 2 * acc.p0c1, 2 * acc.p1c0, 2 * acc.p1c1};
                    acc = taps(j, twice, a, two ? j->a_pix : 0, j->w_low + co * 4);
                }
                store(j, out, co, acc.p0c0, acc.p0c1);
                if (two)
                    store(j, out + j->out_pix, co, acc.p1c0, acc.p1c1);
            }
        }
}

static void dw(const fmpq_dw *j)
{
    const int32_t step = j->cop * 4, next = step * j->cols4;
    for (int32_t co = j->cb0 * 16; co < j->cb1 * 16; co += 2)
        for (int32_t t = 0; t < j->taps; t++)
            for (int32_t ci = 0; ci < j->ci; ci += 2) {
                const int32_t two = ci + 1 < j->ci;
                const uint8_t *a = j->a + ci * j->plane + j->tap_off[t];
                const int8_t *e = j->e + co * 4;
                int32_t *g = j->g + (((co / 16 - j->cb0) * j->taps + t) * j->ci + ci) * 16 + co % 16;
                tile22 acc = {0, 0, 0, 0};
                for (int32_t y = 0; y < j->rows; y++, a += j->a_row, e += next)
                    acc = multiply(acc, a, two ? j->plane : 0, e, step, j->cols4);
                g[0] += acc.p0c0;
                g[1] += acc.p0c1;
                if (two) {
                    g[16] += acc.p1c0;
                    g[17] += acc.p1c1;
                }
            }
}

static int available(void)
{
    return 1;
}

const fmpq_kernels fmpq_kernels_dsp = {.name = "dsp", .available = available, .igemm = igemm, .dw = dw, ELEMENTWISE_TABLE};
