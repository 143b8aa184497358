/* Vector primitives that follow from those of the ISA's own header, and the math functions. */

#define SUB (16 / VL) /* vectors in a block of 16 rows */
#define UNITS (VL < 16 ? 2 : 1) /* units of rows in it, that sparse layers take by themselves */
/* Units up to the end of block b1 - 1, as far as there are rows. */
#define UNITS_OF(rows_, b1) \
    ((((rows_)->rows < (b1) * 16 ? (rows_)->rows : (b1) * 16) + 16 / UNITS - 1) / (16 / UNITS))
/* An address that is used as it is: else the compiler makes two additions of base + offset + constant. */
#define V_BASE(p) __asm__("" : "+r"(p))

/* One of 4 offsets of 16 bits; the same by an instruction made for it. */
#define V_OFFSET(at, i) ((at) >> (16 * (i)) & 0xffff)
#ifdef __BMI__
#define V_CUT(at, i) ((i) % 3 ? _bextr_u64(at, 16 * (i), 16) : V_OFFSET(at, i))
#else
#define V_CUT V_OFFSET
#endif

/* Tiles of so many units: all but the last are of whole blocks, the last is of `most` units at most. */
#define TILES_OF(units, most) \
    ((units) <= (most) ? 1 : ((units) - (most) % UNITS + (most) / UNITS * UNITS - 1) / ((most) / UNITS * UNITS))

#if VL != 16
#ifndef vi_store_8
/* The low byte of each lane. */
SPARSEC_INLINE void vi_store_8(void *p, vi v)
{
    for (int i = 0; i < VL; i++)
        ((uint8_t *)p)[i] = (uint8_t)v[i];
}
#endif
/* Stores the lanes lo <= lane < hi, most often all. */
SPARSEC_INLINE void vi_store_lanes(void *p, vi v, int32_t lo, int32_t hi)
{
    if (hi - lo == VL) {
        vi_store(p, v);
        return;
    }
    for (int i = lo; i < hi; i++)
        ((int32_t *)p)[i] = v[i];
}
SPARSEC_INLINE void vi_store_8_lanes(void *p, vi v, int32_t lo, int32_t hi)
{
    if (hi - lo == VL) {
        vi_store_8(p, v);
        return;
    }
    for (int i = lo; i < hi; i++)
        ((uint8_t *)p)[i] = (uint8_t)v[i];
}
#endif

#ifndef vi_dot4_at
/* acc + products of x with one pack of weights for all lanes. */
SPARSEC_INLINE vi vi_dot4_at(vi acc, vi x, const int32_t *w) { return vi_dot4(acc, x, vi_set1(*w)); }
#endif
#ifndef V_LOADED
#define V_LOADED(v) ((void)0)
#endif
/* 4 floats, again and again. */
#if VL == 4
#define vf_repeat4 vf_load
#else
#define vf_repeat4 vf_load4
#endif

/* Masks are all ones or all zeros in a lane. */
SPARSEC_INLINE vi vi_sel(vi m, vi a, vi b) { return (m & a) | (~m & b); }
SPARSEC_INLINE vf vf_sel(vi m, vf a, vf b) { return (vf)vi_sel(m, (vi)a, (vi)b); }
SPARSEC_INLINE vf vf_abs(vf v) { return (vf)((vi)v & 0x7fffffff); }
SPARSEC_INLINE vf vf_neg(vf v) { return (vf)((vi)v ^ (int32_t)0x80000000); }
/* Minimum and maximum that pass NaN on, as ONNX asks. */
SPARSEC_INLINE vf vf_min_nan(vf a, vf b) { return vf_sel((vi)(a != a), a, vf_min(a, b)); }
SPARSEC_INLINE vf vf_max_nan(vf a, vf b) { return vf_sel((vi)(a != a), a, vf_max(a, b)); }

#ifndef vf_scale2
/* x * 2^n for whole n in [-160, 160]: in two factors, so that results below 2^-126 and the overflow to
 * infinity come out right. */
SPARSEC_INLINE vf vf_scale2(vf x, vf n)
{
    const vi k = vi_rint(n);
    const vi half = k >> 1;
    return x * (vf)((half + 127) << 23) * (vf)((k - half + 127) << 23);
}
#endif

