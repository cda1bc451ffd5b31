"""Command line of the simulated engine: the real engine's flag names, plus the physics of the machine.

    python -m perf_service.simulator --engine vllm --port 8000 --max-num-seqs 2 --startup-seconds 1

Flags may be written with hyphens or underscores. An unknown flag or a value that the engine would
refuse ends the program with exit code 2 before anything listens.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from perf_service.models.errors import ErrorReason
from perf_service.simulator.exposition import DEFAULT_VERSIONS
from perf_service.simulator.flags import EngineFlags, EngineKind, FlagError, Hardware, ResolvedEngine, StepTimes, resolve

ENGINES: tuple[EngineKind, ...] = ("vllm", "sglang", "tgi")


@dataclass(frozen=True, slots=True)
class FlagSpec:
    """One launch flag: the engine's own name, the EngineFlags field, its type.

    ``inverted`` marks a switch that turns the field off (``--disable-radix-cache``); ``negatable`` one
    that also exists as ``--no-...``.
    """

    name: str
    field: str
    kind: type[int] | type[float] | type[str] | type[bool]
    inverted: bool = False
    negatable: bool = False


def _same(*specs: tuple[str, type[int] | type[float] | type[str]]) -> tuple[FlagSpec, ...]:
    return tuple(FlagSpec(name, name.replace("-", "_"), kind) for name, kind in specs)


FLAG_SPECS: dict[EngineKind, tuple[FlagSpec, ...]] = {
    "vllm": (
        *_same(
            ("max-num-seqs", int), ("max-num-batched-tokens", int), ("max-model-len", int), ("block-size", int),
            ("num-gpu-blocks-override", int), ("gpu-memory-utilization", float), ("kv-cache-dtype", str),
            ("max-num-active-seqs", int), ("max-num-queued-reqs", int), ("long-prefill-token-threshold", int),
            ("watermark", float), ("quantization", str), ("tensor-parallel-size", int),
        ),
        FlagSpec("enable-prefix-caching", "enable_prefix_caching", bool, negatable=True),
        FlagSpec("enable-chunked-prefill", "enable_chunked_prefill", bool, negatable=True),
        FlagSpec("scheduler-reserve-full-isl", "scheduler_reserve_full_isl", bool, negatable=True),
    ),
    "sglang": (
        FlagSpec("max-running-requests", "max_num_seqs", int),
        FlagSpec("chunked-prefill-size", "max_num_batched_tokens", int),
        FlagSpec("mem-fraction-static", "gpu_memory_utilization", float),
        FlagSpec("context-length", "max_model_len", int),
        FlagSpec("page-size", "block_size", int),
        FlagSpec("max-queued-requests", "max_num_queued_reqs", int),
        FlagSpec("disable-radix-cache", "enable_prefix_caching", bool, inverted=True),
        FlagSpec("enable-mixed-chunk", "enable_mixed_chunk", bool),
        FlagSpec("tp-size", "tensor_parallel_size", int),
        *_same(
            ("max-total-tokens", int), ("max-prefill-tokens", int), ("schedule-conservativeness", float),
            ("decode-log-interval", int), ("kv-cache-dtype", str), ("quantization", str),
        ),
    ),
    "tgi": (
        FlagSpec("max-batch-prefill-tokens", "max_num_batched_tokens", int),
        FlagSpec("max-batch-size", "max_num_seqs", int),
        FlagSpec("max-total-tokens", "max_model_len", int),
        FlagSpec("cuda-memory-fraction", "gpu_memory_utilization", float),
        FlagSpec("quantize", "quantization", str),
        FlagSpec("num-shard", "tensor_parallel_size", int),
        *_same(
            ("max-batch-total-tokens", int), ("max-concurrent-requests", int), ("max-input-tokens", int),
            ("kv-cache-dtype", str), ("waiting-served-ratio", float), ("max-waiting-tokens", int),
        ),
    ),
}  # fmt: skip

#: Where the engines' own defaults differ from EngineFlags' (a 24 GiB device).
ENGINE_DEFAULTS: dict[EngineKind, dict[str, Any]] = {
    "vllm": {},
    # SGLang 0.5.23: chunks of 4096 tokens below 60 GiB; at least 2048 running requests
    "sglang": {"max_num_seqs": 2048, "max_num_batched_tokens": 4096, "gpu_memory_utilization": 0.88, "block_size": 1},
    # TGI 3: no bound on the batch but the token budget
    "tgi": {
        "max_num_seqs": 1_000_000, "max_num_batched_tokens": 4096, "gpu_memory_utilization": 0.95, "max_model_len": 4096,
    },
}  # fmt: skip


def default_flags(engine: EngineKind) -> EngineFlags:
    """The engine's own defaults."""
    return EngineFlags(engine=engine, **ENGINE_DEFAULTS[engine])


