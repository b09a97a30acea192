/* What this x86 processor can run, from CPUID and XGETBV (the operating system must save the wide registers too). */
#ifndef FMPQ_X86_CPU_H
#define FMPQ_X86_CPU_H
#include <cpuid.h>
#include <stdint.h>

static inline uint32_t fmpq_xcr0(void)
{
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return lo;
}

static inline int fmpq_cpu_avx2(void)
{
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27)) || (fmpq_xcr0() & 6u) != 6u)
        return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & (1u << 5));
}

static inline int fmpq_cpu_avxvnni(void)
{
    uint32_t a, b, c, d;
    return fmpq_cpu_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4));
}

static inline int fmpq_cpu_avx512vnni(void)
{
    const uint32_t need = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    uint32_t a, b, c, d;
    if (!fmpq_cpu_avx2() || (fmpq_xcr0() & 0xe6u) != 0xe6u || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    return (b & need) == need && (c & (1u << 11));
}
#endif
