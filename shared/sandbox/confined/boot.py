"""From a fresh interpreter to a zygote: enter namespaces, load everything, check, confine, serve.

    python -s -P -S -c "…; from confined import openssl; openssl.leave_out()
    from confined import boot; boot.main()" CONTROL_DESCRIPTOR

The settings arrive on the control socket as JSON: `path`, `preload`, `failed` (packages that are not available to
functions, and why), `without`, `host` (a pid), `entrance` (the descriptor of the socket through which other processes
of the host join; null if none may).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import io
import json
import linecache
import os
import random
import signal
import socket
import sys
import warnings
import zlib
import zoneinfo
from types import ModuleType
from typing import Any

from . import child, confinement, event_loop, facades, limits, modules, packages, policy, privileges, shortage, wire
from .seccomp import CHILD_RULES, ZYGOTE_RULES, Filter
from .syscalls import Architecture, this_architecture
from .zygote import Zygote


class CannotServe(Exception):
    """The zygote must not serve; the text says why and what to do."""


def main() -> None:
    """Become the zygote. Returns when the host has gone."""
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=int(sys.argv[1]))
    try:
        settings = json.loads(control.recv(wire.MAX_CONTROL))
        architecture = _architecture()
        layers = confinement.Layers(frozenset(settings["without"]))
        host = os.pidfd_open(settings["host"])
        entrance = _socket_of(settings["entrance"])
        _split(layers, host)
        hooks = _prepare_interpreter(settings, architecture, control)
        facts = _facts()
        child.rehearse()
        _seal(layers, architecture)
        _withhold(standard_library=not settings["preload"])
    except CannotServe as refusal:
        _notify(control, wire.FAILED, {"reason": str(refusal)})
        return
    except packages.PackageRefused as refusal:
        _notify(control, wire.REFUSED, {"name": refusal.name, "reason": str(refusal)})
        return
    except Exception as error:
        scarce = shortage.of(error)
        reason = scarce or f"{type(error).__name__}: {error}"
        _notify(control, wire.LOST if scarce else wire.FAILED, {"reason": reason})
        return
    equipment = _equipment(layers, architecture, hooks)
    about = {"layers": layers.active, "notes": layers.notes, "failed": settings["failed"], **facts}
    hello = wire.NOTICE.pack(wire.HELLO, 0, 0) + json.dumps(about).encode()
    zygote = Zygote(control, host, hello, entrance, equipment)
    gc.collect()
    gc.freeze()
    control.send(hello)
    try:
        zygote.serve()
    except OSError as error:
        # If the host is gone, there is no receiver.
        with contextlib.suppress(OSError):
            _notify(control, wire.LOST, {"reason": shortage.of(error) or f"the zygote ended: {error}"})


def _socket_of(descriptor: int | None) -> socket.socket | None:
    if descriptor is None:
        return None
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=descriptor)


def _notify(control: socket.socket, kind: bytes, facts: dict[str, Any]) -> None:
    control.send(wire.NOTICE.pack(kind, 0, 0) + json.dumps(facts).encode())


def _equipment(layers: confinement.Layers, architecture: Architecture, hooks: list[child.Hook]) -> child.Equipment:
    strict = Filter(CHILD_RULES, architecture) if layers.wanted("seccomp") else None
    with_rlimits = layers.wanted("rlimits")
    layers.active += ["seccomp"] * bool(strict) + ["rlimits"] * with_rlimits
    # When the first process of a pid namespace ends, the kernel kills all others in it.
    orphans_live = "pid_namespace" not in layers.active
    return child.Equipment(strict, with_rlimits, orphans_live, tuple(hooks))


def _architecture() -> Architecture:
    architecture = this_architecture()
    if architecture is None:
        raise CannotServe(f"no system-call table for this machine ({os.uname().machine})")
    return architecture


def _prepare_interpreter(
    settings: dict[str, Any], architecture: Architecture, control: socket.socket
) -> list[child.Hook]:
    """Load everything that a function may ever import, then remove the means to load more.

    Returns:
        The hooks to call in each child.
    """
    warnings.simplefilter("ignore")
    os.environ.clear()
    os.environ.update(packages.ONE_THREAD)
    child.forget_terminal()
    for name in sorted(modules.SAFE_IMPORTS) + sorted(modules.HIDDEN):
        importlib.import_module(name)
    _load_zones()
    linecache.updatecache = lambda filename, module_globals=None: []  # there will be no files to read lines from
    sys.path += [entry for entry in settings["path"] if entry not in sys.path]
    hooks = packages.load(
        settings["preload"], architecture, lambda name: _notify(control, wire.LOADING, {"name": name})
    )
    # A package may have drawn from `gauss`, which keeps a number for the next call. Children seed the generator alone.
    random.seed()
    policy.failed_packages.update(settings["failed"])
    facades.preloaded.update(settings["preload"])
    facades.prepare()
    asyncio.set_event_loop_policy(event_loop.SleepingPolicy())
    sys.path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()
    sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "__name__", "") in _FINDERS]
    return hooks


_FINDERS = ("BuiltinImporter", "FrozenImporter")


def _load_zones() -> None:
    """Keep the data of all time zones in memory: there will be no files to read it from."""
    data: dict[str, bytes] = {}
    for name in zoneinfo.available_timezones():
        with contextlib.suppress(OSError, zoneinfo.ZoneInfoNotFoundError), _open_zone(name) as file:
            data[name] = zlib.compress(file.read())

    def load(key: str) -> io.BytesIO:
        if key not in data:
            raise zoneinfo.ZoneInfoNotFoundError(f"no time zone found with key {key}")
        return io.BytesIO(zlib.decompress(data[key]))

    zoneinfo.reset_tzpath(to=())
    zoneinfo.available_timezones = lambda: set(data)
    zoneinfo._common.load_tzdata = load  # type: ignore[assignment]


def _open_zone(name: str) -> Any:
    path = zoneinfo._tzpath.find_tzfile(name)
    return open(path, "rb") if path else zoneinfo._common.load_tzdata(name)


def _split(layers: confinement.Layers, host: int) -> None:
    """Enter the namespaces, and become the first process of the new pid namespace."""
    own_proc = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)
    if confinement.enter_namespaces(layers, own_proc):
        pid = os.fork()
        if pid:
            _wait_for(pid, host)
    os.close(own_proc)


_WAITER = """
import posix, select, sys
zygote, host, pid = map(int, sys.argv[1:])
select.select([zygote, host], [], [])
posix.waitpid(pid, posix.WNOHANG)
"""


def _wait_for(pid: int, host: int) -> None:
    """Wait outside the pid namespace for either side to end; the zygote ends with this process.

    A fresh interpreter waits: this one would keep a copy of every page that the zygote changes.
    """
    zygote = os.pidfd_open(pid)
    low, high = sorted((zygote, host))
    for begin, end in ((0, low), (low + 1, high), (high + 1, 1 << 10)):
        os.closerange(begin, end)
    for descriptor in (low, high):
        os.set_inheritable(descriptor, True)
    # As the zygote does: the running calls may still end when a service manager sends it to all processes.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    command = [sys.executable, "-I", "-S", "-c", _WAITER, str(zygote), str(host), str(pid)]
    os.execv(command[0], command)  # noqa: S606 a program of this file


def _volunteer() -> None:
    """Make this process the first choice when the whole machine runs out of memory."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _facts() -> dict[str, int]:
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[0])
    return {"address_space": pages * os.sysconf("SC_PAGE_SIZE")}


def _seal(layers: confinement.Layers, architecture: Architecture) -> None:
    """Take the last steps, after which nothing more can be opened."""
    limits.limit_stack()
    _volunteer()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    confinement.confine(layers, os.open("/proc/self", os.O_PATH | os.O_DIRECTORY))
    if "pid_namespace" in layers.active:
        # A stopped parent would notice nothing. It has one thread, whose end is the end of the process.
        privileges.die_with_parent()
    if layers.wanted("rlimits"):
        limits.limit_zygote()
    if layers.wanted("zygote_seccomp"):
        layers.add("zygote_seccomp", Filter(ZYGOTE_RULES, architecture).install)


def _withhold(standard_library: bool) -> None:
    """Remove from `sys.modules` the modules that the zygote loaded for itself, and the finders that would reload them.

    The modules stay in memory, because other modules refer to them.

    Args:
        standard_library: whether its modules are withheld too. Preloaded packages may still need to import them.
    """
    for name in list(sys.modules):
        if modules.is_own(name) or (standard_library and modules.is_withheld(name)):
            _withheld.append(sys.modules.pop(name))
    if standard_library:
        sys.meta_path.clear()


_withheld: list[ModuleType] = []
