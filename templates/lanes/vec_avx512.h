/* Vector primitives, AVX-512 with VNNI: 16 lanes of 32 bits. */
#include <immintrin.h>
#define VL 16
typedef __m512 vf;
typedef __m512i vi_raw;
typedef int32_t vi __attribute__((vector_size(64)));

/* Where assembler finds vectors, and VPDPBUSD with an operand that is one dword in memory; tests emulate both
 * (tests/vectors_emulated.h). */
#ifndef VPDPBUSD_BROADCAST
#define V_CONSTRAINT "v"
#define VPDPBUSD_BROADCAST(acc, x, w) __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(x), "m"(*(w)))
#endif

/* Values that must be ready here: keeps the compiler from undoing an interleaving of chains. */
#define V_KEEP4(a, b, c, d) \
    __asm__ volatile("" : "+" V_CONSTRAINT(a), "+" V_CONSTRAINT(b), "+" V_CONSTRAINT(c), "+" V_CONSTRAINT(d))

SPARSEC_INLINE vf vf_set1(float x) { return _mm512_set1_ps(x); }
SPARSEC_INLINE vi vi_set1(int32_t x) { return (vi)_mm512_set1_epi32(x); }
SPARSEC_INLINE vf vf_load(const void *p) { return _mm512_loadu_ps(p); }
SPARSEC_INLINE vi vi_load(const void *p) { return (vi)_mm512_loadu_si512(p); }
SPARSEC_INLINE void vf_store(void *p, vf v) { _mm512_storeu_ps(p, v); }
SPARSEC_INLINE void vi_store(void *p, vi v) { _mm512_storeu_si512(p, (vi_raw)v); }
SPARSEC_INLINE vf vf_cvt(vi v) { return _mm512_cvtepi32_ps((vi_raw)v); }
/* Nearest integer, ties to even. */
SPARSEC_INLINE vi vi_rint(vf v) { return (vi)_mm512_cvtps_epi32(v); }
SPARSEC_INLINE vi vi_trunc(vf v) { return (vi)_mm512_cvttps_epi32(v); }
SPARSEC_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
SPARSEC_INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }
/* The second operand where either is NaN. */
SPARSEC_INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
SPARSEC_INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
SPARSEC_INLINE vi vi_min(vi a, vi b) { return (vi)_mm512_min_epi32((vi_raw)a, (vi_raw)b); }
SPARSEC_INLINE vi vi_max(vi a, vi b) { return (vi)_mm512_max_epi32((vi_raw)a, (vi_raw)b); }
/* Whether all lanes of four vectors are below a limit; NaN is not. */
SPARSEC_INLINE int vf_all_below(vf a, vf b, vf c, vf d, float limit)
{
    const vf most = vf_set1(limit);
    const __mmask16 first = _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(a, most, _CMP_LT_OQ), b, most, _CMP_LT_OQ);
    return _mm512_mask_cmp_ps_mask(_mm512_mask_cmp_ps_mask(first, c, most, _CMP_LT_OQ), d, most, _CMP_LT_OQ) == 0xffff;
}
SPARSEC_INLINE vf vf_sqrt(vf v) { return _mm512_sqrt_ps(v); }
SPARSEC_INLINE vf vf_floor(vf v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
SPARSEC_INLINE vf vf_ceil(vf v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC); }
SPARSEC_INLINE vf vf_round(vf v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/* acc + sum of 4 products of unsigned bytes x and signed bytes w, in each lane. */
SPARSEC_INLINE vi vi_dot4(vi acc, vi x, vi w)
{
    return (vi)_mm512_dpbusd_epi32((vi_raw)acc, (vi_raw)x, (vi_raw)w);
}
/* The same with one pack of weights for all lanes, which the product itself loads: the signed operand is the one that
 * may be in memory.  GCC 12 does not fold the broadcast. */
SPARSEC_INLINE vi vi_dot4_at(vi acc, vi x, const int32_t *w)
{
    VPDPBUSD_BROADCAST(acc, x, w);
    return acc;
}
#define vi_dot4_at vi_dot4_at /* vec.h asks */
/* A value that is to be in a register: loads to all lanes stay loads, one for all its products. */
#define V_LOADED(v) __asm__("" : "+" V_CONSTRAINT(v))
/* 16 bytes, widened. */
SPARSEC_INLINE vi vi_load_u8(const uint8_t *p) { return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p)); }
SPARSEC_INLINE vi vi_load_s8(const int8_t *p) { return (vi)_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)); }
/* The low byte of each lane. */
SPARSEC_INLINE void vi_store_8(void *p, vi v) { _mm_storeu_si128(p, _mm512_cvtepi32_epi8((vi_raw)v)); }
/* Stores the lanes lo <= lane < hi. */
SPARSEC_INLINE __mmask16 vi_lane_mask(int32_t lo, int32_t hi)
{
    return (__mmask16)((0xffffu << lo) & (hi >= 16 ? 0xffffu : (1u << hi) - 1u));
}
SPARSEC_INLINE void vi_store_lanes(void *p, vi v, int32_t lo, int32_t hi)
{
    _mm512_mask_storeu_epi32(p, vi_lane_mask(lo, hi), (vi_raw)v);
}
SPARSEC_INLINE void vi_store_8_lanes(void *p, vi v, int32_t lo, int32_t hi)
{
    _mm512_mask_cvtepi32_storeu_epi8(p, vi_lane_mask(lo, hi), (vi_raw)v);
}
/* 4 dwords (or floats) in each quarter of a vector, and one of them in all lanes: a load and a shuffle
 * for 4 weights where broadcasts from memory would take 4 loads. */
