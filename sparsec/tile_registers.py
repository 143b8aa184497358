"""Tile registers (AMX): a process asks Linux for them before any of its threads uses them."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from collections.abc import Callable

from sparsec.errors import HardwareError

#: Of Linux on x86-64: arch_prctl, its ARCH_REQ_XCOMP_PERM, and the registers' XFEATURE_XTILEDATA.
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18

#: Why Linux does not give a process tile registers.
_REFUSALS = {
    **dict.fromkeys(
        (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP),
        "this system does not save them; Linux does from 5.16 on",
    ),
    **dict.fromkeys(
        (errno.EPERM, errno.EACCES),
        "something that confines this process (seccomp) forbids to ask for them by arch_prctl",
    ),
    errno.ENOSPC: "a thread handles signals on a stack that is too small for them (sigaltstack); "
    "AT_MINSIGSTKSZ of getauxval is the least size",
}


def _arch_prctl() -> int:
    """Ask Linux: 0, or a number of errno."""
    linux = sys.platform.startswith("linux") and sys.maxsize > 2**32
    if not linux or platform.machine() != "x86_64":
        return errno.ENOSYS
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    numbers = map(ctypes.c_long, (_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA))
    return ctypes.get_errno() if syscall(*numbers) else 0


def request(ask: Callable[[], int] = _arch_prctl) -> None:
    """Have the system save tile registers (AMX), for all threads of this process and its forks.

    From then on, alternate signal stacks must have room for them: Linux refuses smaller ones.

    Args:
        ask: asks the system, and returns 0 or a number of errno.

    Raises:
        HardwareError: it does not; says why.
    """
    code = ask()
    if code:
        reason = _REFUSALS.get(code, os.strerror(code))
        raise HardwareError(f"this process may not use tile registers (AMX): {reason}")
