"""Which addresses may be reached."""

from __future__ import annotations

import pytest

from perf_service.collectors.transport import NetworkPolicy
from perf_service.models.errors import CollectError, ErrorReason


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254", "fd00:ec2::254"]
)
def test_metadata_addresses_are_denied_by_default(address: str) -> None:
    with pytest.raises(CollectError) as error:
        NetworkPolicy().check("name", address)
    assert error.value.reason is ErrorReason.ENDPOINT_FORBIDDEN
    assert error.value.metadata["host"] == "name"


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.5", "::1", "8.8.8.8"])
def test_others_are_admitted_by_default(address: str) -> None:
    NetworkPolicy().check("name", address)


def test_an_allow_list_admits_nothing_else_and_denial_wins() -> None:
    policy = NetworkPolicy.of(denied=["10.1.0.0/16"], allowed=["10.0.0.0/8"])
    policy.check("name", "10.0.0.5")
    policy.check("name", "::ffff:10.0.0.5")
    for address in ("10.1.0.5", "127.0.0.1", "::1"):
        with pytest.raises(CollectError):
            policy.check("name", address)
    NetworkPolicy.of(denied=[]).check("name", "169.254.169.254")
    with pytest.raises(ValueError, match="does not appear"):
        NetworkPolicy.of(allowed=["ten"])
