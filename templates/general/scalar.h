/* scalar.h: what the general kernels are made of; included after rt.h.
 *
 *   op_<name>_<type>   one element of a core op, with the meaning of its numpy reference and without
 *                      undefined behaviour for any operand
 *   op_*_block*        register blocks of matrix products
 *
 * Types: f32 f64 i64 i32 i16 i8 u64 u32 u16 u8.  Booleans are uint8_t holding 0 or 1.  The float32 functions have no
 * branches and no calls, so that loops around them vectorize.  They rely on IEEE arithmetic: do not
 * compile with -ffast-math.
 */
#ifndef SPARSEC_SCALAR_H
#define SPARSEC_SCALAR_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

/* A loop of fewer element steps is not worth waking another thread for. */
#ifndef OP_PARALLEL_STEPS
#define OP_PARALLEL_STEPS 32768
#endif

/* Into how many pieces to split a loop of `rows` independent rows and `work` element steps: enough to
 * balance the threads, none smaller than what waking a thread costs. */
static inline int32_t op_pieces(const sparsec_rt *rt, int64_t rows, int64_t work)
{
    if (rt->parallel == NULL || rt->parallel->threads < 2 || work < OP_PARALLEL_STEPS)
        return 1;
    int64_t pieces = 4 * (int64_t)rt->parallel->threads;
    if (pieces > 2 * work / OP_PARALLEL_STEPS)
        pieces = 2 * work / OP_PARALLEL_STEPS;
    if (pieces > rows)
        pieces = rows;
    return pieces < 1 ? 1 : (int32_t)pieces;
}

/* First row of piece `index` of `pieces`. */
static inline int64_t op_piece_begin(int64_t rows, int32_t index, int32_t pieces)
{
    return rows / pieces * index + rows % pieces * index / pieces;
}

/* ---- integers: arithmetic wraps around; division truncates, and by zero gives zero ---- */

