"""Asks the operating system for AMX's tile registers, which Linux gives to who asks only."""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import cache

__all__ = ["may_use_amx"]

# Linux, Documentation/arch/x86/xstate.rst: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


@cache
def may_use_amx() -> bool:
    """Whether this process has AMX's registers; asks for them once, for all its threads."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    syscall = ctypes.CDLL(None).syscall
    return bool(syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0)
