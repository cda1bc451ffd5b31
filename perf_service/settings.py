"""The service's settings: the only reader of the environment.

A value comes from, strongest first: the command line, an environment variable `PERF_SERVICE_<NAME>`, the TOML file that
`PERF_SERVICE_SETTINGS_FILE` names, the default.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_type_hints

from pydantic import BeforeValidator, Field, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, InitSettingsSource, NoDecode, SettingsConfigDict

from perf_service.models.errors import ErrorReason, InvalidArgumentError

__all__ = ["ClientSettings", "Settings", "describe", "load_client_settings", "load_settings"]

PREFIX = "PERF_SERVICE_"
FILE_VARIABLE = "PERF_SERVICE_SETTINGS_FILE"
_SECRET = {"secret": True}


def _split(value: Any) -> Any:
    """Lists are told with commas."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that an operator may set on the server."""

    host: Annotated[str, Field(min_length=1, description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on; 0: any free one.")] = 50051
    database_url: Annotated[
        str,
        Field(
            description="The store: sqlite:///file.db, sqlite:// (in memory) or postgresql+psycopg://user@host/database.",
            json_schema_extra={"url": True},
        ),
    ] = "sqlite:///perf_service.db"
    lock_timeout_seconds: Annotated[float, Field(gt=0, le=600, description="How long to wait for a store that another process locks.")] = (
        5.0
    )
    state_dir: Annotated[Path, Field(description="Where local targets keep the state and the logs of their engines.")] = Path(
        "perf_service_state"
    )
    token: Annotated[str, Field(description="Bearer token that callers must send. Empty: none asked for.", json_schema_extra=_SECRET)] = ""
    tls_cert_file: Annotated[Path | None, Field(description="The server's certificate chain (PEM).")] = None
    tls_key_file: Annotated[Path | None, Field(description="The server's private key (PEM).")] = None
    tls_client_ca_file: Annotated[Path | None, Field(description="Authority of client certificates (PEM). Set: clients must show one.")] = (
        None
    )
    local_targets: Annotated[
        bool | None,
        Field(description="Let callers have engines started on this host, by commands they give. Unset: only when listening on loopback."),
    ] = None
    allow_insecure_bind: Annotated[bool, Field(description="Listen beyond loopback although callers are not authenticated.")] = False
    reflection: Annotated[bool, Field(description="Let tools list the services.")] = True
    admin_port: Annotated[int | None, Field(ge=0, le=65535, description="Port of channelz, on loopback only. Unset: off.")] = None
    metrics_port: Annotated[int | None, Field(ge=0, le=65535, description="Port of the service's own Prometheus metrics. Unset: off.")] = (
        None
    )
    max_message_bytes: Annotated[int, Field(ge=1024, le=2**30, description="Largest request in bytes.")] = 16 * 1024 * 1024
    max_concurrent_calls: Annotated[int, Field(ge=1, description="Calls served at a time.")] = 256
    max_concurrent_streams: Annotated[int, Field(ge=1, description="Streams served at a time.")] = 2048
    heartbeat_seconds: Annotated[float, Field(gt=0, le=3600, description="Silence after which a stream sends a heartbeat.")] = 15.0
    watch_poll_seconds: Annotated[float, Field(gt=0, le=60, description="How often WatchMetrics looks for new snapshots.")] = 1.0
    drain_seconds: Annotated[float, Field(ge=0, le=600, description="Time for running calls to end when the server stops.")] = 10.0
    scrape: Annotated[bool, Field(description="Scrape registered instances in the background.")] = True
    scrape_concurrency: Annotated[int, Field(ge=1, le=10_000, description="Scrapes at a time; one that hangs holds its place.")] = 1024
    scrape_timeout_seconds: Annotated[float, Field(gt=0, le=600, description="Time for one scrape.")] = 10.0
    scrape_compressed: Annotated[
        bool, Field(description="Ask engines for packed pages: a tenth of the traffic, for more CPU on both sides.")
    ] = False
    max_page_bytes: Annotated[int, Field(ge=1024, description="Largest metrics page in bytes.")] = 16 * 1024 * 1024
    allowed_networks: Annotated[
        tuple[str, ...],
        NoDecode,
        BeforeValidator(_split),
        Field(description="Networks (CIDR) that may be scraped. Empty: all that are not denied."),
    ] = ()
    denied_networks: Annotated[
        tuple[str, ...] | None,
        NoDecode,
        BeforeValidator(_split),
        Field(description="Networks (CIDR) that are never scraped. Unset: link-local ones."),
    ] = None
    raw_hours: Annotated[float, Field(gt=0, description="How long every snapshot is kept; older ones are thinned.")] = 24.0
    thinned_interval_seconds: Annotated[
        float, Field(ge=1, le=86_400, description="Of older snapshots one per this time is kept, and both sides of every restart.")
    ] = 300.0
    thinned_hours: Annotated[float, Field(gt=0, description="Snapshots older than this are thinned further.")] = 14 * 24.0
    coarse_interval_seconds: Annotated[
        float, Field(ge=1, le=86_400, description="Of those one per this time is kept, and both sides of every restart.")
    ] = 3600.0
    retention_hours: Annotated[float, Field(gt=0, description="How long snapshots are kept at all.")] = 90 * 24.0
    lease_seconds: Annotated[float, Field(ge=1, le=600, description="After this long another server takes a dead one's rollouts over.")] = (
        15.0
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="Least level that is logged.")] = "info"
    log_format: Annotated[Literal["json", "console"], Field(description="Shape of the log lines.")] = "json"


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """What the command line's client commands need."""

    server: Annotated[str, Field(min_length=1, description="HOST:PORT of the server.")] = "127.0.0.1:50051"
    token: Annotated[str, Field(description="Bearer token to send.", json_schema_extra=_SECRET)] = ""
    prometheus_token: Annotated[
        str, Field(description="Bearer token of the Prometheus that a command reads.", json_schema_extra=_SECRET)
    ] = ""


S = TypeVar("S", Settings, ClientSettings)


def load_settings(file: Path | None = None, **overrides: Any) -> Settings:
    """The server's settings. Overrides that are None count as not given.

    Raises InvalidArgumentError SETTINGS_INVALID that names the variable, its value and what is allowed.
    """
    told = file or (Path(name) if (name := os.environ.get(FILE_VARIABLE)) else None)
    settings = _load(Settings, _read(told) if told else {}, {k: v for k, v in overrides.items() if v is not None})
    if (settings.tls_cert_file is None) != (settings.tls_key_file is None):
        raise _invalid("TLS_KEY_FILE", str(settings.tls_key_file), "tls_cert_file and tls_key_file must be given together")
    if settings.tls_client_ca_file is not None and settings.tls_cert_file is None:
        raise _invalid("TLS_CLIENT_CA_FILE", str(settings.tls_client_ca_file), "client certificates need tls_cert_file and tls_key_file")
    for name in ("tls_cert_file", "tls_key_file", "tls_client_ca_file"):
        path = getattr(settings, name)
        if path is not None and not path.is_file():
            raise _invalid(name.upper(), str(path), "there is no such file")
    return settings


def engine_environment() -> dict[str, str]:
    """What engines that this host starts inherit: our environment without our own settings, which may hold secrets."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PERF_SERVICE_")}


def load_client_settings(**overrides: Any) -> ClientSettings:
    """The client's settings. Raises as `load_settings`."""
    return _load(ClientSettings, {}, {k: v for k, v in overrides.items() if v is not None})


def describe(settings: Settings) -> list[dict[str, Any]]:
    """Each setting with its variable, value as text (secrets and passwords masked) and meaning."""
    rows = []
    defaults = Settings()
    for field, info in _field_infos(Settings).items():
        value, extra = getattr(settings, field), info.json_schema_extra or {}
        text = "" if value is None else ",".join(value) if isinstance(value, tuple) else str(value)
        if extra.get("secret") and text:
            text = "***"
        if extra.get("url"):
            text = _without_password(text)
        rows.append(
            {
                "name": field,
                "variable": PREFIX + field.upper(),
                "value": text,
                "is_default": value == getattr(defaults, field),
                "secret": bool(extra.get("secret")),
                "description": info.description or "",
            }
        )
    return rows


def _load(kind: type[S], file: dict[str, Any], overrides: dict[str, Any]) -> S:
    hints = get_type_hints(kind, include_extras=True)
    shape: dict[str, Any] = {field.name: (hints[field.name], field.default) for field in fields(kind)}
    model: Any = create_model(kind.__name__, __base__=_reader(file), **shape)
    try:
        loaded = model(**overrides)
    except ValidationError as error:
        raise _explained(error) from None
    return kind(**{field.name: getattr(loaded, field.name) for field in fields(kind)})


def _reader(file: Mapping[str, Any]) -> type[BaseSettings]:
    """Reads overrides, then the environment, then the file."""

    class Reader(BaseSettings):
        model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], init_settings: Any, env_settings: Any, dotenv_settings: Any, file_secret_settings: Any
        ) -> tuple[Any, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, dict(file))

    return Reader


def _field_infos(kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: next(m for m in hints[field.name].__metadata__ if isinstance(m, FieldInfo)) for field in fields(kind)}


def _explained(error: ValidationError) -> InvalidArgumentError:
    """The first problem in words: which variable, which value, what is allowed."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        known = ", ".join(field.name for field in fields(Settings))
        return _invalid(name.upper(), str(first["input"]), f"there is no setting {name!r}; known: {known}")
    secret = name in ("token", "prometheus_token")
    return _invalid(name.upper(), "***" if secret else repr(first["input"]), first["msg"][:1].lower() + first["msg"][1:])


def _invalid(name: str, value: str, allowed: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{PREFIX}{name} is {value}: {allowed}",
        field=name.lower(),
        reason=ErrorReason.SETTINGS_INVALID,
        metadata={"setting": PREFIX + name, "value": value, "allowed": allowed},
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _invalid("SETTINGS_FILE", str(path), f"the file cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _invalid("SETTINGS_FILE", str(path), f"the file is not TOML: {error}") from error


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}{separator}{user.partition(':')[0]}:***@{host}" if at and ":" in user else url
