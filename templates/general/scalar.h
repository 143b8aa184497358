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
    static inline T op_min_##S(T a, T b) { return ((a < b) | (a != a)) ? a : b; }                     \
    static inline T op_max_##S(T a, T b) { return ((a > b) | (a != a)) ? a : b; }                     \
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

/* e^x within 1.1 units of the last place, denormal results too. */
static inline float op_exp_f32(float x)
{
    const float magic = 0x1.8p23f; /* adding it rounds to an integer, left in the low bits */
    float t = x > 89.0f ? 89.0f : x;
    t = t < -104.0f ? -104.0f : t;
    const float shifted = t * 1.44269504f + magic;
    const float n = shifted - magic;
    const float r = (t - n * 0.693359375f) + n * 2.12194440e-4f;
    const float q = 0.5f + r * (0.166665182f + r * (0.041666206f + r * (0.00836895406f + r * 0.00139505998f)));
    const float p = 1.0f + (r + r * r * q);
    uint32_t bits, low;
    memcpy(&bits, &shifted, 4);
    /* 2^n as two factors, because n goes beyond the exponents of normal floats at both ends. */
    const int32_t i = (int32_t)(bits - 0x4b400000u);
    const int32_t half = i >> 1;
    float a, b;
    low = (uint32_t)(half + 127) << 23;
    memcpy(&a, &low, 4);
    low = (uint32_t)(i - half + 127) << 23;
    memcpy(&b, &low, 4);
    return p * a * b;
}

/* The error function within 1.2 units of the last place. */
static inline float op_erf_f32(float x)
{
    const float s = x * x;
    const float near = x + x * (0.128379166f + s * (-0.376126349f + s * (0.112836942f + s * (-0.0268592704f
                     + s * (0.00520063424f + s * (-0.00081374374f + s * 8.34522507e-05f))))));
    float t = fabsf(x);
    t = t > 4.0f ? 4.0f : t;
    const float q = 0.128544897f + t * (0.635656536f + t * (0.105202913f + t * (-0.0226120092f
                  + t * (0.00289230072f + t * (-3.60647609e-05f + t * (-4.82022297e-05f + t * 5.1508805e-06f))))));
    const float far = copysignf(1.0f - op_exp_f32(-(t + t * q)), x);
    return t > 0.92f ? far : near;
}

/* The hyperbolic tangent within 1.4 units of the last place. */
static inline float op_tanh_f32(float x)
{
    const float s = x * x;
    const float near = x + x * s * (-0.333332807f + s * (0.133313835f + s * (-0.0537340008f
                     + s * (0.0206181221f + s * -0.00567930378f))));
    float t = fabsf(x);
    t = t > 10.0f ? 10.0f : t;
    const float far = copysignf(1.0f - 2.0f / (op_exp_f32(2.0f * t) + 1.0f), x);
    return t > 0.62f ? far : near;
}

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

/* ---- runs of elements ---- */

/* An index with -n <= i < n counted from either end, and anything else moved to the nearest element:
 * ONNX calls it an error, and a kernel that cannot report one must at least never read outside. */