def flags_from_native(engine: EngineKind, values: Mapping[str, Any], base: EngineFlags | None = None) -> EngineFlags:
    """EngineFlags from the engine's own flag names (hyphens or underscores, text or typed values).

    Values not named keep ``base`` (default: the engine's defaults). Raises FlagError on an unknown
    name or a value of the wrong type.
    """
    by_name = {s.name: s for s in FLAG_SPECS[engine]}
    changes: dict[str, Any] = {}
    for raw_name, raw in values.items():
        name = raw_name.lstrip("-").replace("_", "-")
        spec, flip = by_name.get(name), False
        if spec is None and name.startswith("no-"):
            spec = by_name.get(name[3:])
            spec, flip = (spec, True) if spec is not None and spec.negatable else (None, False)
        if spec is None:
            raise FlagError(f"{engine} (simulated) has no flag --{name}", reason=ErrorReason.KNOB_UNKNOWN)
        value = _convert(spec, raw)
        changes[spec.field] = value != (spec.inverted != flip) if spec.kind is bool else value
    flags = base or default_flags(engine)
    if engine == "vllm" and "max_num_batched_tokens" in changes and "max_num_seqs" not in changes and base is None:
        # vLLM clips its own default to the budget, but refuses a value that was given.
        changes["max_num_seqs"] = min(flags.max_num_seqs, changes["max_num_batched_tokens"])
    if engine == "sglang" and changes.get("max_num_batched_tokens") == -1:
        changes |= {"enable_chunked_prefill": False, "max_num_batched_tokens": flags.max_prefill_tokens}
    return flags.changed(changes)


def native_values(flags: EngineFlags) -> dict[str, Any]:
    """The flags under the engine's own names (underscores), as introspection endpoints show them."""
    out: dict[str, Any] = {}
    for spec in FLAG_SPECS[flags.engine]:
        value = getattr(flags, spec.field)
        out[spec.name.replace("-", "_")] = (not value) if spec.inverted else value
    return out


