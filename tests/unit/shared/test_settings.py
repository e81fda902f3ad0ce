"""Settings: valid environment variables, and errors for the rest."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from shared.errors import NotConfigured
from shared.settings import RUN_FILE, Settings, default_data_dir, get_settings, read_secret_files

NAMES = ("DATABASE_URL", "REDIS_URL", "SENTRY_DSN", "ANTHROPIC_API_KEY")


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [
        *NAMES,
        *(f"{name}_FILE" for name in NAMES),
        *(name for name in os.environ if name.startswith(("MINION_", "OTEL_"))),
    ]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MINION_DATA_DIR", str(tmp_path))


def test_no_setting_is_required() -> None:
    settings = Settings()
    assert (settings.lease_seconds, settings.max_input_bytes, settings.database_url) == (10.0, 1 << 20, None)


@pytest.mark.parametrize("ask", ["require_database_url", "require_redis_url", "require_broker_url", "require_api_key"])
def test_missing_setting_is_reported_with_the_remedy(ask: str) -> None:
    with pytest.raises(NotConfigured, match="minion up"):
        getattr(Settings(), ask)()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("MINION_LEASE_SECONDS", "ten", "MINION_LEASE_SECONDS: Input must be a valid number"),
        ("MINION_LEASE_SECONDS", "5", "MINION_LEASE_SECONDS: a lease must last at least two heartbeats"),
        ("MINION_LEASE_SECONDS", "inf", "MINION_LEASE_SECONDS"),
        ("MINION_LEASE_SECONDS", "nan", "MINION_LEASE_SECONDS"),
        ("MINION_HEARTBEAT_SECONDS", "0", "MINION_HEARTBEAT_SECONDS: Input must be greater than 0"),
        ("MINION_MAX_INPUT_BYTES", "1e6", "MINION_MAX_INPUT_BYTES"),
        ("MINION_MAX_INPUT_BYTES", str(1 << 40), "MINION_MAX_INPUT_BYTES: Input must be less than"),
        ("MINION_API_PORT", "70000", "MINION_API_PORT"),
        ("MINION_LOG_LEVEL", "LOUD", "MINION_LOG_LEVEL"),
        ("MINION_LOG_FORMAT", "xml", "MINION_LOG_FORMAT"),
        ("MINION_DISPATCH_WINDOW", "0", "MINION_DISPATCH_WINDOW"),
        ("MINION_DISPATCH_WINDOW", str(1 << 40), "MINION_DISPATCH_WINDOW"),
    ],
)
def test_invalid_value_is_reported_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(NotConfigured) as caught:
        get_settings.__wrapped__()
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("postgres://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
        ("postgresql://h/d", "postgresql+psycopg://h/d"),
        (
            "postgresql+psycopg://u:p%40@[::1]:5433/d?sslmode=require",
            "postgresql+psycopg://u:p%40@[::1]:5433/d?sslmode=require",
        ),
        ("postgresql://u@/d?host=/tmp/x", "postgresql+psycopg://u@/d?host=/tmp/x"),
    ],
)
def test_database_urls_are_accepted(monkeypatch: pytest.MonkeyPatch, given: str, url: str) -> None:
    monkeypatch.setenv("DATABASE_URL", given)
    assert Settings().require_database_url() == url


@pytest.mark.parametrize(
    "given",
    [
        "x",
        "mysql://u:s3cret@h/d",
        "sqlite:///x.db",
        "postgresql://u:s3cret@h:port/d",
        "postgresql:/h/d",
        "postgresql://[",
    ],
)
def test_invalid_database_url_is_refused_without_its_password(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("DATABASE_URL", given)
    with pytest.raises(NotConfigured, match="DATABASE_URL is not the address of a database: it must") as caught:
        Settings().require_database_url()
    assert "s3cret" not in caught.value.message


@pytest.mark.parametrize(
    ("given", "redis", "celery"),
    [
        ("redis://h:6379/0", "redis://h:6379/0", "redis://h:6379/0"),
        ("rediss://:p@h", "rediss://:p@h", "rediss://:p@h"),
        ("unix:///tmp/x.sock", "unix:///tmp/x.sock", "redis+socket:///tmp/x.sock"),
        ("redis+socket:///tmp/x.sock", "unix:///tmp/x.sock", "redis+socket:///tmp/x.sock"),
    ],
)
def test_broker_urls_are_accepted(monkeypatch: pytest.MonkeyPatch, given: str, redis: str, celery: str) -> None:
    monkeypatch.setenv("REDIS_URL", given)
    settings = Settings()
    assert (settings.require_redis_url(), settings.require_broker_url()) == (redis, celery)


@pytest.mark.parametrize("given", ["x", "amqp://h", "redis://h:port", "h:6379", "redis://h/db", "unix://"])
def test_invalid_broker_url_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("REDIS_URL", given)
    with pytest.raises(NotConfigured, match="REDIS_URL is not the address of a broker: it must"):
        Settings().require_redis_url()


def test_running_servers_are_used_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {
        "pid": os.getpid(),
        "database_url": "postgresql://h/d",
        "redis_url": "unix:///x",
        "api_url": "http://127.0.0.1:1",
    }
    (tmp_path / RUN_FILE).write_text(json.dumps(facts))
    (tmp_path / "api_key").write_text("k3y\n")
    settings = Settings()
    assert settings.require_database_url() == "postgresql+psycopg://h/d"
    assert (settings.require_redis_url(), settings.require_api_url()) == ("unix:///x", "http://127.0.0.1:1")
    assert settings.require_api_key() == "k3y"
    monkeypatch.setenv("DATABASE_URL", "postgresql://other/d")
    monkeypatch.setenv("MINION_API_KEY", "another")
    assert Settings().require_database_url() == "postgresql+psycopg://other/d"
    assert Settings().require_api_key() == "another"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"5",
        b"{",
        b"\xff",
        b'{"pid": 1, "database_url": 5}',
        b'{"pid": "x", "database_url": "postgresql://h/d"}',
        b'{"pid": 4194305, "database_url": "postgresql://h/d"}',
        b'{"database_url": "postgresql://h/d"}',
    ],
)
def test_broken_record_of_running_servers_is_ignored(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RUN_FILE).write_bytes(content)
    with pytest.raises(NotConfigured, match="No database"):
        Settings().require_database_url()


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff"])
def test_empty_key_is_no_key(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "api_key").write_bytes(content)
    with pytest.raises(NotConfigured, match="No API key"):
        Settings().require_api_key()


def test_line_end_of_key_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINION_API_KEY", " s3cret\r\n")
    assert Settings().require_api_key() == "s3cret"
    monkeypatch.setenv("MINION_API_KEY", "\n")
    with pytest.raises(NotConfigured, match="No API key"):
        Settings().require_api_key()


@pytest.mark.parametrize("key", ["s3c\nret", "s3cr\u00e9t", "s3c\x7fret"])
def test_key_that_no_header_can_carry_is_refused_and_not_quoted(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("MINION_API_KEY", key)
    with pytest.raises(NotConfigured, match="printable ASCII") as refused:
        Settings().require_api_key()
    assert "s3c" not in refused.value.message


def test_modules_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINION_SANDBOX_PRELOAD", "numpy, pandas,")
    assert Settings().sandbox_preload == ["numpy", "pandas"]
    monkeypatch.setenv("MINION_SANDBOX_PRELOAD", "")
    assert Settings().sandbox_preload == []


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, "MINION_API_KEY"):
        monkeypatch.setenv(name, "s3cret")
    assert "s3cret" not in repr(Settings())
    assert "s3cret" not in Settings().model_dump_json()


def test_installations_have_separate_data_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = set()
    for root in ("/a", "/a b", "/ü"):
        monkeypatch.setattr("shared.settings.installation_root", lambda root=root: Path(root))
        folders.add(default_data_dir())
    assert len(folders) == 3


def test_user_without_home_must_set_the_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(NotConfigured, match="MINION_DATA_DIR"):
        default_data_dir()


def test_private_addresses_are_networks_addresses_and_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().allow_private_addresses == []
    monkeypatch.setenv("MINION_ALLOW_PRIVATE_ADDRESSES", "10.1.0.0/16, ::1,hooks.internal")
    assert Settings().allow_private_addresses == ["10.1.0.0/16", "::1", "hooks.internal"]


@pytest.mark.parametrize("entry", ["10.1.0.1/16", "10.1.0", "*", "http://hooks.internal", "a b"])
def test_invalid_private_address_is_refused(monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    monkeypatch.setenv("MINION_ALLOW_PRIVATE_ADDRESSES", entry)
    get_settings.cache_clear()
    with pytest.raises(NotConfigured, match=r"MINION_ALLOW_PRIVATE_ADDRESSES: .* is neither a network"):
        get_settings()


# --------------------------------------------------------------------------------------------------------- login


@pytest.mark.parametrize("name", ["MINION_PUBLIC_URL", "MINION_OIDC_ISSUER"])
@pytest.mark.parametrize(
    "url",
    [
        "minions.example.com",
        "http://minions.example.com",
        "http://10.0.0.1:8700",
        "http://localhost.example.com",
        "ftp://127.0.0.1",
        "https://",
        "https://user:password@minions.example.com",
        "https://minions.example.com?a=b",
        "https://minions.example.com#a",
        "https://minions.example.com:port",
        "https://minions example.com",
        "https://minions.example.com\\@evil.example",
        "https://m\xefnions.example.com",
    ],
)
def test_address_for_browsers_must_be_encrypted_or_local(monkeypatch: pytest.MonkeyPatch, name: str, url: str) -> None:
    monkeypatch.setenv(name, url)
    get_settings.cache_clear()
    with pytest.raises(NotConfigured, match=rf"{name}: it must be an address that begins with https://"):
        get_settings()


def test_plain_http_must_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINION_PUBLIC_URL", "http://10.0.0.5:8700")
    get_settings.cache_clear()
    with pytest.raises(NotConfigured, match="MINION_PUBLIC_URL: it must be an address that begins with https://"):
        get_settings()
    monkeypatch.setenv("MINION_ALLOW_PLAIN_HTTP", "1")
    get_settings.cache_clear()
    assert get_settings().login_url() == "http://10.0.0.5:8700"


@pytest.mark.parametrize("path", ["minions", "/a//b", "/a b", "//host", "/../x", "/a?b", "/é"])
def test_wrong_base_path_is_refused(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("MINION_BASE_PATH", path)
    get_settings.cache_clear()
    with pytest.raises(NotConfigured, match="MINION_BASE_PATH: it must begin with a slash"):
        get_settings()


def test_public_url_has_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINION_PUBLIC_URL", "https://minions.example.com/path")
    get_settings.cache_clear()
    with pytest.raises(NotConfigured, match="MINION_PUBLIC_URL: it must have no path"):
        get_settings()


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({}, "http://127.0.0.1:8700"),
        ({"api_host": "::1", "api_port": 1}, "http://[::1]:1"),
        ({"api_host": "localhost"}, "http://localhost:8700"),
        ({"api_host": "0.0.0.0"}, None),
        ({"api_host": "0.0.0.0", "public_url": "https://m.example.com/"}, "https://m.example.com"),
        ({"public_url": "http://localhost:8700"}, "http://localhost:8700"),
    ],
)
def test_login_url_is_configured_or_local(settings: dict[str, Any], url: str | None) -> None:
    assert Settings(**settings).login_url() == url


@pytest.mark.parametrize("roles", ["admin", "[]", "{", "5", '{"a": "viewer"'])
def test_mapping_of_roles_must_be_an_object(monkeypatch: pytest.MonkeyPatch, roles: str) -> None:
    monkeypatch.setenv("MINION_OIDC_ROLES", roles)
    get_settings.cache_clear()
    with pytest.raises(NotConfigured, match="MINION_OIDC_ROLES: it must be a JSON object"):
        get_settings()


@pytest.mark.parametrize("proxy", ["*", "10.0.0.0/33", "proxy.internal"])
def test_trusted_proxies_are_networks(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("MINION_TRUSTED_PROXIES", f"127.0.0.1,{proxy}")
    get_settings.cache_clear()
    with pytest.raises(NotConfigured, match=r"MINION_TRUSTED_PROXIES: .* is neither a network"):
        get_settings()


# ----------------------------------------------------------------------------------------- secrets from files

SECRETS = (
    "DATABASE_URL",
    "REDIS_URL",
    "SENTRY_DSN",
    "ANTHROPIC_API_KEY",
    "MINION_API_KEY",
    "MINION_ALERT_URLS",
    "MINION_METRICS_TOKEN",
    "MINION_FLOWER_PASSWORD",
    "MINION_SECRET_KEY",
    "MINION_OIDC_CLIENT_SECRET",
    "MINION_PROVIDER_KEYS",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
)


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("variable", [None, ""])
def test_secret_is_read_from_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, variable: str | None
) -> None:
    if variable is not None:
        monkeypatch.setenv(name, variable)
    written = '{"openai": "sk"}' if name == "MINION_PROVIDER_KEYS" else "the value"
    monkeypatch.setenv("MINION_PROVIDERS", '{"openai": {"kind": "openai"}}')
    (tmp_path / "secret").write_text(f"{written}\n")
    monkeypatch.setenv(f"{name}_FILE", str(tmp_path / "secret"))
    value = getattr(get_settings.__wrapped__(), name.lower().removeprefix("minion_"))
    assert value.get_secret_value() == written


@pytest.mark.parametrize("name", ["MINION_API_HOST", "MINION_API_PORT", "MINION_DATA_DIR", "MINION_RETENTION_EXPORT"])
def test_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv(name, raising=False)
    without = get_settings.__wrapped__()
    monkeypatch.setenv(name, "")
    assert get_settings.__wrapped__() == without


def test_every_secret_can_be_a_file() -> None:
    secrets = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    assert secrets == {name.lower().removeprefix("minion_") for name in SECRETS}


def test_other_settings_have_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "port").write_text("1")
    monkeypatch.setenv("MINION_API_PORT_FILE", str(tmp_path / "port"))
    assert get_settings.__wrapped__().api_port == 8700


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_unreadable_secret_file_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "secret").write_bytes(content)
    monkeypatch.setenv("MINION_API_KEY_FILE", str(tmp_path / "secret"))
    with pytest.raises(NotConfigured, match=r"MINION_API_KEY_FILE: the file .*secret cannot be read"):
        get_settings.__wrapped__()


def test_empty_secret_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("\n")
    monkeypatch.setenv("ANTHROPIC_API_KEY_FILE", str(tmp_path / "secret"))
    with pytest.raises(NotConfigured, match=r"ANTHROPIC_API_KEY_FILE: the file .*secret is empty"):
        get_settings.__wrapped__()


def test_secret_that_is_set_twice_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("one")
    monkeypatch.setenv("REDIS_URL_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv("REDIS_URL", "redis://other")
    with pytest.raises(NotConfigured, match="REDIS_URL and REDIS_URL_FILE are both set"):
        get_settings.__wrapped__()


def test_child_processes_inherit_secrets_from_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the value")
    monkeypatch.setenv("REDIS_URL_FILE", str(tmp_path / "secret"))
    monkeypatch.delenv("REDIS_URL", raising=False)
    read_secret_files()
    assert (os.environ.pop("REDIS_URL"), os.environ.get("REDIS_URL_FILE")) == ("the value", None)
