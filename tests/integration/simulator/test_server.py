"""The simulated engine as a program: its endpoints, its life, its refusals."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

StartEngine = Any  # conftest.StartEngine; a conftest cannot be imported
Program = Any

FAST = ("--step-base-ms", "2", "--step-per-seq-ms", "0.05", "--step-per-prefill-token-us", "10")


@pytest.fixture
async def client() -> Any:
    async with httpx.AsyncClient(timeout=20, trust_env=False) as c:
        yield c


async def metric(client: httpx.AsyncClient, program: Program, name: str, **labels: str) -> float:
    text = (await client.get(f"{program.url}/metrics")).text
    return sum(
        s.value for f in text_string_to_metric_families(text) for s in f.samples if s.name == name and labels.items() <= s.labels.items()
    )


def body(**more: object) -> dict[str, object]:
    return {"prompt": list(range(40)), "max_tokens": 6, "ignore_eos": True, **more}


async def test_vllm_end_to_end(start_engine: StartEngine, client: httpx.AsyncClient) -> None:
    engine = await start_engine(*FAST, "--model-name", "tiny", "--version", "0.32.0", "--max-num-seqs", "3", "--dev-mode")
    assert (await client.get(f"{engine.url}/health")).status_code == 200
    assert (await client.get(f"{engine.url}/version")).json() == {"version": "0.32.0"}
    models = (await client.get(f"{engine.url}/v1/models")).json()
    assert (models["data"][0]["id"], models["data"][0]["max_model_len"]) == ("tiny", 8192)
    info = (await client.get(f"{engine.url}/server_info", params={"config_format": "json"})).json()
    assert info["vllm_config"]["scheduler_config"]["max_num_seqs"] == 3

    whole = (await client.post(f"{engine.url}/v1/completions", json=body(model="tiny"))).json()
    assert whole["usage"] == {"prompt_tokens": 40, "completion_tokens": 6, "total_tokens": 46}
    assert whole["choices"][0]["finish_reason"] == "length"

    stream = body(stream=True, stream_options={"include_usage": True})
    async with client.stream("POST", f"{engine.url}/v1/completions", json=stream) as answer:
        events = [line[6:] async for line in answer.aiter_lines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    parsed = [json.loads(e) for e in events[:-1]]
    assert len(parsed) == 7
    assert parsed[-1]["usage"]["completion_tokens"] == 6
    assert [p["choices"][0]["finish_reason"] for p in parsed[:-1]] == [None] * 5 + ["length"]

    chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
    answer_ = (await client.post(f"{engine.url}/v1/chat/completions", json=chat)).json()
    assert answer_["choices"][0]["message"]["content"]

    assert await metric(client, engine, "vllm:request_success_total", finished_reason="length") == 3
    assert await metric(client, engine, "vllm:prefix_cache_hits_total") == 32  # the second prompt was the first
    assert await metric(client, engine, "http_requests_total", status="2xx") == 3
    assert await metric(client, engine, "vllm:e2e_request_latency_seconds_sum") > 0.02


async def test_a_client_that_leaves_is_aborted(start_engine: StartEngine, client: httpx.AsyncClient) -> None:
    engine = await start_engine("--step-base-ms", "5")
    long = body(max_tokens=5000, stream=True)
    async with client.stream("POST", f"{engine.url}/v1/completions", json=long) as answer:
        async for _ in answer.aiter_lines():
            break
    async with asyncio.timeout(10):
        while await metric(client, engine, "vllm:num_requests_running") > 0:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)
    assert await metric(client, engine, "vllm:kv_cache_usage_perc") == 0
    assert await metric(client, engine, "vllm:request_success_total", finished_reason="abort") == 1  # as vLLM counts it
    assert await metric(client, engine, "vllm:request_success_total") == 1
    assert await metric(client, engine, "vllm:time_to_first_token_seconds_count") == 1


async def test_sglang_end_to_end(start_engine: StartEngine, client: httpx.AsyncClient) -> None:
    engine = await start_engine(
        "--engine", "sglang", *FAST, "--startup-seconds", "0.3", "--enable-metrics", "--max-running-requests", "5",
        until="listening",
    )  # fmt: skip
    assert (await client.get(f"{engine.url}/health")).status_code == 503  # listens, but is not ready
    assert (await engine.event())["event"] == "ready"
    assert (await client.get(f"{engine.url}/health")).status_code == 200
    info = (await client.get(f"{engine.url}/server_info")).json()
    assert info["max_running_requests"] == 5
    assert info["internal_states"][0]["memory_usage"]["token_capacity"] > 0
    assert (await client.post(f"{engine.url}/v1/completions", json=body())).status_code == 200
    assert await metric(client, engine, "sglang:num_requests_total") == 1
    assert (await client.get(f"{engine.url}/version")).status_code == 404


async def test_tgi_end_to_end(start_engine: StartEngine, client: httpx.AsyncClient) -> None:
    engine = await start_engine("--engine", "tgi", *FAST, "--max-concurrent-requests", "1")
    assert (await client.get(f"{engine.url}/info")).json()["max_concurrent_requests"] == 1
    request = {"inputs": "hello world", "parameters": {"max_new_tokens": 4}}
    answer = await client.post(f"{engine.url}/generate", json=request)
    assert answer.json()["generated_text"]
    assert answer.headers["x-generated-tokens"] == "4"
    async with client.stream("POST", f"{engine.url}/generate_stream", json=request) as stream:
        events = [json.loads(line[5:]) async for line in stream.aiter_lines() if line.startswith("data:")]
    assert [e["generated_text"] is None for e in events] == [True] * 3 + [False]
    assert (await client.post(f"{engine.url}/generate", json={"inputs": 3})).status_code == 422
    slow = asyncio.create_task(client.post(f"{engine.url}/generate", json={"inputs": "x", "parameters": {"max_new_tokens": 400}}))
    async with asyncio.timeout(10):
        while await metric(client, engine, "tgi_batch_current_size") == 0:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.005)
    assert (await client.post(f"{engine.url}/generate", json=request)).status_code == 429
    assert (await slow).status_code == 200
    assert await metric(client, engine, "tgi_request_failure_total", err="overloaded") == 1


async def test_nothing_listens_while_vllm_starts(start_engine: StartEngine, client: httpx.AsyncClient) -> None:
    first = await start_engine()
    port = first.port
    assert await first.stop() == 0
    starting = asyncio.create_task(start_engine("--startup-seconds", "0.5", port=port))
    refused = 0
    async with asyncio.timeout(20):
        while not starting.done():
            try:
                await client.get(f"http://127.0.0.1:{port}/health")
            except httpx.ConnectError:
                refused += 1
            await asyncio.sleep(0.02)
    assert refused > 5
    assert (await client.get(f"{(await starting).url}/health")).status_code == 200


async def test_sigterm_stops_vllm_at_once_and_lets_sglang_finish(start_engine: StartEngine, client: httpx.AsyncClient) -> None:
    outcome = {}
    for engine, extra in (("vllm", ()), ("sglang", ("--enable-metrics",))):
        program = await start_engine("--engine", engine, "--step-base-ms", "5", *extra)
        running = f"{engine}:num_running_reqs" if engine == "sglang" else "vllm:num_requests_running"
        answer = asyncio.create_task(client.post(f"{program.url}/v1/completions", json=body(max_tokens=60)))
        async with asyncio.timeout(10):
            while await metric(client, program, running) == 0:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.005)
        assert await program.stop() == 0
        try:
            outcome[engine] = (await answer).status_code
        except httpx.TransportError:
            outcome[engine] = 0
    assert outcome == {"vllm": 0, "sglang": 200}


async def test_ctrl_c_ends_it_during_start_up(spawn_engine: Any) -> None:
    process = await spawn_engine("--port", "0", "--startup-seconds", "60", "--engine", "sglang")
    assert process.stdout is not None
    await process.stdout.readline()
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(10):
        assert await process.wait() == 0
    await process.communicate()


async def test_refusals_have_exit_codes(start_engine: StartEngine, spawn_engine: Any) -> None:
    engine = await start_engine()
    taken = await spawn_engine("--port", str(engine.port), "--startup-seconds", "30")
    _, errors = await taken.communicate()
    assert taken.returncode == 1
    assert b"cannot listen" in errors
    wrong = await spawn_engine("--max-num-seqs", "64", "--max-num-batched-tokens", "32")
    _, errors = await wrong.communicate()
    assert wrong.returncode == 2
    assert b"max_num_batched_tokens (32)" in errors
