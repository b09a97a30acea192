/* The kernel tables this build knows, and the one in use. */
#include "kernels.h"
#include <string.h>

#if defined(__x86_64__) && defined(FMPQ_X86_KERNELS)
extern const fmpq_kernels fmpq_kernels_avx2, fmpq_kernels_avx512vnni;
#if defined(FMPQ_AVXVNNI_KERNELS)
extern const fmpq_kernels fmpq_kernels_avxvnni;
#endif
#if defined(FMPQ_AMX_KERNELS)
extern const fmpq_kernels fmpq_kernels_amx;
#endif
#endif
#if defined(FMPQ_NEON_KERNELS)
extern const fmpq_kernels fmpq_kernels_neon;
#if defined(__aarch64__)
extern const fmpq_kernels fmpq_kernels_neondot, fmpq_kernels_neoni8mm;
#endif
#endif
#if defined(FMPQ_DSP_KERNELS)
extern const fmpq_kernels fmpq_kernels_dsp;
#endif
#if defined(FMPQ_MVE_KERNELS)
extern const fmpq_kernels fmpq_kernels_mve;
#endif

/* slowest first */
static const fmpq_kernels *const tables[] = {
    &fmpq_kernels_scalar,
#if defined(FMPQ_NEON_KERNELS)
    &fmpq_kernels_neon,
#if defined(__aarch64__)
    &fmpq_kernels_neondot,
    &fmpq_kernels_neoni8mm,
#endif
#endif
#if defined(FMPQ_DSP_KERNELS)
    &fmpq_kernels_dsp,
#endif
#if defined(FMPQ_MVE_KERNELS)
    &fmpq_kernels_mve,
#endif
#if defined(__x86_64__) && defined(FMPQ_X86_KERNELS)
    &fmpq_kernels_avx2,
#if defined(FMPQ_AVXVNNI_KERNELS)
    &fmpq_kernels_avxvnni,
#endif
    &fmpq_kernels_avx512vnni,
#if defined(FMPQ_AMX_KERNELS)
    &fmpq_kernels_amx,
#endif
#endif
};

#define TABLES (sizeof(tables) / sizeof(tables[0]))

static const fmpq_kernels *chosen;

const fmpq_kernels *fmpq_kernels_table(unsigned index)
{
    return index < TABLES ? tables[index] : NULL;
}

const fmpq_kernels *fmpq_kernels_get(void)
{
    if (!chosen)
        fmpq_set_isa(NULL);
    return chosen;
}

const char *fmpq_isa(void)
{
    return fmpq_kernels_get()->name;
}

const char *fmpq_isa_name(unsigned index)
{
    return index < TABLES ? tables[index]->name : NULL;
}

int fmpq_isa_available(const char *name)
{
    for (unsigned i = 0; name && i < TABLES; i++)
        if (!strcmp(name, tables[i]->name))
            return tables[i]->available();
    return 0;
}

/* Sessions made afterwards use it. */
int fmpq_set_isa(const char *name)
{
    for (unsigned i = TABLES; i-- > 0;)
        if ((!name || !strcmp(name, tables[i]->name)) && tables[i]->available()) {
            chosen = tables[i];
            return FMPQ_OK;
        }
    return FMPQ_E_ISA;
}
