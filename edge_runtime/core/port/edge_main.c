/* fedmpq-edge: the core as one static program for devices without Python. Standard output holds results, standard error the rest. */
#define _DEFAULT_SOURCE
#include "artifact.h"
#include "boot_linux.h"
#include "golden.h"
#include "memory_linux.h"
#include "serve_linux.h"
#include "sha256.h"
#include "shard.h"
#include <errno.h>
#include <fmpq/pool.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const char usage[] =
    "usage: fedmpq-edge COMMAND ...\n"
    "  selftest [CASE...] [--isa NAME] [--threads N]   fixed trainings; prints the SHA-256 of their final states\n"
    "  profile [ARTIFACT] [--limit BYTES] [--threads N] [--batch N]\n"
    "                                                  what this device has; what the artifact takes at 1..8 bits,\n"
    "                                                  planned, and measured by a step in a process of its own\n"
    "  inspect ARTIFACT                                checks a file and prints its plan\n"
    "  train ARTIFACT SHARD [--epochs N] [--lr R] [--decay R] [--momentum R] [--seed N] [--limit BYTES]\n"
    "        [--batch N] [--threads N] [--isa NAME] [--out FILE]\n"
    "                                                  trains and prints a line for each epoch\n"
    "  serve [SHARD] [--limit BYTES] [--isa NAME]      a gateway trains here, over standard input and output, on\n"
    "                                                  its images or on those in SHARD\n"
    "  hash FILE                                       SHA-256 of a file\n"
    "As process 1 it runs the command lines in " FMPQ_BOOT_COMMANDS " and switches the system off.\n"
    "exit codes: 0 done, 2 wrong usage, 5 malformed file, 7 memory too small, 8 integer core, 1 anything else\n"
    "example: fedmpq-edge train resnet8.fmpq client-0.shard --epochs 2 --out trained.fmpq\n";

static int fail(int exit_code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("fedmpq-edge: error: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    return exit_code;
}

static int fail_core(const char *what, int code)
{
    const int exit_code = (code >= 20 && code < 40) || (code >= 60 && code < 80) || code >= 100 ? 5 : code == FMPQ_E_ARENA ? 7 : 8;
    return fail(exit_code, "%s: %s [%s]", what, fmpq_port_error_text(code), fmpq_port_error_name(code));
}

/* ---- options ------------------------------------------------------------------------------------------------ */

typedef struct options {
    const char *words[64];
    int n_words;
    const char *isa, *out;
    uint64_t threads, epochs, seed, limit, batch;
    double lr, decay, momentum;
} options;

static int whole(const char *text, uint64_t low, uint64_t high, uint64_t *out)
{
    char *end;
    errno = 0;
    *out = strtoull(text, &end, 10);
    return *text >= '0' && *text <= '9' && !*end && !errno && *out >= low && *out <= high;
}

static int rate(const char *text, double high, double *out)
{
    char *end;
    *out = strtod(text, &end);
    return *text && !*end && *out >= 0 && *out <= high; /* false for NaN, too */
}

static int parse(int argc, char **argv, options *o)
{
    memset(o, 0, sizeof(*o));
    o->epochs = 1;
    o->lr = 0.1;
    o->decay = 5e-4;
    o->momentum = 0.9;
    for (int i = 2; i < argc; i++) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        int good;
        if (strncmp(name, "--", 2)) {
            if (o->n_words == 64)
                return fail(2, "too many arguments");
            o->words[o->n_words++] = name;
            continue;
        }
        i++;
        if (!strcmp(name, "--isa"))
            good = *(o->isa = value) != 0;
        else if (!strcmp(name, "--out"))
            good = *(o->out = value) != 0;
        else if (!strcmp(name, "--threads"))
            good = whole(value, 1, 64, &o->threads);
        else if (!strcmp(name, "--epochs"))
            good = whole(value, 1, 1000000, &o->epochs);
        else if (!strcmp(name, "--batch"))
            good = whole(value, 1, 4096, &o->batch);
        else if (!strcmp(name, "--seed"))
            good = whole(value, 0, 0xffffffffu, &o->seed);
        else if (!strcmp(name, "--limit"))
            good = whole(value, 1, (uint64_t)1 << 48, &o->limit);
        else if (!strcmp(name, "--lr"))
            good = rate(value, 1e6, &o->lr);
        else if (!strcmp(name, "--decay"))
            good = rate(value, 1e3, &o->decay);
        else if (!strcmp(name, "--momentum"))
            good = rate(value, 0.99996, &o->momentum);
        else
            return fail(2, "there is no option %s", name);
        if (!good)
            return fail(2, "%s cannot be '%s'", name, value);
    }
    if (o->isa && fmpq_set_isa(o->isa)) {
        fprintf(stderr, "fedmpq-edge: instruction sets here:");
        for (unsigned i = 0; fmpq_isa_name(i); i++)
            if (fmpq_isa_available(fmpq_isa_name(i)))
                fprintf(stderr, " %s", fmpq_isa_name(i));
        fputc('\n', stderr);
        return fail(8, "instruction set %s is not available", o->isa);
    }
    return 0;
}

