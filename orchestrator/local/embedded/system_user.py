"""The operating system user that runs the servers: the current one, but never root, which PostgreSQL refuses."""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from shared.errors import Unavailable

_CANDIDATES = ("postgres", "daemon", "nobody")


@dataclass(frozen=True)
class SystemUser:
    """A user that is neither root nor the current one."""

    name: str
    uid: int
    gid: int


def server_user(existing_data: Path | None = None) -> SystemUser | None:
    """Return the user that root must become to run the servers; None if we are not root and keep our user.

    Existing data keeps its owner: the users of a system may change between two runs.

    Raises:
        Unavailable: root's machine has none of the usual users.
    """
    if os.geteuid() != 0:
        return None
    if existing_data and existing_data.is_dir() and (facts := existing_data.stat()).st_uid != 0:
        return SystemUser(_name(facts.st_uid), facts.st_uid, facts.st_gid)
    for name in _CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return SystemUser(name, entry.pw_uid, entry.pw_gid)
    raise Unavailable(
        f"PostgreSQL refuses to run as root, and this system has none of the users {', '.join(_CANDIDATES)}: "
        "add one (`useradd --system postgres`), or run as an ordinary user."
    )


def make_folder(path: Path, user: SystemUser | None) -> None:
    """Create `path` and its missing parents: private, but passable for `user`."""
    mode = 0o711 if user else 0o700
    for folder in [*reversed(path.parents), path]:
        if not folder.exists():
            folder.mkdir(exist_ok=True)
            folder.chmod(mode)  # regardless of the umask


def give(path: Path, user: SystemUser | None, mode: int) -> None:
    """Give `path` to the user (to us if None), with exactly this mode."""
    if user:
        os.chown(path, user.uid, user.gid)
    path.chmod(mode)


def write_private(path: Path, text: str, user: SystemUser | None) -> None:
    """Write a new file that only `user` (we if None) can read, replacing an existing one.

    An existing file is never written through: in a folder of that user, a link could redirect root's write.
    """
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        if user:
            os.fchown(file.fileno(), user.uid, user.gid)
        file.write(text)


def closed_folder(path: Path, user: SystemUser | None) -> Path | None:
    """Return the outermost folder on the path to (and including) `path` that `user` may not enter, by its mode."""
    if user is None:
        return None
    return next((folder for folder in [*reversed(path.parents), path] if not _may_enter(folder, user)), None)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"number {uid}"


def _may_enter(folder: Path, user: SystemUser) -> bool:
    facts = folder.stat()
    if facts.st_uid == user.uid:
        return bool(facts.st_mode & stat.S_IXUSR)
    if facts.st_gid == user.gid:
        return bool(facts.st_mode & stat.S_IXGRP)
    return bool(facts.st_mode & stat.S_IXOTH)
