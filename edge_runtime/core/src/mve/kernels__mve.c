/* Cortex-M55 and later (M-profile vector extension, integers only): vmladava multiplies 16 pairs of bytes and adds all products to one
 * register. So vectors run along the sum: input channels and taps of a convolution, positions of a weight gradient. */
#define SUFFIX mve
#pragma GCC diagnostic ignored "-Wunused-function" /* of elementwise.inc: what this table does itself */
#include "../elementwise.inc"
#include "convolution_mve.h"
#include "elementwise_mve.h"
#include "gradient_mve.h"
#include "layout_mve.h"
#include "slide_mve.h"
#include "weights_mve.h"

/* bytes from the first that is read to the last */
static int32_t input_bytes(const fmpq_igemm *j, const runs *r)
{
    int32_t last = 0;
    for (int32_t t = 0; t < j->taps; t++)
        last = max32(last, j->tap_off[t]);
    return last - r->of[0].at + (j->rows - 1) * j->a_row + (j->cols - 1) * j->a_pix + 4 * j->c4;
}

static void igemm(const fmpq_igemm *j)
{
    const int flip = j->a_max > 127;
    int8_t copy[COPY];
    int32_t sums[2 * 8 * MOST_TILES]; /* of weights and of their low bits; `channels` takes 2 * (MOST_COLUMNS / 2 + 4) * SUMS, slightly less */
    runs r;
    slide_case *of_case;
    int32_t co = 0;
    /* more weights a channel than the copy holds, or positions too far apart: in plain loops */
    if (!find_runs(j, &r) || r.vectors * 16 * CHANNELS * (j->w_low ? 2 : 1) > COPY || j->out_pix > 8191) {
        fmpq_kernels_scalar.igemm(j);
        return;
    }
    of_case = slides(j, &r);
    if (flip)
        flip_bytes(j->a + r.of[0].at, input_bytes(j, &r));
    if (of_case)
        co = sliding(j, &r, of_case, copy, sums);
    for (int32_t n; co < j->co; co += n) {
        n = j->co - co;
        n = n == 4 ? 2 : min32(n, CHANNELS);
        channels(j, &r, copy, sums, co, n);
    }
    if (flip)
        flip_bytes(j->a + r.of[0].at, input_bytes(j, &r));
}

static int available(void)
{
    return 1;
}

const fmpq_kernels fmpq_kernels_mve = {
    .name = "mve", .available = available, .igemm = igemm, .dw = dw, .stats = stats, .norm = norm, .act = act, .reduce = reduce,
    .bn_back = bn_back, .merge = merge, .max16 = max16, .quant = quant, .bias = bias, .scale = scale, .apply = apply, .planar = planar,
    .interleave = interleave, .unpack = unpack, .pack = pack, .terms = terms, .deal = deal, .quads = quads,
    .column = column};