/* a host's number as m * 2^e, truncated to 31 bits as edge_runtime.core.fx does */
static fmpq_fx from_double(double v)
{
    fmpq_fx r = {0, 0};
    int e;
    if (v > 0) {
        r.m = (uint32_t)ldexp(frexp(v, &e), 31);
        r.e = e - 31;
    }
    return r;
}

/* ---- files and arenas --------------------------------------------------------------------------------------- */

typedef struct file {
    const uint8_t *data;
    size_t len;
} file;

static int map(const char *path, file *f)
{
    struct stat st;
    void *at;
    const int fd = open(path, O_RDONLY);
    if (fd < 0)
        return fail(5, "%s: %s", path, strerror(errno));
    if (fstat(fd, &st) || !S_ISREG(st.st_mode) || !st.st_size) {
        close(fd);
        return fail(5, "%s: not a file with contents", path);
    }
    at = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (at == MAP_FAILED)
        return fail(1, "%s: %s", path, strerror(errno));
    f->data = at;
    f->len = (size_t)st.st_size;
    return 0;
}

typedef struct arena {
    fmpq_session *session;
    fmpq_threads *threads;
    uint8_t *memory;
    uint64_t planned, state;
} arena;

static void close_arena(arena *a)
{
    fmpq_threads_free(a->threads);
    if (a->memory)
        munmap(a->memory, (size_t)a->planned);
    memset(a, 0, sizeof(*a));
}

/* A session in exactly the planned bytes, touched at once: what cannot be had is refused here and not in the middle of a step.
 * Without a limit the memory measured is one, less `beside`: what the caller will take for a batch. */
static int open_arena(const fmpq_program *p, const fmpq_plan *plan, uint64_t limit, uint64_t beside, arena *a)
{
    fmpq_memory mem;
    fmpq_system_memory now;
    void *scratch = aligned_alloc(64, (fmpq_plan_scratch() + 63) / 64 * 64), *at;
    int err;
    memset(a, 0, sizeof(*a));
    if (!scratch)
        return fail(7, "no memory for the planner's %zu bytes", fmpq_plan_scratch());
    err = fmpq_plan_memory(p, plan, scratch, &mem, NULL, 0);
    if (err) {
        free(scratch);
        return fail_core("plan", err);
    }
    fmpq_measure_memory(&now);
    if (!limit)
        limit = now.budget > beside ? now.budget - beside : 0;
    a->planned = mem.total;
    a->state = mem.state;
    if (mem.total > limit) {
        free(scratch);
        return fail(7, "the plan takes %" PRIu64 " bytes but %" PRIu64 " are allowed, %" PRIu64 " too few", mem.total, limit, mem.total - limit);
    }
    at = mmap(NULL, (size_t)mem.total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) {
        free(scratch);
        return fail(7, "the system has no %" PRIu64 " bytes for the arena", mem.total);
    }
    a->memory = at;
    memset(at, 0, (size_t)mem.total);
    err = fmpq_init(p, plan, at, (size_t)mem.total, scratch, &a->session);
    free(scratch);
    if (err)
        return fail_core("session", err);
    if (plan->threads > 1) {
        a->threads = fmpq_threads_new(plan->threads);
        if (!a->threads)
            return fail(1, "cannot start %u threads", plan->threads);
        fmpq_threads_attach(a->threads, a->session);
    }
    return 0;
}

