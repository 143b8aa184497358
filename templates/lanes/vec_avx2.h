/* Vector primitives, AVX2 with FMA (AVX-VNNI where the target has it): 8 lanes of 32 bits. */
#include <immintrin.h>
#define VL 8
typedef __m256 vf;
typedef __m256i vi_raw;
typedef int32_t vi __attribute__((vector_size(32)));

/* Values that must be ready here: keeps the compiler from undoing an interleaving of chains. */
#define V_KEEP4(a, b, c, d) __asm__ volatile("" : "+x"(a), "+x"(b), "+x"(c), "+x"(d))

SPARSEC_INLINE vf vf_set1(float x) { return _mm256_set1_ps(x); }
SPARSEC_INLINE vi vi_set1(int32_t x) { return (vi)_mm256_set1_epi32(x); }
SPARSEC_INLINE vf vf_load(const void *p) { return _mm256_loadu_ps(p); }
SPARSEC_INLINE vi vi_load(const void *p) { return (vi)_mm256_loadu_si256(p); }
SPARSEC_INLINE void vf_store(void *p, vf v) { _mm256_storeu_ps(p, v); }
SPARSEC_INLINE void vi_store(void *p, vi v) { _mm256_storeu_si256(p, (vi_raw)v); }
SPARSEC_INLINE vf vf_cvt(vi v) { return _mm256_cvtepi32_ps((vi_raw)v); }
/* Nearest integer, ties to even. */
SPARSEC_INLINE vi vi_rint(vf v) { return (vi)_mm256_cvtps_epi32(v); }
SPARSEC_INLINE vi vi_trunc(vf v) { return (vi)_mm256_cvttps_epi32(v); }
SPARSEC_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
SPARSEC_INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
/* The second operand where either is NaN. */
SPARSEC_INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
SPARSEC_INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
SPARSEC_INLINE vi vi_min(vi a, vi b) { return (vi)_mm256_min_epi32((vi_raw)a, (vi_raw)b); }
SPARSEC_INLINE vi vi_max(vi a, vi b) { return (vi)_mm256_max_epi32((vi_raw)a, (vi_raw)b); }
/* Whether all lanes of four vectors are below a limit; NaN is not. */
SPARSEC_INLINE int vf_all_below(vf a, vf b, vf c, vf d, float limit)
{
    const vf most = vf_set1(limit);
    const vf ab = _mm256_and_ps(_mm256_cmp_ps(a, most, _CMP_LT_OQ), _mm256_cmp_ps(b, most, _CMP_LT_OQ));
    const vf cd = _mm256_and_ps(_mm256_cmp_ps(c, most, _CMP_LT_OQ), _mm256_cmp_ps(d, most, _CMP_LT_OQ));
    return _mm256_movemask_ps(_mm256_and_ps(ab, cd)) == 0xff;
}
SPARSEC_INLINE vf vf_sqrt(vf v) { return _mm256_sqrt_ps(v); }
SPARSEC_INLINE vf vf_floor(vf v) { return _mm256_floor_ps(v); }
SPARSEC_INLINE vf vf_ceil(vf v) { return _mm256_ceil_ps(v); }
SPARSEC_INLINE vf vf_round(vf v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/* Bytes 0 and 2 of each lane, and 1 and 3, widened to 16 bits: unsigned, and signed ones. */
SPARSEC_INLINE vi vi_even_u8(vi x) { return (vi)_mm256_and_si256((vi_raw)x, _mm256_set1_epi16(255)); }
SPARSEC_INLINE vi vi_odd_u8(vi x) { return (vi)_mm256_srli_epi16((vi_raw)x, 8); }
SPARSEC_INLINE vi vi_even_s8(vi w) { return (vi)_mm256_srai_epi16(_mm256_slli_epi16((vi_raw)w, 8), 8); }
SPARSEC_INLINE vi vi_odd_s8(vi w) { return (vi)_mm256_srai_epi16((vi_raw)w, 8); }
/* acc + sum of 2 products of signed 16-bit numbers, in each lane. */
SPARSEC_INLINE vi vi_dot2(vi acc, vi x, vi w) { return acc + (vi)_mm256_madd_epi16((vi_raw)x, (vi_raw)w); }
/* acc + sum of 4 products of unsigned bytes x and signed bytes w, in each lane.  Without VNNI the
 * bytes are widened to 16 bits, since VPMADDUBSW would saturate. */
SPARSEC_INLINE vi vi_dot4(vi acc, vi x, vi w)
{
#if defined(__AVXVNNI__)
    return (vi)_mm256_dpbusd_avx_epi32((vi_raw)acc, (vi_raw)x, (vi_raw)w);
#else
    return vi_dot2(vi_dot2(acc, vi_even_u8(x), vi_even_s8(w)), vi_odd_u8(x), vi_odd_s8(w));
#endif
}
/* Sums of 2 products of unsigned bytes x and signed bytes w, in 16 bits, for weights of which no two adjacent
 * products leave them; and those of neighbours, in 32. */
typedef int16_t vs __attribute__((vector_size(32)));
SPARSEC_INLINE vs vs_dot2(vi x, vi w) { return (vs)_mm256_maddubs_epi16((vi_raw)x, (vi_raw)w); }
SPARSEC_INLINE vi vs_widen(vs v) { return (vi)_mm256_madd_epi16((vi_raw)v, _mm256_set1_epi16(1)); }
/* A sum that saturates, and whether all are at most so much. */
SPARSEC_INLINE vs vs_add_saturated(vs a, vs b) { return (vs)_mm256_adds_epi16((vi_raw)a, (vi_raw)b); }
SPARSEC_INLINE int vs_at_most(vs v, int16_t limit)
{
    return !_mm256_movemask_epi8(_mm256_cmpgt_epi16((vi_raw)v, _mm256_set1_epi16(limit)));
}
/* The sum of 4 products, added to acc. */
SPARSEC_INLINE vi vi_dot4_pairs(vi acc, vi x, vi w) { return acc + vs_widen(vs_dot2(x, w)); }
/* A value that is to be in a register: loads to all lanes stay loads, one for all its products. */
#define V_LOADED(v) __asm__("" : "+x"(v))
/* 8 bytes, widened. */
SPARSEC_INLINE vi vi_load_u8(const uint8_t *p) { return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p)); }
SPARSEC_INLINE vi vi_load_s8(const int8_t *p) { return (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)); }
/* The low byte of each lane. */
SPARSEC_INLINE void vi_store_8(void *p, vi v)
{
    const vi_raw low = _mm256_shuffle_epi8((vi_raw)v, _mm256_set1_epi32(0x0c080400));
    _mm_storel_epi64(p, _mm_unpacklo_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1)));
}
#define vi_store_8 vi_store_8 /* vec.h asks */
/* 4 dwords (or floats) in each half of a vector, and one of them in all lanes: a load and a shuffle for
 * 4 weights where broadcasts from memory would take 4 loads. */
