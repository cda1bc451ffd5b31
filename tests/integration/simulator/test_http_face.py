"""The HTTP face of the simulated engine, in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from perf_service.simulator.args import parse
from perf_service.simulator.http import Connection
from perf_service.simulator.loadgen import run_load
from perf_service.simulator.server import SimulatedServer
from perf_service.simulator.workload import Lengths, Workload

FAST = ("--step-base-ms", "1", "--step-per-seq-ms", "0.01", "--step-per-prefill-token-us", "1")
Serve = Callable[..., Awaitable[tuple[SimulatedServer, httpx.AsyncClient]]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serves an engine with the given flags; returns it with a client of it."""
    ends: list[Callable[[], Awaitable[None]]] = []

    async def start(*argv: str) -> tuple[SimulatedServer, httpx.AsyncClient]:
        loop = asyncio.get_running_loop()
        server = SimulatedServer(parse([*FAST, *argv]))
        listener = await loop.create_server(lambda: Connection(server.handle, server.connections), "127.0.0.1", 0)
        server.ready_at = server.started
        stepping = loop.create_task(server.engine.run())
        port = listener.sockets[0].getsockname()[1]
        client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=10)

        async def end() -> None:
            await client.aclose()
            stepping.cancel()
            listener.close()
            for connection in list(server.connections):
                connection.close()
            await asyncio.gather(stepping, return_exceptions=True)
            await listener.wait_closed()

        ends.append(end)
        return server, client

    yield start
    for end in ends:
        await end()


async def test_answers_are_counted_and_never_take_negative_time(serve: Serve) -> None:
    server, client = await serve("--model-name", "tiny")
    for _ in range(5):
        answer = await client.post("/v1/completions", json={"prompt": "hello", "max_tokens": 3})
        assert answer.json()["usage"]["completion_tokens"] == 3
    for name in ("e2e", "ttft", "queue"):
        hist = server.core.stats.hist(name)
        assert hist.count == 5
        assert hist.sum >= 0
    assert server.core.stats.hist("e2e").sum >= 5 * 0.003
    text = (await client.get("/metrics")).text
    assert 'vllm:request_success_total{engine="0",finished_reason="length",model_name="tiny"} 5.0' in text
    assert 'status="2xx"} 5.0' in text


async def test_streams_end_with_usage_and_done(serve: Serve) -> None:
    _, client = await serve()
    body = {"messages": [{"content": "x"}], "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}}
    text = (await client.post("/v1/chat/completions", json=body)).text
    events = [line[6:] for line in text.splitlines() if line]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["usage"]["completion_tokens"] == 2
    assert json.loads(events[0])["choices"][0]["delta"]["content"]


async def test_answers_stop_by_themselves_around_the_mean_length(serve: Serve) -> None:
    server, client = await serve("--mean-output-tokens", "5", "--max-num-seqs", "64")
    body = {"prompt": [1, 2], "max_tokens": 400}
    answers = await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(40)))
    lengths = [a.json()["usage"]["completion_tokens"] for a in answers]
    assert 2.5 < sum(lengths) / 40 < 9
    assert server.core.stats.get("finished_stop") == 40


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"not json", 400), (b"[1]", 400), (b"{}", 400), (b'{"prompt": []}', 400), (b'{"prompt": [1.5]}', 400),
        (b'{"prompt": "x", "max_tokens": 0}', 400), (b'{"prompt": "x", "max_tokens": 100000}', 400),
        (b'{"prompt": "x", "model": "other"}', 404),
    ],
)  # fmt: skip
async def test_bad_bodies_are_refused_and_serving_goes_on(serve: Serve, body: bytes, status: int) -> None:
    server, client = await serve()
    answer = await client.post("/v1/completions", content=body)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert (await client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})).status_code == 200
    assert server.http == {"4xx": 1, "2xx": 1}


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\ncontent-length: -4\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\ncontent-length: 99999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", 411),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000, 431),
        (b"DELETE /metrics HTTP/1.0\r\n\r\n", 404),
        (b"GET /v1/completions HTTP/1.1\r\nconnection: close\r\n\r\n", 405),
    ],
)
async def test_malformed_http_is_answered_and_closed(serve: Serve, raw: bytes, status: int) -> None:
    _, client = await serve()
    reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
    writer.write(raw)
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    assert int(answer.split(b" ")[1]) == status


