/* fedmpq core: integer training in a given buffer. docs/arithmetic.md defines every number.
 *
 * plan -> init(buffer) -> load -> step(batch) -> read. No allocation, no floating point, no files, no threads
 * of its own: threads come from the caller's pool. */
#ifndef FMPQ_H
#define FMPQ_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

#ifndef FMPQ_MAX_RECORDS
#define FMPQ_MAX_RECORDS 64
#endif
#define FMPQ_MAX_PLANES 16 /* magnitude planes: n + guard */
#define FMPQ_ALIGN 64
#define FMPQ_NO_TENSOR 0xffffu

#if defined(_WIN32)
#define FMPQ_API __declspec(dllexport)
#elif defined(__GNUC__)
#define FMPQ_API __attribute__((visibility("default")))
#else
#define FMPQ_API
#endif

typedef enum fmpq_error {
#define X(name, code, text) name = code,
#include "errors.inc"
#undef X
    FMPQ_ERROR_COUNT_
} fmpq_error;

enum { FMPQ_CONV = 1, FMPQ_MAXPOOL = 2, FMPQ_AVGPOOL = 3, FMPQ_GLOBALPOOL = 4, FMPQ_CLASSIFIER = 5, FMPQ_CONCAT = 6 };
enum { FMPQ_SKIP_NONE = 0, FMPQ_SKIP_IDENTITY = 1, FMPQ_SKIP_OPTION_A = 2, FMPQ_SKIP_CONCAT = 3 };
enum { /* flags of a convolution record; pools and concatenations inherit FMPQ_LINEAR */
    FMPQ_LINEAR = 1, /* no ReLU: the output has zero point 128 */
    FMPQ_BIASED = 2  /* no batch-norm: statistics and gamma are constants of the state */
};

typedef struct fmpq_fx { /* m * 2^e, m = 0 or 2^30 <= m < 2^31 */
    uint32_t m;
    int32_t e;
} fmpq_fx;

typedef struct fmpq_record {
    uint8_t kind, kh, kw, stride, pad, skip_kind, t_out, flags;
    uint16_t groups, cin, cout, h_in, w_in, h_out, w_out, input, skip, skip_pad_c;
    char name[32];
} fmpq_record;

typedef struct fmpq_program {
    uint16_t n_records, in_h, in_w, in_c, classes, crop_pad;
    uint8_t mean[16];
    fmpq_record rec[FMPQ_MAX_RECORDS];
} fmpq_program;

typedef struct fmpq_plan {
    uint32_t batch;       /* samples of one micro-batch */
    uint32_t accumulate;  /* 1: several micro-batches may be summed before an update */
    uint8_t act_bits;     /* 4 or 8 */
    uint8_t guard;        /* guard planes, 0..8 */
    uint8_t momentum;     /* 1: an int8 momentum a weight */
    uint8_t threads;      /* 1..64 */
    uint8_t crop, flip;   /* augmentation of training batches */
    uint8_t decay_bn;     /* weight decay reaches BN parameters and biases */
    uint8_t recompute;    /* 1: residual sums are recomputed in the backward pass, 0: kept; at a batch of one also 2: in larger strips; 3: in whole maps */
    uint8_t bits[FMPQ_MAX_RECORDS]; /* magnitude planes a record; 0 for records without weights */
} fmpq_plan;

typedef struct fmpq_buffer { /* one buffer of the arena, alive from op `first` to op `last` */
    uint32_t offset, size;
    uint16_t first, last;
    uint8_t kind;   /* fmpq_buffer_kind */
    uint8_t record; /* owner */
    uint8_t spare[2];
} fmpq_buffer;

enum fmpq_buffer_kind {
    FMPQ_BUF_STATE = 0,   /* context, planes, parameters, momentum, accumulators */
    FMPQ_BUF_XHAT = 1,    /* normalised activations, later the layer's error e8 */
    FMPQ_BUF_Y16 = 2,     /* convolution output before normalising */
    FMPQ_BUF_STREAM = 3,  /* u8 residual sums */
    FMPQ_BUF_ERROR = 4,   /* int16 errors */
    FMPQ_BUF_WORK = 5     /* tiles and packed weights of one op */
};

typedef struct fmpq_memory {
    uint64_t total;      /* bytes of the arena, exact */
    uint64_t state;      /* bytes that live across steps */
    uint64_t step;       /* total - state */
    uint32_t n_buffers;
    uint32_t n_ops;
} fmpq_memory;

typedef struct fmpq_hyper {
    fmpq_fx lr, decay;
    int32_t momentum_q15;
    int32_t has_lasso;
    fmpq_fx lasso[FMPQ_MAX_RECORDS]; /* lambda of each record */
} fmpq_hyper;

