#define _DEFAULT_SOURCE
#include "serve_linux.h"
#include "memory_linux.h"
#include "serial_server.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static fmpq_server server;
static int failed;

static void send_all(const uint8_t *data, size_t len)
{
    while (len && !failed) {
        const ssize_t n = write(STDOUT_FILENO, data, len);
        if (n > 0) {
            data += n;
            len -= (size_t)n;
        } else if (n < 0 && errno != EINTR) {
            failed = errno;
        }
    }
}

static void facts(fmpq_server_facts *out)
{
    fmpq_system_memory now;
    fmpq_measure_memory(&now);
    out->resident_peak = now.peak > UINT32_MAX ? UINT32_MAX : (uint32_t)now.peak;
}

int fmpq_serve(const char *name, uint64_t limit, const fmpq_shard *shard)
{
    uint8_t bytes[4096];
    ssize_t n;
    /* pages are taken as the session first touches them */
    void *arena = mmap(NULL, (size_t)limit, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    void *scratch = aligned_alloc(64, (fmpq_plan_scratch() + 63) / 64 * 64);
    if (arena == MAP_FAILED || !scratch)
        return -1;
    server.board = name;
    server.arena = arena;
    server.limit = (size_t)limit;
    server.shard = shard;
    server.scratch = scratch;
    server.send = send_all;
    server.facts = facts;
    fmpq_server_reset(&server);
    while (!failed && (n = read(STDIN_FILENO, bytes, sizeof(bytes))) != 0) {
        if (n < 0 && errno != EINTR)
            failed = errno;
        for (ssize_t i = 0; i < n; i++)
            fmpq_server_feed(&server, bytes[i]);
    }
    errno = failed;
    return failed ? -1 : 0;
}
