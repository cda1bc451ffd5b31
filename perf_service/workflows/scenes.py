"""Who and what a workflow acts on: its instances as they are registered now, and its target."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

from perf_service.models.errors import InvalidArgumentError, NotFoundError, PerfServiceError
from perf_service.models.fleet import Fleet, Instance, TargetKind, TargetSpec
from perf_service.models.workflow import Workflow
from perf_service.storage.ports import Store
from perf_service.targets.base import Target
from perf_service.targets.dry_run import DryRunTarget
from perf_service.targets.missing import MissingTarget
from perf_service.workflows.collecting import implied_instance
from perf_service.workflows.reconciler import Scene
from perf_service.workflows.stored_pages import StoredPages


class TargetProvider(Protocol):
    """Open targets, one a fleet."""

    async def get(self, fleet: Fleet, instances: Sequence[Instance], *, spec: TargetSpec | None = None) -> Target:
        """The fleet's target. Raises TargetError."""
        ...


class Scenes:
    """Keeps the dry runs' targets, which have a memory, until they are forgotten."""

    def __init__(self, store: Store, pages: StoredPages, targets: TargetProvider, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._pages = pages
        self._targets = targets
        self._clock = clock
        self._dry_runs: dict[str, Target] = {}

    def forget(self, workflow_id: str) -> None:
        """The workflow has ended, or somebody else drives it."""
        self._dry_runs.pop(workflow_id, None)

    async def of(self, workflow: Workflow) -> Scene:
        """The instances and the target that a workflow acts on, as they are registered now.

        A target that cannot be had any more (its options were spoilt, its directory is gone) is one that fails at every call: the rollout
        is then held and undone like after any other trouble with a target, instead of standing still without a word.
        """
        lone = workflow.fleet_id == workflow.instance_id
        instances: tuple[Instance, ...] = ()
        fleet: Fleet | None = None
        with contextlib.suppress(NotFoundError, InvalidArgumentError):  # deleted, or without any instance by now
            fleet = await self._store.get_fleet(workflow.fleet_id)
            instances = await self._pages.members(workflow.fleet_id)
        if lone and not instances:
            try:
                instances = (await self._store.get_instance(workflow.instance_id),)
            except NotFoundError:
                instances = (implied_instance(workflow.instance_id, workflow.engine),)
        if workflow.target.kind is TargetKind.DRY_RUN:
            target = self._dry_runs.get(workflow.workflow_id)
            if target is None:
                target = self._dry_runs[workflow.workflow_id] = DryRunTarget(workflow.fleet_id, instances, self._clock)
        else:
            owner = fleet or Fleet(workflow.fleet_id, workflow.engine, target=workflow.target)
            try:
                target = await self._targets.get(owner, instances, spec=workflow.target)
            except PerfServiceError as error:
                target = MissingTarget(error)
        return Scene(instances, target)
