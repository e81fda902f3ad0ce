"""Twelve-factor configuration: everything comes from the environment, and every value has a type.

A laptop and production differ only in `DATABASE_URL` and `REDIS_URL`. If they are not set, the servers that
`minion up` started for this installation are used (see `orchestrator.local.embedded`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from shared.errors import NotConfigured, requirement
from shared.providers import (
    ANTHROPIC,
    Provider,
    anthropic_provider,
    normal_name,
    parse_keys,
    parse_providers,
    split,
)

RUN_FILE = "run.json"
SHORTEST_API_KEY = 16
BASE_PATH = re.compile(r"(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+")
# At least one letter: a mistyped network is not a name.
HOST_NAME = re.compile(r"[A-Za-z0-9_.-]*[A-Za-z][A-Za-z0-9_.-]*")
# Examples of settings that are JSON objects, for their errors.
OBJECTS = {
    "oidc_roles": '{"minions-admins": "admin"}',
    "mcp_stdio": '{"files": {"command": ["/opt/files/server", "--stdio"]}}',
}


class StdioProgram(BaseModel):
    """A program that is an MCP server.

    Attributes:
        command: the absolute path of the program, and its arguments.
        env: names of the environment variables that it gets, with the values that they have for this process.
        cwd: the folder in which it runs.
    """

    model_config = ConfigDict(extra="forbid")

    command: list[str] = Field(min_length=1)
    env: list[str] = Field(default_factory=list)
    cwd: str = "/"

    @field_validator("command")
    @classmethod
    def _is_a_path(cls, command: list[str]) -> list[str]:
        if not Path(command[0]).is_absolute():
            raise ValueError(f"{command[0][:100]!r} is not an absolute path: the program is not looked for in PATH")
        return command


def installation_root() -> Path:
    """Return the checkout that this code runs from, or the Python environment that it is installed in."""
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "pyproject.toml").is_file() else Path(sys.prefix).resolve()


def default_data_dir() -> Path:
    """Return the folder for this installation's private servers, keys and reports.

    One folder per installation, so that two copies on one machine never interfere. For root it is below
    `/var/lib`, because PostgreSQL runs as another user, which cannot enter a home folder of mode 0700.
    """
    name = hashlib.sha256(str(installation_root()).encode()).hexdigest()[:16]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Path("/var/lib/minions") / name
    return user_state_dir() / name


def user_state_dir() -> Path:
    """Return the folder for programs of this user to store data about Minions.

    Raises:
        NotConfigured: the user has no home folder.
    """
    state_home = os.environ.get("XDG_STATE_HOME") or str(_home() / ".local" / "state")
    return Path(state_home) / "minions"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise NotConfigured("This user has no home folder: set MINION_DATA_DIR to a folder for the data.") from None


class SecretFiles(PydanticBaseSettingsSource):
    """Secrets from files: `DATABASE_URL_FILE` names the file that holds `DATABASE_URL`, as platforms mount secrets."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the secret of a field, or None.

        Raises:
            NotConfigured: the file cannot be read, or the variable itself is set too.
        """
        variable = variable_of(field_name)
        path = os.environ.get(f"{variable}_FILE")
        if SecretStr not in get_args(field.annotation) or not path:
            return None, field_name, False
        if os.environ.get(variable):
            raise NotConfigured(f"{variable} and {variable}_FILE are both set: set one of them.")
        try:
            secret = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise NotConfigured(f"{variable}_FILE: the file {path} cannot be read: {error}.") from None
        if not secret:
            raise NotConfigured(f"{variable}_FILE: the file {path} is empty: it must hold the value.")
        return secret, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return all secrets that come from files, by field."""
        found = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in found.items() if value is not None}


