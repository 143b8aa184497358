/* Vector primitives in portable C (GCC and Clang vector extensions): 4 lanes of 32 bits. */
#include <math.h>
#include <string.h>
#define VL 4
#define vf_divides /* there is no fused multiply-add to correct a quotient with */
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));

#define V_KEEP4(a, b, c, d) ((void)0)

SPARSEC_INLINE vf vf_set1(float x) { return (vf){x, x, x, x}; }
SPARSEC_INLINE vi vi_set1(int32_t x) { return (vi){x, x, x, x}; }
SPARSEC_INLINE vf vf_load(const void *p) { vf v; memcpy(&v, p, sizeof v); return v; }
SPARSEC_INLINE vi vi_load(const void *p) { vi v; memcpy(&v, p, sizeof v); return v; }
SPARSEC_INLINE void vf_store(void *p, vf v) { memcpy(p, &v, sizeof v); }
SPARSEC_INLINE void vi_store(void *p, vi v) { memcpy(p, &v, sizeof v); }
SPARSEC_INLINE vf vf_cvt(vi v) { return __builtin_convertvector(v, vf); }
SPARSEC_INLINE vi vi_trunc_lane(vf v)
{
    vi r;
    for (int i = 0; i < VL; i++) /* out of range and NaN: as x86 does, and defined in C */
        r[i] = v[i] >= -2147483648.0f && v[i] < 2147483648.0f ? (int32_t)v[i] : INT32_MIN;
    return r;
}
SPARSEC_INLINE vf vf_round(vf v)
{
    vf r;
    for (int i = 0; i < VL; i++)
        r[i] = rintf(v[i]);
    return r;
}
/* Nearest integer, ties to even. */
SPARSEC_INLINE vi vi_rint(vf v) { return vi_trunc_lane(vf_round(v)); }
SPARSEC_INLINE vi vi_trunc(vf v) { return vi_trunc_lane(v); }
SPARSEC_INLINE vf vf_fma(vf a, vf b, vf c) { return a * b + c; }
SPARSEC_INLINE vf vf_fnma(vf a, vf b, vf c) { return c - a * b; }
SPARSEC_INLINE vi vi_blend(vi m, vi a, vi b) { return (m & a) | (~m & b); }
/* The second operand where either is NaN. */
SPARSEC_INLINE vf vf_min(vf a, vf b) { return (vf)vi_blend(a < b, (vi)a, (vi)b); }
SPARSEC_INLINE vf vf_max(vf a, vf b) { return (vf)vi_blend(a > b, (vi)a, (vi)b); }
SPARSEC_INLINE vi vi_min(vi a, vi b) { return vi_blend(a < b, a, b); }
SPARSEC_INLINE vi vi_max(vi a, vi b) { return vi_blend(a > b, a, b); }
/* Whether all lanes of four vectors are below a limit; NaN is not. */
SPARSEC_INLINE int vf_all_below(vf a, vf b, vf c, vf d, float limit)
{
    const vi below = (a < limit) & (b < limit) & (c < limit) & (d < limit);
    return (below[0] & below[1] & below[2] & below[3]) != 0;
}
SPARSEC_INLINE vf vf_sqrt(vf v)
{
    vf r;
    for (int i = 0; i < VL; i++)
        r[i] = sqrtf(v[i]);
    return r;
}
SPARSEC_INLINE vf vf_floor(vf v)
{
    vf r;
    for (int i = 0; i < VL; i++)
        r[i] = floorf(v[i]);
    return r;
}
SPARSEC_INLINE vf vf_ceil(vf v)
{
    vf r;
    for (int i = 0; i < VL; i++)
        r[i] = ceilf(v[i]);
    return r;
}
/* acc + sum of 4 products of unsigned bytes x and signed bytes w, in each lane. */
SPARSEC_INLINE vi vi_dot4(vi acc, vi x, vi w)
{
    typedef uint32_t vu __attribute__((vector_size(16)));
    acc += (x & 255) * ((vi)((vu)w << 24) >> 24);
    acc += ((x >> 8) & 255) * ((vi)((vu)w << 16) >> 24);
    acc += ((x >> 16) & 255) * ((vi)((vu)w << 8) >> 24);
    acc += (vi)((vu)x >> 24) * (w >> 24);
    return acc;
}
/* 4 bytes, widened. */
SPARSEC_INLINE vi vi_load_u8(const uint8_t *p) { return (vi){p[0], p[1], p[2], p[3]}; }
SPARSEC_INLINE vi vi_load_s8(const int8_t *p) { return (vi){p[0], p[1], p[2], p[3]}; }
/* 4 dwords (or floats), and one of them in all lanes. */
typedef const int32_t *vi_four;
typedef const float *vf_four;
SPARSEC_INLINE vi_four vi_load4(const void *p) { return p; }
SPARSEC_INLINE vf_four vf_load4(const void *p) { return p; }
/* 16 floats, and 4 of them as above. */
typedef const float *vf_sixteen;
SPARSEC_INLINE vf_sixteen vf_load16(const void *p) { return p; }
#define vf_four_of(v, i) vf_load4((v) + 4 * (i))
#define vi_spread(v, i) vi_set1((v)[i])
#define vf_spread(v, i) vf_set1((v)[i])
/* 4 x 4 dwords: what is a row in steps of `from_step` dwords becomes a column. */
SPARSEC_INLINE void v_transpose(const void *from, int64_t from_step, void *to, int64_t to_step)
{
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
            memcpy((char *)to + 4 * (i * to_step + j), (const char *)from + 4 * (j * from_step + i), 4);
}
/* Four vectors of numbers as one panel dword in each lane: number + zp, saturated to 8 bits. */
SPARSEC_INLINE vi vi_join(vi v, int32_t zp, int32_t lo, int32_t hi)
{
    return (vi_max(vi_set1(lo - zp), vi_min(vi_set1(hi - zp), v)) + zp) & 255;
}
SPARSEC_INLINE vi vi_join4(vi a, vi b, vi c, vi d, int32_t zp, int32_t lo, int32_t hi)
{
    return vi_join(a, zp, lo, hi) | vi_join(b, zp, lo, hi) << 8 | vi_join(c, zp, lo, hi) << 16
        | vi_join(d, zp, lo, hi) << 24;
}
SPARSEC_INLINE vi vi_pack4_u8(vi a, vi b, vi c, vi d, int32_t zp) { return vi_join4(a, b, c, d, zp, 0, 255); }
SPARSEC_INLINE vi vi_pack4_s8(vi a, vi b, vi c, vi d, int32_t zp) { return vi_join4(a, b, c, d, zp, -128, 127); }
/* Bytes of each lane: the greater, and a difference. */
typedef uint8_t vb __attribute__((vector_size(16)));
SPARSEC_INLINE vi vi_max_u8(vi a, vi b)
{
    const vb x = (vb)a, y = (vb)b, m = (vb)(x > y);
    return (vi)((x & m) | (y & ~m));
}
SPARSEC_INLINE vi vi_sub_u8(vi a, vi b) { return (vi)((vb)a - (vb)b); }
/* table[byte] of each byte. */
SPARSEC_INLINE vi vi_lookup(vi x, const uint8_t *table)
{
    uint8_t bytes[sizeof(vi)];
    memcpy(bytes, &x, sizeof x);
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = table[bytes[i]];
    memcpy(&x, bytes, sizeof x);
    return x;
}
/* e^(-x d) for the low byte d of each lane: the table holds all 256. */
SPARSEC_INLINE vf vf_decay(const float *table, vi d)
{
    return (vf){table[d[0] & 255], table[d[1] & 255], table[d[2] & 255], table[d[3] & 255]};
}
