/* Start-up of a Cortex-M: vectors, .data and .bss, a painted stack. A fault restarts the board, whose gateway notices and trains again, unless
 * the program says otherwise. */
#include "board.h"

#define PAINT 0xa5c3a5c3u

extern uint32_t __data_load;
int main(void);

uint32_t fmpq_stack_used(void)
{
    const uint32_t *p = &__stack_low;
    while (p < &__stack_top && *p == PAINT)
        p++;
    return (uint32_t)((const uint8_t *)&__stack_top - (const uint8_t *)p);
}

void fmpq_board_restart(void)
{
    __asm__ volatile("dsb" ::: "memory");
    *(volatile uint32_t *)0xe000ed0c = 0x05fa0004; /* AIRCR: key, system reset request */
    for (;;)
        ;
}

static void enable_vectors(void)
{
#if defined(__ARM_FEATURE_MVE)
    volatile uint32_t *const cpacr = (volatile uint32_t *)0xe000ed88;
    *cpacr |= 0xfu << 20; /* coprocessors 10 and 11 */
    __asm__ volatile("dsb\n\tisb" ::: "memory");
#endif
}

void Reset_Handler(void)
{
    uint32_t *to = &__data_start;
    const uint32_t *from = &__data_load;
    uint32_t *p = &__stack_low;
    enable_vectors();
    while (to < &__data_end)
        *to++ = *from++;
    for (to = &__bss_start; to < &__bss_end;)
        *to++ = 0;
    while (p < (uint32_t *)__builtin_frame_address(0) - 16)
        *p++ = PAINT;
    main();
    fmpq_board_restart();
}

__attribute__((weak)) void SysTick_Handler(void)
{
}

__attribute__((weak)) void fmpq_board_fault(void)
{
    fmpq_board_restart();
}

__attribute__((section(".vectors"), used)) static void (*const vectors[16])(void) = {
    (void (*)(void))&__stack_top, Reset_Handler,    fmpq_board_fault, fmpq_board_fault, fmpq_board_fault, fmpq_board_fault,
    fmpq_board_fault,             fmpq_board_fault, fmpq_board_fault, fmpq_board_fault, fmpq_board_fault, fmpq_board_fault,
    fmpq_board_fault,             fmpq_board_fault, fmpq_board_fault, SysTick_Handler};
