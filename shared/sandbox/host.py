"""`Sandbox`: the only way to run untrusted functions."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

from shared.errors import Unavailable
from shared.sandbox import insecure, levels, selftest, verdict
from shared.sandbox.code_cache import CodeCache
from shared.sandbox.confined.modules import SAFE_IMPORTS, is_allowed
from shared.sandbox.confined.request import Request
from shared.sandbox.door import Door
from shared.sandbox.exchange import ChildGone, Conversation, Ended
from shared.sandbox.fork_server import (
    PACKAGE_PATIENCE,
    ForkServer,
    PackageRefused,
    ZygoteLost,
    ZygoteRefused,
    ZygoteSilent,
)
from shared.sandbox.outcome import Limits, Outcome, Problem, SandboxFault, SandboxRefused
from shared.sandbox.program import Program, ProgramLimits, check_functions, settings_of
from shared.sandbox.verdict import Server

QUEUE_PATIENCE = 30.0
"""Seconds that a call waits for a free child before it is refused."""
JOIN_PATIENCE = 60.0
"""Seconds in which a shared zygote must start and test itself, not counting the packages."""
JOIN_ATTEMPTS = 2
"""The request may reach a zygote that is about to end."""
ATTEMPTS = 3
MAX_MEMORY = 1 << 20
LONGEST = 86_400
VALIDATION_MEMORY = 256
VALIDATION_TIMEOUT = 5.0

_ENCODER = json.JSONEncoder(allow_nan=False, ensure_ascii=False)

logger = logging.getLogger(__name__)


class Sandbox:
    """Runs functions in single-use processes that the kernel confines.

    Starts at its first use. Thread-safe; a fork of its owner gets its own zygote.

    Args:
        preload: packages to import before confinement, with all of their submodules, in addition to the safe set.
            They are trusted code: they run unconfined once, when the zygote starts. One that fails is not available to
            functions.
        limits: bounds of sizes.
        pool: children to keep parked.
        door: the way to a zygote with the same packages that another process keeps (`Keeper`). If it cannot be reached,
            or stops answering, this process starts its own and keeps to it.
        entrance: the inner side of a door, for the process that keeps the zygote.
    """

    def __init__(
        self,
        preload: Iterable[str] = (),
        *,
        limits: Limits | None = None,
        pool: int = 3,
        door: Door | None = None,
        entrance: socket.socket | None = None,
        _without: frozenset[str] = frozenset(),
    ) -> None:
        self._preload = tuple(dict.fromkeys(preload))
        self._failed: dict[str, str] = {}
        self._limits = limits or Limits()
        self._pool = pool
        # A zygote that died leaves up to `pool` dead children behind.
        self._attempts = ATTEMPTS + pool
        self._door = door
        self._entrance = entrance
        self._without = _without
        self._importable = SAFE_IMPORTS | set(self._preload)
        self._lock = threading.Lock()
        self._codes = CodeCache()
        self._server: Server | None = None
        self._level: str | None = None
        _all.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the zygote and its children. A later call starts a new one."""
        with self._lock:
            server, self._server = self._server, None
        if server is not None:
            server.close()

    @property
    def level(self) -> str:
        """The level of confinement on this machine: "full", "strong" or "insecure".

        Raises:
            SandboxRefused: functions cannot be confined on this machine.
            Unavailable: the zygote did not start this time.
        """
        self._answering()
        return self._level or "insecure"

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that confine every call.

        Raises:
            SandboxRefused: functions cannot be confined on this machine.
        """
        return self._answering().layers

    @property
    def notes(self) -> tuple[str, ...]:
        """The reasons why other layers are missing, for people.

        Raises:
            SandboxRefused: functions cannot be confined on this machine.
        """
        return self._answering().notes

    @property
    def packages(self) -> tuple[str, ...]:
        """The preloaded packages that functions may import.

        Raises:
            SandboxRefused: functions cannot be confined on this machine.
            Unavailable: the zygote did not start this time.
        """
        self._answering()
        return tuple(name for name in self._preload if name not in self._failed)

    @property
    def failed_packages(self) -> Mapping[str, str]:
        """The preloaded packages that are not available to functions, and why.

        Raises:
            SandboxRefused: functions cannot be confined on this machine.
            Unavailable: the zygote did not start this time.
        """
        self._answering()
        return MappingProxyType(self._failed)

    def call(
        self,
        source: str,
        entrypoint: str,
        arguments: Mapping[str, Any],
        *,
        allowed_imports: Iterable[str] = SAFE_IMPORTS,
        memory_limit: int = 128,
        timeout: float = 5.0,
        cpu_limit: float | None = None,
        check: bool = True,
        context: Mapping[str, Any] | None = None,
    ) -> Outcome:
        """Run one function once.

        Args:
            source: Python source.
            entrypoint: name of the function in it, plain or async.
            arguments: JSON values, passed by name.
            allowed_imports: modules that the source may import, of those that are safe or preloaded.
            memory_limit: megabytes that the call may add to the interpreter.
            timeout: seconds of wall time.
            cpu_limit: seconds of CPU time; None leaves it to `timeout`.
            check: False switches the Python-level policy off and leaves the kernel's.
            context: if given, passed as the read-only mapping `context`.

        Returns:
            The outcome, whatever the function did.

        Raises:
            SandboxRefused: this machine cannot confine functions.
            TypeError, ValueError: an argument of this method has the wrong type.
        """
        _check_numbers(memory_limit, timeout, cpu_limit)
        request = self._request("call", entrypoint, allowed_imports, check)
        try:
            self._fill(request, source, arguments, context)
        except _Refused as refusal:
            return self._outcome(refusal.fault)
        request.code = self._codes.get(request.source, lambda: self._compile(request.source, memory_limit))
        cpu = cpu_limit if cpu_limit is not None else math.inf
        return self._attempt(request, memory_limit, timeout, cpu)

    def validate(
        self,
        source: str,
        entrypoint: str,
        *,
        allowed_imports: Iterable[str] = SAFE_IMPORTS,
        input_schema: Mapping[str, Any] | None = None,
        with_context: bool = False,
    ) -> list[Problem]:
        """Check whether a source may be stored. It is parsed in a sandboxed child and never run.

        Args:
            source: Python source.
            entrypoint: the function that must be there.
            allowed_imports: modules that it may import, whether or not this sandbox has loaded them.
            input_schema: JSON Schema of the arguments, to compare the signature with.
            with_context: whether calls will pass a `context`.

        Returns:
            The problems in the order of the source; empty if there are none.

        Raises:
            SandboxRefused: this machine cannot confine the check.
        """
        request = self._request("validate", entrypoint, allowed_imports, True)
        try:
            self._fill(request, source, input_schema, {} if with_context else None)
        except _Refused as refusal:
            return [_as_problem(refusal.fault)]
        ended = self._converse(request, VALIDATION_MEMORY, VALIDATION_TIMEOUT, math.inf)
        if isinstance(ended, SandboxFault):
            return [_as_problem(ended)]
        reply, fault = ended
        if fault is not None:
            return [_as_problem(fault)]
        return list(reply.reply.problems) if reply.reply else []

    def program(
        self,
        source: str,
        functions: Mapping[str, Sequence[str]],
        *,
        seed: str,
        now: float,
        limits: ProgramLimits | None = None,
        allowed_imports: Iterable[str] = SAFE_IMPORTS,
        check: bool = True,
    ) -> Program:
        """Prepare one run of a program that calls functions of this process. `shared.sandbox.program` explains it.

        Args:
            source: Python source, whose top level may use `await` and `return`.
            functions: the functions' parameters in order, by name.
            seed: decides the program's random numbers.
            now: the time on the program's clocks when it starts, as POSIX seconds.
            limits: of the program.
            allowed_imports: modules that the source may import, of those that are safe or preloaded.
            check: False switches the Python-level policy off and leaves the kernel's.

        Raises:
            ValueError: a limit or the name of a function is invalid.
        """
        limits = limits or ProgramLimits()
        _check_numbers(limits.memory, limits.timeout, limits.cpu)
        if limits.outstanding < 1:
            raise ValueError(f"limits.outstanding must be at least 1, not {limits.outstanding!r}")
        check_functions(functions)
        request = self._request("program", "", allowed_imports, check)
        request.max_output, request.max_stdout = limits.output, limits.stdout
        request.arguments = settings_of(functions, limits, seed, now)
        refusal = None
        try:
            request.source = _source_bytes(source, limits.source)
        except _Refused as refused:
            refusal = refused.fault
        return Program(self._take, self._attempts, request, dict(functions), limits, refusal)

    # --- one call -----------------------------------------------------------------------------------------

    def _request(self, operation: str, entrypoint: str, allowed: Iterable[str], check: bool) -> Request:
        if isinstance(allowed, str):
            raise TypeError("allowed_imports must be a collection of module names, not a string")
        if allowed is not SAFE_IMPORTS:
            # Validation runs nothing, and the source may be meant for workers that preload other packages.
            filtered = _is_dotted_name if operation == "validate" else self._may_be_imported
            allowed = frozenset(filter(filtered, allowed))
        return Request(operation, entrypoint, allowed, check, self._limits.output, self._limits.stdout)

    def _may_be_imported(self, name: str) -> bool:
        """Return whether a function may list a module: of the standard library, only safe or preloaded ones."""
        foreign = name.partition(".")[0] not in sys.stdlib_module_names
        return _is_dotted_name(name) and (foreign or is_allowed(name, self._importable))

    def _fill(self, request: Request, source: str, arguments: object, context: object) -> None:
        request.source = _source_bytes(source, self._limits.source)
        request.arguments = _json_bytes("the arguments", arguments, self._limits.arguments)
        request.context = _json_bytes("the context", context, self._limits.arguments)

    def _compile(self, source: bytes, memory_limit: int) -> bytes | None:
        """Compile a source within the memory limit of its call, so that every call has the same outcome."""
        request = self._request("compile", "", SAFE_IMPORTS, False)
        request.source = source
        ended = self._converse(request, min(memory_limit, VALIDATION_MEMORY), VALIDATION_TIMEOUT, math.inf)
        if isinstance(ended, SandboxFault):
            return None
        reply = ended[0].reply
        return (reply.code if reply else None) or b""

    def _attempt(self, request: Request, memory_limit: int, timeout: float, cpu_limit: float) -> Outcome:
        ended = self._converse(request, memory_limit, timeout, cpu_limit)
        if isinstance(ended, SandboxFault):
            return self._outcome(ended)
        conversation, fault = ended
        return self._outcome(fault, conversation)

    def _converse(
        self, request: Request, memory_limit: int, timeout: float, cpu_limit: float
    ) -> tuple[Ended, SandboxFault | None] | SandboxFault:
        """Hold the conversation with a child that takes the request; return a fault if no child is available."""
        reason = "no child was free in time"
        for _ in range(self._attempts):
            try:
                server, child = self._take()
            except ZygoteLost as error:
                reason = str(error)
                continue
            try:
                bounds = verdict.Bounds(memory_limit, timeout, cpu_limit)
                bounds.apply(request, child)
                ended = Conversation(child, timeout, cpu_limit).hold(request.encode(), server, self._limits)
                return ended, verdict.judge(ended, server, child, bounds)
            except ChildGone:
                reason = "the parked child was gone"
            finally:
                server.end(child)
        return verdict.unavailable(reason)

    def _take(self) -> tuple[Any, Any]:
        """Return a running zygote and one of its children.

        Raises:
            ZygoteLost: there is none; the next attempt starts a new zygote.
        """
        server = self._running()
        try:
            return server, server.take(time.monotonic() + QUEUE_PATIENCE)
        except ZygoteLost as error:
            if isinstance(error, ZygoteSilent):
                # One that is shared cannot be ended from here, and would not answer the next request either.
                self._door = None
            self._discard(server)
            raise

    def _outcome(self, fault: SandboxFault | None, ended: Ended | None = None) -> Outcome:
        reply = ended.reply if ended else None
        stdout = reply.stdout if reply else ""
        if fault is not None and fault.type == "stdout_too_large":
            stdout += f"\n… [cut after {self._limits.stdout} bytes]"
        return Outcome(
            ok=fault is None,
            value=reply.value if reply and fault is None else None,
            error=fault,
            stdout=stdout,
            duration=ended.duration if ended else 0.0,
            cpu_time=ended.usage.cpu_time if ended else 0.0,
            peak_memory=ended.usage.peak_memory if ended else 0,
            layers=self._server.layers if self._server else (),
        )

    # --- the zygote ---------------------------------------------------------------------------------------

    def _running(self) -> Server:
        """Return the zygote; start and test one if there is none.

        Raises:
            SandboxRefused: functions cannot be confined on this machine.
            ZygoteLost: it did not start this time.
        """
        server = self._server
        if server is not None:
            return server
        with self._lock:
            if self._server is None:
                self._server = self._start()
            return self._server

    def _answering(self) -> Server:
        """Return the zygote as `_running` does, for callers that only query it."""
        try:
            return self._running()
        except ZygoteLost as error:
            raise Unavailable(f"The sandbox did not start: {error}. Try again.") from None

    def _start(self) -> Server:
        try:
            server = self._start_confined()
        except SandboxRefused as refusal:
            if not insecure.is_permitted():
                raise
            logger.warning("FUNCTIONS RUN UNCONFINED: %s=%s. %s", insecure.PERMISSION, insecure.PERMITTED, refusal)
            self._level = "insecure"
            self._failed = dict.fromkeys(self._preload, "nothing is preloaded where functions run unconfined")
            return insecure.InsecureServer()
        logger.info("sandbox started: level %s, layers %s", self._level, ", ".join(server.layers))
        return server

    def _start_confined(self) -> ForkServer:
        if reason := levels.unsupported():
            raise SandboxRefused(levels.explain(reason))
        if self._door is not None and (shared := self._join(self._door)) is not None:
            return shared
        try:
            server = self._start_with_packages()
        except ZygoteRefused as error:
            raise SandboxRefused(levels.explain(str(error))) from None
        if self._without:
            self._level = levels.level_of(server.layers) or "insecure"
            return server
        self._level = levels.level_of(server.layers)
        try:
            failures = selftest.failures(server, self._limits)
        except ZygoteLost:
            server.close()
            raise
        if failures or self._level is None:
            server.close()
            raise SandboxRefused(levels.explain_layers(server.layers, server.notes, failures))
        return server

    def _join(self, door: Door) -> ForkServer | None:
        """Use the shared zygote, which has passed its self-test; return None if it cannot be reached."""
        patience = JOIN_PATIENCE + PACKAGE_PATIENCE * len(self._preload)
        for _ in range(JOIN_ATTEMPTS):
            try:
                server = ForkServer.join(door, self._pool, patience)
            except ZygoteSilent:
                break
            except ZygoteLost as error:
                logger.info("the shared zygote cannot be used: %s", error)
            else:
                self._level, self._failed = levels.level_of(server.layers), dict(server.failed)
                return server
        self._door = None
        return None

    def share(self) -> None:
        """Start the zygote and let other processes join it; return when it has ended.

        Raises:
            SandboxRefused: functions cannot be confined on this machine.
            Unavailable, ZygoteLost: the zygote did not start this time.
        """
        server = self._answering()
        if not isinstance(server, ForkServer):
            raise SandboxRefused("functions run unconfined on this machine: there is no zygote to share")
        server.share()
        server.await_end()
        self._discard(server)

    def _start_with_packages(self) -> ForkServer:
        """Start a zygote with all packages that can be loaded."""
        self._failed = {}
        while True:
            preload = tuple(name for name in self._preload if name not in self._failed)
            try:
                return ForkServer.start(preload, self._failed, self._without, self._pool, self._entrance)
            except PackageRefused as refusal:
                logger.warning("functions cannot use the package %s: %s", refusal.name, refusal.reason)
                self._failed[refusal.name] = refusal.reason

    def _discard(self, server: Server) -> None:
        """Stop using a lost zygote; the next call starts another."""
        with self._lock:
            if self._server is server:
                self._server = None
        server.close()

    def _forget(self) -> None:
        """Forget the parent's zygote after a fork, and the locks, which may be held by threads that no longer exist."""
        server, self._server = self._server, None
        self._lock = threading.Lock()
        self._codes = CodeCache()
        if server is not None:
            server.disown()


