"""How well functions are confined: what the layers add up to, and what to do if it is not enough."""

from __future__ import annotations

from collections.abc import Collection, Sequence

ESSENTIAL = frozenset({"seccomp", "rlimits", "no_new_privs", "no_capabilities", "unprivileged_uid"})
ISOLATING = frozenset({"pid_namespace", "net_namespace", "mount_namespace", "ipc_namespace", "empty_root"})


def level_of(layers: Collection[str]) -> str | None:
    """ "full", "strong", or None if the layers do not suffice."""
    active = set(layers)
    if not active >= ESSENTIAL:
        return None
    return "full" if active >= ISOLATING else "strong"


def explain(layers: Collection[str], notes: Sequence[str], failures: Sequence[str]) -> str:
    """The text of a refusal: what is missing, what the canaries could do, what helps."""
    missing = sorted(ESSENTIAL - set(layers))
    parts = ["The sandbox refuses to run functions on this machine."]
    if missing:
        parts.append(f"Missing layers: {', '.join(missing)}.")
    if failures:
        parts.append(f"Attempts that should have failed and did not: {', '.join(failures)}.")
    if notes:
        parts.append(f"Notes: {'; '.join(notes)}.")
    parts.append("It needs Linux 5.3 or newer with seccomp, on x86_64 or aarch64.")
    return " ".join(parts)
