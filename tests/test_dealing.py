"""Dealing, without a process: every slot to one rank, in order, and rank 0 apart where that is the faster."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import pytest

from gs_propeller.solver.dealing import Deal, Group, Slot, pays_apart


@dataclass(frozen=True)
class Place:
    params: str


def slots(n: int, first: int = 0) -> list[Slot]:
    return [(Place(f"state {k}"), k) for k in range(first, first + n)]


def dealt(deal: Deal, wanted: list[Slot]) -> list[tuple[int, list[int]]]:
    """(rank, steps) of each group of a pass, which is then over."""
    assert deal.begins(wanted)
    deal.whole(wanted)
    return [(group.rank, group.steps) for group in deal.cleared()]


def test_by_turns_rank_0_comes_last_in_a_round() -> None:
    assert dealt(Deal(1), slots(3)) == [(0, [0]), (0, [1]), (0, [2])]
    assert dealt(Deal(3), slots(5)) == [(1, [0]), (2, [1]), (0, [2]), (1, [3]), (2, [4])]
    assert dealt(Deal(3, at_once=2), slots(5)) == [(1, [0, 1]), (2, [2, 3]), (0, [4])]
    assert dealt(Deal(3, "own"), slots(3)) == [(1, [0]), (2, [1]), (1, [2])]
    deal = Deal(2)
    assert dealt(deal, slots(1)) + dealt(deal, slots(1)) == [(1, [0]), (0, [0])]  # the turns go on
    assert dealt(deal, []) == []


def test_a_group_is_never_so_large_that_a_rank_has_none() -> None:
    for ranks, at_once, n in itertools.product((1, 2, 3, 8), (1, 4, 100), (1, 2, 7, 8, 64)):
        for rollout, seed in (("shared", None), ("own", None), ("auto", 3)):
            found = dealt(Deal(ranks, rollout, seed, at_once), slots(n))
            busy = {rank for rank, _ in found}
            workers = ranks - 1 if rollout == "own" and ranks > 1 else ranks
            assert sorted(step for _, steps in found for step in steps) == list(range(n))
            assert max(len(steps) for _, steps in found) <= min(at_once, math.ceil(n / workers))
            if at_once == 1:
                assert len(busy) == min(n, workers)
            assert not (workers < ranks and 0 in busy)


def test_at_random_every_pass_is_dealt_anew_and_evenly() -> None:
    deal = Deal(4, seed=7)
    assert not deal.ahead
    passes = [dealt(deal, slots(16, first)) for first in range(12)]
    owners = [{step - k: rank for rank, steps in found for step in steps} for k, found in enumerate(passes)]
    assert all(list(owner.values()).count(rank) == 4 for owner in owners for rank in range(4))
    assert all(len({owner[slot] for owner in owners}) > 1 for slot in range(16))  # no rank keeps a slot
    assert passes[3] == dealt(Deal(4, seed=7), slots(16, 3))  # by the seed and the first step alone


def test_ahead_of_a_pass() -> None:
    """What was dealt ahead is the beginning of a pass, or it is none of it."""
    wanted = slots(5)

    def told(*which: int) -> Deal:
        deal = Deal(2, "shared")
        assert deal.ahead
        for k in which:
            deal.one(wanted[k])
        return deal

    for good in ((), (0,), (0, 1, 2), (0, 1, 2, 3, 4)):
        deal = told(*good)
        assert deal.begins(wanted)
        deal.whole(wanted)
        assert [(g.rank, g.steps) for g in deal.groups] == [(1, [0]), (0, [1]), (1, [2]), (0, [3]), (1, [4])]
    for bad in ((1,), (0, 2), (1, 0), (4, 3, 2, 1, 0)):
        assert not told(*bad).begins(wanted)
    assert not told(0, 1, 2).begins(wanted[:2])  # more than is wanted
    assert not told(0).begins([(Place("another"), 0)])
    assert not Deal(1).ahead and not Deal(2, seed=0).ahead


def test_no_slot_comes_to_a_group_that_was_asked_for() -> None:
    deal = Deal(2, at_once=4)
    deal.whole(slots(8))
    deal.cleared()
    first = deal.one(slots(1)[0])
    assert not deal.full(first)
    first.asked = True
    assert deal.one(slots(1, 1)[0]) is not first


def test_what_rank_0_computes_before_it_waits() -> None:
    deal = Deal(3, "shared")
    deal.whole(slots(9))
    for group in deal.groups:
        group.asked = True
    assert [own.steps for own in deal.due(deal.groups[0])] == [[2]]
    assert [own.steps for own in deal.due(deal.groups[4])] == [[2], [5]]
    deal.groups[2].results = ["there"]
    assert [own.steps for own in deal.due(deal.groups[4])] == [[5]]


def test_rank_0_leaves_the_drifts_to_the_others_once_it_is_known_to_pay() -> None:
    assert not pays_apart(math.inf, 0.1, 8, 32) and not pays_apart(1.0, 1.0, 1, 8)
    assert pays_apart(1.0, 0.25, 8, 32)  # max(5 rounds, 8 s) < 4 rounds + 8 s
    assert not pays_apart(1.0, 0.001, 2, 32)  # half of the drifts lost for nothing
    deal = Deal(8)
    deal.whole(slots(32))
    assert not deal.apart
    deal.cleared()
    deal.took(drift_s=1.0)
    deal.took(rollout_s=0.25)
    assert deal.apart
    deal.took(drift_s=9.0)  # a slow one says nothing
    assert deal.apart
    deal.turn_to(None, 1)
    assert not deal.apart  # another job
    assert not Deal(1, "own").apart and not Deal(4, "own", seed=1).apart


def test_a_way_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="rollout must be one of auto, shared, own, got 'both'"):
        Deal(2, "both")


def test_a_group_says_what_is_sent() -> None:
    made: Any = Group(0, 1, slots(2, 5))
    assert made.params == ["state 5", "state 6"] and made.steps == [5, 6]
