/* What the tiles of this core do, in nanoseconds and cycles: rates of products, loads and stores, waking up,
 * tiles made of masks, how far ahead to fetch, when to store, and vectors beside products.
 * benchmarks/cost_model.py compiles and runs it, with how many times to repeat each. */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "rt.h"
#include "vec_isa.h"
#include "vec.h"
#include "lanes.h"
#include "tiles.h"

enum { FAR = 64 << 20 };
static char *memory;
static int repeat;
static double cycle; /* ns */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

/* Least nanoseconds of one of n rounds of a body that has `i`; others may disturb any of the trials. */
#define BEST(n, ...)                                         \
    ({                                                       \
        double best = 1e30;                                  \
        for (int trial = 0; trial < repeat; trial++) {       \
            const double start = now();                      \
            for (int64_t i = 0; i < (n); i++) { __VA_ARGS__; } \
            const double took = (now() - start) / (n);       \
            best = took < best ? took : best;                \
        }                                                    \
        best;                                                \
    })

static void tell(const char *name, double ns) { printf("%s\t%.3g\t%.4g\n", name, ns, ns / cycle); }

static void clock_rate(void)
{
    volatile uint64_t seed = 3;
    cycle = BEST(8, uint64_t x = seed;
                 for (int k = 0; k < 1000; k++) {
                     x *= x;
                     __asm__ volatile("" : "+r"(x));
                 }
                 seed = x | 1) / 3000; /* a multiplication takes 3 cycles */
    printf("cycle\t%.3g\t1\n", cycle);
}

static void configure(int rows)
{
    tile_config c = {.palette = 1};
    for (int t = 0; t < 8; t++)
        c.rows[t] = 16, c.bytes[t] = 64;
    for (int t = 0; t < 6; t++) /* sums and weights */
        c.rows[t] = (uint8_t)rows;
    tiles_configure(&c);
}

static void rates(void)
{
    for (int rows = 16; rows >= 4; rows /= 2) {
        char name[40];
        snprintf(name, sizeof name, "product, %d rows of weights", rows);
        configure(rows);
        tell(name, BEST(64, TILE_DOT(0, 4, 6); TILE_DOT(1, 4, 7); TILE_DOT(2, 5, 6); TILE_DOT(3, 5, 7)) / 4);
        tiles_release();
    }
    tell("configure and release", BEST(64, tiles_configure_whole(); tiles_release()));
    tiles_configure_whole();
    static const struct { const char *name; int64_t bytes; } from[] = {
        {"load, 16 KiB", 16 << 10}, {"load, 1 MiB", 1 << 20}, {"load, 64 MiB", FAR}};
    for (int k = 0; k < 3; k++) {
        const int64_t n = from[k].bytes / 1024;
        tell(from[k].name, BEST(n < 4096 || repeat > 8 ? n : 64, TILE_LOAD(4, memory + i * 1024, 64)));
    }
    tell("store", BEST(16, TILE_STORE(0, memory + i * 1024, 64)));
    tell("4 products and their 4 stores",
         BEST(16, TILE_DOT(0, 4, 6); TILE_DOT(1, 4, 7); TILE_DOT(2, 5, 6); TILE_DOT(3, 5, 7);
              TILE_STORE(0, memory, 64); TILE_STORE(1, memory + 1024, 64);
              TILE_STORE(2, memory + 2048, 64); TILE_STORE(3, memory + 3072, 64)));
    for (int pause = 100; pause <= 1000000; pause *= 100) {
        char name[40];
        snprintf(name, sizeof name, "8 products after %d cycles", pause);
        double best = 1e30;
        for (int trial = 0; trial < repeat; trial++) {
            for (const double until = now() + pause * cycle; now() < until;) {}
            const double start = now();
            for (int k = 0; k < 8; k++)
                TILE_DOT(0, 4, 6);
            TILE_STORE(0, memory, 64);
            const double took = now() - start;
            best = took < best ? took : best;
        }
        tell(name, best);
    }
    tiles_release();
}

