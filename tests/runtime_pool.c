/* runtime_pool.c: drives runtime/pool.c without Python; test_runtime_pool.py builds and runs it.
 *
 *   runtime_pool stress CALLERS ROUNDS THREADS CORES SPIN_NS   many regions from many threads
 *   runtime_pool restart                                       workers end and start under load
 *   runtime_pool fork                                          forks while other threads run
 *   runtime_pool latency THREADS                               prints nanoseconds per region
 *
 * Every check that fails says so and ends the program with status 1.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "pool.h"

#define CHECK(condition)                                                                 \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);    \
            exit(1);                                                                     \
        }                                                                                \
    } while (0)

#define MOST_PIECES 300

/* What one region works on.  `seed` and `hits` are plain memory on purpose: a sanitizer then sees
 * whether run() orders the caller's writes before the pieces and the pieces before its return. */
typedef struct {
    const sparsec_parallel *team;
    int32_t count;
    uint32_t seed;
    uint32_t hits[MOST_PIECES];
    atomic_int busy[SPARSEC_POOL_MAX_THREADS];
    atomic_int at_once;
    atomic_int most_at_once;
    atomic_int by_workers;
} region;

static uint32_t mix(uint32_t x)
{
    x ^= x << 13;
    x ^= x >> 17;
    return x ^ x << 5;
}

static void inner_piece(void *arg, int32_t index, int32_t thread)
{
    int32_t *inner = arg;
    CHECK(thread == inner[0]);
    inner[1] += index + 1;
}

static void piece(void *arg, int32_t index, int32_t thread)
{
    region *r = arg;
    CHECK(index >= 0 && index < r->count);
    CHECK(thread >= 0 && thread < r->team->threads);
    CHECK(atomic_exchange(&r->busy[thread], 1) == 0);
    const int at_once = atomic_fetch_add(&r->at_once, 1) + 1;
    CHECK(at_once <= r->team->threads);
    if (at_once > atomic_load(&r->most_at_once))
        atomic_store(&r->most_at_once, at_once);
    if (thread > 0)
        atomic_fetch_add(&r->by_workers, 1);
    uint32_t x = r->seed + (uint32_t)index;
    for (uint32_t i = 0; i < (r->seed & 127); i++)
        x = mix(x | 1);
    r->hits[index] += 1 + (x == 0);
    if ((r->seed >> 7 & 7) == 0) { /* a nested region runs here, under the same index */
        int32_t inner[2] = {thread, 0};
        r->team->run(r->team, inner_piece, inner, 4);
        CHECK(inner[1] == 10);
    }
    atomic_fetch_sub(&r->at_once, 1);
    atomic_store(&r->busy[thread], 0);
}

/* Runs one region and checks it; returns how many pieces workers did. */
static int one_region(const sparsec_parallel *team, uint32_t seed, int32_t count)
{
    region r;
    memset(&r, 0, sizeof r);
    r.team = team;
    r.count = count;
    r.seed = seed;
    team->run(team, piece, &r, count);
    for (int32_t i = 0; i < MOST_PIECES; i++)
        CHECK(r.hits[i] == (i < count));
    return r.by_workers;
}

typedef struct {
    const sparsec_parallel *team;
    uint32_t seed;
    int rounds;
    atomic_bool *stop;
    long by_workers;
} caller;

