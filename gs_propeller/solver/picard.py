"""Parallel-in-time solver: generalised Picard iteration on a sliding window (DreamPropeller).

A serial loop theta[tau + 1] = update(theta[tau], drift(theta[tau], tau)), tau = 0 .. T - 1, has one dear
part, the drift, and one cheap part, the update. The dear parts of P consecutive steps are evaluated at
once, at the best guesses known of their states; the cheap parts are rolled out in order from the one state
that is exact; what came out close enough to its guess is accepted, and the window slides (Algorithm 2).

T steps, tau the first of the window, P its size, k the pass; e threshold, gamma its moving average,
D parameters. States and drifts are opaque: anything that the functions of a Problem understand. So the
classic iteration of Eq. 5 is the same code with another drift and update: `classic`, Table 1's left column.

A pass is streamed: a drift is used as soon as it is there, and once the first guess is refused the states that
follow are known to be the next pass's guesses, one by one as they are rolled out, and may be sent (`expect`). When
something is computed changes nothing of what is: the bits are those of a pass after the other.

Departures from the paper: n devices give a window of n, not n - 1, since whoever rolls out would wait for
the drifts anyway; the window holds P + 1 states, since Algorithm 2 compares theta[tau + P] and never says
what its first guess is; the tail may go on by momentum instead of standing still, since a guess that moves
is nearer to what comes; an error that is no number is never accepted and does not move the threshold.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

S = TypeVar("S")  # a state theta, moments and all
D = TypeVar("D")  # a drift s(theta), Eq. 8

AGGREGATES = ("mean", "median", "refused")
TAILS = ("copy", "momentum")


@dataclass(frozen=True)
class Problem(Generic[S, D]):
    """What is integrated. All of them must be deterministic, and leave their arguments as they are.

    evaluate(states, steps) -> drifts: the dear part, any number of steps at once, in any order; the random
        numbers of a step depend on the step alone ("eliminating stochasticity", App. C). Handed back in the order of
        the states, as a list or one by one as they are ready.
    update(state, drift) -> state: the cheap part, h-dagger of Eq. 9; takes a drift computed at another
        guess of the same state, so it re-indexes where the dimensions changed.
    distance(new, old) -> d^2 / D of Eq. 14, the older one un-projected to the newer one's dimensions.
        0 only where the drifts of both are the same: that is what makes threshold 0 exact.
    coast(state) -> state: a guess of the next state without a drift. Needed by tail "momentum" alone.
    mismatch(state, drift) -> a distance in the place of `distance`: of the state from the guess that its drift was
        taken at, where a drift tells. The same rule for 0. (The window's last state has no drift, and no error.)
    expect(state, step): told as soon as it is known that the next call of evaluate will hold this state, in order.
    """

    evaluate: Callable[[Sequence[S], Sequence[int]], Iterable[D]]
    update: Callable[[S, D], S]
    distance: Callable[[S, S], float]
    coast: Callable[[S], S] | None = None
    mismatch: Callable[[S, D], float] | None = None
    expect: Callable[[S, int], None] | None = None


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

    return Problem(evaluate, add, problem.distance, problem.coast)  # no mismatch: the drift is another


@dataclass(frozen=True)
class Settings:
    """How it is integrated.

    steps: T, at least 0. window: P; 1 is the serial loop, 0 as many as there are workers (`among`).
    threshold: e >= 0, the first one. ema: gamma in 0..1; 1 keeps the threshold as it is. aggregate: M of Eq. 14.
    tail: what fills the end of a window that slid: "copy" (the paper's) or "momentum".
    With threshold 0 and ema 1 the result equals the serial loop's, whatever the window (App. A).
    Raises ValueError for anything else.
    """

    steps: int = field(metadata={"help": "T, optimisation steps", "low": 1})  # as an option; 0 does nothing
    window: int = field(
        default=1,
        metadata={
            "help": "P, steps evaluated at once; 0: as many as ranks, 1: the serial loop",
            "high": 1024,
        },
    )
    threshold: float = field(
        default=5e-4, metadata={"help": "e, first fixed-point threshold (the paper's Tables 3 and 4: 5e-4)"}
    )
    ema: float = field(default=0.9, metadata={"help": "gamma, of the adaptive threshold; 1 keeps it"})
    aggregate: str = field(
        default="mean",
        metadata={
            "help": "M, of the window's errors; the paper: median; refused: the first one over the threshold",
            "choices": AGGREGATES,
        },
    )
    tail: str = field(
        default="momentum",
        metadata={"help": "what fills the window's end; copy is the paper's", "choices": TAILS},
    )

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps must be at least 0, got {self.steps}")
        if self.window < 0:
            raise ValueError(f"window must be at least 0, got {self.window}")
        if not (self.threshold >= 0.0 and math.isfinite(self.threshold)):
            raise ValueError(f"threshold must be a number from 0 up, got {self.threshold}")
        if not 0.0 <= self.ema <= 1.0:
            raise ValueError(f"ema must be in 0..1, got {self.ema}")
        if self.aggregate not in AGGREGATES:
            raise ValueError(f"aggregate must be one of {', '.join(AGGREGATES)}, got '{self.aggregate}'")
        if self.tail not in TAILS:
            raise ValueError(f"tail must be one of {', '.join(TAILS)}, got '{self.tail}'")

    def among(self, workers: int) -> Settings:
        """The same with a window: n workers, n steps at once (the paper: n - 1)."""
        return self if self.window else replace(self, window=workers)


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

    errors: error_j of j = 1 .. p, or p - 1 where a Problem has mismatch. threshold: the e that they were held against.
    slots: p.
    """

    start: int
    accepted: int
    errors: tuple[float, ...]
    threshold: float
    drifts: tuple[D, ...]
    slots: int


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
    state, for a window of 0, and for tail "momentum" without coast.
    """
    if not 0 <= start <= settings.steps:
        raise ValueError(f"start must be in 0..{settings.steps}, got {start}")
    if not states:
        raise ValueError("a window needs its first state")
    if settings.window < 1:
        raise ValueError("a window of 0 is no window: say how many workers there are (Settings.among)")
    if settings.tail == "momentum" and problem.coast is None:
        raise ValueError("tail 'momentum' needs coast")
    guess = _Guesses(start, problem, settings)
    for state in states:
        guess.add(state)
    return Window(guess.filled(), start, threshold, passes, evaluations)


class _Guesses(Generic[S, D]):
    """The states of a window that begins at `start`, taken one by one; those that will be evaluated are told of at
    once where tell is true."""

    def __init__(self, start: int, problem: Problem[S, D], settings: Settings, tell: bool = False) -> None:
        self.start, self.problem, self.settings = start, problem, settings
        self.expect = problem.expect if tell else None
        self.size = min(settings.window, settings.steps - start) + 1  # p <- min(p, T - tau), Algorithm 2
        self.states: list[S] = []

    def add(self, state: S) -> None:
        place = len(self.states)
        if place < self.size:
            self.states.append(state)
        if place < self.size - 1 and self.expect is not None:
            self.expect(state, self.start + place)

    def filled(self) -> tuple[S, ...]:
        """The tail goes on from the last one."""
        while len(self.states) < self.size:
            last, coast = self.states[-1], self.problem.coast
            self.add(last if self.settings.tail == "copy" or coast is None else coast(last))
        return tuple(self.states)


def advance(window: Window[S], problem: Problem[S, D], settings: Settings) -> tuple[Window[S], Report[D]]:
    """One pass, k to k + 1: Algorithm 2's loop body. Accepts one step at least.

    Raises ValueError where nothing is left to do, or when evaluate returns another number of drifts, and what update
    raises of the first slot, which is exact.
    """
    tau, guesses, e = window.start, window.states, window.threshold
    p = len(guesses) - 1
    if p < 1:
        raise ValueError(f"no steps left after step {tau}")

    state, drifts, errors = guesses[0], list[D](), list[float]()
    following: _Guesses[S, D] | None = None  # the next window, once it is known where it begins
    broken = False  # whether the roll-out ended before the window
    # s(theta^k[tau + j]), j = 0 .. p - 1, in parallel
    for j, drift in enumerate(problem.evaluate(guesses[:p], range(tau, tau + p))):
        drifts.append(drift)
        if broken:
            errors.append(math.nan)
            continue
        if problem.mismatch is not None and j > 0:
            errors.append(problem.mismatch(state, drift))
            following = following or _refused(tau, j, state, errors[-1], e, problem, settings)
        # theta^(k+1)[tau + j + 1] = h-dagger(s(theta^k[tau + j]), theta^(k+1)[tau + j]): Eq. 9
        try:
            state = problem.update(state, drift)
        except FloatingPointError:
            if j == 0:
                raise
            # Of a guess, or behind one: the serial loop may never come here. What stands before counts, and the next
            # pass begins with the exact state, where the same error is the run's own.
            broken = True
            errors[j - 1 if problem.mismatch is not None else j :] = [math.nan]
            following = following or _refused(tau, j, state, math.nan, e, problem, settings)
            continue
        if following is not None:
            following.add(state)
        if problem.mismatch is None and j < p:
            # error_j = d(theta^(k+1)[tau + j], theta^k[tau + j])^2 / D, j = 1 .. p
            errors.append(problem.distance(state, guesses[j + 1]))
            following = following or _refused(tau, j + 1, state, errors[-1], e, problem, settings)
    if len(drifts) != p:
        raise ValueError(f"{p} states were to be evaluated, {len(drifts)} drifts came back")

    if following is None:
        following = _Guesses(tau + p, problem, settings, tell=True)
        following.add(state)
    skip = following.start - tau
    e_next = adapted(e, errors, settings.ema, settings.aggregate)
    slid = Window(following.filled(), tau + skip, e_next, window.passes + 1, window.evaluations + p)
    return slid, Report(tau, skip, tuple(errors), e, tuple(drifts[:skip]), p)


def _refused(
    tau: int, j: int, state: S, error: float, e: float, problem: Problem[S, D], settings: Settings
) -> _Guesses[S, D] | None:
    """The next window, if state j's guess is refused; skip = min({j : error_j > e} + {p}), j = 1 .. p (Algorithm 2).

    That state still counts: it was rolled out from drifts that were all within the threshold. Only its guess, and the
    drift taken there, were wrong.
    """
    if error <= e:  # and not `error > e` turned round: nan must stop here
        return None
    following = _Guesses(tau + j, problem, settings, tell=True)
    following.add(state)
    return following


def adapted(threshold: float, errors: Sequence[float], ema: float, aggregate: str) -> float:
    """e <- gamma e + (1 - gamma) M(errors): Eq. 14. The median of an even number is its middle two's mean.

    Over a wide window the mean and the median run away: far slots are off by design, so e grows until half of them
    pass. "refused" takes the error of the first guess that is over the threshold, the largest where none is: what lies
    behind the first refusal has no say.
    """
    finite = [error for error in errors if math.isfinite(error)]
    if ema == 1.0 or not finite:
        return threshold
    if aggregate == "refused":
        middle = next((error for error in finite if error > threshold), max(finite))
    else:
        middle = statistics.fmean(finite) if aggregate == "mean" else statistics.median(finite)
    return ema * threshold + (1.0 - ema) * middle


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
