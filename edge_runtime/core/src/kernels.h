/* The kernels and their table. Every kernel has a scalar version that defines it; the others equal it bit for bit.
 * Tensors of one sample: `n` positions of `c` channels, channels innermost. */
#ifndef FMPQ_KERNELS_H
#define FMPQ_KERNELS_H
#include "rng.h"

/* Convolution of one sample as an implicit matrix product over taps.
 * out[y][x][co] = sat16(reven(sum_tap sum_ci a[y*a_row + x*a_pix + tap_off[tap] + ci] * w + corr[co], shift))
 * a: unsigned bytes, groups of 4 channels, the calling thread's own: a kernel may change them if it puts them back; w: [tap][cp/4][cop][4] signed bytes; the weights are w, or 2*w + w_low when w_low is given. */
typedef struct fmpq_igemm {
    const uint8_t *a;
    const int8_t *w, *w_low;
    const int32_t *corr;  /* cop values */
    int16_t *out;
    const int32_t *tap_off;
    int32_t taps, c4, cop, co; /* cop = co rounded up to 16 */
    int32_t rows, cols;
    int32_t a_row, a_pix;      /* bytes */
    int32_t out_row, out_pix;  /* elements */
    int32_t shift;
    int32_t a_max, w_max;      /* bounds of the operands: a fast kernel may need them */
} fmpq_igemm;

/* Weight gradient of one sample: g[cb][tap][ci][16] += sum over output positions a * e.
 * a: planar [ci] planes of `plane` bytes, readable for 16 bytes more, the calling thread's own as above; position (y, x) of tap at y*a_row + x + tap_off[tap]; e: [row][cols4][cop][4] signed bytes, zero past the width. */
typedef struct fmpq_dw {
    const uint8_t *a;
    const int8_t *e;
    int32_t *g;
    const int32_t *tap_off;
    int32_t taps, ci, plane, a_row;
    int32_t rows, cols4, cop;
    int32_t cb0, cb1; /* blocks of 16 output channels to do; g starts at cb0 */
    int32_t a_max;
} fmpq_dw;

typedef struct fmpq_kernels {
    const char *name;
    int (*available)(void);
    void (*igemm)(const fmpq_igemm *j);
    void (*dw)(const fmpq_dw *j);
    /* m1[c] += sum y, m2[c] += sum y*y */
    void (*stats)(const int16_t *y, int32_t n, int32_t c, int64_t *m1, int64_t *m2);
    /* x = clamp((y*a + b) >> sh, +-127) */
    void (*norm)(const int16_t *y, int8_t *x, int32_t n, int32_t c, const int32_t *a, const int32_t *b, const int32_t *sh);
    /* out = clamp(rshift(gamma*x + beta + offset + (skip << skip_shift), out_shift), 0, 255); skip may be null or equal out */
    void (*act)(const int8_t *x, uint8_t *out, int32_t n, int32_t c, const int32_t *gacc, const int32_t *bacc, const uint8_t *skip,
                int32_t skip_shift, int32_t out_shift, int32_t offset);
    /* zero e where u is 0 or 255; s1 += sum e, s2 += sum e*x, mx = max |e| */
    void (*reduce)(int16_t *e, const uint8_t *u, const int8_t *x, int32_t n, int32_t c, int64_t *s1, int64_t *s2, int32_t *mx);
    /* x <- e8 (in place), dither from (key, base + index) */
    void (*bn_back)(const int16_t *e, int8_t *x, int32_t n, int32_t c, const int32_t *ce, const int32_t *cx, const int32_t *c0,
                    fmpq_stream key, uint32_t base);
    /* e1 = sat16(rs(e1, s1) + rs(e2, s2)); returns max |e1| */
    int32_t (*merge)(int16_t *e1, const int16_t *e2, uint32_t n, int32_t s1, int32_t s2);
    int32_t (*max16)(const int16_t *e, uint32_t n);
    /* u8 -> `bits`-bit activations, n bytes */
    void (*quant)(const uint8_t *u, uint8_t *a, int32_t n, int32_t bits);
    /* a = e + 128, n bytes */
    void (*bias)(const int8_t *e, uint8_t *a, int32_t n);
    /* U = clamp(apply(g, mult), +-2^30) for n weights */
    void (*scale)(const int32_t *g, int32_t *u, int32_t n, fmpq_fx mult);
    /* q = clamp(q - ((v + 24 random bits) >> 24), +-f) */
    void (*apply)(int16_t *q, const int32_t *v, int32_t n, int32_t f, fmpq_stream key, uint32_t base);
    /* NHWC -> planar: out[ch*plane + y*row + x] */
    void (*planar)(const uint8_t *in, uint8_t *out, int32_t rows, int32_t cols, int32_t in_row, int32_t c, int32_t plane, int32_t row, int32_t stride);
    /* e8 NHWC, `pix` bytes a position, co of them -> [row][cols/4][co rounded up to 16][4], zero filled; sums[co] += e8 */
    void (*interleave)(const int8_t *e, int8_t *out, int32_t rows, int32_t cols, int32_t pix, int32_t co, int32_t *sums);
    /* bit-planes `bytes` apart (sign first, then n of magnitude) to and from weights; count is a multiple of 8 */
    void (*unpack)(const uint8_t *planes, uint32_t bytes, int n, uint32_t count, int16_t *q);
    void (*pack)(uint8_t *planes, uint32_t bytes, int n, uint32_t count, const int16_t *q);
    /* u = clamp(u + table[q], +-2^30) for n weights; |u|, |table| <= 2^30; table points at the term of q = 0 */
    void (*terms)(int32_t *u, const int16_t *q, uint32_t n, const int32_t *table);
    /* the low bytes of n weights, a multiple of four: four next to each other, fours `step` bytes apart */
    void (*deal)(const int16_t *q, uint32_t n, uint8_t *w, uint32_t step);
    /* the low bytes of four rows of n weights, rows `apart` elements apart: w[4 * k + row]; sum[k] -= 128 * the four weights */
    void (*quads)(const int16_t *q, uint32_t apart, uint32_t n, uint8_t *w, int32_t *sum);
    /* u[k] = g[16 * k] for n weights: one output channel of a gradient */
    void (*column)(const int32_t *g, int32_t *u, uint32_t n);
} fmpq_kernels;

/* those of all tables without better ones: planes.c, update.c, pack.c, weight_gradient.c */
void fmpq_unpack_scalar(const uint8_t *planes, uint32_t bytes, int n, uint32_t count, int16_t *q);
void fmpq_pack_scalar(uint8_t *planes, uint32_t bytes, int n, uint32_t count, const int16_t *q);
void fmpq_terms_scalar(int32_t *u, const int16_t *q, uint32_t n, const int32_t *table);
void fmpq_deal_scalar(const int16_t *q, uint32_t n, uint8_t *w, uint32_t step);
void fmpq_quads_scalar(const int16_t *q, uint32_t apart, uint32_t n, uint8_t *w, int32_t *sum);
void fmpq_column_scalar(const int32_t *g, int32_t *u, uint32_t n);

extern const fmpq_kernels fmpq_kernels_scalar;
const fmpq_kernels *fmpq_kernels_get(void);
const fmpq_kernels *fmpq_kernels_table(unsigned index); /* every table of this build, available or not; null past the end */
#endif