static void *call(void *arg)
{
    caller *c = arg;
    uint32_t seed = c->seed;
    sparsec_pool_enter();
    for (int i = 0; c->stop ? !atomic_load(c->stop) : i < c->rounds; i++) {
        seed = mix(seed);
        c->by_workers += one_region(c->team, seed, (int32_t)(seed >> 10) % MOST_PIECES);
        if ((seed & 0x3ff) == 0) /* let workers fall asleep now and then */
            nanosleep(&(struct timespec){0, 300000}, NULL);
    }
    sparsec_pool_leave();
    return NULL;
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void stress(int callers, int rounds, int threads)
{
    pthread_t *handles = calloc((size_t)callers, sizeof *handles);
    caller *all = calloc((size_t)callers, sizeof *all);
    sparsec_parallel teams[3];
    long by_workers = 0;
    for (int i = 0; i < 3; i++) /* engines of different sizes share the pool */
        sparsec_team_init(&teams[i], i == 2 ? 1 : threads - i * (threads / 2));
    for (int i = 0; i < callers; i++) {
        all[i] = (caller){&teams[i % 3], (uint32_t)i * 2654435761u + 1, rounds, NULL, 0};
        CHECK(pthread_create(&handles[i], NULL, call, &all[i]) == 0);
    }
    for (int i = 0; i < callers; i++) {
        CHECK(pthread_join(handles[i], NULL) == 0);
        by_workers += all[i].by_workers;
    }
    CHECK(sparsec_pool_workers() == threads - 1);
    printf("workers did %ld pieces\n", by_workers);
    free(all);
    free(handles);
    sparsec_pool_stop();
    CHECK(sparsec_pool_workers() == 0);
}

static void restart(void)
{
    sparsec_parallel team;
    atomic_bool stop = false;
    pthread_t handles[2];
    caller all[2];
    sparsec_team_init(&team, 4);
    for (int i = 0; i < 2; i++) {
        all[i] = (caller){&team, (uint32_t)i + 7, 0, &stop, 0};
        CHECK(pthread_create(&handles[i], NULL, call, &all[i]) == 0);
    }
    for (int i = 0; i < 50; i++) {
        nanosleep(&(struct timespec){0, 500000}, NULL);
        sparsec_pool_stop();
    }
    atomic_store(&stop, true);
    for (int i = 0; i < 2; i++)
        CHECK(pthread_join(handles[i], NULL) == 0);
    sparsec_pool_stop();
}

static void fork_under_load(void)
{
    sparsec_parallel team;
    atomic_bool stop = false;
    pthread_t handles[2];
    caller all[2];
    sparsec_team_init(&team, 3);
    for (int i = 0; i < 2; i++) {
        all[i] = (caller){&team, (uint32_t)i + 7, 0, &stop, 0};
        CHECK(pthread_create(&handles[i], NULL, call, &all[i]) == 0);
    }
    for (int i = 0; i < 20; i++) {
        const uint32_t before = sparsec_pool_generation();
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            CHECK(sparsec_pool_workers() == 0);
            CHECK(sparsec_pool_generation() == before + 1);
            for (uint32_t k = 1; k < 200; k++)
                one_region(&team, k * 2654435761u, (int32_t)k);
            CHECK(sparsec_pool_workers() == 2);
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        CHECK(sparsec_pool_generation() == before);
    }
    atomic_store(&stop, true);
    for (int i = 0; i < 2; i++)
        CHECK(pthread_join(handles[i], NULL) == 0);
    /* No stop: workers that are still there at the end are no leak and no hang. */
}

static void empty_piece(void *arg, int32_t index, int32_t thread)
{
    (void)arg, (void)index, (void)thread;
}

static void meeting_piece(void *arg, int32_t index, int32_t thread)
{
    /* Returns once all threads are here, so that the region truly forks and joins. */
    atomic_int *arrived = arg;
    (void)index, (void)thread;
    atomic_fetch_add_explicit(&arrived[0], 1, memory_order_acq_rel);
    while (atomic_load_explicit(&arrived[0], memory_order_acquire) < arrived[1])
        ;
}

static int by_value(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void latency(int threads)
{
    enum { REGIONS = 20000 };
    static int64_t times[REGIONS];
    sparsec_parallel team;
    sparsec_team_init(&team, threads);
    sparsec_pool_enter();
    for (int kind = 0; kind < 2; kind++) {
        for (int i = 0; i < REGIONS; i++) {
            atomic_int arrived[2] = {0, threads};
            const int64_t start = now_ns();
            if (kind == 0)
                team.run(&team, empty_piece, NULL, threads);
            else
                team.run(&team, meeting_piece, arrived, threads);
            times[i] = now_ns() - start;
        }
        qsort(times, REGIONS, sizeof *times, by_value);
        printf("%s: median %lld ns, 90 %% below %lld ns, 99 %% below %lld ns\n",
               kind == 0 ? "empty region" : "region that all threads join",
               (long long)times[REGIONS / 2], (long long)times[REGIONS / 10 * 9],
               (long long)times[REGIONS / 100 * 99]);
    }
    sparsec_pool_leave();
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    if (strcmp(mode, "stress") == 0 && argc == 7) {
        sparsec_pool_configure(atoi(argv[5]), atol(argv[6]));
        stress(atoi(argv[2]), atoi(argv[3]), atoi(argv[4]));
    } else if (strcmp(mode, "restart") == 0) {
        sparsec_pool_configure(8, 20000);
        restart();
    } else if (strcmp(mode, "fork") == 0) {
        sparsec_pool_configure(8, 20000);
        fork_under_load();
    } else if (strcmp(mode, "latency") == 0 && argc == 3) {
        sparsec_pool_configure((int32_t)sysconf(_SC_NPROCESSORS_ONLN), SPARSEC_POOL_SPIN_NS);
        latency(atoi(argv[2]));
    } else {
        fprintf(stderr, "unknown arguments\n");
        return 2;
    }
    puts("ok");
    return 0;
}
