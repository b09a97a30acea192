/* A bare-metal board: start-up, what its linker script says, its serial line. Not for programs under an operating system. */
#ifndef FMPQ_BOARD_H
#define FMPQ_BOARD_H
#include <stddef.h>
#include <stdint.h>

/* from the linker script */
extern uint32_t __stack_low, __stack_top, __data_start, __data_end, __bss_start, __bss_end;
extern uint8_t __arena_start, __ram_end;

/* startup.c */
uint32_t fmpq_stack_used(void); /* bytes; the stack is painted at start-up */
void fmpq_board_restart(void);  /* as the reset button; does not return */
void fmpq_board_fault(void);    /* of faults and interrupts that nobody handles; restarts the board unless a program has its own */

/* The serial line, one file a UART (uart_cmsdk.c). To move to another board, write these four. */
void fmpq_uart_open(void);
int fmpq_uart_get(void); /* a byte that has come, or -1 */
void fmpq_uart_put(const uint8_t *data, size_t len);
void fmpq_uart_idle(void); /* nothing has come: sleep until something may have */
#endif
