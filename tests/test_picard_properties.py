"""What must hold of the solver on any problem: small random ones, some of which change their size on the way."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gs_propeller.solver.picard import Problem, Report, Settings, Window, resume, solve


@dataclass(frozen=True)
class Toy:
    """x <- x + h tanh(A x + b_t) on D numbers; at every `grow`-th step the last number is doubled (0: never)."""

    size: int
    steps: int
    grow: int
    seed: int

    def start(self) -> Tensor:
        return torch.randn(self.size, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)

    def drift(self, x: Tensor, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(7919 * self.seed + step)  # the step's own random numbers
        push = torch.randn((), generator=generator, dtype=torch.float64)
        return 0.2 * torch.tanh(x.roll(1) - 0.5 * x + 0.3 * push * x.mean() + push)

    def update(self, state: tuple[Tensor, int], drift: Tensor) -> tuple[Tensor, int]:
        x, step = state
        rows = torch.arange(len(x)).clamp(max=len(drift) - 1)  # a drift of another size: nearest relative's
        x, step = x + drift[rows], step + 1
        if self.grow and step % self.grow == 0:
            x = torch.cat([x, x[-1:]])
        return x, step

    def problem(self, order: random.Random | None = None) -> Problem[tuple[Tensor, int], Tensor]:
        def evaluate(states: Sequence[tuple[Tensor, int]], steps: Sequence[int]) -> Sequence[Tensor]:
            slots = list(range(len(states)))
            if order is not None:
                order.shuffle(slots)
            drifts = {slot: self.drift(states[slot][0], steps[slot]) for slot in slots}
            return [drifts[slot] for slot in range(len(states))]

        def distance(new: tuple[Tensor, int], old: tuple[Tensor, int]) -> float:
            if len(new[0]) != len(old[0]):
                return 1.0  # never 0: a drift taken there is another drift
            return float((new[0] - old[0]).square().mean())

        def coast(state: tuple[Tensor, int]) -> tuple[Tensor, int]:
            return self.update(state, 0.05 * torch.ones_like(state[0]))

        return Problem(evaluate, self.update, distance, coast)

    def serial(self) -> list[Tensor]:
        states = [(self.start(), 0)]
        for step in range(self.steps):
            states.append(self.update(states[-1], self.drift(states[-1][0], step)))
        return [x for x, _ in states]


toys = st.builds(
    Toy,
    size=st.integers(1, 6),
    steps=st.integers(1, 40),
    grow=st.sampled_from([0, 0, 3, 7]),
    seed=st.integers(0, 999),
)
windows, tails = st.integers(1, 12), st.sampled_from(["copy", "momentum"])
many = settings(max_examples=60, deadline=None, derandomize=True)


def exact(toy: Toy, window: int, tail: str) -> Settings:
    return Settings(toy.steps, window, threshold=0.0, ema=1.0, tail=tail)


@many
@given(toy=toys, window=windows, tail=tails, seed=st.integers(0, 99))
def test_threshold_0_is_the_serial_loop_in_any_order(toy: Toy, window: int, tail: str, seed: int) -> None:
    truth, sizes = toy.serial(), []

    def on_pass(now: Window[tuple[Tensor, int]], report: Report[Tensor]) -> None:
        assert torch.equal(now.states[0][0], truth[now.start])  # exact all along
        assert now.states[0][1] == now.start
        assert 1 <= report.accepted == len(report.drifts) <= len(report.errors)
        sizes.append(len(report.errors))

    start = (toy.start(), 0)
    done = solve(toy.problem(random.Random(seed)), exact(toy, window, tail), start, on_pass)
    assert torch.equal(done.states[0][0], truth[-1])
    assert done.passes == len(sizes) <= toy.steps
    assert done.evaluations == sum(sizes)


@pytest.mark.slow
@many
@given(
    toy=toys, window=windows, tail=tails, threshold=st.floats(0.0, 1.0), ema=st.floats(0.0, 1.0),
    aggregate=st.sampled_from(["mean", "median"]),
)  # fmt: skip
def test_any_setting_ends_with_finite_states(
    toy: Toy, window: int, tail: str, threshold: float, ema: float, aggregate: str
) -> None:
    done = solve(
        toy.problem(), Settings(toy.steps, window, threshold, ema, aggregate, tail), (toy.start(), 0)
    )
    assert done.start == toy.steps and len(done.states) == 1
    assert len(done.states[0][0]) == len(toy.serial()[-1])
    assert bool(done.states[0][0].isfinite().all()) and done.threshold >= 0.0
    assert math.ceil(toy.steps / window) <= done.passes <= toy.steps


@pytest.mark.slow
@many
@given(toy=toys, window=windows, other=windows, tail=tails, cut=st.integers(0, 40))
def test_cut_anywhere_and_taken_up_with_another_window(
    toy: Toy, window: int, other: int, tail: str, cut: int
) -> None:
    problem, held = toy.problem(), []
    solve(problem, exact(toy, window, tail), (toy.start(), 0), lambda now, _: held.append(now))
    w = held[min(cut, len(held) - 1)]
    again = exact(toy, other, tail)
    done = solve(
        problem, again, resume(w.states, w.start, w.threshold, problem, again, w.passes, w.evaluations)
    )
    assert torch.equal(done.states[0][0], toy.serial()[-1])


@many
@given(toy=toys, window=windows, tail=tails, broken=st.integers(0, 39))
def test_an_error_that_is_no_number_is_never_passed(toy: Toy, window: int, tail: str, broken: int) -> None:
    """Distances to states of one step are nan: no pass accepts beyond it."""
    problem = toy.problem()

    def distance(new: tuple[Tensor, int], old: tuple[Tensor, int]) -> float:
        return math.nan if new[1] == broken else problem.distance(new, old)

    def on_pass(now: Window[tuple[Tensor, int]], report: Report[Tensor]) -> None:
        if any(math.isnan(error) for error in report.errors):
            assert now.start <= broken
            assert math.isfinite(now.threshold)

    nowhere = Problem(problem.evaluate, problem.update, distance, problem.coast)
    done = solve(
        nowhere, Settings(toy.steps, window, threshold=1.0, ema=0.5, tail=tail), (toy.start(), 0), on_pass
    )
    assert done.start == toy.steps