#define OP_INTEGER(S, T, U)                                                                         \
    static inline T op_add_##S(T a, T b) { return (T)((U)a + (U)b); }                               \
    static inline T op_sub_##S(T a, T b) { return (T)((U)a - (U)b); }                               \
    static inline T op_mul_##S(T a, T b) { return (T)((U)a * (U)b); }                               \
    static inline T op_neg_##S(T a) { return (T)((U)0 - (U)a); }                                    \
    static inline T op_min_##S(T a, T b) { return a < b ? a : b; }                                  \
    static inline T op_max_##S(T a, T b) { return a > b ? a : b; }                                  \
    static inline T op_sign_##S(T a) { return (T)((a > 0) - (a < 0)); }                             \
    /* b to the power n; a negative n truncates 1 / b^|n|. */                                       \
    static inline T op_power_##S(T b, int64_t n)                                                    \
    {                                                                                               \
        if (n < 0)                                                                                  \
            return (T)(b == 1 ? 1 : b == (T)-1 && (T)-1 < (T)1 ? (n % 2 ? -1 : 1) : 0);             \
        T result = 1;                                                                               \
        for (; n; n >>= 1, b = op_mul_##S(b, b))                                                    \
            if (n & 1)                                                                              \
                result = op_mul_##S(result, b);                                                     \
        return result;                                                                              \
    }
OP_INTEGER(i64, int64_t, uint64_t)
OP_INTEGER(i32, int32_t, uint32_t)
OP_INTEGER(i16, int16_t, uint32_t)
OP_INTEGER(i8, int8_t, uint32_t)
OP_INTEGER(u64, uint64_t, uint64_t)
OP_INTEGER(u32, uint32_t, uint32_t)
OP_INTEGER(u16, uint16_t, uint32_t)
OP_INTEGER(u8, uint8_t, uint32_t)

#define OP_SIGNED(S, T)                                                                             \
    static inline T op_abs_##S(T a) { return a < 0 ? op_neg_##S(a) : a; }                           \
    static inline T op_div_##S(T a, T b)                                                            \
    {                                                                                               \
        return b == 0 ? 0 : b == -1 ? op_neg_##S(a) : (T)(a / b);                                   \
    }                                                                                               \
    /* Remainder with the sign of the dividend, as C has it. */                                     \
    static inline T op_fmod_##S(T a, T b) { return b == 0 || b == -1 ? 0 : (T)(a % b); }            \
    /* Remainder with the sign of the divisor, as Python has it. */                                 \
    static inline T op_mod_##S(T a, T b)                                                            \
    {                                                                                               \
        T r = op_fmod_##S(a, b);                                                                    \
        return (T)(r != 0 && (r < 0) != (b < 0) ? r + b : r);                                       \
    }
OP_SIGNED(i64, int64_t)
OP_SIGNED(i32, int32_t)
OP_SIGNED(i16, int16_t)
OP_SIGNED(i8, int8_t)

#define OP_UNSIGNED(S, T)                                                                           \
    static inline T op_abs_##S(T a) { return a; }                                                   \
    static inline T op_div_##S(T a, T b) { return b == 0 ? 0 : (T)(a / b); }                        \
    static inline T op_fmod_##S(T a, T b) { return b == 0 ? 0 : (T)(a % b); }                       \
    static inline T op_mod_##S(T a, T b) { return op_fmod_##S(a, b); }
OP_UNSIGNED(u64, uint64_t)
OP_UNSIGNED(u32, uint32_t)
OP_UNSIGNED(u16, uint16_t)
OP_UNSIGNED(u8, uint8_t)

/* ---- floats: a NaN operand makes min and max NaN; sign(NaN) is NaN ---- */

#define OP_FLOAT(S, T, F)                                                                           \
    static inline T op_min_##S(T a, T b) { T m = a < b ? a : b; return a != a ? a : m; }             \
    static inline T op_max_##S(T a, T b) { T m = a > b ? a : b; return a != a ? a : m; }             \
    static inline T op_sign_##S(T a) { return a > 0 ? (T)1 : a < 0 ? (T)-1 : a; }                   \
    static inline T op_relu_##S(T a) { return ((a > 0) | (a != a)) ? a : (T)0; }                      \
    static inline T op_fmod_##S(T a, T b) { return fmod##F(a, b); }                                 \
    static inline T op_mod_##S(T a, T b)                                                            \
    {                                                                                               \
        T r = fmod##F(a, b);                                                                        \
        return r != 0 ? ((r < 0) != (b < 0) ? r + b : r) : b == 0 ? r : copysign##F((T)0, b);       \
    }                                                                                               \
    /* Out of range and NaN become the least integer, which is what x86 hardware answers. */        \
    static inline int32_t op_i32_of_##S(T a)                                                        \
    {                                                                                               \
        return (int32_t)(((a >= (T)-0x1p31) & (a < (T)0x1p31)) ? a : (T)-0x1p31);    \
    }                                                                                               \
    static inline int64_t op_i64_of_##S(T a)                                                        \
    {                                                                                               \
        return (int64_t)(((a >= (T)-0x1p63) & (a < (T)0x1p63)) ? a : (T)-0x1p63);                     \
    }                                                                                               \
    static inline uint64_t op_u64_of_##S(T a)                                                       \
    {                                                                                               \
        return ((a >= (T)0x1p63) & (a < (T)0x1p64)) ? (uint64_t)a : (uint64_t)op_i64_of_##S(a);     \
    }
OP_FLOAT(f64, double, )

OP_FLOAT(f32, float, f)

/* ---- float32 functions; errors are the largest found among one in 37 of all floats ---- */

/* a * b + c, in one rounding where the target can do that fast. */
#if defined(__FMA__)
static inline float op_fma_f32(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline double op_fma_f64(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
static inline float op_fma_f32(float a, float b, float c) { return a * b + c; }
static inline double op_fma_f64(double a, double b, double c) { return a * b + c; }
#endif

/* e^t = result * 2^*n for |t| <= 104. */
static inline float op_exp_parts_f32(float t, int32_t *n)
{
    const float magic = 0x1.8p23f; /* adding it rounds to an integer, left in the low bits */
    const float shifted = op_fma_f32(t, 1.44269504f, magic);
    const float whole = shifted - magic;
    const float r = op_fma_f32(whole, 2.12194440e-4f, op_fma_f32(whole, -0.693359375f, t));
    float q = op_fma_f32(r, 0.00139505998f, 0.00836895406f);
    q = op_fma_f32(r, q, 0.041666206f);
    q = op_fma_f32(r, q, 0.166665182f);
    q = op_fma_f32(r, q, 0.5f);
    uint32_t bits;
    memcpy(&bits, &shifted, 4);
    *n = (int32_t)(bits - 0x4b400000u);
    return 1.0f + op_fma_f32(r * r, q, r);
}

/* 2^n for -126 <= n <= 127. */
static inline float op_power_of_two_f32(int32_t n)
{
    const uint32_t bits = (uint32_t)(n + 127) << 23;
    float result;
    memcpy(&result, &bits, 4);
    return result;
}

/* e^x within 1.1 units of the last place, denormal results too. */
static inline float op_exp_f32(float x)
{
    float t = x > 89.0f ? 89.0f : x;
    t = t < -104.0f ? -104.0f : t;
    int32_t n;
    const float p = op_exp_parts_f32(t, &n);
    /* 2^n as two factors, because n goes beyond the exponents of normal floats at both ends. */
    const int32_t half = n >> 1;
    return p * op_power_of_two_f32(half) * op_power_of_two_f32(n - half);
}

/* The same for |x| <= 87. */
static inline float op_exp_near_f32(float x)
{
    int32_t n;
    const float p = op_exp_parts_f32(x, &n);
    return p * op_power_of_two_f32(n);
}

/* The natural logarithm within 0.8 units of the last place. */
static inline float op_log_f32(float x)
{
    /* x is m * 2^n with m from sqrt(1/2) to sqrt(2); denormal ones are made normal first. */
    const int small = x < 0x1p-126f;
    const float scaled = x * (small ? 0x1p+23f : 1.0f);
    uint32_t bits;
    memcpy(&bits, &scaled, 4);
    const int32_t n = (int32_t)(bits - 0x3f3504f3u) >> 23;
    bits -= (uint32_t)n << 23;
    float m;
    memcpy(&m, &bits, 4);
    const float f = m - 1.0f, whole = (float)(n - 23 * small), square = f * f;
    float p = op_fma_f32(f, 0.0674882159f, -0.116794042f);
    p = op_fma_f32(f, p, 0.118892446f);
    p = op_fma_f32(f, p, -0.124050885f);
    p = op_fma_f32(f, p, 0.142193511f);
    p = op_fma_f32(f, p, -0.166680142f);
    p = op_fma_f32(f, p, 0.200021282f);
    p = op_fma_f32(f, p, -0.250000089f);
    p = op_fma_f32(f, p, 0.333333135f);
    const float rest = op_fma_f32(square * f, p, op_fma_f32(whole, -2.12194440e-4f, -0.5f * square));
    const float y = op_fma_f32(whole, 0.693359375f, f + rest);
    const float edge = x == 0 ? -INFINITY : x > 0 ? x : NAN; /* infinity and NaN stay */
    return (x > 0) & (x < INFINITY) ? y : edge;
}

/* The error function within 1.2 units of the last place. */
static inline float op_erf_f32(float x)
{
    const float s = x * x;
    float p = op_fma_f32(s, 8.34522507e-05f, -0.00081374374f);
    p = op_fma_f32(s, p, 0.00520063424f);
    p = op_fma_f32(s, p, -0.0268592704f);
    p = op_fma_f32(s, p, 0.112836942f);
    p = op_fma_f32(s, p, -0.376126349f);
    p = op_fma_f32(s, p, 0.128379166f);
    const float near = op_fma_f32(x, p, x);
    float t = fabsf(x);
    t = t > 4.0f ? 4.0f : t;
    float q = op_fma_f32(t, 5.1508805e-06f, -4.82022297e-05f);
    q = op_fma_f32(t, q, -3.60647609e-05f);
    q = op_fma_f32(t, q, 0.00289230072f);
    q = op_fma_f32(t, q, -0.0226120092f);
    q = op_fma_f32(t, q, 0.105202913f);
    q = op_fma_f32(t, q, 0.635656536f);
    q = op_fma_f32(t, q, 0.128544897f);
    const float far = copysignf(1.0f - op_exp_near_f32(-op_fma_f32(t, q, t)), x);
    return t > 0.92f ? far : near;
}

/* The hyperbolic tangent within 1.4 units of the last place. */
static inline float op_tanh_f32(float x)
{
    const float s = x * x;
    float p = op_fma_f32(s, -0.00567930378f, 0.0206181221f);
    p = op_fma_f32(s, p, -0.0537340008f);
    p = op_fma_f32(s, p, 0.133313835f);
    p = op_fma_f32(s, p, -0.333332807f);
    const float near = op_fma_f32(x * s, p, x);
    float t = fabsf(x);
    t = t > 10.0f ? 10.0f : t;
    const float far = copysignf(1.0f - 2.0f / (op_exp_near_f32(2.0f * t) + 1.0f), x);
    return t > 0.62f ? far : near;
}

/* Bits of 2 / pi behind its point, from number 32 * (i - 1) + 1 on: word i of "0, 2 / pi".  Selected and
 * not loaded, so that loops vectorize without gathers. */
static inline uint32_t op_quarters_word(int32_t i)
{
#define OP_WORD(n, bits) (-(uint32_t)(i == n) & bits)
    return OP_WORD(1, 0xa2f9836eu) | OP_WORD(2, 0x4e441529u) | OP_WORD(3, 0xfc2757d1u) | OP_WORD(4, 0xf534ddc0u)
        | OP_WORD(5, 0xdb629599u) | OP_WORD(6, 0x3c439041u) | OP_WORD(7, 0xfe5163abu);
#undef OP_WORD
}

/* sin(x + quarters * pi / 2) for x >= 0, within 1.5 units of the last place for every float.
 *
 * As Payne and Hanek do it: x is m * 2^s with a whole m < 2^24, so the bits of 2 / pi that come before
 * place s - 1 add only full turns to x * 2 / pi, and 96 bits from there give it to 62 places. */
static inline float op_sine_f32(float x, uint32_t quarters)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint32_t m = (bits & 0x7fffff) | 0x800000;
    int32_t place = (int32_t)(bits >> 23) - 120;
    place = place < 0 ? 0 : place;
    const int32_t word = place >> 5;
    const uint32_t w0 = op_quarters_word(word), w1 = op_quarters_word(word + 1);
    const uint32_t w2 = op_quarters_word(word + 2), w3 = op_quarters_word(word + 3);
    /* Shifts as products: not every target shifts each lane by an amount of its own. */
    const uint32_t some = (uint32_t)(int32_t)op_power_of_two_f32(place & 15), by = place & 16 ? some << 16 : some;
    const uint64_t p1 = (uint64_t)w1 * by, p2 = (uint64_t)w2 * by, p3 = (uint64_t)w3 * by;
    const uint32_t v0 = w0 * by | (uint32_t)(p1 >> 32);
    const uint32_t v1 = (uint32_t)p1 | (uint32_t)(p2 >> 32), v2 = (uint32_t)p2 | (uint32_t)(p3 >> 32);
    const uint64_t tail = (uint64_t)m * v1 + ((uint64_t)m * v2 >> 32);
    const uint32_t high = (uint32_t)(tail >> 32) + m * v0, low = (uint32_t)tail;
    const uint32_t nearest = (high + 0x20000000u) >> 30;
    const double part = (double)(int32_t)(high - (nearest << 30)) + (double)(int32_t)(low >> 1) * 0x1p-31;
    const int inside = x < 0x1.921fb6p-1f; /* pi / 4: there x itself is what is left */
    const float r = inside ? x : (float)(part * 0x1.921fb54442d18p-30);
    const uint32_t turn = (nearest & (uint32_t)(inside - 1)) + quarters;
    const float u = r * r;
    float sine = op_fma_f32(u, -0x1.9aca523e2e20fp-13f, 0x1.110c2a3acb7eep-7f);
    sine = op_fma_f32(u, sine, -0x1.555552a6a3812p-3f);
    sine = op_fma_f32(r * u, sine, r);
    float cosine = op_fma_f32(u, 0x1.9bd907e90a51ep-16f, -0x1.6c12d3fcf3eabp-10f);
    cosine = op_fma_f32(u, cosine, 0x1.555554422432ap-5f);
    cosine = op_fma_f32(u, cosine, -0.5f);
    cosine = op_fma_f32(u, cosine, 1.0f);
    float result = turn & 1 ? cosine : sine;
    memcpy(&bits, &result, 4);
    bits ^= (turn & 2) << 30;
    memcpy(&result, &bits, 4);
    return x < INFINITY ? result : NAN;
}
static inline float op_sin_f32(float x)
{
    const float result = op_sine_f32(fabsf(x), 0);
    return x < 0 ? -result : x == 0 ? x : result;
}
static inline float op_cos_f32(float x) { return op_sine_f32(fabsf(x), 1); }

/* 1 / (1 + e^-x) within 2.4 units of the last place. */
static inline float op_sigmoid_f32(float x)
{
    const float e = op_exp_f32(-fabsf(x));
    return (x < 0 ? e : 1.0f) / (1.0f + e);
}

static inline float op_gelu_f32(float x)
{
    return 0.5f * x * (1.0f + op_erf_f32(x * 0.707106781f));
}

static inline float op_gelu_tanh_f32(float x)
{
    return 0.5f * x * (1.0f + op_tanh_f32(0.797884561f * (x + 0.044715f * x * x * x)));
}

static inline double op_exp_f64(double x) { return exp(x); }
static inline double op_log_f64(double x) { return log(x); }
static inline double op_sin_f64(double x) { return sin(x); }
static inline double op_cos_f64(double x) { return cos(x); }
static inline double op_erf_f64(double x) { return erf(x); }
static inline double op_tanh_f64(double x) { return tanh(x); }
static inline double op_sigmoid_f64(double x)
{
    const double e = exp(-fabs(x));
    return (x < 0 ? e : 1.0) / (1.0 + e);
}
static inline double op_gelu_f64(double x) { return 0.5 * x * (1.0 + erf(x * 0.70710678118654752)); }
static inline double op_gelu_tanh_f64(double x)
{
    return 0.5 * x * (1.0 + tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)));
}

