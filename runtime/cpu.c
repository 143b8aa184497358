/* cpu.c: see cpu.h. */
#include "cpu.h"

#include <string.h>

#include "cpu_features.h"

const char *sparsec_cpu_feature_name(int index)
{
    return index >= 0 && index < COUNT ? features[index].name : NULL;
}

uint64_t sparsec_cpu_features(void)
{
    return cpu_features();
}

#if defined(__x86_64__) || defined(__i386__)

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

void sparsec_cpu_identity(char vendor[16], uint32_t *family, uint32_t *model)
{
    const regs name = cpuid(0, 0), basic = cpuid(1, 0);
    memset(vendor, 0, 16);
    memcpy(vendor, &name.b, 4);
    memcpy(vendor + 4, &name.d, 4);
    memcpy(vendor + 8, &name.c, 4);
    *family = basic.a >> 8 & 15;
    *model = basic.a >> 4 & 15;
    /* The extended fields count where the others are full, those of the model for Intel's family 6 too. */
    if (*family == 6 || *family == 15)
        *model |= basic.a >> 12 & 0xf0;
    if (*family == 15)
        *family += basic.a >> 20 & 255;
}

#else

void sparsec_cpu_identity(char vendor[16], uint32_t *family, uint32_t *model)
{
    vendor[0] = 0;
    *family = *model = 0;
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
