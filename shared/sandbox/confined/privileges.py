"""Dropping privileges: uid, groups, capabilities, and the means to regain them."""

from __future__ import annotations

import ctypes
import os

from . import libc
from .namespaces import NOBODY

_CAPABILITY_VERSION_3 = 0x20080522
_MORE_CAPABILITIES_THAN_EXIST = 64


def become_nobody() -> None:
    """Drop root's uid and groups permanently.

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
            # Past the last capability, or not permitted: without a program to start, the bounding set has no effect.
            break
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    libc.syscall("capset", header, nothing)


def forbid_new_privileges() -> None:
    """Keep programs started from here from gaining privileges by set-uid bits or file capabilities."""
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)


def hide_memory() -> None:
    """Disable core dumps, and keep other processes of this uid from inspecting this one."""
    libc.prctl(libc.PR_SET_DUMPABLE, 0)


def show_memory() -> None:
    """Regain ownership of the `/proc` folder after a change of uid: the user namespace map is written there."""
    libc.prctl(libc.PR_SET_DUMPABLE, 1)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    libc.prctl(libc.PR_SET_PDEATHSIG, 9)
