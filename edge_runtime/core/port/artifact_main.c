/* Firmware with an artifact linked in: loads it, trains some steps on synthetic images (the artifact's first batch; put your own in their
 * place), and says what came out and where the RAM went. Output and exit code go through semihosting. FMPQ_ARENA, FMPQ_STEPS and
 * FMPQ_IMAGES (bytes of a batch) come from the build. */
#include "../src/rng.h"
#include "artifact.h"
#include "board.h"
#include "golden.h"
#include <string.h>

extern const uint8_t fmpq_artifact_data[];
extern const uint32_t fmpq_artifact_size;

static fmpq_artifact artifact;
static uint8_t images[FMPQ_IMAGES];
static uint16_t labels[FMPQ_BATCH];
static uint8_t arena[FMPQ_ARENA] __attribute__((aligned(64), section(".arena")));

enum { SYS_WRITE0 = 4, SYS_EXIT_EXTENDED = 0x20, APPLICATION_EXIT = 0x20026 };

static void call(uint32_t op, const void *arg)
{
    register uint32_t r0 __asm__("r0") = op;
    register const void *r1 __asm__("r1") = arg;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}

static void leave(uint32_t code)
{
    const uint32_t arg[2] = {APPLICATION_EXIT, code};
    call(SYS_WRITE0, "\n");
    for (;;)
        call(SYS_EXIT_EXTENDED, arg);
}

static void number(const char *name, uint32_t v)
{
    char digits[12], *p = digits + sizeof(digits) - 1;
    *p = 0;
    do
        *--p = (char)('0' + v % 10);
    while (v /= 10);
    call(SYS_WRITE0, name);
    call(SYS_WRITE0, p);
}

static void check(const char *what, int code)
{
    if (!code)
        return;
    call(SYS_WRITE0, "error: ");
    call(SYS_WRITE0, what);
    call(SYS_WRITE0, ": ");
    call(SYS_WRITE0, fmpq_port_error_text(code));
    leave(8);
}

int main(void)
{
    /* what planning needs lies at the arena's end, where no session state will be */
    uint8_t *scratch = arena + sizeof(arena) / 64 * 64 - (fmpq_plan_scratch() + 63) / 64 * 64;
    const fmpq_stream noise = {1, 2};
    fmpq_memory mem;
    fmpq_session *s;
    fmpq_stats stats;
    fmpq_hyper hyper;
    uint8_t state[32];
    char hex[65];
    check("artifact", fmpq_artifact_open(fmpq_artifact_data, fmpq_artifact_size, &artifact));
    check("plan", fmpq_plan_memory(&artifact.parsed, &artifact.plan, scratch, &mem, NULL, 0));
    check("session", fmpq_init(&artifact.parsed, &artifact.plan, arena, sizeof(arena), scratch, &s));
    check("weights", fmpq_artifact_load(&artifact, s));
    memset(&hyper, 0, sizeof(hyper));
    hyper.lr.m = 0x40000000u; /* 2^-4 */
    hyper.lr.e = -34;
    for (uint32_t i = 0; i < sizeof(images); i++)
        images[i] = (uint8_t)fmpq_rand(noise, i);
    for (uint32_t i = 0; i < artifact.batch; i++)
        labels[i] = (uint16_t)(i % artifact.parsed.classes);
    for (uint32_t step = 0; step < FMPQ_STEPS; step++) {
        const fmpq_key key = {1, 0, 0, step * artifact.batch};
        check("training", fmpq_step(s, images, labels, artifact.batch, &hyper, key, &stats));
        number("step=", step);
        number(" loss_q16=", (uint32_t)stats.loss_q16);
        call(SYS_WRITE0, "\n");
    }
    check("state", fmpq_state_hash(s, &artifact.parsed, artifact.plan.guard, arena + mem.state, state));
    fmpq_hex(state, 32, hex);
    call(SYS_WRITE0, "state=");
    call(SYS_WRITE0, hex);
    number(" arena=", (uint32_t)mem.total);
    number(" data=", (uint32_t)((uint8_t *)&__data_end - (uint8_t *)&__data_start));
    number(" bss=", (uint32_t)((uint8_t *)&__bss_end - (uint8_t *)&__bss_start));
    number(" stack=", fmpq_stack_used());
    number(" stack_kept=", (uint32_t)((uint8_t *)&__stack_top - (uint8_t *)&__stack_low));
    leave(0);
    return 0;
}
