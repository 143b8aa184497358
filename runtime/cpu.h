/* cpu.h: what the processor and the operating system support, asked of them directly. */
#ifndef SPARSEC_CPU_H
#define SPARSEC_CPU_H

#include <stdint.h>

/* Features are bits in a mask.  On other architectures than x86 the mask is 0. */

/* Name of the feature of a bit, or NULL when it is none's. */
const char *sparsec_cpu_feature_name(int index);

/* The features that the CPU has (CPUID) and whose registers the operating system saves (XCR0). */
uint64_t sparsec_cpu_features(void);

/* Sizes in bytes of the level 1 data, level 2 and level 3 caches as seen by one core; 0: unknown. */
void sparsec_cpu_caches(uint64_t sizes[3]);

/* Who made the processor ("GenuineIntel", "" when unknown), and its family and model as Linux counts them. */
void sparsec_cpu_identity(char vendor[16], uint32_t *family, uint32_t *model);

/* The processor's name, "" when unknown. */
void sparsec_cpu_brand(char text[64]);

#endif
