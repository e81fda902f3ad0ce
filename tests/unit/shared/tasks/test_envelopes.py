"""Items of a Redis list are parsed without trusting them."""

from __future__ import annotations

import bz2
import json
import lzma
import zlib
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidInput, TooLarge
from shared.tasks.envelopes import Envelope, Foreign, open_envelope, queue_keys, queue_of
from tests.unit.workers.test_run_messages import anything

LIMIT = 1 << 20
PACKERS = {
    "application/x-gzip": zlib.compress,
    "application/x-bz2": bz2.compress,
    "application/x-lzma": lzma.compress,
}


def packed(body: bytes, compression: Any) -> Envelope:
    return Envelope({"compression": compression}, {}, "application/json", body)


@given(st.binary(max_size=2000) | anything.map(lambda value: json.dumps(value).encode()))
def test_item_that_is_no_message_is_foreign(raw: bytes) -> None:
    with pytest.raises(Foreign):
        open_envelope(raw, limit=LIMIT)


@given(anything, anything, anything, anything, st.none() | st.sampled_from(["base64", "utf-8"]) | anything)
def test_wrong_field_types_make_an_item_foreign(
    headers: Any, properties: Any, kind: Any, body: Any, encoding: Any
) -> None:
    if isinstance(properties, dict):
        properties["body_encoding"] = encoding
    item = {"headers": headers, "properties": properties, "content-type": kind, "body": body}
    try:
        envelope = open_envelope(json.dumps(item).encode(), limit=LIMIT)
    except Foreign:
        return
    assert isinstance(envelope.headers, dict)
    assert isinstance(envelope.properties, dict)
    assert isinstance(envelope.content_type, str)
    assert isinstance(envelope.body, bytes)


@pytest.mark.parametrize("compression", PACKERS)
def test_body_is_unpacked_up_to_the_limit(compression: str) -> None:
    pack = PACKERS[compression]
    assert packed(pack(b"x" * LIMIT), compression).unpack(limit=LIMIT) == b"x" * LIMIT
    with pytest.raises(TooLarge):
        packed(pack(b"x" * (10 << 20)), compression).unpack(limit=LIMIT)
    with pytest.raises(InvalidInput, match="its end is missing"):
        packed(pack(b"x" * 10_000)[:-6], compression).unpack(limit=LIMIT)


@given(st.binary(max_size=500), st.sampled_from([*PACKERS]) | anything)
def test_broken_body_is_refused_with_one_error_type(body: bytes, compression: Any) -> None:
    with suppress(InvalidInput):
        assert isinstance(packed(body, compression).unpack(limit=LIMIT), bytes)


def test_each_priority_has_its_own_list() -> None:
    keys = queue_keys("work")
    assert keys == ["work", "work\x06\x163", "work\x06\x166", "work\x06\x169"]
    assert {queue_of(key) for key in keys} == {"work"}
