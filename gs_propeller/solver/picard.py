"""Parallel-in-time solver: generalised Picard iteration on a sliding window (DreamPropeller).

A serial loop theta[tau + 1] = update(theta[tau], drift(theta[tau], tau)), tau = 0 .. T - 1, has one dear
part, the drift, and one cheap part, the update. The dear parts of P consecutive steps are evaluated at
once, at the best guesses known of their states; the cheap parts are rolled out in order from the one state
that is exact; what came out close enough to its guess is accepted, and the window slides (Algorithm 2).

T steps, tau the first of the window, P its size, k the pass; e threshold, gamma its moving average,
D parameters. States and drifts are opaque: anything that the four functions of a Problem understand. So the
classic iteration of Eq. 5 is the same code with another drift and update: `classic`, Table 1's left column.

Departures from the paper: n devices give a window of n, not n - 1, since whoever rolls out would wait for
the drifts anyway; the window holds P + 1 states, since Algorithm 2 compares theta[tau + P] and never says
what its first guess is; the tail may go on by momentum instead of standing still, since a guess that moves
is nearer to what comes; an error that is no number is never accepted and does not move the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

S = TypeVar("S")  # a state theta, moments and all
D = TypeVar("D")  # a drift s(theta), Eq. 8

AGGREGATES = ("mean", "median")
TAILS = ("copy", "momentum")


@dataclass(frozen=True)
class Problem(Generic[S, D]):
    """What is integrated. All four must be deterministic, and leave their arguments as they are.

    evaluate(states, steps) -> drifts: the dear part, any number of steps at once, in any order; the random
        numbers of a step depend on the step alone ("eliminating stochasticity", App. C).
    update(state, drift) -> state: the cheap part, h-dagger of Eq. 9; takes a drift computed at another
        guess of the same state, so it re-indexes where the dimensions changed.
    distance(new, old) -> d^2 / D of Eq. 14, the older one un-projected to the newer one's dimensions.
        0 only where the drifts of both are the same: that is what makes threshold 0 exact.
    coast(state) -> state: a guess of the next state without a drift. Needed by tail "momentum" alone.
    """

    evaluate: Callable[[Sequence[S], Sequence[int]], Sequence[D]]
    update: Callable[[S, D], S]
    distance: Callable[[S, S], float]
    coast: Callable[[S], S] | None = None


def classic(
    problem: Problem[S, D], difference: Callable[[S, S], S], add: Callable[[S, S], S]
) -> Problem[S, S]:
    """The same problem as classic Picard iteration sees it (Eq. 5): what travels is the whole step g(x) - x, taken
    at the guess, and the roll-out is a cumulative sum.

    difference(new, old) and add(state, step) act on states. Where states change their dimensions there is no
    such thing, which is why the iteration was generalised.
    """

    def evaluate(states: Sequence[S], steps: Sequence[int]) -> Sequence[S]:
        drifts = problem.evaluate(states, steps)
        return [difference(problem.update(x, s), x) for x, s in zip(states, drifts, strict=True)]

    return Problem(evaluate, add, problem.distance, problem.coast)


@dataclass(frozen=True)
class Settings:
    """How it is integrated.

    steps: T, at least 0. window: P, at least 1; 1 is the serial loop. threshold: e >= 0, the first one.
    ema: gamma in 0..1; 1 keeps the threshold as it is. aggregate: M of Eq. 14. tail: what fills the end
    of a window that slid: "copy" (the paper's) or "momentum".
    With threshold 0 and ema 1 the result equals the serial loop's, whatever the window (App. A).
    Raises ValueError for anything else.
    """

    steps: int
    window: int = 1
    threshold: float = 5e-4  # Tables 3 and 4, 3D Gaussians
    ema: float = 0.9
    aggregate: str = "mean"
    tail: str = "momentum"

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps must be at least 0, got {self.steps}")
        if self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")
        if not (self.threshold >= 0.0 and math.isfinite(self.threshold)):
            raise ValueError(f"threshold must be a number from 0 up, got {self.threshold}")
        if not 0.0 <= self.ema <= 1.0:
            raise ValueError(f"ema must be in 0..1, got {self.ema}")
        if self.aggregate not in AGGREGATES:
            raise ValueError(f"aggregate must be one of {', '.join(AGGREGATES)}, got '{self.aggregate}'")
        if self.tail not in TAILS:
            raise ValueError(f"tail must be one of {', '.join(TAILS)}, got '{self.tail}'")


@dataclass(frozen=True)
class Window(Generic[S]):
    """All that evolves: theta[tau] .. theta[tau + p], p = min(P, T - tau), of which only the first is exact.

    states: p + 1 of them, from step `start` on. threshold: e. passes and evaluations: how many so far
    (a pass is one round of parallel drifts, an evaluation one drift).
    """

    states: tuple[S, ...]
    start: int
    threshold: float
    passes: int = 0
    evaluations: int = 0


@dataclass(frozen=True)
class Report(Generic[D]):
    """What one pass did: steps start .. start + accepted - 1 are done, and `drifts` are theirs.

    errors: error_j of j = 1 .. p. threshold: the e that they were held against.
    """

    start: int
    accepted: int
    errors: tuple[float, ...]
    threshold: float
    drifts: tuple[D, ...]


def init(state: S, problem: Problem[S, D], settings: Settings, start: int = 0) -> Window[S]:
    """The first window: the exact state of step `start`, and guesses of those that follow."""
    return resume((state,), start, settings.threshold, problem, settings)


def resume(
    states: Sequence[S],
    start: int,
    threshold: float,
    problem: Problem[S, D],
    settings: Settings,
    passes: int = 0,
    evaluations: int = 0,
) -> Window[S]:
    """A window from its parts, of the size that settings ask for: cut off, or its tail filled.

    states: one at least, the first of them exact. Raises ValueError for a start outside 0..T, for no
    state, and for tail "momentum" without coast.
    """
    if not 0 <= start <= settings.steps:
        raise ValueError(f"start must be in 0..{settings.steps}, got {start}")
    if not states:
        raise ValueError("a window needs its first state")
    if settings.tail == "momentum" and problem.coast is None:
        raise ValueError("tail 'momentum' needs coast")
    size = min(settings.window, settings.steps - start) + 1  # p <- min(p, T - tau), Algorithm 2
    filled = list(states[:size])
    while len(filled) < size:
        last = filled[-1]
        filled.append(last if settings.tail == "copy" or problem.coast is None else problem.coast(last))
    return Window(tuple(filled), start, threshold, passes, evaluations)


def advance(window: Window[S], problem: Problem[S, D], settings: Settings) -> tuple[Window[S], Report[D]]:
    """One pass, k to k + 1: Algorithm 2's loop body. Accepts one step at least.

    Raises ValueError where nothing is left to do, or when evaluate returns another number of drifts.
    """
    tau, guesses, e = window.start, window.states, window.threshold
    p = len(guesses) - 1
    if p < 1:
        raise ValueError(f"no steps left after step {tau}")

    # s(theta^k[tau + j]), j = 0 .. p - 1, in parallel
    drifts = problem.evaluate(guesses[:p], range(tau, tau + p))
    if len(drifts) != p:
        raise ValueError(f"{p} states were to be evaluated, {len(drifts)} drifts came back")

    # theta^(k+1)[tau + j + 1] = h-dagger(s(theta^k[tau + j]), theta^(k+1)[tau + j]): Eq. 9
    states = [guesses[0]]
    for drift in drifts:
        states.append(problem.update(states[-1], drift))

    # error_j = d(theta^(k+1)[tau + j], theta^k[tau + j])^2 / D, j = 1 .. p
    errors = [problem.distance(new, old) for new, old in zip(states[1:], guesses[1:], strict=True)]
    skip = accepted(errors, e)
    e_next = adapted(e, errors, settings.ema, settings.aggregate)
    slid = resume(
        states[skip:],
        tau + skip,
        e_next,
        problem,
        settings,
        passes=window.passes + 1,
        evaluations=window.evaluations + p,
    )
    return slid, Report(tau, skip, tuple(errors), e, tuple(drifts[:skip]))


def accepted(errors: Sequence[float], threshold: float) -> int:
    """skip = min({j : error_j > e} + {p}), j = 1 .. p (Algorithm 2).

    The step whose error is first over the threshold still counts: its state was rolled out from drifts
    that were all within it. Only its guess, and the drift taken there, were wrong.
    """
    for j, error in enumerate(errors, start=1):
        if not error <= threshold:  # and not `error > threshold`: nan must stop here
            return j
    return len(errors)


def adapted(threshold: float, errors: Sequence[float], ema: float, aggregate: str) -> float:
    """e <- gamma e + (1 - gamma) M(errors): Eq. 14. The median of an even number is its middle two's mean."""
    finite = torch.tensor([error for error in errors if math.isfinite(error)], dtype=torch.float64)
    if ema == 1.0 or not len(finite):
        return threshold
    # not Tensor.median: of an even number it takes the lower of the middle two
    middle = finite.mean() if aggregate == "mean" else finite.quantile(0.5)
    return ema * threshold + (1.0 - ema) * float(middle)


def solve(
    problem: Problem[S, D],
    settings: Settings,
    begin: S | Window[S],
    on_pass: Callable[[Window[S], Report[D]], None] | None = None,
) -> Window[S]:
    """Run to step T. The solution is `.states[0]` of what it returns.

    begin: the state of step 0, or a window to go on from. on_pass(window, report): called after each pass
    with the window as it stands then, for progress and checkpoints; it ends the run by raising.
    """
    window = begin if isinstance(begin, Window) else init(begin, problem, settings)
    while window.start < settings.steps:
        window, report = advance(window, problem, settings)
        if on_pass is not None:
            on_pass(window, report)
    return window
