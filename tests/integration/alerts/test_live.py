"""The committed rules in a live Prometheus that scrapes two replicas: one whose limit binds, one that is well."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support import alert_cases as cases
from tests.support.prometheus_server import PrometheusServer, running_prometheus
from tests.support.replay import SavedPage, Track

PATIENCE_SECONDS = 60.0


@contextmanager
def replaying(pages: tuple[SavedPage, ...]) -> Iterator[str]:
    """An HTTP server whose page goes on like the run, over and over; yields host:port."""
    track, began = Track(pages), time.monotonic()

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            at = time.monotonic() - began
            lines = (f"{series} {value!r}\n" for series in track.series if (value := track.value(series, at)) is not None)
            body = "".join(lines).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join(5)
        server.server_close()


def hurried(rules: str) -> str:
    """The same rules with a minute as three seconds, so that nobody waits ten of them."""
    shorter = re.sub(r"\[(\d+)m\]", lambda m: f"[{3 * int(m[1])}s]", rules)
    shorter = re.sub(r"for: (\d+)m", lambda m: f"for: {int(m[1])}s", shorter)
    return shorter.replace("interval: 30s", "interval: 1s")


def firing(prometheus: PrometheusServer) -> dict[str, set[str]]:
    """Instances by the alert that fires for them, as an Alertmanager would be told."""
    found: dict[str, set[str]] = {}
    for alert in prometheus.get("/api/v1/alerts")["alerts"]:
        if alert["state"] == "firing":
            found.setdefault(alert["labels"]["alertname"], set()).add(alert["labels"].get("instance", ""))
    return found


def test_a_live_prometheus_tells_the_cause_and_leaves_the_other_alone(tmp_path: Path) -> None:
    rules = tmp_path / "vllm.rules.yaml"
    rules.write_text(hurried((cases.DEPLOYED / "vllm.rules.yaml").read_text()))
    bad, good = cases.capture("b_queue_bad_r2")[1:-1], cases.capture("b_queue_fixed_r2")[1:-1]
    with replaying(bad) as slow, replaying(good) as well:
        jobs = [{"job_name": name, "static_configs": [{"targets": [address]}]} for name, address in (("slow", slow), ("well", well))]
        with running_prometheus(tmp_path / "prometheus", jobs, rule_files=[rules]) as prometheus:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while "LLMBatchLimit" not in (told := firing(prometheus)):
                assert time.monotonic() < deadline, (told, prometheus.targets(), prometheus.log())
                time.sleep(0.5)
            groups = prometheus.get("/api/v1/rules")["groups"]
    assert [rule["lastError"] for group in groups for rule in group["rules"] if rule.get("lastError")] == []
    assert told["LLMBatchLimit"] == {slow}
    assert all(well not in instances for instances in told.values()), told
