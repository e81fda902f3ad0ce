"""Numbers of the system calls that the filters name, for each supported architecture.

`tests/unit/shared/sandbox/confined/test_syscalls.py` compares both tables with the kernel's own headers where they
are installed. The aarch64 table has been compared but never run.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

X86_64 = {
    "read": 0, "write": 1, "close": 3, "poll": 7, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12,
    "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "sched_yield": 24, "mremap": 25,
    "madvise": 28, "dup2": 33, "dup3": 292, "getpid": 39, "socket": 41, "sendmsg": 46, "recvmsg": 47,
    "recvfrom": 45, "sendto": 44, "socketpair": 53, "clone": 56, "fork": 57, "vfork": 58, "execve": 59,
    "exit": 60, "wait4": 61, "kill": 62, "fcntl": 72, "gettimeofday": 96, "getrusage": 98, "ptrace": 101,
    "setrlimit": 160, "capset": 126, "pivot_root": 155, "prctl": 157, "gettid": 186, "futex": 202,
    "time": 201, "restart_syscall": 219, "clock_gettime": 228, "clock_getres": 229,
    "clock_nanosleep": 230, "nanosleep": 35, "exit_group": 231, "waitid": 247, "openat": 257,
    "ppoll": 271, "set_robust_list": 273, "prlimit64": 302, "seccomp": 317, "getrandom": 318,
    "execveat": 322, "rseq": 334, "pidfd_open": 434, "clone3": 435, "close_range": 436,
    "landlock_create_ruleset": 444, "landlock_add_rule": 445, "landlock_restrict_self": 446,
    "process_vm_readv": 310, "personality": 135, "memfd_create": 319, "open": 2, "mlock": 149,
    "unshare": 272, "mount": 165, "add_key": 248, "request_key": 249, "keyctl": 250, "perf_event_open": 298,
    "bpf": 321, "userfaultfd": 323, "io_uring_setup": 425,
}  # fmt: skip

AARCH64 = {
    "read": 63, "write": 64, "close": 57, "ppoll": 73, "mmap": 222, "mprotect": 226, "munmap": 215,
    "brk": 214, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "sched_yield": 124,
    "mremap": 216, "madvise": 233, "dup3": 24, "getpid": 172, "socket": 198, "sendmsg": 211,
    "recvmsg": 212, "recvfrom": 207, "sendto": 206, "socketpair": 199, "clone": 220, "execve": 221,
    "exit": 93, "wait4": 260, "kill": 129, "fcntl": 25, "gettimeofday": 169, "getrusage": 165,
    "ptrace": 117, "setrlimit": 164, "capset": 91, "pivot_root": 41, "prctl": 167, "gettid": 178,
    "futex": 98, "restart_syscall": 128, "clock_gettime": 113, "clock_getres": 114,
    "clock_nanosleep": 115, "nanosleep": 101, "exit_group": 94, "waitid": 95, "openat": 56,
    "set_robust_list": 99, "prlimit64": 261, "seccomp": 277, "getrandom": 278, "execveat": 281,
    "rseq": 293, "pidfd_open": 434, "clone3": 435, "close_range": 436, "landlock_create_ruleset": 444,
    "landlock_add_rule": 445, "landlock_restrict_self": 446, "process_vm_readv": 270, "personality": 92,
    "memfd_create": 279, "mlock": 228, "unshare": 97, "mount": 40, "add_key": 217, "request_key": 218,
    "keyctl": 219, "perf_event_open": 241, "bpf": 280, "userfaultfd": 282, "io_uring_setup": 425,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """One machine type: the value that seccomp reports for it, and its table.

    Attributes:
        audit: the `AUDIT_ARCH_*` number of native calls.
        numbers: name of a system call to its number.
        highest: no native call has a number of this size or above (the x32 calls of x86_64 begin here).
    """

    audit: int
    numbers: dict[str, int]
    highest: int


ARCHITECTURES = {
    "x86_64": Architecture(0xC000003E, X86_64, 0x40000000),
    "aarch64": Architecture(0xC00000B7, AARCH64, 0x40000000),
}


def this_architecture() -> Architecture | None:
    """Return the machine's own table, or None if the sandbox has none for it."""
    return ARCHITECTURES.get(platform.machine())
