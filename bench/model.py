"""How long a run lasts on n devices: the ranks' own protocol (solver/ranks.py), played with seconds instead of work.

Slots are dealt by turns as they become known, rank 0 last in a round or not at all; a drift is rolled out as soon as it
is there; once a guess is refused, the next pass's slots leave as they are rolled out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from gs_propeller.solver.dealing import pays_apart

# An update of the roll-out on an A100, assumed: 16 views of 5000 Gaussians there and back in one batch, the known view,
# Adam: about 60 kernels.
ROLL_OUT_GPU_S = 0.010


@dataclass(frozen=True)
class Costs:
    """Seconds of one drift, of a roll-out step (with the distance of its guess), of a guess without a drift, and of one
    message to a rank and its answer."""

    drift: float
    roll_out: float
    guess: float
    message: float


def serial_s(costs: Costs, steps: int) -> float:
    return steps * (costs.drift + costs.roll_out)


def loop_s(
    costs: Costs, accepted: Sequence[int], steps: int, window: int, devices: int, own: bool | None = None
) -> float:
    """Seconds of a run whose passes accepted so many steps each. own: whether rank 0 leaves the drifts to the others;
    None: as rollout_device=auto decides. Raises ValueError where the passes do not add up to the steps."""
    if sum(accepted) != steps:
        raise ValueError(f"{sum(accepted)} steps were accepted, not {steps}")
    own = pays_apart(costs.drift, costs.roll_out, devices, window) if own is None else own
    turns = itertools.count()
    free = [0.0] * devices  # when each rank has done what it was dealt; [0] is rank 0's own clock
    start, known = 0, [0.0] * min(window, steps)  # when the guess of each slot of the pass was known
    for skip in accepted:
        slots = len(known)
        there: list[float] = []
        for at in known:
            turn = next(turns)
            rank = turn % (devices - 1) + 1 if own and devices > 1 else (turn + 1) % devices
            if rank == 0:
                there.append(-1.0)
                continue
            free[rank] = max(free[rank], at + costs.message / 2) + costs.drift
            there.append(free[rank] + costs.message / 2)
        clock, following = free[0], []
        begun = [False] * slots
        for j in range(slots):
            for k in range(
                j, min(j + devices, slots)
            ):  # what rank 0 has to compute in this round comes first
                if there[k] < 0 and not begun[k] and (k == j or there[j] > clock):
                    begun[k], clock = True, clock + costs.drift
            clock = max(clock, there[j])
            if j == skip:
                following.append(clock)  # refused: this state begins the next pass
            clock += costs.roll_out
            if skip <= j:
                following.append(clock)
        if not following:
            following.append(clock)
        start += skip
        wanted = min(window, steps - start)
        while len(following) < wanted:
            clock += costs.guess
            following.append(clock)
        free[0], known = clock, following[:wanted]
    return free[0]
