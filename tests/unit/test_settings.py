"""Settings: sources in their order, errors that name the variable, secrets that stay secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from perf_service.models.errors import ErrorReason, InvalidArgumentError
from perf_service.settings import Settings, describe, engine_environment, load_client_settings, load_settings


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("PERF_SERVICE_"):
            monkeypatch.delenv(name)


def test_defaults_are_safe() -> None:
    settings = load_settings()
    assert settings == Settings()
    assert (settings.host, settings.token, settings.allow_insecure_bind) == ("127.0.0.1", "", False)


def test_command_line_beats_environment_beats_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('port = 1\nhost = "::1"\nlog_level = "debug"\n')
    monkeypatch.setenv("PERF_SERVICE_SETTINGS_FILE", str(file))
    monkeypatch.setenv("PERF_SERVICE_PORT", "2")
    monkeypatch.setenv("PERF_SERVICE_LOG_LEVEL", "warning")
    settings = load_settings(log_level="error", host=None)
    assert (settings.host, settings.port, settings.log_level) == ("::1", 2, "error")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "http"),
        ("PORT", "70000"),
        ("LOG_LEVEL", "loud"),
        ("HEARTBEAT_SECONDS", "0"),
        ("MAX_MESSAGE_BYTES", "-1"),
        ("TLS_CERT_FILE", "/no"),
    ],
)
def test_a_wrong_value_is_named(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"PERF_SERVICE_{variable}", value)
    with pytest.raises(InvalidArgumentError, match="PERF_SERVICE_") as caught:
        load_settings()
    assert caught.value.reason is ErrorReason.SETTINGS_INVALID
    assert caught.value.metadata["allowed"]


@pytest.mark.parametrize("text", ["port = ", "colour = 1"])
def test_a_wrong_file_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(InvalidArgumentError, match=r"settings\.toml|colour"):
        load_settings(file)
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        load_settings(tmp_path / "none.toml")


def test_networks_are_told_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERF_SERVICE_ALLOWED_NETWORKS", "10.0.0.0/8, 192.168.0.0/16")
    settings = load_settings()
    assert (settings.allowed_networks, settings.denied_networks) == (("10.0.0.0/8", "192.168.0.0/16"), None)


def test_every_setting_is_described_and_secrets_are_masked() -> None:
    rows = {row["name"]: row for row in describe(load_settings(token="s3cret", database_url="postgresql+psycopg://u:pw@h/db"))}
    assert list(rows) == list(Settings.__dataclass_fields__)
    assert all(row["description"] for row in rows.values())
    assert rows["token"] == {**rows["token"], "value": "***", "secret": True, "variable": "PERF_SERVICE_TOKEN"}
    assert rows["database_url"]["value"] == "postgresql+psycopg://u:***@h/db"
    assert rows["port"]["is_default"]
    assert "s3cret" not in str(rows)
    assert "pw" not in str(rows)


def test_a_wrong_secret_is_not_repeated(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("token = 12345\n")
    with pytest.raises(InvalidArgumentError) as caught:
        load_settings(file)
    assert "12345" not in caught.value.message


def test_the_client_needs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERF_SERVICE_SERVER", "host:1")
    monkeypatch.setenv("PERF_SERVICE_PORT", "nonsense")
    assert load_client_settings().server == "host:1"


def test_engines_do_not_inherit_our_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERF_SERVICE_TOKEN", "secret")
    monkeypatch.setenv("HF_HOME", "models")
    inherited = engine_environment()
    assert inherited["HF_HOME"] == "models"
    assert not [name for name in inherited if name.startswith("PERF_SERVICE_")]