/* ---- selftest ----------------------------------------------------------------------------------------------- */

static int golden(const fmpq_golden *g, uint32_t threads)
{
    static uint8_t bytes[FMPQ_GOLDEN_PROGRAM], images[4 * FMPQ_GOLDEN_PIXELS];
    static uint16_t labels[4];
    static fmpq_program program;
    fmpq_golden_result r;
    fmpq_plan plan;
    arena a;
    char hex[3][65];
    uint8_t *scratch;
    const size_t len = fmpq_golden_program(g, bytes);
    int err = fmpq_program_parse(bytes, len, &program);
    if (err)
        return fail_core(g->name, err);
    memset(&r, 0, sizeof(r));
    fmpq_sha256_of(bytes, len, r.program);
    fmpq_golden_plan(g, &program, threads, &plan);
    err = open_arena(&program, &plan, UINT64_MAX, 0, &a);
    if (err)
        return err;
    scratch = malloc(fmpq_golden_scratch(&program));
    err = scratch ? fmpq_golden_run(g, &program, a.session, scratch, images, labels, &r) : FMPQ_E_ARENA;
    free(scratch);
    if (!err) {
        fmpq_hex(r.program, 32, hex[0]);
        fmpq_hex(r.start, 32, hex[1]);
        fmpq_hex(r.state, 32, hex[2]);
        printf("%s isa=%s program=%s start=%s state=%s loss_q16=%" PRId64 " correct=%u eval_loss_q16=%" PRId64 " arena=%" PRIu64 "\n", g->name,
               fmpq_isa(), hex[0], hex[1], hex[2], r.loss_q16, r.correct, r.eval_loss_q16, a.planned);
        fflush(stdout);
    }
    close_arena(&a);
    return err ? fail_core(g->name, err) : 0;
}

static int selftest(const options *o)
{
    const uint32_t threads = o->threads ? (uint32_t)o->threads : 1;
    for (int i = 0; i < o->n_words; i++)
        if (!fmpq_golden_find(o->words[i])) {
            fprintf(stderr, "fedmpq-edge: cases:");
            for (unsigned k = 0; k < fmpq_golden_count; k++)
                fprintf(stderr, " %s", fmpq_goldens[k].name);
            fputc('\n', stderr);
            return fail(2, "there is no case %s", o->words[i]);
        }
    for (unsigned k = 0; k < (o->n_words ? (unsigned)o->n_words : fmpq_golden_count); k++) {
        const int err = golden(o->n_words ? fmpq_golden_find(o->words[k]) : &fmpq_goldens[k], threads);
        if (err)
            return err;
    }
    return 0;
}

/* ---- artifacts ---------------------------------------------------------------------------------------------- */

static int open_artifact(const char *path, const options *o, file *f, fmpq_artifact *a)
{
    int err = map(path, f);
    if (err)
        return err;
    err = fmpq_artifact_open(f->data, f->len, a);
    if (err)
        return fail_core(path, err);
    if (o->threads)
        a->plan.threads = (uint8_t)o->threads;
    if (o->batch) {
        a->batch = a->plan.batch = (uint32_t)o->batch;
        a->plan.accumulate = 0;
    }
    return 0;
}

static void print_plan(const fmpq_artifact *a)
{
    uint8_t hash[32];
    char hex[65];
    fmpq_sha256_of(a->data + a->program, a->program_len, hash);
    fmpq_hex(hash, 32, hex);
    printf("\"program\":\"%s\",\"bits\":[", hex);
    for (uint32_t i = 0; i < a->n_layers; i++)
        printf("%s%u", i ? "," : "", a->layer[i].bits);
    printf("],\"batch\":%u,\"micro_batch\":%u,\"act_bits\":%u,\"guard\":%u,\"momentum\":%s,\"threads\":%u", a->batch, a->plan.batch,
           a->plan.act_bits, a->plan.guard, a->plan.momentum ? "true" : "false", a->plan.threads);
}

