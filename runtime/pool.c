/* pool.c: see pool.h for what it does.  How:
 *
 * A region lives in one of a fixed number of static slots, so a late worker can look at a slot at
 * any time without a lifetime to worry about.  The slot's `state` word holds how many workers may
 * still join (tickets), how many are inside (active), and whether the caller sleeps (WAITER):
 *
 *     caller   fills the slot, stores tickets (release), bumps `epoch`, works,
 *              takes the tickets back, waits until active == 0 (acquire)
 *     worker   sees `epoch` change, exchanges a ticket for an active mark, works, drops the mark
 *
 * The ticket's number is the worker's thread index, which makes it unique within the region.  A
 * worker that compares-and-swaps on a slot that was reused meanwhile just joins the new region.
 *
 * Sleep: a worker announces itself in `sleepers`, looks at `epoch` again and waits on it; a caller
 * bumps `epoch` and then looks at `sleepers`.  Both sides are sequentially consistent, so one of
 * them sees the other.
 */
#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#if defined(__linux__) && !defined(SPARSEC_POOL_NO_FUTEX)
#define USE_FUTEX 1
#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#define USE_FUTEX 0
#endif

#define CACHE_LINE 64
#define MIN_SPIN_NS 4000

/* slot.state */
#define TICKET_ONE 1u
#define TICKETS 0xfffu
#define ACTIVE_ONE 0x1000u
#define ACTIVE 0xfff000u
#define WAITER 0x1000000u

typedef struct {
    _Alignas(CACHE_LINE) _Atomic int64_t next; /* 64 bits: overshoots `end` by one a thread */
    int64_t end;
} range;

typedef struct {
    _Alignas(CACHE_LINE) _Atomic uint32_t state;
    int32_t threads;
    sparsec_task task;
    void *arg;
    const sparsec_parallel *team;
    _Alignas(CACHE_LINE) atomic_bool taken;
    range ranges[SPARSEC_POOL_MAX_THREADS];
} slot;

static slot slots[SPARSEC_POOL_MAX_REGIONS];

/* Written by every region. */
static _Alignas(CACHE_LINE) _Atomic uint32_t epoch;
/* Written when a worker goes to sleep or wakes up. */
static _Alignas(CACHE_LINE) _Atomic int32_t sleepers;
/* Written once or twice in a model run. */
static _Alignas(CACHE_LINE) _Atomic int32_t callers;
static _Atomic int32_t slots_used; /* slots at and after this index were never taken */
/* Hardly ever written. */
static _Alignas(CACHE_LINE) _Atomic int32_t cores = 1;
static _Atomic int64_t spin_ns = SPARSEC_POOL_SPIN_NS;
static _Atomic int32_t workers;
static _Atomic int32_t wanted; /* workers that were asked for; fewer exist if threads ran out */
static atomic_bool stopping;
static _Atomic uint32_t generation;

static pthread_mutex_t growth = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t fork_hooks = PTHREAD_ONCE_INIT;
static pthread_t handles[SPARSEC_POOL_MAX_THREADS];

/* What the current thread is doing: nested regions run serially under the same thread index. */
static _Thread_local const sparsec_parallel *inside;
static _Thread_local int32_t inside_index;
static _Thread_local int32_t last_slot;

/* ---- time, spinning, sleeping ---------------------------------------------------------------- */

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb" ::: "memory");
#else
    sched_yield();
#endif
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

#if USE_FUTEX

