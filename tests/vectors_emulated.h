/* vectors_emulated.h: instructions of targets that this CPU lacks, for tests.  Compilers include it before all
 * else (-include); tests/stand_ins.py says how.
 *
 *   EMULATED_AVX512    AVX-512 F, BW, DQ, VL, VNNI, VBMI2 and BF16, as far as the templates use them, on AVX2
 *   EMULATED_AVXVNNI   AVX-VNNI, on AVX2
 *
 * The templates' own code is what is compiled: the compiler's macros say that the instructions are there, and
 * its intrinsics are the functions below, of two halves of 32 bytes.  What an intrinsic does is compared with
 * numpy in tests/test_vectors_emulated.py, and with the instruction where there is one. */
#ifndef __ASSEMBLER__
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EMULATED static __attribute__((noinline, unused)) /* else they would take a compiler long */

/* acc + 4 products of unsigned bytes x and signed bytes w, modulo 2^32. */
EMULATED __m256i half_dpbusd(__m256i acc, __m256i x, __m256i w)
{
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(x, _mm256_set1_epi16(255)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(x, 8), _mm256_srai_epi16(w, 8));
    return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
}

#ifdef EMULATED_AVXVNNI
#define __AVXVNNI__ 1
#define _mm256_dpbusd_avx_epi32 half_dpbusd
#endif

#ifdef EMULATED_AVX512
#pragma GCC diagnostic ignored "-Wpsabi" /* vectors of 64 bytes as arguments: within a file */
#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512DQ__ 1
#define __AVX512VL__ 1
#define __AVX512VNNI__ 1
#define __AVX512VBMI2__ 1
#define __AVX512BF16__ 1

/* A vector, and its parts. */
typedef union {
    __m512 ps;
    __m512d pd;
    __m512i si;
    __m256 ps2[2];
    __m256d pd2[2];
    __m256i si2[2];
    __m128 ps4[4];
    __m128i si4[4];
    float f32[16];
    int32_t i32[16];
    uint32_t u32[16];
    int16_t i16[32];
    int8_t i8[64];
    uint8_t u8[64];
} v512;

/* Functions whose halves are those of AVX2. */
#define HALVES_1(name, type, part, half) \
    EMULATED type name(type a) \
    { \
        const v512 x = {.part = a}; \
        v512 r; \
        for (int h = 0; h < 2; h++) \
            r.part##2[h] = half(x.part##2[h]); \
        return r.part; \
    }
#define HALVES_2(name, type, part, half) \
    EMULATED type name(type a, type b) \
    { \
        const v512 x = {.part = a}, y = {.part = b}; \
        v512 r; \
        for (int h = 0; h < 2; h++) \
            r.part##2[h] = half(x.part##2[h], y.part##2[h]); \
        return r.part; \
    }
#define HALVES_3(name, type, part, half) \
    EMULATED type name(type a, type b, type c) \
    { \
        const v512 x = {.part = a}, y = {.part = b}, z = {.part = c}; \
        v512 r; \
        for (int h = 0; h < 2; h++) \
            r.part##2[h] = half(x.part##2[h], y.part##2[h], z.part##2[h]); \
        return r.part; \
    }
/* Functions of numbers that are the same in all lanes of a kind. */
#define ALL_LANES(name, type, part, lanes, number) \
    EMULATED type name(number a) \
    { \
        v512 r; \
        for (int i = 0; i < 64 / (int)sizeof(number); i++) \
            r.lanes[i] = a; \
        return r.part; \
    }