/* A tile of masks in which every fifth pack is not zero. */
static void masks(void)
{
    int8_t *const stored = calloc(1, 2048), *const tile = aligned_alloc(64, 1024);
    for (int m = 0; m < 16; m++)
        stored[2 * m] = 0x21, stored[2 * m + 1] = 0x04;
    tell("tile of masks of packs", BEST(64, tile_stream s = {stored, tile}; tile_expand(&s, 4, tile + 1024)));
    free(stored), free(tile);
}

/* 32 channels x `steps` x 32 rows: weights from `w`, activations near. */
#define STEP(w)                                              \
    TILE_LOAD(4, (w), 64);                                   \
    TILE_LOAD(6, memory + (j & 7) * 1024, 64);               \
    TILE_DOT(0, 4, 6);                                       \
    TILE_LOAD(7, memory + 8192 + (j & 7) * 1024, 64);        \
    TILE_DOT(1, 4, 7);                                       \
    TILE_LOAD(5, (w) + 1024, 64);                            \
    TILE_DOT(2, 5, 6);                                       \
    TILE_DOT(3, 5, 7)

static void kernels(void)
{
    const int64_t far_steps = repeat > 8 ? (FAR - 65536) / 2048 : 64;
    char name[60];
    tiles_configure_whole();
    tell("step of 2 x 2 tiles, near", BEST(64, const int64_t j = i; STEP(memory + 16384 + (j & 7) * 2048)));
    for (int ahead = 0; ahead <= 16; ahead = ahead ? 2 * ahead : 1) {
        snprintf(name, sizeof name, "step, weights from far, fetched %d ahead", ahead);
        tell(name, BEST(far_steps, const int64_t j = i; STEP(memory + j * 2048);
                        for (int k = 0; ahead && k < 32; k++)
                            __builtin_prefetch(memory + (j + ahead) * 2048 + k * 64, 0, 2)));
    }
    tell("12 steps, stores at the end",
         BEST(8, for (int64_t j = 0; j < 12; j++) { STEP(memory + 16384 + (j & 7) * 2048); }
         TILE_STORE(0, memory, 64); TILE_STORE(1, memory, 64); TILE_STORE(2, memory, 64);
         TILE_STORE(3, memory, 64)));
    tell("12 steps, two stores between the last products",
         BEST(8, for (int64_t j = 0; j < 12; j++) { STEP(memory + 16384 + (j & 7) * 2048);
              if (j == 11) { TILE_STORE(0, memory, 64); TILE_STORE(1, memory, 64); } }
              TILE_ZERO(0); TILE_ZERO(1); TILE_STORE(2, memory, 64); TILE_STORE(3, memory, 64)));
    /* Rows of another, sparse part of a layer beside them: is there room for it? */
    for (int beside = 0; beside <= 96; beside += 16) {
        vi sums[16] = {0};
        snprintf(name, sizeof name, "step and %d products of vectors", beside);
        tell(name, BEST(64, const int64_t j = i; STEP(memory + 16384 + (j & 7) * 2048);
                        for (int k = 0; k < beside; k++) {
                            const vi w = vi_set1(((const int32_t *)memory)[(j * 96 + k) & 1023]);
                            sums[k & 15] = vi_dot4(sums[k & 15], vi_load(memory + ((j * 5 + k) & 127) * 64), w);
                        }));
        for (int k = 0; k < 16; k++)
            vi_store(memory, sums[k]);
    }
    tiles_release();
}

int main(int argc, char **argv)
{
    repeat = argc == 2 ? atoi(argv[1]) : 200;
    memory = aligned_alloc(2 << 20, FAR);
    if (!memory || tiles_request())
        return fprintf(stderr, "this process may not use tiles\n"), 1;
    memset(memory, 1, FAR);
    clock_rate();
    rates();
    masks();
    kernels();
    return 0;
}
