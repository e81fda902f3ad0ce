"""Run a command confined as in a container with Docker's default profile: its capabilities, its filter.

    python container.py PATH_OF_shared_sandbox UID COMMAND…

Only calls that matter to the sandbox are in the filter; the list follows moby's
`profiles/seccomp/default.json` for a container without `CAP_SYS_ADMIN`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys

sys.path.insert(0, sys.argv[1])
from confined import libc, seccomp, syscalls  # type: ignore[import-not-found]

DEFAULT_CAPABILITIES = (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31)
NEW_NAMESPACE = 0x7E020000
DENIED = {
    "unshare": 272, "mount": 165, "umount2": 166, "pivot_root": 155, "setns": 308, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "mount_setattr": 442,
    "bpf": 321, "perf_event_open": 298, "add_key": 248, "request_key": 249, "keyctl": 250, "userfaultfd": 323,
    "kexec_load": 246, "init_module": 175, "finit_module": 313, "delete_module": 176, "swapon": 167,
    "swapoff": 168, "open_by_handle_at": 304, "reboot": 169, "acct": 163, "pidfd_getfd": 438,
    "process_madvise": 440, "process_vm_readv": 310, "process_vm_writev": 311, "quotactl": 179,
}  # fmt: skip


def main() -> None:
    uid, command = int(sys.argv[2]), sys.argv[3:]
    for capability in range(41):
        if capability not in DEFAULT_CAPABILITIES:
            libc.prctl(libc.PR_CAPBSET_DROP, capability)
    refuse = seccomp.refuse(errno.EPERM)
    rules = [seccomp.Rule(name, "denied by the default profile", verdict=refuse) for name in DENIED]
    rules.append(seccomp.Rule("clone3", "so that clone is used", verdict=seccomp.refuse(errno.ENOSYS)))
    rules.append(seccomp.Rule("clone", "no new namespace", (seccomp.Test(0, "clear", (NEW_NAMESPACE,)),)))
    numbers = {**syscalls.X86_64, **DENIED}
    seccomp.Filter(rules, syscalls.Architecture(0xC000003E, numbers, 0x40000000), default=seccomp.ALLOW).install()
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    mask = sum(1 << capability for capability in DEFAULT_CAPABILITIES)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    libc.syscall("capset", header, (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0))
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    os.execvp(command[0], command)


main()
