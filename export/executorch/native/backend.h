// What the backend library offers besides the ExecuTorch backend that it registers when it is loaded.
#ifndef FEDMPQ_EXECUTORCH_BACKEND_H
#define FEDMPQ_EXECUTORCH_BACKEND_H

#include <stdint.h>

#define FEDMPQ_EXECUTORCH_BACKEND "FedmpqBackend"
#define FEDMPQ_EXECUTORCH_ARTIFACT "fmpq.artifact" /* key of the artifact among the program's named data */
#define FEDMPQ_EXECUTORCH_VERSION 1                 /* of the delegates' blobs */

#ifdef __cplusplus
extern "C" {
#endif

/* The sentence behind the last error that this thread got from the backend; "" if there was none. */
__attribute__((visibility("default"))) const char *fedmpq_executorch_error(void);
/* Bytes that arenas of programs this thread loads from now on may take; 0 for any. */
__attribute__((visibility("default"))) void fedmpq_executorch_limit(uint64_t bytes);
/* Version of the integer core inside. */
__attribute__((visibility("default"))) const char *fedmpq_executorch_core(void);
/* Chooses the core's kernels, as fmpq_set_isa; null: the best. 0 if available. */
__attribute__((visibility("default"))) int fedmpq_executorch_isa(const char *name);

#ifdef __cplusplus
}
#endif
#endif
