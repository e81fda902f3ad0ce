"""`minions.webhooks.verify`, against the test vector of the Standard Webhooks libraries."""

from __future__ import annotations

import base64
import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minions import webhooks
from minions.errors import InvalidSignature, MinionsError, NotConfigured
from minions.webhooks import sign, verify

# From the tests of https://github.com/standard-webhooks/standard-webhooks
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
TIMESTAMP = 1614265330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.fixture
def at_vector_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the clock to the time of the test vector."""
    monkeypatch.setattr(webhooks, "time", SimpleNamespace(time=lambda: TIMESTAMP + 1.5))


def headers(**changes: Any) -> dict[str, str]:
    shown = {"id": ID, "timestamp": str(TIMESTAMP), "signature": SIGNATURE, **changes}
    return {f"webhook-{name}": value for name, value in shown.items() if value is not None}


def test_test_vector_of_the_specification_is_accepted(at_vector_time: None) -> None:
    assert sign(SECRET, ID, TIMESTAMP, BODY) == SIGNATURE
    assert sign(SECRET.removeprefix("whsec_"), ID, TIMESTAMP, BODY) == SIGNATURE
    assert verify(BODY, headers(), SECRET) == {"test": 2432232314}


@pytest.mark.parametrize("change", [str.upper, str.title])
def test_case_of_headers_does_not_matter(at_vector_time: None, change: Any) -> None:
    assert verify(BODY, {change(name): value for name, value in headers().items()}, SECRET)


@pytest.mark.parametrize(
    "signature", [f"v1,{'A' * 43}= {SIGNATURE}", f"v1a,abc {SIGNATURE}", f"{SIGNATURE} v2,whatever", f" {SIGNATURE} "]
)
def test_one_valid_signature_of_several_is_enough(at_vector_time: None, signature: str) -> None:
    assert verify(BODY, headers(signature=signature), SECRET)


@pytest.mark.parametrize(
    "signature",
    [
        "v1,",
        "v1",
        ",",
        "v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc=",
        SIGNATURE.replace("v1,", "v2,"),
        SIGNATURE[:-1],
        SIGNATURE + "=",
        SIGNATURE.lower(),
        SIGNATURE.replace(",", " "),
        "v1,ü",
        "v1,\ud800",
    ],
)
def test_wrong_signature_is_refused(at_vector_time: None, signature: str) -> None:
    with pytest.raises(InvalidSignature, match="does not match"):
        verify(BODY, headers(signature=signature), SECRET)


@pytest.mark.parametrize(
    ("body", "changes", "secret"),
    [
        (BODY + b" ", {}, SECRET),
        (b"", {}, SECRET),
        (BODY, {"id": ID + "x"}, SECRET),
        (BODY, {"timestamp": str(TIMESTAMP + 1)}, SECRET),
        (BODY, {}, "whsec_" + base64.b64encode(b"another").decode()),
    ],
)
def test_id_timestamp_and_body_are_signed(
    at_vector_time: None, body: bytes, changes: dict[str, str], secret: str
) -> None:
    with pytest.raises(InvalidSignature, match="does not match"):
        verify(body, headers(**changes), secret)


@pytest.mark.parametrize("name", ["id", "timestamp", "signature"])
@pytest.mark.parametrize("value", [None, ""])
def test_missing_header_is_named(name: str, value: str | None) -> None:
    with pytest.raises(InvalidSignature, match=f"no header webhook-{name}"):
        verify(BODY, headers(**{name: value}), SECRET)


@pytest.mark.parametrize("timestamp", ["soon", "-1", "1.5", "1e9", "١", "9" * 16, "0x10", " 1614265330"])
def test_invalid_timestamp_is_refused(timestamp: str) -> None:
    with pytest.raises(InvalidSignature, match="must be a time"):
        verify(BODY, headers(timestamp=timestamp), SECRET)


@pytest.mark.parametrize(("away", "words"), [(-400, "s ago; at most 300 s are tolerated"), (400, "s in the future")])
def test_message_outside_the_tolerance_is_refused(away: int, words: str) -> None:
    sent = int(time.time()) + away
    signed = headers(timestamp=str(sent), signature=sign(SECRET, ID, sent, BODY))
    with pytest.raises(InvalidSignature, match=words):
        verify(BODY, signed, SECRET)
    assert verify(BODY, signed, SECRET, tolerance=500)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_***", "whsec_ü", "whsec_YQ"])
def test_invalid_secret_is_not_configured(at_vector_time: None, secret: str) -> None:
    with pytest.raises(NotConfigured, match="whsec_"):
        verify(BODY, headers(), secret)


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b'"x"', b"[" * 100_000])
def test_signed_body_must_be_a_message(body: bytes) -> None:
    now = int(time.time())
    with pytest.raises(InvalidSignature, match="not a JSON object"):
        verify(body, headers(timestamp=str(now), signature=sign(SECRET, ID, now, body)), SECRET)


def test_lone_surrogates_are_refused_without_a_crash(at_vector_time: None) -> None:
    """Some servers decode headers with `surrogateescape`, and environment variables are decoded that way too."""
    with pytest.raises(InvalidSignature, match="does not match"):
        verify(BODY, headers(id=ID + "\udcff"), SECRET)
    with pytest.raises(InvalidSignature, match="must be a time"):
        verify(BODY, headers(timestamp="\ud800"), SECRET)
    with pytest.raises(NotConfigured, match="whsec_"):
        verify(BODY, headers(), SECRET + "\ud800")


ANY_TEXT = st.text(st.characters(exclude_categories=[]))


@given(st.binary(), ANY_TEXT, ANY_TEXT | st.integers(0, 10**16).map(str), ANY_TEXT, ANY_TEXT | st.just(SECRET))
def test_arbitrary_messages_raise_a_minions_error(
    body: bytes, id: str, timestamp: str, signature: str, secret: str
) -> None:
    with pytest.raises(MinionsError):
        verify(body, headers(id=id, timestamp=timestamp, signature=signature), secret, tolerance=1e17)


def test_signed_message_is_returned() -> None:
    now, body = int(time.time()), json.dumps({"type": "task.succeeded", "data": {"output": "é"}}).encode()
    signed = headers(timestamp=str(now), signature=sign(SECRET, ID, now, body))
    assert verify(body, signed, SECRET)["data"] == {"output": "é"}
