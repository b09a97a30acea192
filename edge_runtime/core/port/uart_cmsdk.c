/* The UART of Arm's MPS2 and MPS3 boards (CMSDK APB UART): one byte deep, no DMA. The emulator holds bytes back until they are read; on a
 * line that does not, take them in the interrupt. FMPQ_UART and FMPQ_CLOCK come from the profile. */
#include "board.h"

#define BAUD 115200u

static volatile uint32_t *const uart = (uint32_t *)FMPQ_UART;            /* data, state, control, interrupts, divider */
static volatile uint32_t *const nvic_enable = (uint32_t *)0xe000e100u;  /* a bit an interrupt line */
static volatile uint32_t *const nvic_pending = (uint32_t *)0xe000e280u; /* written 1: no longer pending */
enum { DATA, STATE, CONTROL, INTERRUPTS, DIVIDER };
enum { SEND_FULL = 1, RECEIVED = 2, RECEIVE_INTERRUPT = 8 };
enum { LINES = 3 }; /* words of interrupt lines: 96 of them */

/* No interrupt is ever taken: a pending one ends the sleep. So nobody needs to know which line is the UART's. */
void fmpq_uart_open(void)
{
    __asm__ volatile("cpsid i" ::: "memory");
    uart[DIVIDER] = FMPQ_CLOCK / BAUD;
    uart[CONTROL] = SEND_FULL | RECEIVED | RECEIVE_INTERRUPT; /* send and receive have the same bits there */
    for (uint32_t i = 0; i < LINES; i++)
        nvic_enable[i] = ~0u;
}

int fmpq_uart_get(void)
{
    return uart[STATE] & RECEIVED ? (int)(uart[DATA] & 255) : -1;
}

void fmpq_uart_put(const uint8_t *data, size_t len)
{
    while (len--) {
        while (uart[STATE] & SEND_FULL)
            ;
        uart[DATA] = *data++;
    }
}

void fmpq_uart_idle(void)
{
    __asm__ volatile("wfi" ::: "memory");
    uart[INTERRUPTS] = RECEIVED;
    for (uint32_t i = 0; i < LINES; i++)
        nvic_pending[i] = ~0u;
}
