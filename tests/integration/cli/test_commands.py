"""Every client command against a real server, and a rollout watched through a restart of it."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perf_service.cli.main import run as run_in_process

CAPTURES = Path(__file__).parents[2] / "fixtures" / "captures"
Start = Callable[..., "subprocess.Popen[str]"]
EventLine = Callable[["subprocess.Popen[str]", str], dict[str, Any]]
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def serve(start: Start, event_line: EventLine, tmp_path: Path) -> Callable[..., tuple["subprocess.Popen[str]", str]]:
    """Start a server on a store in the test's folder; the process and its address."""

    def call(port: int = 0) -> tuple["subprocess.Popen[str]", str]:
        process = start(
            "serve", "--port", str(port), "--database-url", f"sqlite:///{tmp_path / 'store.db'}", "--state-dir", str(tmp_path / "state"),
            "--log-level", "error",
        )  # fmt: skip
        return process, str(event_line(process, "listening")["address"])

    return call


@pytest.fixture(scope="module")
def shared_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for the tests that only need some server; each uses ids of its own."""
    folder = tmp_path_factory.mktemp("server")
    command = [sys.executable, "-m", "perf_service.cli", "serve", "--port", "0", "--database-url", f"sqlite:///{folder / 'store.db'}"]
    process = subprocess.Popen(
        [*command, "--state-dir", str(folder / "state"), "--log-level", "error"],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    yield str(json.loads(process.stdout.readline())["address"])
    process.terminate()
    process.wait(20)
    process.stdout.close()


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], shared_address: str, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run client commands in this process: exit code, stdout, stderr."""
    monkeypatch.setenv("PERF_SERVICE_SERVER", shared_address)
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run_in_process(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def ok(result: tuple[int, str, str]) -> str:
    code, out, err = result
    assert (code, err) == (0, ""), err
    return out


def test_fleets_and_instances_from_create_to_delete(cli: Cli) -> None:
    out = ok(cli("fleets", "create", "chat", "--engine", "vllm", "--model", "llama", "--slo", "ttft_p95<500ms", "--label", "team=search"))
    assert "chat" in out
    assert "ttft_p95 < 0.5" in out
    assert json.loads(ok(cli("fleets", "get", "chat", "-o", "json")))["fleet"]["target"]["kind"] == "TARGET_KIND_DRY_RUN"
    ok(cli("fleets", "update", "chat", "--name", "The chat fleet"))
    (fleet,) = (f for f in json.loads(ok(cli("fleets", "list", "-o", "json")))["fleets"] if f["fleet_id"] == "chat")
    assert (fleet["display_name"], fleet["model_name"], fleet["labels"]) == ("The chat fleet", "llama", {"team": "search"})
    ok(cli("instances", "register", "r0", "--endpoint", "http://127.0.0.1:9", "--fleet", "chat", "--config", "max-num-seqs=256"))
    table = ok(cli("instances", "list", "--fleet", "chat"))
    assert "max_num_seqs=256" in table
    assert "never" in table
    ok(cli("instances", "update", "r0", "--engine-version", "0.32.0", "--config", "max_num_seqs=8"))
    instance = json.loads(ok(cli("instances", "get", "r0", "-o", "json")))["instance"]
    assert (instance["engine_version"], instance["endpoint"]) == ("0.32.0", "http://127.0.0.1:9")
    assert instance["config"]["settings"]["max_num_seqs"]["value"] == {"int_value": "8"}
    code, _, err = cli("fleets", "delete", "chat")
    assert code == 1
    assert "FLEET_NOT_EMPTY" in err
    ok(cli("instances", "deregister", "r0"))
    ok(cli("fleets", "delete", "chat"))
    assert "chat" not in ok(cli("fleets", "list"))


def test_collect_analyze_plan_predict_from_imported_pages(cli: Cli, tmp_path: Path) -> None:
    ok(cli("instances", "register", "pages", "--endpoint", "http://127.0.0.1:9", "--scrape-interval", "3600"))
    folder = CAPTURES / "b_queue_bad_r2"
    times = [json.loads(line) for line in (folder / "scrapes.jsonl").read_text().splitlines()]
    shift = time.time() - times[-1]["t_unix"] - 1.0
    for entry in times:
        ok(cli("collect", "import", "pages", str(folder / entry["file"]), "--at", str(entry["t_unix"] + shift)))
    assert ok(cli("collect", "list", "pages")).count("snap-") == len(times)
    # The same pages from a directory, and one more that nobody would keep.
    index = [{"file": e["file"], "t_unix": e["t_unix"] + shift} for e in times] + [{"file": times[0]["file"], "t_unix": 1.0}]
    (tmp_path / "scrapes.jsonl").write_text("\n".join(map(json.dumps, index)))
    for entry in times:
        shutil.copy(folder / entry["file"], tmp_path)
    told = ok(cli("collect", "import", "pages", str(tmp_path)))
    assert f"{len(times)} of moments that were stored before; 1 older than what the server keeps, not stored" in " ".join(told.split())
    assert json.loads(ok(cli("collect", "import", "pages", str(tmp_path), "-o", "json"))) == {
        "stored": 0,
        "already_stored": len(times),
        "too_old": 1,
        "refused": [],
    }
    assert ok(cli("collect", "list", "pages")).count("snap-") == len(times)
    (tmp_path / "scrapes.jsonl").unlink()
    assert "when the pages" in cli("collect", "import", "pages", str(tmp_path))[2]
    table = ok(cli("analyze", "pages"))
    assert "batch limit" in table
    assert "MEASURED" in table
    analyses = json.loads(ok(cli("analyze", "list", "-o", "json")))["analyses"]
    assert analyses[0]["bottlenecks"][0]["cause"] == "CAUSE_BATCH_LIMIT"
    plan = json.loads(ok(cli("plan", "--analysis", analyses[0]["analysis_id"], "-o", "json")))["plan"]
    assert plan["changes"][0]["parameter"] == "max_num_seqs"
    assert "--max-num-seqs" in ok(cli("plan", "get", plan["plan_id"]))
    assert plan["plan_id"] in ok(cli("plan", "list", "pages"))
    assert "ttft mean" in ok(cli("predict", "pages", "--what-if", "max_num_seqs=64"))
    assert "--max-num-seqs" in ok(cli("plan", "knobs", "vllm"))
    assert "0 rollouts" in ok(cli("plan", "track-record"))


def test_a_scrape_of_a_dead_engine_says_so(cli: Cli) -> None:
    ok(cli("instances", "register", "dead", "--endpoint", "http://127.0.0.1:9"))
    code, out, err = cli("collect", "dead")
    assert (code, out) == (1, "")
    assert "ENDPOINT_UNREACHABLE" in err
    assert err.count("\n") == 1
    ok(cli("instances", "update", "dead", "--scrape-interval", "1"))
    deadline = time.monotonic() + 20
    while "down for" not in (table := " ".join(ok(cli("instances", "list")).split())):
        assert time.monotonic() < deadline, table
        time.sleep(0.2)


def test_system_tells_about_the_server(cli: Cli) -> None:
    assert "perf_service.v1" in ok(cli("system", "version"))
    assert "PERF_SERVICE_DATABASE_URL" in ok(cli("system", "config"))
    assert "engine vllm" in ok(cli("system", "capabilities"))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("fleets", "get", "nope"), 1, "FLEET_NOT_FOUND"),
        (("fleets", "create", "bad id!"), 2, "fleet_id"),
        (("fleets", "create", "x", "--engine", "triton"), 2, "triton"),
        (("fleets", "create", "x", "--target", "cloud"), 2, "cloud"),
        (("fleets", "update", "x"), 2, "nothing to change"),
        (("analyze", "run"), 2, "--fleet"),
        (("predict", "r0"), 2, "--what-if"),
        (("plan", "r0", "--fleet", "f"), 2, "--fleet"),
        (("rollout", "start", "--fleet", "f", "--stages", "50,10"), 2, "--stages"),
        (("rollout", "list", "--status", "sleeping"), 2, "sleeping"),
        (("rollout", "watch", "wf-nope"), 1, "WORKFLOW_NOT_FOUND"),
        (("rollout", "abort", "wf-nope"), 1, "WORKFLOW_NOT_FOUND"),
        (("collect", "import", "r0", "/no/such/page"), 2, "no file"),
    ],
)
def test_a_refusal_is_one_line(cli: Cli, arguments: tuple[str, ...], code: int, words: str) -> None:
    got, out, err = cli(*arguments)
    assert (got, out) == (code, ""), err
    assert words in err
    assert err.count("\n") == 1


