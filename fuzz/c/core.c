/* Programs, plans and planes. First byte even: loads and reads of planes and parameters, with lengths of the fuzzer's
 * own, on a session that stays. Odd: 16 bytes of choices, u16 length of a program, the program, then loads as above;
 * planning takes milliseconds, so it follows for one input in 16. */
#include <fmpq/fmpq.h>
#include <stdlib.h>
#include <string.h>

enum { CHOICES = 16, MOST_ARENA = 1 << 16, MOST_WEIGHTS = 1 << 13 };

static void use(fmpq_session *s, const fmpq_program *p, const uint8_t *data, size_t size)
{
    uint8_t out[1024];
    fmpq_fx step;
    uint32_t counts[FMPQ_MAX_PLANES];
    while (size >= 8) {
        const uint32_t record = data[1] % (p->n_records + 1u), plane = data[2] % 18u;
        const size_t asked = data[3] | (size_t)(data[4] & 3) << 8, len = asked < size - 8 ? asked : size - 8;
        uint8_t *exact = malloc(len ? len : 1);
        memcpy(exact, data + 8, len);
        memcpy(&step, data, 8);
        switch (data[0] % 7) {
        case 0:
            fmpq_load_plane(s, record, plane, exact, len);
            break;
        case 1:
            step.m |= 1u << 30, step.m &= 0x7fffffffu, step.e = (int8_t)data[5];
            fmpq_load_params(s, record, step, exact, len);
            break;
        case 2:
            fmpq_check_weights(s, record);
            break;
        case 3:
            fmpq_read_plane(s, record, plane, out, len < sizeof out ? len : sizeof out);
            break;
        case 4:
            fmpq_read_params(s, record, &step, out, len < sizeof out ? len : sizeof out);
            break;
        case 5:
            fmpq_set_counts(s, record, counts, FMPQ_MAX_PLANES);
            fmpq_bits(s, record);
            break;
        default:
            fmpq_prune(s, (uint32_t)data[5] << 8);
            fmpq_reset_momentum(s);
        }
        free(exact);
        data += 8 + len, size -= 8 + len;
    }
}

static void planes(const uint8_t *data, size_t size)
{
    static const uint8_t tiny[] = {
#include "tiny_program.inc"
    };
    static fmpq_program program;
    static fmpq_session *session;
    if (!session) {
        fmpq_plan plan = {.batch = 2, .act_bits = 4, .guard = 1, .momentum = 1, .threads = 1, .recompute = 1};
        void *scratch = malloc(fmpq_plan_scratch());
        fmpq_memory memory;
        if (fmpq_program_parse(tiny, sizeof tiny, &program) != FMPQ_OK)
            abort();
        for (unsigned r = 0; r < program.n_records; r++)
            plan.bits[r] = fmpq_record_theta(&program.rec[r]) ? (uint8_t)(1 + r % 8) : 0;
        if (fmpq_plan_memory(&program, &plan, scratch, &memory, 0, 0) != FMPQ_OK)
            abort();
        void *arena = aligned_alloc(FMPQ_ALIGN, (size_t)(memory.total + FMPQ_ALIGN - 1) / FMPQ_ALIGN * FMPQ_ALIGN);
        if (fmpq_init(&program, &plan, arena, (size_t)memory.total, scratch, &session) != FMPQ_OK)
            abort();
        free(scratch);
    }
    use(session, &program, data, size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fmpq_program program;
    fmpq_plan plan;
    fmpq_memory memory;
    size_t len;
    uint64_t weights = 0;
    uint8_t *exact;
    if (!size)
        return 0;
    if (!(data++[0] & 1)) {
        planes(data, size - 1);
        return 0;
    }
    if (--size < CHOICES + 2)
        return 0;
    len = data[CHOICES] | (size_t)data[CHOICES + 1] << 8;
    if (len > size - CHOICES - 2)
        len = size - CHOICES - 2;
    exact = malloc(len ? len : 1);
    memcpy(exact, data + CHOICES + 2, len);
    if (fmpq_program_parse(exact, len, &program) == FMPQ_OK && !(data[15] & 15)) {
        void *scratch = malloc(fmpq_plan_scratch());
        memset(&plan, 0, sizeof plan);
        plan.batch = data[0], plan.accumulate = data[1], plan.act_bits = data[2], plan.guard = data[3], plan.momentum = data[4];
        plan.threads = data[5], plan.crop = data[6], plan.flip = data[7], plan.decay_bn = data[8], plan.recompute = data[9];
        for (unsigned r = 0; r < program.n_records; r++) {
            const uint32_t theta = fmpq_record_theta(&program.rec[r]);
            weights += theta;
            plan.bits[r] = theta ? data[10 + r % 6] : 0;
        }
        if (fmpq_plan_memory(&program, &plan, scratch, &memory, 0, 0) == FMPQ_OK && memory.total <= MOST_ARENA && weights <= MOST_WEIGHTS) {
            const size_t bytes = (size_t)(memory.total + FMPQ_ALIGN - 1) / FMPQ_ALIGN * FMPQ_ALIGN;
            void *arena = aligned_alloc(FMPQ_ALIGN, bytes);
            fmpq_session *s;
            if (memory.total && fmpq_init(&program, &plan, arena, (size_t)memory.total - 1, scratch, &s) == FMPQ_OK)
                abort(); /* a byte too few was enough: the plan is not exact */
            if (fmpq_init(&program, &plan, arena, (size_t)memory.total, scratch, &s) == FMPQ_OK)
                use(s, &program, data + CHOICES + 2 + len, size - CHOICES - 2 - len);
            free(arena);
        }
        free(scratch);
    }
    free(exact);
    return 0;
}
