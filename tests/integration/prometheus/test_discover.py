"""Ids of discovered engines, and which of them a server has already."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from perf_service.cli import client, discover
from perf_service.cli.discover import ids_of
from perf_service.cli.main import run
from perf_service.collectors.prometheus.history import told_apart
from perf_service.collectors.prometheus.mapping import TargetHistory
from perf_service.models.errors import ConflictError, ErrorReason
from perf_service.models.metrics import Engine
from perf_service.models.redaction import redacted_url
from perf_service.v1 import engine_pb2, fleet_service_pb2, instance_pb2

URL = "http://prometheus:9090"


def target(**labels: str) -> TargetHistory:
    return TargetHistory({"job": "vllm", **labels}, ())


class Server:
    """Instances by id, as the server shows them."""

    def __init__(self) -> None:
        self.stored: dict[str, instance_pb2.Instance] = {}
        self.urls: dict[str, str] = {}  # in full, where it was told one

    def stub(self, _make: Any) -> Any:
        return SimpleNamespace(ListInstances=self.listed, RegisterInstance=self.register)

    def call(self, method: Any, request: Any) -> Any:
        return method(request)

    def listed(self, _request: Any) -> Any:
        return fleet_service_pb2.ListInstancesResponse(instances=self.stored.values())

    def register(self, request: Any) -> None:
        new = request.instance
        if (there := self.stored.get(new.instance_id)) is not None:
            is_same = self.urls.get(new.instance_id, there.prometheus.url) == new.prometheus.url
            raise ConflictError(ErrorReason.INSTANCE_ALREADY_EXISTS, "there", {"prometheus": "same" if is_same else "other"})
        self.urls[new.instance_id], new.prometheus.url = new.prometheus.url, redacted_url(new.prometheus.url)
        self.stored[new.instance_id] = new

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Discovering:
    """The command against a Prometheus with these targets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.server, self.targets, self._capsys, self.said = Server(), list[TargetHistory](), capsys, ""
        monkeypatch.setattr("perf_service.collectors.prometheus.history.engines_now", self._now)
        monkeypatch.setattr(client, "connect", lambda *_, **__: self.server)

    async def _now(self, *_: Any) -> list[tuple[Engine, TargetHistory]]:
        return [(Engine.VLLM, one) for one in sorted(self.targets, key=lambda one: one.name)]

    def __call__(self, code: int = 0, url: str = URL) -> dict[str, str]:
        assert run(["instances", "discover", "--prometheus", url, "--register", "--output", "json"]) == code
        captured = self._capsys.readouterr()
        self.said = captured.err
        return {row["instance_id"]: row["status"] for row in json.loads(captured.out)["engines"]}


@pytest.fixture
def discovering(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Discovering:
    return Discovering(monkeypatch, capsys)


def test_an_id_does_not_depend_on_who_else_is_there() -> None:
    one, two, new = (target(pod="vllm-0", cluster=name, instance="10.0.0.1:8000") for name in ("b", "c", "a"))
    other = target(pod="vllm-1", cluster="a", instance="10.0.0.1:8000")
    assert ids_of([one, two, other]) == ["vllm-0-b", "vllm-0-c", "vllm-1"]
    assert ids_of([new, one, two, other]) == ["vllm-0-a", "vllm-0-b", "vllm-0-c", "vllm-1"]


def test_ids_are_ids_and_each_another_one() -> None:
    found = ids_of([target(pod="x" * 200), target(pod="a b"), target(pod="a-b"), target(pod="///")])
    assert len(set(found)) == 4
    assert all(len(name) <= 128 and discover._id_text(name) == name for name in found)
    assert ids_of([target(pod="a b"), target(pod="a-b")]) == found[1:3]


def test_a_cluster_that_comes_later_shifts_nobody(discovering: Discovering) -> None:
    discovering.targets = [target(pod="vllm-0", cluster=name, instance="10.0.0.1:8000") for name in ("b", "c")]
    assert discovering() == {"vllm-0-b": "registered", "vllm-0-c": "registered"}
    discovering.targets.append(target(pod="vllm-0", cluster="a", instance="10.0.0.1:8000"))
    assert discovering() == {"vllm-0-a": "registered", "vllm-0-b": "already registered", "vllm-0-c": "already registered"}


def test_one_that_is_read_already_keeps_its_id(discovering: Discovering) -> None:
    discovering.targets = [target(pod="vllm-0", cluster="b", instance="10.0.0.1:8000")]
    assert discovering() == {"vllm-0": "registered"}
    discovering.targets.append(target(pod="vllm-0", cluster="a", instance="10.1.0.1:8000"))
    assert discovering() == {"vllm-0": "already registered", "vllm-0-10.1.0.1:8000": "registered"}


@pytest.mark.parametrize(
    "there",
    [
        instance_pb2.PrometheusSource(url="http://other:9090", match='instance="10.0.0.1:8000"'),
        instance_pb2.PrometheusSource(url=URL, match='instance="10.0.0.9:8000"'),
        None,
    ],
)
def test_an_id_of_another_source_is_an_error(discovering: Discovering, there: instance_pb2.PrometheusSource | None) -> None:
    discovering.server.stored["vllm-0"] = instance_pb2.Instance(instance_id="vllm-0", engine=engine_pb2.ENGINE_VLLM, prometheus=there)
    discovering.targets = [target(pod="vllm-0", instance="10.0.0.1:8000"), target(pod="vllm-1", instance="10.0.0.2:8000")]
    assert discovering(1) == {"vllm-0": "not registered", "vllm-1": "registered"}
    assert "not registered: vllm-0:" in discovering.said
    assert discovering.said.count("\n") == 1


def test_a_source_that_selects_several_by_now_is_not_this_one(discovering: Discovering) -> None:
    discovering.targets = [target(pod="vllm-0", cluster=name, instance="10.0.0.1:8000") for name in ("a", "b")]
    assert {len(matchers) for matchers in told_apart(discovering.targets)} == {1}
    discovering.server.stored["old"] = instance_pb2.Instance(
        instance_id="old", engine=engine_pb2.ENGINE_VLLM, prometheus=instance_pb2.PrometheusSource(url=URL, match='pod="vllm-0"')
    )
    assert discovering() == {"vllm-0-a": "registered", "vllm-0-b": "registered"}


def test_another_tenant_behind_the_same_mask_is_not_this_one(discovering: Discovering) -> None:
    """What a URL's query says is shown masked: only the server can tell one tenant from another."""
    discovering.targets = [target(pod="vllm-0", instance="10.0.0.1:8000")]
    assert discovering(url=f"{URL}?tenant=a") == {"vllm-0": "registered"}
    assert discovering(url=f"{URL}?tenant=a") == {"vllm-0": "already registered"}
    assert discovering(1, url=f"{URL}?tenant=b") == {"vllm-0": "not registered"}
    # One that another tenant's engine is read under by hand is passed over; this one has an id of its own.
    discovering.server.stored["by-hand"] = discovering.server.stored.pop("vllm-0")
    discovering.server.stored["by-hand"].instance_id = "by-hand"
    discovering.server.urls = {"by-hand": f"{URL}?tenant=a"}
    assert discovering(url=f"{URL}?tenant=b") == {"vllm-0": "registered"}
    assert discovering(url=f"{URL}?tenant=a") == {"by-hand": "already registered"}
