/* A thread pool for hosts with POSIX threads (core/port). Not part of the core: it allocates. */
#ifndef FMPQ_POOL_H
#define FMPQ_POOL_H
#include "fmpq.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fmpq_threads fmpq_threads;

FMPQ_API fmpq_threads *fmpq_threads_new(uint32_t n); /* the caller is worker 0; n - 1 threads are started */
FMPQ_API void fmpq_threads_free(fmpq_threads *p);
FMPQ_API void fmpq_threads_attach(fmpq_threads *p, fmpq_session *s);

#ifdef __cplusplus
}
#endif
#endif