async def test_split_and_pipelined_requests_are_understood(serve: Serve) -> None:
    _, client = await serve()
    reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
    writer.write(b"GET /vers")
    await writer.drain()
    writer.write(b"ion HTTP/1.1\r\n\r\nGET /health HTTP/1.1\r\nconnection: close\r\n\r\n")
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    assert answer.count(b"HTTP/1.1 200 OK") == 2


async def test_a_client_that_leaves_is_aborted(serve: Serve) -> None:
    server, client = await serve()
    async with client.stream("POST", "/v1/completions", json={"prompt": "x", "max_tokens": 5000, "stream": True}) as answer:
        async for _ in answer.aiter_lines():
            break
    async with asyncio.timeout(5):
        while server.core.by_id:  # noqa: ASYNC110 - the loop must run for the disconnect to arrive
            await asyncio.sleep(0)
    assert server.core.pool.used == 0
    assert server.engine.idle
    assert server.core.gauges.running == 0


async def test_not_ready_and_draining_answer_503(serve: Serve) -> None:
    server, client = await serve()
    server.draining = True
    assert (await client.get("/health")).status_code == 503
    assert (await client.post("/v1/completions", json={"prompt": "x"})).status_code == 503


async def test_vllm_tells_its_limits_only_in_dev_mode(serve: Serve) -> None:
    _, closed = await serve()
    assert (await closed.get("/server_info")).status_code == 404
    _, open_ = await serve("--dev-mode", "--max-num-seqs", "3")
    config = (await open_.get("/server_info?config_format=json")).json()["vllm_config"]
    assert config["scheduler_config"]["max_num_seqs"] == 3
    assert isinstance((await open_.get("/server_info")).json()["vllm_config"], str)
    assert (await open_.get("/version")).json() == {"version": "0.32.0"}
    assert (await open_.get("/v1/models")).json()["data"][0]["max_model_len"] == 8192


async def test_sglang_tells_all_its_arguments(serve: Serve) -> None:
    _, client = await serve("--engine", "sglang", "--max-running-requests", "5", "--enable-metrics")
    info = (await client.get("/server_info")).json()
    assert (info["max_running_requests"], info["disable_radix_cache"]) == (5, False)
    assert info == (await client.get("/get_server_info")).json()
    assert (await client.get("/metrics")).status_code == 200
    _, silent = await serve("--engine", "sglang")
    assert (await silent.get("/metrics")).status_code == 404


async def test_tgi_generates_and_overloads(serve: Serve) -> None:
    server, client = await serve("--engine", "tgi", "--max-concurrent-requests", "1")
    request: dict[str, Any] = {"inputs": "hello world", "parameters": {"max_new_tokens": 4}}
    answer = await client.post("/generate", json=request)
    assert answer.json()["generated_text"]
    assert answer.headers["x-generated-tokens"] == "4"
    stream = (await client.post("/generate_stream", json=request)).text
    events = [json.loads(line[5:]) for line in stream.splitlines() if line.startswith("data:")]
    assert [e["generated_text"] is None for e in events] == [True] * 3 + [False]
    assert (await client.post("/generate", json={"inputs": 3})).status_code == 422
    assert (await client.get("/info")).json()["max_concurrent_requests"] == 1
    both = await asyncio.gather(*(client.post("/generate", json=request) for _ in range(2)))
    assert sorted(a.status_code for a in both) == [200, 429]
    assert next(a for a in both if a.status_code == 429).json()["error_type"] == "overloaded"
    assert server.core.stats.get("failed_overloaded") == 1


async def test_load_generator_and_server_agree(serve: Serve) -> None:
    server, client = await serve("--max-num-seqs", "4")
    load = Workload(prompt=Lengths.uniform(20, 40), output=Lengths.uniform(2, 6), concurrency=6, shared_prefix_tokens=16)
    report = await run_load([str(client.base_url)], load, 0.2, seed=1)
    assert report.failed == report.cancelled == 0
    assert report.succeeded == report.sent == server.core.stats.get("finished_length") > 6
    assert report.output_tokens == server.core.stats.get("generation_tokens")
    assert report.prompt_tokens == server.core.stats.get("prompt_tokens")
    assert 16 * (report.succeeded - 4) <= server.core.stats.get("prefix_hits") < 16 * report.succeeded
    assert report.itl_seconds.count == report.output_tokens - report.succeeded