/* QuantizeLinear: round(x / scale) + zp, saturated to [lo, hi].  NaN gives lo.
 *
 * Quantized networks make values that lie exactly between two steps, so the quotient must be the true
 * one: one Newton step with FMA turns x * (1 / scale) into it (Markstein, "Computation of elementary
 * functions on the IBM RISC System/6000", 1990), at a fifth of what a division costs. */
SPARSEC_INLINE vi v_quantize(vf x, vf scale, vf inv_scale, int32_t zp, int32_t lo, int32_t hi)
{
    const vf least = vf_set1((float)(lo - zp)), most = vf_set1((float)(hi - zp));
#ifdef vf_divides
    const vf q = x / scale;
    (void)inv_scale;
#else
    const vf guess = vf_min(vf_max(x * inv_scale, least - 1.0f), most + 1.0f);
    const vf q = vf_fma(vf_fnma(guess, scale, x), inv_scale, guess);
#endif
    return vi_rint(vf_min(vf_max(q, least), most)) + zp;
}

/* The whole number nearest x / scale, for vi_pack4_u8 and vi_pack4_s8 to saturate: what is above
 * `limit` / scale is cut to it, what is far below and NaN become INT32_MIN. */
SPARSEC_INLINE vi v_steps(vf x, vf scale, vf inv_scale, vf limit)
{
    x = vf_min(limit, x);
#ifdef vf_divides
    (void)inv_scale;
    return vi_rint(x / scale);
#else
    const vf guess = x * inv_scale;
    return vi_rint(vf_fma(vf_fnma(guess, scale, x), inv_scale, guess));
#endif
}
/* The same for x that is not exact itself, so that the last bit of the quotient means nothing. */
SPARSEC_INLINE vi v_steps_near(vf x, vf inv_scale, vf limit) { return vi_rint(vf_min(limit, x) * inv_scale); }

/* number + zp, saturated to 8 bits. */
SPARSEC_INLINE vi vi_saturate(vi v, int32_t zp, int32_t lo, int32_t hi)
{
    return vi_min(vi_max(v, vi_set1(lo - zp)), vi_set1(hi - zp)) + zp;
}
SPARSEC_INLINE vi vi_saturate_u8(vi v, int32_t zp) { return vi_saturate(v, zp, 0, 255); }
SPARSEC_INLINE vi vi_saturate_s8(vi v, int32_t zp) { return vi_saturate(v, zp, -128, 127); }

/* The same 4 channels of each lane as one panel dword: each value's low byte. */
SPARSEC_INLINE vi vi_pack4(vi a, vi b, vi c, vi d)
{
    return (a & 255) | ((b & 255) << 8) | ((c & 255) << 16) | (vi)(d << 24);
}

/* Four vectors of numbers as a panel dword in each lane, whose bytes are looked up in a table of 256. */
SPARSEC_INLINE vi vi_pack4_by(vi a, vi b, vi c, vi d, const uint8_t *table)
{
    return vi_lookup(vi_pack4(a, b, c, d), table);
}
SPARSEC_INLINE vi vi_pack4_u8_by(vi a, vi b, vi c, vi d, int32_t zp, const uint8_t *table)
{
    return vi_lookup(vi_pack4_u8(a, b, c, d, zp), table);
}
SPARSEC_INLINE vi vi_pack4_s8_by(vi a, vi b, vi c, vi d, int32_t zp, const uint8_t *table)
{
    return vi_lookup(vi_pack4_s8(a, b, c, d, zp), table);
}

#ifndef v_transpose16
/* to[j][i] = from[i][j] for 16 x 16 dwords, of which the rows from `n` on are 0. */
SPARSEC_INLINE void v_transpose16(int32_t *to, const int32_t *from, int n)
{
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++)
            to[16 * j + i] = i < n ? from[16 * i + j] : 0;
}
#endif

/* acc + x * w: the float counterpart of vi_dot4. */
SPARSEC_INLINE vf vf_fma_acc(vf acc, vf x, vf w) { return vf_fma(x, w, acc); }