typedef vi vi_four;
typedef vf vf_four;
SPARSEC_INLINE vi_four vi_load4(const void *p) { return (vi)_mm512_broadcast_i32x4(_mm_loadu_si128(p)); }
SPARSEC_INLINE vf_four vf_load4(const void *p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
/* 16 floats, and 4 of them as above. */
typedef vf vf_sixteen;
SPARSEC_INLINE vf_sixteen vf_load16(const void *p) { return vf_load(p); }
#define vf_four_of(v, i) _mm512_shuffle_f32x4(v, v, (i) * 0x55)
#define vi_spread(v, i) ((vi)_mm512_shuffle_epi32((vi_raw)(v), (i) * 0x55))
#define vf_spread(v, i) _mm512_shuffle_ps(v, v, (i) * 0x55)
/* x * 2^n for whole n. */
#define vf_scale2(x, n) _mm512_scalef_ps(x, n)
/* table[i % 16]. */
#define vf_lookup16(table, i) _mm512_permutexvar_ps((vi_raw)(i), _mm512_loadu_ps(table))
/* 16 x 16 dwords: what is a row in steps of `from_step` dwords becomes a column. */
SPARSEC_INLINE void v_transpose(const void *from, int64_t from_step, void *to, int64_t to_step)
{
    vf a[16], b[16];
    for (int i = 0; i < 16; i++)
        a[i] = vf_load((const float *)from + i * from_step);
    for (int i = 0; i < 16; i += 2) { /* pairs of rows */
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) /* fours: columns i % 4 of each quarter */
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = _mm512_shuffle_ps(b[i + j], b[i + j + 2], 0x44);
            a[i + 2 * j + 1] = _mm512_shuffle_ps(b[i + j], b[i + j + 2], 0xee);
        }
    for (int i = 0; i < 16; i += 8) /* eights: quarters 0 and 2, 1 and 3 */
        for (int j = 0; j < 4; j++) {
            b[i + j] = _mm512_shuffle_f32x4(a[i + j], a[i + j + 4], 0x88);
            b[i + j + 4] = _mm512_shuffle_f32x4(a[i + j], a[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 4; j++) {
        vf_store((float *)to + j * to_step, _mm512_shuffle_f32x4(b[j], b[j + 8], 0x88));
        vf_store((float *)to + (j + 8) * to_step, _mm512_shuffle_f32x4(b[j], b[j + 8], 0xdd));
        vf_store((float *)to + (j + 4) * to_step, _mm512_shuffle_f32x4(b[j + 4], b[j + 12], 0x88));
        vf_store((float *)to + (j + 12) * to_step, _mm512_shuffle_f32x4(b[j + 4], b[j + 12], 0xdd));
    }
}
/* Four vectors of numbers as one panel dword in each lane: number + zp, saturated to 8 bits. */
SPARSEC_INLINE vi_raw vi_join(vi a, vi b, int32_t zp)
{
    return _mm512_adds_epi16(_mm512_packs_epi32((vi_raw)a, (vi_raw)b), _mm512_set1_epi16((int16_t)zp));
}
SPARSEC_INLINE vi vi_quads(vi_raw v) /* 4x4 bytes of each quarter, transposed */
{
    return (vi)_mm512_shuffle_epi8(v, _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400));
}
SPARSEC_INLINE vi vi_pack4_u8(vi a, vi b, vi c, vi d, int32_t zp)
{
    return vi_quads(_mm512_packus_epi16(vi_join(a, b, zp), vi_join(c, d, zp)));
}
SPARSEC_INLINE vi vi_pack4_s8(vi a, vi b, vi c, vi d, int32_t zp)
{
    return vi_quads(_mm512_packs_epi16(vi_join(a, b, zp), vi_join(c, d, zp)));
}
/* to[j][i] = from[i][j] for 16 x 16 dwords, of which the rows from `n` on are 0. */
#define v_transpose16 v_transpose16 /* vec.h asks */
SPARSEC_INLINE void v_transpose16(int32_t *to, const int32_t *from, int n)
{
    vi_raw r[16], t[16];
    for (int i = 0; i < 16; i++)
        r[i] = i < n ? (vi_raw)vi_load(from + 16 * i) : _mm512_setzero_si512();
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) { /* r[i + j]: in quarter q, column 4 * q + j of rows i to i + 3 */
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int j = 0; j < 4; j++) {
        const vi_raw even = _mm512_shuffle_i32x4(r[j], r[j + 4], 0x88);
        const vi_raw odd = _mm512_shuffle_i32x4(r[j], r[j + 4], 0xdd);
        const vi_raw even8 = _mm512_shuffle_i32x4(r[j + 8], r[j + 12], 0x88);
        const vi_raw odd8 = _mm512_shuffle_i32x4(r[j + 8], r[j + 12], 0xdd);
        vi_store(to + 16 * j, (vi)_mm512_shuffle_i32x4(even, even8, 0x88));
        vi_store(to + 16 * (j + 4), (vi)_mm512_shuffle_i32x4(odd, odd8, 0x88));
        vi_store(to + 16 * (j + 8), (vi)_mm512_shuffle_i32x4(even, even8, 0xdd));
        vi_store(to + 16 * (j + 12), (vi)_mm512_shuffle_i32x4(odd, odd8, 0xdd));
    }
}
/* Bytes of each lane: the greater, and a difference. */
SPARSEC_INLINE vi vi_max_u8(vi a, vi b) { return (vi)_mm512_max_epu8((vi_raw)a, (vi_raw)b); }
SPARSEC_INLINE vi vi_sub_u8(vi a, vi b) { return (vi)_mm512_sub_epi8((vi_raw)a, (vi_raw)b); }
/* table[byte] of each byte: 16 shuffles by its low half, among which its high half chooses, from the
 * lowest of its bits on. */