/* ---- quantization: float division, round half to even, shift, saturate; NaN becomes the least ---- */

#define OP_QUANTIZE(S, T, LOW, HIGH)                                                                \
    static inline T op_quantize_##S(float x, float scale, T zp)                                     \
    {                                                                                               \
        const float low = (float)(LOW - (int32_t)zp), high = (float)(HIGH - (int32_t)zp);           \
        float r = rintf(x / scale);                                                                 \
        r = r > high ? high : r;                                                                    \
        r = r >= low ? r : low;                                                                     \
        return (T)((int32_t)r + (int32_t)zp);                                                       \
    }                                                                                               \
    static inline float op_dequantize_##S(T q, float scale, T zp)                                   \
    {                                                                                               \
        return (float)((int32_t)q - (int32_t)zp) * scale;                                           \
    }
OP_QUANTIZE(u8, uint8_t, 0, 255)
OP_QUANTIZE(i8, int8_t, -128, 127)
OP_QUANTIZE(u16, uint16_t, 0, 65535)
OP_QUANTIZE(i16, int16_t, -32768, 32767)

static inline int32_t op_quantize_i32(float x, float scale, int32_t zp)
{
    double r = (double)rintf(x / scale) + (double)zp;
    r = r > 2147483647.0 ? 2147483647.0 : r;
    return (int32_t)(r >= -2147483648.0 ? r : -2147483648.0);
}

static inline float op_dequantize_i32(int32_t q, float scale, int32_t zp)
{
    return (float)((int64_t)q - (int64_t)zp) * scale;
}

/* ---- vectors ---- */

/* One vector register of the target, as a compiler's vector type. */
#if defined(__AVX512F__)
#define OP_VECTOR_BYTES 64
#elif defined(__AVX__)
#define OP_VECTOR_BYTES 32
#else
#define OP_VECTOR_BYTES 16
#endif

