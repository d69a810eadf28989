"""Which rank computes which of the window's slots: decided here, on rank 0, without a message.

W ranks, slots: the window's states. A pass is dealt in groups, each of one rank and computed in one call. By turns a
slot may be dealt before its pass begins, since nothing but its place decides who computes it; at random, which ranks
that learn (VSD) want so that each sees the whole window, only a whole pass can be dealt.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from gs_propeller.base.randomness import keyed_generator

ROLLOUTS = ("auto", "shared", "own")

Slot = tuple[Any, int]  # state, step


def pays_apart(drift_s: float, rollout_s: float, ranks: int, slots: int) -> bool:
    """Whether a pass of so many slots is over sooner where rank 0 only rolls out, behind the rounds of the others'
    drifts, than where it computes drifts too and rolls out when they are there. Seconds of one slot; infinite: not yet
    known, and then it shares."""
    if not math.isfinite(drift_s + rollout_s) or ranks < 2:
        return False
    shared_s = -(-slots // ranks) * drift_s + slots * rollout_s
    return max(-(-slots // (ranks - 1)) * drift_s, slots * rollout_s) < shared_s


@dataclass
class Group:
    """Slots that one rank computes in one call. number: of the group, in the order that they were dealt in. asked: no
    more slots come to it. sends: of its request, under way. results: None until they are there."""

    number: int
    rank: int
    slots: list[Slot]
    asked: bool = False
    sends: list[Any] = field(default_factory=list)
    results: Sequence[Any] | None = None

    @property
    def params(self) -> list[Any]:
        return [state.params for state, _ in self.slots]

    @property
    def steps(self) -> list[int]:
        return [step for _, step in self.slots]


class Deal:
    """The slots that are dealt and not all handed on, as `groups` in the order of their numbers.

    at_once: slots that a rank computes in one call, fewer where some rank would have none. rollout: "shared", rank 0
    computes drifts too; "own", it only rolls out, as the paper has it; "auto", the faster by what a drift and a
    roll-out step have taken. seed: None deals by turns, a number at random, pass by pass.
    """

    def __init__(self, ranks: int, rollout: str = "auto", seed: int | None = None, at_once: int = 1):
        if rollout not in ROLLOUTS:
            raise ValueError(f"rollout must be one of {', '.join(ROLLOUTS)}, got '{rollout}'")
        self.ranks, self.rollout = ranks, rollout
        self.groups: list[Group] = []
        self.turns = itertools.count()
        self._numbers = itertools.count()
        self._share = 1  # slots of a group
        self.turn_to(seed, at_once)

    def turn_to(self, seed: int | None, at_once: int) -> None:
        """Another job: dealt so, with costs of its own."""
        self.seed, self.at_once = seed, max(1, at_once)
        self._drift_s, self._rollout_s = math.inf, math.inf  # of one slot: the least measured
        self._widest = 0  # slots of a pass

    @property
    def ahead(self) -> bool:
        """Whether a slot can be dealt before its pass begins, to somebody else."""
        return self.seed is None and self.ranks > 1

    @property
    def apart(self) -> bool:
        """Whether rank 0 leaves the drifts to the others."""
        if self.ranks == 1 or self.rollout == "shared" or self.seed is not None:
            return False
        return self.rollout == "own" or pays_apart(self._drift_s, self._rollout_s, self.ranks, self._widest)

    def took(self, drift_s: float = math.inf, rollout_s: float = math.inf) -> None:
        """What one slot cost."""
        self._drift_s, self._rollout_s = min(self._drift_s, drift_s), min(self._rollout_s, rollout_s)

    def begins(self, wanted: Sequence[Slot]) -> bool:
        """Whether what is dealt already is how this pass begins."""
        dealt = [slot for group in self.groups for slot in group.slots]
        same = (x is y and s == t for (x, s), (y, t) in zip(dealt, wanted, strict=False))
        return len(dealt) <= len(wanted) and all(same)

    def one(self, slot: Slot) -> Group:
        """The group that a slot is dealt to by turns: the one being filled, else a new one of the rank whose turn it
        is. It is to be asked for once it is `full`."""
        last = self.groups[-1] if self.groups else None
        if last is None or last.asked or self.full(last):
            last = self._group(self._whose_turn(), [])
        last.slots.append(slot)
        return last

    def full(self, group: Group) -> bool:
        return len(group.slots) >= self._share

    def whole(self, wanted: Sequence[Slot]) -> None:
        """The pass whose first slots `groups` holds is dealt to its end."""
        self._widest = max(self._widest, len(wanted))
        ranks = self.ranks - 1 if self.apart else self.ranks
        self._share = max(1, min(self.at_once, -(-len(wanted) // ranks)))
        rest = wanted[sum(len(group.slots) for group in self.groups) :]
        if self.seed is None:
            for slot in rest:
                self.one(slot)
        elif rest:
            places = torch.randperm(len(rest), generator=keyed_generator(self.seed, rest[0][1], "deal"))
            for rank in range(self.ranks):
                mine = [
                    slot
                    for slot, place in zip(rest, places.tolist(), strict=True)
                    if place % self.ranks == rank
                ]
                for first in range(0, len(mine), self._share):
                    self._group(rank, mine[first : first + self._share])

    def due(self, group: Group) -> list[Group]:
        """What rank 0 has to compute in the round of another's group, before it waits for that."""
        return [
            own
            for own in self.groups
            if own.rank == 0 and own.asked and own.results is None and own.number < group.number + self.ranks
        ]

    def cleared(self) -> list[Group]:
        """What was dealt; now nothing is."""
        groups, self.groups = self.groups, []
        return groups

    def _group(self, rank: int, slots: list[Slot]) -> Group:
        self.groups.append(Group(next(self._numbers), rank, slots))
        return self.groups[-1]

    def _whose_turn(self) -> int:
        """Rank 0 comes last in a round, since it is still rolling out when the others could begin."""
        turn = next(self.turns)
        return turn % (self.ranks - 1) + 1 if self.apart else (turn + 1) % self.ranks