SPARSEC_INLINE vi_raw vi_lookup16(vi_raw low, const uint8_t *table)
{
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const void *)table)), low);
}
SPARSEC_INLINE vi vi_lookup(vi x, const uint8_t *table)
{
    const vi_raw low = _mm512_and_si512((vi_raw)x, _mm512_set1_epi8(15));
    const __mmask64 bit4 = _mm512_movepi8_mask(_mm512_slli_epi16((vi_raw)x, 3));
    const __mmask64 bit5 = _mm512_movepi8_mask(_mm512_slli_epi16((vi_raw)x, 2));
    const __mmask64 bit6 = _mm512_movepi8_mask(_mm512_slli_epi16((vi_raw)x, 1));
    vi_raw of64[4];
    for (int i = 0; i < 4; i++) {
        const uint8_t *const t = table + 64 * i;
        const vi_raw a = _mm512_mask_blend_epi8(bit4, vi_lookup16(low, t), vi_lookup16(low, t + 16));
        const vi_raw b = _mm512_mask_blend_epi8(bit4, vi_lookup16(low, t + 32), vi_lookup16(low, t + 48));
        of64[i] = _mm512_mask_blend_epi8(bit5, a, b);
    }
    const vi_raw less = _mm512_mask_blend_epi8(bit6, of64[0], of64[1]);
    const vi_raw more = _mm512_mask_blend_epi8(bit6, of64[2], of64[3]);
    return (vi)_mm512_mask_blend_epi8(_mm512_movepi8_mask((vi_raw)x), less, more);
}
/* e^(-x d) for the low byte d of each lane: tables of e^(-16 x i) and of e^(-x i), i in [0, 16). */
SPARSEC_INLINE vf vf_decay(const float *table, vi d)
{
    return vf_lookup16(table, (vi)_mm512_srli_epi32((vi_raw)d, 4)) * vf_lookup16(table + 16, d);
}
