"""GELU between an integer sum and a quantization, in the units of both.

``gelu(x) = |x| phi(|x|) + x / 2`` with ``phi(a) = Phi(a) - 1/2`` (Phi: the normal distribution
function), for which there are cubics around 32 multiples of :data:`WIDTH`.  The sum and the steps
of the result are proportional to x, and scaling the cubics makes these factors disappear.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

#: Distance of the points around which there are cubics, the last of which begins at 5.145; and what
#: is as large as anything beyond.
WIDTH, MOST = 5.145 / 30.5, 5.22

#: Coefficients of the cubics in a, constant ones first; the last cubic is constant, so that GELU
#: comes out as exactly 0 from there on.  Least-squares fits on Chebyshev nodes, each coefficient
#: rounded before those of lower powers are fitted; absolute error below 2e-7.
PHI = np.array(
    [
        [float.fromhex(c) for c in row.split()]
        for row in (
            "-0x1.6d5344p-30 -0x1.147930p-18 -0x1.411468p-13 -0x1.216c34p-10 -0x1.115c26p-8 "
            "-0x1.663a6cp-7 -0x1.6f4d20p-6 -0x1.394950p-5 -0x1.cb8bb2p-5 -0x1.2678cep-4 "
            "-0x1.4a0d04p-4 -0x1.3ce94ep-4 -0x1.e33296p-5 -0x1.90faccp-6 0x1.92454cp-6 "
            "0x1.598d18p-4 0x1.332450p-3 0x1.bab508p-3 0x1.1d164cp-2 0x1.556942p-2 0x1.8478b4p-2 "
            "0x1.a9ce92p-2 0x1.c60624p-2 0x1.da6450p-2 0x1.e87668p-2 0x1.f1c7fcp-2 0x1.f7b4bap-2 "
            "0x1.fb539ep-2 0x1.fd7498p-2 0x1.fea928p-2 0x1.ff5188p-2 0x1.000000p-1",
            "0x1.988466p-2 0x1.98a03ap-2 0x1.9a53ccp-2 0x1.a11bd4p-2 0x1.b0ec08p-2 0x1.cc2d6ap-2 "
            "0x1.f22b6ap-2 0x1.0f45b2p-1 0x1.2500d6p-1 0x1.360116p-1 0x1.3e6b98p-1 0x1.3bb97ep-1 "
            "0x1.2d3c86p-1 0x1.142536p-1 0x1.e633bap-2 0x1.9b164cp-2 0x1.4df928p-2 0x1.04dd4cp-2 "
            "0x1.8812acp-3 0x1.1baa4cp-3 0x1.8b70f8p-4 0x1.09b5dap-4 0x1.586dfcp-5 0x1.aee2fep-6 "
            "0x1.043ea6p-6 0x1.2fadbcp-7 0x1.5675ccp-8 0x1.755d76p-9 0x1.89ac26p-10 "
            "0x1.918f86p-11 0x1.8c603ep-12 0x0.0p+0",
            "-0x1.d5f69ep-17 -0x1.e62c6cp-11 -0x1.d76c4ep-8 -0x1.7347ccp-6 -0x1.8ea922p-5 "
            "-0x1.56af1ap-4 -0x1.fa8960p-4 -0x1.4e5c2ap-3 -0x1.934a7ep-3 -0x1.c2f822p-3 "
            "-0x1.d83634p-3 -0x1.d25106p-3 -0x1.b49418p-3 -0x1.850f14p-3 -0x1.4b0b98p-3 "
            "-0x1.0d9de0p-3 -0x1.a53246p-4 -0x1.3c0ad6p-4 -0x1.c837b6p-5 -0x1.3d1924p-5 "
            "-0x1.a8e5aap-6 -0x1.129f30p-6 -0x1.56b298p-7 -0x1.9d1720p-8 -0x1.e13ebep-9 "
            "-0x1.0f0c4cp-9 -0x1.275716p-10 -0x1.376728p-11 -0x1.3dd304p-12 -0x1.3a14a4p-13 "
            "-0x1.2c9b2ap-14 0x0.0p+0",
            "-0x1.0f8738p-4 -0x1.0484eep-4 -0x1.c77460p-5 -0x1.642aa4p-5 -0x1.d865aap-6 "
            "-0x1.b91b20p-7 0x1.ea65f4p-11 0x1.aa3526p-7 0x1.66f9fcp-6 0x1.c02a92p-6 "
            "0x1.e3ec52p-6 0x1.db55a0p-6 0x1.b2a138p-6 0x1.769dc2p-6 0x1.32b358p-6 0x1.df6982p-7 "
            "0x1.66f08ap-7 0x1.021810p-7 0x1.65225ep-8 0x1.dc3292p-9 0x1.32473ap-9 0x1.7c6fb2p-10 "
            "0x1.c8a6b2p-11 0x1.09036ap-11 0x1.299790p-12 0x1.4373d0p-13 0x1.5468e6p-14 "
            "0x1.5b0248p-15 0x1.56bad4p-16 0x1.480deap-17 0x1.3061e8p-18 0x0.0p+0",
        )
    ],
    np.float32,
)


def literals() -> dict[str, Any]:
    """What vmath.h.j2 is filled with: :data:`PHI`, what is beyond, and 1 / width, as C text."""

    def text(number: float) -> str:
        return f"{float(np.float32(number)).hex()}f"

    return {"phi": [list(map(text, row)) for row in PHI], "most": text(MOST),
            "inverse": text(1 / WIDTH)}  # fmt: skip


def steps_table(scale: float, step: float) -> Array:
    """What ``v_gelu_steps`` needs to compute ``round(gelu(scale * sum) / step)``.

    Returns:
        float32 [144]: the coefficients for 32 cubics in the sum, constant ones first; then what
        is beyond, 1 / width, half of scale / step, scale, 1 / step; zeros.
    """
    power = scale ** np.arange(len(PHI))[:, None]
    cubics = PHI.astype(np.float64) * power * (scale / step)
    numbers = [MOST / scale, scale / WIDTH, scale / step / 2, scale, 1 / step]
    table = np.concatenate([cubics.reshape(-1), numbers, np.zeros(11)])
    return table.astype(np.float32)