typedef vi vi_four;
typedef vf vf_four;
SPARSEC_INLINE vi_four vi_load4(const void *p) { return (vi)_mm256_broadcastsi128_si256(_mm_loadu_si128(p)); }
SPARSEC_INLINE vf_four vf_load4(const void *p) { return _mm256_broadcast_ps(p); }
/* 16 floats, and 4 of them as above. */
typedef const float *vf_sixteen;
SPARSEC_INLINE vf_sixteen vf_load16(const void *p) { return p; }
#define vf_four_of(v, i) vf_load4((v) + 4 * (i))
#define vi_spread(v, i) ((vi)_mm256_shuffle_epi32((vi_raw)(v), (i) * 0x55))
#define vf_spread(v, i) _mm256_shuffle_ps(v, v, (i) * 0x55)
/* 8 x 8 dwords: what is a row in steps of `from_step` dwords becomes a column. */
SPARSEC_INLINE void v_transpose(const void *from, int64_t from_step, void *to, int64_t to_step)
{
    vf a[8], b[8];
    for (int i = 0; i < 8; i++)
        a[i] = vf_load((const float *)from + i * from_step);
    for (int i = 0; i < 8; i += 2) { /* pairs of rows */
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) /* fours: columns i and i + 4 */
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0x44);
            a[i + 2 * j + 1] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0xee);
        }
    for (int i = 0; i < 4; i++) {
        vf_store((float *)to + i * to_step, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
        vf_store((float *)to + (i + 4) * to_step, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
    }
}
/* Four vectors of numbers as one panel dword in each lane: number + zp, saturated to 8 bits. */
SPARSEC_INLINE vi_raw vi_join(vi a, vi b, int32_t zp)
{
    return _mm256_adds_epi16(_mm256_packs_epi32((vi_raw)a, (vi_raw)b), _mm256_set1_epi16((int16_t)zp));
}
SPARSEC_INLINE vi vi_quads(vi_raw v) /* 4x4 bytes of each half, transposed */
{
    return (vi)_mm256_shuffle_epi8(
        v, _mm256_broadcastsi128_si256(_mm_set_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400)));
}
SPARSEC_INLINE vi vi_pack4_u8(vi a, vi b, vi c, vi d, int32_t zp)
{
    return vi_quads(_mm256_packus_epi16(vi_join(a, b, zp), vi_join(c, d, zp)));
}
SPARSEC_INLINE vi vi_pack4_s8(vi a, vi b, vi c, vi d, int32_t zp)
{
    return vi_quads(_mm256_packs_epi16(vi_join(a, b, zp), vi_join(c, d, zp)));
}
/* Bytes of each lane: the greater, and a difference. */
SPARSEC_INLINE vi vi_max_u8(vi a, vi b) { return (vi)_mm256_max_epu8((vi_raw)a, (vi_raw)b); }
SPARSEC_INLINE vi vi_sub_u8(vi a, vi b) { return (vi)_mm256_sub_epi8((vi_raw)a, (vi_raw)b); }
/* table[byte] of each byte: 16 shuffles by its low half, among which its high half chooses, from the
 * lowest of its bits on. */
