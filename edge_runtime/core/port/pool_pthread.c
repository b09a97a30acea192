/* A small thread pool for hosts with POSIX threads; the core itself only knows the fmpq_pool callback. */
#define _POSIX_C_SOURCE 200809L
#include <fmpq/pool.h>
#include <pthread.h>
#include <stdlib.h>

typedef void (*task_fn)(void *arg, uint32_t task, uint32_t worker);

struct fmpq_threads {
    pthread_mutex_t lock;
    pthread_cond_t start, done;
    task_fn fn;
    void *arg;
    uint32_t tasks, next, busy, generation, stop, n;
    pthread_t thread[64];
};

struct worker_arg {
    fmpq_threads *pool;
    uint32_t worker;
};

static void work(fmpq_threads *p, uint32_t worker)
{
    for (;;) {
        uint32_t task;
        pthread_mutex_lock(&p->lock);
        task = p->next < p->tasks ? p->next++ : p->tasks;
        pthread_mutex_unlock(&p->lock);
        if (task >= p->tasks)
            return;
        p->fn(p->arg, task, worker);
    }
}

static void *run_worker(void *arg)
{
    struct worker_arg w = *(struct worker_arg *)arg;
    fmpq_threads *p = w.pool;
    uint32_t seen = 0;
    free(arg);
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (p->generation == seen && !p->stop)
            pthread_cond_wait(&p->start, &p->lock);
        if (p->stop)
            break;
        seen = p->generation;
        pthread_mutex_unlock(&p->lock);
        work(p, w.worker);
        pthread_mutex_lock(&p->lock);
        if (--p->busy == 0)
            pthread_cond_signal(&p->done);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static void run(void *ctx, task_fn fn, void *arg, uint32_t tasks)
{
    fmpq_threads *p = ctx;
    pthread_mutex_lock(&p->lock);
    p->fn = fn;
    p->arg = arg;
    p->tasks = tasks;
    p->next = 0;
    p->busy = p->n - 1;
    p->generation++;
    pthread_cond_broadcast(&p->start);
    pthread_mutex_unlock(&p->lock);
    work(p, 0);
    pthread_mutex_lock(&p->lock);
    while (p->busy)
        pthread_cond_wait(&p->done, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

fmpq_threads *fmpq_threads_new(uint32_t n)
{
    fmpq_threads *p;
    if (n < 1 || n > 64)
        return NULL;
    p = calloc(1, sizeof(*p));
    if (!p)
        return NULL;
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
    p->stop = 1;
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