static int planned(const fmpq_program *p, const fmpq_plan *plan, uint64_t *bytes)
{
    fmpq_memory mem;
    void *scratch = aligned_alloc(64, (fmpq_plan_scratch() + 63) / 64 * 64);
    const int err = scratch ? fmpq_plan_memory(p, plan, scratch, &mem, NULL, 0) : FMPQ_E_ARENA;
    free(scratch);
    *bytes = err ? 0 : mem.total;
    return err;
}

static int inspect(const options *o)
{
    static fmpq_artifact a;
    file f;
    uint64_t bytes;
    int err;
    if (o->n_words != 1)
        return fail(2, "inspect takes one artifact");
    err = open_artifact(o->words[0], o, &f, &a);
    if (err)
        return err;
    err = planned(&a.parsed, &a.plan, &bytes);
    if (err)
        return fail_core("plan", err);
    printf("{");
    print_plan(&a);
    printf(",\"planned_bytes\":%" PRIu64 "}\n", bytes);
    return 0;
}

/* One step on a grey batch with zero weights, in a process of its own: its peak of resident memory, 0 where it did not end well. */
static uint64_t trial(const fmpq_program *p, const fmpq_plan *plan, uint64_t limit)
{
    const size_t pixels = (size_t)p->in_h * p->in_w * p->in_c;
    uint64_t peak = 0;
    int ends[2], status;
    pid_t child;
    if (pipe(ends))
        return 0;
    fflush(stdout);
    child = fork();
    if (!child) {
        uint8_t *images = malloc(plan->batch * pixels);
        uint16_t *labels = calloc(plan->batch, sizeof(*labels));
        const fmpq_key key = {0, 0, 0, 0};
        fmpq_system_memory now;
        fmpq_stats stats;
        fmpq_hyper h;
        arena a;
        memset(&h, 0, sizeof(h));
        h.lr = from_double(0.1);
        if (!images || !labels || open_arena(p, plan, limit, 0, &a))
            _exit(7);
        memset(images, 128, plan->batch * pixels);
        if (fmpq_step(a.session, images, labels, plan->batch, &h, key, &stats))
            _exit(8);
        fmpq_measure_memory(&now);
        _exit(write(ends[1], &now.peak, sizeof(now.peak)) != sizeof(now.peak));
    }
    close(ends[1]);
    if (child > 0 && read(ends[0], &peak, sizeof(peak)) != sizeof(peak))
        peak = 0;
    close(ends[0]);
    if (child > 0)
        waitpid(child, &status, 0);
    return peak;
}

static void print_size(const fmpq_artifact *a, const fmpq_plan *plan, unsigned n, uint64_t bytes, uint64_t budget)
{
    const uint64_t peak = bytes <= budget ? trial(&a->parsed, plan, budget) : 0;
    printf("%s{\"bits\":%u,\"planned_bytes\":%" PRIu64 ",\"fits\":%s,\"peak_bytes\":", n > 1 ? "," : "", n, bytes, peak ? "true" : "false");
    if (peak)
        printf("%" PRIu64 "}", peak);
    else
        printf("null}");
}

