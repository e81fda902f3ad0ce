"""Namespaces and the empty root."""

from __future__ import annotations

import os

from . import libc

NAMESPACES = {
    "user": 0x10000000,
    "mount": 0x00020000,
    "net": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "cgroup": 0x02000000,
    "pid": 0x20000000,
}
NOBODY = 65534

_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT = 1, 2, 4, 8, 32
_REC_PRIVATE = 0x4000 | 0x40000


def enter_user_namespace(own_proc: int) -> None:
    """Become nobody in a new user namespace, which maps this one uid and gid and no other.

    Args:
        own_proc: a descriptor of this process's folder in `/proc`, opened while that existed.

    Raises:
        OSError: unprivileged user namespaces are switched off.
    """
    uid, gid = os.geteuid(), os.getegid()
    libc.unshare(NAMESPACES["user"])
    for name, line in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {uid} 1"),
        ("gid_map", f"{NOBODY} {gid} 1"),
    ):
        file = os.open(name, os.O_WRONLY, dir_fd=own_proc)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)


def enter(name: str) -> None:
    """Leave the host's namespace of that name; for `pid` this applies to the next child."""
    libc.unshare(NAMESPACES[name])


def enter_empty_root() -> None:
    """Replace the whole file system with an empty read-only one.

    Raises:
        OSError: there is no mount namespace, or no right to mount in it.
    """
    libc.mount("none", "/", None, _REC_PRIVATE)
    flags = _NOSUID | _NODEV | _NOEXEC
    libc.mount("none", "/tmp", "tmpfs", flags, "size=4k,nr_inodes=4,mode=0555")  # noqa: S108 a mount point
    os.chdir("/tmp")  # noqa: S108
    libc.syscall("pivot_root", b".", b".")
    libc.detach(".")
    os.chdir("/")
    libc.mount("none", "/", None, _REMOUNT | _RDONLY | flags)


def enter_empty_folder(folder: str) -> None:
    """Make an empty folder the root, then remove its name, if mounts are not permitted.

    Raises:
        OSError: the process may not `chroot`.
    """
    parent = os.open(os.path.dirname(folder), os.O_PATH | os.O_DIRECTORY)
    try:
        os.chroot(folder)
        os.chdir("/")
        os.rmdir(os.path.basename(folder), dir_fd=parent)
    finally:
        os.close(parent)