static inline int64_t op_index(int64_t i, int64_t n)
{
    i = i < 0 ? i + n : i;
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
OP_EXTREMUM(max, f32, float)
OP_EXTREMUM(max, f64, double)
OP_EXTREMUM(max, i64, int64_t)
OP_EXTREMUM(max, i32, int32_t)
OP_EXTREMUM(max, i16, int16_t)
OP_EXTREMUM(max, i8, int8_t)
OP_EXTREMUM(max, u64, uint64_t)
OP_EXTREMUM(max, u32, uint32_t)
OP_EXTREMUM(max, u16, uint16_t)
OP_EXTREMUM(max, u8, uint8_t)
OP_EXTREMUM(min, f32, float)
OP_EXTREMUM(min, f64, double)
OP_EXTREMUM(min, i64, int64_t)
OP_EXTREMUM(min, i32, int32_t)
OP_EXTREMUM(min, i16, int16_t)
OP_EXTREMUM(min, i8, int8_t)
OP_EXTREMUM(min, u64, uint64_t)
OP_EXTREMUM(min, u32, uint32_t)
OP_EXTREMUM(min, u16, uint16_t)
OP_EXTREMUM(min, u8, uint8_t)

/* Softmax of a contiguous run; y may be x. */
#define OP_SOFTMAX(S, T)                                                                            \
    static inline void op_softmax_run_##S(T *y, const T *x, int64_t n)                              \
    {                                                                                               \
        const T top = op_max_run_##S((T)-INFINITY, x, n);                                           \
        for (int64_t i = 0; i < n; i++)                                                             \
            y[i] = op_exp_##S(x[i] - top);                                                          \
        const T sum = (T)op_sum_##S(y, n);                                                          \
        for (int64_t i = 0; i < n; i++)                                                             \
            y[i] = y[i] / sum;                                                                      \
    }
OP_SOFTMAX(f32, float)
OP_SOFTMAX(f64, double)

/* ---- matrix products ---- */

/* One vector register of the target, as a compiler's vector type. */
#if defined(__AVX512F__)
#define OP_VECTOR_BYTES 64
#elif defined(__AVX__)
#define OP_VECTOR_BYTES 32
#else
#define OP_VECTOR_BYTES 16
#endif

/* Rows of a register block; its columns are two vectors.  AVX512 has 32 registers, the others 16. */
enum { OP_MR = OP_VECTOR_BYTES == 64 ? 8 : 4 };

/* Rows that share a copied panel. */
enum { OP_MC = 64 };

/* Rows of a block of dot products; it has two columns. */
enum { OP_DOT_MR = 4 };

/* y[mr][nr] = a[mr][k] b[k][nr], with mr <= OP_MR and nr <= 2 vectors; rows are lda, ldb, ldy apart.
 * With `more` it is added to what y holds, in the order in which one longer product would add it. */
#define OP_GEMM(S, T)                                                                               \
    typedef T op_v##S __attribute__((vector_size(OP_VECTOR_BYTES)));                                \
    enum {                                                                                          \
        OP_LANES_##S = OP_VECTOR_BYTES / sizeof(T),                                                 \
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
                    acc[r][v] += a[r * lda + p] * column[v];                                        \
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
    /* y[mr][nr] = a[mr][k] b[nr][k]^T with mr <= OP_DOT_MR, nr <= 2: dot products along both rows. */  \
    static inline __attribute__((always_inline)) void op_dots_fixed_##S(                            \
        const int mr, const int nr, int64_t k, const T *a, int64_t lda, const T *b, int64_t ldb,    \
        T *y, int64_t ldy)                                                                          \
    {                                                                                               \
        op_v##S acc[OP_DOT_MR][2] = {{{0}}};                                                            \
        int64_t p = 0;                                                                              \
        for (; p + OP_LANES_##S <= k; p += OP_LANES_##S) {                                          \
            op_v##S row[2], x;                                                                      \
            for (int j = 0; j < nr; j++)                                                            \
                memcpy(&row[j], b + j * ldb + p, sizeof row[j]);                                    \
            for (int r = 0; r < mr; r++) {                                                          \
                memcpy(&x, a + r * lda + p, sizeof x);                                              \
                for (int j = 0; j < nr; j++)                                                        \
                    acc[r][j] += x * row[j];                                                        \
            }                                                                                       \
        }                                                                                           \
        for (int r = 0; r < mr; r++)                                                                \
            for (int j = 0; j < nr; j++) {                                                          \
                T total = 0;                                                                        \
                for (int lane = 0; lane < OP_LANES_##S; lane++)                                     \
                    total += acc[r][j][lane];                                                       \
                for (int64_t rest = p; rest < k; rest++)                                            \
                    total += a[r * lda + rest] * b[j * ldb + rest];                                 \
                y[r * ldy + j] = total;                                                             \
            }                                                                                       \
    }                                                                                               \
    static inline void op_dots_block_##S(                                                           \
        int mr, int nr, int64_t k, const T *a, int64_t lda, const T *b, int64_t ldb, T *y,          \
        int64_t ldy)                                                                                \
    {                                                                                               \
        if (mr == OP_DOT_MR && nr == 2)                                                             \
            op_dots_fixed_##S(OP_DOT_MR, 2, k, a, lda, b, ldb, y, ldy);                                 \
        else                                                                                        \
            for (int r = 0; r < mr; r++)                                                            \
                for (int j = 0; j < nr; j++)                                                        \
                    op_dots_fixed_##S(1, 1, k, a + r * lda, lda, b + j * ldb, ldb,                  \
                                      y + r * ldy + j, ldy);                                        \
    }