def _is_dotted_name(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


class _Refused(Exception):
    def __init__(self, fault: SandboxFault) -> None:
        self.fault = fault


def _check_numbers(memory_limit: int, timeout: float, cpu_limit: float | None) -> None:
    highest = {"memory_limit": MAX_MEMORY, "timeout": LONGEST, "cpu_limit": LONGEST}
    for name, value in (("memory_limit", memory_limit), ("timeout", timeout), ("cpu_limit", cpu_limit)):
        if value is not None and not 0 < value <= highest[name]:
            raise ValueError(f"{name} must be a positive number of at most {highest[name]}, not {value!r}")


def _source_bytes(source: str, limit: int) -> bytes:
    try:
        encoded = source.encode()
    except UnicodeEncodeError:
        raise _Refused(SandboxFault("syntax_error", "the source holds half of a surrogate pair")) from None
    if len(encoded) > limit:
        raise _Refused(_too_large("source_too_large", "the source", limit, len(encoded)))
    return encoded


def _json_bytes(what: str, value: object, limit: int) -> bytes:
    """Return the JSON of a caller's value. Its source may be untrusted, so a bad value becomes a fault of the call.

    Raises:
        TypeError: it is not made of JSON's types, which is the caller's mistake.
    """
    if value is None:
        return b"null"
    plain = dict(value) if isinstance(value, Mapping) else value
    try:
        encoded = _ENCODER.encode(plain).encode()
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise _Refused(SandboxFault("invalid_input", f"{what} cannot be passed on: {reason[:200]}")) from None
    if len(encoded) > limit:
        raise _Refused(_too_large("input_too_large", what, limit, len(encoded)))
    return encoded


def _too_large(kind: str, what: str, limit: int, observed: int) -> SandboxFault:
    message = f"{what} must have at most {limit} bytes, and has {observed}"
    return SandboxFault(kind, message, limit=limit, observed=observed)


def _as_problem(fault: SandboxFault) -> Problem:
    return Problem(fault.message, fault.line, fault.column, fault.type)


_all: weakref.WeakSet[Sandbox] = weakref.WeakSet()


def _after_fork() -> None:
    for sandbox in list(_all):
        sandbox._forget()


os.register_at_fork(after_in_child=_after_fork)
