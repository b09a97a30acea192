/* A golden run as bare-metal firmware: proves that a board trains to the recorded state inside its RAM, and says where the RAM went.
 * Output and exit code go through semihosting (an emulator or a debug probe). FMPQ_CASE and FMPQ_ARENA come from the build. */
#include "golden.h"
#include "sha256.h"
#include <string.h>

#ifndef FMPQ_CLOCK
#error "the build gives FMPQ_CASE, FMPQ_ARENA and FMPQ_CLOCK"
#endif

extern uint32_t __stack_low, __stack_top, __data_start, __data_end, __bss_start, __bss_end, __arena_start;
#define PAINT 0xa5c3a5c3u
#ifndef FMPQ_STEPS
#define FMPQ_STEPS 255u /* fewer, where only instructions are counted */
#endif
#ifndef FMPQ_RECOMPUTE
#define FMPQ_RECOMPUTE 1 /* of the plan */
#endif

/* ---- semihosting -------------------------------------------------------------------------------------------- */

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
    for (;;)
        call(SYS_EXIT_EXTENDED, arg);
}

static void text(const char *name, const char *value)
{
    call(SYS_WRITE0, name);
    call(SYS_WRITE0, value);
}

static void number(const char *name, int64_t v)
{
    char digits[24], *p = digits + sizeof(digits) - 1;
    uint64_t u = v < 0 ? 0u - (uint64_t)v : (uint64_t)v;
    *p = 0;
    do
        *--p = (char)('0' + u % 10);
    while (u /= 10);
    if (v < 0)
        *--p = '-';
    text(name, p);
}

static void hash(const char *name, const uint8_t value[32])
{
    char hex[65];
    fmpq_hex(value, 32, hex);
    text(name, hex);
}

/* ---- counting: SysTick at FMPQ_CLOCK; with one instruction a nanosecond (-icount shift=0) ticks are instructions ------- */

static volatile uint32_t *const systick = (uint32_t *)0xe000e010u; /* control, reload, value */
static volatile uint32_t wraps;

void SysTick_Handler(void)
{
    wraps++;
}

static void start_counting(void)
{
    systick[1] = 0xffffff;
    systick[2] = 0;
    systick[0] = 7; /* processor clock, interrupt, on */
    while (!systick[2]) /* loaded at its first tick: before, it reads as if it had wrapped */
        ;
}

static uint64_t instructions(void)
{
    uint32_t before, value;
    do {
        before = wraps;
        value = systick[2];
    } while (before != wraps);
    return (((uint64_t)before << 24) + (0xffffff - value)) * 1000000000u / FMPQ_CLOCK;
}

/* ---- the run ------------------------------------------------------------------------------------------------ */

static uint32_t stack_used(void)
{
    const uint32_t *p = &__stack_low;
    while (p < &__stack_top && *p == PAINT)
        p++;
    return (uint32_t)((const uint8_t *)&__stack_top - (const uint8_t *)p);
}

static uint8_t program_bytes[64 + 64 * FMPQ_MAX_RECORDS];
static uint8_t images[FMPQ_GOLDEN_PIXELS * FMPQ_BATCH];
static uint16_t labels[FMPQ_BATCH];
static fmpq_program program;
static fmpq_plan plan;
static uint8_t arena[FMPQ_ARENA] __attribute__((aligned(64), section(".arena")));

static void stop(const char *what, int code)
{
    text("error: ", what);
    text(": ", fmpq_error_text(code));
    text("", "\n");
    leave(8);
}

int main(void)
{
    const fmpq_golden *g = fmpq_golden_find(FMPQ_CASE);
    fmpq_golden_result r;
    fmpq_memory mem;
    fmpq_session *s;
    uint64_t spent;
    size_t len, scratch;
    uint32_t steps;
    int err;
    memset(&r, 0, sizeof(r));
    if (!g || g->blocks > 1 || g->batch > FMPQ_BATCH)
        stop("case", FMPQ_E_ARGUMENT);
    steps = g->steps < FMPQ_STEPS ? g->steps : FMPQ_STEPS;
    len = fmpq_golden_program(g, program_bytes);
    err = fmpq_program_parse(program_bytes, len, &program);
    if (err)
        stop("program", err);
    fmpq_sha256_of(program_bytes, len, r.program);
    fmpq_golden_plan(g, &program, 1, &plan);
    plan.recompute = FMPQ_RECOMPUTE;
    /* what planning needs lies at the arena's end, where no session state will be */
    scratch = (fmpq_plan_scratch() + 63) / 64 * 64;
    err = scratch > sizeof(arena) ? FMPQ_E_ARENA : fmpq_plan_memory(&program, &plan, arena + sizeof(arena) / 64 * 64 - scratch, &mem, NULL, 0);
    if (err)
        stop("plan", err);
    number("planned=", (int64_t)mem.total);
    number(" given=", (int64_t)sizeof(arena));
    text("", "\n");
    if (mem.total > sizeof(arena) || mem.state + scratch > sizeof(arena))
        stop("arena", FMPQ_E_ARENA);
    err = fmpq_init(&program, &plan, arena, sizeof(arena), arena + sizeof(arena) / 64 * 64 - scratch, &s);
    if (err)
        stop("session", err);
    err = fmpq_golden_load(g, &program, s, arena + mem.state);
    if (!err)
        err = fmpq_state_hash(s, &program, g->guard, arena + mem.state, r.start);
    start_counting();
    spent = instructions();
    for (uint32_t step = 0; step < steps && !err; step++)
        err = fmpq_golden_step(g, &program, s, step, images, labels, &r);
    spent = instructions() - spent;
    if (!err) {
        fmpq_stats stats;
        err = fmpq_evaluate(s, images, labels, g->batch, &stats);
        r.eval_loss_q16 = stats.loss_q16;
    }
    if (!err)
        err = fmpq_state_hash(s, &program, g->guard, arena + mem.state, r.state);
    if (err)
        stop("training", err);
    text(g->name, "");
    text(" isa=", fmpq_isa());
    hash(" program=", r.program);
    hash(" start=", r.start);
    hash(" state=", r.state);
    number(" loss_q16=", r.loss_q16);
    number(" correct=", r.correct);
    number(" eval_loss_q16=", r.eval_loss_q16);
    number(" arena=", (int64_t)mem.total);
    number(" arena_state=", (int64_t)mem.state);
    number(" data=", (uint8_t *)&__data_end - (uint8_t *)&__data_start);
    number(" bss=", (uint8_t *)&__bss_end - (uint8_t *)&__bss_start);
    number(" stack=", stack_used());
    number(" stack_kept=", (uint8_t *)&__stack_top - (uint8_t *)&__stack_low);
    number(" instructions=", (int64_t)(spent / steps / g->batch));
    text("", "\n");
    leave(0);
}

/* ---- start-up ----------------------------------------------------------------------------------------------- */

extern uint32_t __data_load;

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
}

void Fault_Handler(void)
{
    text("error: fault", "\n");
    leave(9);
}

__attribute__((section(".vectors"), used)) static void (*const vectors[16])(void) = {
    (void (*)(void))&__stack_top, Reset_Handler, Fault_Handler, Fault_Handler, Fault_Handler, Fault_Handler, Fault_Handler, Fault_Handler,
    Fault_Handler, Fault_Handler, Fault_Handler, Fault_Handler, Fault_Handler, Fault_Handler, Fault_Handler, SysTick_Handler};
