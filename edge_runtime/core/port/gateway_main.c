/* Firmware of a device behind a gateway: everything comes over the serial line, all RAM that is left is the arena. */
#include "board.h"
#include "serial_server.h"

static fmpq_server server;

static void facts(fmpq_server_facts *out)
{
    out->data = (uint32_t)((uint8_t *)&__data_end - (uint8_t *)&__data_start);
    out->bss = (uint32_t)((uint8_t *)&__bss_end - (uint8_t *)&__bss_start);
    out->stack_kept = (uint32_t)((uint8_t *)&__stack_top - (uint8_t *)&__stack_low);
    out->stack_used = fmpq_stack_used();
}

int main(void)
{
    server.board = FMPQ_BOARD;
    server.arena = &__arena_start;
    server.limit = (size_t)(&__ram_end - &__arena_start);
    server.send = fmpq_uart_put;
    server.facts = facts;
    fmpq_uart_open();
    for (;;) {
        const int byte = fmpq_uart_get();
        if (byte >= 0)
            fmpq_server_feed(&server, (uint8_t)byte);
        else
            fmpq_uart_idle();
    }
}
