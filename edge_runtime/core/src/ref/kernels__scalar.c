/* The scalar kernels: they define every other variant. */
#define SUFFIX scalar
#include "../elementwise.inc"

static void igemm(const fmpq_igemm *j)
{
    for (int32_t y = 0; y < j->rows; y++)
        for (int32_t x = 0; x < j->cols; x++)
            for (int32_t co = 0; co < j->co; co++) {
                const uint8_t *a = j->a + y * j->a_row + x * j->a_pix;
                uint32_t high = 0, low = 0; /* modulo 2^32, as instructions count: only the whole sum has to fit an int32 */
                int32_t acc;
                for (int32_t t = 0; t < j->taps; t++)
                    for (int32_t c = 0; c < j->c4 * 4; c++) {
                        const int32_t at = ((t * j->c4 + c / 4) * j->cop + co) * 4 + c % 4;
                        high += (uint32_t)(a[j->tap_off[t] + c] * j->w[at]);
                        if (j->w_low)
                            low += (uint32_t)(a[j->tap_off[t] + c] * j->w_low[at]);
                    }
                acc = (int32_t)((j->w_low ? 2 * high + low : high) + (uint32_t)j->corr[co]);
                j->out[y * j->out_row + x * j->out_pix + co] = (int16_t)fmpq_clamp64(fmpq_reven64(acc, j->shift), -32767, 32767);
            }
}

static void dw(const fmpq_dw *j)
{
    for (int32_t cb = j->cb0; cb < j->cb1; cb++)
        for (int32_t t = 0; t < j->taps; t++)
            for (int32_t ci = 0; ci < j->ci; ci++) {
                int32_t *g = j->g + (((cb - j->cb0) * j->taps + t) * j->ci + ci) * 16;
                for (int32_t y = 0; y < j->rows; y++)
                    for (int32_t x = 0; x < j->cols4; x++) {
                        const uint8_t *a = j->a + ci * j->plane + y * j->a_row + j->tap_off[t] + 4 * x;
                        const int8_t *e = j->e + ((y * j->cols4 + x) * j->cop + cb * 16) * 4;
                        for (int32_t i = 0; i < 16; i++)
                            g[i] += a[0] * e[4 * i] + a[1] * e[4 * i + 1] + a[2] * e[4 * i + 2] + a[3] * e[4 * i + 3];
                    }
            }
}

static int always(void)
{
    return 1;
}

const fmpq_kernels fmpq_kernels_scalar = {.name = "scalar", .available = always, .igemm = igemm, .dw = dw, ELEMENTWISE_TABLE};
