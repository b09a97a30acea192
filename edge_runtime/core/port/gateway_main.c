/* Firmware of a device behind a gateway: everything comes over the serial line, all RAM that is left is the arena. With FMPQ_RESIDENT, the
 * path of a shard, the device's images lie in its flash and never leave it. */
#include "board.h"
#include "serial_server.h"

static fmpq_server server;

#ifdef FMPQ_RESIDENT
__asm__(".pushsection .rodata.resident, \"a\"\n.balign 8\nfmpq_resident:\n.incbin \"" FMPQ_RESIDENT "\"\nfmpq_resident_end:\n.popsection\n");
extern const uint8_t fmpq_resident[], fmpq_resident_end[];
static fmpq_shard resident;
#endif

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
#ifdef FMPQ_RESIDENT
    if (!fmpq_shard_open(fmpq_resident, (size_t)(fmpq_resident_end - fmpq_resident), &resident))
        server.shard = &resident;
#endif
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
