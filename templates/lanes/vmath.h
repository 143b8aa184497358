/* Vector math.  Coefficients are least-squares fits on Chebyshev nodes; the stated errors are tested. */

/* e^x, within 2 ulp; 0 below -104, infinity above 88.8, NaN stays NaN. */
SPARSEC_INLINE vf vf_exp(vf x)
{
    x = vf_min(vf_set1(89.0f), vf_max(vf_set1(-104.0f), x));
    const vf n = vf_round(x * vf_set1(0x1.715476p+0f));
    vf r = vf_fnma(n, vf_set1(0x1.62e400p-1f), x);
    r = vf_fnma(n, vf_set1(0x1.7f7d1cp-20f), r);
    vf p = vf_set1(0x1.6d43b0p-10f);
    p = vf_fma(p, r, vf_set1(0x1.120be8p-7f));
    p = vf_fma(p, r, vf_set1(0x1.5554e8p-5f));
    p = vf_fma(p, r, vf_set1(0x1.5554dcp-3f));
    p = vf_fma(p, r, vf_set1(0.5f));
    p = vf_fma(p * r, r, r) + 1.0f;
    /* 2^n in two factors, so that results below 2^-126 and the overflow to infinity come out right. */
    const vi k = vi_rint(n);
    const vi half = k >> 1;
    return p * (vf)((half + 127) << 23) * (vf)((k - half + 127) << 23);
}

/* erf(x), absolute error below 2e-7, relative error below 3e-7 for |x| < 1. */
SPARSEC_INLINE vf vf_erf(vf x)
{
    const vf a = vf_min(vf_set1(4.0f), vf_abs(x));
    const vf u = a * a;
    vf small = vf_set1(0x1.4a9da2p-14f);
    small = vf_fma(small, u, vf_set1(-0x1.a46b3cp-11f));
    small = vf_fma(small, u, vf_set1(0x1.541634p-8f));
    small = vf_fma(small, u, vf_set1(-0x1.b7fb38p-6f));
    small = vf_fma(small, u, vf_set1(0x1.ce2d18p-4f));
    small = vf_fma(small, u, vf_set1(-0x1.81273ep-2f));
    small = vf_fma(small, u, vf_set1(0x1.20dd74p+0f));
    vf large = vf_set1(-0x1.32c35ep-16f); /* log(erfc(a)) */
    large = vf_fma(large, a, vf_set1(0x1.9fe0d8p-12f));
    large = vf_fma(large, a, vf_set1(-0x1.03754cp-8f));
    large = vf_fma(large, a, vf_set1(0x1.910e1ap-6f));
    large = vf_fma(large, a, vf_set1(-0x1.b6e32cp-4f));
    large = vf_fma(large, a, vf_set1(-0x1.44de66p-1f));
    large = vf_fma(large, a, vf_set1(-0x1.20fd7ep+0f));
    large = vf_fma(large, a, vf_set1(0x1.97326ep-16f));
    const vf r = vf_sel((vi)(a < 1.0f), a * small, 1.0f - vf_exp(large));
    return (vf)((vi)r | ((vi)x & (int32_t)0x80000000));
}

/* tanh(x), relative error below 4e-7. */
SPARSEC_INLINE vf vf_tanh(vf x)
{
    const vf a = vf_abs(x);
    const vf u = x * x;
    vf p = vf_set1(-0x1.9017eep-8f);
    p = vf_fma(p, u, vf_set1(0x1.581fa2p-6f));
    p = vf_fma(p, u, vf_set1(-0x1.b928dep-5f));
    p = vf_fma(p, u, vf_set1(0x1.110e2ep-3f));
    p = vf_fma(p, u, vf_set1(-0x1.555552p-2f));
    const vf large = 1.0f - 2.0f / (vf_exp(a + a) + 1.0f);
    const vf r = vf_sel((vi)(a < 0.625f), vf_fma(a * u, p, a), large);
    return (vf)((vi)r | ((vi)x & (int32_t)0x80000000));
}

SPARSEC_INLINE vf vf_sigmoid(vf x) { return 1.0f / (1.0f + vf_exp(vf_neg(x))); }

/* GELU with erf; GELU with the tanh approximation. */
SPARSEC_INLINE vf vf_gelu(vf x) { return 0.5f * x * (1.0f + vf_erf(x * vf_set1(0x1.6a09e6p-1f))); }
SPARSEC_INLINE vf vf_gelu_tanh(vf x)
{
    const vf inner = vf_set1(0x1.988454p-1f) * vf_fma(vf_set1(0x1.6e4e26p-5f) * x * x, x, x);
    return 0.5f * x * (1.0f + vf_tanh(inner));
}
