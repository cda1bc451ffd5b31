"""Engine configuration from the command line an engine was started with, in every form in which deployments write it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from perf_service.models.config import EngineConfig, KnobValue, Source
from perf_service.models.errors import ErrorReason, InvalidArgumentError
from perf_service.models.metrics import Engine

# Other spellings of a flag, by the engines' own argument parsers.
ALIASES: Final[Mapping[Engine, Mapping[str, str]]] = {
    Engine.VLLM: {
        "tp": "tensor_parallel_size",
        "pp": "pipeline_parallel_size",
        "dp": "data_parallel_size",
        "q": "quantization",
        "o": "optimization_level",
        "device_memory_utilization": "gpu_memory_utilization",
    },
    Engine.SGLANG: {
        "tp": "tp_size",
        "tensor_parallel_size": "tp_size",
        "pp": "pp_size",
        "pipeline_parallel_size": "pp_size",
        "dp": "dp_size",
        "data_parallel_size": "dp_size",
        "ep": "ep_size",
        "expert_parallel_size": "ep_size",
        "model": "model_path",
    },
    Engine.TGI: {"max_input_length": "max_input_tokens", "model": "model_id"},
}

# Flags that take no value, so that a word after them is not theirs.
SWITCHES: Final[Mapping[Engine, frozenset[str]]] = {
    Engine.VLLM: frozenset(
        {
            "enable_prefix_caching",
            "enable_chunked_prefill",
            "enforce_eager",
            "trust_remote_code",
            "disable_log_stats",
            "disable_log_requests",
            "enable_log_requests",
            "enable_lora",
            "enable_expert_parallel",
            "async_scheduling",
            "enable_auto_tool_choice",
            "calculate_kv_scales",
            "use_v2_block_manager",
            "multi_step_stream_outputs",
            "disable_custom_all_reduce",
            "enable_sleep_mode",
            "enable_mfu_metrics",
            "scheduler_reserve_full_isl",
            "enable_dbo",
            "enable_eplb",
            "headless",
        }
    ),
    Engine.SGLANG: frozenset(
        {
            "enable_metrics",
            "enable_metrics_for_all_schedulers",
            "trust_remote_code",
            "disable_radix_cache",
            "disable_cuda_graph",
            "disable_overlap_schedule",
            "disable_custom_all_reduce",
            "enable_mixed_chunk",
            "enable_dp_attention",
            "enable_hierarchical_cache",
            "enable_torch_compile",
            "enable_priority_scheduling",
            "enable_prefill_delayer",
            "enable_memory_saver",
            "enable_lora",
            "speculative_adaptive",
            "log_requests",
        }
    ),
    Engine.TGI: frozenset({"trust_remote_code", "json_output", "disable_grammar_support", "disable_custom_kernels"}),
}

# Every TGI flag is also read from the environment, under the flag's name in capitals.
TGI_ENVIRONMENT: Final = frozenset(
    {
        "model_id",
        "max_concurrent_requests",
        "max_input_tokens",
        "max_total_tokens",
        "max_batch_prefill_tokens",
        "max_batch_total_tokens",
        "max_waiting_tokens",
        "max_batch_size",
        "waiting_served_ratio",
        "max_client_batch_size",
        "cuda_memory_fraction",
        "cuda_graphs",
        "quantize",
        "kv_cache_dtype",
        "speculate",
        "num_shard",
        "sharded",
        "dtype",
        "validation_workers",
        "prefix_caching",
        "prefill_chunking",
        "attention",
    }
)

# vLLM reads sizes such as 16k (thousand) and 16K (binary) for these.
_HUMAN_SIZES: Final = frozenset(
    {
        "max_model_len",
        "max_num_batched_tokens",
        "max_num_seqs",
        "kv_cache_memory_bytes",
        "num_gpu_blocks_override",
        "long_prefill_token_threshold",
        "max_num_queued_tokens",
    }
)
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT])\Z")
_INT: Final = re.compile(r"[+-]?\d+\Z")
_FLOAT: Final = re.compile(r"[+-]?(?:\d+\.\d*|\.\d+|\d+(?:\.\d*)?[eE][+-]?\d+)\Z")
_ASSIGNMENT: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)\Z", re.DOTALL)
_SHELLS: Final = frozenset({"sh", "bash", "ash", "dash", "zsh"})
_SECRET: Final = re.compile(r"(?:^|_)(?:api_?keys?|auth_token|hf_token|token|password|secret)\Z")


def parse_launch_args(engine: Engine, args: str | Sequence[str], environment: Mapping[str, str] | None = None) -> EngineConfig:
    """The knobs set by a command line: a string, a list, or `["sh", "-c", "vllm serve ..."]`.

    `--k v`, `--k=v`, `--k` and `--no-k` are read, hyphens and underscores are the same, the last of several settings counts.
    For TGI `environment` is read too; the command line wins. Secrets (API keys, tokens) are left out.

    Raises:
        InvalidArgumentError: when a string has unbalanced quotes.
    """
    words, assigned = _words(args)
    values: dict[str, KnobValue] = {}
    if engine is Engine.TGI:
        for name, text in {**(environment or {}), **assigned}.items():
            if name.lower() in TGI_ENVIRONMENT:
                values[name.lower()] = typed(engine, name.lower(), text)
    values.update(_read(engine, _engine_command(words)))
    return EngineConfig.of(values, Source.LAUNCH_ARGS)


def parse_settings(engine: Engine, pairs: Iterable[str], source: Source = Source.USER) -> EngineConfig:
    """Knobs from texts such as `max_num_seqs=256`, as people type them.

    Raises:
        InvalidArgumentError: for a text without `=` or without a name.
    """
    values: dict[str, KnobValue] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        knob = canonical_knob(engine, name)
        if not equals or not knob:
            raise InvalidArgumentError(
                f"{pair!r} is not a setting; write the flag's name and its value, for example 'max_num_seqs=256'",
                field="config",
                reason=ErrorReason.KNOB_VALUE_INVALID,
                metadata={"value": pair},
            )
        values[knob] = typed(engine, knob, text.strip())
    return EngineConfig.of(values, source)


def canonical_knob(engine: Engine, flag: str) -> str:
    """The knob's name of a flag: without dashes in front, underscores within, aliases resolved."""
    name = flag.strip().lstrip("-").replace("-", "_")
    lowered = name.lower()
    return ALIASES[engine].get(lowered, lowered)


