"""`perf-service serve`: the server in the foreground, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import importlib
import json
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from perf_service.settings import Settings

__all__ = ["serve"]


def serve(
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on [127.0.0.1].", show_default=False)] = None,
    port: Annotated[
        int | None, typer.Option("--port", "-p", help="Port to listen on; 0: any free one [50051].", show_default=False)
    ] = None,
    database_url: Annotated[
        str | None,
        typer.Option("--database-url", help="sqlite:///FILE, sqlite:// or postgresql+psycopg://... [sqlite:///perf_service.db]."),
    ] = None,
    state_dir: Annotated[Path | None, typer.Option("--state-dir", help="Where local targets keep state and logs.")] = None,
    tls_cert_file: Annotated[Path | None, typer.Option("--tls-cert", help="Certificate chain (PEM).")] = None,
    tls_key_file: Annotated[Path | None, typer.Option("--tls-key", help="Private key (PEM).")] = None,
    tls_client_ca_file: Annotated[Path | None, typer.Option("--tls-client-ca", help="Callers must show a certificate of this CA.")] = None,
    allow_insecure_bind: Annotated[
        bool | None, typer.Option("--allow-insecure-bind", help="Listen beyond loopback though callers are not authenticated.")
    ] = None,
    metrics_port: Annotated[int | None, typer.Option("--metrics-port", help="Port of the service's own Prometheus metrics.")] = None,
    admin_port: Annotated[int | None, typer.Option("--admin-port", help="Port of channelz, on loopback only.")] = None,
    scrape: Annotated[bool | None, typer.Option("--scrape/--no-scrape", help="Scrape registered instances in the background.")] = None,
    log_level: Annotated[str | None, typer.Option("--log-level", help="debug, info, warning or error [info].")] = None,
    log_format: Annotated[str | None, typer.Option("--log-format", help="json or console.")] = None,
    settings_file: Annotated[Path | None, typer.Option("--settings", help="TOML file with settings.")] = None,
) -> None:
    """Run the server.

    Every setting is also an environment variable PERF_SERVICE_<NAME> (PERF_SERVICE_TOKEN: the bearer token that callers must
    send); `perf-service system config` lists them all.
    """
    from perf_service.settings import load_settings

    settings = load_settings(
        settings_file,
        host=host,
        port=port,
        database_url=database_url,
        state_dir=state_dir,
        tls_cert_file=tls_cert_file,
        tls_key_file=tls_key_file,
        tls_client_ca_file=tls_client_ca_file,
        allow_insecure_bind=allow_insecure_bind,
        metrics_port=metrics_port,
        admin_port=admin_port,
        scrape=scrape,
        log_level=log_level,
        log_format=log_format,
    )
    run_loop(_serve(settings))


def run_loop(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end, on uvloop where it is installed (`pip install 'perf-service[fast]'`): a tenth less CPU for each scrape."""
    try:
        runner: Any = importlib.import_module("uvloop")
    except ImportError:
        runner = asyncio
    runner.run(work)


async def _serve(settings: Settings) -> None:
    from perf_service.app import build_app
    from perf_service.cli.process import settle

    app = build_app(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await app.start()
    settle()
    try:
        # Whoever started us may wait for this line: with port 0 it alone tells the port.
        print(json.dumps({"event": "listening", "address": f"{settings.host}:{app.port}", "port": app.port}), flush=True)
        if sys.stderr.isatty():
            print("Ctrl-C stops it; rollouts go on where they are when it starts again.", file=sys.stderr)
        await stop.wait()
    finally:
        await app.stop()
