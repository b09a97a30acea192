/* The session's layout and the helpers that the core's files share. */
#ifndef FMPQ_INTERNAL_H
#define FMPQ_INTERNAL_H
#include "fx.h"
#include "kernels.h"
#include <string.h>

#define FMPQ_NONE 0xffffffffu
#define FMPQ_MAX_TAPS 49

/* Where each record's data lie in the arena (byte offsets, FMPQ_NONE when absent). */
typedef struct fmpq_slots {
    /* state */
    uint32_t planes, params, velocity, velocity_exp, velocity_bn, sums, sums_bn, coef;
    /* step */
    uint32_t xhat, y16, stream;      /* xhat of a concatenation: error to its second tensor before merging */
    uint32_t e_out, e_in;            /* error of the output; error to the main input before merging */
    uint32_t work_f, work_b0, work_b1, work_b2;
    uint32_t pack_b;                 /* weights of the error pass to the input, packed before the weights change; FMPQ_NONE: packed there */
    uint8_t stream_in_backward;      /* the stream buffer is still alive in the backward pass */
    uint8_t e_in_merges;             /* 1: e_in merges into the error of the input tensor, which exists; 2: a pending option-A error merges into e_in */
    uint8_t skip_merges;             /* of e_out (concatenation: xhat) and the skip's error, as e_in_merges; option A: 1 or, where e_out waits, 0 */
    uint8_t refill;                  /* the stream buffer of the backward pass is filled again before the error pass of record refill - 1; 0: never */
    uint32_t again;                  /* that buffer */
    uint8_t refilled;                /* it is filled now */
    uint8_t spare[3];
} fmpq_slots;

/* Derived constants of a record under a plan. */
typedef struct fmpq_derived {
    uint32_t theta, rows, row_len;  /* weights */
    uint32_t in_size, out_size;     /* elements a sample */
    int32_t cp, cop;                /* input channels padded to 4, output channels to 16 */
    int32_t amax, act_shift;        /* activation bound; exponent of the activation's unit in base steps */
    int32_t gs;                     /* shift of the weight gradient */
    uint32_t tile_rows, tile_taps;  /* output channels and taps of one weight-gradient tile */
    /* A batch of one sample is worked on in strips of rows, its weights packed in blocks; otherwise a strip is the whole map. */
    uint16_t strip, strip_in, strip_out; /* output rows of a forward or gradient strip; input rows of an error strip; rows of the output's own passes */
    uint16_t block_f, block_b;           /* output channels packed at a time, forward; input channels, backward */
    uint8_t compact, in_place;           /* a batch of one; the error to the input grows over e8, after the weight gradient */
    uint8_t planar_once;                 /* the gradient's tiles share one planar copy of the whole input */
} fmpq_derived;

typedef struct fmpq_tensor_error {
    uint32_t offset; /* buffer, FMPQ_NONE: no error yet */
    int32_t ex, mx;
    uint16_t pending; /* record whose option-A error waits, FMPQ_NO_TENSOR: none */
    uint16_t spare;
} fmpq_tensor_error;

typedef struct fmpq_layer { /* live state of a record */
    uint8_t n, g, relevant, spare;
    fmpq_fx step;
    int32_t ex, S;          /* of this step: exponent of the output error, shift of e8 */
    int32_t ey;
} fmpq_layer;

struct fmpq_session {
    const fmpq_program *p;
    const fmpq_kernels *k;
    fmpq_pool pool;
    fmpq_plan plan;
    uint8_t *base;
    uint64_t total;
    /* tables of n_records entries (err: one more), behind this structure */
    fmpq_slots *slot;
    fmpq_derived *d;
    fmpq_layer *layer;
    fmpq_tensor_error *err;
    /* the micro-batch in work */
    const uint8_t *images;
    const uint16_t *labels;
    uint32_t count, total_count;
    int32_t training, last, first, backward;
    const fmpq_hyper *hyper; /* the caller's, during a step */
    fmpq_key key;
    int32_t *predict;
    fmpq_stats stats;
};

/* What the planner counts for fmpq_session: its size with 8-byte pointers and 64 records (rounded up to 8), so that a 32-bit board and a
 * 64-bit host plan the same bytes. */
#define FMPQ_SESSION_ROOM 248u

/* planes.c */
uint32_t fmpq_plane_bytes(uint32_t theta);
void fmpq_planes_unpack(const uint8_t *planes, uint32_t theta, int n_planes, uint32_t first, uint32_t count, int16_t *q);
void fmpq_planes_pack(uint8_t *planes, uint32_t theta, int n_planes, uint32_t first, uint32_t count, const int16_t *q);
uint32_t fmpq_popcount(const uint8_t *data, uint32_t bytes);
/* q (multiplied weight) from q_full, in place */
void fmpq_effective(int16_t *q, uint32_t count, int n, int g);