static int profile(const options *o)
{
    static fmpq_artifact a;
    fmpq_system_memory m;
    const char *separator = "";
    file f;
    if (o->n_words > 1)
        return fail(2, "profile takes at most one artifact");
    if (o->n_words) {
        const int err = open_artifact(o->words[0], o, &f, &a);
        if (err)
            return err;
    }
    fmpq_measure_memory(&m);
    if (o->limit) {
        m.budget = o->limit;
        m.source = "option";
    }
    printf("{\"version\":\"%s\",\"isa\":\"%s\",\"isas\":[", fmpq_version(), fmpq_isa());
    for (unsigned i = 0; fmpq_isa_name(i); i++)
        if (fmpq_isa_available(fmpq_isa_name(i))) {
            printf("%s\"%s\"", separator, fmpq_isa_name(i));
            separator = ",";
        }
    printf("],\"cpus\":%ld,\"ram_bytes\":%" PRIu64 ",\"available_bytes\":%" PRIu64 ",\"cgroup_bytes\":%" PRIu64 ",\"budget_bytes\":%" PRIu64
           ",\"limit_source\":\"%s\"",
           sysconf(_SC_NPROCESSORS_ONLN), m.ram, m.available, m.cgroup, m.budget, m.source);
    if (o->n_words) {
        printf(",");
        print_plan(&a);
        printf(",\"plans\":[");
        for (unsigned n = 1; n <= 8; n++) {
            fmpq_plan plan = a.plan;
            uint64_t bytes;
            for (uint32_t i = 0; i < a.n_layers; i++)
                plan.bits[a.layer[i].record] = (uint8_t)n;
            if (planned(&a.parsed, &plan, &bytes))
                break;
            print_size(&a, &plan, n, bytes, m.budget);
        }
        printf("]");
    }
    printf("}\n");
    return 0;
}

/* ---- train -------------------------------------------------------------------------------------------------- */

static int write_file(const char *path, const uint8_t *data, size_t len)
{
    char temporary[1024];
    int fd, good;
    if (snprintf(temporary, sizeof(temporary), "%s.part", path) >= (int)sizeof(temporary))
        return fail(2, "the path %.40s... is too long", path);
    fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0)
        return fail(1, "%s: %s", temporary, strerror(errno));
    good = 1;
    for (size_t at = 0; at < len && good;) {
        const ssize_t n = write(fd, data + at, len - at);
        good = n > 0 || (n < 0 && errno == EINTR);
        at += n > 0 ? (size_t)n : 0;
    }
    good = !fsync(fd) && good; /* a power cut leaves the old file or the new one */
    good = !close(fd) && good;
    good = good && !rename(temporary, path);
    return good ? 0 : fail(1, "%s: %s", path, strerror(errno));
}

static int run_training(const options *o, const fmpq_artifact *a, const fmpq_shard *s, fmpq_session *session)
{
    const uint32_t size = a->batch < s->count ? a->batch : s->count;
    const uint32_t per_epoch = s->count / size, micro = (size + a->plan.batch - 1) / a->plan.batch;
    uint32_t *order = malloc(s->count * sizeof(*order));
    uint8_t *images = malloc(size * s->image_bytes);
    uint16_t *labels = malloc(size * sizeof(*labels));
    fmpq_hyper h;
    int err = order && images && labels ? FMPQ_OK : FMPQ_E_ARENA;
    memset(&h, 0, sizeof(h));
    h.lr = from_double(o->lr);
    h.decay = from_double(o->decay);
    h.momentum_q15 = (int32_t)(o->momentum * 32768 + 0.5);
    for (uint32_t epoch = 0; epoch < o->epochs && !err; epoch++) {
        const fmpq_key shuffle = {(uint32_t)o->seed, 0, 0, epoch};
        int64_t loss = 0;
        uint32_t correct = 0, count = 0;
        fmpq_shard_order(s->count, shuffle, order);
        for (uint32_t step = 0; step < per_epoch && !err; step++) {
            const fmpq_key key = {(uint32_t)o->seed, 0, 0, (epoch * per_epoch + step) * micro};
            fmpq_stats stats;
            fmpq_shard_gather(s, order + (size_t)step * size, size, images, labels);
            err = fmpq_step(session, images, labels, size, &h, key, &stats);
            loss += stats.loss_q16;
            correct += stats.correct;
            count += stats.count;
        }
        if (!err)
            printf("{\"epoch\":%u,\"loss_q16\":%" PRId64 ",\"correct\":%u,\"count\":%u}\n", epoch + 1, loss, correct, count);
        fflush(stdout);
    }
    free(order);
    free(images);
    free(labels);
    return err ? fail_core("training", err) : 0;
}