HALVES_1(v512_sqrt_ps, __m512, ps, _mm256_sqrt_ps)
HALVES_2(v512_min_ps, __m512, ps, _mm256_min_ps)
HALVES_2(v512_max_ps, __m512, ps, _mm256_max_ps)
HALVES_2(v512_unpacklo_ps, __m512, ps, _mm256_unpacklo_ps)
HALVES_2(v512_unpackhi_ps, __m512, ps, _mm256_unpackhi_ps)
HALVES_3(v512_fmadd_ps, __m512, ps, _mm256_fmadd_ps)
HALVES_3(v512_fnmadd_ps, __m512, ps, _mm256_fnmadd_ps)
HALVES_3(v512_fmadd_pd, __m512d, pd, _mm256_fmadd_pd)
HALVES_2(v512_adds_epi16, __m512i, si, _mm256_adds_epi16)
HALVES_2(v512_add_epi32, __m512i, si, _mm256_add_epi32)
HALVES_2(v512_sub_epi8, __m512i, si, _mm256_sub_epi8)
HALVES_2(v512_mullo_epi32, __m512i, si, _mm256_mullo_epi32)
HALVES_2(v512_and_si512, __m512i, si, _mm256_and_si256)
HALVES_2(v512_min_epi32, __m512i, si, _mm256_min_epi32)
HALVES_2(v512_max_epi32, __m512i, si, _mm256_max_epi32)
HALVES_2(v512_max_epu8, __m512i, si, _mm256_max_epu8)
HALVES_2(v512_packs_epi32, __m512i, si, _mm256_packs_epi32)
HALVES_2(v512_packs_epi16, __m512i, si, _mm256_packs_epi16)
HALVES_2(v512_packus_epi16, __m512i, si, _mm256_packus_epi16)
HALVES_2(v512_shuffle_epi8, __m512i, si, _mm256_shuffle_epi8)
HALVES_2(v512_unpacklo_epi32, __m512i, si, _mm256_unpacklo_epi32)
HALVES_2(v512_unpackhi_epi32, __m512i, si, _mm256_unpackhi_epi32)
HALVES_2(v512_unpacklo_epi64, __m512i, si, _mm256_unpacklo_epi64)
HALVES_2(v512_unpackhi_epi64, __m512i, si, _mm256_unpackhi_epi64)
HALVES_3(v512_dpbusd_epi32, __m512i, si, half_dpbusd)
ALL_LANES(v512_set1_ps, __m512, ps, f32, float)
ALL_LANES(v512_set1_epi32, __m512i, si, i32, int32_t)
ALL_LANES(v512_set1_epi16, __m512i, si, i16, int16_t)
ALL_LANES(v512_set1_epi8, __m512i, si, i8, int8_t)
ALL_LANES(v512_broadcast_f32x4, __m512, ps, ps4, __m128)
ALL_LANES(v512_broadcast_i32x4, __m512i, si, si4, __m128i)

EMULATED __m512i v512_setzero_si512(void) { return v512_set1_epi32(0); }
EMULATED __m512i v512_set4_epi32(int32_t d, int32_t c, int32_t b, int32_t a)
{
    return v512_broadcast_i32x4(_mm_set_epi32(d, c, b, a));
}
#define v512_setr_epi32(...) (((v512){.i32 = {__VA_ARGS__}}).si)

EMULATED __m512i v512_loadu_si512(const void *p)
{
    v512 r;
    memcpy(&r, p, 64);
    return r.si;
}
EMULATED __m512 v512_loadu_ps(const void *p) { return (__m512)v512_loadu_si512(p); }
EMULATED void v512_storeu_si512(void *p, __m512i a) { memcpy(p, &a, 64); }
EMULATED void v512_storeu_ps(void *p, __m512 a) { memcpy(p, &a, 64); }
EMULATED void v512_store_si512(void *p, __m512i a)
{
    if ((uintptr_t)p % 64)
        abort();
    memcpy(p, &a, 64);
}
EMULATED void v512_mask_storeu_epi32(void *p, __mmask16 k, __m512i a)
{
    const v512 x = {.si = a};
    for (int i = 0; i < 16; i++)
        if (k >> i & 1)
            memcpy((char *)p + 4 * i, &x.i32[i], 4);
}
EMULATED void v512_mask_cvtepi32_storeu_epi8(void *p, __mmask16 k, __m512i a)
{
    const v512 x = {.si = a};
    for (int i = 0; i < 16; i++)
        if (k >> i & 1)
            ((uint8_t *)p)[i] = (uint8_t)x.u32[i];
}

