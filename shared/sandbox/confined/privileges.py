"""Giving up what a process may do: uid, groups, capabilities, and the way to get them back."""

from __future__ import annotations

import ctypes
import os

from . import libc
from .namespaces import NOBODY

_CAPABILITY_VERSION_3 = 0x20080522
_MORE_CAPABILITIES_THAN_EXIST = 64


def become_nobody() -> None:
    """Drop root's uid and groups for good.

    Raises:
        OSError: the process may not change its uid.
    """
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def drop_capabilities() -> None:
    """Empty the effective, permitted, inheritable, ambient and, where permitted, the bounding set."""
    for capability in range(_MORE_CAPABILITIES_THAN_EXIST):
        try:
            libc.prctl(libc.PR_CAPBSET_DROP, capability)
        except OSError:
            # Past the last capability, or not permitted: without a program to start the bounding set is idle.
            break
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    libc.syscall("capset", header, nothing)


def forbid_new_privileges() -> None:
    """No program started from here gains anything by its set-uid bit or file capabilities."""
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)


def hide_memory() -> None:
    """No core dump, and no other process of this uid may look into this one."""
    libc.prctl(libc.PR_SET_DUMPABLE, 0)


def show_memory() -> None:
    """Own one's `/proc` folder again after a change of uid: its user namespace map is written there."""
    libc.prctl(libc.PR_SET_DUMPABLE, 1)


def die_with_parent() -> None:
    """Be killed when the parent process ends."""
    libc.prctl(libc.PR_SET_PDEATHSIG, 9)
