"""Each kernel layer stops its own probe with all other layers switched off.

A probe must first get through without any layer: only then does it prove anything.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.sandbox import Sandbox
from shared.sandbox.confined.landlock import abi

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the probes begin with all of its rights")

LAYERS = frozenset({
    "cgroup_namespace", "chroot", "empty_root", "ipc_namespace", "landlock", "mount_namespace",
    "net_namespace", "no_capabilities", "no_new_privs", "not_dumpable", "pid_namespace", "rlimits",
    "seccomp", "unprivileged_uid", "user_namespace", "uts_namespace", "zygote_seccomp",
})  # fmt: skip

OPEN = "def f(): return open('/etc/hostname').read() and 'through'"
CONNECT = "def f(port):\n    socket.create_connection(('127.0.0.1', port)).close()\n    return 'through'"
SIGNAL = "def f(pid):\n    os.kill(pid, 0)\n    return 'through'"
CHROOT = "def f():\n    os.chroot('/')\n    return 'through'"
FORK = "def f():\n    pid = os.fork()\n    if not pid: os._exit(0)\n    os.waitpid(pid, 0)\n    return 'through'"
EXECUTE = "def f(): return os.spawnv(os.P_WAIT, '/bin/true', ['true']) == 0 and 'through'"
SOCKETPAIR = "def f():\n    socket.socketpair()\n    return 'through'"
DUPLICATE = "def f(): return os.dup(0) and 'through'"
READ_SECRET = "def f(path): return open(path).read() and 'through'"
NAMESPACE = "def f(name, link): return os.readlink(f'/proc/self/ns/{name}') == link and 'through'"
NO_NEW_PRIVILEGES = "def f(): return ctypes.CDLL(None).prctl(39, 0, 0, 0, 0) == 0 and 'through'"
DUMPABLE = "def f(): return ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 1 and 'through'"
ROOT_IN_NAMESPACE = "def f(): return os.getuid() == 0 and 'through'"


def probe(only: set[str], source: str, arguments: dict[str, object]) -> object:
    """Return the result of the probe with these layers and no others; None if a layer stopped it."""
    with Sandbox(preload=("os", "socket", "ctypes"), _without=LAYERS - only) as sandbox:
        full = "import ctypes, os, socket\n" + source
        outcome = sandbox.call(full, "f", arguments, check=False)
        assert outcome.error is None or outcome.error.type != "unavailable", outcome
        return outcome.value or None


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("x")
    path.chmod(0o600)
    return path


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ({"seccomp"}, SOCKETPAIR),
        ({"zygote_seccomp"}, EXECUTE),
        ({"mount_namespace", "empty_root"}, OPEN),
        ({"chroot"}, OPEN),
        ({"rlimits"}, DUPLICATE),
        ({"rlimits", "unprivileged_uid"}, FORK),
        ({"no_capabilities"}, CHROOT),
        ({"unprivileged_uid"}, CHROOT),
        ({"no_new_privs"}, NO_NEW_PRIVILEGES),
        ({"not_dumpable"}, DUMPABLE),
        ({"user_namespace", "unprivileged_uid"}, ROOT_IN_NAMESPACE),
    ],
    ids=lambda value: "+".join(sorted(value)) if isinstance(value, set) else "",
)
def test_layer_stops_its_probe(layer: set[str], source: str) -> None:
    assert probe(set(), source, {}) == "through"
    assert probe(layer, source, {}) is None


def test_unprivileged_uid_cannot_read_roots_files(secret: Path) -> None:
    arguments = {"path": str(secret)}
    assert probe(set(), READ_SECRET, arguments) == "through"
    assert probe({"unprivileged_uid"}, READ_SECRET, arguments) is None


def test_landlock_hides_files() -> None:
    try:
        abi()
    except OSError:
        pytest.skip("this kernel has no Landlock")
    assert probe(set(), OPEN, {}) == "through"
    assert probe({"no_new_privs", "landlock"}, OPEN, {}) is None


def test_net_namespace_hides_listeners(listener: int) -> None:
    assert probe(set(), CONNECT, {"port": listener}) == "through"
    assert probe({"net_namespace"}, CONNECT, {"port": listener}) is None


def test_pid_namespace_hides_processes() -> None:
    assert probe(set(), SIGNAL, {"pid": os.getpid()}) == "through"
    assert probe({"pid_namespace"}, SIGNAL, {"pid": os.getpid()}) is None


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        ("cgroup_namespace", "cgroup"),
        ("ipc_namespace", "ipc"),
        ("mount_namespace", "mnt"),
        ("uts_namespace", "uts"),
    ],
)
def test_namespace_differs_from_the_host_s(layer: str, name: str) -> None:
    arguments: dict[str, object] = {"name": name, "link": os.readlink(f"/proc/self/ns/{name}")}
    assert probe(set(), NAMESPACE, arguments) == "through"
    assert probe({layer}, NAMESPACE, arguments) is None
