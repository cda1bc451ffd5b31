"""`doctor` over saved pages of real engines: what it prints, what it promises as JSON, and how it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perf_service.cli.main import run

CAPTURES = Path(__file__).parents[2] / "fixtures" / "captures"
BAD = CAPTURES / "b_queue_bad_r2"

Doctor = Callable[..., tuple[int, str, str]]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Run the command; exit code, stdout, stderr."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = run(["doctor", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_of_a_folder_names_the_cause_and_the_change(doctor: Doctor) -> None:
    code, out, err = doctor(BAD, "--output", "json", "--config", "max_num_seqs=2", "--what-if", "max_num_seqs=64")
    assert (code, err) == (0, "")
    result = strict_json(out)
    assert set(result) == {"snapshot", "analysis", "plan", "prediction"}
    first = result["analysis"]["bottlenecks"][0]
    assert (first["cause"], first["verdict"]) == ("batch_limit", "tune")
    assert first["type"] in {"queue_buildup", "batch_size_suboptimal"}
    assert 0 <= result["analysis"]["health_score"] < 80
    assert result["analysis"]["data_quality"]["usable"] is True
    change = result["plan"]["optimizations"][0]["config_changes"][0]
    assert (change["parameter"], change["current_value"]) == ("max_num_seqs", 2)
    assert change["recommended_value"] > 2
    assert result["snapshot"]["engine"] == "vllm"
    assert result["snapshot"]["pages"] == 6
    assert result["snapshot"]["counters"]["generation_tokens"] > 0


def test_a_what_if_has_values_with_intervals(doctor: Doctor) -> None:
    _, out, _ = doctor(BAD, "-o", "json", "--what-if", "max_num_seqs=64")
    prediction = strict_json(out)["prediction"]
    for name in ("ttft_seconds", "itl_seconds", "e2e_seconds"):
        for statistic in ("mean", "p50", "p95"):
            estimate = prediction[name][statistic]
            assert estimate["low"] <= estimate["value"] <= estimate["high"], (name, statistic)
    throughput = prediction["throughput_tokens_per_second"]
    assert throughput["value"] > prediction["baseline"]["throughput_tokens_per_second"]["value"]
    assert prediction["ttft_seconds"]["mean"]["value"] < prediction["baseline"]["ttft_seconds"]["mean"]["value"]


def test_the_table_tells_cause_evidence_verdict_change_and_effect_at_80_columns(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = doctor(BAD)
    assert code == 0
    order = [
        out.index(label)
        for label in ("CAUSE", "SYMPTOMS", "EVIDENCE", "VERDICT", "SLO", "HEALTH", "MEASURED", "CHANGE", "COMMAND", "EFFECT")
    ]
    assert order == sorted(order)
    assert "batch limit" in out
    assert "--max-num-seqs 64" in out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_pages_without_times_give_no_rates_and_say_so(doctor: Doctor) -> None:
    pages = [BAD / "000.prom.gz", BAD / "017.prom.gz"]
    _, out, _ = doctor(*pages, "-o", "json")
    result = strict_json(out)
    assert result["analysis"]["bottlenecks"][0]["cause"] == "batch_limit"
    window = result["analysis"]["window"]
    assert window["duration_seconds"] is None
    assert set(window["rates_per_second"].values()) == {None}
    assert any(issue["code"] == "time_unknown" for issue in result["analysis"]["data_quality"]["issues"])
    _, table, _ = doctor(*pages)
    assert "--interval" in table


def test_an_interval_gives_the_rates_back(doctor: Doctor) -> None:
    _, out, _ = doctor(BAD / "000.prom.gz", BAD / "017.prom.gz", "--interval", "34", "-o", "json")
    window = strict_json(out)["analysis"]["window"]
    assert window["duration_seconds"] == pytest.approx(34.0)
    assert window["rates_per_second"]["generation_tokens"] > 100


def test_one_page_is_lifetime_totals_and_flagged(doctor: Doctor) -> None:
    code, out, _ = doctor(BAD / "017.prom.gz", "-o", "json")
    assert code == 0
    analysis = strict_json(out)["analysis"]
    assert analysis["window"]["lifetime"] is True
    assert any(issue["code"] == "lifetime_only" for issue in analysis["data_quality"]["issues"])


def test_an_idle_engine_is_neither_healthy_nor_sick(doctor: Doctor) -> None:
    code, out, _ = doctor(CAPTURES / "g_idle", "-o", "json")
    assert code == 0
    result = strict_json(out)
    assert result["analysis"]["health_score"] is None
    assert result["analysis"]["bottlenecks"] == []
    assert result["plan"]["changes"] == []


def test_objectives_are_judged(doctor: Doctor) -> None:
    _, out, _ = doctor(BAD, "--slo", "ttft_p95<0.5", "--slo", "throughput>1", "-o", "json")
    statuses = {s["objective"]: s["state"] for s in strict_json(out)["analysis"]["slo_statuses"]}
    assert statuses == {"ttft_p95 < 0.5": "missed", "throughput > 1": "met"}


def _page(folder: Path, body: bytes) -> Path:
    path = folder / "page.prom"
    path.write_bytes(body)
    return path


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b"<html><body>404</body></html>", "HTML"),
        (b"\x00\x01\x02binary\x00", "binary"),
        (b"go_gc_duration_seconds 1\n", "vLLM"),
    ],
)
def test_what_is_no_page_fails_with_one_line(doctor: Doctor, tmp_path: Path, body: bytes, words: str) -> None:
    code, out, err = doctor(_page(tmp_path, body))
    assert (code, out) == (1, "")
    assert words in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_another_engine_than_told_is_refused(doctor: Doctor) -> None:
    code, _, err = doctor(BAD, "--engine", "sglang")
    assert code == 1
    assert "vllm" in err


def test_a_page_of_another_engine_among_the_pages_is_refused(doctor: Doctor) -> None:
    code, _, err = doctor(BAD / "000.prom.gz", next((CAPTURES / "sglang_kv_pressure_synthetic").glob("*.prom.gz")))
    assert code == 1
    assert "sglang" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/no/such/page.prom"], "no file or directory"),
        ([BAD, "--engine", "triton"], "triton"),
        ([BAD, "--slo", "ttft"], "objective"),
        ([BAD, "--slo", "beauty<1"], "beauty"),
        ([BAD, "--config", "max_num_seqs"], "NAME=VALUE"),
        ([BAD, "--what-if", "no_such_knob=1"], "no_such_knob"),
        ([BAD, "--what-if", "max_num_seqs=-3"], "max_num_seqs"),
        ([BAD, "--interval", "0"], "interval"),
        ([BAD, "--output", "xml"], "xml"),
        ([], "PAGE"),
        (["http://127.0.0.1:1", str(BAD)], "one URL"),
        (["ftp://127.0.0.1/x"], "ftp"),
        ([BAD / "017.prom.gz", BAD / "000.prom.gz"], "give the oldest page first"),
        ([BAD / "017.prom.gz", BAD / "007.prom.gz", BAD / "000.prom.gz", "--interval", "30"], "give the oldest page first"),
    ],
)
def test_bad_usage_is_told_in_one_line(doctor: Doctor, arguments: list[str | Path], words: str) -> None:
    code, out, err = doctor(*arguments)
    assert code in (1, 2)
    assert code == 2 or "ftp" in words
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


def test_an_unreachable_url_fails_with_one_line(doctor: Doctor) -> None:
    code, _, err = doctor("http://127.0.0.1:9/metrics")
    assert code == 1
    assert "127.0.0.1:9" in err
    assert err.count("\n") == 1


def test_a_cut_page_is_used_as_far_as_it_goes(doctor: Doctor, tmp_path: Path) -> None:
    import gzip

    body = gzip.decompress((BAD / "017.prom.gz").read_bytes())
    code, out, _ = doctor(_page(tmp_path, body[: len(body) // 2]), "-o", "json")
    assert code == 0
    issues = {issue["code"] for issue in strict_json(out)["analysis"]["data_quality"]["issues"]}
    assert "truncated" in issues


def test_a_restart_between_the_pages_gives_no_negative_rate(doctor: Doctor, tmp_path: Path) -> None:
    shutil.copytree(CAPTURES / "h_restart", tmp_path / "pages")
    _, out, _ = doctor(tmp_path / "pages", "-o", "json")
    window = strict_json(out)["analysis"]["window"]
    assert all(rate is None or rate >= 0 for rate in window["rates_per_second"].values())
    assert all(delta >= 0 for delta in window["deltas"].values())


def test_pages_of_a_server_that_was_not_up_yet_are_passed_over(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "000.prom").write_text("# HELP python_info Python\npython_info 1\n")
    for name in ("000", "017"):
        shutil.copy(BAD / f"{name}.prom.gz", tmp_path / f"1{name}.prom.gz")
    code, out, err = doctor(tmp_path, "-o", "json", "--interval", "40")
    assert (code, err) == (0, "")
    result = strict_json(out)
    assert result["snapshot"]["pages"] == 2
    assert result["analysis"]["bottlenecks"][0]["cause"] == "batch_limit"
    assert "1 of 3 pages have no metric of vllm and are left out" in out


@pytest.mark.parametrize(
    ("options", "why"), [((), "and the pages before it are of vllm"), (("--engine", "vllm"), "and the engine told is vllm")]
)
def test_a_page_of_another_engine_is_named(doctor: Doctor, tmp_path: Path, options: tuple[str, ...], why: str) -> None:
    shutil.copy(BAD / "017.prom.gz", tmp_path / "1.prom.gz")
    (tmp_path / "2.prom").write_text('sglang:num_running_reqs{model_name="m"} 3\n')
    code, _, err = doctor(tmp_path, *options)
    assert code == 1
    assert f"2.prom is a page of sglang, {why}" in err


def test_a_small_step_budget_is_not_told_finer_than_it_is_known(doctor: Doctor) -> None:
    _, out, _ = doctor(CAPTURES / "d_prefill_bad_r2", "-o", "json")
    texts = [e["text"] for b in strict_json(out)["analysis"]["bottlenecks"] for e in b["evidence"] if e["metric"] == "token_budget"]
    assert texts[0].endswith("that fits a budget of less than 74 tokens per step.")


def test_pages_without_any_metric_are_refused(doctor: Doctor, tmp_path: Path) -> None:
    for name in ("a.prom", "b.prom"):
        (tmp_path / name).write_text("python_info 1\n")
    assert doctor(tmp_path)[0] == 1
    code, _, err = doctor(tmp_path, "--engine", "vllm")
    assert code == 1
    assert "no metric of the engine" in err


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("max_num_seqs=abc", "is not a whole number"),
        ("max_num_seqs=-1", "below the least value"),
        ("max_num_seq=2", "is max_num_seqs meant?"),
    ],
)
def test_a_launch_flag_that_cannot_be_is_bad_usage(doctor: Doctor, setting: str, said: str) -> None:
    code, _, err = doctor(BAD, "--config", setting)
    assert code == 2
    assert said in err


def test_a_launch_flag_that_is_no_knob_is_taken_as_it_is(doctor: Doctor) -> None:
    code, out, _ = doctor(BAD, "-o", "json", "--config", "swap_space=4", "--config", "max_num_seqs=2")
    assert code == 0
    assert strict_json(out)["analysis"]["bottlenecks"][0]["cause"] == "batch_limit"


def test_the_risks_are_those_of_the_change_that_is_proposed(doctor: Doctor) -> None:
    """The raise is held back for the ITL objective: what the whole raise would have missed is no risk any more."""
    _, out, _ = doctor(CAPTURES / "b_queue_bad_r2", "--slo", "ttft_p95<500ms", "--slo", "itl<50ms", "-o", "json")
    plan = strict_json(out)["plan"]
    after = {e["metric"]: e["after"]["value"] for o in plan["optimizations"] for e in o["effects"]}
    risks = [r for o in plan["optimizations"] for r in o["risks"] if "predicted to be missed" in r]
    assert after["itl_seconds_mean"] < 0.05
    assert [r.split()[0] for r in risks] == ["ttft_p95"]


def test_an_interval_beside_recorded_times_is_said(doctor: Any) -> None:
    code, _, err = doctor(BAD, "--interval", "3", "-o", "json")
    assert code == 0
    assert "--interval 3 takes the place of the recorded times" in err
    assert doctor(BAD, "-o", "json")[2] == ""
