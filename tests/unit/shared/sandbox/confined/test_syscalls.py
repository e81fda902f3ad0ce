"""The system call tables agree with the kernel's headers, where those are installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared.sandbox.confined.syscalls import AARCH64, ARCHITECTURES, X86_64

DEFINITION = re.compile(r"^#define\s+__NR(?:3264)?_(\w+)\s+(\d+|__NR3264_\w+)", re.MULTILINE)
X86_HEADERS = [
    Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    Path("/usr/x86_64-linux-gnu/include/asm/unistd_64.h"),
]
ARM_HEADERS = [
    Path("/usr/aarch64-linux-gnu/include/asm/unistd_64.h"),
    Path("/usr/include/aarch64-linux-gnu/asm/unistd_64.h"),
    # aarch64 has no separate numbers: it uses the generic table.
    Path("/usr/aarch64-linux-gnu/include/asm-generic/unistd.h"),
    Path("/usr/include/asm-generic/unistd.h"),
]


def definitions(candidates: list[Path]) -> dict[str, int]:
    for path in candidates:
        if path.exists():
            pairs = DEFINITION.findall(path.read_text())
            return {name: int(value) for name, value in pairs if value.isdigit()}
    pytest.skip("no kernel headers installed")


@pytest.mark.parametrize(
    ("table", "headers"), [(X86_64, X86_HEADERS), (AARCH64, ARM_HEADERS)], ids=["x86_64", "aarch64"]
)
def test_numbers_agree_with_the_headers(table: dict[str, int], headers: list[Path]) -> None:
    known = definitions(headers)
    assert {name: known.get(name) for name in table} == table


def test_numbers_are_unique() -> None:
    for architecture in ARCHITECTURES.values():
        assert len(set(architecture.numbers.values())) == len(architecture.numbers)
