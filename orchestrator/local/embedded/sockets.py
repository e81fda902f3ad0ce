"""The folder of the servers' sockets: short, private, and under the temporary directory.

A socket's path must stay below 108 bytes (104 on macOS); the path of a data folder may be longer.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from orchestrator.local.embedded.system_user import SystemUser, closed_folder, give
from shared.errors import Unavailable

_PREFIX = "minions-"
_LONGEST_FOLDER = 80  # bytes; leaves room for the sockets' own names and their lock files


def make_socket_dir(record: Path, user: SystemUser | None) -> Path:
    """Create a folder with an unpredictable name, and write the name to the file `record`.

    Raises:
        Unavailable: no temporary directory is short and open enough.
    """
    for parent in dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp"]):  # noqa: S108 - mkdtemp below
        base = Path(parent).resolve()
        if len(bytes(base)) > _LONGEST_FOLDER - 20 or not base.is_dir() or closed_folder(base, user):
            continue
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        record.write_text(str(folder))
        give(folder, user, 0o700)
        return folder
    raise Unavailable(
        f"No temporary directory is short enough for the servers' sockets ({tempfile.gettempdir()}): "
        "set TMPDIR to a short path that the servers' user can enter."
    )


def remove_socket_dir(record: Path) -> None:
    """Remove the folder that `record` names, and the record. Do nothing if there is none."""
    try:
        folder = Path(record.read_text())
    except OSError:
        return
    if folder.name.startswith(_PREFIX):
        shutil.rmtree(folder, ignore_errors=True)
    record.unlink(missing_ok=True)
