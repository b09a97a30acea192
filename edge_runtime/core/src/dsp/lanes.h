/* The instructions that work on halves and quarters of a register. */
#ifndef FMPQ_LANES_H
#define FMPQ_LANES_H
#include <stdint.h>
#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* a word at any address */
ALWAYS_INLINE uint32_t word(const void *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}
ALWAYS_INLINE void put_word(void *p, uint32_t v)
{
    memcpy(p, &v, 4);
}

#define UNARY(name, instruction)              \
    ALWAYS_INLINE int32_t name(uint32_t x)    \
    {                                         \
        int32_t r;                            \
        __asm__(instruction : "=r"(r) : "r"(x)); \
        return r;                             \
    }
#define BINARY(name, instruction)                        \
    ALWAYS_INLINE int32_t name(int32_t x, int32_t y)     \
    {                                                    \
        int32_t r;                                       \
        __asm__(instruction : "=r"(r) : "r"(x), "r"(y)); \
        return r;                                        \
    }
/* bytes 0 and 2, bytes 1 and 3, widened to halves */
UNARY(unsigned_even, "uxtb16 %0, %1")
UNARY(unsigned_odd, "uxtb16 %0, %1, ror #8")
UNARY(signed_even, "sxtb16 %0, %1")
UNARY(signed_odd, "sxtb16 %0, %1, ror #8")
UNARY(saturated16, "ssat %0, #16, %1")
UNARY(saturated_u8, "usat %0, #8, %1")
UNARY(saturated_s8, "ssat %0, #8, %1")
BINARY(add16, "sadd16 %0, %1, %2")
BINARY(subtract_saturated16, "qsub16 %0, %1, %2")
BINARY(add_saturated16, "qadd16 %0, %1, %2")
BINARY(sub8, "ssub8 %0, %1, %2")
BINARY(add_saturated_u8, "uqadd8 %0, %1, %2")
/* halves: both low ones, both high ones */
BINARY(low_halves, "pkhbt %0, %1, %2, lsl #16")
BINARY(high_halves, "pkhtb %0, %2, %1, asr #16")
BINARY(high_product, "smmul %0, %1, %2") /* the upper 32 of 64 bits */

#define TERNARY(name, instruction)                                 \
    ALWAYS_INLINE int32_t name(int32_t x, int32_t y, int32_t sum)  \
    {                                                              \
        int32_t r;                                                 \
        __asm__(instruction : "=r"(r) : "r"(x), "r"(y), "r"(sum)); \
        return r;                                                  \
    }
/* sum + the product of the low halves, a high and a low one, …, of both */
TERNARY(multiply_low, "smlabb %0, %1, %2, %3")
TERNARY(multiply_high_low, "smlatb %0, %1, %2, %3")
TERNARY(multiply_low_high, "smlabt %0, %1, %2, %3")
TERNARY(multiply_high, "smlatt %0, %1, %2, %3")
TERNARY(multiply_add, "smlad %0, %1, %2, %3")
#endif