class Settings(BaseSettings):
    """All settings. Environment variables are named `MINION_` and the field, except for the well-known ones.

    An empty variable counts as not set: a line such as `ANTHROPIC_API_KEY=` in an `.env` file sets nothing.
    """

    model_config = SettingsConfigDict(
        env_prefix="MINION_",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # it may be a secret
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *sources: PydanticBaseSettingsSource, **more: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources of values: the constructor, the environment, and files for secrets."""
        return more["init_settings"], more["env_settings"], SecretFiles(settings_cls)

    database_url: SecretStr | None = Field(None, validation_alias="DATABASE_URL")
    redis_url: SecretStr | None = Field(None, validation_alias="REDIS_URL")
    sentry_dsn: SecretStr | None = Field(None, validation_alias="SENTRY_DSN")
    anthropic_api_key: SecretStr | None = Field(None, validation_alias="ANTHROPIC_API_KEY")
    anthropic_base_url: str | None = Field(None, validation_alias="ANTHROPIC_BASE_URL")

    # OpenTelemetry's own variables; where a platform sets them for all its services, traces need nothing else.
    otel_sdk_disabled: str | None = Field(None, validation_alias="OTEL_SDK_DISABLED")
    otel_traces_exporter: str | None = Field(None, validation_alias="OTEL_TRACES_EXPORTER")
    otel_exporter_otlp_endpoint: str | None = Field(None, validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT")
    otel_exporter_otlp_traces_endpoint: str | None = Field(None, validation_alias="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    otel_exporter_otlp_headers: SecretStr | None = Field(None, validation_alias="OTEL_EXPORTER_OTLP_HEADERS")
    otel_exporter_otlp_traces_headers: SecretStr | None = Field(
        None, validation_alias="OTEL_EXPORTER_OTLP_TRACES_HEADERS"
    )
    # Milliseconds.
    otel_exporter_otlp_timeout: int = Field(10_000, ge=1, le=600_000, validation_alias="OTEL_EXPORTER_OTLP_TIMEOUT")
    otel_exporter_otlp_traces_timeout: int | None = Field(
        None, ge=1, le=600_000, validation_alias="OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"
    )
    otel_service_name: str | None = Field(None, validation_alias="OTEL_SERVICE_NAME")
    otel_resource_attributes: str | None = Field(None, validation_alias="OTEL_RESOURCE_ATTRIBUTES")
    otel_instrumentation_genai_capture_message_content: str = Field(
        "NO_CONTENT",
        pattern="^(?i:true|false|no_content|span_only|event_only|span_and_event)$",
        validation_alias="OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT",
    )

    data_dir: Path = Field(default_factory=default_data_dir)
    environment: str = "development"
    log_level: str = Field("INFO", pattern="^(?i:debug|info|warning|error|critical)$")
    log_format: str = Field("auto", pattern="^(auto|json|console)$")

    api_host: str = "127.0.0.1"
    api_port: int = Field(8700, ge=0, le=65535)
    api_key: SecretStr | None = None
    allow_short_api_key: bool = False
    flower_password: SecretStr | None = None
    flower_url: str | None = Field(None, pattern=r"^https?://[^\s/][^\s]*$", max_length=2000)
    metrics_token: SecretStr | None = None
    alert_urls: SecretStr | None = None
    alert_pending_seconds: float = Field(3600.0, ge=0, le=31_622_400)
    alert_approval_seconds: float = Field(86_400.0, ge=0, le=31_622_400)
    api_request_seconds: float = Field(15.0, gt=0, le=3600)
    api_memory_bytes: int = Field(1 << 30, ge=1 << 20)
    secret_key: SecretStr | None = None
    api_url: str | None = None
    allow_plain_http: bool = False
    public_url: str | None = None
    base_path: str = ""
    trusted_proxies: Annotated[list[str], NoDecode] = Field(default_factory=list)

    login_seconds: float = Field(28_800.0, ge=60, le=31_622_400)
    login_idle_seconds: float = Field(1800.0, ge=60, le=31_622_400)
    oidc_issuer: str | None = None
    oidc_client_id: str | None = None
    oidc_client_secret: SecretStr | None = None
    oidc_scopes: str = "openid profile email"
    oidc_name_claim: str = "email"
    oidc_role_claim: str = "groups"
    oidc_roles: Annotated[dict[str, Any], NoDecode] = Field(default_factory=dict)
    oidc_login_seconds: float = Field(3600.0, ge=60, le=31_622_400)

    default_model: str = "claude-sonnet-5-5"
    providers: Annotated[dict[str, Provider], NoDecode] = Field(default_factory=dict, validate_default=True)
    provider_keys: SecretStr | None = None
    routing_agent: str | None = None
    max_tool_calls: int = Field(128, ge=1, le=100_000)
    model_patience_seconds: float = Field(21_600.0, ge=0, le=31_622_400)
    batch_calls: int = Field(1000, ge=1, le=100_000)
    batch_seconds: float = Field(60.0, ge=0, le=86_400)
    batch_poll_seconds: float = Field(60.0, gt=0, le=86_400)
    batch_lost_seconds: float = Field(300.0, gt=0, le=86_400)
    # PostgreSQL stores no JSON value of more than 256 MB.
    max_input_bytes: int = Field(1 << 20, ge=1024, le=128 << 20)
    max_output_bytes: int = Field(4 << 20, ge=1024, le=128 << 20)
    max_body_bytes: int = Field(64 << 20, ge=1024, le=1 << 30)
    # In base64, 24 MB are the 32 MB that a request to the Messages API may have.
    max_file_bytes: int = Field(24 << 20, ge=1024, le=64 << 20)
    # Of all files of a namespace; 0: no limit.
    files_bytes: int = Field(10 << 30, ge=0)

    heartbeat_seconds: float = Field(3.0, gt=0, le=3600)
    lease_seconds: float = Field(10.0, ge=0.1, le=86_400)
    lost_message_seconds: float = Field(5.0, gt=0, le=86_400)
    celery_namespace: str | None = Field(None, min_length=1, max_length=100)
    celery_agents: Annotated[list[str], NoDecode] = Field(default_factory=list)
    celery_tenant: str | None = Field(None, min_length=1, max_length=200)
    cancel_grace_seconds: float = Field(5.0, ge=0, le=86_400)
    sandbox_preload: Annotated[list[str], NoDecode] = Field(default_factory=list)
    quarantine_after: int = Field(10, ge=0, le=1_000_000)
    dispatch_window: int = Field(64, ge=1, le=1_000_000)
    cache_rows: int = Field(100_000, ge=0, le=100_000_000)
    cache_bytes: int = Field(256 << 20, ge=0)
    connect_attempts: int = Field(10, ge=1)
    allow_private_addresses: Annotated[list[str], NoDecode] = Field(default_factory=list)
    mcp_stdio: Annotated[dict[str, StdioProgram], NoDecode] = Field(default_factory=dict)

    # Days; 0 keeps them indefinitely.
    retention_succeeded: float = Field(30.0, ge=0, le=36_500)
    retention_failed: float = Field(90.0, ge=0, le=36_500)
    retention_cancelled: float = Field(30.0, ge=0, le=36_500)
    retention_expired: float = Field(90.0, ge=0, le=36_500)
    retention_export: Path | None = None
    retention_audit: float = Field(400.0, ge=0, le=36_500)
    retention_files: float = Field(30.0, ge=0, le=36_500)
    retention_memory: float = Field(400.0, ge=0, le=36_500)

    @field_validator("sandbox_preload", "allow_private_addresses", "celery_agents", "trusted_proxies", mode="before")
    @classmethod
    def _split(cls, given: Any) -> Any:
        """Split a comma-separated list: `MINION_SANDBOX_PRELOAD=numpy,pandas`."""
        return [name.strip() for name in given.split(",") if name.strip()] if isinstance(given, str) else given

    @field_validator("allow_private_addresses")
    @classmethod
    def _are_networks_or_hosts(cls, entries: list[str]) -> list[str]:
        for entry in entries:
            if not _is_network(entry) and not HOST_NAME.fullmatch(entry):
                raise ValueError(f"{entry!r} is neither a network such as 10.1.0.0/16 nor an address nor a host's name")
        return entries

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, entries: list[str]) -> list[str]:
        for entry in entries:
            if not _is_network(entry):
                raise ValueError(f"{entry!r} is neither a network such as 10.1.0.0/16 nor an address")
        return entries

    @field_validator("public_url", "oidc_issuer")
    @classmethod
    def _is_encrypted_or_local(cls, url: str | None, others: ValidationInfo) -> str | None:
        plain = others.field_name == "public_url" and others.data.get("allow_plain_http") is True
        if url is not None and not _is_https_or_loopback(url) and not (plain and _is_http_or_https(url)):
            raise ValueError(
                "it must be an address that begins with https://, without a user, a query or a fragment; http:// is "
                "accepted for loopback addresses only"
            )
        return url

    @field_validator("base_path")
    @classmethod
    def _is_a_path(cls, path: str) -> str:
        path = path.rstrip("/")
        if path and not BASE_PATH.fullmatch(path):
            raise ValueError("it must begin with a slash and have only letters, digits, -, _, . and /, like /minions")
        return path

    @field_validator("public_url")
    @classmethod
    def _has_no_path(cls, url: str | None) -> str | None:
        if url is not None and urlsplit(url).path.strip("/"):
            raise ValueError("it must have no path, like https://minions.example.com")
        return url and url.rstrip("/")

    @field_validator("oidc_roles", "mcp_stdio", mode="before")
    @classmethod
    def _read_object(cls, given: Any, info: ValidationInfo) -> Any:
        try:
            value = json.loads(given) if isinstance(given, str) else given
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ValueError(f"it must be a JSON object, like {OBJECTS[str(info.field_name)]}")
        return value

    @field_validator("default_model")
    @classmethod
    def _has_one_name(cls, model: str) -> str:
        return normal_name(model)

    @field_validator("providers", mode="before")
    @classmethod
    def _read_providers(cls, given: Any) -> Any:
        return parse_providers(given)

    @field_validator("providers")
    @classmethod
    def _have_the_default_model(cls, providers: dict[str, Provider], others: ValidationInfo) -> dict[str, Provider]:
        name, _ = split(others.data.get("default_model", ""))
        if name != ANTHROPIC and name not in providers:
            raise ValueError(
                f"MINION_DEFAULT_MODEL names the provider {name[:100]!r}, which is not among them (a model of "
                f"ANTHROPIC_BASE_URL whose name has a colon is {ANTHROPIC}:NAME)"
            )
        return providers

    @field_validator("provider_keys")
    @classmethod
    def _fit_the_providers(cls, keys: SecretStr | None, others: ValidationInfo) -> SecretStr | None:
        if keys is not None and "providers" in others.data:
            parse_keys(keys.get_secret_value(), others.data["providers"])
        return keys

    @field_validator("lease_seconds")
    @classmethod
    def _lease_outlives_a_beat(cls, lease: float, others: ValidationInfo) -> float:
        if lease < 2 * others.data.get("heartbeat_seconds", 0.0):
            raise ValueError(
                "a lease must last at least two heartbeats (MINION_HEARTBEAT_SECONDS), or no worker keeps its lease"
            )
        return lease

    def known_providers(self) -> dict[str, Provider]:
        """Return the providers of models by name: the Anthropic API, and those of MINION_PROVIDERS."""
        return {ANTHROPIC: anthropic_provider(self.anthropic_base_url), **self.providers}

    def key_of(self, provider: str) -> str | None:
        """Return this installation's key for a provider, if it has one."""
        if provider == ANTHROPIC:
            return self.anthropic_api_key.get_secret_value() if self.anthropic_api_key else None
        if self.provider_keys is None:
            return None
        return parse_keys(self.provider_keys.get_secret_value(), self.providers).get(provider)

    def require_database_url(self) -> str:
        """Return the database's address in SQLAlchemy's form (`postgresql+psycopg://…`).

        Raises:
            NotConfigured: neither `DATABASE_URL` nor a running `minion up` names one.
        """
        url = self.database_url.get_secret_value() if self.database_url else self._running("database_url")
        if not url:
            raise NotConfigured(
                "No database: set DATABASE_URL, or start the private servers of this machine with `minion up`."
            )
        for prefix in ("postgres://", "postgresql://"):
            if url.startswith(prefix):
                url = "postgresql+psycopg://" + url.removeprefix(prefix)
        if not _is_url(url, "postgresql+psycopg"):
            raise NotConfigured(
                "DATABASE_URL is not the address of a database: it must be like "
                "postgresql://user:password@host:5432/database."
            )
        return url

    def require_redis_url(self) -> str:
        """Return the broker's address in redis-py's form (`redis://`, `rediss://` or `unix://`).

        Raises:
            NotConfigured: neither `REDIS_URL` nor a running `minion up` names one.
        """
        url = self.redis_url.get_secret_value() if self.redis_url else self._running("redis_url")
        if not url:
            raise NotConfigured(
                "No broker: set REDIS_URL, or start the private servers of this machine with `minion up`."
            )
        url = url.replace("redis+socket://", "unix://", 1)
        if not _is_url(url, "redis", "rediss", "unix") or not _is_broker(url):
            raise NotConfigured(
                "REDIS_URL is not the address of a broker: it must be like redis://host:6379/0, rediss://… or "
                "unix:///path."
            )
        return url

    def require_broker_url(self) -> str:
        """Return the broker's address in Celery's form, where a socket is `redis+socket://`."""
        return self.require_redis_url().replace("unix://", "redis+socket://", 1)

    def require_api_url(self) -> str:
        """Return the API's address: `MINION_API_URL`, the running `minion up`, or the configured host and port."""
        return self.api_url or self._running("api_url") or f"http://{self.api_host}:{self.api_port}"

    def login_url(self) -> str | None:
        """Return the address of this installation in browsers: `MINION_PUBLIC_URL`, or the loopback address of the API.

        None: the API listens on other addresses, and its public one is not configured, so browsers cannot log in.
        """
        if self.public_url or not is_loopback(self.api_host):
            return self.public_url
        host = f"[{self.api_host}]" if ":" in self.api_host else self.api_host
        return f"http://{host}:{self.api_port}"

    def require_secret_key(self) -> str:
        """Return the key that encrypts secrets: MINION_SECRET_KEY, or the one of `minion up` in the data folder.

        Raises:
            NotConfigured: there is no key.
        """
        if self.secret_key:
            return self.secret_key.get_secret_value()
        try:
            return (self.data_dir / "secret_key").read_text(encoding="utf-8").strip()
        except OSError:
            raise NotConfigured(
                "MINION_SECRET_KEY is not set, and secrets are encrypted with it. `minion secrets key` makes one."
            ) from None

    def require_api_key(self) -> str:
        """Return the API's bearer key: `MINION_API_KEY`, or the one that `minion up` keeps in the data folder.

        Raises:
            NotConfigured: there is no key, or it cannot be sent in a header.
        """
        key = self.api_key.get_secret_value().strip() if self.api_key else ""
        with suppress(OSError, UnicodeDecodeError):
            key = key or (self.data_dir / "api_key").read_text(encoding="utf-8").strip()
        if not key:
            raise NotConfigured(f"No API key: set MINION_API_KEY, or let `minion up` make one in {self.data_dir}.")
        if not (key.isascii() and key.isprintable()):
            raise NotConfigured(
                f"The API key (MINION_API_KEY, or `api_key` in {self.data_dir}) is not printable ASCII on one line, "
                "and no header can carry it. Make another one, with `openssl rand -hex 24`."
            )
        return key

    def require_server_api_key(self) -> str:
        """Return the bearer key, for a server that requires it.

        Raises:
            NotConfigured: there is no key, it cannot be sent in a header, or it is so short that it can be guessed.
        """
        key = self.require_api_key()
        if len(key) < SHORTEST_API_KEY and not self.allow_short_api_key:
            raise NotConfigured(
                f"The API key (MINION_API_KEY, or `api_key` in {self.data_dir}) is too short: it must have at least "
                f"{SHORTEST_API_KEY} characters. Make another one with `openssl rand -hex 24`, or set "
                "MINION_ALLOW_SHORT_API_KEY=1 where no stranger can reach the API."
            )
        return key

    def require_flower_password(self) -> str:
        """Return Flower's password: `MINION_FLOWER_PASSWORD`, or the one that `minion up` keeps in the data folder.

        Raises:
            NotConfigured: there is none, it can be guessed, or it is an API key.
        """
        password = self.flower_password.get_secret_value().strip() if self.flower_password else ""
        with suppress(OSError, UnicodeDecodeError):
            password = password or (self.data_dir / "flower_password").read_text(encoding="utf-8").strip()
        where = f"MINION_FLOWER_PASSWORD, or the file `flower_password` in {self.data_dir}"
        if not password:
            raise NotConfigured(f"No password for Flower ({where}). Make one with `openssl rand -hex 24`.")
        if len(password) < SHORTEST_API_KEY and not self.allow_short_api_key:
            raise NotConfigured(
                f"The password of Flower ({where}) is too short: it must have at least {SHORTEST_API_KEY} characters. "
                "Make another one with `openssl rand -hex 24`."
            )
        key = None
        with suppress(NotConfigured):
            key = self.require_api_key()
        if password == key:
            raise NotConfigured(
                f"The password of Flower ({where}) is the API key, which may do more than look. Make another one with "
                "`openssl rand -hex 24`."
            )
        return password

    def traces_endpoint(self) -> str | None:
        """Return the address to which spans are posted; None if traces are off.

        `OTEL_SDK_DISABLED=true` and an `OTEL_TRACES_EXPORTER` without `otlp`, such as `none`, turn them off.
        """
        exporters = {name.strip() for name in (self.otel_traces_exporter or "").split(",")} - {""}
        if (self.otel_sdk_disabled or "").lower() == "true" or (exporters and "otlp" not in exporters):
            return None
        base = self.otel_exporter_otlp_endpoint
        return self.otel_exporter_otlp_traces_endpoint or (f"{base.rstrip('/')}/v1/traces" if base else None)

    def server_metrics_token(self) -> str | None:
        """Return the token that is enough to read metrics, if there is one.

        Raises:
            NotConfigured: it cannot be sent in a header, or is so short that it can be guessed.
        """
        token = self.metrics_token.get_secret_value().strip() if self.metrics_token else ""
        if token and not (token.isascii() and token.isprintable() and len(token) >= SHORTEST_API_KEY):
            raise NotConfigured(
                f"Invalid MINION_METRICS_TOKEN: it must be printable ASCII on one line, at least {SHORTEST_API_KEY} "
                "characters. Make another one with `openssl rand -hex 24`."
            )
        return token or None

    def _running(self, name: str) -> str | None:
        """Return a fact about the running `minion up` of this installation, if there is one."""
        try:
            facts: Any = json.loads((self.data_dir / RUN_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(facts, dict) or not _is_alive(facts.get("pid")):
            return None
        value = facts.get(name)
        return value if isinstance(value, str) else None


def secret_variables() -> list[str]:
    """Return the environment variables that hold secrets."""
    fields = Settings.model_fields.items()
    return [variable_of(name) for name, field in fields if SecretStr in get_args(field.annotation)]


def variable_of(field: str) -> str:
    """Return the environment variable of a setting."""
    return str(Settings.model_fields[field].validation_alias or f"MINION_{field.upper()}")


def read_secret_files() -> None:
    """Put secrets that come from files into the environment, for child processes whose secrets are chosen by name.

    Raises:
        NotConfigured: a file cannot be read.
    """
    for name, value in SecretFiles(Settings)().items():
        variable = variable_of(name)
        os.environ[variable] = value
        del os.environ[f"{variable}_FILE"]


def _is_alive(pid: Any) -> bool:
    """Return whether a process of that number runs; after a `kill -9` the file outlives it."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """Return the process's settings, read once.

    Raises:
        NotConfigured: a variable has a value of the wrong type; the message names it.
    """
    try:
        return Settings()
    except ValidationError as error:
        faults = "; ".join(f"{_variable(fault['loc'])}: {requirement(fault['msg'])}" for fault in error.errors())
        raise NotConfigured(f"The environment has invalid settings: {faults}.") from None


def _is_url(url: str, *schemes: str) -> bool:
    """Return whether the clients' own parsers will accept an address; they raise arbitrary exceptions."""
    try:
        parts = urlsplit(url)
        return parts.scheme in schemes and "://" in url and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def is_loopback(host: str | None) -> bool:
    """Return whether a host's name or address means this machine on every machine."""
    if host == "localhost":
        return True
    try:
        return ip_address(host or "").is_loopback
    except ValueError:
        return False


def _is_https_or_loopback(url: str) -> bool:
    parts = urlsplit(url) if _is_http_or_https(url) else None
    return parts is not None and (parts.scheme == "https" or is_loopback(parts.hostname))


def _is_http_or_https(url: str) -> bool:
    if not _is_url(url, "https", "http") or not (url.isascii() and url.isprintable()) or " " in url or "\\" in url:
        return False
    parts = urlsplit(url)
    return bool(parts.hostname) and "@" not in parts.netloc and "?" not in url and "#" not in url


def _is_broker(url: str) -> bool:
    """Return whether the path is a socket's or a database number; with any other, Celery fails with a traceback."""
    parts = urlsplit(url)
    number = parts.path.strip("/")
    return bool(number) if parts.scheme == "unix" else not number or number.isdecimal()


def _is_network(text: str) -> bool:
    try:
        ip_network(text)
    except ValueError:
        return False
    return True


def _variable(location: tuple[int | str, ...]) -> str:
    name = str(location[0])
    return name if name.isupper() else f"MINION_{name.upper()}"