def test_no_server_is_a_friendly_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_in_process(["fleets", "list", "--server", "127.0.0.1:9"]) == 1
    err = capsys.readouterr().err
    assert "perf-service serve" in err
    assert err.count("\n") == 1


def test_a_rollout_waits_for_approval_and_is_watched_to_its_end(cli: Cli, start: Start, event_line: EventLine) -> None:
    engine = start("simulate-engine", "--port", "0", "--startup-seconds", "0")
    url = f"http://127.0.0.1:{event_line(engine, 'listening')['port']}"
    ok(cli("fleets", "create", "walk"))
    ok(cli("instances", "register", "walked", "--endpoint", url, "--fleet", "walk", "--scrape-interval", "1"))
    timing = ("--bake", "1", "--sample-interval", "0.5", "--warmup", "0")
    started = json.loads(ok(cli("rollout", "start", "--fleet", "walk", "--change", "max_num_seqs=64", *timing, "-o", "json")))
    workflow_id = started["workflow"]["workflow_id"]
    code, _, err = cli("rollout", "start", "--fleet", "walk", "--change", "max_num_seqs=32", *timing)
    assert code == 1
    assert "WORKFLOW_ACTIVE_ON_FLEET" in err
    status = ""
    for _ in range(100):
        status = json.loads(ok(cli("rollout", "get", workflow_id, "-o", "json")))["workflow"]["status"]
        if status == "WORKFLOW_STATUS_AWAITING_APPROVAL":
            break
    assert status == "WORKFLOW_STATUS_AWAITING_APPROVAL"
    assert workflow_id in cli("rollout", "list")[1].split()  # in one piece, to be copied
    assert "paused" in ok(cli("rollout", "pause", workflow_id, "--by", "ann"))
    ok(cli("rollout", "resume", workflow_id))
    ok(cli("rollout", "approve", workflow_id, "--by", "ann", "--reason", "as planned"))
    lines = ok(cli("rollout", "watch", workflow_id)).splitlines()
    assert lines[0] == f"{workflow_id} over walk"
    assert not any("rollout approve" in line for line in lines)  # decided before the watch began
    assert any("approved by ann" in line for line in lines)
    sequences = [int(found[1]) for line in lines if (found := re.match(r" *(\d+) [a-z]", line))]
    assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))
    assert "completed" in ok(cli("rollout", "get", workflow_id)).lower()
    assert workflow_id in ok(cli("rollout", "list", "--status", "completed"))
    assert json.loads(ok(cli("rollout", "watch", workflow_id, "-o", "json")).splitlines()[0])["snapshot"]["workflow_id"] == workflow_id


