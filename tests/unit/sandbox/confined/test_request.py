from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st

from shared.sandbox.confined import request
from shared.sandbox.confined.modules import SAFE_IMPORTS


@given(st.text(st.characters(exclude_categories=["Cs"])), st.binary(), st.lists(st.text()) | st.none())
def test_what_the_host_writes_the_child_reads(source: str, arguments: bytes, allowed: list[str] | None) -> None:
    settings = {
        "operation": "call", "entrypoint": "f", "allowed": allowed, "check": True, "address_space": 1,
        "cpu_seconds": 2, "max_output": 3, "max_stdout": 4,
    }  # fmt: skip
    data = request.encode(settings, source.encode(), arguments, b"null")
    order = request.read(io.BytesIO(data).read)
    assert (order.source, order.arguments, order.context) == (source, arguments, b"null")
    assert order.allowed == (SAFE_IMPORTS if allowed is None else frozenset(allowed))
