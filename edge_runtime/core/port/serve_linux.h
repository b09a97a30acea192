/* fedmpq-edge serve: the serial protocol on standard input and output, so that a Linux device without Python joins through a gateway. */
#ifndef FMPQ_SERVE_LINUX_H
#define FMPQ_SERVE_LINUX_H
#include "shard.h"

/* Serves until the input ends. limit: bytes for everything in the arena; shard: images of the device's own, or null. 0, or -1 with errno
 * set. */
int fmpq_serve(const char *name, uint64_t limit, const fmpq_shard *shard);
#endif
