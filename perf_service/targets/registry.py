"""From a fleet's `TargetSpec` to the target that changes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from perf_service.models.errors import ErrorReason, TargetError
from perf_service.models.fleet import Fleet, Instance, TargetKind, TargetSpec
from perf_service.targets.base import Target
from perf_service.targets.dry_run import DryRunTarget
from perf_service.targets.files import safe_name, unusable
from perf_service.targets.local import LocalOptions, LocalTarget


def make_target(
    fleet: Fleet,
    instances: Sequence[Instance],
    *,
    spec: TargetSpec | None = None,
    state_dir: Path | None = None,
    clock: Callable[[], float] = time.time,
    environment: Mapping[str, str] | None = None,
) -> Target:
    """The target of a fleet, or of a lone instance put into a `Fleet` of its own. `spec` overrides the fleet's (for a dry run).

    Without `state_dir` a dry run is forgotten with the process, and a local target needs the option `state_dir`. `environment` is that
    of local engines (None: this process's own).

    Raises TargetError TARGET_KIND_UNKNOWN, InvalidArgumentError for an option, TargetError TARGET_UNAVAILABLE for the state directory.
    """
    spec = spec or fleet.target
    check_spec(spec)
    if spec.kind is TargetKind.DRY_RUN:
        return DryRunTarget(fleet.fleet_id, instances, clock, _dry_run_file(state_dir, fleet.fleet_id))
    options = LocalOptions.parse(spec.options)
    directory = options.state_dir or state_dir
    if directory is None:
        raise TargetError(
            ErrorReason.TARGET_UNAVAILABLE,
            "the local target keeps its processes' state in files: set the service's state directory, or the target option state_dir",
            permanent=True,
        )
    return LocalTarget(fleet, instances, options=options, state_dir=directory, clock=clock, environment=environment)


def check_spec(spec: TargetSpec) -> None:
    """Check a spec when a fleet is created, long before it is used. Raises as `make_target`."""
    if spec.kind is TargetKind.LOCAL:
        LocalOptions.parse(spec.options)
    elif spec.kind is not TargetKind.DRY_RUN:
        raise TargetError(
            ErrorReason.TARGET_KIND_UNKNOWN,
            f"this version cannot change a fleet through {spec.kind.value!r}; it has dry_run and local",
            {"kind": spec.kind.value},
            permanent=True,
        )


class TargetPool:
    """One open target a fleet, for as long as the service runs: local engines are watched over also between rollouts."""

    def __init__(
        self, *, state_dir: Path | None = None, clock: Callable[[], float] = time.time, environment: Mapping[str, str] | None = None
    ) -> None:
        self._state_dir = state_dir
        self._clock = clock
        self._environment = environment
        self._open: dict[tuple[str, TargetKind], tuple[object, Target]] = {}

    async def get(self, fleet: Fleet, instances: Sequence[Instance], *, spec: TargetSpec | None = None) -> Target:
        """The fleet's target, made anew where its options or its instances have changed. Raises as `make_target`."""
        spec = spec or fleet.target
        key = (fleet.fleet_id, spec.kind)
        basis = (fleet.engine, fleet.model_name, tuple(sorted(spec.options.items())), _basis(instances))
        present = self._open.get(key)
        if present is not None and present[0] == basis:
            return present[1]
        target = make_target(fleet, instances, spec=spec, state_dir=self._state_dir, clock=self._clock, environment=self._environment)
        self._open[key] = (basis, target)
        if present is not None:
            await present[1].close()
        return target

    async def drop(self, fleet_id: str) -> None:
        """Close the targets of a fleet that is gone."""
        for key in [key for key in self._open if key[0] == fleet_id]:
            await self._open.pop(key)[1].close()

    async def close(self) -> None:
        """Close every target; engines keep running."""
        while self._open:
            await self._open.popitem()[1][1].close()


def _basis(instances: Sequence[Instance]) -> tuple[object, ...]:
    return tuple(
        (i.instance_id, i.engine, i.endpoint, i.engine_version, i.model_name, tuple(sorted(i.config.values().items())))
        for i in sorted(instances, key=lambda i: i.instance_id)
    )


def _dry_run_file(state_dir: Path | None, fleet_id: str) -> Path | None:
    if state_dir is None:
        return None
    directory = state_dir / "dry_run"
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise unusable(directory, error) from error
    return directory / f"{safe_name(fleet_id)}.json"
