/* Runs one bucket of an artifact in four threads at once:  threads model.sparsec/bucket_16.so
 *
 *     cc -O2 -pthread -I ../../templates threads.c -o threads -ldl    (the header is also in the artifact)
 *
 * What a program has to know that handles signals on stacks of its own: with the tile registers of target
 * "amx", a signal's frame takes some 11 KB, and Linux gives the registers only where every alternate stack has
 * room for it.  So the size is asked for, and the registers are, before threads start.  A timer interrupts all
 * along; every thread must compute what the first run did. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include "sparsec.h"

#ifndef AT_MINSIGSTKSZ
#define AT_MINSIGSTKSZ 51
#endif

enum { THREADS = 4, RUNS = 50 };

static const sparsec_info *info;
static size_t (*workspace_size)(int64_t, int32_t);
static __typeof__(&sparsec_run) run;
static const void *inputs[8];
static float *expected;
static volatile sig_atomic_t signals;

static int64_t count(const sparsec_tensor *t) {
    int64_t n = 1; /* of a batch of one */
    for (int i = 0; i < t->rank; i++)
        n *= t->dims[i] == SPARSEC_DIM_BATCH ? 1
           : t->dims[i] == SPARSEC_DIM_SEQUENCE ? info->length : t->dims[i];
    return n;
}

/* Asks Linux to save tile registers for this process; on other systems and processors there are none. */
static void request_tiles(void) {
#ifdef __x86_64__
    syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XFEATURE_XTILEDATA */);
#endif
}

/* Signals of this thread get a stack that holds their frame and 16 KiB for their handlers. */
static void own_signal_stack(void) {
    const size_t least = getauxval(AT_MINSIGSTKSZ), size = (least ? least : 16384) + 16384;
    const stack_t stack = {.ss_sp = malloc(size), .ss_size = size};
    if (!stack.ss_sp || sigaltstack(&stack, NULL)) abort();
}

static void on_timer(int signal) {
    volatile char used[4096];
    memset((char *)used, signal, sizeof used);
    signals++;
}

static int compute(float *first) {
    void *outputs[8];
    for (int i = 0; i < info->n_outputs; i++)
        outputs[i] = i ? calloc(count(&info->outputs[i]), 8) : (void *)first;
    void *workspace = aligned_alloc(64, (workspace_size(1, 1) + 63) / 64 * 64 + 64);
    const int status = run(inputs, outputs, 1, NULL, workspace, NULL);
    for (int i = 1; i < info->n_outputs; i++)
        free(outputs[i]);
    return free(workspace), status;
}

static void *work(void *wrong) {
    const size_t bytes = 4 * count(&info->outputs[0]);
    float *mine = malloc(bytes);
    own_signal_stack();
    for (int i = 0; i < RUNS; i++)
        if (compute(mine) != SPARSEC_OK || memcmp(mine, expected, bytes))
            __atomic_fetch_add((int *)wrong, 1, __ATOMIC_RELAXED);
    return free(mine), NULL;
}

int main(int argc, char **argv) {
    void *lib = argc == 2 ? dlopen(argv[1], RTLD_NOW) : NULL;
    if (!lib) return fprintf(stderr, "%s\n", argc == 2 ? dlerror() : "usage: threads BUCKET.so"), 1;
    const sparsec_info *(*model_info)(void) = (const sparsec_info *(*)(void))dlsym(lib, "sparsec_model_info");
    workspace_size = (size_t (*)(int64_t, int32_t))dlsym(lib, "sparsec_workspace_size");
    run = (__typeof__(&sparsec_run))dlsym(lib, "sparsec_run");
    info = model_info();
    if (info->abi_version != SPARSEC_ABI_VERSION) return fprintf(stderr, "another ABI\n"), 1;
    own_signal_stack();
    request_tiles();

    for (int i = 0; i < info->n_inputs; i++) {
        int64_t n = count(&info->inputs[i]), *ids = calloc(n, sizeof *ids);
        for (int64_t j = 0; j < n && i < 2; j++)
            ids[j] = i == 1 ? 1 : 7 + j % 5; /* the ids, then the mask; token types stay 0 */
        inputs[i] = ids;
    }
    expected = malloc(4 * count(&info->outputs[0]));
    const int status = compute(expected);
    if (status != SPARSEC_OK) return fprintf(stderr, "sparsec_run: error %d\n", status), 1;

    const struct sigaction action = {.sa_handler = on_timer, .sa_flags = SA_ONSTACK | SA_RESTART};
    const struct itimerval often = {{0, 500}, {0, 500}}, never = {{0, 0}, {0, 0}};
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
    pthread_t threads[THREADS];
    int wrong = 0;
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, work, &wrong)) return 1;
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    setitimer(ITIMER_REAL, &never, NULL);
    printf("%s on %s: %d of %d runs differ, %s\n", info->model, info->target, wrong, THREADS * RUNS,
           signals ? "interrupted" : "not interrupted");
    return wrong != 0;
}