/* session.c: bytes of the session's structure and its tables */
uint32_t fmpq_tables_size(uint32_t n_records);

/* plan.c */
int fmpq_derive(const fmpq_program *p, const fmpq_plan *plan, fmpq_derived *d);
int fmpq_layout(const fmpq_program *p, const fmpq_plan *plan, void *scratch, fmpq_slots *slots, fmpq_memory *mem, fmpq_buffer *buffers,
                uint32_t cap);

/* workspace.c: sizes of one op's work area and its parts, used by the planner and by the op alike */
typedef struct fmpq_geometry { /* the padded tile of a convolution's input (forward) or error (backward) */
    int32_t top, left;   /* margin before row 0 / column 0 */
    int32_t rows, cols;  /* of the tile */
    int32_t c;           /* bytes a position */
    int32_t halo;        /* rows that neighbouring strips of an error tile share */
} fmpq_geometry;
typedef struct fmpq_work_forward {
    uint32_t pack, pack_low, corr, coef, stats, thread0, thread_size; /* offsets in the work area */
    uint32_t tile, stream;                                            /* offsets in a thread's part */
    uint32_t total;
} fmpq_work_forward;
typedef struct fmpq_work_error {
    uint32_t coef, sums, thread0, thread_size, stream, total;
} fmpq_work_error;
typedef struct fmpq_work_input {
    uint32_t pack, pack_low, corr, maxima, thread0, thread_size, tile, stream, total;
} fmpq_work_input;
typedef struct fmpq_work_weight {
    uint32_t g64, row_u, row_q, thread0, thread_size, g, sums, planar, e4, tile, stream, total;
} fmpq_work_weight;

fmpq_geometry fmpq_tile_forward(const fmpq_record *r, const fmpq_derived *d);
fmpq_geometry fmpq_tile_backward(const fmpq_record *r, const fmpq_derived *d);
/* rows that a strip of `rows` input rows needs of that tile */
int32_t fmpq_strip_backward(const fmpq_record *r, const fmpq_geometry *t, int32_t rows);
/* taps of output phase (py, px) of the transposed convolution; returns their number */
int32_t fmpq_taps_backward(const fmpq_record *r, const fmpq_geometry *t, int32_t py, int32_t px, int32_t *off, uint8_t *index);
int32_t fmpq_planar_row(const fmpq_record *r);
fmpq_work_forward fmpq_plan_forward(const fmpq_program *p, const fmpq_plan *plan, const fmpq_derived *d, uint32_t r);
uint32_t fmpq_refill_at(const fmpq_program *p, const fmpq_plan *plan, uint32_t r);
fmpq_work_error fmpq_plan_error(const fmpq_program *p, const fmpq_plan *plan, const fmpq_derived *d, uint32_t r);
/* weights packed for the error to the input: all of them, or a block of one phase; their place and bytes */
uint64_t fmpq_pack_bytes(const fmpq_record *r, const fmpq_derived *d, int whole);
uint32_t fmpq_plan_pack(const fmpq_plan *plan, const fmpq_record *r, const fmpq_derived *d, uint32_t i, fmpq_work_input *w);
void fmpq_derive_strips(const fmpq_program *p, const fmpq_plan *plan, uint32_t i, uint32_t kept, fmpq_derived *d);
fmpq_work_input fmpq_plan_input(const fmpq_program *p, const fmpq_plan *plan, const fmpq_derived *d, uint32_t r);
fmpq_work_weight fmpq_plan_weight(const fmpq_program *p, const fmpq_plan *plan, const fmpq_derived *d, uint32_t r);

/* tensors.c: the u8 activations of one sample, read from a kept buffer or computed again */
uint32_t fmpq_tensor_size(const fmpq_program *p, uint32_t tensor);
uint32_t fmpq_tensor_rows_of(const fmpq_program *p, uint32_t tensor);
uint32_t fmpq_tensor_room(const fmpq_program *p, uint32_t tensor, uint32_t rows, int kept);
uint32_t fmpq_tensor_make_room(const fmpq_program *p, uint32_t tensor, uint32_t rows, int kept); /* for fmpq_tensor_make */
/* `rows` rows of the tensor from row y on, perhaps in `out` */
const uint8_t *fmpq_tensor_rows(const fmpq_session *s, uint32_t tensor, uint32_t sample, uint32_t y, uint32_t rows, uint8_t *out);
const uint8_t *fmpq_tensor(const fmpq_session *s, uint32_t tensor, uint32_t sample, uint8_t *out);
/* Rows [from, from + rows) of a record's padded input, the first `have` of which are at the end of the tile's last strip of `before` rows:
 * activations with zeros around them, or the augmented image with the mean around it. */
