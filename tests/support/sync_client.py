"""Derives the client for threads from `minions/aio`, the client for asyncio: `make client`.

Both have the same methods, so only one is written by hand: `await` and `async` are left out, and names lose `Async`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "minions" / "aio"
HEADER = "# Generated from minions/aio/{name} by `make client`: change that file.\n"
REPLACEMENTS = [
    (r"(?<![\w)\]])\(await ((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)(?=[\[.])", r"\1"),  # (await call())["items"]
    (r"\bawait ", ""),
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bAsync([A-Z])", r"\1"),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\ba(close|read)\(", r"\1("),
    (r"\b(aclosing|aiter)\b", lambda found: found[1][1:]),
    (r"\bminions\.aio\b", "minions"),
    (r"\bimport asyncio\b", "import time"),
    (r"\basyncio\.sleep\b", "time.sleep"),
    (r"\bCoroutines of one event loop\b", "Threads"),
]
# Imports are sorted by their new names; loops that only `async` needs become `yield from` and `list`.
FIXES = ["--fix-only", "--quiet", "--unsafe-fixes", "--select", "I,UP028,C416"]


def main() -> None:
    """Write all modules."""
    for name, text in derived().items():
        (ROOT / "minions" / name).write_text(text)


def derived() -> dict[str, str]:
    """Return the texts of the derived modules by file name."""
    return {path.name: _derive(path) for path in sorted(SOURCES.glob("*.py")) if path.name != "__init__.py"}


def _derive(path: Path) -> str:
    text = path.read_text()
    for pattern, replacement in REPLACEMENTS:
        text = re.sub(pattern, replacement, text)
    text = _ruff(["check", *FIXES], text, path.name)
    return HEADER.format(name=path.name) + _ruff(["format", "--quiet"], text, path.name)


def _ruff(command: list[str], text: str, name: str) -> str:
    options = ["--stdin-filename", f"minions/{name}", "-"]
    process = subprocess.run(
        [sys.executable, "-m", "ruff", *command, *options], cwd=ROOT, input=text, capture_output=True, text=True
    )
    if process.returncode or process.stderr:
        raise RuntimeError(f"{name}: {process.stderr}")
    return process.stdout


if __name__ == "__main__":
    main()
