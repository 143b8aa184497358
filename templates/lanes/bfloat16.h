/* bfloat16.h: products of pairs of bfloat16, the upper halves of float32, and how floats become such.
 *
 * With AVX512-BF16 by its instructions; else the same in terms of the vectors that there are, for tests and
 * to see on any machine what bfloat16 makes of a model.  As the instructions do: rounded to nearest, ties to
 * even; numbers below 2^-126 count as zero, operands and sums; NaN stays NaN.
 *
 *   pairs     [channel/2][16][2]: dwords whose lower half is the even channel, the form of a panel
 */

#ifdef __AVX512BF16__

/* Floats as pairs: of `even` in the lower halves, of `odd` in the upper ones. */
SPARSEC_INLINE vi vi_pair_bf16(vf even, vf odd)
{
    const __m512i order = _mm512_add_epi32(
        _mm512_set1_epi32(0x00100000), _mm512_mullo_epi32(_mm512_set1_epi32(0x00010001),
            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)));
    return (vi)_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}
/* A vector of floats as bfloat16s, one after the other. */
SPARSEC_INLINE void vf_store_bf16(void *p, vf v)
{
    _mm256_storeu_si256(p, (__m256i)_mm512_cvtneps_pbh(v));
}
/* acc + the products of two pairs: first that of the upper halves. */
SPARSEC_INLINE vf vf_dot2(vf acc, vi x, vi w)
{
    return _mm512_dpbf16_ps(acc, (__m512bh)(vi_raw)x, (__m512bh)(vi_raw)w);
}

#else

/* Bits of floats, rounded to their upper halves. */
SPARSEC_INLINE vi vi_round_bf16(vf v)
{
    const vi bits = (vi)v, size = bits & 0x7fffffff;
    const vi nan = size > 0x7f800000;
    const vi number = ~nan & bits; /* the sum below must not leave 32 bits */
    const vi rounded = vi_sel(nan, bits | 0x400000, number + (0x7fff + (number >> 16 & 1)));
    return vi_sel(size < 0x00800000, bits & (int32_t)0x80000000, rounded) & (int32_t)0xffff0000;
}
SPARSEC_INLINE vi vi_pair_bf16(vf even, vf odd)
{
    return (vi_round_bf16(even) >> 16 & 0xffff) | vi_round_bf16(odd);
}
SPARSEC_INLINE void vf_store_bf16(void *p, vf v)
{
    const vi bits = vi_round_bf16(v);
    uint16_t half[VL];
    for (int i = 0; i < VL; i++)
        half[i] = (uint16_t)(bits[i] >> 16 & 0xffff);
    memcpy(p, half, sizeof half);
}
/* Products are exact but below 2^-126. */
SPARSEC_INLINE vf vf_flush(vf v)
{
    return (vf)vi_sel(((vi)v & 0x7f800000) == 0, (vi)v & (int32_t)0x80000000, (vi)v);
}
SPARSEC_INLINE vf vf_dot2(vf acc, vi x, vi w)
{
    acc = vf_flush(vf_fma((vf)(x & (int32_t)0xffff0000), (vf)(w & (int32_t)0xffff0000), acc));
    return vf_flush(vf_fma((vf)((vi)x << 16), (vf)((vi)w << 16), acc));
}

#endif

/* Channels of a block of 16 rows, float lanes, as `packs` pairs; those that there are no channels for are 0. */
SPARSEC_INLINE void bf16_panel(char *to, const float *from, int64_t channels, int64_t packs)
{
    int64_t pack = 0;
    for (; 2 * pack + 2 <= channels; pack++)
        for (int s = 0; s < SUB; s++) {
            const float *const x = from + pack * 32 + s * VL;
            vi_store(to + pack * 64 + s * VL * 4, vi_pair_bf16(vf_load(x), vf_load(x + 16)));
        }
    for (; pack < packs; pack++)
        for (int s = 0; s < SUB; s++) {
            const vf zero = vf_set1(0.0f);
            const vf x = 2 * pack < channels ? vf_load(from + pack * 32 + s * VL) : zero;
            vi_store(to + pack * 64 + s * VL * 4, vi_pair_bf16(x, zero));
        }
}
