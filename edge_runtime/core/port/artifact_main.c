/* Firmware with an artifact linked in: loads it, trains some steps on synthetic images (the artifact's first batch; put your own in their
 * place), and says what came out and where the RAM went. Output and exit code go through semihosting. FMPQ_ARENA, FMPQ_STEPS and
 * FMPQ_IMAGES (bytes of a batch) come from the build. */
#include "../src/rng.h"
#include "artifact.h"
#include "board.h"
#include "golden.h"
#include "semihost.h"
#include "sha256.h"
#include <string.h>

extern const uint8_t fmpq_artifact_data[];
extern const uint32_t fmpq_artifact_size;

static fmpq_artifact artifact;
static uint8_t images[FMPQ_IMAGES];
static uint16_t labels[FMPQ_BATCH];
static uint8_t arena[FMPQ_ARENA] __attribute__((aligned(64), section(".arena")));

static void check(const char *what, int code)
{
    if (!code)
        return;
    fmpq_semihost_text("error: ");
    fmpq_semihost_text(what);
    fmpq_semihost_text(": ");
    fmpq_semihost_text(fmpq_port_error_text(code));
    fmpq_semihost_text("\n");
    fmpq_semihost_exit(8);
}

int main(void)
{
    /* what planning needs lies at the arena's end, where no session state will be */
    const size_t planning = (fmpq_plan_scratch() + 63) / 64 * 64;
    uint8_t *scratch = arena + sizeof(arena) / 64 * 64 - planning;
    const fmpq_stream noise = {1, 2};
    fmpq_memory mem;
    fmpq_session *s;
    fmpq_stats stats;
    fmpq_hyper hyper;
    uint8_t state[32];
    char hex[65];
    check("artifact", fmpq_artifact_open(fmpq_artifact_data, fmpq_artifact_size, &artifact));
    check("plan", planning > sizeof(arena) ? FMPQ_E_ARENA : fmpq_plan_memory(&artifact.parsed, &artifact.plan, scratch, &mem, NULL, 0));
    if (mem.total > sizeof(arena) || mem.state + planning > sizeof(arena) || /* planes are read to behind the state, to be hashed */
        mem.state + fmpq_golden_scratch(&artifact.parsed) > sizeof(arena))
        check("arena", FMPQ_E_ARENA);
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
        fmpq_semihost_number("step=", step);
        fmpq_semihost_number(" loss_q16=", (uint32_t)stats.loss_q16);
        fmpq_semihost_text("\n");
    }
    check("state", fmpq_state_hash(s, &artifact.parsed, artifact.plan.guard, arena + mem.state, state));
    fmpq_hex(state, 32, hex);
    fmpq_semihost_text("state=");
    fmpq_semihost_text(hex);
    fmpq_semihost_number(" arena=", (uint32_t)mem.total);
    fmpq_semihost_number(" data=", (uint32_t)((uint8_t *)&__data_end - (uint8_t *)&__data_start));
    fmpq_semihost_number(" bss=", (uint32_t)((uint8_t *)&__bss_end - (uint8_t *)&__bss_start));
    fmpq_semihost_number(" stack=", fmpq_stack_used());
    fmpq_semihost_number(" stack_kept=", (uint32_t)((uint8_t *)&__stack_top - (uint8_t *)&__stack_low));
    fmpq_semihost_text("\n");
    fmpq_semihost_exit(0);
}
