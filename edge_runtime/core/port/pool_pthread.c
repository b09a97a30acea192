/* A small thread pool for hosts with POSIX threads; the core itself only knows the fmpq_pool callback. */
#define _POSIX_C_SOURCE 200809L
#include <fmpq/pool.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

typedef void (*task_fn)(void *arg, uint32_t task, uint32_t worker);

/* The tasks of one thread: a range that it works off from the front; whoever is done first helps the others. */
struct share {
    _Alignas(64) atomic_uint next; /* a cache line each: the owner counts undisturbed */
    uint32_t end;
};

struct fmpq_threads {
    struct share share[64];
    pthread_mutex_t lock;
    pthread_cond_t start, done;
    task_fn fn;
    void *arg;
    uint32_t n;
    atomic_uint busy, generation, stop;
    int caller_sleeps; /* under the lock */
    pthread_t thread[64];
};

struct worker_arg {
    fmpq_threads *pool;
    uint32_t worker;
};

/* A step hands out work more than a hundred times, a few hundred microseconds each: waking a sleeping thread would take a good part of
 * that, so everybody looks for a while before going to sleep. */
#define LOOKS 4000

static void breathe(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void work(fmpq_threads *p, uint32_t worker)
{
    for (uint32_t i = 0; i < p->n; i++) {
        struct share *s = &p->share[(worker + i) % p->n];
        for (uint32_t task; (task = atomic_fetch_add(&s->next, 1)) < s->end;)
            p->fn(p->arg, task, worker);
    }
}

/* until the next call; 0 to end */
static int wait_for_work(fmpq_threads *p, uint32_t seen)
{
    for (int i = 0; i < LOOKS; i++) {
        if (atomic_load(&p->stop))
            return 0;
        if (atomic_load(&p->generation) != seen)
            return 1;
        breathe();
    }
    pthread_mutex_lock(&p->lock);
    while (atomic_load(&p->generation) == seen && !atomic_load(&p->stop))
        pthread_cond_wait(&p->start, &p->lock);
    pthread_mutex_unlock(&p->lock);
    return !atomic_load(&p->stop);
}

static void *run_worker(void *arg)
{
    struct worker_arg w = *(struct worker_arg *)arg;
    fmpq_threads *p = w.pool;
    uint32_t seen = 0;
    free(arg);
    while (wait_for_work(p, seen)) {
        seen = atomic_load(&p->generation);
        work(p, w.worker);
        if (atomic_fetch_sub(&p->busy, 1) == 1) {
            pthread_mutex_lock(&p->lock);
            if (p->caller_sleeps)
                pthread_cond_signal(&p->done);
            pthread_mutex_unlock(&p->lock);
        }
    }
    return NULL;
}

static void run(void *ctx, task_fn fn, void *arg, uint32_t tasks)
{
    fmpq_threads *p = ctx;
    /* nobody works now: the last call waited for all */
    p->fn = fn;
    p->arg = arg;
    /* A task is a sample, and the same thread gets it in every pass: its tensors are in that core's cache. */
    for (uint32_t i = 0; i < p->n; i++) {
        atomic_store(&p->share[i].next, (uint32_t)((uint64_t)tasks * i / p->n));
        p->share[i].end = (uint32_t)((uint64_t)tasks * (i + 1) / p->n);
    }
    atomic_store(&p->busy, p->n - 1);
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->generation, 1);
    pthread_cond_broadcast(&p->start);
    pthread_mutex_unlock(&p->lock);
    work(p, 0);
    for (int i = 0; i < LOOKS && atomic_load(&p->busy); i++)
        breathe();
    if (!atomic_load(&p->busy))
        return;
    pthread_mutex_lock(&p->lock);
    p->caller_sleeps = 1;
    while (atomic_load(&p->busy))
        pthread_cond_wait(&p->done, &p->lock);
    p->caller_sleeps = 0;
    pthread_mutex_unlock(&p->lock);
}

fmpq_threads *fmpq_threads_new(uint32_t n)
{
    fmpq_threads *p;
    if (n < 1 || n > 64)
        return NULL;
    p = aligned_alloc(64, sizeof(*p));
    if (!p)
        return NULL;
    memset(p, 0, sizeof(*p));
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->start, NULL);
    pthread_cond_init(&p->done, NULL);
    p->n = 1;
    for (uint32_t i = 1; i < n; i++) {
        struct worker_arg *w = malloc(sizeof(*w));
        if (!w)
            break;
        w->pool = p;
        w->worker = i;
        if (pthread_create(&p->thread[i], NULL, run_worker, w)) {
            free(w);
            break;
        }
        p->n++;
    }
    return p;
}

void fmpq_threads_free(fmpq_threads *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->stop, 1);
    pthread_cond_broadcast(&p->start);
    pthread_mutex_unlock(&p->lock);
    for (uint32_t i = 1; i < p->n; i++)
        pthread_join(p->thread[i], NULL);
    pthread_cond_destroy(&p->start);
    pthread_cond_destroy(&p->done);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

void fmpq_threads_attach(fmpq_threads *p, fmpq_session *s)
{
    fmpq_pool pool;
    pool.ctx = p;
    pool.run = run;
    fmpq_set_pool(s, p ? &pool : NULL);
}
