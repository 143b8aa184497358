/* cpu.h: what the processor and the operating system support, asked of them directly. */
#ifndef SPARSEC_CPU_H
#define SPARSEC_CPU_H

#include <stdint.h>

/* Features are bits in a mask; names are those of GCC's -m options.  On other architectures than
 * x86 the mask is 0. */
enum {
    SPARSEC_CPU_SSE4_2,
    SPARSEC_CPU_POPCNT,
    SPARSEC_CPU_AVX,
    SPARSEC_CPU_AVX2,
    SPARSEC_CPU_FMA,
    SPARSEC_CPU_F16C,
    SPARSEC_CPU_BMI,
    SPARSEC_CPU_BMI2,
    SPARSEC_CPU_AVXVNNI,
    SPARSEC_CPU_AVX512F,
    SPARSEC_CPU_AVX512BW,
    SPARSEC_CPU_AVX512DQ,
    SPARSEC_CPU_AVX512VL,
    SPARSEC_CPU_AVX512CD,
    SPARSEC_CPU_AVX512VNNI,
    SPARSEC_CPU_AVX512VBMI,
    SPARSEC_CPU_AVX512BF16,
    SPARSEC_CPU_AMX_TILE,
    SPARSEC_CPU_AMX_INT8,
    SPARSEC_CPU_AMX_BF16,
    SPARSEC_CPU_FEATURES
};

/* Name of a feature, or NULL when the index is not one. */
const char *sparsec_cpu_feature_name(int index);

/* The features that the CPU has (CPUID) and whose registers the operating system saves (XCR0). */
uint64_t sparsec_cpu_features(void);

/* Sizes in bytes of the level 1 data, level 2 and level 3 caches as seen by one core; 0: unknown. */
void sparsec_cpu_caches(uint64_t sizes[3]);

/* The processor's name, "" when unknown. */
void sparsec_cpu_brand(char text[64]);

#endif
