#define _POSIX_C_SOURCE 200809L
#include "memory_linux.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define UNLIMITED ((uint64_t)1 << 60) /* how cgroup v1 spells "none" */

/* "Name:  123 kB" in bytes */
static uint64_t field(const char *path, const char *name)
{
    char line[256];
    uint64_t found = 0;
    const size_t n = strlen(name);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof(line), f))
        if (!strncmp(line, name, n) && line[n] == ':')
            found = strtoull(line + n + 1, NULL, 10) * 1024;
    if (f)
        fclose(f);
    return found;
}

static uint64_t limit_in(const char *folder, const char *path, size_t len, const char *name)
{
    char file[1024], text[64] = "";
    uint64_t limit = 0;
    FILE *f;
    if (len + strlen(folder) + strlen(name) + 2 > sizeof(file))
        return 0;
    snprintf(file, sizeof(file), "%s%.*s/%s", folder, (int)len, path, name);
    f = fopen(file, "r");
    if (f) {
        if (fgets(text, sizeof(text), f) && text[0] >= '0' && text[0] <= '9')
            limit = strtoull(text, NULL, 10);
        fclose(f);
    }
    return limit < UNLIMITED ? limit : 0;
}

/* the smallest limit from `path` up to the root of the hierarchy */
static uint64_t tightest(const char *folder, const char *path, const char *name)
{
    uint64_t best = 0;
    size_t len = strlen(path);
    for (;;) {
        const uint64_t limit = limit_in(folder, path, len, name);
        if (limit && (!best || limit < best))
            best = limit;
        if (!len)
            return best;
        while (len && path[--len] != '/')
            ;
    }
}

static uint64_t cgroup(void)
{
    char line[1024];
    uint64_t best = 0;
    FILE *f = fopen("/proc/self/cgroup", "r");
    while (f && fgets(line, sizeof(line), f)) {
        char *kind = strchr(line, ':'), *path = kind ? strchr(kind + 1, ':') : NULL;
        uint64_t limit = 0;
        if (!path)
            continue;
        *path++ = 0;
        path[strcspn(path, "\n")] = 0;
        if (!kind[1])
            limit = tightest("/sys/fs/cgroup", path, "memory.max");
        else if (strstr(kind, "memory"))
            limit = tightest("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes");
        if (limit && (!best || limit < best))
            best = limit;
    }
    if (f)
        fclose(f);
    return best;
}

/* 1/16 of a limit, at least 4 MiB, stays for everything but the arena */
static uint64_t less_reserve(uint64_t limit, uint64_t held)
{
    const uint64_t sixteenth = limit / 16, reserve = sixteenth > 4194304u ? sixteenth : 4194304u;
    return limit > held + reserve ? limit - held - reserve : 0;
}

void fmpq_measure_memory(fmpq_system_memory *m)
{
    struct rlimit space;
    uint64_t other;
    memset(m, 0, sizeof(*m));
    m->ram = field("/proc/meminfo", "MemTotal");
    m->available = field("/proc/meminfo", "MemAvailable");
    m->resident = field("/proc/self/status", "VmRSS");
    m->peak = field("/proc/self/status", "VmHWM");
    m->cgroup = cgroup();
    m->budget = less_reserve(m->available, 0);
    m->source = "available";
    other = less_reserve(m->cgroup, m->resident);
    if (m->cgroup && other < m->budget) {
        m->budget = other;
        m->source = "cgroup";
    }
    if (getrlimit(RLIMIT_AS, &space) || space.rlim_cur == RLIM_INFINITY)
        return;
    other = less_reserve(space.rlim_cur, field("/proc/self/status", "VmSize"));
    if (other < m->budget) {
        m->budget = other;
        m->source = "address-space";
    }
}
