"""The refusals that every target words alike."""

from __future__ import annotations

from perf_service.models.config import EngineConfig, config_hash
from perf_service.models.errors import ErrorReason, TargetError
from perf_service.targets.base import Op


def check_fence(instance_id: str, recorded: int, op: Op) -> None:
    """Raises TargetError LEASE_LOST where a later owner has acted already."""
    if op.fence < recorded:
        raise TargetError(
            ErrorReason.LEASE_LOST,
            f"replica {instance_id!r} has been acted on under fence {recorded}, so {op.op_id!r} with fence {op.fence} comes from "
            "a server that has lost its lease: nothing was done",
            {"instance_id": instance_id, "fence": str(recorded), "op_fence": str(op.fence), "op_id": op.op_id},
            permanent=True,
        )


def check_expected(instance_id: str, present: EngineConfig, expect_hash: str) -> None:
    """Raises TargetError TARGET_DRIFT where the replica's config is not the one that the change was made for."""
    found = config_hash(present)
    if found != expect_hash:
        raise TargetError(
            ErrorReason.TARGET_DRIFT,
            f"replica {instance_id!r} runs config {found[:12]}, not {expect_hash[:12]} as expected: somebody else has changed it. "
            "Nothing was done; start a new rollout from its present config.",
            {"instance_id": instance_id, "expected_hash": expect_hash, "observed_hash": found},
            permanent=True,
        )


def replica_unknown(instance_id: str, fleet_id: str) -> TargetError:
    """An effect on a replica that the fleet does not have."""
    return TargetError(
        ErrorReason.INSTANCE_NOT_FOUND,
        f"fleet {fleet_id!r} has no replica {instance_id!r}: it may have been deregistered meanwhile",
        {"instance_id": instance_id, "fleet_id": fleet_id},
        permanent=True,
    )