static int finish(const options *o, const fmpq_artifact *a, const arena *m)
{
    uint8_t *scratch = malloc(fmpq_golden_scratch(&a->parsed)), *copy = malloc(a->len), hash[32];
    fmpq_system_memory now;
    char hex[65];
    int err = scratch && copy ? fmpq_state_hash(m->session, &a->parsed, a->plan.guard, scratch, hash) : FMPQ_E_ARENA;
    if (!err && o->out) {
        memcpy(copy, a->data, a->len);
        err = fmpq_artifact_store(a, m->session, copy);
    }
    if (err)
        err = fail_core("result", err);
    else if (o->out)
        err = write_file(o->out, copy, a->len);
    free(scratch);
    free(copy);
    if (err)
        return err;
    fmpq_hex(hash, 32, hex);
    fmpq_measure_memory(&now);
    printf("{\"state\":\"%s\",\"isa\":\"%s\",\"planned_bytes\":%" PRIu64 ",\"peak_bytes\":%" PRIu64 "}\n", hex, fmpq_isa(), m->planned, now.peak);
    return 0;
}

static int train(const options *o)
{
    static fmpq_artifact a;
    file artifact, images;
    fmpq_shard s;
    arena m;
    int err;
    if (o->n_words != 2)
        return fail(2, "train takes an artifact and a shard");
    err = open_artifact(o->words[0], o, &artifact, &a);
    if (!err)
        err = map(o->words[1], &images);
    if (err)
        return err;
    err = fmpq_shard_open(images.data, images.len, &s);
    if (!err)
        err = fmpq_shard_fits(&s, &a.parsed);
    if (err)
        return fail_core(o->words[1], err);
    err = open_arena(&a.parsed, &a.plan, o->limit, a.batch * (s.image_bytes + sizeof(uint16_t)) + s.count * sizeof(uint32_t), &m);
    if (err)
        return err;
    err = fmpq_artifact_load(&a, m.session);
    err = err ? fail_core(o->words[0], err) : run_training(o, &a, &s, m.session);
    if (!err)
        err = finish(o, &a, &m);
    close_arena(&m);
    return err;
}

static int serve(const options *o)
{
    fmpq_system_memory now;
    fmpq_shard own;
    file images;
    if (o->n_words > 1)
        return fail(2, "serve takes at most one shard");
    if (o->n_words) {
        int err = map(o->words[0], &images);
        if (err)
            return err;
        err = fmpq_shard_open(images.data, images.len, &own);
        if (err)
            return fail_core(o->words[0], err);
    }
    fmpq_measure_memory(&now);
    return fmpq_serve("fedmpq-edge", o->limit ? o->limit : now.budget, o->n_words ? &own : NULL) ? fail(1, "serve: %s", strerror(errno)) : 0;
}

static int hash(const options *o)
{
    uint8_t digest[32];
    char hex[65];
    file f;
    int err;
    if (o->n_words != 1)
        return fail(2, "hash takes one file");
    err = map(o->words[0], &f);
    if (err)
        return err;
    fmpq_sha256_of(f.data, f.len, digest);
    fmpq_hex(digest, 32, hex);
    puts(hex);
    return 0;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(const options *o);
    } commands[] = {{"selftest", selftest}, {"profile", profile}, {"inspect", inspect}, {"train", train}, {"serve", serve}, {"hash", hash}};
    options o;
    int err;
    if (getpid() == 1 && !access(FMPQ_BOOT_COMMANDS, R_OK))
        fmpq_boot(argv[0]);
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
        fputs(usage, argc < 2 ? stderr : stdout);
        return argc < 2 ? 2 : 0;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("fedmpq-edge %s\n", fmpq_version());
        return 0;
    }
    for (unsigned i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (strcmp(argv[1], commands[i].name))
            continue;
        err = parse(argc, argv, &o);
        if (!err)
            err = commands[i].run(&o);
        if (!err && fflush(stdout))
            err = fail(1, "standard output: %s", strerror(errno));
        return err;
    }
    return fail(2, "there is no command %s", argv[1]);
}
