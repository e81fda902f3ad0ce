"""Landlock: no file, no TCP port, no signal or abstract socket outside, enforced apart from seccomp."""

from __future__ import annotations

import ctypes
import os

from . import libc

_CREATE_VERSION = 1
_FILESYSTEM_RIGHTS_OF_ABI = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}
_NETWORK_BIND_AND_CONNECT = 0x3
_SCOPE_SOCKETS_AND_SIGNALS = 0x3


def abi() -> int:
    """Return the newest ABI version that the kernel supports.

    Raises:
        OSError: the kernel has no Landlock, or it is switched off.
    """
    return libc.syscall("landlock_create_ruleset", None, 0, _CREATE_VERSION)


def deny_everything() -> int:
    """Handle every known right and grant none.

    Returns:
        The kernel's ABI version.

    Raises:
        OSError: the kernel refused.
    """
    version = abi()
    handled = (
        _FILESYSTEM_RIGHTS_OF_ABI[min(version, 5)],
        _NETWORK_BIND_AND_CONNECT if version >= 4 else 0,
        _SCOPE_SOCKETS_AND_SIGNALS if version >= 6 else 0,
    )
    words = 3 if version >= 6 else 2 if version >= 4 else 1
    attributes = (ctypes.c_uint64 * words)(*handled[:words])
    ruleset = libc.syscall("landlock_create_ruleset", attributes, ctypes.sizeof(attributes), 0)
    try:
        libc.syscall("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)
    return version
