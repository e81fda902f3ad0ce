"""Packages of the running environment that functions may import: loaded before confinement, or refused with a reason.

They are trusted code and run unconfined once. Anything in a package that is incompatible with functions (native
threads, shared memory, system calls in a hook of `fork`) is detected here, before it takes all functions down.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from types import ModuleType

from . import child, libc, privileges, shortage
from .seccomp import ZYGOTE_RULES, Filter
from .syscalls import Architecture

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS",
    "TBB_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip
ONE_THREAD = dict.fromkeys(_THREAD_VARIABLES, "1")
"""Environment variables that numerical libraries read on loading: a process with threads cannot be forked."""

NOT_FOR_FUNCTIONS = frozenset({"__main__", "conftest", "test", "tests"})
"""Submodules that are programs or tests of the package itself."""

THREADS_END = 1.0
"""Seconds in which threads started by an import must end."""


class PackageRefused(Exception):
    """The package is not available to functions; the text says why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


def load(names: list[str], architecture: Architecture, announce: Callable[[str | None], object]) -> list[child.Hook]:
    """Import the packages and all of their submodules: later there are no files to import from.

    Args:
        names: modules, in the order in which they are imported.
        architecture: for the trial run of a function.
        announce: called with each name before its import, which may end this process, and with None after the last one.

    Returns:
        The hooks to call in each child: the packages' own hooks of `fork`, which `libc.fork` does not run, and the
        seeding of generators.

    Raises:
        PackageRefused: one of them is not available. It may have left anything behind: this process must not serve.
    """
    hooks: list[child.Hook] = []
    register = os.register_at_fork
    os.register_at_fork = lambda **wishes: hooks.append(wishes.get("after_in_child", int))
    for name in names:
        announce(name)
        _load_one(name, hooks, architecture)
    announce(None)
    os.register_at_fork = register
    return hooks + _seeds()


def _load_one(name: str, hooks: list[child.Hook], architecture: Architecture) -> None:
    try:
        _import_with_submodules(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, Exception) and shortage.of(error):
            raise
        raise PackageRefused(name, f"its import failed: {type(error).__name__}: {error}") from None
    if reason := _threads() or _shared_memory() or _trial(hooks, architecture):
        raise PackageRefused(name, reason)


def _import_with_submodules(name: str) -> None:
    package = importlib.import_module(name)
    guard = _NothingElse(name.partition(".")[0])
    sys.meta_path.insert(0, guard)
    try:
        for submodule in _submodules(package):
            _import_if_possible(submodule)
    finally:
        sys.meta_path.remove(guard)


def _submodules(package: ModuleType) -> Iterator[str]:
    """Yield the names of all modules below a package, each package before its content."""
    for found in pkgutil.iter_modules(getattr(package, "__path__", ()), f"{package.__name__}."):
        if found.name.rpartition(".")[2] in NOT_FOR_FUNCTIONS:
            continue
        yield found.name
        if found.ispkg and found.name in sys.modules:
            yield from _submodules(sys.modules[found.name])


def _import_if_possible(name: str) -> None:
    """Import a submodule. One that cannot be imported here (another system's, an optional part) is skipped."""
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, Exception) and shortage.of(error):
            raise


class _NothingElse:
    """Import hook that keeps the submodules of a package from importing more than the package requires.

    Other packages (a test runner, frameworks that it integrates with) would cost each child memory and time.
    """

    def __init__(self, package: str) -> None:
        self._package = package
        self._loaded = {name.partition(".")[0] for name in sys.modules} | sys.stdlib_module_names

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        name = fullname.partition(".")[0]
        if name not in self._loaded and name not in self._required:
            raise ModuleNotFoundError(f"{name} is not loaded: it must be preloaded by its own name", name=name)

    @cached_property
    def _required(self) -> set[str]:
        """Top-level modules of all distributions that the package's own one depends on, directly or indirectly."""
        # Without preloaded packages this would cost half a megabyte for nothing.
        from importlib import metadata

        def requirements(distribution: str) -> set[str]:
            try:
                lines = metadata.requires(distribution) or ()
            except metadata.PackageNotFoundError:
                return set()
            names = (_NAME.match(line) for line in lines if not _OPTIONAL.search(line))
            return {_normalise(name.group()) for name in names if name}

        providers = metadata.packages_distributions()
        wanted: set[str] = set()
        missing = {_normalise(distribution) for distribution in providers.get(self._package, ())}
        while missing:
            name = missing.pop()
            wanted.add(name)
            missing |= requirements(name) - wanted
        return {module for module, names in providers.items() if wanted & set(map(_normalise, names))}


def _normalise(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_OPTIONAL = re.compile(r"\bextra\s*==")


def _threads() -> str | None:
    """Report threads that the last import has left, including those of native libraries."""
    deadline = time.monotonic() + THREADS_END
    while (number := len(os.listdir("/proc/self/task")) - 1) and time.monotonic() < deadline:
        time.sleep(0.001)
    if not number:
        return None
    threads = "a thread" if number == 1 else f"{number} threads"
    return f"it has started {threads}, and a process with threads cannot be forked safely"


def _shared_memory() -> str | None:
    with open("/proc/self/maps") as maps:
        shared = any(line.split()[1].startswith("rw") and "s" in line.split()[1] for line in maps)
    return "it shares writable memory, through which calls could affect each other" if shared else None


def _trial(hooks: list[child.Hook], architecture: Architecture) -> str | None:
    """Let a copy of this process act as the zygote of one function: hooks of `fork` may do what the filters forbid."""
    pid = libc.fork()
    if pid == 0:
        try:
            privileges.forbid_new_privileges()
            Filter(ZYGOTE_RULES, architecture).install()
            grandchild = libc.fork()
            if grandchild == 0:
                child.try_out(hooks, architecture)
                os._exit(0)
            os._exit(_end_of(grandchild))
        finally:
            os._exit(_FAILED)
    return _COMPLAINTS.get(end := _end_of(pid), f"every new process in which it is loaded is killed by signal {end}")


def _end_of(pid: int) -> int:
    """Return the signal that ended a process, or its exit status."""
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


_FAILED = 255
_COMPLAINTS = {
    0: None,
    _FAILED: "one of its hooks fails in a new process",
    signal.SIGSYS: "it makes a forbidden system call in every new process",
}


def _seeds() -> list[child.Hook]:
    """Return hooks that seed the known global generators: copied state would give all calls the same numbers."""
    numpy_random = sys.modules.get("numpy.random")
    return [numpy_random.seed] if numpy_random else []
