"""What engines tell about themselves."""

from __future__ import annotations

from typing import Any

import pytest

from perf_service.collectors.discovery import discover, read_answer
from perf_service.collectors.fetch import EndpointStatusError, EndpointUnreachableError
from perf_service.models.config import Source
from perf_service.models.errors import CollectError, ErrorReason
from perf_service.models.metrics import Engine


class FakeFetcher:
    """Answers by path; a path that is missing is a 404."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def fetch_json(self, url: str) -> dict[str, Any]:
        path = url.removeprefix("http://e:1")
        self.asked.append(path)
        answer = self.answers.get(path)
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            raise EndpointStatusError(ErrorReason.ENDPOINT_HTTP_STATUS, "404")
        found: dict[str, Any] = answer
        return found


VLLM_CONFIG = {
    "vllm_config": {
        "scheduler_config": {"max_num_seqs": 2, "max_num_batched_tokens": 2048, "max_num_active_seqs": None, "policy": "fcfs"},
        "cache_config": {"block_size": 128, "enable_prefix_caching": True, "cache_dtype": "auto", "num_gpu_blocks_override": None},
        "model_config": {"dtype": "torch.float32", "max_model_len": 2048, "quantization": None, "served_model_name": "tiny"},
        "parallel_config": {"tensor_parallel_size": 1, "_api_process_count": 2},
    },
    "env": {"SECRET": "x"},
}


async def test_a_normal_vllm_tells_version_and_length() -> None:
    fetcher = FakeFetcher({"/version": {"version": "0.32.0"}, "/v1/models": {"data": [{"id": "tiny", "max_model_len": 2048}]}})
    found = await discover(fetcher, Engine.VLLM, "http://e:1/metrics")  # type: ignore[arg-type]
    assert (found.engine_version, found.model_name, found.config.values()) == ("0.32.0", "tiny", {"max_model_len": 2048})
    assert found.answered == ("/version", "/v1/models")
    assert found.config.source("max_model_len") is Source.SERVER_INFO


async def test_a_vllm_in_development_mode_tells_all() -> None:
    fetcher = FakeFetcher({"/server_info?config_format=json": VLLM_CONFIG})
    found = await discover(fetcher, Engine.VLLM, "e:1")  # type: ignore[arg-type]
    assert found.config.values() == {
        "max_num_seqs": 2,
        "max_num_batched_tokens": 2048,
        "scheduling_policy": "fcfs",
        "block_size": 128,
        "enable_prefix_caching": True,
        "kv_cache_dtype": "auto",
        "max_model_len": 2048,
        "dtype": "float32",
        "tensor_parallel_size": 1,
        "api_server_count": 2,
    }
    assert found.model_name == "tiny"


async def test_sglang_tells_its_resolved_arguments_but_no_secret() -> None:
    answer = {
        "version": "0.5.23",
        "served_model_name": "m",
        "api_key": "hush",
        "chunked_prefill_size": 4096,
        "max_running_requests": None,
        "disable_radix_cache": False,
        "internal_states": [{"effective_max_running_requests_per_dp": 48}],
    }
    fetcher = FakeFetcher({"/server_info": answer})
    found = await discover(fetcher, Engine.SGLANG, "e:1")  # type: ignore[arg-type]
    assert found.engine_version == "0.5.23"
    assert found.config.values() == {"chunked_prefill_size": 4096, "disable_radix_cache": False, "max_running_requests": 48}
    assert "/get_server_info" not in fetcher.asked


async def test_an_old_sglang_is_asked_by_the_old_name() -> None:
    fetcher = FakeFetcher({"/get_server_info": {"version": "0.4.6", "schedule_policy": "lpm"}})
    found = await discover(fetcher, Engine.SGLANG, "e:1")  # type: ignore[arg-type]
    assert (found.engine_version, found.config.values()) == ("0.4.6", {"schedule_policy": "lpm"})


async def test_tgi_tells_its_router_limits() -> None:
    fetcher = FakeFetcher(
        {"/info": {"model_id": "m", "version": "3.3.7", "max_concurrent_requests": 128, "max_input_length": 1000, "sha": None}}
    )
    found = await discover(fetcher, Engine.TGI, "e:1")  # type: ignore[arg-type]
    assert found.engine_version == "3.3.7"
    assert found.config.values() == {"model_id": "m", "max_concurrent_requests": 128, "max_input_tokens": 1000}


async def test_an_engine_that_tells_nothing_is_no_error_and_a_dead_one_is() -> None:
    nothing = await discover(FakeFetcher({}), Engine.VLLM, "e:1")  # type: ignore[arg-type]
    assert (nothing.answered, len(nothing.config)) == ((), 0)
    dead = FakeFetcher({"/version": EndpointUnreachableError(ErrorReason.ENDPOINT_UNREACHABLE, "refused")})
    with pytest.raises(CollectError, match="refused"):
        await discover(dead, Engine.VLLM, "e:1")  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/version", "/v1/models", "/server_info", "/info", "/nothing"])
@pytest.mark.parametrize("engine", Engine)
@pytest.mark.parametrize(
    "content",
    [
        {},
        {"version": 5, "data": {}, "vllm_config": "text", "internal_states": 3, "model_id": []},
        {"data": [3], "vllm_config": {"cache_config": 1}},
    ],
)
def test_nonsense_is_left_out(engine: Engine, path: str, content: dict[str, Any]) -> None:
    found = read_answer(engine, path, content)
    assert (found.engine_version, found.model_name, len(found.config)) == ("", "", 0)
