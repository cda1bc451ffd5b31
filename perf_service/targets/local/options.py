"""The local target's options: plain strings of a `TargetSpec`, checked with errors that name the option and say what it should be.

| option | meaning | default |
|---|---|---|
| command | the engine's command line; {port} and {flags} must be in it, {host}, {instance_id}, {model} and {python} may be | (needed) |
| ports | "8101,8102", "8101-8104", or the first one: one a replica in the order of the ids | of the endpoints |
| host | the address that the engines listen on | 127.0.0.1 |
| state_dir | where state and log files lie | the service's |
| startup_timeout_seconds | from the start to the first completion | 900 |
| stop_timeout_seconds | from SIGTERM to SIGKILL | 30 |
| probe_path, probe_body | the completion that proves readiness | the engine's own |
| health_path | asked at every look | /health |
| env.NAME | an environment variable of the engines | |
"""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from perf_service.models.errors import InvalidArgumentError
from perf_service.models.fleet import Instance
from perf_service.models.metrics import Engine

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_PLACEHOLDERS = ("port", "host", "flags", "python", "instance_id", "model")
_NAMES = (
    "command", "ports", "host", "state_dir", "startup_timeout_seconds", "stop_timeout_seconds", "probe_path", "probe_body", "health_path",
)  # fmt: skip
LOOPBACK = "127.0.0.1"  # the default: an engine has no authentication of its own
_EXAMPLE = "vllm serve MODEL --host {host} --port {port} {flags}"
_VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")


