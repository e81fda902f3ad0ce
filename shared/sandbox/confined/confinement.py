"""Applies the confinement layers one after the other, and records which ones are active.

Layers that are not available (in a container without namespaces, on a kernel without Landlock) are noted and left out.
The host judges whether the rest suffices, after its canaries have tried to escape.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

from . import landlock, namespaces, privileges


class Layers:
    """The record of layers.

    Attributes:
        active: names of the active layers, in the order in which they were applied.
        notes: why others are not active.
    """

    def __init__(self, without: frozenset[str]) -> None:
        self.active: list[str] = []
        self.notes: list[str] = []
        self._without = without

    def add(self, name: str, action: Callable[[], object]) -> bool:
        """Apply one layer; return whether it is active."""
        if name in self._without:
            self.notes.append(f"{name}: left out on request")
            return False
        try:
            action()
        except OSError as error:
            self.notes.append(f"{name}: {error}")
            return False
        self.active.append(name)
        return True

    def wanted(self, name: str) -> bool:
        """Return whether a layer that other code applies is wanted."""
        return name not in self._without


def enter_namespaces(layers: Layers, own_proc: int) -> bool:
    """Leave the host's namespaces; return whether the next child begins a new pid namespace."""
    if os.geteuid() != 0:
        layers.add("user_namespace", lambda: namespaces.enter_user_namespace(own_proc))
    for name in namespaces.NAMESPACES:
        if name != "user":
            layers.add(f"{name}_namespace", lambda name=name: namespaces.enter(name))  # type: ignore[misc]
    return "pid_namespace" in layers.active


def confine(layers: Layers, own_proc: int) -> None:
    """Apply all layers that children inherit: root, uid, capabilities, privileges, Landlock."""
    root = os.geteuid() == 0
    in_namespace = "mount_namespace" in layers.active
    if not (in_namespace and layers.add("empty_root", namespaces.enter_empty_root)) and root:
        layers.add("chroot", _enter_temporary_folder)
    if root:
        _leave_root(layers, own_proc)
    elif layers.wanted("unprivileged_uid"):
        layers.active.append("unprivileged_uid")
    os.close(own_proc)
    layers.add("no_capabilities", privileges.drop_capabilities)
    layers.add("no_new_privs", privileges.forbid_new_privileges)
    layers.add("landlock", landlock.deny_everything)
    layers.add("not_dumpable", privileges.hide_memory)


def _enter_temporary_folder() -> None:
    folder = tempfile.mkdtemp()
    try:
        namespaces.enter_empty_folder(folder)
    except OSError:
        os.rmdir(folder)
        raise


def _leave_root(layers: Layers, own_proc: int) -> None:
    """Become the user nobody, and then nobody in a user namespace that owns none of the others."""
    if layers.add("unprivileged_uid", privileges.become_nobody):
        privileges.show_memory()
        layers.add("user_namespace", lambda: namespaces.enter_user_namespace(own_proc))
