"""A config as people and machines apply it: the engine's command line, environment, Helm values, and a unified diff."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from perf_service.models.config import ConfigChange, EngineConfig, KnobValue, Setting
from perf_service.models.metrics import Engine
from perf_service.models.plan import KnobType
from perf_service.optimization.catalogue import KnobCatalogue
from perf_service.optimization.catalogue.conflicts import SET_BY_SOMEONE

MODEL_PLACEHOLDER = "MODEL"


def settable(config: EngineConfig, engine: Engine, *, version: str = "", catalogue: KnobCatalogue | None = None) -> EngineConfig:
    """The settings that belong on a command line: set by somebody, or told by the engine and different from its default.

    What the engine reports but nobody can set (the number of KV blocks), and what it resolved by itself, is left out.
    """
    catalogue = catalogue or KnobCatalogue.load()
    kept: dict[str, Setting] = {}
    for name, setting in config.settings.items():
        entry = catalogue.get(engine, name)
        if setting.source in SET_BY_SOMEONE:
            if not catalogue.is_fact(engine, name):
                kept[name] = setting
        elif entry is not None and not entry.page_is_resolved:
            default = catalogue.default(engine, name, version)
            # A page tells nothing of who set a value: only one that surely is not the default is worth a flag.
            if (default is not None and setting.value != default) or (default is None and name in _NEVER_DEFAULT):
                kept[name] = setting
    return EngineConfig(kept)


# Knobs that have a value only if somebody gave one.
_NEVER_DEFAULT = frozenset({"num_gpu_blocks_override", "max_total_tokens"})


def flags(config: EngineConfig, engine: Engine, *, catalogue: KnobCatalogue | None = None) -> list[str]:
    """The config as arguments, one knob after the other in the order of its settings. Environment-only knobs are left out."""
    catalogue = catalogue or KnobCatalogue.load()
    arguments: list[str] = []
    for name, setting in config.settings.items():
        arguments += _flag(catalogue, engine, name, setting.value)
    return arguments


def _flag(catalogue: KnobCatalogue, engine: Engine, name: str, value: KnobValue) -> list[str]:
    entry = catalogue.get(engine, name)
    if entry is None:
        if catalogue.is_fact(engine, name):
            return []
        spelled = "--" + name.replace("_", "-")
        return [spelled] if value is True else ([] if value is False else [spelled, str(value)])
    if entry.env_only:
        return []
    if entry.knob.type is KnobType.BOOL:
        if value is True:
            return [entry.knob.flag]
        return [entry.knob.negative_flag] if entry.knob.negative_flag else []
    return [entry.knob.flag, _text(value)]


def _text(value: KnobValue) -> str:
    return str(value).lower() if isinstance(value, bool) else (f"{value:g}" if isinstance(value, float) else str(value))


_PROGRAM = {
    Engine.VLLM: ("vllm", "serve", "{model}"),
    Engine.SGLANG: ("python", "-m", "sglang.launch_server", "--model-path", "{model}"),
    Engine.TGI: ("text-generation-launcher", "--model-id", "{model}"),
}


def command_line(
    config: EngineConfig, engine: Engine, *, model: str = "", version: str = "", catalogue: KnobCatalogue | None = None
) -> str:
    """The config as the engine's own command line, quoted for a shell. Without a model's name it says MODEL."""
    kept = settable(config, engine, version=version, catalogue=catalogue)
    words = [part.format(model=model or MODEL_PLACEHOLDER) for part in _PROGRAM[engine]]
    environment = [f"{name}={shlex.quote(value)}" for name, value in env(kept, engine, only=True, catalogue=catalogue).items()]
    return " ".join([*environment, shlex.join([*words, *flags(kept, engine, catalogue=catalogue)])])


def env(config: EngineConfig, engine: Engine, *, only: bool = False, catalogue: KnobCatalogue | None = None) -> dict[str, str]:
    """The config as environment variables, for the knobs that have one. `only`: just those that have no flag."""
    catalogue = catalogue or KnobCatalogue.load()
    variables: dict[str, str] = {}
    for name, setting in config.settings.items():
        entry = catalogue.get(engine, name)
        if entry and entry.knob.env and (entry.env_only or not only):
            variables[entry.knob.env] = ("1" if setting.value else "0") if entry.env_only else _text(setting.value)
    return variables


# Knobs for which the vLLM production-stack chart has a typed value; the rest goes to extraArgs, which come last and win.
_HELM_TYPED = {
    "max_model_len": "maxModelLen",
    "dtype": "dtype",
    "tensor_parallel_size": "tensorParallelSize",
    "max_num_seqs": "maxNumSeqs",
    "gpu_memory_utilization": "gpuMemoryUtilization",
    "enable_prefix_caching": "enablePrefixCaching",
    "enable_chunked_prefill": "enableChunkedPrefill",
}


def helm_values(config: EngineConfig, engine: Engine, *, version: str = "", catalogue: KnobCatalogue | None = None) -> str:
    """The config as YAML values: of the vLLM production-stack chart (0.1.x), else a plain container's args and env."""
    catalogue = catalogue or KnobCatalogue.load()
    kept = settable(config, engine, version=version, catalogue=catalogue)
    if engine is not Engine.VLLM:
        lines = ["args:", *(f"  - {_quoted(a)}" for a in flags(kept, engine, catalogue=catalogue))]
        variables = env(kept, engine, only=True, catalogue=catalogue)
        if variables:
            lines += ["env:", *(f"  - name: {k}\n    value: {_quoted(v)}" for k, v in variables.items())]
        return "\n".join(lines) + "\n"
    typed = {_HELM_TYPED[n]: s.value for n, s in kept.settings.items() if n in _HELM_TYPED and s.value is not False}
    # A typed false renders no flag at all in that chart, so an explicit "off" has to be an argument.
    rest = EngineConfig({n: s for n, s in kept.settings.items() if n not in _HELM_TYPED or s.value is False})
    lines = ["servingEngineSpec:", "  modelSpec:", "    - vllmConfig:"]
    lines += [f"        {key}: {_text(value) if not isinstance(value, str) else _quoted(value)}" for key, value in typed.items()]
    extra = flags(rest, engine, catalogue=catalogue)
    if extra:
        lines += ["        extraArgs:", *(f"          - {_quoted(a)}" for a in extra)]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def unified_diff(changes: Iterable[ConfigChange], engine: Engine, *, catalogue: KnobCatalogue | None = None) -> str:
    """The changes as a unified diff, one knob a line; an unknown present value reads `(unknown)`. Empty without changes."""
    catalogue = catalogue or KnobCatalogue.load()
    lines: list[str] = []
    for change in changes:
        before = "(unknown)" if change.current_value is None else _text(change.current_value)
        lines.append(f"-{change.parameter} = {before}")
        if change.recommended_value is not None:
            lines.append(f"+{change.parameter} = {_text(change.recommended_value)}")
    return "\n".join([f"--- {engine.value} (current)", f"+++ {engine.value} (proposed)", *lines]) + "\n" if lines else ""