def test_watch_survives_a_restart_of_the_server(
    serve: Callable[..., tuple["subprocess.Popen[str]", str]], start: Start, event_line: EventLine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = start("simulate-engine", "--port", "0", "--startup-seconds", "0")
    url = f"http://127.0.0.1:{event_line(engine, 'listening')['port']}"
    first, address = serve()
    to = ("--server", address)
    assert run_in_process(["fleets", "create", "chat", *to]) == 0
    assert run_in_process(["instances", "register", "r0", "--endpoint", url, "--fleet", "chat", *to]) == 0
    capsys.readouterr()
    timing = ("--bake", "2", "--sample-interval", "0.5", "--warmup", "0")
    change = ("--change", "max_num_seqs=64", "--no-approval")
    assert run_in_process(["rollout", "start", "--fleet", "chat", *change, *timing, "-o", "json", *to]) == 0
    workflow_id = json.loads(capsys.readouterr().out)["workflow"]["workflow_id"]
    watch = start("rollout", "watch", workflow_id, *to)
    assert watch.stdout is not None
    seen = [watch.stdout.readline()]
    first.kill()  # no farewell
    first.wait()
    serve(int(address.rpartition(":")[2]))
    rest, errors = watch.communicate(timeout=60)
    assert watch.returncode == 0, errors
    lines = [*seen, *rest.splitlines()]
    assert any("reconnecting" in line for line in lines)
    sequences = [int(found[1]) for line in lines if (found := re.match(r" *(\d+) [a-z]", line))]
    assert sequences == sorted(set(sequences))
    assert any("completed" in line for line in lines)
