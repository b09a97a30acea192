/* Artifacts: the reader of docs/artifact.md and the loading of what it accepts. Hashes are put right first, so that a
 * changed byte reaches the code behind them; a quarter of the inputs keeps its wrong hashes. */
#include "../../edge_runtime/core/port/artifact.h"
#include "../../edge_runtime/core/port/sha256.h"
#include <stdlib.h>
#include <string.h>

enum { MOST_ARENA = 1 << 20 };

static uint64_t little(const uint8_t *p, int n)
{
    uint64_t v = 0;
    while (n--)
        v = v << 8 | p[n];
    return v;
}

static void put_hex(uint8_t *d, size_t at, size_t len, const char *key, const uint8_t hash[32])
{
    const size_t n = strlen(key);
    char hex[65];
    fmpq_hex(hash, 32, hex);
    for (size_t i = at; i + n + 64 <= at + len; i++)
        if (!memcmp(d + i, key, n))
            memcpy(d + i + n, hex, 64);
}

static void mend(uint8_t *d, size_t len)
{
    static const char *names[] = {"program", "weights", "plan"};
    uint64_t at[16], n[16];
    uint8_t hash[32];
    fmpq_sha256 sha;
    if (len < 64)
        return;
    const uint32_t count = (uint32_t)little(d + 10, 2);
    if (!count || count > 16 || len < 64 + 64 * (size_t)count)
        return;
    for (uint32_t i = 0; i < count; i++) {
        at[i] = little(d + 64 + 64 * i + 8, 8), n[i] = little(d + 64 + 64 * i + 16, 8);
        if (at[i] > len || n[i] > len - at[i])
            n[i] = at[i] = 0;
    }
    for (uint32_t m = 0; m < count; m++)
        if (!memcmp(d + 64 + 64 * m, "manifest", 8))
            for (uint32_t i = 0; i < count; i++)
                for (int k = 0; k < 3; k++) {
                    char key[16] = "\"";
                    if (memcmp(d + 64 + 64 * i, names[k], strlen(names[k])))
                        continue;
                    strcat(strcat(key, names[k]), "\":\"");
                    fmpq_sha256_of(d + at[i], (size_t)n[i], hash);
                    put_hex(d, (size_t)at[m], (size_t)n[m], key, hash);
                }
    for (uint32_t i = 0; i < count; i++)
        fmpq_sha256_of(d + at[i], (size_t)n[i], d + 64 + 64 * i + 24);
    fmpq_sha256_init(&sha);
    fmpq_sha256_add(&sha, d, 24);
    fmpq_sha256_add(&sha, d + 64, 64 * (size_t)count);
    fmpq_sha256_end(&sha, d + 24);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static fmpq_artifact a;
    uint8_t *copy;
    if (!size)
        return 0;
    copy = malloc(size); /* exactly, so that a byte too many is seen */
    memcpy(copy, data, size);
    if (data[size - 1] % 4)
        mend(copy, size);
    if (fmpq_artifact_open(copy, size, &a) == FMPQ_OK) {
        void *scratch = malloc(fmpq_plan_scratch());
        fmpq_memory memory;
        a.plan.threads = 1;
        if (fmpq_plan_memory(&a.parsed, &a.plan, scratch, &memory, 0, 0) == FMPQ_OK && memory.total <= MOST_ARENA) {
            void *arena = aligned_alloc(FMPQ_ALIGN, (size_t)(memory.total + FMPQ_ALIGN - 1) / FMPQ_ALIGN * FMPQ_ALIGN);
            fmpq_session *s;
            if (fmpq_init(&a.parsed, &a.plan, arena, (size_t)memory.total, scratch, &s) == FMPQ_OK && fmpq_artifact_load(&a, s) == FMPQ_OK) {
                uint8_t *out = malloc(size);
                memcpy(out, copy, size);
                if (fmpq_artifact_store(&a, s, out) == FMPQ_OK && fmpq_artifact_open(out, size, &a) != FMPQ_OK)
                    abort(); /* what was written is not readable */
                free(out);
            }
            free(arena);
        }
        free(scratch);
    }
    free(copy);
    return 0;
}