def _invalid(option: str, message: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"target option {option!r}: {message}", field=f"target.options[{option}]")


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """Checked options. `ports` empty: each replica's endpoint says its own."""

    command: tuple[str, ...]
    ports: tuple[int, ...] = ()
    base_port: int | None = None
    host: str = LOOPBACK
    state_dir: Path | None = None
    startup_timeout_seconds: float = 900.0  # a large model takes minutes to load and compile
    stop_timeout_seconds: float = 30.0
    probe_path: str = ""
    probe_body: Mapping[str, Any] | None = None
    health_path: str = "/health"
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, options: Mapping[str, str]) -> LocalOptions:
        """Raises InvalidArgumentError that names the option."""
        for name in options:
            if name not in _NAMES and not name.startswith("env."):
                raise _invalid(name, f"there is no such option; there are {', '.join(_NAMES)} and env.NAME")
        ports, base = _ports(options.get("ports", ""))
        return cls(
            command=_command(options.get("command", "")),
            ports=ports,
            base_port=base,
            host=options.get("host", "") or LOOPBACK,
            state_dir=Path(options["state_dir"]) if options.get("state_dir") else None,
            startup_timeout_seconds=_seconds(options, "startup_timeout_seconds", 900.0),
            stop_timeout_seconds=_seconds(options, "stop_timeout_seconds", 30.0),
            probe_path=_path(options, "probe_path", ""),
            probe_body=_body(options.get("probe_body", "")),
            health_path=_path(options, "health_path", "/health"),
            environment=_environment(options),
        )

    def port_of(self, instances: Sequence[Instance]) -> dict[str, int]:
        """Each replica's port. Raises InvalidArgumentError where one has none, or two have the same."""
        ordered = sorted(instances, key=lambda i: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", i.instance_id)])
        if self.ports and len(self.ports) < len(ordered):
            raise _invalid("ports", f"names {len(self.ports)} ports for {len(ordered)} replicas")
        found: dict[str, int] = {}
        for index, instance in enumerate(ordered):
            told = endpoint_port(instance.endpoint)
            port = self.ports[index] if self.ports else self.base_port + index if self.base_port else told
            if port is None:
                raise _invalid("ports", f"is needed: the endpoint {instance.endpoint!r} of {instance.instance_id!r} names no port")
            if told is not None and told != port:
                raise _invalid("ports", f"gives {instance.instance_id!r} port {port}, but its endpoint is {instance.endpoint!r}")
            if port in found.values():
                raise _invalid("ports", f"port {port} is used by more than one replica")
            found[instance.instance_id] = port
        return found

    def argv(self, *, port: int, instance_id: str, model: str, flags: Sequence[str]) -> list[str]:
        """The command line of one replica."""
        values = {"port": str(port), "host": self.host, "python": sys.executable, "instance_id": instance_id, "model": model}
        words: list[str] = []
        for word in self.command:
            if word == "{flags}":
                words.extend(flags)
            else:
                words.append(_PLACEHOLDER.sub(lambda match: values[match[1]], word))
        return words

    def probe(self, engine: Engine, model: str) -> tuple[str, Mapping[str, Any]]:
        """Path and body of a completion of one token."""
        body: Mapping[str, Any]
        if engine is Engine.TGI:
            path, body = "/generate", {"inputs": "ping", "parameters": {"max_new_tokens": 1}}
        else:
            path, body = "/v1/completions", {"model": model, "prompt": "ping", "max_tokens": 1}
        return self.probe_path or path, body if self.probe_body is None else self.probe_body


def _command(text: str) -> tuple[str, ...]:
    if not text.strip():
        raise _invalid("command", f"is needed: the engine's command line, for example '{_EXAMPLE}'")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise _invalid("command", f"cannot be split into words ({error}): check its quotes") from error
    for word in words:
        for match in _PLACEHOLDER.finditer(word):
            if match[1] not in _PLACEHOLDERS:
                known = ", ".join(f"{{{name}}}" for name in _PLACEHOLDERS)
                raise _invalid("command", f"{match[0]} is not a placeholder; there are {known}")
    if "{flags}" not in words:
        raise _invalid("command", f"needs {{flags}} as a word of its own, where the changed flags go: for example '{_EXAMPLE}'")
    if any("{flags}" in word and word != "{flags}" for word in words):
        raise _invalid("command", "{flags} must be a word of its own, outside quotes: it becomes several words")
    if not any("{port}" in word for word in words):
        raise _invalid("command", f"needs {{port}}: each replica listens on its own, for example '{_EXAMPLE}'")
    return tuple(words)


def _ports(text: str) -> tuple[tuple[int, ...], int | None]:
    if not text.strip():
        return (), None
    ports: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.strip().partition("-")
            ports.extend(range(int(first), int(last or first) + 1))
    except ValueError as error:
        raise _invalid("ports", f"{text!r} is not a list of ports: write '8101,8102', '8101-8104', or the first port") from error
    if not ports or any(not 0 < port < 65536 for port in ports) or len(set(ports)) != len(ports):
        raise _invalid("ports", f"{text!r} must name different ports from 1 to 65535")
    return ((), ports[0]) if len(ports) == 1 else (tuple(ports), None)


def _seconds(options: Mapping[str, str], name: str, default: float) -> float:
    text = options.get(name, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 86_400:
        raise _invalid(name, f"must be seconds between 0 and 86400, not {text!r}")
    return value


def _path(options: Mapping[str, str], name: str, default: str) -> str:
    text = options.get(name, "")
    if text and not text.startswith("/"):
        raise _invalid(name, f"must start with '/', not {text!r}")
    return text or default


def _body(text: str) -> Mapping[str, Any] | None:
    if not text:
        return None
    try:
        body = json.loads(text)
    except ValueError as error:
        raise _invalid("probe_body", f"is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise _invalid("probe_body", f"must be a JSON object, not {text!r}")
    return body


def _environment(options: Mapping[str, str]) -> dict[str, str]:
    found = {name.removeprefix("env."): value for name, value in options.items() if name.startswith("env.")}
    for name in found:
        if not _VARIABLE.match(name):
            raise _invalid(f"env.{name}", "is not the name of an environment variable")
    return found


def endpoint_port(endpoint: str) -> int | None:
    """The port that an endpoint names, None where it names none. Raises InvalidArgumentError."""
    try:
        return urlsplit(endpoint if "://" in endpoint else f"http://{endpoint}").port
    except ValueError as error:
        raise InvalidArgumentError(f"endpoint {endpoint!r} has no valid port: {error}", field="endpoint") from error
