"""The network between validators is parted: no side accepts anything without a quorum, and all agree once it is whole again."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from partition import parted, private_network

from validators_fixture import ACCOUNTS, KEYS, TestValidators, running_validators

PARTED_SECONDS = 8.0

pytestmark = pytest.mark.timeout(500)


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestValidators]:
    """Five validators in a network namespace of their own."""
    with private_network(), running_validators(tmp_path_factory.mktemp("apart")) as found:
        yield found


def agreed(validators: TestValidators, transaction: str) -> int:
    """Height at which all validators have a transaction in one and the same block."""
    receipts = [validators.wait_mined(number, transaction) for number in validators.numbers()]
    assert len({receipt["blockHash"] for receipt in receipts}) == 1
    return int(receipts[0]["blockNumber"], 16)


@pytest.mark.parametrize("groups", [((1, 2, 3), (4, 5)), ((1, 2), (3, 4), (5,))], ids=["3|2", "2|2|1"])
def test_no_side_of_a_partition_without_a_quorum_accepts_a_block_and_nothing_that_waits_is_lost(
    apart: TestValidators, groups: tuple[tuple[int, ...], ...]
) -> None:
    before = agreed(apart, apart.pay(1)["transactionHash"])
    with parted(apart, *groups):
        waiting = [
            apart.broadcast(
                group[0], apart.sign(group[0], KEYS[2 * place + 1], to=ACCOUNTS[8], value=place + 1)
            )
            for place, group in enumerate(groups)
        ]
        time.sleep(PARTED_SECONDS)
        assert {apart.height(number) for number in apart.numbers()} == {before}
        for group, transaction in zip(groups, waiting, strict=True):
            assert apart.mined(group[0], transaction) is None
    balance = apart.balance(1, ACCOUNTS[8])
    heights = [agreed(apart, transaction) for transaction in waiting]
    assert min(heights) > before
    assert apart.balance(1, ACCOUNTS[8]) - balance <= sum(range(1, len(groups) + 1))
    top = max(heights)
    blocks = [apart.call(number, "eth_getBlockByNumber", hex(top), False) for number in apart.numbers()]
    assert len({block["hash"] for block in blocks if isinstance(block, dict)}) == 1
    assert len(blocks) == 5


def test_a_validator_cut_off_from_the_rest_accepts_nothing_and_catches_up(apart: TestValidators) -> None:
    before = agreed(apart, apart.pay(1)["transactionHash"])
    with parted(apart, (1, 2, 3, 4), (5,)):
        receipt = apart.pay(1)
        assert apart.height(5) == before
        assert apart.mined(5, receipt["transactionHash"]) is None
    assert agreed(apart, receipt["transactionHash"]) > before