SPARSEC_INLINE vi_raw vi_lookup16(vi_raw low, const uint8_t *table)
{
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)table)), low);
}
SPARSEC_INLINE vi vi_lookup(vi x, const uint8_t *table)
{
    const vi_raw low = _mm256_and_si256((vi_raw)x, _mm256_set1_epi8(15));
    const vi_raw bit4 = _mm256_slli_epi16((vi_raw)x, 3), bit5 = _mm256_slli_epi16((vi_raw)x, 2);
    const vi_raw bit6 = _mm256_slli_epi16((vi_raw)x, 1);
    vi_raw of64[4];
    for (int i = 0; i < 4; i++) {
        const uint8_t *const t = table + 64 * i;
        const vi_raw a = _mm256_blendv_epi8(vi_lookup16(low, t), vi_lookup16(low, t + 16), bit4);
        const vi_raw b = _mm256_blendv_epi8(vi_lookup16(low, t + 32), vi_lookup16(low, t + 48), bit4);
        of64[i] = _mm256_blendv_epi8(a, b, bit5);
    }
    const vi_raw less = _mm256_blendv_epi8(of64[0], of64[1], bit6);
    return (vi)_mm256_blendv_epi8(less, _mm256_blendv_epi8(of64[2], of64[3], bit6), (vi_raw)x);
}
/* e^(-x d) for the low byte d of each lane: tables of e^(-32 x i), e^(-4 x i) and e^(-x (i % 4)), i in
 * [0, 8). */
SPARSEC_INLINE vf vf_lookup8(const float *table, vi i)
{
    return _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), (vi_raw)i);
}
SPARSEC_INLINE vf vf_decay(const float *table, vi d)
{
    return vf_lookup8(table, (vi)_mm256_srli_epi32((vi_raw)d, 5))
        * (vf_lookup8(table + 8, (vi)_mm256_srli_epi32((vi_raw)d, 2)) * vf_lookup8(table + 16, d));
}
/* table[i modulo 16]. */
SPARSEC_INLINE vf vf_lookup16(const float *table, vi i)
{
    const vf low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), (vi_raw)i);
    const vf high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), (vi_raw)i);
    return _mm256_blendv_ps(low, high, (vf)(i << 28));
}
#define vf_lookup16 vf_lookup16 /* vmath.h asks */
