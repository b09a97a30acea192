/* Weights unpacked from their planes into the order that the convolution kernels read. */
#ifndef FMPQ_PACK_H
#define FMPQ_PACK_H
#include "internal.h"

/* [tap][cp/4][cop][4]; with n = 8 the weight is 2*w + low. corr[co] = -(sum of zero*w), zero being the image's mean or the zero point.
 * Grouped convolutions get plain OHWI int16. Only output channels [co0, co0 + n); cop is n rounded up to 16. */
void fmpq_pack_forward(const fmpq_session *s, uint32_t r, uint32_t co0, uint32_t n, uint8_t *w, uint8_t *low, int32_t *corr);
/* Transposed: for each phase (py, px) its taps, [tap][cot/4][cip][4]; corr[phase][cip] = -128 * sum of w (errors are stored + 128).
 * Only input channels [ci0, ci0 + n), and only phase `phase` (corr[0] then) unless it is negative. */
void fmpq_pack_backward(const fmpq_session *s, uint32_t r, const fmpq_geometry *t, int32_t phase, uint32_t ci0, uint32_t n, uint8_t *w,
                        uint8_t *low, int32_t *corr);
int32_t fmpq_y_shift(const fmpq_record *r, int32_t amax, int n);
int32_t fmpq_e_shift(const fmpq_record *r, int n);
void fmpq_normaliser(int64_t v8, int64_t mu8, int32_t *a, int32_t *b, int32_t *sh);

/* grouped.c: plain loops for groups > 1; tiles as for the dense kernels, weights OHWI int16 */
void fmpq_grouped_forward(const fmpq_record *r, const fmpq_igemm *j, const int16_t *q);
void fmpq_grouped_input(const fmpq_record *r, int32_t rows, const uint8_t *e, const fmpq_geometry *t, const int16_t *q, int32_t shift, int16_t *out);
void fmpq_grouped_weight(const fmpq_record *r, int32_t rows, const uint8_t *a, const fmpq_geometry *t, const int8_t *e, int32_t *g);
/* tensors.c: the activations of a conv record computed from x-hat even where a buffer for them exists */
void fmpq_tensor_make(const fmpq_session *s, uint32_t t, uint32_t sample, uint32_t y, uint32_t rows, uint8_t *out);
#endif
