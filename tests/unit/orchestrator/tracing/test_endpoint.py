"""The endpoint's settings: OpenTelemetry's variables, and errors for the rest that quote no secret."""

from __future__ import annotations

import os
from typing import Any

import pytest
from pydantic import SecretStr

import minions
from orchestrator.tracing.endpoint import Endpoint
from orchestrator.tracing.spans import bounded
from shared.errors import NotConfigured
from shared.settings import Settings, get_settings

BASE = {"otel_exporter_otlp_endpoint": "http://collector:4318"}


def endpoint(**fields: Any) -> Endpoint:
    return Endpoint(Settings(**{**BASE, **fields}))


@pytest.mark.parametrize(
    ("base", "traces", "url"),
    [
        ("http://collector:4318", None, "http://collector:4318/v1/traces"),
        ("https://otlp.example.com/otlp/", None, "https://otlp.example.com/otlp/v1/traces"),
        ("http://collector:4318", "https://other.example.com/spans", "https://other.example.com/spans"),
        (None, "http://[::1]:4318/v1/traces", "http://[::1]:4318/v1/traces"),
    ],
)
def test_address_is_that_of_the_variables(base: str | None, traces: str | None, url: str) -> None:
    made = endpoint(otel_exporter_otlp_endpoint=base, otel_exporter_otlp_traces_endpoint=traces)
    assert made.url == url


def test_query_of_the_address_is_sent_and_not_shown() -> None:
    made = endpoint(otel_exporter_otlp_traces_endpoint="https://otlp.example.com:4318/spans?key=hunter2#x")
    assert made.url.startswith("https://otlp.example.com:4318/spans?key=hunter2")
    assert "hunter2" not in made.shown
    assert made.shown.startswith("https://otlp.example.com:4318/spans")


def test_time_out_is_in_milliseconds() -> None:
    assert endpoint().seconds == 10.0
    assert endpoint(otel_exporter_otlp_timeout=2_500).seconds == 2.5
    assert endpoint(otel_exporter_otlp_timeout=2_500, otel_exporter_otlp_traces_timeout=500).seconds == 0.5


def test_traces_are_off_without_an_address() -> None:
    assert Settings().traces_endpoint() is None


@pytest.mark.parametrize(
    ("disabled", "exporter", "on"),
    [
        ("true", "", False),
        ("TRUE", "otlp", False),
        ("false", "none", False),
        ("", "console", False),
        ("1", "", True),
        ("", "console, otlp", True),
    ],
)
def test_traces_are_off_where_opentelemetry_is(disabled: str, exporter: str, on: bool) -> None:
    settings = Settings(
        otel_exporter_otlp_endpoint="http://x", otel_sdk_disabled=disabled, otel_traces_exporter=exporter
    )
    assert (settings.traces_endpoint() is not None) == on


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"otel_exporter_otlp_endpoint": "collector:4317"}, "OTEL_EXPORTER_OTLP_ENDPOINT is not valid"),
        ({"otel_exporter_otlp_traces_endpoint": "ftp://x"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is not valid"),
        ({"otel_exporter_otlp_endpoint": "http://user:hunter2@x"}, "a user or a password"),
        ({"otel_exporter_otlp_headers": SecretStr("hunter2")}, "OTEL_EXPORTER_OTLP_HEADERS is not valid"),
        ({"otel_exporter_otlp_headers": SecretStr("a b=hunter2")}, "a name must be a header's"),
        ({"otel_exporter_otlp_headers": SecretStr("a=hunter2%0d%0ax: y")}, "a value printable ASCII"),
        ({"otel_exporter_otlp_traces_headers": SecretStr("=x")}, "OTEL_EXPORTER_OTLP_TRACES_HEADERS is not valid"),
        ({"otel_exporter_otlp_headers": SecretStr("Content-Length=5")}, "must not have the header content-length"),
        ({"otel_resource_attributes": "x"}, "OTEL_RESOURCE_ATTRIBUTES is not valid"),
    ],
)
def test_wrong_setting_is_refused_without_its_value(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(NotConfigured, match=said) as caught:
        endpoint(**fields)
    assert "hunter2" not in caught.value.message


def test_resource_names_the_service_and_its_version() -> None:
    named = {pair.key: pair.value.string_value for pair in endpoint()._resource.attributes}
    assert named == {
        "service.name": "minions",
        "service.version": minions.__version__,
        "deployment.environment.name": "development",
    }


def test_resource_may_have_any_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environb, b"OTEL_RESOURCE_ATTRIBUTES", b"\xff=\xff")
    assert "\\udcff" in {pair.key for pair in endpoint()._resource.attributes}


@pytest.mark.parametrize("value", ["yes", "1", "all"])
def test_unknown_choice_of_contents_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", value)
    with pytest.raises(NotConfigured, match="OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"):
        get_settings.__wrapped__()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("é – 猫", "é – 猫"),
        ("a\nb", "a\\nb"),
        ("\x1b[2J\x00", "\\u001b[2J\\u0000"),
        ("\u202eabc", "\\u202eabc"),
        ("x" * 30, "x" * 19 + "…"),
        ("\x07" * 30, "\\u0007" * 3 + "\\…"),
    ],
)
def test_text_is_bounded_and_visible(text: str, shown: str) -> None:
    assert bounded(text, 20) == shown
