/* The golden runs: fixed trainings whose final state must be the same on every target (docs/arm.md).
 * Weights, images and labels come from the counter hash, so no file is needed; the same runs exist in Python
 * (tests/helpers/golden.py) over the core and over the PyTorch reference. */
#ifndef FMPQ_GOLDEN_H
#define FMPQ_GOLDEN_H
#include <fmpq/fmpq.h>

#define FMPQ_GOLDEN_PROGRAM (64 + 64 * 21) /* bytes of the largest program, ResNet20 */
#define FMPQ_GOLDEN_PIXELS (32 * 32 * 3)   /* bytes of an image */

typedef struct fmpq_golden {
    const char *name;
    uint8_t blocks;     /* residual blocks a stage: 1 = ResNet8, 3 = ResNet20; 0: the small net with every other kind of record */
    uint8_t steps;
    uint8_t batch, micro_batch;
    uint8_t bits[5];    /* of the weight layers in turn, again and again */
    uint8_t act_bits, guard, momentum, lasso;
} fmpq_golden;

typedef struct fmpq_golden_result {
    uint8_t program[32], start[32], state[32]; /* SHA-256 of the program, of the state before and after */
    int64_t loss_q16;                          /* summed over all steps */
    uint32_t correct, count;
    int64_t eval_loss_q16; /* of the last batch with running statistics */
} fmpq_golden_result;

extern const fmpq_golden fmpq_goldens[];
extern const unsigned fmpq_golden_count;

const fmpq_golden *fmpq_golden_find(const char *name);
size_t fmpq_golden_program(const fmpq_golden *g, uint8_t *out); /* at most FMPQ_GOLDEN_PROGRAM bytes */
void fmpq_golden_plan(const fmpq_golden *g, const fmpq_program *p, uint32_t threads, fmpq_plan *plan);
/* scratch: bytes of the longest plane or parameter blob of the program; free to lie in the arena's part for a step */
size_t fmpq_golden_scratch(const fmpq_program *p);
int fmpq_golden_load(const fmpq_golden *g, const fmpq_program *p, fmpq_session *s, uint8_t *scratch);
/* images: batch * FMPQ_GOLDEN_PIXELS bytes; labels: batch values */
void fmpq_golden_batch(const fmpq_golden *g, uint32_t step, uint8_t *images, uint16_t *labels);
/* One training step; adds to the result. */
int fmpq_golden_step(const fmpq_golden *g, const fmpq_program *p, fmpq_session *s, uint32_t step, uint8_t *images, uint16_t *labels,
                     fmpq_golden_result *r);
/* The whole run with a session that fits the plan. */
int fmpq_golden_run(const fmpq_golden *g, const fmpq_program *p, fmpq_session *s, uint8_t *scratch, uint8_t *images, uint16_t *labels,
                    fmpq_golden_result *r);

/* SHA-256 over the planes and parameters of all layers, in record order. */
int fmpq_state_hash(const fmpq_session *s, const fmpq_program *p, uint32_t guard, uint8_t *scratch, uint8_t out[32]);
#endif
