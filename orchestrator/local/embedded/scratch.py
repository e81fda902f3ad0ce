"""Data folders for tests."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.local.embedded import postgres, valkey
from orchestrator.local.embedded.locks import disown, try_own
from orchestrator.local.embedded.servers import OWNER_LOCK, SOCKET_RECORD
from orchestrator.local.embedded.sockets import remove_socket_dir
from orchestrator.local.embedded.system_user import make_folder, server_user
from shared.settings import default_data_dir

_LOCK = "scratch.lock"


@contextmanager
def scratch_dir() -> Iterator[Path]:
    """Yield a new private folder that can hold embedded servers' data, even as root; it is removed afterwards.

    (Root's servers run as another user, which cannot enter pytest's `tmp_path`.) Folders whose owners died are
    removed at the next use.
    """
    base = default_data_dir() / "scratch"
    make_folder(base, server_user())
    with _alone_in(base):
        _remove_abandoned(base)
        folder, lock = _new_folder(base)
    try:
        yield folder
    finally:
        with _alone_in(base):
            _remove(folder)
        disown(lock)


@contextmanager
def _alone_in(base: Path) -> Iterator[None]:
    """Hold the base lock: while a folder is created or removed it has no lock and would look abandoned to others."""
    with (base / _LOCK).open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield


def _new_folder(base: Path) -> tuple[Path, int]:
    folder = Path(tempfile.mkdtemp(dir=base))
    folder.chmod(base.stat().st_mode & 0o777)
    lock = try_own(folder / _LOCK)
    assert lock is not None, "no other process knows this folder"
    return folder, lock


def _remove_abandoned(base: Path) -> None:
    for folder in base.iterdir():
        if folder.is_dir() and (lock := try_own(folder / _LOCK)) is not None:
            _remove(folder)
            disown(lock)


def _remove(folder: Path) -> None:
    """Remove a folder after ending the servers that were left in it."""
    for owner_lock in folder.rglob(OWNER_LOCK):
        for server in (postgres, valkey):
            os.close(server.traces(owner_lock.parent).take_over())
        remove_socket_dir(owner_lock.with_name(SOCKET_RECORD))
    shutil.rmtree(folder)
