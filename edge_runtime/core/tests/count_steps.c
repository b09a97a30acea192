/* A golden run cut to some steps, for counting instructions: the difference of two runs is that of the steps alone.
 *
 *     count_steps CASE STEPS [KERNELS] */
#include "../port/golden.h"
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    const fmpq_golden *g = argc > 2 ? fmpq_golden_find(argv[1]) : NULL;
    static uint8_t bytes[FMPQ_GOLDEN_PROGRAM], images[FMPQ_GOLDEN_PIXELS * 8];
    static uint16_t labels[8];
    static fmpq_program program;
    static fmpq_golden_result result;
    fmpq_plan plan;
    fmpq_memory mem;
    fmpq_session *s;
    uint8_t *arena, *scratch;
    if (!g || g->batch > 8 || (argc > 3 && fmpq_set_isa(argv[3])))
        return 2;
    if (fmpq_program_parse(bytes, fmpq_golden_program(g, bytes), &program))
        return 3;
    fmpq_golden_plan(g, &program, 1, &plan);
    scratch = malloc(fmpq_plan_scratch());
    if (!scratch || fmpq_plan_memory(&program, &plan, scratch, &mem, NULL, 0))
        return 4;
    arena = aligned_alloc(64, (size_t)(mem.total + 63) / 64 * 64);
    if (!arena || fmpq_init(&program, &plan, arena, mem.total, scratch, &s) || fmpq_golden_load(g, &program, s, arena + mem.state))
        return 5;
    for (uint32_t step = 0; step < (uint32_t)atoi(argv[2]); step++)
        if (fmpq_golden_step(g, &program, s, step, images, labels, &result))
            return 6;
    printf("%s %s loss_q16=%lld\n", g->name, fmpq_isa(), (long long)result.loss_q16);
    return 0;
}