typedef struct fmpq_window {
    int32_t from, rows, have, before;
} fmpq_window;
void fmpq_input_rows(const fmpq_session *s, uint32_t record, uint32_t sample, const fmpq_geometry *t, fmpq_window w, uint8_t *tile, uint8_t *stream);

/* forward.c, classifier.c, error_norm.c, error_input.c, weight_gradient.c, pool.c, update.c */
void fmpq_forward_conv(fmpq_session *s, uint32_t r);
void fmpq_forward_classifier(fmpq_session *s, uint32_t r);
void fmpq_backward_classifier(fmpq_session *s, uint32_t r);
/* error_merge.c: record i's e_in holds its error to its input with (ex, mx); its output error goes to its skip */
void fmpq_contribute_input(fmpq_session *s, uint32_t i, int32_t ex, int32_t mx);
void fmpq_contribute_skip(fmpq_session *s, uint32_t i);
void fmpq_backward_pool(fmpq_session *s, uint32_t r);
void fmpq_backward_concat(fmpq_session *s, uint32_t r);
void fmpq_backward_error(fmpq_session *s, uint32_t r);
void fmpq_backward_input(fmpq_session *s, uint32_t r);
void fmpq_pack_before_update(fmpq_session *s, uint32_t r); /* for records that work in place */
void fmpq_backward_weight(fmpq_session *s, uint32_t r);
void fmpq_backward_classifier_weight(fmpq_session *s, uint32_t r);
/* What Lasso and weight decay add to the weights of a layer: by set bit; for weights of few planes, a table by weight. */
#if UINTPTR_MAX > 0xffffffffu
#define FMPQ_TERMS 255 /* weights of up to 8 planes, guard planes included */
#else
#define FMPQ_TERMS 31 /* up to 5 planes: boards have little stack */
#endif
typedef struct fmpq_terms {
    int32_t lasso[FMPQ_MAX_PLANES];
    int32_t table[2 * FMPQ_TERMS + 1]; /* of weight q at q + f, f the largest */
    int32_t f;                         /* 0: no table */
} fmpq_terms;
/* U of `len` weights of one output channel from `off` on to the weights (all of them where there is momentum); u and q are working rows */
void fmpq_update_row(fmpq_session *s, uint32_t r, uint32_t row, uint32_t off, uint32_t len, int32_t *u, int16_t *q, const fmpq_terms *terms);
void fmpq_update_params(fmpq_session *s, uint32_t r, const int64_t *s1, const int64_t *s2);
void fmpq_update_bias(fmpq_session *s, uint32_t r, const int64_t *gb);
void fmpq_terms_of(const fmpq_session *s, uint32_t r, fmpq_terms *t);

/* Runs fn over tasks, on the caller's pool when there is one. */
static inline void fmpq_run(const fmpq_session *s, void (*fn)(void *, uint32_t, uint32_t), void *arg, uint32_t tasks)
{
    if (s->pool.run && s->plan.threads > 1 && tasks > 1) {
        s->pool.run(s->pool.ctx, fn, arg, tasks);
        return;
    }
    for (uint32_t i = 0; i < tasks; i++)
        fn(arg, i, 0);
}

static inline uint32_t fmpq_up(uint32_t x, uint32_t a)
{
    return (x + a - 1) / a * a;
}

/* the u8 that stands for 0 in a tensor other than the image */
static inline int32_t fmpq_zero(const fmpq_program *p, uint32_t tensor)
{
    return p->rec[tensor - 1].flags & FMPQ_LINEAR ? 128 : 0;
}
/* the value that stands for 0 among the activations that conv record r multiplies, input channel k (of all) */
static inline int32_t fmpq_zero_read(const fmpq_program *p, const fmpq_record *r, int act_bits, uint32_t k)
{
    return r->input ? fmpq_zero(p, r->input) >> (8 - act_bits) : p->mean[k % p->in_c]; /* a flattened image repeats its channels */
}

static inline int32_t fmpq_gamma(int32_t gacc)
{
    const int64_t v = fmpq_rshift64(gacc, 16);
    return (int32_t)fmpq_clamp64(v, -32767, 32767);
}

/* parameters of a conv record in the arena */
static inline int32_t *fmpq_params_i32(const fmpq_session *s, uint32_t r, int which)
{
    return (int32_t *)(void *)(s->base + s->slot[r].params) + (uint32_t)which * s->p->rec[r].cout;
}
static inline int64_t *fmpq_params_rv(const fmpq_session *s, uint32_t r)
{
    const uint32_t at = fmpq_up(s->p->rec[r].cout * 12u, 8);
    return (int64_t *)(void *)(s->base + s->slot[r].params + at);
}
#endif