EMULATED __m512 v512_cvtepi32_ps(__m512i a)
{
    const v512 x = {.si = a};
    return ((v512){.ps2 = {_mm256_cvtepi32_ps(x.si2[0]), _mm256_cvtepi32_ps(x.si2[1])}}).ps;
}
EMULATED __m512i v512_cvtps_epi32(__m512 a)
{
    const v512 x = {.ps = a};
    return ((v512){.si2 = {_mm256_cvtps_epi32(x.ps2[0]), _mm256_cvtps_epi32(x.ps2[1])}}).si;
}
EMULATED __m512i v512_cvttps_epi32(__m512 a)
{
    const v512 x = {.ps = a};
    return ((v512){.si2 = {_mm256_cvttps_epi32(x.ps2[0]), _mm256_cvttps_epi32(x.ps2[1])}}).si;
}
EMULATED __m512i v512_cvtepu8_epi32(__m128i a)
{
    return ((v512){.si2 = {_mm256_cvtepu8_epi32(a), _mm256_cvtepu8_epi32(_mm_srli_si128(a, 8))}}).si;
}
EMULATED __m512i v512_cvtepi8_epi32(__m128i a)
{
    return ((v512){.si2 = {_mm256_cvtepi8_epi32(a), _mm256_cvtepi8_epi32(_mm_srli_si128(a, 8))}}).si;
}
EMULATED __m128i v512_cvtepi32_epi8(__m512i a)
{
    const v512 x = {.si = a};
    v512 r;
    for (int i = 0; i < 16; i++)
        r.u8[i] = (uint8_t)x.u32[i];
    return r.si4[0];
}

EMULATED __mmask16 v512_cmp_ps_mask(__m512 a, __m512 b, const int predicate)
{
    const v512 x = {.ps = a}, y = {.ps = b};
    if (predicate != _CMP_LT_OQ)
        abort();
    const int low = _mm256_movemask_ps(_mm256_cmp_ps(x.ps2[0], y.ps2[0], _CMP_LT_OQ));
    const int high = _mm256_movemask_ps(_mm256_cmp_ps(x.ps2[1], y.ps2[1], _CMP_LT_OQ));
    return (__mmask16)(low | high << 8);
}
EMULATED __mmask16 v512_mask_cmp_ps_mask(__mmask16 k, __m512 a, __m512 b, const int predicate)
{
    return (__mmask16)(k & v512_cmp_ps_mask(a, b, predicate));
}
EMULATED __mmask64 v512_movepi8_mask(__m512i a)
{
    const v512 x = {.si = a};
    const uint64_t low = (uint32_t)_mm256_movemask_epi8(x.si2[0]), high = (uint32_t)_mm256_movemask_epi8(x.si2[1]);
    return low | high << 32;
}
EMULATED __m512i v512_mask_blend_epi8(__mmask64 k, __m512i a, __m512i b)
{
    const v512 x = {.si = a}, y = {.si = b};
    v512 r;
    for (int i = 0; i < 64; i++)
        r.u8[i] = k >> i & 1 ? y.u8[i] : x.u8[i];
    return r.si;
}

