/* Profile of a bucket compiled with --profile: time of every kernel call, and what the core could do. */
#include <stdatomic.h>
#include <time.h>

static _Atomic uint64_t profile_ns[PROFILE_CALLS], profile_runs;

SPARSEC_INLINE uint64_t profile_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

SPARSEC_INLINE void profile_add(int call, uint64_t since)
{
    atomic_fetch_add_explicit(&profile_ns[call], profile_now() - since, memory_order_relaxed);
}

/* Nanoseconds spent in each kernel call, summed over threads, in the manifest's order, and how often
 * sparsec_run was called since the last reset.  Returns the number of kernel calls. */
__attribute__((visibility("default"))) int32_t sparsec_profile(uint64_t *ns, int32_t count, uint64_t *runs,
                                                               int32_t reset)
{
    for (int32_t i = 0; i < count && i < PROFILE_CALLS; i++)
        ns[i] = atomic_load(&profile_ns[i]);
    *runs = atomic_load(&profile_runs);
    if (reset) {
        for (int32_t i = 0; i < PROFILE_CALLS; i++)
            atomic_store(&profile_ns[i], 0);
        atomic_store(&profile_runs, 0);
    }
    return PROFILE_CALLS;
}

/* A chain of steps that wait for each other, and the clock cycles of a step.  A multiplication of 32-bit
 * integers takes 3 on AMD's cores since Zen and on Intel's since Nehalem, small ones included.  Adding
 * constants would not do: newer cores do that while they rename registers, several in one cycle. */
#if defined(__x86_64__)
#define CHAIN_CYCLES 3
#define CHAIN_STEP(x, y) __asm__ volatile("imull %1, %0" : "+r"(x) : "r"(y) : "cc")
#else
#define CHAIN_CYCLES 1
#define CHAIN_STEP(x, y) ((x) += (y), __asm__ volatile("" : "+r"(x)))
#endif

/* Best of several measurements of one core: clock cycles a second, and multiply-adds a second from
 * registers, for blocks of 16 lanes: 8-bit and float. */
__attribute__((visibility("default"))) void sparsec_profile_core(double *clock, double *dot4, double *fma)
{
    enum { STEPS = 100000, CHAINS = 12 };
    *clock = *dot4 = *fma = 0.0;
    for (int round = 0; round < 20; round++) {
        uint64_t since = profile_now();
        uint32_t chain = (uint32_t)since;
        const uint32_t odd = chain | 1;
        for (int i = 0; i < STEPS / 20; i++) {
#pragma GCC unroll 20
            for (int j = 0; j < 20; j++) /* a taken branch may cost a cycle of its own */
                CHAIN_STEP(chain, odd);
        }
        double rate = 1e9 * CHAIN_CYCLES * STEPS / (double)(profile_now() - since);
        *clock = rate > *clock ? rate : *clock;
        vi acc[CHAINS];
        vf sum[CHAINS];
        for (int j = 0; j < CHAINS; j++)
            acc[j] = vi_set1(j), sum[j] = vf_set1((float)j);
        vi x = vi_set1(0x01020304), w = vi_set1(0x01ff0201);
        vf y = vf_set1(1e-3f);
        __asm__ volatile("" : "+m"(x), "+m"(w), "+m"(y));
        const vi x1 = x, w1 = w;
        const vf y1 = y;
        since = profile_now();
        for (int i = 0; i < STEPS / CHAINS; i++) {
#pragma GCC unroll 12
            for (int j = 0; j < CHAINS; j++)
                acc[j] = vi_dot4(acc[j], x1, w1);
            __asm__ volatile("" ::: );
        }
        rate = 1e9 * (STEPS / CHAINS) * CHAINS / SUB / (double)(profile_now() - since);
        *dot4 = rate > *dot4 ? rate : *dot4;
        since = profile_now();
        for (int i = 0; i < STEPS / CHAINS; i++) {
#pragma GCC unroll 12
            for (int j = 0; j < CHAINS; j++)
                sum[j] = vf_fma(sum[j], y1, y1);
            __asm__ volatile("" ::: );
        }
        rate = 1e9 * (STEPS / CHAINS) * CHAINS / SUB / (double)(profile_now() - since);
        *fma = rate > *fma ? rate : *fma;
        for (int j = 1; j < CHAINS; j++)
            acc[0] += acc[j], sum[0] += sum[j];
        __asm__ volatile("" ::"m"(acc[0]), "m"(sum[0]));
    }
}
