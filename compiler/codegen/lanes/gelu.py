"""GELU between an integer sum and a quantization, in the units of both.

``gelu(x) = |x| phi(|x|) + x / 2`` with ``phi(a) = Phi(a) - 1/2`` (Phi: the normal distribution
function), for which there are polynomials in pieces: as many pieces as a vector, or two, has
elements.  The sum and the steps of the result are proportional to x, and scaling the polynomials
makes these factors disappear.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

#: Where the last pieces begin, which are constant, so that GELU comes out as exactly 0 from there
#: on; and what is as large as anything beyond.
LAST, MOST = 5.145, 5.22


def _floats(*rows: str) -> Array:
    return np.array([[float.fromhex(c) for c in row.split()] for row in rows], np.float32)


#: Coefficients of cubics in a around 32 multiples of ``LAST / 30.5``, constant ones first.  These
#: and the next are least-squares fits on Chebyshev nodes, each coefficient rounded before those of
#: lower powers are fitted; absolute error below 2e-7.
CUBICS = _floats(
    "-0x1.6d5344p-30 -0x1.147930p-18 -0x1.411468p-13 -0x1.216c34p-10 -0x1.115c26p-8 "
    "-0x1.663a6cp-7 -0x1.6f4d20p-6 -0x1.394950p-5 -0x1.cb8bb2p-5 -0x1.2678cep-4 "
    "-0x1.4a0d04p-4 -0x1.3ce94ep-4 -0x1.e33296p-5 -0x1.90faccp-6 0x1.92454cp-6 0x1.598d18p-4 "
    "0x1.332450p-3 0x1.bab508p-3 0x1.1d164cp-2 0x1.556942p-2 0x1.8478b4p-2 0x1.a9ce92p-2 "
    "0x1.c60624p-2 0x1.da6450p-2 0x1.e87668p-2 0x1.f1c7fcp-2 0x1.f7b4bap-2 0x1.fb539ep-2 "
    "0x1.fd7498p-2 0x1.fea928p-2 0x1.ff5188p-2 0x1.000000p-1",
    "0x1.988466p-2 0x1.98a03ap-2 0x1.9a53ccp-2 0x1.a11bd4p-2 0x1.b0ec08p-2 0x1.cc2d6ap-2 "
    "0x1.f22b6ap-2 0x1.0f45b2p-1 0x1.2500d6p-1 0x1.360116p-1 0x1.3e6b98p-1 0x1.3bb97ep-1 "
    "0x1.2d3c86p-1 0x1.142536p-1 0x1.e633bap-2 0x1.9b164cp-2 0x1.4df928p-2 0x1.04dd4cp-2 "
    "0x1.8812acp-3 0x1.1baa4cp-3 0x1.8b70f8p-4 0x1.09b5dap-4 0x1.586dfcp-5 0x1.aee2fep-6 "
    "0x1.043ea6p-6 0x1.2fadbcp-7 0x1.5675ccp-8 0x1.755d76p-9 0x1.89ac26p-10 0x1.918f86p-11 "
    "0x1.8c603ep-12 0x0.0p+0",
    "-0x1.d5f69ep-17 -0x1.e62c6cp-11 -0x1.d76c4ep-8 -0x1.7347ccp-6 -0x1.8ea922p-5 "
    "-0x1.56af1ap-4 -0x1.fa8960p-4 -0x1.4e5c2ap-3 -0x1.934a7ep-3 -0x1.c2f822p-3 "
    "-0x1.d83634p-3 -0x1.d25106p-3 -0x1.b49418p-3 -0x1.850f14p-3 -0x1.4b0b98p-3 "
    "-0x1.0d9de0p-3 -0x1.a53246p-4 -0x1.3c0ad6p-4 -0x1.c837b6p-5 -0x1.3d1924p-5 "
    "-0x1.a8e5aap-6 -0x1.129f30p-6 -0x1.56b298p-7 -0x1.9d1720p-8 -0x1.e13ebep-9 "
    "-0x1.0f0c4cp-9 -0x1.275716p-10 -0x1.376728p-11 -0x1.3dd304p-12 -0x1.3a14a4p-13 "
    "-0x1.2c9b2ap-14 0x0.0p+0",
    "-0x1.0f8738p-4 -0x1.0484eep-4 -0x1.c77460p-5 -0x1.642aa4p-5 -0x1.d865aap-6 "
    "-0x1.b91b20p-7 0x1.ea65f4p-11 0x1.aa3526p-7 0x1.66f9fcp-6 0x1.c02a92p-6 0x1.e3ec52p-6 "
    "0x1.db55a0p-6 0x1.b2a138p-6 0x1.769dc2p-6 0x1.32b358p-6 0x1.df6982p-7 0x1.66f08ap-7 "
    "0x1.021810p-7 0x1.65225ep-8 0x1.dc3292p-9 0x1.32473ap-9 0x1.7c6fb2p-10 0x1.c8a6b2p-11 "
    "0x1.09036ap-11 0x1.299790p-12 0x1.4373d0p-13 0x1.5468e6p-14 0x1.5b0248p-15 "
    "0x1.56bad4p-16 0x1.480deap-17 0x1.3061e8p-18 0x0.0p+0",
)

#: Of polynomials of degree 6 around 8 multiples of ``LAST / 6.5``, in how many of these a is away.
SEXTICS = _floats(
    "0x1.8bfa68p-35 0x1.248aa2p-2 0x1.c5efecp-2 0x1.f7016ep-2 0x1.ff3588p-2 0x1.fff614p-2 "
    "0x1.ffffbcp-2 0x1.000000p-1",
    "0x1.435b5cp-2 0x1.d8c896p-3 0x1.71706ep-4 0x1.349156p-6 0x1.137af2p-9 0x1.06e6ecp-13 "
    "0x1.0c40ccp-18 0x0.0p+0",
    "-0x1.485e76p-20 -0x1.2836b8p-4 -0x1.ceee94p-5 -0x1.21fe44p-6 -0x1.5931c6p-9 "
    "-0x1.9bc474p-13 -0x1.f812aap-18 0x0.0p+0",
    "-0x1.0e00f4p-5 -0x1.272654p-7 0x1.d0ac1ep-7 0x1.2b0846p-7 0x1.03a740p-9 0x1.91edf4p-13 "
    "0x1.2bfe10p-17 0x0.0p+0",
    "-0x1.672102p-14 0x1.258dc0p-7 0x1.7e8e22p-10 -0x1.3fa128p-9 -0x1.fa9e90p-11 "
    "-0x1.1028aep-13 -0x1.008c96p-17 0x0.0p+0",
    "0x1.b7af10p-9 -0x1.f8f406p-13 -0x1.b3801ep-10 0x1.2ef128p-15 0x1.3553fep-12 "
    "0x1.12f9b8p-14 0x1.667292p-18 0x0.0p+0",
    "-0x1.91365ep-12 -0x1.6e97bep-11 0x1.cad504p-13 0x1.844f8ap-13 -0x1.5a61d4p-15 "
    "-0x1.78eca0p-16 -0x1.5aad16p-19 0x0.0p+0",
)


def steps_table(scale: float, step: float) -> Array:
    """What ``v_gelu_steps`` needs to compute ``round(gelu(scale * sum) / step)``.

    Returns:
        float32 [200]: what is beyond all pieces, 1 / width of cubics, and of sextics, half of
        scale / step, scale, 1 / step, zeros up to 16 numbers; then the coefficients of 32 cubics in
        the sum, and of 8 sextics.
    """
    numbers = [MOST / scale, 30.5 * scale / LAST, 6.5 * scale / LAST]
    numbers += [scale / step / 2, scale, 1 / step]
    power = scale ** np.arange(len(CUBICS))[:, None]
    pieces = [CUBICS.astype(np.float64) * power, SEXTICS.astype(np.float64)]
    scaled = [(piece * (scale / step)).reshape(-1) for piece in pieces]
    return np.concatenate([numbers, np.zeros(10), *scaled]).astype(np.float32)


def literals() -> list[str]:
    """The table for GELU itself, as C text."""
    return [f"{float(number).hex()}f" for number in steps_table(1.0, 1.0)]
