/* Measures what a model cannot be faster than, all threads at once:
 *
 *     peak THREADS BYTES   ->   {"lanes": 16, "vnni": 8.0e9, "fma": 8.0e9, "read": 5.0e10}
 *
 * vnni, fma: VPDPBUSD and FMA instructions per second and core, from registers (0 where the target
 * has none).  read: bytes per second of all threads together, reading BYTES over and over. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define CHAINS 12 /* independent accumulators: more than latency times throughput */
#define STEPS 50000
#define SECONDS 0.4
#define MAX_THREADS 256

#if defined(__AVX512VNNI__)
#define LANES 16
typedef __m512i ints;
#define DOT(acc, a, b) _mm512_dpbusd_epi32(acc, a, b)
#elif defined(__AVXVNNI__)
#define LANES 8
typedef __m256i ints;
#define DOT(acc, a, b) _mm256_dpbusd_avx_epi32(acc, a, b)
#elif defined(__AVX2__)
#define LANES 8
typedef __m256i ints;
#else
#define LANES 4
typedef int32_t ints __attribute__((vector_size(16)));
#endif

#if LANES == 16
typedef __m512 floats;
#define FMA(a, b, acc) _mm512_fmadd_ps(a, b, acc)
#elif LANES == 8
typedef __m256 floats;
#define FMA(a, b, acc) _mm256_fmadd_ps(a, b, acc)
#endif

typedef uint64_t words __attribute__((vector_size(LANES * 4)));

typedef struct {
    const unsigned char *data;
    size_t bytes;
} part;

/* The compiler must believe that someone looks at it. */
#define KEEP(x) __asm__ volatile("" : : "m"(x))
/* Nor may it see that the chains are alike, and compute one for all. */
#define FORGET(x) __asm__ volatile("" : "+m"(x))

static volatile int seed = 3; /* operands that the compiler does not know */
static pthread_barrier_t barrier;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Each returns how much it did: instructions, or bytes. */
static double dots(const part *p) {
    (void)p;
#ifdef DOT
    ints acc[CHAINS], a, b;
    memset(&a, seed, sizeof a);
    memset(&b, seed, sizeof b);
    memset(acc, 0, sizeof acc);
    FORGET(acc);
    for (int i = 0; i < STEPS; i++)
        for (int c = 0; c < CHAINS; c++) acc[c] = DOT(acc[c], a, b);
    for (int c = 0; c < CHAINS; c++) KEEP(acc[c]);
    return (double)STEPS * CHAINS;
#else
    return 0;
#endif
}

static double fmas(const part *p) {
    (void)p;
#ifdef FMA
    floats acc[CHAINS], a, b;
    float x[LANES];
    for (int i = 0; i < LANES; i++) x[i] = 1e-3f * (float)seed;
    memcpy(&a, x, sizeof a);
    memcpy(&b, x, sizeof b);
    memset(acc, 0, sizeof acc);
    FORGET(acc);
    for (int i = 0; i < STEPS; i++)
        for (int c = 0; c < CHAINS; c++) acc[c] = FMA(a, b, acc[c]);
    for (int c = 0; c < CHAINS; c++) KEEP(acc[c]);
    return (double)STEPS * CHAINS;
#else
    return 0;
#endif
}

static double reads(const part *p) {
    words acc[4] = {{0}, {0}, {0}, {0}};
    const words *at = (const words *)p->data;
    size_t count = p->bytes / sizeof(words) / 4 * 4;
    for (size_t i = 0; i < count; i += 4)
        for (int c = 0; c < 4; c++) acc[c] ^= at[i + (size_t)c];
    words all = acc[0] ^ acc[1] ^ acc[2] ^ acc[3];
    KEEP(all);
    return (double)(count * sizeof(words));
}

typedef struct {
    double (*work)(const part *);
    part piece;
    double rate, burst; /* over all passes; of the best pass */
} job;

static void *run(void *arg) {
    job *j = arg;
    double done = 0;
    j->work(&j->piece); /* page faults, clock frequency */
    pthread_barrier_wait(&barrier);
    double start = now(), last = start, end;
    do {
        double step = j->work(&j->piece);
        end = now();
        if (step / (end - last) > j->burst) j->burst = step / (end - last);
        done += step;
        last = end;
    } while (end - start < SECONDS);
    j->rate = done / (end - start);
    return NULL;
}

/* The best of three, as others may use the machine: of all threads together, or, where they share
 * nothing, of one thread's best pass. */
static double rate(int together, double (*work)(const part *), int threads,
                   const unsigned char *data, size_t bytes) {
    static job jobs[MAX_THREADS];
    pthread_t ids[MAX_THREADS];
    double best = 0;
    for (int attempt = 0; attempt < 3; attempt++) {
        double sum = 0;
        size_t each = bytes / (size_t)threads / 64 * 64;
        pthread_barrier_init(&barrier, NULL, (unsigned)threads);
        for (int t = 0; t < threads; t++) {
            jobs[t] = (job){work, {data + (size_t)t * each, each}, 0, 0};
            if (pthread_create(&ids[t], NULL, run, &jobs[t])) exit(1);
        }
        for (int t = 0; t < threads; t++) {
            pthread_join(ids[t], NULL);
            sum += jobs[t].rate;
            if (!together && jobs[t].burst > best) best = jobs[t].burst;
        }
        pthread_barrier_destroy(&barrier);
        if (together && sum > best) best = sum;
    }
    return best;
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    size_t bytes = argc > 2 ? (size_t)strtoull(argv[2], NULL, 10) : 1 << 24;
    if (threads < 1 || threads > MAX_THREADS) return 2;
    bytes = (bytes + (size_t)threads * 1024) / 64 * 64;
    unsigned char *data = aligned_alloc(64, bytes);
    if (!data) return 1;
    memset(data, 1, bytes);
    printf("{\"lanes\": %d, \"vnni\": %.6g, \"fma\": %.6g, \"read\": %.6g}\n", LANES,
           rate(0, dots, threads, data, bytes), rate(0, fmas, threads, data, bytes),
           rate(1, reads, threads, data, bytes));
    free(data);
    return 0;
}
