/* Runs a bucket library in unusual float modes of the caller, with a loop of the caller's own, and sees to
 * it that the caller finds its mode and flags as they were, everywhere.
 *
 *     float_mode bucket.so      the model: one float32 input, one float32 output, both [batch, 256]
 *
 * Prints the bits of what it computed for a batch of 4, as hexadecimal numbers. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fenv.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xmmintrin.h>

#include "sparsec.h"

enum { BATCH = 256, WIDTH = 256, FLUSH = 0x8040 }; /* FTZ and DAZ */

/* Rounding to minus infinity, division by zero not masked, and a flag raised: nobody would want to lose that. */
static const unsigned odd = (0x1f80 & ~0x200) | 0x2000 | 0x10;

static int wrong, loops;

static void expect(unsigned mode, const char *where)
{
    if (_mm_getcsr() != mode) {
        fprintf(stderr, "%s: MXCSR is %#x, not %#x\n", where, _mm_getcsr(), mode);
        wrong = 1;
    }
}

typedef struct {
    sparsec_task task;
    void *arg;
    int32_t from, to, thread;
    unsigned mode;
} piece;

static void *run_piece(void *arg)
{
    const piece *const p = arg;
    _mm_setcsr(p->mode);
    for (int32_t i = p->from; i < p->to; i++) {
        p->task(p->arg, i, p->thread);
        expect(p->mode, "a piece");
    }
    return NULL;
}

/* Half on another thread, which has a mode of its own. */
static void run_loop(const sparsec_parallel *self, sparsec_task task, void *arg, int32_t count)
{
    (void)self;
    loops++;
    expect(odd, "the caller's loop");
    piece here = {task, arg, 0, count / 2, 0, odd}, there = {task, arg, count / 2, count, 1, 0x1f80 | 0x4000};
    pthread_t thread;
    if (pthread_create(&thread, NULL, run_piece, &there))
        abort();
    run_piece(&here);
    pthread_join(thread, NULL);
}

int main(int argc, char **argv)
{
    void *const library = argc == 2 ? dlopen(argv[1], RTLD_NOW) : NULL;
    if (!library)
        return fprintf(stderr, "%s\n", argc == 2 ? dlerror() : "usage: float_mode BUCKET.so"), 2;
    __typeof__(&sparsec_run) const run = (__typeof__(&sparsec_run))dlsym(library, "sparsec_run");
    __typeof__(&sparsec_workspace_size) const size =
        (__typeof__(&sparsec_workspace_size))dlsym(library, "sparsec_workspace_size");
    static float x[BATCH * WIDTH], y[2][BATCH * WIDTH];
    for (int i = 0; i < BATCH * WIDTH; i++) {
        const uint32_t bits = i % 4 == 0 ? 0x007fffffu - (uint32_t)i : 0x3f800000u + 1000003u * (uint32_t)i % 0x800000u;
        memcpy(&x[i], &bits, 4);
    }
    const void *const inputs[] = {x};
    const sparsec_parallel parallel = {2, run_loop};
    void *const workspace = aligned_alloc(64, (size(BATCH, 2) + 63) / 64 * 64);
    for (int threads = 1; threads <= 2; threads++) {
        void *const outputs[] = {y[threads - 1]};
        _mm_setcsr(odd);
        const int status = run(inputs, outputs, BATCH, NULL, workspace, threads > 1 ? &parallel : NULL);
        expect(odd, "after the run");
        if (run(inputs, outputs, 0, NULL, workspace, NULL) != SPARSEC_BAD_ARGUMENT)
            return 4;
        expect(odd, "after a refused run");
        _mm_setcsr(0x1f80);
        if (status != SPARSEC_OK)
            return 3;
    }
    if (memcmp(y[0], y[1], sizeof y[0]) || !loops)
        return fprintf(stderr, "threads make a difference, or were not used\n"), 1;
    for (int i = 0; i < BATCH * WIDTH; i++) {
        uint32_t bits;
        memcpy(&bits, &y[0][i], 4);
        printf("%08x\n", bits);
    }
    return wrong;
}
