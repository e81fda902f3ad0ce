from __future__ import annotations

import pytest

from shared.sandbox import code_cache
from shared.sandbox.code_cache import CodeCache


@pytest.mark.parametrize("code", [b"code", b""])
def test_source_is_compiled_at_its_second_call(code: bytes) -> None:
    compiled: list[bytes] = []

    def compile_source() -> bytes:
        compiled.append(code)
        return code

    cache = CodeCache()
    assert [cache.get(b"source", compile_source) for _ in range(4)] == [b"", code, code, code]
    assert len(compiled) == 1


def test_source_with_syntax_error_is_left_to_the_call() -> None:
    cache = CodeCache()
    assert [cache.get(b"def", lambda: None) for _ in range(3)] == [b"", b"", b""]


def test_least_recently_used_code_is_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_cache, "MAX_BYTES", 10)
    cache = CodeCache()
    for source in (b"aaa", b"bbb"):
        cache.get(source, lambda: None)
        cache.get(source, lambda: b"12")
    cache.get(b"aaa", lambda: None)
    cache.get(b"ccc", lambda: None)
    assert cache.get(b"aaa", lambda: None) == b"12"
    assert cache.get(b"bbb", lambda: b"never: it was forgotten, so that this is its first time") == b""
