"""Engine processes on this host as a rollout target."""

from perf_service.targets.local.options import LocalOptions
from perf_service.targets.local.target import LocalTarget

__all__ = ["LocalOptions", "LocalTarget"]
