/* A golden run as bare-metal firmware: proves that a board trains to the recorded state inside its RAM, and says where the RAM went.
 * Output and exit code go through semihosting (an emulator or a debug probe). FMPQ_CASE and FMPQ_ARENA come from the build. */
#include "board.h"
#include "golden.h"
#include "semihost.h"
#include "sha256.h"
#include <string.h>

#ifndef FMPQ_CLOCK
#error "the build gives FMPQ_CASE, FMPQ_ARENA and FMPQ_CLOCK"
#endif

#ifndef FMPQ_STEPS
#define FMPQ_STEPS 255u /* fewer, where only instructions are counted */
#endif
#ifndef FMPQ_RECOMPUTE
#define FMPQ_RECOMPUTE 1 /* of the plan */
#endif

static void text(const char *name, const char *value)
{
    fmpq_semihost_text(name);
    fmpq_semihost_text(value);
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
    fmpq_semihost_exit(8);
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
    fmpq_semihost_number("planned=", (int64_t)mem.total);
    fmpq_semihost_number(" given=", (int64_t)sizeof(arena));
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
    fmpq_semihost_number(" loss_q16=", r.loss_q16);
    fmpq_semihost_number(" correct=", r.correct);
    fmpq_semihost_number(" eval_loss_q16=", r.eval_loss_q16);
    fmpq_semihost_number(" arena=", (int64_t)mem.total);
    fmpq_semihost_number(" arena_state=", (int64_t)mem.state);
    fmpq_semihost_number(" data=", (uint8_t *)&__data_end - (uint8_t *)&__data_start);
    fmpq_semihost_number(" bss=", (uint8_t *)&__bss_end - (uint8_t *)&__bss_start);
    fmpq_semihost_number(" stack=", fmpq_stack_used());
    fmpq_semihost_number(" stack_kept=", (uint8_t *)&__stack_top - (uint8_t *)&__stack_low);
    fmpq_semihost_number(" instructions=", (int64_t)(spent / steps / g->batch));
    text("", "\n");
    fmpq_semihost_exit(0);
}
