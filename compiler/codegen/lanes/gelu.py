"""GELU between an integer sum and a quantization, in the units of both.

``gelu(x) = |x| (phi(|x|) + sign(x) / 2)`` with ``phi(a) = Phi(a) - 1/2`` (Phi: the normal
distribution function), for which there are quartics around 16 multiples of :data:`WIDTH`.  The sum
and the steps of the result are proportional to x, and scaling the quartics makes these factors
disappear.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

#: Distance of the points around which there are quartics, and where the last of them ends.
WIDTH, END = 11 / 31, 5.499

#: Coefficients of the quartics, constant ones first; the last quartic is constant, so that GELU
#: comes out as exactly 0 below -5.15.  Least-squares fits on Chebyshev nodes; absolute error below
#: 2e-7.
PHI = np.array(
    [
        [float.fromhex(c) for c in row.split()]
        for row in (
            "0x1.ce53fap-29 0x1.1bf1ccp-3 0x1.0b5024p-2 0x1.6d01e4p-2 0x1.b03b90p-2 "
            "0x1.d91272p-2 0x1.eef9a6p-2 0x1.f9588cp-2 0x1.fdae4ap-2 0x1.ff47ccp-2 "
            "0x1.ffcd32p-2 0x1.fff390p-2 0x1.fffd4cp-2 0x1.ffff7ap-2 0x1.ffffeap-2 "
            "0x1.000000p-1",
            "0x1.988414p-2 0x1.7f96d6p-2 0x1.3d9302p-2 0x1.cfa19ep-3 0x1.2a6474p-3 "
            "0x1.52a5f0p-4 0x1.52dce0p-5 0x1.2af55ap-6 0x1.d116eep-8 0x1.3ef61ep-9 "
            "0x1.81b82ep-11 0x1.9b3f38p-13 0x1.82919cp-15 0x1.405c34p-17 0x1.d42010p-20 "
            "0x0.0p+0",
            "0x1.67919cp-15 -0x1.10386cp-4 -0x1.c2be64p-4 -0x1.ed893ap-4 -0x1.a78518p-4 "
            "-0x1.2c6980p-4 -0x1.68ba18p-5 -0x1.734bbap-6 -0x1.4a149ep-7 -0x1.fd5b2cp-9 "
            "-0x1.5638aep-10 -0x1.91635cp-12 -0x1.9ba4c6p-14 -0x1.719e10p-16 -0x1.22df74p-18 "
            "0x0.0p+0",
            "-0x1.131f4ep-4 -0x1.bcca54p-5 -0x1.a3f4f2p-6 0x1.3d2e24p-8 0x1.8fb974p-6 "
            "0x1.e23b08p-6 0x1.8e38fep-6 0x1.01fa1ep-6 0x1.130fe6p-7 0x1.eddacep-9 "
            "0x1.7a1b10p-10 0x1.f1c318p-12 0x1.1b3530p-13 0x1.17a038p-15 0x1.e07514p-18 "
            "0x0.0p+0",
            "0x1.1f7ba4p-8 0x1.02d824p-6 0x1.74abb4p-6 0x1.31d570p-6 0x1.16b524p-7 "
            "-0x1.b88226p-11 -0x1.6ce8b8p-8 -0x1.869934p-8 -0x1.1635fcp-8 -0x1.32b312p-9 "
            "-0x1.13ad40p-10 -0x1.9e4f66p-12 -0x1.07fe56p-13 -0x1.1fd732p-15 -0x1.0e2714p-17 "
            "0x0.0p+0",
        )
    ],
    np.float32,
)


def literals() -> list[list[str]]:
    """:data:`PHI` as C text."""
    return [[f"{float(c).hex()}f" for c in row] for row in PHI]


def steps_table(scale: float, step: float) -> Array:
    """What ``v_gelu_steps`` needs to compute ``round(gelu(scale * sum) / step)``.

    Returns:
        float32 [96]: the coefficients for 16 quartics in the sum, constant ones first; then where
        the last ends, 1 / width, width, half of scale / step, scale, 1 / step; zeros.
    """
    power = scale ** np.arange(5)[:, None]
    quartics = PHI.astype(np.float64) * power * (scale / step)
    numbers = [END / scale, scale / WIDTH, WIDTH / scale, scale / step / 2, scale, 1 / step]
    table = np.concatenate([quartics.reshape(-1), numbers, np.zeros(10)])
    return table.astype(np.float32)
