/* The int8 multiply-accumulate rate of one core, for `fedmpq bench`: loops of such instructions on registers alone.
 * Not part of the training core; nothing in it calls this. */
#include "fmpq/fmpq.h"
#include <string.h>

FMPQ_API uint64_t fmpq_peak_macs(const char *isa, uint64_t iterations);

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

/* 16 independent accumulators hide the latency of 4..5 cycles on two ports; asm, so that nothing is folded. */
#define REPEAT16(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define REPEAT12(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define REPEAT6(X) X(0) X(1) X(2) X(3) X(4) X(5)

/* u8 x s8 into s32: 64 a instruction. */
__attribute__((target("avx512f,avx512vnni"))) static uint64_t vnni512(uint64_t iterations) {
    __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
#define DECLARE(i) __m512i r##i = _mm512_setzero_si512();
    REPEAT16(DECLARE)
#undef DECLARE
    for (uint64_t n = 0; n < iterations; n++) {
#define STEP(i) __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(r##i) : "v"(a), "v"(b));
        REPEAT16(STEP)
#undef STEP
    }
    return iterations * 16 * 64;
}

#if defined(FMPQ_AVXVNNI_KERNELS)
/* the same in 256 bits: 32 an instruction */
__attribute__((target("avx2,avxvnni"))) static uint64_t vnni256(uint64_t iterations) {
    __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5);
#define DECLARE(i) __m256i r##i = _mm256_setzero_si256();
    REPEAT12(DECLARE)
#undef DECLARE
    for (uint64_t n = 0; n < iterations; n++) {
#define STEP(i) __asm__ volatile("%{vex%} vpdpbusd %2, %1, %0" : "+x"(r##i) : "x"(a), "x"(b));
        REPEAT12(STEP)
#undef STEP
    }
    return iterations * 12 * 32;
}
#endif

/* pmaddubsw, pmaddwd, paddd: 32 a triple. */
__attribute__((target("avx2"))) static uint64_t avx2(uint64_t iterations) {
    __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5), one = _mm256_set1_epi16(1);
#define DECLARE(i) __m256i r##i = _mm256_setzero_si256(), t##i = _mm256_setzero_si256();
    REPEAT6(DECLARE)
#undef DECLARE
    for (uint64_t n = 0; n < iterations; n++) {
#define STEP(i)                                                                                                        \
    __asm__ volatile("vpmaddubsw %3, %2, %1\n\tvpmaddwd %4, %1, %1\n\tvpaddd %1, %0, %0"                               \
                     : "+x"(r##i), "+x"(t##i)                                                                          \
                     : "x"(a), "x"(b), "x"(one));
        REPEAT6(STEP)
#undef STEP
    }
    return iterations * 6 * 32;
}

#if defined(FMPQ_AMX_KERNELS)
/* Tiles of 16 x 64 unsigned by 64 x 16 signed bytes; four accumulators hide the latency of 52 cycles, a tile takes 16. */
__attribute__((target("amx-tile,amx-int8"))) static uint64_t amx(uint64_t iterations) {
    struct {
        uint8_t palette, start, zero[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape;
    memset(&shape, 0, sizeof(shape));
    shape.palette = 1;
    for (int i = 0; i < 8; i++) {
        shape.bytes[i] = 64;
        shape.rows[i] = 16;
    }
    __asm__ volatile("" : : "r"(&shape) : "memory"); /* the intrinsic does not say that it reads all of it */
    _tile_loadconfig(&shape);
    for (uint64_t n = 0; n < iterations; n++)
        __asm__ volatile("tdpbusd %tmm6, %tmm4, %tmm0\n\ttdpbusd %tmm7, %tmm4, %tmm1\n\t"
                         "tdpbusd %tmm6, %tmm5, %tmm2\n\ttdpbusd %tmm7, %tmm5, %tmm3");
    _tile_release();
    return iterations * 4 * 16 * 16 * 64;
}
#endif
#endif

/* Runs the loop of an instruction set; returns its multiply-accumulates, 0 if there is no loop for it here. */
uint64_t fmpq_peak_macs(const char *isa, uint64_t iterations) {
    if (!fmpq_isa_available(isa)) return 0;
#if defined(__x86_64__) && defined(__GNUC__)
    if (!strcmp(isa, "avx512vnni")) return vnni512(iterations);
    if (!strcmp(isa, "avx2")) return avx2(iterations);
#if defined(FMPQ_AVXVNNI_KERNELS)
    if (!strcmp(isa, "avxvnni")) return vnni256(iterations);
#endif
#if defined(FMPQ_AMX_KERNELS)
    if (!strcmp(isa, "amx")) return amx(iterations);
#endif
#endif
    (void)iterations;
    return 0;
}
