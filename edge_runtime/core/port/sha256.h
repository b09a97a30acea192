/* SHA-256 (FIPS 180-4), for hashes of states and files on devices without a library for it. */
#ifndef FMPQ_SHA256_H
#define FMPQ_SHA256_H
#include <stddef.h>
#include <stdint.h>

typedef struct fmpq_sha256 {
    uint32_t h[8];
    uint64_t bytes;
    uint8_t block[64];
} fmpq_sha256;

void fmpq_sha256_init(fmpq_sha256 *s);
void fmpq_sha256_add(fmpq_sha256 *s, const void *data, size_t len);
void fmpq_sha256_end(fmpq_sha256 *s, uint8_t out[32]);
void fmpq_sha256_of(const void *data, size_t len, uint8_t out[32]);
void fmpq_hex(const uint8_t *data, size_t len, char *out); /* 2 * len characters and a zero */
#endif