def typed(engine: Engine, knob: str, text: str) -> KnobValue:
    """A value as the type it looks like: truth value, integer, float, else text."""
    lowered = text.lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    if _INT.match(text):
        return int(text)
    if _FLOAT.match(text):
        return float(text)
    size = _SIZE.match(text)
    if engine is Engine.VLLM and knob in _HUMAN_SIZES and size:
        power = "kmgt".index(size[2].lower()) + 1
        base = 1024 if size[2].isupper() else 1000
        return int(float(size[1]) * base**power)
    return text


def _words(args: str | Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Split into words; unwrap `sh -c "..."`; collect `NAME=value` in front of the command."""
    words = _split(args) if isinstance(args, str) else [str(word) for word in args]
    for position, word in enumerate(words[:-1]):
        is_shell = word.rsplit("/", 1)[-1] in _SHELLS
        if is_shell:
            for offset, option in enumerate(words[position + 1 :], position + 1):
                if re.fullmatch(r"-[a-z]*c", option) and offset + 1 < len(words):
                    return _words(words[offset + 1])
        if word.startswith("--"):
            break
    if len(words) == 1 and not isinstance(args, str) and " " in words[0]:
        return _words(words[0])
    assigned: dict[str, str] = {}
    for word in words:
        match = _ASSIGNMENT.match(word)
        if word.startswith("-"):
            break
        if match:
            assigned[match[1]] = match[2]
    return words, assigned


def _engine_command(words: Sequence[str]) -> list[str]:
    """Of `cd x && vllm serve ... && echo done` the command with the most flags."""
    commands: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", ";", "|", "||", "&"):
            commands.append([])
        else:
            commands[-1].append(word)
    return max(commands, key=lambda command: sum(map(_is_flag, command)))


def _split(text: str) -> list[str]:
    try:
        # Line continuations are white space to a shell.
        return shlex.split(text.replace("\\\n", " "), comments=False)
    except ValueError as error:
        raise InvalidArgumentError(f"the launch arguments cannot be split into words: {error}", field="launch_args") from error


def _read(engine: Engine, words: Sequence[str]) -> dict[str, KnobValue]:
    values: dict[str, KnobValue] = {}
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if engine is Engine.VLLM and word == "serve" and position < len(words) and not words[position].startswith("-"):
            values["model"] = words[position]
            position += 1
            continue
        if not word.startswith("-") or word in ("-", "--") or _INT.match(word):
            continue
        flag, equals, text = word.partition("=")
        if not word.startswith("--") and canonical_knob(engine, flag) not in ALIASES[engine].values():
            continue
        knob = canonical_knob(engine, flag)
        following = words[position] if position < len(words) else None
        if equals:
            value = typed(engine, knob, text)
        elif knob.startswith("no_"):
            knob, value = knob.removeprefix("no_"), False
        elif following is None or _is_flag(following) or (knob in SWITCHES[engine] and following.lower() not in ("true", "false")):
            value = True
        else:
            value = typed(engine, knob, following)
            position += 1
        if not _SECRET.search(knob):
            _put(engine, values, knob, value)
    return values


def _put(engine: Engine, values: dict[str, KnobValue], knob: str, value: KnobValue) -> None:
    """Set a knob, taking JSON objects apart: `--k '{"a": 1}'` and `--k.a 1` both become `k.a`."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            content = json.loads(value)
        except ValueError:
            content = None
        if isinstance(content, dict) and all(isinstance(item, bool | int | float | str) for item in content.values()):
            for name, item in content.items():
                values[f"{knob}.{name}"] = item
            return
    values[knob] = value


def _is_flag(word: str) -> bool:
    return word.startswith("-") and len(word) > 1 and not _INT.match(word) and not _FLOAT.match(word)