typedef struct fmpq_key {
    uint32_t seed, round, client, step;
} fmpq_key;

typedef struct fmpq_stats {
    int64_t loss_q16; /* sum over samples, 1/65536 nat */
    uint32_t correct, count;
} fmpq_stats;

/* Threads given by the caller: run(ctx, fn, arg, tasks) calls fn(arg, task, worker) once for each task, worker < threads of the plan. */
typedef struct fmpq_pool {
    void *ctx;
    void (*run)(void *ctx, void (*fn)(void *arg, uint32_t task, uint32_t worker), void *arg, uint32_t tasks);
} fmpq_pool;

typedef struct fmpq_session fmpq_session;

FMPQ_API const char *fmpq_error_name(int code);
FMPQ_API const char *fmpq_error_text(int code);
FMPQ_API int fmpq_error_code(unsigned index); /* the code of the table's entry `index`, -1 past its end */
FMPQ_API const char *fmpq_version(void);

FMPQ_API size_t fmpq_sizeof_program(void);
FMPQ_API int fmpq_program_parse(const void *data, size_t len, fmpq_program *out);
/* Weights of a record: theta, rows (output channels), row length; 0 when it has none. */
FMPQ_API uint32_t fmpq_record_theta(const fmpq_record *r);

/* Exact bytes for a program and plan. `buffers` (may be null) takes up to `cap` entries for display. `scratch` holds fmpq_plan_scratch() bytes. */
FMPQ_API size_t fmpq_plan_scratch(void);
FMPQ_API int fmpq_plan_memory(const fmpq_program *p, const fmpq_plan *plan, void *scratch, fmpq_memory *out, fmpq_buffer *buffers,
                              uint32_t cap);

/* Puts a session into buf. `program` must outlive it. `scratch` as above (only during the call). *out = the session. */
FMPQ_API int fmpq_init(const fmpq_program *program, const fmpq_plan *plan, void *buf, size_t len, void *scratch, fmpq_session **out);
FMPQ_API void fmpq_set_pool(fmpq_session *s, const fmpq_pool *pool);

/* Weights of one record. planes: sign, then n + guard magnitude planes, each ceil(theta/8) bytes. */
FMPQ_API int fmpq_load_plane(fmpq_session *s, uint32_t record, uint32_t plane, const void *data, size_t len);
FMPQ_API int fmpq_load_params(fmpq_session *s, uint32_t record, fmpq_fx step, const void *params, size_t len);
FMPQ_API int fmpq_read_plane(const fmpq_session *s, uint32_t record, uint32_t plane, void *data, size_t len);
FMPQ_API int fmpq_read_params(const fmpq_session *s, uint32_t record, fmpq_fx *step, void *params, size_t len);
FMPQ_API size_t fmpq_params_size(const fmpq_record *r);
FMPQ_API int fmpq_check_weights(const fmpq_session *s, uint32_t record); /* after the planes are in: pad bits and signs of zeros */
FMPQ_API int fmpq_bits(const fmpq_session *s, uint32_t record);
FMPQ_API int fmpq_reset_momentum(fmpq_session *s);

/* One training step on `count` samples (u8 NHWC, u16 labels); they must stay in place during the call. */
FMPQ_API int fmpq_step(fmpq_session *s, const uint8_t *images, const uint16_t *labels, uint32_t count, const fmpq_hyper *h, fmpq_key key,
                       fmpq_stats *out);
FMPQ_API int fmpq_evaluate(fmpq_session *s, const uint8_t *images, const uint16_t *labels, uint32_t count, fmpq_stats *out);
/* Logits of the last evaluated micro-batch's samples are not kept; fmpq_predict writes them (1/65536 nat). */
FMPQ_API int fmpq_predict(fmpq_session *s, const uint8_t *images, uint32_t count, int32_t *logits);

FMPQ_API int fmpq_set_counts(const fmpq_session *s, uint32_t record, uint32_t *counts, uint32_t cap); /* set bits of each magnitude plane */
FMPQ_API int fmpq_prune(fmpq_session *s, uint32_t eps_q16);  /* eq. 13; drops sparse top planes */

FMPQ_API const char *fmpq_isa(void);
FMPQ_API int fmpq_set_isa(const char *name);             /* "scalar", "avx2", ...; null = best */
FMPQ_API const char *fmpq_isa_name(unsigned index);      /* the names this build knows; null past the end */
FMPQ_API int fmpq_isa_available(const char *name);

#ifdef __cplusplus
}
#endif
#endif
