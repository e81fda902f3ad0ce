"""Levels of confinement: which layers they require, and what to do if those are missing."""

from __future__ import annotations

import platform
import sys
from collections.abc import Collection, Sequence

from shared.sandbox.confined.namespaces import NAMESPACES
from shared.sandbox.confined.syscalls import this_architecture

ESSENTIAL = frozenset({"seccomp", "rlimits", "no_new_privs", "no_capabilities", "unprivileged_uid"})
ISOLATING = frozenset({"empty_root", *(f"{name}_namespace" for name in NAMESPACES)})


def level_of(layers: Collection[str]) -> str | None:
    """Return the level "full" or "strong", or None if the layers do not suffice."""
    active = set(layers)
    if not active >= ESSENTIAL:
        return None
    return "full" if active >= ISOLATING else "strong"


def unsupported() -> str | None:
    """Explain why this machine cannot confine anything at all; None if it can."""
    if sys.platform != "linux":
        return f"no confinement is known for {sys.platform}"
    if this_architecture() is None:
        return f"no system-call table is known for {platform.machine()}"
    return None


def explain(reason: str) -> str:
    """Return the text of a refusal: the problem and the remedy."""
    return (
        f"The sandbox refuses to run functions on this machine: {reason}. It needs Linux 5.9 or newer with "
        "seccomp, on x86_64 or aarch64. For development elsewhere, MINION_SANDBOX=insecure-development runs "
        "functions unconfined."
    )


_HELP = {
    "unprivileged_uid": "root needs the capabilities SETUID and SETGID to become nobody: grant them, or run as another "
    "user than root (in Minions' own image: without `--user`)",
}


def explain_strong(notes: Sequence[str]) -> str:
    """Return advice at level "strong": how to reach "full", and which layers are missing."""
    missing = ", ".join(note.split(":")[0] for note in notes)
    return (
        f"nothing needs to be done. Missing: {missing}. Level full needs new namespaces: in a container, "
        "`--security-opt seccomp=unconfined` (with AppArmor also `apparmor=unconfined`) and a user other than root; "
        "elsewhere, `sysctl user.max_user_namespaces` above 0. docs/production.md explains the trade-off"
    )


def explain_layers(layers: Collection[str], notes: Sequence[str], failures: Sequence[str]) -> str:
    """Return the text of a refusal, from the missing layers and the canaries that succeeded."""
    missing = sorted(ESSENTIAL - set(layers))
    parts = [f"missing layers: {', '.join(missing)}"] if missing else []
    parts += [_HELP[name] for name in missing if name in _HELP]
    if failures:
        parts.append(f"canaries were not stopped: {', '.join(failures)}")
    return explain("; ".join([*parts, *(note for note in notes if note.split(":")[0] in missing)]))
