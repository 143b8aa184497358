/* op_math.h: functions of one float; errors are the largest found among one in 37 of all float32. */
#ifndef SPARSEC_OP_MATH_H
#define SPARSEC_OP_MATH_H

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
    return ((x > 0) & (x < INFINITY)) ? y : edge;
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

#endif
