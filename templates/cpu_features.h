/* cpu_features.h: what the processor and the operating system support, asked of them directly.
 *
 * For the runtime (runtime/cpu.c) and for libraries that choose among several targets (choose.c.j2).
 */
#ifndef SPARSEC_CPU_FEATURES_H
#define SPARSEC_CPU_FEATURES_H

#include <stddef.h>
#include <stdint.h>

/* Words of CPUID: leaf 1, leaf 7, and its sub-leaf 1. */
enum { BASIC_C, EXT_B, EXT_C, EXT_D, EXT1_A, WORDS };

/* Register states that the operating system must save, as bits of XCR0. */
enum { NONE = 0, YMM = 0x6, ZMM = 0xe6, TILES = 0x60000 };

/* The place of a feature is its bit in the mask. */
static const struct {
    const char *name;
    int word, bit; /* of CPUID */
    uint64_t state;
} features[] = {
    {"sse4_2", BASIC_C, 20, NONE},
    {"popcnt", BASIC_C, 23, NONE},
    {"avx", BASIC_C, 28, YMM},
    {"avx2", EXT_B, 5, YMM},
    {"fma", BASIC_C, 12, YMM},
    {"f16c", BASIC_C, 29, YMM},
    {"bmi", EXT_B, 3, NONE},
    {"bmi2", EXT_B, 8, NONE},
    {"avxvnni", EXT1_A, 4, YMM},
    {"avx512f", EXT_B, 16, ZMM},
    {"avx512bw", EXT_B, 30, ZMM},
    {"avx512dq", EXT_B, 17, ZMM},
    {"avx512vl", EXT_B, 31, ZMM},
    {"avx512cd", EXT_B, 28, ZMM},
    {"avx512vnni", EXT_C, 11, ZMM},
    {"avx512vbmi", EXT_C, 1, ZMM},
    {"avx512vbmi2", EXT_C, 6, ZMM},
    {"avx512bf16", EXT1_A, 5, ZMM},
    {"amx_tile", EXT_D, 24, TILES},
    {"amx_int8", EXT_D, 25, TILES},
    {"amx_bf16", EXT_D, 22, TILES},
};
enum { COUNT = sizeof features / sizeof *features };

#if defined(__x86_64__) || defined(__i386__)

#include <cpuid.h>

typedef struct {
    uint32_t a, b, c, d;
} regs;

/* Registers of a CPUID leaf; all 0 when the processor does not have it. */
static regs cpuid(uint32_t leaf, uint32_t sub)
{
    regs r = {0, 0, 0, 0};
    if (__get_cpuid_max(leaf & 0x80000000u, NULL) >= leaf)
        __cpuid_count(leaf, sub, r.a, r.b, r.c, r.d);
    return r;
}

/* The register states that the operating system saves. */
static uint64_t xcr0(void)
{
    uint32_t low, high;
    if (!(cpuid(1, 0).c >> 27 & 1)) /* OSXSAVE */
        return 0;
    __asm__ __volatile__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* The features as bits; 0 on other architectures than x86. */
static uint64_t cpu_features(void)
{
    const regs basic = cpuid(1, 0), ext = cpuid(7, 0);
    const uint32_t words[WORDS] = {
        [BASIC_C] = basic.c,
        [EXT_B] = ext.b,
        [EXT_C] = ext.c,
        [EXT_D] = ext.d,
        [EXT1_A] = ext.a >= 1 ? cpuid(7, 1).a : 0, /* ext.a: the last sub-leaf */
    };
    const uint64_t saved = xcr0();
    uint64_t mask = 0;
    for (int i = 0; i < COUNT; i++)
        if ((words[features[i].word] >> features[i].bit & 1)
            && (saved & features[i].state) == features[i].state)
            mask |= (uint64_t)1 << i;
    return mask;
}

#else

static uint64_t cpu_features(void)
{
    return 0;
}

#endif

#endif
