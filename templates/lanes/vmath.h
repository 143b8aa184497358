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
    return vf_scale2(p, n);
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

#ifdef vf_lookup16
/* Phi(a) - 1/2, Phi the normal distribution function, for a >= 0: quartics around 16 multiples of 11/31,
 * the last of them constant, so that GELU comes out as exactly 0 below -5.15; absolute error below 2e-7. */
static const float phi_table[5][16] = {
    {0x1.ce53fap-29f, 0x1.1bf1ccp-3f, 0x1.0b5024p-2f, 0x1.6d01e4p-2f, 0x1.b03b90p-2f, 0x1.d91272p-2f,
     0x1.eef9a6p-2f, 0x1.f9588cp-2f, 0x1.fdae4ap-2f, 0x1.ff47ccp-2f, 0x1.ffcd32p-2f, 0x1.fff390p-2f,
     0x1.fffd4cp-2f, 0x1.ffff7ap-2f, 0x1.ffffeap-2f, 0x1.000000p-1f},
    {0x1.988414p-2f, 0x1.7f96d6p-2f, 0x1.3d9302p-2f, 0x1.cfa19ep-3f, 0x1.2a6474p-3f, 0x1.52a5f0p-4f,
     0x1.52dce0p-5f, 0x1.2af55ap-6f, 0x1.d116eep-8f, 0x1.3ef61ep-9f, 0x1.81b82ep-11f, 0x1.9b3f38p-13f,
     0x1.82919cp-15f, 0x1.405c34p-17f, 0x1.d42010p-20f, 0x0.0p+0f},
    {0x1.67919cp-15f, -0x1.10386cp-4f, -0x1.c2be64p-4f, -0x1.ed893ap-4f, -0x1.a78518p-4f, -0x1.2c6980p-4f,
     -0x1.68ba18p-5f, -0x1.734bbap-6f, -0x1.4a149ep-7f, -0x1.fd5b2cp-9f, -0x1.5638aep-10f, -0x1.91635cp-12f,
     -0x1.9ba4c6p-14f, -0x1.719e10p-16f, -0x1.22df74p-18f, 0x0.0p+0f},
    {-0x1.131f4ep-4f, -0x1.bcca54p-5f, -0x1.a3f4f2p-6f, 0x1.3d2e24p-8f, 0x1.8fb974p-6f, 0x1.e23b08p-6f,
     0x1.8e38fep-6f, 0x1.01fa1ep-6f, 0x1.130fe6p-7f, 0x1.eddacep-9f, 0x1.7a1b10p-10f, 0x1.f1c318p-12f,
     0x1.1b3530p-13f, 0x1.17a038p-15f, 0x1.e07514p-18f, 0x0.0p+0f},
    {0x1.1f7ba4p-8f, 0x1.02d824p-6f, 0x1.74abb4p-6f, 0x1.31d570p-6f, 0x1.16b524p-7f, -0x1.b88226p-11f,
     -0x1.6ce8b8p-8f, -0x1.869934p-8f, -0x1.1635fcp-8f, -0x1.32b312p-9f, -0x1.13ad40p-10f, -0x1.9e4f66p-12f,
     -0x1.07fe56p-13f, -0x1.1fd732p-15f, -0x1.0e2714p-17f, 0x0.0p+0f},
};
SPARSEC_INLINE vf vf_phi(vf a)
{
    a = vf_min(a, vf_set1(5.499f));
    const vf shift = vf_set1(0x1.8p+23f); /* adding it rounds, and leaves the number in the low bits */
    const vf t = vf_fma(a, vf_set1(0x1.68ba30p+1f), shift);
    const vf d = vf_fnma(t - shift, vf_set1(0x1.6b5ad6p-2f), a);
    const vi i = (vi)t;
    vf p = vf_lookup16(phi_table[4], i);
    p = vf_fma(p, d, vf_lookup16(phi_table[3], i));
    p = vf_fma(p, d, vf_lookup16(phi_table[2], i));
    p = vf_fma(p, d, vf_lookup16(phi_table[1], i));
    return vf_fma(p, d, vf_lookup16(phi_table[0], i));
}
#else
SPARSEC_INLINE vf vf_phi(vf a) { return 0.5f * vf_erf(a * vf_set1(0x1.6a09e6p-1f)); }
#endif

/* GELU, x Phi(x), absolute error below 2e-6; and its tanh approximation. */
SPARSEC_INLINE vf vf_gelu(vf x)
{
    const vf a = vf_abs(x);
    return vf_fma(a, vf_phi(a), 0.5f * x);
}
SPARSEC_INLINE vf vf_gelu_tanh(vf x)
{
    const vf inner = vf_set1(0x1.988454p-1f) * vf_fma(vf_set1(0x1.6e4e26p-5f) * x * x, x, x);
    return 0.5f * x * (1.0f + vf_tanh(inner));
}