/* Sleeps while *word == expected; may also return early. */
static void park(_Atomic uint32_t *word, uint32_t expected)
{
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

static void unpark(_Atomic uint32_t *word, int32_t n)
{
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

static void reset_parking(void) {}

#else

static pthread_mutex_t parking = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t parked = PTHREAD_COND_INITIALIZER;

static void park(_Atomic uint32_t *word, uint32_t expected)
{
    pthread_mutex_lock(&parking);
    if (atomic_load(word) == expected)
        pthread_cond_wait(&parked, &parking);
    pthread_mutex_unlock(&parking);
}

static void unpark(_Atomic uint32_t *word, int32_t n)
{
    (void)word, (void)n; /* all words share one condition: wake everybody */
    pthread_mutex_lock(&parking);
    pthread_cond_broadcast(&parked);
    pthread_mutex_unlock(&parking);
}

static void reset_parking(void)
{
    parking = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    parked = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
}

#endif

static int32_t callers_now(void)
{
    int32_t n = atomic_load_explicit(&callers, memory_order_relaxed);
    return n > 0 ? n : 1;
}

static int32_t awake_workers(void)
{
    return atomic_load_explicit(&workers, memory_order_relaxed)
        - atomic_load_explicit(&sleepers, memory_order_relaxed);
}

/* Whether everybody who is awake can have a core. */
static bool may_spin(void)
{
    return callers_now() + awake_workers() <= atomic_load_explicit(&cores, memory_order_relaxed);
}

/* Spins until *word != seen (true), or `deadline` has passed or cores are short (false). */
static bool spin_for_change(_Atomic uint32_t *word, uint32_t seen, int64_t deadline)
{
    do {
        for (int i = 0; i < 32; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != seen)
                return true;
            relax();
        }
    } while (may_spin() && now_ns() < deadline);
    return false;
}

/* ---- working on a region --------------------------------------------------------------------- */

static void work(slot *s, int32_t index)
{
    const sparsec_parallel *outer = inside;
    const int32_t outer_index = inside_index;
    const int32_t threads = s->threads;
    const sparsec_task task = s->task;
    void *const arg = s->arg;

    inside = s->team;
    inside_index = index;
    for (int32_t v = 0; v < threads; v++) {
        range *r = &s->ranges[(index + v) % threads];
        while (atomic_load_explicit(&r->next, memory_order_relaxed) < r->end) {
            int64_t i = atomic_fetch_add_explicit(&r->next, 1, memory_order_relaxed);
            if (i >= r->end)
                break;
            task(arg, (int32_t)i, index);
        }
    }
    inside = outer;
    inside_index = outer_index;
}

/* Joins the slot's region if it has a ticket left and works on it. */
static bool serve(slot *s)
{
    uint32_t state = atomic_load_explicit(&s->state, memory_order_relaxed);
    do {
        if (!(state & TICKETS))
            return false;
    } while (!atomic_compare_exchange_weak_explicit(&s->state, &state,
                                                    state - TICKET_ONE + ACTIVE_ONE,
                                                    memory_order_acquire, memory_order_relaxed));
    work(s, (int32_t)(state & TICKETS));
    state = atomic_fetch_sub_explicit(&s->state, ACTIVE_ONE, memory_order_acq_rel);
    if ((state & (ACTIVE | WAITER)) == (ACTIVE_ONE | WAITER))
        unpark(&s->state, 1);
    return true;
}

static bool serve_any(void)
{
    bool served = false;
    const int32_t n = atomic_load_explicit(&slots_used, memory_order_acquire);
    for (int32_t i = 0; i < n; i++)
        served |= serve(&slots[i]);
    return served;
}

static void *worker_main(void *unused)
{
    (void)unused;
    int64_t budget = atomic_load_explicit(&spin_ns, memory_order_relaxed);
    int64_t deadline = 0; /* 0: was not idle at the last look */

    for (;;) {
        const uint32_t seen = atomic_load_explicit(&epoch, memory_order_acquire);
        const int64_t longest = atomic_load_explicit(&spin_ns, memory_order_relaxed);
        if (atomic_load_explicit(&stopping, memory_order_acquire))
            return NULL;
        if (serve_any()) {
            if (deadline)
                budget = budget * 2 < longest ? budget * 2 : longest;
            deadline = 0;
            continue;
        }
        if (longest > 0) {
            const int64_t now = now_ns();
            if (!deadline)
                deadline = now + budget;
            /* Regions that others took all the tickets of do not keep this worker awake. */
            if (now < deadline && spin_for_change(&epoch, seen, deadline))
                continue;
            /* Spinning that leads to nothing gets shorter. */
            budget = budget / 2 > MIN_SPIN_NS ? budget / 2 : MIN_SPIN_NS;
        }
        deadline = 0;
        atomic_fetch_add(&sleepers, 1);
        if (atomic_load(&epoch) == seen)
            park(&epoch, seen);
        atomic_fetch_sub(&sleepers, 1);
    }
}

/* ---- starting and ending workers ------------------------------------------------------------- */

static void before_fork(void)
{
    pthread_mutex_lock(&growth);
}

static void after_fork_in_parent(void)
{
    pthread_mutex_unlock(&growth);
}

/* Only the forking thread lives on: nobody works, sleeps or calls. */
static void after_fork_in_child(void)
{
    growth = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    reset_parking();
    for (int32_t i = 0; i < SPARSEC_POOL_MAX_REGIONS; i++) {
        if (!atomic_load_explicit(&slots[i].taken, memory_order_relaxed))
            continue;
        atomic_store_explicit(&slots[i].state, 0, memory_order_relaxed);
        atomic_store_explicit(&slots[i].taken, false, memory_order_relaxed);
    }
    atomic_store(&workers, 0);
    atomic_store(&wanted, 0);
    atomic_store(&sleepers, 0);
    atomic_store(&callers, 0);
    atomic_store(&stopping, false);
    atomic_fetch_add(&generation, 1);
}

static void install_fork_hooks(void)
{
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

/* Starts workers until there are n, or the system gives no more threads. */
static void grow(int32_t n)
{
    sigset_t all, before;
    pthread_mutex_lock(&growth);
    /* Signals belong to the program's own threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int32_t have = atomic_load(&workers);
    while (have < n) {
        if (pthread_create(&handles[have], NULL, worker_main, NULL) != 0)
            break;
#ifdef __linux__
        char name[24]; /* "sparsec-256" at most; the system's limit is 16 */
        snprintf(name, sizeof name, "sparsec-%d", (int)have + 1);
        pthread_setname_np(handles[have], name);
#endif
        atomic_store(&workers, ++have);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (atomic_load(&wanted) < n)
        atomic_store(&wanted, n);
    pthread_mutex_unlock(&growth);
}

void sparsec_pool_stop(void)
{
    pthread_mutex_lock(&growth);
    atomic_store(&stopping, true);
    atomic_fetch_add(&epoch, 1);
    unpark(&epoch, INT32_MAX);
    for (int32_t i = 0; i < atomic_load(&workers); i++)
        pthread_join(handles[i], NULL);
    atomic_store(&workers, 0);
    atomic_store(&wanted, 0);
    atomic_store(&stopping, false);
    pthread_mutex_unlock(&growth);
}

/* ---- the caller's side ----------------------------------------------------------------------- */

static slot *take_slot(void)
{
    for (int32_t k = 0; k < SPARSEC_POOL_MAX_REGIONS; k++) {
        const int32_t i = (last_slot + k) % SPARSEC_POOL_MAX_REGIONS;
        if (atomic_load_explicit(&slots[i].taken, memory_order_relaxed)
            || atomic_exchange_explicit(&slots[i].taken, true, memory_order_acquire))
            continue;
        int32_t used = atomic_load_explicit(&slots_used, memory_order_relaxed);
        while (used <= i
               && !atomic_compare_exchange_weak_explicit(&slots_used, &used, i + 1,
                                                         memory_order_release,
                                                         memory_order_relaxed))
            ;
        last_slot = i;
        return &slots[i];
    }
    return NULL;
}

/* Wakes sleeping workers for `tickets` pieces of work, as far as there are cores for them. */
static void call_workers(int32_t tickets)
{
    atomic_fetch_add(&epoch, 1);
    int32_t asleep = atomic_load(&sleepers);
    if (asleep == 0)
        return;
    const int32_t active = callers_now();
    const int32_t awake = atomic_load_explicit(&workers, memory_order_relaxed) - asleep;
    int32_t n = asleep < tickets ? asleep : tickets;
    if (n > tickets * active - awake) /* those who are awake come by themselves */
        n = tickets * active - awake;
    const int32_t free_cores = atomic_load_explicit(&cores, memory_order_relaxed) - active - awake;
    if (n > free_cores)
        n = free_cores;
    if (n > 0)
        unpark(&epoch, n);
}

/* Takes back the tickets and waits for the workers that are inside. */
static void finish(slot *s)
{
    uint32_t state = atomic_fetch_and_explicit(&s->state, ~TICKETS, memory_order_acq_rel) & ~TICKETS;
    const int64_t longest = atomic_load_explicit(&spin_ns, memory_order_relaxed);
    const int64_t deadline = (state & ACTIVE) && longest ? now_ns() + longest : 0;
    while (state & ACTIVE) {
        if (deadline && spin_for_change(&s->state, state, deadline)) {
            state = atomic_load_explicit(&s->state, memory_order_acquire);
            continue;
        }
        if (!(state & WAITER)) {
            if (!atomic_compare_exchange_strong_explicit(&s->state, &state, state | WAITER,
                                                         memory_order_acquire,
                                                         memory_order_acquire))
                continue;
            state |= WAITER;
        }
        park(&s->state, state);
        state = atomic_load_explicit(&s->state, memory_order_acquire);
    }
    atomic_store_explicit(&s->state, 0, memory_order_relaxed);
    atomic_store_explicit(&s->taken, false, memory_order_release);
}

static void run_alone(const sparsec_parallel *team, sparsec_task task, void *arg, int32_t count)
{
    const sparsec_parallel *outer = inside;
    const int32_t outer_index = inside_index;
    inside_index = outer == team ? outer_index : 0;
    inside = team;
    for (int32_t i = 0; i < count; i++)
        task(arg, i, inside_index);
    inside = outer;
    inside_index = outer_index;
}

static void run_region(const sparsec_parallel *team, sparsec_task task, void *arg, int32_t count)
{
    const int32_t threads = team->threads < count ? team->threads : count;
    slot *s = NULL;
    if (!inside && threads > 1) {
        if (atomic_load_explicit(&wanted, memory_order_relaxed) < team->threads - 1)
            grow(team->threads - 1);
        s = take_slot();
    }
    if (!s) {
        run_alone(team, task, arg, count);
        return;
    }
    s->threads = threads;
    s->task = task;
    s->arg = arg;
    s->team = team;
    for (int32_t t = 0; t < threads; t++) {
        atomic_store_explicit(&s->ranges[t].next, (int64_t)count * t / threads,
                              memory_order_relaxed);
        s->ranges[t].end = (int64_t)count * (t + 1) / threads;
    }
    atomic_store_explicit(&s->state, (uint32_t)(threads - 1) * TICKET_ONE, memory_order_release);
    call_workers(threads - 1);
    work(s, 0);
    finish(s);
}

void sparsec_team_init(sparsec_parallel *team, int32_t threads)
{
    pthread_once(&fork_hooks, install_fork_hooks);
    team->threads = threads < 1                          ? 1
                    : threads > SPARSEC_POOL_MAX_THREADS ? SPARSEC_POOL_MAX_THREADS
                                                         : threads;
    team->run = run_region;
}

void sparsec_pool_configure(int32_t usable_cores, int64_t spin)
{
    atomic_store_explicit(&cores, usable_cores < 1 ? 1 : usable_cores, memory_order_relaxed);
    atomic_store_explicit(&spin_ns, spin < 0 ? 0 : spin, memory_order_relaxed);
}

void sparsec_pool_enter(void)
{
    atomic_fetch_add_explicit(&callers, 1, memory_order_relaxed);
}

void sparsec_pool_leave(void)
{
    atomic_fetch_sub_explicit(&callers, 1, memory_order_relaxed);
}

int32_t sparsec_pool_workers(void)
{
    return atomic_load(&workers);
}

uint32_t sparsec_pool_generation(void)
{
    return atomic_load(&generation);
}