def _convert(spec: FlagSpec, raw: Any) -> Any:
    try:
        if spec.kind is bool:
            if isinstance(raw, bool):
                return raw
            return {"true": True, "1": True, "": True, "false": False, "0": False}[str(raw).lower()]
        if raw is None or (isinstance(raw, str) and raw.lower() == "none"):
            default = {f.name: f.default for f in fields(EngineFlags)}[spec.field]
            if default is None:
                return None
        return spec.kind(raw)
    except (KeyError, TypeError, ValueError):
        raise FlagError(f"--{spec.name} takes {spec.kind.__name__}, got {raw!r}") from None


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Everything the simulated engine program was told."""

    engine: ResolvedEngine
    host: str
    port: int
    model_name: str
    version: str
    seed: int
    startup_seconds: float
    shutdown_timeout: float
    mean_output_tokens: float
    dev_mode: bool
    metrics: bool
    argv: tuple[str, ...]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise FlagError(message, reason=ErrorReason.INVALID_ARGUMENT)


def _parser(engine: EngineKind) -> argparse.ArgumentParser:
    p = _Parser(prog="simulate-engine", allow_abbrev=False, description=__doc__,
                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("--engine", choices=ENGINES, default="vllm")
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, default={"vllm": 8000, "sglang": 30000, "tgi": 3000}[engine],
                   help='0 picks a free one; see the {"event": "listening"} line')  # fmt: skip
    p.add_argument("--model-name", "--served-model-name", "--model", "--model-path", "--model-id", dest="model_name",
                   default="sim")  # fmt: skip
    p.add_argument("--version", default=DEFAULT_VERSIONS[engine], help="engine version to report")
    physics = p.add_argument_group("physics")
    times, hw = StepTimes(), Hardware()
    number: Callable[[str], float] = float
    physics.add_argument("--step-base-ms", type=number, default=times.base * 1e3)
    physics.add_argument("--step-per-seq-ms", type=number, default=times.per_seq * 1e3)
    physics.add_argument("--step-per-prefill-token-us", type=number, default=times.per_prefill_token * 1e6)
    physics.add_argument("--step-per-context-token-us", type=number, default=times.per_context_token * 1e6)
    physics.add_argument("--device-memory-gib", type=number, default=hw.memory_gib)
    physics.add_argument("--weights-gib", type=number, default=hw.weights_gib)
    physics.add_argument("--kv-bytes-per-token", type=int, default=hw.kv_bytes_per_token)
    physics.add_argument("--mean-output-tokens", type=number, default=0.0,
                         help="without ignore_eos answers stop after a geometric length; 0: at max_tokens")  # fmt: skip
    physics.add_argument("--seed", type=int, default=0)
    physics.add_argument("--startup-seconds", type=number, default=0.0)
    physics.add_argument("--time-scale", type=number, default=1.0, help="machine speed: 2 halves every step time")
    group = p.add_argument_group(f"{engine} flags")
    for spec in FLAG_SPECS[engine]:
        if spec.kind is bool:
            action: Any = argparse.BooleanOptionalAction if spec.negatable else "store_true"
            group.add_argument(f"--{spec.name}", action=action, default=argparse.SUPPRESS)
        else:
            group.add_argument(f"--{spec.name}", default=argparse.SUPPRESS)
    if engine == "vllm":
        group.add_argument("--dev-mode", action="store_true", help="as VLLM_SERVER_DEV_MODE=1: opens /server_info")
        group.add_argument("--shutdown-timeout", type=number, default=0.0)
    elif engine == "sglang":
        group.add_argument("--enable-metrics", action="store_true", help="without it /metrics answers 404")
    else:
        group.add_argument("--graceful-termination-timeout", type=number, default=90.0)
    return p


def parse(argv: Sequence[str]) -> ServerOptions:
    """Reads the command line. Raises FlagError (SystemExit only for ``--help``)."""
    words = [_hyphens(word) for word in argv]
    chooser = _Parser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--engine", choices=ENGINES, default="vllm")
    engine: EngineKind = chooser.parse_known_args(words)[0].engine
    ns = vars(_parser(engine).parse_args(words))
    native = {s.name: ns[s.name.replace("-", "_")] for s in FLAG_SPECS[engine] if s.name.replace("-", "_") in ns}
    flags = flags_from_native(engine, native)
    if not ns["time_scale"] > 0 or ns["startup_seconds"] < 0 or ns["mean_output_tokens"] < 0:
        raise FlagError("--time-scale must be positive, --startup-seconds and --mean-output-tokens not negative")
    if not 0 <= ns["port"] <= 65535:
        raise FlagError(f"--port is {ns['port']}; it must lie in 0..65535")
    times = StepTimes(
        base=ns["step_base_ms"] / 1e3,
        per_seq=ns["step_per_seq_ms"] / 1e3,
        per_prefill_token=ns["step_per_prefill_token_us"] / 1e6,
        per_context_token=ns["step_per_context_token_us"] / 1e6,
    ).scaled(1 / ns["time_scale"])
    hardware = Hardware(ns["device_memory_gib"], ns["weights_gib"], ns["kv_bytes_per_token"])
    drain = {"vllm": ns.get("shutdown_timeout"), "sglang": float("inf")}.get(engine, ns.get("graceful_termination_timeout"))
    return ServerOptions(
        engine=resolve(flags, times, hardware),
        host=ns["host"],
        port=ns["port"],
        model_name=ns["model_name"],
        version=ns["version"],
        seed=ns["seed"],
        startup_seconds=ns["startup_seconds"],
        shutdown_timeout=drain or 0.0,
        mean_output_tokens=ns["mean_output_tokens"],
        dev_mode=ns.get("dev_mode", False),
        metrics=ns.get("enable_metrics", True),
        argv=tuple(argv),
    )


def _hyphens(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, eq, value = word.partition("=")
    return name.replace("_", "-") + eq + value


def run_simulated_engine(argv: Sequence[str]) -> int:
    """Runs the program until SIGTERM or SIGINT; returns its exit code.

    0 after a graceful stop, 1 when the port is taken, 2 when a flag is wrong. Prints one JSON object a
    line on stdout: ``{"event": "listening", "port": N, ...}`` once the port accepts, ``{"event":
    "ready"}`` once requests are served. Errors go to stderr.
    """
    from perf_service.simulator.server import serve

    try:
        options = parse(argv)
    except FlagError as error:
        print(f"simulate-engine: error: {error.message}", file=sys.stderr)  # noqa: T201
        return 2
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    try:
        return asyncio.run(serve(options))
    except OSError as error:
        print(f"simulate-engine: error: cannot listen on {options.host}:{options.port}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return 0
