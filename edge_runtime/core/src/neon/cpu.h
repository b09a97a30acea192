/* What this processor's NEON can do, from the kernel. */
#ifndef FMPQ_NEON_CPU_H
#define FMPQ_NEON_CPU_H

#if defined(__linux__)
#include <sys/auxv.h>
#if defined(__aarch64__)
#define HAS_NEON() 1
#define HAS_DOTPROD() ((getauxval(AT_HWCAP) >> 20 & 1ul) != 0)             /* HWCAP_ASIMDDP */
#define HAS_I8MM() (HAS_DOTPROD() && (getauxval(AT_HWCAP2) >> 13 & 1ul) != 0) /* HWCAP2_I8MM */
#else
#define HAS_NEON() ((getauxval(AT_HWCAP) >> 12 & 1ul) != 0) /* HWCAP_NEON */
#endif
#else /* no way to ask: what the compiler was told the processor has */
#define HAS_NEON() 1
#if defined(__ARM_FEATURE_DOTPROD)
#define HAS_DOTPROD() 1
#else
#define HAS_DOTPROD() 0
#endif
#if defined(__ARM_FEATURE_MATMUL_INT8)
#define HAS_I8MM() 1
#else
#define HAS_I8MM() 0
#endif
#endif
#endif