EMULATED __m512 v512_roundscale_ps(__m512 a, const int how)
{
    const v512 x = {.ps = a};
    v512 r;
    for (int h = 0; h < 2; h++)
        switch (how) {
        case _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC:
            r.ps2[h] = _mm256_round_ps(x.ps2[h], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
            break;
        case _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC:
            r.ps2[h] = _mm256_floor_ps(x.ps2[h]);
            break;
        case _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC:
            r.ps2[h] = _mm256_ceil_ps(x.ps2[h]);
            break;
        default:
            abort();
        }
    return r.ps;
}
/* a * 2^floor(b), in one rounding: products of doubles are exact.  A quiet NaN times 2^infinity is infinity, and
 * 0 the other way. */
EMULATED __m512 v512_scalef_ps(__m512 a, __m512 b)
{
    const v512 x = {.ps = a}, y = {.ps = b};
    v512 r;
    for (int i = 0; i < 16; i++) {
        const double n = __builtin_floor((double)y.f32[i]);
        if (__builtin_isnan(x.f32[i]) && x.u32[i] & 0x400000 && __builtin_isinf(n)) {
            r.f32[i] = n > 0 ? __builtin_inff() : 0.0f;
            continue;
        }
        if (n > 400 || n < -400 || n != n) { /* infinity and NaN as they are, what is large as infinity */
            const int infinite = __builtin_isinf(n);
            const double most = infinite ? __builtin_inf() : 0x1p400, least = infinite ? 0 : 0x1p-400;
            r.f32[i] = (float)(x.f32[i] * (n > 0 ? most : n < 0 ? least : n));
            continue;
        }
        const uint64_t bits = (uint64_t)((int64_t)n + 1023) << 52;
        double factor;
        memcpy(&factor, &bits, 8);
        r.f32[i] = (float)(x.f32[i] * factor);
    }
    return r.ps;
}

EMULATED __m512i v512_slli_epi16(__m512i a, unsigned by)
{
    const v512 x = {.si = a};
    return ((v512){.si2 = {_mm256_slli_epi16(x.si2[0], (int)by), _mm256_slli_epi16(x.si2[1], (int)by)}}).si;
}
EMULATED __m512i v512_srli_epi32(__m512i a, unsigned by)
{
    const v512 x = {.si = a};
    return ((v512){.si2 = {_mm256_srli_epi32(x.si2[0], (int)by), _mm256_srli_epi32(x.si2[1], (int)by)}}).si;
}
EMULATED __m512 v512_shuffle_ps(__m512 a, __m512 b, const int which)
{
    const v512 x = {.ps = a}, y = {.ps = b};
    v512 r;
    for (int i = 0; i < 16; i++)
        r.f32[i] = (i % 4 < 2 ? x : y).f32[i / 4 * 4 + (which >> i % 4 * 2 & 3)];
    return r.ps;
}
EMULATED __m512i v512_shuffle_epi32(__m512i a, const int which)
{
    return (__m512i)v512_shuffle_ps((__m512)a, (__m512)a, which);
}
EMULATED __m512i v512_shuffle_i32x4(__m512i a, __m512i b, const int which)
{
    const v512 x = {.si = a}, y = {.si = b};
    v512 r;
    for (int q = 0; q < 4; q++)
        r.si4[q] = (q < 2 ? x : y).si4[which >> 2 * q & 3];
    return r.si;
}
EMULATED __m512 v512_shuffle_f32x4(__m512 a, __m512 b, const int which)
{
    return (__m512)v512_shuffle_i32x4((__m512i)a, (__m512i)b, which);
}
EMULATED __m512 v512_permutexvar_ps(__m512i which, __m512 a)
{
    const v512 k = {.si = which}, x = {.ps = a};
    v512 r;
    for (int i = 0; i < 16; i++)
        r.f32[i] = x.f32[k.u32[i] & 15];
    return r.ps;
}
EMULATED __m512i v512_permutexvar_epi16(__m512i which, __m512i a)
{
    const v512 k = {.si = which}, x = {.si = a};
    v512 r;
    for (int i = 0; i < 32; i++)
        r.i16[i] = x.i16[k.i16[i] & 31];
    return r.si;
}
EMULATED __m512i v512_maskz_expand_epi8(__mmask64 k, __m512i a)
{
    const v512 x = {.si = a};
    v512 r;
    for (int i = 0, from = 0; i < 64; i++)
        r.u8[i] = k >> i & 1 ? x.u8[from++] : 0;
    return r.si;
}
EMULATED __m512i v512_maskz_expand_epi32(__mmask16 k, __m512i a)
{
    const v512 x = {.si = a};
    v512 r;
    for (int i = 0, from = 0; i < 16; i++)
        r.u32[i] = k >> i & 1 ? x.u32[from++] : 0;
    return r.si;
}

/* bfloat16: whatever MXCSR says, numbers below 2^-126 are zero, operands and results. */
EMULATED float float_of(uint32_t bits)
{
    float r;
    memcpy(&r, &bits, 4);
    return r;
}
EMULATED uint32_t flushed(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits & 0x7f800000 ? bits : bits & 0x80000000;
}
EMULATED int16_t to_bf16(float x)
{
    const uint32_t bits = flushed(x);
    if ((bits & 0x7fffffff) > 0x7f800000) /* NaN, quiet */
        return (int16_t)(bits >> 16 | 0x40);
    return (int16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
EMULATED __m256bh v512_cvtneps_pbh(__m512 a)
{
    const v512 x = {.ps = a};
    v512 r;
    for (int i = 0; i < 16; i++)
        r.i16[i] = to_bf16(x.f32[i]);
    return (__m256bh)r.si2[0];
}
EMULATED __m512bh v512_cvtne2ps_pbh(__m512 a, __m512 b)
{
    const __m256i high = (__m256i)v512_cvtneps_pbh(a), low = (__m256i)v512_cvtneps_pbh(b);
    return (__m512bh)((v512){.si2 = {low, high}}).si;
}
/* The sums are fused, first that of the upper halves. */
EMULATED __m512 v512_dpbf16_ps(__m512 acc, __m512bh a, __m512bh b)
{
    const v512 x = {.si = (__m512i)a}, y = {.si = (__m512i)b};
    v512 r = {.ps = acc};
    for (int i = 0; i < 16; i++)
        for (int upper = 1; upper >= 0; upper--) {
            const uint32_t shift = upper ? 0 : 16, kept = 0xffff0000;
            const float u = float_of(flushed(float_of(x.u32[i] << shift & kept)));
            const float v = float_of(flushed(float_of(y.u32[i] << shift & kept)));
            const float sum = float_of(flushed(r.f32[i]));
            r.u32[i] = flushed(__builtin_fmaf(u, v, sum));
        }
    return r.ps;
}

/* What vec_avx512.h says in assembler. */
#define V_CONSTRAINT "m"
#define VPDPBUSD_BROADCAST(acc, x, w) \
    ((acc) = (vi)v512_dpbusd_epi32((__m512i)(acc), (__m512i)(x), v512_set1_epi32(*(w))))

#undef _mm512_add_epi32
#define _mm512_add_epi32 v512_add_epi32
#undef _mm512_adds_epi16
#define _mm512_adds_epi16 v512_adds_epi16
#undef _mm512_and_si512
#define _mm512_and_si512 v512_and_si512
#undef _mm512_broadcast_f32x4
#define _mm512_broadcast_f32x4 v512_broadcast_f32x4
#undef _mm512_broadcast_i32x4
#define _mm512_broadcast_i32x4 v512_broadcast_i32x4
#undef _mm512_cmp_ps_mask
#define _mm512_cmp_ps_mask v512_cmp_ps_mask
#undef _mm512_cvtepi32_epi8
#define _mm512_cvtepi32_epi8 v512_cvtepi32_epi8
#undef _mm512_cvtepi32_ps
#define _mm512_cvtepi32_ps v512_cvtepi32_ps
#undef _mm512_cvtepi8_epi32
#define _mm512_cvtepi8_epi32 v512_cvtepi8_epi32
#undef _mm512_cvtepu8_epi32
#define _mm512_cvtepu8_epi32 v512_cvtepu8_epi32
#undef _mm512_cvtne2ps_pbh
#define _mm512_cvtne2ps_pbh v512_cvtne2ps_pbh
#undef _mm512_cvtneps_pbh
#define _mm512_cvtneps_pbh v512_cvtneps_pbh
#undef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32 v512_cvtps_epi32
#undef _mm512_cvttps_epi32
#define _mm512_cvttps_epi32 v512_cvttps_epi32
#undef _mm512_dpbf16_ps
#define _mm512_dpbf16_ps v512_dpbf16_ps
#undef _mm512_dpbusd_epi32
#define _mm512_dpbusd_epi32 v512_dpbusd_epi32
#undef _mm512_fmadd_pd
#define _mm512_fmadd_pd v512_fmadd_pd
#undef _mm512_fmadd_ps
#define _mm512_fmadd_ps v512_fmadd_ps
#undef _mm512_fnmadd_ps
#define _mm512_fnmadd_ps v512_fnmadd_ps
#undef _mm512_loadu_ps
#define _mm512_loadu_ps v512_loadu_ps
#undef _mm512_loadu_si512
#define _mm512_loadu_si512 v512_loadu_si512
#undef _mm512_mask_blend_epi8
#define _mm512_mask_blend_epi8 v512_mask_blend_epi8
#undef _mm512_mask_cmp_ps_mask
#define _mm512_mask_cmp_ps_mask v512_mask_cmp_ps_mask
#undef _mm512_mask_cvtepi32_storeu_epi8
#define _mm512_mask_cvtepi32_storeu_epi8 v512_mask_cvtepi32_storeu_epi8
#undef _mm512_mask_storeu_epi32
#define _mm512_mask_storeu_epi32 v512_mask_storeu_epi32
#undef _mm512_maskz_expand_epi32
#define _mm512_maskz_expand_epi32 v512_maskz_expand_epi32
#undef _mm512_maskz_expand_epi8
#define _mm512_maskz_expand_epi8 v512_maskz_expand_epi8
#undef _mm512_max_epi32
#define _mm512_max_epi32 v512_max_epi32
#undef _mm512_max_epu8
#define _mm512_max_epu8 v512_max_epu8
#undef _mm512_max_ps
#define _mm512_max_ps v512_max_ps
#undef _mm512_min_epi32
#define _mm512_min_epi32 v512_min_epi32
#undef _mm512_min_ps
#define _mm512_min_ps v512_min_ps
#undef _mm512_movepi8_mask
#define _mm512_movepi8_mask v512_movepi8_mask
#undef _mm512_mullo_epi32
#define _mm512_mullo_epi32 v512_mullo_epi32
#undef _mm512_packs_epi16
#define _mm512_packs_epi16 v512_packs_epi16
#undef _mm512_packs_epi32
#define _mm512_packs_epi32 v512_packs_epi32
#undef _mm512_packus_epi16
#define _mm512_packus_epi16 v512_packus_epi16
#undef _mm512_permutexvar_epi16
#define _mm512_permutexvar_epi16 v512_permutexvar_epi16
#undef _mm512_permutexvar_ps
#define _mm512_permutexvar_ps v512_permutexvar_ps
#undef _mm512_roundscale_ps
#define _mm512_roundscale_ps v512_roundscale_ps
#undef _mm512_scalef_ps
#define _mm512_scalef_ps v512_scalef_ps
#undef _mm512_set1_epi16
#define _mm512_set1_epi16 v512_set1_epi16
#undef _mm512_set1_epi32
#define _mm512_set1_epi32 v512_set1_epi32
#undef _mm512_set1_epi8
#define _mm512_set1_epi8 v512_set1_epi8
#undef _mm512_set1_ps
#define _mm512_set1_ps v512_set1_ps
#undef _mm512_set4_epi32
#define _mm512_set4_epi32 v512_set4_epi32
#undef _mm512_setr_epi32
#define _mm512_setr_epi32 v512_setr_epi32
#undef _mm512_setzero_si512
#define _mm512_setzero_si512 v512_setzero_si512
#undef _mm512_shuffle_epi32
#define _mm512_shuffle_epi32 v512_shuffle_epi32
#undef _mm512_shuffle_epi8
#define _mm512_shuffle_epi8 v512_shuffle_epi8
#undef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4 v512_shuffle_f32x4
#undef _mm512_shuffle_i32x4
#define _mm512_shuffle_i32x4 v512_shuffle_i32x4
#undef _mm512_shuffle_ps
#define _mm512_shuffle_ps v512_shuffle_ps
#undef _mm512_slli_epi16
#define _mm512_slli_epi16 v512_slli_epi16
#undef _mm512_sqrt_ps
#define _mm512_sqrt_ps v512_sqrt_ps
#undef _mm512_srli_epi32
#define _mm512_srli_epi32 v512_srli_epi32
#undef _mm512_store_si512
#define _mm512_store_si512 v512_store_si512
#undef _mm512_storeu_ps
#define _mm512_storeu_ps v512_storeu_ps
#undef _mm512_storeu_si512
#define _mm512_storeu_si512 v512_storeu_si512
#undef _mm512_sub_epi8
#define _mm512_sub_epi8 v512_sub_epi8
#undef _mm512_unpackhi_epi32
#define _mm512_unpackhi_epi32 v512_unpackhi_epi32
#undef _mm512_unpackhi_epi64
#define _mm512_unpackhi_epi64 v512_unpackhi_epi64
#undef _mm512_unpackhi_ps
#define _mm512_unpackhi_ps v512_unpackhi_ps
#undef _mm512_unpacklo_epi32
#define _mm512_unpacklo_epi32 v512_unpacklo_epi32
#undef _mm512_unpacklo_epi64
#define _mm512_unpacklo_epi64 v512_unpacklo_epi64
#undef _mm512_unpacklo_ps
#define _mm512_unpacklo_ps v512_unpacklo_ps
#endif
#endif
