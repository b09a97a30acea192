/* A device's labelled images (docs/data.md), checked in place in memory. */
#ifndef FMPQ_SHARD_H
#define FMPQ_SHARD_H
#include <fmpq/fmpq.h>

typedef struct fmpq_shard {
    uint32_t count, height, width, channels, classes;
    size_t image_bytes;
    const uint8_t *labels; /* u16 little-endian */
    const uint8_t *images; /* u8 NHWC */
} fmpq_shard;

/* 0 or a code of artifact_errors.inc; `data` must stay in place */
int fmpq_shard_open(const void *data, size_t len, fmpq_shard *out);
int fmpq_shard_fits(const fmpq_shard *s, const fmpq_program *p);

const uint8_t *fmpq_shard_hash(const fmpq_shard *s); /* SHA-256 of the file, 32 bytes */

/* The order of samples in an epoch: edge_runtime/sampling.py. order: count values. */
void fmpq_shard_order(uint32_t count, fmpq_key key_with_epoch_as_step, uint32_t *order);
/* Copies `n` samples. */
void fmpq_shard_gather(const fmpq_shard *s, const uint32_t *indices, uint32_t n, uint8_t *images, uint16_t *labels);
#endif