typedef float op_vf32 __attribute__((vector_size(OP_VECTOR_BYTES)));
typedef double op_vf64 __attribute__((vector_size(OP_VECTOR_BYTES)));
typedef int32_t op_mf32 __attribute__((vector_size(OP_VECTOR_BYTES))); /* what comparisons give */
typedef int64_t op_mf64 __attribute__((vector_size(OP_VECTOR_BYTES)));
enum { OP_LANES_f32 = OP_VECTOR_BYTES / 4, OP_LANES_f64 = OP_VECTOR_BYTES / 8 };

/* a * b + c, in one rounding where the target has that. */
#if defined(__AVX512F__)
#define OP_FMA_V(S, SUFFIX)                                                                         \
    static inline op_v##S op_fma_v##S(op_v##S a, op_v##S b, op_v##S c) { return _mm512_fmadd_##SUFFIX(a, b, c); }
OP_FMA_V(f32, ps)
OP_FMA_V(f64, pd)
#elif defined(__FMA__)
#define OP_FMA_V(S, SUFFIX)                                                                         \
    static inline op_v##S op_fma_v##S(op_v##S a, op_v##S b, op_v##S c) { return _mm256_fmadd_##SUFFIX(a, b, c); }
OP_FMA_V(f32, ps)
OP_FMA_V(f64, pd)
#else
static inline op_vf32 op_fma_vf32(op_vf32 a, op_vf32 b, op_vf32 c) { return c + a * b; }
static inline op_vf64 op_fma_vf64(op_vf64 a, op_vf64 b, op_vf64 c) { return c + a * b; }
#endif
static inline op_vf32 op_set1_vf32(float a) { return a - (op_vf32){0}; }
static inline op_vf64 op_set1_vf64(double a) { return a - (op_vf64){0}; }

/* ---- runs of elements ---- */

/* For loops over many indices -n <= i < n, without a branch: the index counted from the start, moved to
 * the nearest element where it is outside.  Then the highest bit of *outside is set. */
static inline int64_t op_index(int64_t i, int64_t n, uint64_t *outside)
{
    i = i < 0 ? i + n : i;
    *outside |= (uint64_t)i | ((uint64_t)n - 1 - (uint64_t)i);
    return i < 0 ? 0 : i >= n ? n - 1 : i;
}

/* Sums and extrema of a contiguous run, in several lanes so that they vectorize.  Floats are summed in
 * double; integers wrap around.  A NaN makes an extremum NaN. */
#define OP_SUM(S, T, A)                                                                             \
    static inline A op_sum_##S(const T *x, int64_t n)                                               \
    {                                                                                               \
        A lane[16] = {0}, total = 0;                                                                \
        int64_t i = 0;                                                                              \
        for (; i + 16 <= n; i += 16)                                                                \
            for (int j = 0; j < 16; j++)                                                            \
                lane[j] += (A)x[i + j];                                                             \
        for (int half = 8; half; half /= 2)                                                         \
            for (int j = 0; j < half; j++)                                                          \
                lane[j] += lane[j + half];                                                          \
        total = lane[0];                                                                            \
        for (; i < n; i++)                                                                          \
            total += (A)x[i];                                                                       \
        return total;                                                                               \
    }
#define OP_SQUARES(S, T)                                                                            \
    static inline double op_squares_##S(const T *x, int64_t n)                                      \
    {                                                                                               \
        double lane[16] = {0}, total = 0;                                                           \
        int64_t i = 0;                                                                              \
        for (; i + 16 <= n; i += 16)                                                                \
            for (int j = 0; j < 16; j++)                                                            \
                lane[j] += (double)x[i + j] * (double)x[i + j];                                     \
        for (int half = 8; half; half /= 2)                                                         \
            for (int j = 0; j < half; j++)                                                          \
                lane[j] += lane[j + half];                                                          \
        total = lane[0];                                                                            \
        for (; i < n; i++)                                                                          \
            total += (double)x[i] * (double)x[i];                                                   \
        return total;                                                                               \
    }
OP_SQUARES(f32, float)
OP_SQUARES(f64, double)
OP_SUM(f32, float, double)
OP_SUM(f64, double, double)
OP_SUM(i64, int64_t, uint64_t)
OP_SUM(i32, int32_t, uint64_t)
OP_SUM(i16, int16_t, uint64_t)
OP_SUM(i8, int8_t, uint64_t)
OP_SUM(u64, uint64_t, uint64_t)
OP_SUM(u32, uint32_t, uint64_t)
OP_SUM(u16, uint16_t, uint64_t)
OP_SUM(u8, uint8_t, uint64_t)

/* Products of a contiguous run: floats in double, integers modulo 2^64. */
#define OP_PRODUCT(S, T, A)                                                                         \
    static inline A op_prod_##S(const T *x, int64_t n)                                              \
    {                                                                                               \
        A lane[8] = {1, 1, 1, 1, 1, 1, 1, 1}, total = 1;                                            \
        int64_t i = 0;                                                                              \
        for (; i + 8 <= n; i += 8)                                                                  \
            for (int j = 0; j < 8; j++)                                                             \
                lane[j] *= (A)x[i + j];                                                             \
        for (int j = 0; j < 8; j++)                                                                 \
            total *= lane[j];                                                                       \
        for (; i < n; i++)                                                                          \
            total *= (A)x[i];                                                                       \
        return total;                                                                               \
    }
OP_PRODUCT(f32, float, double)
OP_PRODUCT(f64, double, double)
OP_PRODUCT(i64, int64_t, uint64_t)
OP_PRODUCT(i32, int32_t, uint64_t)
OP_PRODUCT(i16, int16_t, uint64_t)
OP_PRODUCT(i8, int8_t, uint64_t)
OP_PRODUCT(u64, uint64_t, uint64_t)
OP_PRODUCT(u32, uint32_t, uint64_t)
OP_PRODUCT(u16, uint16_t, uint64_t)
OP_PRODUCT(u8, uint8_t, uint64_t)

#define OP_EXTREMUM(NAME, S, T)                                                                     \
    static inline T op_##NAME##_run_##S(T start, const T *x, int64_t n)                             \
    {                                                                                               \
        T lane[16];                                                                                 \
        int64_t i = 0;                                                                              \
        for (int j = 0; j < 16; j++)                                                                \
            lane[j] = start;                                                                        \
        for (; i + 16 <= n; i += 16)                                                                \
            for (int j = 0; j < 16; j++)                                                            \
                lane[j] = op_##NAME##_##S(lane[j], x[i + j]);                                       \
        for (; i < n; i++)                                                                          \
            lane[0] = op_##NAME##_##S(lane[0], x[i]);                                               \
        for (int half = 8; half; half /= 2)                                                         \
            for (int j = 0; j < half; j++)                                                          \
                lane[j] = op_##NAME##_##S(lane[j], lane[j + half]);                                 \
        return lane[0];                                                                             \
    }
