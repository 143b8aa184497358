/* cpu.c: see cpu.h. */
#include "cpu.h"

#include <string.h>

static const char *const feature_names[SPARSEC_CPU_FEATURES] = {
    [SPARSEC_CPU_SSE4_2] = "sse4_2",
    [SPARSEC_CPU_POPCNT] = "popcnt",
    [SPARSEC_CPU_AVX] = "avx",
    [SPARSEC_CPU_AVX2] = "avx2",
    [SPARSEC_CPU_FMA] = "fma",
    [SPARSEC_CPU_F16C] = "f16c",
    [SPARSEC_CPU_BMI] = "bmi",
    [SPARSEC_CPU_BMI2] = "bmi2",
    [SPARSEC_CPU_AVXVNNI] = "avxvnni",
    [SPARSEC_CPU_AVX512F] = "avx512f",
    [SPARSEC_CPU_AVX512BW] = "avx512bw",
    [SPARSEC_CPU_AVX512DQ] = "avx512dq",
    [SPARSEC_CPU_AVX512VL] = "avx512vl",
    [SPARSEC_CPU_AVX512CD] = "avx512cd",
    [SPARSEC_CPU_AVX512VNNI] = "avx512vnni",
    [SPARSEC_CPU_AVX512VBMI] = "avx512vbmi",
    [SPARSEC_CPU_AVX512BF16] = "avx512bf16",
    [SPARSEC_CPU_AMX_TILE] = "amx_tile",
    [SPARSEC_CPU_AMX_INT8] = "amx_int8",
    [SPARSEC_CPU_AMX_BF16] = "amx_bf16",
};

const char *sparsec_cpu_feature_name(int index)
{
    return index >= 0 && index < SPARSEC_CPU_FEATURES ? feature_names[index] : NULL;
}

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

uint64_t sparsec_cpu_features(void)
{
    enum { NONE = 0, YMM = 0x6, ZMM = 0xe6, TILES = 0x60000 };
    const regs basic = cpuid(1, 0), ext = cpuid(7, 0);
    const uint32_t ext1_a = ext.a >= 1 ? cpuid(7, 1).a : 0; /* ext.a: the last sub-leaf */
    const struct {
        int feature;
        uint32_t word;
        int bit;
        uint64_t state; /* bits of XCR0 */
    } table[] = {
        {SPARSEC_CPU_SSE4_2, basic.c, 20, NONE},    {SPARSEC_CPU_POPCNT, basic.c, 23, NONE},
        {SPARSEC_CPU_AVX, basic.c, 28, YMM},        {SPARSEC_CPU_AVX2, ext.b, 5, YMM},
        {SPARSEC_CPU_FMA, basic.c, 12, YMM},        {SPARSEC_CPU_F16C, basic.c, 29, YMM},
        {SPARSEC_CPU_BMI, ext.b, 3, NONE},          {SPARSEC_CPU_BMI2, ext.b, 8, NONE},
        {SPARSEC_CPU_AVXVNNI, ext1_a, 4, YMM},      {SPARSEC_CPU_AVX512F, ext.b, 16, ZMM},
        {SPARSEC_CPU_AVX512BW, ext.b, 30, ZMM},     {SPARSEC_CPU_AVX512DQ, ext.b, 17, ZMM},
        {SPARSEC_CPU_AVX512VL, ext.b, 31, ZMM},     {SPARSEC_CPU_AVX512CD, ext.b, 28, ZMM},
        {SPARSEC_CPU_AVX512VNNI, ext.c, 11, ZMM},   {SPARSEC_CPU_AVX512VBMI, ext.c, 1, ZMM},
        {SPARSEC_CPU_AVX512BF16, ext1_a, 5, ZMM},   {SPARSEC_CPU_AMX_TILE, ext.d, 24, TILES},
        {SPARSEC_CPU_AMX_INT8, ext.d, 25, TILES},   {SPARSEC_CPU_AMX_BF16, ext.d, 22, TILES},
    };
    const uint64_t saved = xcr0();
    uint64_t mask = 0;
    for (unsigned i = 0; i < sizeof table / sizeof *table; i++)
        if ((table[i].word >> table[i].bit & 1) && (saved & table[i].state) == table[i].state)
            mask |= (uint64_t)1 << table[i].feature;
    return mask;
}

void sparsec_cpu_caches(uint64_t sizes[3])
{
    /* Intel lists caches in leaf 4, AMD in the same form in 0x8000001D. */
    static const uint32_t leaves[] = {4, 0x8000001Du};
    sizes[0] = sizes[1] = sizes[2] = 0;
    for (int l = 0; l < 2 && !sizes[0]; l++) {
        for (uint32_t sub = 0; sub < 16; sub++) {
            const regs r = cpuid(leaves[l], sub);
            const uint32_t type = r.a & 31, level = r.a >> 5 & 7; /* 1: data, 3: unified */
            if (type == 0)
                break;
            if ((type == 1 || type == 3) && level >= 1 && level <= 3)
                sizes[level - 1] = (uint64_t)((r.b >> 22) + 1) * ((r.b >> 12 & 1023) + 1)
                    * ((r.b & 4095) + 1) * ((uint64_t)r.c + 1);
        }
    }
}

void sparsec_cpu_brand(char text[64])
{
    memset(text, 0, 64);
    if (__get_cpuid_max(0x80000000u, NULL) < 0x80000004u)
        return;
    for (uint32_t i = 0; i < 3; i++) {
        const regs r = cpuid(0x80000002u + i, 0);
        memcpy(text + 16 * i, &r, 16);
    }
}

#else

uint64_t sparsec_cpu_features(void)
{
    return 0;
}

void sparsec_cpu_caches(uint64_t sizes[3])
{
    sizes[0] = sizes[1] = sizes[2] = 0;
}

void sparsec_cpu_brand(char text[64])
{
    text[0] = 0;
}

#endif
