#include "semihost.h"
#include "board.h"

enum { SYS_WRITE0 = 4, SYS_EXIT_EXTENDED = 0x20, APPLICATION_EXIT = 0x20026 };

static void call(uint32_t op, const void *arg)
{
    register uint32_t r0 __asm__("r0") = op;
    register const void *r1 __asm__("r1") = arg;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}

void fmpq_semihost_text(const char *text)
{
    call(SYS_WRITE0, text);
}

void fmpq_semihost_number(const char *name, int64_t value)
{
    char digits[24], *p = digits + sizeof(digits) - 1;
    uint64_t u = value < 0 ? 0u - (uint64_t)value : (uint64_t)value;
    *p = 0;
    do
        *--p = (char)('0' + u % 10);
    while (u /= 10);
    if (value < 0)
        *--p = '-';
    fmpq_semihost_text(name);
    fmpq_semihost_text(p);
}

void fmpq_semihost_exit(uint32_t code)
{
    const uint32_t arg[2] = {APPLICATION_EXIT, code};
    for (;;)
        call(SYS_EXIT_EXTENDED, arg);
}

void fmpq_board_fault(void)
{
    fmpq_semihost_text("error: fault\n");
    fmpq_semihost_exit(9);
}
