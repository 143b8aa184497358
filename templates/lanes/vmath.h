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
/* Phi(a) - 1/2, Phi the normal distribution function, for a >= 0: quartics on 16 intervals of 11/32, each
 * in the distance from its interval's centre; absolute error below 2e-7. */
static const float phi_table[5][16] = {
        {0x1.177a8a0000000p-4f, 0x1.93563c0000000p-3f, 0x1.3840660000000p-2f, 0x1.8ac9f40000000p-2f,
     0x1.c197300000000p-2f, 0x1.e1f56e0000000p-2f, 0x1.f2f71e0000000p-2f, 0x1.fae9f40000000p-2f,
     0x1.fe37f60000000p-2f, 0x1.ff70d60000000p-2f, 0x1.ffd7c40000000p-2f, 0x1.fff5e40000000p-2f,
     0x1.fffdba0000000p-2f, 0x1.ffff8c0000000p-2f, 0x1.ffffec0000000p-2f, 0x1.fffffc0000000p-2f},
        {0x1.9286500000000p-2f, 0x1.65aa1c0000000p-2f, 0x1.1a62a60000000p-2f, 0x1.8c34ac0000000p-3f,
     0x1.edf2900000000p-4f, 0x1.1195880000000p-4f, 0x1.0d48820000000p-5f, 0x1.d703ac0000000p-7f,
     0x1.6e04ba0000000p-8f, 0x1.f971b60000000p-10f, 0x1.3615ec0000000p-11f, 0x1.520d980000000p-13f,
     0x1.4773fe0000000p-15f, 0x1.19d19e0000000p-17f, 0x1.aefee20000000p-20f, 0x1.24d0840000000p-22f},
        {-0x1.14bb620000000p-5f, -0x1.70d6260000000p-4f, -0x1.e557ec0000000p-4f, -0x1.dcadf20000000p-4f,
     -0x1.7e08c80000000p-4f, -0x1.029f380000000p-4f, -0x1.2cd7b00000000p-5f, -0x1.2f976a0000000p-6f,
     -0x1.0b610c0000000p-7f, -0x1.9caf540000000p-9f, -0x1.17d7e80000000p-10f, -0x1.4e29660000000p-12f,
     -0x1.5fdc9a0000000p-14f, -0x1.4716e40000000p-16f, -0x1.0cae360000000p-18f,
     -0x1.86535e0000000p-21f},
        {-0x1.0307b60000000p-4f, -0x1.5ccd280000000p-5f, -0x1.8c3c640000000p-7f, 0x1.d1d7360000000p-7f,
     0x1.c73bd20000000p-6f, 0x1.d3a3ac0000000p-6f, 0x1.6605a00000000p-6f, 0x1.bc56760000000p-7f,
     0x1.ce98ca0000000p-8f, 0x1.9b36900000000p-9f, 0x1.3b62c40000000p-10f, 0x1.a439900000000p-12f,
     0x1.e89c0e0000000p-14f, 0x1.f16c320000000p-16f, 0x1.bc79c20000000p-18f, 0x1.5d43b60000000p-20f},
        {0x1.10046e0000000p-7f, 0x1.4de8d60000000p-6f, 0x1.6bec780000000p-6f, 0x1.ec215e0000000p-7f,
     0x1.37ac6e0000000p-8f, -0x1.8417a20000000p-9f, -0x1.8ca4300000000p-8f, -0x1.6ff1140000000p-8f,
     -0x1.edd8e00000000p-9f, -0x1.08b40c0000000p-9f, -0x1.d779580000000p-11f, -0x1.63eab00000000p-12f,
     -0x1.ccf5460000000p-14f, -0x1.020a2e0000000p-15f, -0x1.f625280000000p-18f,
     -0x1.aa43380000000p-20f},
};
SPARSEC_INLINE vf vf_phi(vf a)
{
    const vi far = (vi)(a >= 5.5f); /* exactly 1/2, so that GELU comes out as exactly 0 there */
    a = vf_min(a, vf_set1(5.499f));
    const vi i = vi_trunc(a * vf_set1(0x1.745d18p+1f));
    const vf d = vf_fnma(vf_cvt(i) + 0.5f, vf_set1(0x1.6p-2f), a);
    vf p = vf_lookup16(phi_table[4], i);
    p = vf_fma(p, d, vf_lookup16(phi_table[3], i));
    p = vf_fma(p, d, vf_lookup16(phi_table[2], i));
    p = vf_fma(p, d, vf_lookup16(phi_table[1], i));
    return vf_sel(far, vf_set1(0.5f), vf_fma(p, d, vf_lookup16(phi_table[0], i)));
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
