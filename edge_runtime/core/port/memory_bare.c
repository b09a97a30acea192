/* memcpy, memmove and memset of boards without an operating system: the small C library's go byte by byte, and a step moves megabytes. */
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *restrict to, const void *restrict from, size_t n);
void *memmove(void *to, const void *from, size_t n);
void *memset(void *to, int value, size_t n);

/* In a loop: keeps the compiler from replacing it by a call of the very function that it is in. */
#define AS_WRITTEN __asm__ volatile("" ::: "memory")

/* Words at any address: these cores load and store them. */
typedef uint32_t __attribute__((aligned(1), may_alias)) any_word;

static void forwards(uint8_t *o, const uint8_t *p, size_t n)
{
#if defined(__ARM_FEATURE_MVE)
    __asm__ volatile("wlstp.8 lr, %[n], 2f\n1:\n\tvldrb.8 q0, [%[p]], #16\n\tvstrb.8 q0, [%[o]], #16\n\tletp lr, 1b\n2:\n"
                     : [o] "+r"(o), [p] "+r"(p)
                     : [n] "r"(n)
                     : "lr", "memory", "q0");
    return;
#endif
    for (; n >= 16; n -= 16, o += 16, p += 16) {
        const any_word *w = (const any_word *)(const void *)p;
        const uint32_t a = w[0], b = w[1], c = w[2], d = w[3];
        any_word *x = (any_word *)(void *)o;
        AS_WRITTEN;
        x[0] = a;
        x[1] = b;
        x[2] = c;
        x[3] = d;
    }
    for (; n > 0; n--) {
        AS_WRITTEN;
        *o++ = *p++;
    }
}

void *memcpy(void *restrict to, const void *restrict from, size_t n)
{
    forwards(to, from, n);
    return to;
}

void *memmove(void *to, const void *from, size_t n)
{
    uint8_t *o = to;
    const uint8_t *p = from;
    if ((uintptr_t)o - (uintptr_t)p >= n) { /* also where they do not overlap */
        forwards(o, p, n);
        return to;
    }
    for (o += n, p += n; n >= 16; n -= 16) {
        const uint32_t d = *(const any_word *)(const void *)(p - 4), c = *(const any_word *)(const void *)(p - 8);
        const uint32_t b = *(const any_word *)(const void *)(p - 12), a = *(const any_word *)(const void *)(p - 16);
        AS_WRITTEN;
        o -= 16;
        p -= 16;
        ((any_word *)(void *)o)[3] = d;
        ((any_word *)(void *)o)[2] = c;
        ((any_word *)(void *)o)[1] = b;
        ((any_word *)(void *)o)[0] = a;
    }
    for (; n > 0; n--) {
        AS_WRITTEN;
        *--o = *--p;
    }
    return to;
}

void *memset(void *to, int value, size_t n)
{
    uint8_t *o = to;
    const uint32_t word = (uint32_t)(value & 255) * 0x01010101u;
#if defined(__ARM_FEATURE_MVE)
    __asm__ volatile("vdup.32 q0, %[word]\n\twlstp.8 lr, %[n], 2f\n1:\n\tvstrb.8 q0, [%[o]], #16\n\tletp lr, 1b\n2:\n"
                     : [o] "+r"(o)
                     : [n] "r"(n), [word] "r"(word)
                     : "lr", "memory", "q0");
    return to;
#endif
    for (; n >= 32; n -= 32, o += 32) {
        AS_WRITTEN;
        for (int i = 0; i < 8; i++)
            ((any_word *)(void *)o)[i] = word;
    }
    for (; n > 0; n--) {
        AS_WRITTEN;
        *o++ = (uint8_t)value;
    }
    return to;
}
