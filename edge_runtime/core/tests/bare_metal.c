/* Runs a test program with main() on an emulated board: start-up, and newlib's output and exit through semihosting.
 * FMPQ_ARGUMENTS are main's, as strings with commas between them. */
#include "../port/board.h"
#include "../port/semihost.h"
#include <stddef.h>
#include <stdint.h>
#include <string.h>

extern uint32_t __data_load;
int main(int argc, char **argv);

_Noreturn void _exit(int code);
void _exit(int code)
{
    fmpq_semihost_exit((uint32_t)code);
}

int _write(int file, const char *data, int len);
int _write(int file, const char *data, int len)
{
    char text[65];
    (void)file;
    for (int at = 0; at < len;) {
        const int n = len - at < 64 ? len - at : 64;
        memcpy(text, data + at, (size_t)n);
        text[n] = 0;
        fmpq_semihost_text(text);
        at += n;
    }
    return len;
}

void *_sbrk(ptrdiff_t more);
void *_sbrk(ptrdiff_t more)
{
    static uint8_t heap[8192] __attribute__((aligned(8)));
    static size_t used;
    void *at = heap + used;
    if (used + (size_t)more > sizeof(heap))
        return (void *)-1;
    used += (size_t)more;
    return at;
}

#define STUB(name) \
    int name(void); \
    int name(void) { return -1; }
STUB(_close)
STUB(_fstat)
STUB(_isatty)
STUB(_lseek)
STUB(_read)
STUB(_kill)
STUB(_getpid)

void Reset_Handler(void);
void Reset_Handler(void)
{
    static char *arguments[] = {FMPQ_ARGUMENTS, NULL};
    uint32_t *to = &__data_start;
    const uint32_t *from = &__data_load;
#if defined(__ARM_FEATURE_MVE)
    *(volatile uint32_t *)0xe000ed88 |= 0xfu << 20; /* coprocessors 10 and 11 */
    __asm__ volatile("dsb\n\tisb" ::: "memory");
#endif
    while (to < &__data_end)
        *to++ = *from++;
    for (to = &__bss_start; to < &__bss_end;)
        *to++ = 0;
    _exit(main((int)(sizeof(arguments) / sizeof(arguments[0])) - 1, arguments));
}

__attribute__((section(".vectors"), used)) static void (*const vectors[16])(void) = {
    (void (*)(void))&__stack_top, Reset_Handler,    fmpq_board_fault, fmpq_board_fault, fmpq_board_fault, fmpq_board_fault,
    fmpq_board_fault,             fmpq_board_fault, fmpq_board_fault, fmpq_board_fault, fmpq_board_fault, fmpq_board_fault,
    fmpq_board_fault,             fmpq_board_fault, fmpq_board_fault, fmpq_board_fault};
