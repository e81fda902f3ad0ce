from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.sandbox.confined import request
from shared.sandbox.confined.modules import SAFE_IMPORTS

_LINES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"))


@given(st.binary(), st.binary(), st.binary(), st.frozensets(_LINES), st.integers(1, 9))
def test_encoded_request_is_read_back(
    source: bytes, code: bytes, arguments: bytes, allowed: frozenset[str], pieces: int
) -> None:
    sent = request.Request(
        operation="call",
        entrypoint="f",
        allowed=allowed,
        check=True,
        max_output=3,
        max_stdout=4,
        address_space=1 << 40,
        cpu_seconds=2,
        source=source,
        code=code,
        arguments=arguments,
    )
    data = sent.encode()
    size = len(data) // pieces + 1
    parts = iter([data[start : start + size] for start in range(0, len(data), size)])
    assert request.read(lambda: next(parts)) == sent


def test_safe_set_is_not_sent() -> None:
    sent = request.Request("call", "f", SAFE_IMPORTS, False, 1, 1)
    assert b"json" not in sent.encode()
    assert request.read(sent.encode).allowed is SAFE_IMPORTS