OP_EXTREMUM(max, i64, int64_t)
OP_EXTREMUM(max, i32, int32_t)
OP_EXTREMUM(max, i16, int16_t)
OP_EXTREMUM(max, i8, int8_t)
OP_EXTREMUM(max, u64, uint64_t)
OP_EXTREMUM(max, u32, uint32_t)
OP_EXTREMUM(max, u16, uint16_t)
OP_EXTREMUM(max, u8, uint8_t)
OP_EXTREMUM(min, i64, int64_t)
OP_EXTREMUM(min, i32, int32_t)
OP_EXTREMUM(min, i16, int16_t)
OP_EXTREMUM(min, i8, int8_t)
OP_EXTREMUM(min, u64, uint64_t)
OP_EXTREMUM(min, u32, uint32_t)
OP_EXTREMUM(min, u16, uint16_t)
OP_EXTREMUM(min, u8, uint8_t)

#define OP_EXTREMUM_FLOAT(NAME, S, T, BEFORE)                                                       \
    static inline T op_##NAME##_run_##S(T start, const T *x, int64_t n)                             \
    {                                                                                               \
        op_v##S best[2] = {op_set1_v##S(start), op_set1_v##S(start)}, v;                            \
        op_m##S nan = {0};                                                                          \
        int64_t i = 0;                                                                              \
        for (; i + 2 * OP_LANES_##S <= n; i += 2 * OP_LANES_##S)                                    \
            for (int h = 0; h < 2; h++) {                                                           \
                memcpy(&v, x + i + h * OP_LANES_##S, sizeof v);                                     \
                const op_m##S take = v BEFORE best[h];                                              \
                best[h] = (op_v##S)((take & (op_m##S)v) | (~take & (op_m##S)best[h]));              \
                nan |= v != v;                                                                      \
            }                                                                                       \
        const op_m##S take = best[1] BEFORE best[0];                                                \
        best[0] = (op_v##S)((take & (op_m##S)best[1]) | (~take & (op_m##S)best[0]));                \
        T lane[OP_LANES_##S];                                                                       \
        int32_t odd = 0;                                                                            \
        memcpy(lane, &best[0], sizeof lane);                                                        \
        for (int j = 0; j < OP_LANES_##S; j++)                                                      \
            odd |= (int32_t)nan[j];                                                                 \
        for (int half = OP_LANES_##S / 2; half; half /= 2)                                          \
            for (int j = 0; j < half; j++)                                                          \
                lane[j] = lane[j + half] BEFORE lane[j] ? lane[j + half] : lane[j];                 \
        start = odd ? (T)NAN : lane[0];                                                             \
        for (; i < n; i++)                                                                          \
            start = op_##NAME##_##S(start, x[i]);                                                   \
        return start;                                                                               \
    }
OP_EXTREMUM_FLOAT(max, f32, float, >)
OP_EXTREMUM_FLOAT(max, f64, double, >)
OP_EXTREMUM_FLOAT(min, f32, float, <)
OP_EXTREMUM_FLOAT(min, f64, double, <)

/* a / b for finite b whose reciprocal `inverse` is known: one Newton step makes the product the true
 * quotient, or within a unit of the last place where it is denormal. */
static inline float op_quotient_f32(float a, float b, float inverse)
{
#if defined(__FMA__)
    const float q = a * inverse;
    return __builtin_fmaf(__builtin_fmaf(-q, b, a), inverse, q);
#else
    (void)inverse;
    return a / b;
#endif
}
static inline double op_quotient_f64(double a, double b, double inverse) { (void)inverse; return a / b; }

/* Softmax of a contiguous run; y may be x.  Exponentials are summed in double. */
#define OP_SOFTMAX(S, T)                                                                            \
    static inline void op_softmax_run_##S(T *y, const T *x, int64_t n)                              \
    {                                                                                               \
        const T top = op_max_run_##S((T)-INFINITY, x, n);                                           \
        for (int64_t i = 0; i < n; i++)                                                             \
            y[i] = op_exp_##S(x[i] - top);                                                          \
        const T sum = (T)op_sum_##S(y, n), inverse = 1 / sum;                                                \
        for (int64_t i = 0; i < n; i++)                                                             \
            y[i] = op_quotient_##S(y[i], sum, inverse);                                             \
    }
OP_SOFTMAX(f32, float)
OP_SOFTMAX(f64, double)

/* ---- matrix products ---- */

/* Rows of a register block; its columns are two vectors.  AVX512 has 32 registers, the others 16. */
enum { OP_MR = OP_VECTOR_BYTES == 64 ? 8 : 4 };

/* Rows that share a copied panel. */
enum { OP_MC = 64 };

/* Rows and columns of a block of dot products. */
enum { OP_DOT_MR = 4, OP_DOT_NR = OP_VECTOR_BYTES == 64 ? 4 : 2 };

/* y[mr][nr] = a[mr][k] b[k][nr], with mr <= OP_MR and nr <= 2 vectors; rows are lda, ldb, ldy apart.
 * With `more` it is added to what y holds, in the order in which one longer product would add it. */
#define OP_GEMM(S, T)                                                                               \
    enum {                                                                                          \
        OP_NR_##S = 2 * OP_LANES_##S,                                                               \
        OP_KC_##S = 24576 / (OP_NR_##S * sizeof(T)) /* depth of a copied panel: it stays in L1 */   \
    };                                                                                              \
    static inline __attribute__((always_inline)) void op_gemm_fixed_##S(                            \
        const int mr, const int nv, int more, int64_t k, const T *a, int64_t lda, const T *b,       \
        int64_t ldb, T *y, int64_t ldy)                                                             \
    {                                                                                               \
        op_v##S acc[OP_MR][2] = {{{0}}};                                                            \
        for (int r = 0; r < mr && more; r++)                                                        \
            for (int v = 0; v < nv; v++)                                                            \
                memcpy(&acc[r][v], y + r * ldy + v * OP_LANES_##S, sizeof acc[r][v]);               \
        for (int64_t p = 0; p < k; p++) {                                                           \
            op_v##S column[2];                                                                      \
            for (int v = 0; v < nv; v++)                                                            \
                memcpy(&column[v], b + p * ldb + v * OP_LANES_##S, sizeof column[v]);               \
            for (int r = 0; r < mr; r++)                                                            \
                for (int v = 0; v < nv; v++)                                                        \
                    acc[r][v] = op_fma_v##S(op_set1_v##S(a[r * lda + p]), column[v], acc[r][v]);    \
        }                                                                                           \
        for (int r = 0; r < mr; r++)                                                                \
            for (int v = 0; v < nv; v++)                                                            \
                memcpy(y + r * ldy + v * OP_LANES_##S, &acc[r][v], sizeof acc[r][v]);               \
    }                                                                                               \
    static inline __attribute__((always_inline)) void op_gemm_rows_##S(                             \
        int mr, const int nv, int more, int64_t k, const T *a, int64_t lda, const T *b,             \
        int64_t ldb, T *y, int64_t ldy)                                                             \
    {                                                                                               \
        if (mr == OP_MR) {                                                                          \
            op_gemm_fixed_##S(OP_MR, nv, more, k, a, lda, b, ldb, y, ldy);                          \
            return;                                                                                 \
        }                                                                                           \
        for (; mr >= 2; mr -= 2, a += 2 * lda, y += 2 * ldy)                                        \
            op_gemm_fixed_##S(2, nv, more, k, a, lda, b, ldb, y, ldy);                              \
        if (mr)                                                                                     \
            op_gemm_fixed_##S(1, nv, more, k, a, lda, b, ldb, y, ldy);                              \
    }                                                                                               \
    static inline void op_gemm_block_##S(                                                           \
        int mr, int nr, int more, int64_t k, const T *a, int64_t lda, const T *b, int64_t ldb,      \
        T *y, int64_t ldy)                                                                          \
    {                                                                                               \
        if (nr == OP_NR_##S) {                                                                      \
            op_gemm_rows_##S(mr, 2, more, k, a, lda, b, ldb, y, ldy);                               \
            return;                                                                                 \
        }                                                                                           \
        if (nr >= OP_LANES_##S) {                                                                   \
            op_gemm_rows_##S(mr, 1, more, k, a, lda, b, ldb, y, ldy);                               \
            b += OP_LANES_##S, y += OP_LANES_##S, nr -= OP_LANES_##S;                               \
        }                                                                                           \
        T rest[OP_MR][OP_LANES_##S] = {{0}};                                                        \
        for (int r = 0; r < mr && more; r++)                                                        \
            for (int j = 0; j < nr; j++)                                                            \
                rest[r][j] = y[r * ldy + j];                                                        \
        for (int64_t p = 0; p < k && nr; p++)                                                       \
            for (int r = 0; r < mr; r++)                                                            \
                for (int j = 0; j < nr; j++)                                                        \
                    rest[r][j] += a[r * lda + p] * b[p * ldb + j];                                  \
        for (int r = 0; r < mr; r++)                                                                \
            for (int j = 0; j < nr; j++)                                                            \
                y[r * ldy + j] = rest[r][j];                                                        \
    }                                                                                               \
    /* y[mr][nr] = a[mr][k] b[nr][k]^T with mr <= OP_DOT_MR, nr <= OP_DOT_NR: dot products along rows. */ \
    static inline __attribute__((always_inline)) void op_dots_fixed_##S(                            \
        const int mr, const int nr, int64_t k, const T *a, int64_t lda, const T *b, int64_t ldb,    \
        T *y, int64_t ldy)                                                                          \
    {                                                                                               \
        op_v##S acc[OP_DOT_MR][OP_DOT_NR] = {{{0}}};                                                \
        int64_t p = 0;                                                                              \
        for (; p + OP_LANES_##S <= k; p += OP_LANES_##S) {                                          \
            op_v##S row[OP_DOT_NR], x;                                                              \
            for (int j = 0; j < nr; j++)                                                            \
                memcpy(&row[j], b + j * ldb + p, sizeof row[j]);                                    \
            for (int r = 0; r < mr; r++) {                                                          \
                memcpy(&x, a + r * lda + p, sizeof x);                                              \
                for (int j = 0; j < nr; j++)                                                        \
                    acc[r][j] = op_fma_v##S(x, row[j], acc[r][j]);                                  \
            }                                                                                       \
        }                                                                                           \
        for (int r = 0; r < mr; r++)                                                                \
            for (int j = 0; j < nr; j++) {                                                          \
                T lane[OP_LANES_##S];                                                               \
                memcpy(lane, &acc[r][j], sizeof lane);                                              \
                for (int half = OP_LANES_##S / 2; half; half /= 2)                                  \
                    for (int i = 0; i < half; i++)                                                  \
                        lane[i] += lane[i + half];                                                  \
                for (int64_t rest = p; rest < k; rest++)                                            \
                    lane[0] += a[r * lda + rest] * b[j * ldb + rest];                               \
                y[r * ldy + j] = lane[0];                                                           \
            }                                                                                       \
    }                                                                                               \
    static inline void op_dots_block_##S(                                                           \
        int mr, int nr, int64_t k, const T *a, int64_t lda, const T *b, int64_t ldb, T *y,          \
        int64_t ldy)                                                                                \
    {                                                                                               \
        if (mr == OP_DOT_MR && nr == OP_DOT_NR)                                                     \
            op_dots_fixed_##S(OP_DOT_MR, OP_DOT_NR, k, a, lda, b, ldb, y, ldy);                     \
        else                                                                                        \
            for (int r = 0; r < mr; r++)                                                            \
                for (int j = 0; j < nr; j++)                                                        \
                    op_dots_fixed_##S(1, 1, k, a + r * lda, lda, b + j * ldb, ldb,                  \
                                      y + r * ldy + j, ldy);                                        \
    }
OP_GEMM(f32, float)
OP_GEMM(f64, double)

/* A short run of elements, without a call. */
#define OP_COPY(S, T)                                                                               \
    static inline void op_copy_##S(T *restrict y, const T *restrict x, int64_t n)                   \
    {                                                                                               \
        for (; n >= 8; n -= 8, x += 8, y += 8)                                                      \
            memcpy(y, x, 8 * sizeof *y);                                                            \
        for (int some = 4; some; some /= 2)                                                         \
            if (n & some) {                                                                         \
                for (int j = 0; j < some; j++)                                                      \
                    y[j] = x[j];                                                                    \
                x += some, y += some;                                                               \
            }                                                                                       \
    }
OP_COPY(f32, float)
OP_COPY(f64, double)
OP_COPY(i32, int32_t)

/* y[n] = sum over t of w[t] * x[tap[t] .. tap[t] + n]: up to four vectors at a time, the last of which may
 * begin before the one before it ends. */
#define OP_TAPS(S, T)                                                                               \
    static inline __attribute__((always_inline)) void op_taps_fixed_##S(                            \
        const int nv, T *y, const T *x, const T *w, const int32_t *tap, int taps, int64_t last)     \
    {                                                                                               \
        op_v##S sum[2][4] = {{{0}}}, v; /* of even and of odd taps: two chains of additions */      \
        for (int t = 0; t < taps; t += 2)                                                           \
            for (int h = 0; h < 2 && t + h < taps; h++) {                                           \
                const op_v##S factor = op_set1_v##S(w[t + h]);                                      \
                for (int i = 0; i < nv; i++) {                                                      \
                    memcpy(&v, x + tap[t + h] + (i < nv - 1 ? i * OP_LANES_##S : last), sizeof v);  \
                    sum[h][i] = op_fma_v##S(factor, v, sum[h][i]);                                  \
                }                                                                                   \
            }                                                                                       \
        for (int i = 0; i < nv; i++) {                                                              \
            v = sum[0][i] + sum[1][i];                                                              \
            memcpy(y + (i < nv - 1 ? i * OP_LANES_##S : last), &v, sizeof v);                       \
        }                                                                                           \
    }                                                                                               \
    static inline void op_taps_##S(T *y, const T *x, const T *w, const int32_t *tap, int taps,      \
                                   int64_t n)                                                       \
    {                                                                                               \
        const int64_t lanes = OP_LANES_##S;                                                         \
        if (n < lanes) {                                                                            \
            for (int64_t j = 0; j < n; j++) {                                                       \
                T sum = 0;                                                                          \
                for (int t = 0; t < taps; t++)                                                      \
                    sum = op_fma_##S(w[t], x[tap[t] + j], sum);                                     \
                y[j] = sum;                                                                         \
            }                                                                                       \
            return;                                                                                 \
        }                                                                                           \
        for (; n > 4 * lanes; n -= 4 * lanes, x += 4 * lanes, y += 4 * lanes) {                     \
            if (n < 5 * lanes) { /* leave a whole vector for the end */                             \
                op_taps_fixed_##S(1, y, x, w, tap, taps, 0);                                        \
                n -= lanes, x += lanes, y += lanes;                                                 \
                break;                                                                              \
            }                                                                                       \
            op_taps_fixed_##S(4, y, x, w, tap, taps, 3 * lanes);                                    \
        }                                                                                           \
        if (n > 3 * lanes)                                                                          \
            op_taps_fixed_##S(4, y, x, w, tap, taps, n - lanes);                                    \
        else if (n > 2 * lanes)                                                                     \
            op_taps_fixed_##S(3, y, x, w, tap, taps, n - lanes);                                    \
        else if (n > lanes)                                                                         \
            op_taps_fixed_##S(2, y, x, w, tap, taps, n - lanes);                                    \
        else                                                                                        \
            op_taps_fixed_##S(1, y, x, w, tap, taps, 0);                                            \
    }
OP_TAPS(f32, float)
OP_TAPS(f64, double)

/* Integer products.  OP_INT_GROUP numbers that follow each other along k are one 32-bit word: four bytes,
 * on the left unsigned and on the right signed, for VPDPBUSD; elsewhere two 16-bit numbers for VPMADDWD.
 * op_dot adds the products of a word on the left with each word on the right, modulo 2^32. */
#if defined(__AVX512BW__) && defined(__AVX512VNNI__)
#define OP_INT_BYTES 1
#define OP_INT_LANES 16
typedef __m512i op_vint;
static inline op_vint op_dot(op_vint sum, int32_t a, op_vint b)
{
    return _mm512_dpbusd_epi32(sum, _mm512_set1_epi32(a), b);
}
#elif defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))
#define OP_INT_BYTES 1
#define OP_INT_LANES 8
typedef __m256i op_vint;
static inline op_vint op_dot(op_vint sum, int32_t a, op_vint b)
{
#if defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(sum, _mm256_set1_epi32(a), b);
#else
    return _mm256_dpbusd_epi32(sum, _mm256_set1_epi32(a), b);
#endif
}
#elif defined(__AVX2__)
#define OP_INT_BYTES 0
#define OP_INT_LANES 8
typedef __m256i op_vint;
static inline op_vint op_dot(op_vint sum, int32_t a, op_vint b)
{
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_set1_epi32(a), b));
}
#elif defined(__SSE2__)
#define OP_INT_BYTES 0
#define OP_INT_LANES 4
typedef __m128i op_vint;
static inline op_vint op_dot(op_vint sum, int32_t a, op_vint b)
{
    return _mm_add_epi32(sum, _mm_madd_epi16(_mm_set1_epi32(a), b));
}
#else
#define OP_INT_BYTES 0
#define OP_INT_LANES 4
typedef struct {
    uint32_t lane[4];
} op_vint;
static inline op_vint op_dot(op_vint sum, int32_t a, op_vint b)
{
    int16_t x[2], y[4][2];
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    for (int j = 0; j < 4; j++)
        sum.lane[j] += (uint32_t)((int32_t)x[0] * y[j][0]) + (uint32_t)((int32_t)x[1] * y[j][1]);
    return sum;
}
#endif

#if OP_INT_BYTES
typedef uint8_t op_left;
typedef uint8_t op_right; /* the bits of a signed byte */
#else
typedef int16_t op_left;
typedef uint16_t op_right;
#endif

enum {
    OP_INT_GROUP = OP_INT_BYTES ? 4 : 2,
    OP_INT_NR = 2 * OP_INT_LANES, /* columns of a panel */
    OP_INT_MC = 64,               /* rows that share a packed panel */
    OP_INT_KC = 512,              /* depth of a packed panel: 32 KiB at most */
    OP_INT_WORDS = OP_INT_KC / OP_INT_GROUP,
    /* What is added to operands of a type so that they fit the side that they are on. */
    OP_LEFT_u8 = 0,
    OP_LEFT_i8 = OP_INT_BYTES ? 128 : 0,
    OP_RIGHT_u8 = OP_INT_BYTES ? -128 : 0,
    OP_RIGHT_i8 = 0
};

/* Where number q of a group lies in its word. */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define OP_INT_PLACE(q) (32 / OP_INT_GROUP * (OP_INT_GROUP - 1 - (q)))
#else
#define OP_INT_PLACE(q) (32 / OP_INT_GROUP * (q))
#endif

/* Packed operands of a unit: `height` rows by `width` columns of which `depth` numbers are at hand; unused
 * numbers are 0, so that they count for nothing in products and sums. */
typedef struct {
    op_left left[OP_INT_MC][OP_INT_KC];
    uint32_t right[OP_INT_WORDS][OP_INT_NR];
    uint32_t acc[OP_INT_MC][OP_INT_NR];
    uint32_t left_sum[OP_INT_MC], right_sum[OP_INT_NR];
} op_int_unit;

static inline void op_int_begin(op_int_unit *u)
{
    memset(u->acc, 0, sizeof u->acc);
    memset(u->left_sum, 0, sizeof u->left_sum);
    memset(u->right_sum, 0, sizeof u->right_sum);
}

/* The word of the numbers that the OP_INT_GROUP pointers have at `at`. */
#define OP_INT_WORD(S, T)                                                                           \
    static inline uint32_t op_int_word_##S(const T *const *from, int64_t at)                        \
    {                                                                                               \
        uint32_t word = 0;                                                                          \
        for (int q = 0; q < OP_INT_GROUP; q++)                                                      \
            word |= (uint32_t)(op_right)(from[q][at] + OP_RIGHT_##S) << OP_INT_PLACE(q);            \
        return word;                                                                                \
    }
OP_INT_WORD(u8, uint8_t)
OP_INT_WORD(i8, int8_t)

/* Adds up the columns that are packed. */
static inline void op_int_add_right(op_int_unit *u, int64_t words)
{
    const int32_t ones = OP_INT_BYTES ? 0x01010101 : 0x00010001;
    for (int v = 0; v < OP_INT_NR; v += OP_INT_LANES) {
        op_vint sum;
        memcpy(&sum, u->right_sum + v, sizeof sum);
        for (int64_t w = 0; w < words; w++) {
            op_vint b;
            memcpy(&b, u->right[w] + v, sizeof b);
            sum = op_dot(sum, ones, b);
        }
        memcpy(u->right_sum + v, &sum, sizeof sum);
    }
}

/* The bits of a word's first `some` numbers. */
static inline uint32_t op_int_live(int64_t some)
{
    uint32_t bits = 0;
    for (int q = 0; q < OP_INT_GROUP && q < some; q++)
        bits |= (OP_INT_BYTES ? 0xffu : 0xffffu) << OP_INT_PLACE(q);
    return bits;
}

/* op_int_left_<type>: packs rows of the left operand, lda apart, and adds them up if `sums`.
 * op_int_right_<type>: packs columns of the right one, whose element (p, c) is at p * row + c * column.. */
#define OP_INT_PACK(S, T)                                                                           \
    static inline void op_int_left_##S(op_int_unit *u, const T *a, int64_t lda, int64_t height,     \
                                       int64_t depth, int sums)                                     \
    {                                                                                               \
        const int64_t end = (depth + OP_INT_GROUP - 1) / OP_INT_GROUP * OP_INT_GROUP;               \
        for (int64_t r = 0; r < height; r++) {                                                      \
            op_left *restrict const left = u->left[r];                                              \
            const T *restrict const x = a + r * lda;                                                \
            for (int64_t p = 0; p < depth; p++)                                                     \
                left[p] = (op_left)(x[p] + OP_LEFT_##S);                                            \
            for (int64_t p = depth; p < end; p++)                                                   \
                left[p] = 0;                                                                        \
            uint32_t sum = 0;                                                                       \
            for (int64_t p = 0; p < depth && sums; p++)                                             \
                sum += (uint32_t)(x[p] + OP_LEFT_##S);                                              \
            u->left_sum[r] += sum;                                                                  \
        }                                                                                           \
    }                                                                                               \
    static inline void op_int_right_##S(op_int_unit *u, const T *b, int64_t row, int64_t column,    \
                                        int64_t width, int64_t depth, int sums)                     \
    {                                                                                               \
        const int64_t words = (depth + OP_INT_GROUP - 1) / OP_INT_GROUP;                            \
        if (width < OP_INT_NR || depth % OP_INT_GROUP)                                              \
            memset(u->right, 0, (size_t)words * sizeof u->right[0]);                                \
        for (int64_t w = 0; w < words; w++) {                                                       \
            uint32_t *restrict const right = u->right[w];                                           \
            const T *restrict const x = b + w * OP_INT_GROUP * row;                                 \
            const int64_t some = depth - w * OP_INT_GROUP;                                          \
            if (some >= OP_INT_GROUP && width == OP_INT_NR && column == 1)                          \
                for (int c = 0; c < OP_INT_NR; c++) {                                               \
                    uint32_t word = 0;                                                              \
                    for (int q = 0; q < OP_INT_GROUP; q++)                                          \
                        word |= (uint32_t)(op_right)(x[q * row + c] + OP_RIGHT_##S) << OP_INT_PLACE(q); \
                    right[c] = word;                                                                \
                }                                                                                   \
            else if (some >= OP_INT_GROUP && row == 1)                                              \
                for (int64_t c = 0; c < width; c++) {                                               \
                    uint32_t word = 0;                                                              \
                    for (int q = 0; q < OP_INT_GROUP; q++)                                          \
                        word |= (uint32_t)(op_right)(x[c * column + q] + OP_RIGHT_##S) << OP_INT_PLACE(q); \
                    right[c] = word;                                                                \
                }                                                                                   \
            else                                                                                    \
                for (int64_t c = 0; c < width; c++)                                                 \
                    for (int q = 0; q < OP_INT_GROUP && q < some; q++)                              \
                        right[c] |= (uint32_t)(op_right)(x[q * row + c * column] + OP_RIGHT_##S)    \
                            << OP_INT_PLACE(q);                                                     \
        }                                                                                           \
        if (sums)                                                                                   \
            op_int_add_right(u, words);                                                             \
    }

OP_INT_PACK(u8, uint8_t)
OP_INT_PACK(i8, int8_t)

static inline __attribute__((always_inline)) void op_int_fixed(op_int_unit *u, const int mr, int64_t r0, int64_t words)
{
    op_vint sum[OP_MR][2];
    for (int r = 0; r < mr; r++)
        for (int v = 0; v < 2; v++)
            memcpy(&sum[r][v], u->acc[r0 + r] + v * OP_INT_LANES, sizeof sum[r][v]);
    for (int64_t w = 0; w < words; w++) {
        op_vint b0, b1;
        memcpy(&b0, u->right[w], sizeof b0);
        memcpy(&b1, u->right[w] + OP_INT_LANES, sizeof b1);
        for (int r = 0; r < mr; r++) {
            int32_t x;
            memcpy(&x, &u->left[r0 + r][OP_INT_GROUP * w], sizeof x);
            sum[r][0] = op_dot(sum[r][0], x, b0);
            sum[r][1] = op_dot(sum[r][1], x, b1);
        }
    }
    for (int r = 0; r < mr; r++)
        for (int v = 0; v < 2; v++)
            memcpy(u->acc[r0 + r] + v * OP_INT_LANES, &sum[r][v], sizeof sum[r][v]);
}

/* acc += left right, for `height` rows. */
static inline void op_int_multiply(op_int_unit *u, int64_t height, int64_t depth)
{
    const int64_t words = (depth + OP_INT_GROUP - 1) / OP_INT_GROUP;
    int64_t r = 0;
    for (; r + OP_MR <= height; r += OP_MR)
        op_int_fixed(u, OP_MR, r, words);
    for (; r + 2 <= height; r += 2)
        op_int_fixed(u, 2, r, words);
    if (r < height)
        op_int_fixed(u, 1, r, words);
}

/* sum (a - a_zero)(b - b_zero) over k numbers, from sums of the packed ones: zero points count what packing
 * added to the operands. */
static inline uint32_t op_int_sum(const op_int_unit *u, int64_t r, int64_t c, int64_t k, int32_t a_zero, int32_t b_zero)
{
    return u->acc[r][c] - (uint32_t)b_zero * u->left_sum[r] - (uint32_t)a_zero * u->right_sum[c]
        + (uint32_t)k * (uint32_t)a_zero * (uint32_t)b_zero;
}

#endif
