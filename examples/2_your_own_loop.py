"""The solver around a loop that has nothing to do with pictures: a pendulum by Euler's method, steps in parallel.

    PYTHONPATH=. python examples/2_your_own_loop.py

Any serial loop state -> state has a place for it where a step has a dear part (here the slope, in your case perhaps
minutes on a GPU) and a cheap one. All it takes is the two of them, and a distance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gs_propeller.picard import Problem, Settings, solve

STEPS, DT = 400, 0.01
START = torch.tensor([2.0, 0.0], dtype=torch.float64)  # angle, its rate


def drift(state: Tensor, step: int) -> Tensor:
    """The dear part: of any step, at any guess of its state. A push in time makes it depend on the step too."""
    angle, rate = state
    push = 0.5 * torch.sin(torch.tensor(2.0 * step * DT, dtype=torch.float64))
    return torch.stack([rate, push - 9.81 * angle.sin() - 0.1 * rate])


def update(state: Tensor, slope: Tensor) -> Tensor:
    """The cheap part."""
    return state + DT * slope


def distance(new: Tensor, old: Tensor) -> float:
    """0 only where both have the same drift."""
    return float((new - old).square().mean())


def evaluate(states: list[Tensor], steps: list[int]) -> list[Tensor]:
    """All drifts of a window at once. Here in turn; on eight devices, one each."""
    return [drift(state, step) for state, step in zip(states, steps, strict=True)]


def main() -> list[tuple[float, int, float]]:
    """(threshold, passes, largest difference from the serial loop) of three runs."""
    serial = START
    for step in range(STEPS):
        serial = update(serial, drift(serial, step))
    found = []
    for threshold in (0.0, 1e-12, 1e-8):
        settings = Settings(STEPS, window=16, threshold=threshold, ema=1.0, tail="copy")
        done = solve(Problem(evaluate, update, distance), settings, START)  # type: ignore[arg-type]
        off = float((done.states[0] - serial).abs().max())
        print(
            f"threshold {threshold:g}: {STEPS} steps in {done.passes} passes, {off:.1e} off the serial loop"
        )
        found.append((threshold, done.passes, off))
    return found


if __name__ == "__main__":
    main()