OP_GEMM(f32, float)
OP_GEMM(f64, double)

/* Integer products.  Operands are 16-bit (8-bit values minus a zero point), b is packed as pairs of
 * consecutive k: packed[k / 2][OP_INT_NR][2].  A pair of products is one VPMADDWD lane: exact. */
#if defined(__AVX512BW__)
typedef __m512i op_vint;
#define OP_INT_LANES 16
static inline op_vint op_pairs(op_vint sum, int32_t a, op_vint b)
{
#if defined(__AVX512VNNI__)
    return _mm512_dpwssd_epi32(sum, _mm512_set1_epi32(a), b);
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_set1_epi32(a), b));
#endif
}
#elif defined(__AVX2__)
typedef __m256i op_vint;
#define OP_INT_LANES 8
static inline op_vint op_pairs(op_vint sum, int32_t a, op_vint b)
{
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_set1_epi32(a), b));
}
#elif defined(__SSE2__)
typedef __m128i op_vint;
#define OP_INT_LANES 4
static inline op_vint op_pairs(op_vint sum, int32_t a, op_vint b)
{
    return _mm_add_epi32(sum, _mm_madd_epi16(_mm_set1_epi32(a), b));
}
#else
typedef struct {
    uint32_t lane[4];
} op_vint;
#define OP_INT_LANES 4
static inline op_vint op_pairs(op_vint sum, int32_t a, op_vint b)
{
    int16_t x[2], y[4][2];
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    for (int j = 0; j < 4; j++)
        sum.lane[j] += (uint32_t)((int32_t)x[0] * y[j][0]) + (uint32_t)((int32_t)x[1] * y[j][1]);
    return sum;
}
#endif

enum {
    OP_INT_NR = 2 * OP_INT_LANES, /* columns of a panel */
    OP_INT_MC = 64,               /* rows that share a packed panel */
    OP_INT_KC = 512               /* depth of a packed panel: 32 KiB at most */
};

static inline __attribute__((always_inline)) void op_int_fixed(
    const int mr, int64_t pairs, const int16_t (*a)[OP_INT_KC], const int16_t (*packed)[OP_INT_NR][2],
    int32_t (*acc)[OP_INT_NR])
{
    op_vint sum[OP_MR][2];
    for (int r = 0; r < mr; r++)
        for (int v = 0; v < 2; v++)
            memcpy(&sum[r][v], acc[r] + v * OP_INT_LANES, sizeof sum[r][v]);
    for (int64_t p = 0; p < pairs; p++) {
        op_vint b0, b1;
        memcpy(&b0, packed[p], sizeof b0);
        memcpy(&b1, packed[p] + OP_INT_LANES, sizeof b1);
        for (int r = 0; r < mr; r++) {
            int32_t x;
            memcpy(&x, &a[r][2 * p], sizeof x);
            sum[r][0] = op_pairs(sum[r][0], x, b0);
            sum[r][1] = op_pairs(sum[r][1], x, b1);
        }
    }
    for (int r = 0; r < mr; r++)
        for (int v = 0; v < 2; v++)
            memcpy(acc[r] + v * OP_INT_LANES, &sum[r][v], sizeof sum[r][v]);
}

/* acc[mr][OP_INT_NR] += a[mr][2 * pairs] packed, modulo 2^32; mr <= OP_MR. */
static inline void op_int_block(int mr, int64_t pairs, const int16_t (*a)[OP_INT_KC],
                                const int16_t (*packed)[OP_INT_NR][2], int32_t (*acc)[OP_INT_NR])
{
    if (mr == OP_MR) {
        op_int_fixed(OP_MR, pairs, a, packed, acc);
        return;
    }
    for (; mr >= 2; mr -= 2, a += 2, acc += 2)
        op_int_fixed(2, pairs, a, packed, acc);
    if (mr)
        op_int_fixed(1, pairs, a, packed, acc);
}

#endif
