/* The matrix unit of newer x86 server processors (AMX): int8 products of tiles of 16 rows of 64 bytes. */
#ifndef FMPQ_AMX_H
#define FMPQ_AMX_H
#include "../kernels.h"

int fmpq_cpu_amx(void);
void fmpq_igemm_amx(const fmpq_igemm *j);
void fmpq_dw_amx(const fmpq_dw *j);
#endif
