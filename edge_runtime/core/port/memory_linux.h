/* How much memory this process may use on Linux, as edge_runtime/memory.py measures it. */
#ifndef FMPQ_MEMORY_LINUX_H
#define FMPQ_MEMORY_LINUX_H
#include <stdint.h>

typedef struct fmpq_system_memory {
    uint64_t ram, available, resident, peak; /* bytes; MemTotal, MemAvailable, VmRSS, VmHWM */
    uint64_t cgroup;                         /* tightest limit on the way to the root; 0: none */
    uint64_t budget;                         /* what an arena may take */
    const char *source;                      /* which of them the budget comes from */
} fmpq_system_memory;

void fmpq_measure_memory(fmpq_system_memory *m);
#endif
