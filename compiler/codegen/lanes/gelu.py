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


#: Coefficients of quartics in a around 32 multiples of ``LAST / 30.5``, constant ones first.  These
#: and the next are least-squares fits on Chebyshev nodes, each coefficient rounded before those of
#: lower powers are fitted; absolute error below 2e-7, and a tenth of that in the mean.
QUARTICS = _floats(
    "0x1.a4012cp-35 0x1.ea6762p-21 0x1.0fbde6p-15 0x1.8c3962p-13 0x1.e2c478p-12 0x1.4cf070p-12 "
    "-0x1.b9e210p-10 -0x1.0307cep-7 -0x1.574abep-6 -0x1.5c3828p-5 -0x1.27188cp-4 -0x1.b29d52p-4 "
    "-0x1.1bb900p-3 -0x1.4b3870p-3 -0x1.591c4ap-3 -0x1.3b656ap-3 -0x1.de8f9ap-4 -0x1.e69cfep-5 "
    "0x1.a671a4p-7 0x1.7cd044p-4 0x1.639c84p-3 0x1.fd9a42p-3 0x1.41ebf8p-2 0x1.790824p-2 "
    "0x1.a3dd64p-2 0x1.c37f36p-2 0x1.d9c1f2p-2 0x1.e8b86ep-2 0x1.f2583ep-2 0x1.f8471ap-2 "
    "0x1.fbc9aep-2 0x1.000000p-1",
    "0x1.988450p-2 0x1.987c1cp-2 0x1.98005cp-2 0x1.967ebcp-2 0x1.9495a8p-2 0x1.954520p-2 "
    "0x1.9df946p-2 0x1.b50a10p-2 0x1.df2116p-2 0x1.0e4d96p-1 0x1.340be8p-1 0x1.5b793ap-1 "
    "0x1.7dcaa6p-1 0x1.946c38p-1 0x1.9aa1aep-1 0x1.8e943cp-1 0x1.7189b8p-1 0x1.4750eap-1 "
    "0x1.152c08p-1 0x1.c135f8p-2 0x1.5cb51ap-2 0x1.03932cp-2 0x1.72f312p-3 0x1.fd517cp-4 "
    "0x1.5038dap-4 0x1.ab3148p-5 0x1.055ab2p-5 0x1.342a56p-6 0x1.5e5b56p-7 0x1.804602p-8 "
    "0x1.96cd6ap-9 0x0.0p+0",
    "0x1.38a9a8p-18 0x1.b28cb0p-12 0x1.994c34p-9 0x1.11966ep-7 0x1.afc71ap-7 0x1.89c13ap-7 "
    "-0x1.907396p-10 -0x1.076c2ep-5 -0x1.4ac760p-4 -0x1.25e802p-3 -0x1.b34870p-3 -0x1.1c8618p-2 "
    "-0x1.51be2cp-2 -0x1.721a1cp-2 -0x1.7a6d8ap-2 -0x1.6bc264p-2 -0x1.4a82f0p-2 -0x1.1d0962p-2 "
    "-0x1.d4288ep-3 -0x1.6f0d18p-3 -0x1.135362p-3 -0x1.8bdbbcp-4 -0x1.1122dcp-4 -0x1.6a3610p-5 "
    "-0x1.ce147ap-6 -0x1.1bcca4p-6 -0x1.4fee40p-7 -0x1.7f720cp-8 -0x1.a65160p-9 -0x1.c10c48p-10 "
    "-0x1.cd2edep-11 0x0.0p+0",
    "-0x1.10fa7ep-4 -0x1.1b2ecep-4 -0x1.381a30p-4 -0x1.5a3094p-4 -0x1.7104eep-4 -0x1.6d6b96p-4 "
    "-0x1.4612a4p-4 -0x1.f4551ep-5 -0x1.22eb16p-5 -0x1.9f7b74p-8 0x1.6f1e6ap-6 0x1.815aaap-5 "
    "0x1.0a10c2p-4 0x1.3334bcp-4 0x1.3d2152p-4 0x1.2d422ep-4 0x1.0b6aaep-4 0x1.bfbe8ap-5 "
    "0x1.63ab14p-5 0x1.0d393cp-5 0x1.859a08p-6 0x1.0e1c26p-6 0x1.6788d6p-7 0x1.cc15dcp-8 "
    "0x1.1b5b4cp-8 0x1.504c56p-9 0x1.80e73cp-10 0x1.a92324p-11 0x1.c572cap-12 0x1.d3491ap-13 "
    "0x1.d17a04p-14 0x0.0p+0",
    "0x1.131e2ep-9 0x1.0cb3f6p-7 0x1.f42eaap-7 0x1.4c2ee6p-6 0x1.73de68p-6 0x1.6fe02cp-6 "
    "0x1.45f32cp-6 0x1.00f9d4p-6 0x1.5c9388p-7 0x1.6b9d10p-8 0x1.14f86ap-10 -0x1.3e5d26p-9 "
    "-0x1.370af0p-8 -0x1.85863ap-8 -0x1.97449ap-8 -0x1.7d80cep-8 -0x1.49d2a2p-8 -0x1.0b443cp-8 "
    "-0x1.99bb42p-9 -0x1.2ada18p-9 -0x1.a08700p-10 -0x1.162618p-10 -0x1.64c19cp-11 "
    "-0x1.b82ea6p-12 -0x1.059574p-12 -0x1.2bcd5cp-13 -0x1.4ba21ap-14 -0x1.6252bcp-15 "
    "-0x1.6ddf00p-16 -0x1.6d51aap-17 -0x1.60e19ep-18 0x0.0p+0",
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
        float32 [232]: what is beyond all pieces, 1 / width of quartics, of sextics, half of
        scale / step, scale, 1 / step, zeros up to 16 numbers; then the coefficients of 32 quartics
        in the sum, and of 8 sextics.
    """
    numbers = [MOST / scale, 30.5 * scale / LAST, 6.5 * scale / LAST]
    numbers += [scale / step / 2, scale, 1 / step]
    power = scale ** np.arange(len(QUARTICS))[:, None]
    pieces = [QUARTICS.astype(np.float64) * power, SEXTICS.astype(np.float64)]
    scaled = [(piece * (scale / step)).reshape(-1) for piece in pieces]
    return np.concatenate([numbers, np.zeros(10), *scaled]).astype(np.float32)


def literals() -> list[str]:
    """The table for GELU itself, as C text."""
    return [f"{float(number).hex()}f" for number in steps_table(1.0, 1.0)]
