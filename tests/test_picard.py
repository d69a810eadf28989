"""The window against plain loops: exact solutions, Algorithm 2 by hand, Gaussians that split."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from gs_propeller.scenes.gaussians.density import coast, distance, scaled_distance, update
from gs_propeller.scenes.gaussians.lineage import COPY, FIRST_HALF, NOBODY
from gs_propeller.scenes.gaussians.state import Drift, State
from gs_propeller.solver.picard import (
    Problem,
    Report,
    Settings,
    Window,
    adapted,
    advance,
    classic,
    init,
    resume,
    solve,
)
from tests.toy_scene import ADAM, DENSITY, SEED, STEPS, drift_at, scene

H = 0.05  # step of the ODE


def slope(x: Tensor, step: int) -> Tensor:
    """x' = (-x_0 + cos t, x_0 - x_1^3): nonlinear, not autonomous."""
    return torch.stack([-x[0] + math.cos(step * H), x[0] - x[1] ** 3])


ODE: Problem[Tensor, Tensor] = Problem(  # the classic iteration: a drift h s(x), Eq. 5
    evaluate=lambda states, steps: [H * slope(x, step) for x, step in zip(states, steps, strict=True)],
    update=lambda x, drift: x + drift,
    distance=lambda new, old: float((new - old).square().mean()),
    coast=lambda x: 1.02 * x,
)
X0 = torch.tensor([1.0, -0.5], dtype=torch.float64)


def euler(steps: int) -> Tensor:
    x = X0
    for step in range(steps):
        x = x + H * slope(x, step)
    return x


def exact(threshold: float = 0.0, **others: object) -> Settings:
    return Settings(threshold=threshold, ema=1.0, **others)  # type: ignore[arg-type]


def resets(before: State, after: State) -> bool:
    """Whether the update between them took every opacity down to the ceiling."""
    ceiling = math.log(DENSITY.reset_opacity / (1.0 - DENSITY.reset_opacity)) + 1e-6
    return bool((after.params.logit_opacities <= ceiling).all()) and not bool(
        (before.params.logit_opacities <= ceiling).all()
    )


def gaussian_problem() -> Problem[State, Drift]:
    def evaluate(states: Sequence[State], steps: Sequence[int]) -> list[Drift]:
        drifts = []
        for state, step in zip(states, steps, strict=True):
            grads, stats, losses = drift_at(state.params, step)
            drifts.append(Drift(grads, stats, state.lineage, losses))
        return drifts

    return Problem(
        evaluate,
        partial(update, adam=ADAM, density=DENSITY, seed=SEED),
        partial(distance, seed=SEED),
        partial(coast, adam=ADAM, density=DENSITY, seed=SEED),
    )


# ---- equal to the serial loop


@pytest.mark.parametrize("tail", ["copy", "momentum"])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 50])
def test_threshold_0_is_the_serial_loop(window: int, tail: str) -> None:
    done = solve(ODE, exact(steps=40, window=window, tail=tail), X0)
    assert done.start == 40 and len(done.states) == 1
    assert torch.equal(done.states[0], euler(40))
    assert done.passes <= 40  # App. A
    assert done.threshold == 0.0


def test_classic_picard_reaches_the_exact_solution() -> None:
    """x' = -x from 1: Euler's (1 - h)^n, by a window over the whole path and a threshold near rounding."""
    decay: Problem[Tensor, Tensor] = Problem(
        lambda states, steps: [-H * x for x in states], torch.add, lambda new, old: float((new - old) ** 2)
    )
    done = solve(decay, exact(1e-24, steps=60, window=60, tail="copy"), torch.ones((), dtype=torch.float64))
    assert abs(float(done.states[0]) - (1 - H) ** 60) < 1.5e-13  # 5.4e-14
    assert done.passes < 30  # 22


def test_classic_and_generalised_iteration() -> None:
    """Table 1: Adam on a quadratic. The classic one needs more passes to the same solution, moments and all."""

    def step(state: tuple[Tensor, Tensor, Tensor], gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, m, v = state
        m, v = 0.9 * m + 0.1 * gradient, 0.99 * v + 0.01 * gradient.square()
        return x - 0.02 * m / (v.sqrt() + 1e-3), m, v

    curvature = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    generalised: Problem[tuple[Tensor, Tensor, Tensor], Tensor] = Problem(
        lambda states, steps: [
            curvature * (x - math.sin(t)) for (x, _, _), t in zip(states, steps, strict=True)
        ],
        step,
        lambda new, old: max(float((a - b).square().mean()) for a, b in zip(new, old, strict=True)),
    )
    cumulative = classic(
        generalised,
        lambda new, old: tuple(a - b for a, b in zip(new, old, strict=True)),  # type: ignore[arg-type,return-value]
        lambda state, delta: tuple(a + b for a, b in zip(state, delta, strict=True)),  # type: ignore[arg-type,return-value]
    )
    first = (torch.ones(3, dtype=torch.float64), *torch.zeros(2, 3, dtype=torch.float64))
    serial = solve(generalised, exact(steps=60, tail="copy"), first).states[0]
    passes = []
    for problem in (cumulative, generalised):
        done = solve(problem, exact(1e-14, steps=60, window=20, tail="copy"), first)
        assert torch.allclose(done.states[0][0], serial[0], rtol=0, atol=4e-9)  # 1.3e-9
        passes.append(done.passes)
    assert passes[1] < passes[0]  # 15, 24


def test_window_1_is_one_evaluation_a_step() -> None:
    """Any threshold: one step is accepted each pass, from its exact state."""
    done = solve(ODE, Settings(steps=25, window=1, threshold=1e9), X0)
    assert (done.passes, done.evaluations) == (25, 25)
    assert torch.equal(done.states[0], euler(25))


@pytest.mark.slow
@pytest.mark.parametrize("tail", ["copy", "momentum"])
def test_gaussians_that_split_and_die(tail: str) -> None:
    """Every window's state equals the plain loop's in every tensor, over clones, splits, prunes and resets."""
    problem, states = gaussian_problem(), [scene(24)]
    for step in range(STEPS):
        states.append(problem.update(states[-1], problem.evaluate(states[-1:], [step])[0]))
    everyone = {own for state in states for own in state.ids.tolist()}
    last = states[-1].lineage
    assert {NOBODY % 4, COPY, FIRST_HALF} <= set((last[:, 0, 1] % 4).tolist())
    parents = {row[1][0] for state in states for row in state.lineage.tolist() if row[0][1] % 4 in (1, 2)}
    assert len(everyone - set(last[:, 0, 0].tolist()) - parents) > 0  # pruned, not split
    assert any(resets(before, after) for before, after in itertools.pairwise(states))
    for window in (2, 8) if tail == "copy" else (1, 5):
        done = solve(problem, exact(steps=STEPS, window=window, tail=tail), scene(24))
        for name, tensor in done.states[0].tensors().items():
            assert torch.equal(tensor, states[-1].tensors()[name]), f"{name}, window {window}"
        assert done.passes == STEPS if window == 1 else done.passes <= STEPS


@pytest.mark.slow
@pytest.mark.parametrize("metric", [distance, scaled_distance])
def test_both_distances_are_exact_at_threshold_0(metric: Callable[[State, State, int], float]) -> None:
    problem = replace(gaussian_problem(), distance=partial(metric, seed=SEED))
    serial = solve(problem, exact(steps=STEPS), scene(24))
    done = solve(problem, exact(steps=STEPS, window=6), scene(24))
    assert torch.equal(serial.states[0].params.pack(), done.states[0].params.pack())
    assert done.passes <= STEPS


def test_adaptive_threshold_is_faster_and_near() -> None:
    problem = gaussian_problem()
    serial = solve(problem, Settings(steps=30, window=1), scene(24))
    assert serial.passes == 30
    for tail in ("copy", "momentum"):
        done = solve(problem, Settings(steps=30, window=6, threshold=1e-4, tail=tail), scene(24))
        assert done.passes <= 10  # copy 8, momentum 7, for 30 steps
        assert distance(serial.states[0], done.states[0], SEED) < 4e-5  # copy 1.6e-5, momentum 2.8e-6


# ---- Algorithm 2 by hand


def algorithm_2(settings: Settings) -> tuple[list[tuple[int, int, float]], Tensor]:
    """The paper's listing for the ODE, its names kept, in plain lists: (tau, skip, e) of each pass."""
    T, n, e = settings.steps, settings.window + 1, settings.threshold
    tau, p = 0, min(n - 1, settings.steps)
    theta = dict.fromkeys(range(p + 1), X0)
    trace = []
    while tau < T:
        s = {tau + j: H * slope(theta[tau + j], tau + j) for j in range(p)}
        new = {tau: theta[tau]}
        for j in range(p):
            new[tau + j + 1] = new[tau + j] + s[tau + j]
        error = {j: float(((new[tau + j] - theta[tau + j]) ** 2).sum()) / 2 for j in range(1, p + 1)}
        skip = min({j for j in range(1, p + 1) if error[j] > e} | {p})
        trace.append((tau, skip, e))
        for j in range(p, skip + p + 1):
            new[tau + j] = new[tau + p]
        theta = new
        tau += skip
        middle = statistics.median if settings.aggregate == "median" else statistics.fmean
        if settings.ema < 1:
            e = settings.ema * e + (1 - settings.ema) * middle(error.values())
        p = min(p, T - tau)
    return trace, theta[T]


@pytest.mark.parametrize("aggregate", ["mean", "median"])
@pytest.mark.parametrize("window", [1, 2, 5, 8])
@pytest.mark.parametrize(
    ("threshold", "ema"), [(1e-6, 1.0), (1e-4, 0.9), (1e-9, 0.2), (0.0, 0.5), (1e-3, 0.0)]
)
def test_follows_the_listing(window: int, threshold: float, ema: float, aggregate: str) -> None:
    settings = Settings(37, window, threshold, ema, aggregate, tail="copy")
    reports: list[Report[Tensor]] = []
    done = solve(ODE, settings, X0, lambda window, report: reports.append(report))
    trace, final = algorithm_2(settings)
    assert [(r.start, r.accepted) for r in reports] == [(tau, skip) for tau, skip, _ in trace]
    assert [r.threshold for r in reports] == pytest.approx([e for *_, e in trace], rel=1e-12)
    assert torch.equal(done.states[0], final)
    assert done.passes == len(trace) and done.evaluations == sum(len(r.errors) for r in reports)
    assert all(len(r.drifts) == r.accepted for r in reports)


@pytest.mark.parametrize(
    ("errors", "threshold", "skip"),
    [
        ([0.0, 0.0, 0.0], 0.0, 3),
        ([0.1, 0.0, 0.0], 0.1, 3),  # over, not at
        ([0.2, 0.0, 0.0], 0.1, 1),
        ([0.0, 0.2, 0.3], 0.1, 2),
        ([0.0, 0.0, 0.3], 0.1, 3),
        ([0.0, math.nan, 0.0], 0.1, 2),
        ([math.inf], 1e300, 1),
    ],
)
@pytest.mark.parametrize("told", ["distance", "mismatch"])
def test_skip(errors: list[float], threshold: float, skip: int, told: str) -> None:
    """skip = min({j : error_j > e} + {p}), whoever says what error_j is."""
    p = len(errors)
    assert skip == min({j for j in range(1, p + 1) if not errors[j - 1] <= threshold} | {p})
    count = Problem[int, int](
        lambda states, steps: list(steps),
        lambda state, drift: drift + 1,
        lambda new, old: errors[new - 1] if 0 < new <= p else 0.0,
        mismatch=(lambda state, drift: errors[state - 1]) if told == "mismatch" else None,
    )
    settings = Settings(p, p, threshold, ema=1.0, tail="copy")
    window, report = advance(init(0, count, settings), count, settings)
    assert report.accepted == skip and window.start == skip and report.slots == p
    shown = errors[: p - 1] if told == "mismatch" else errors  # the last state has no drift
    assert str(report.errors) == str(tuple(shown))


@pytest.mark.parametrize("errors", [[3.0], [5.0, 1.0], [9.0, 1.0, 4.0], [8.0, 1.0, 3.0, 2.0]])
def test_aggregates_are_true(errors: list[float]) -> None:
    assert adapted(7.0, errors, 0.0, "median") == pytest.approx(statistics.median(errors), rel=1e-15)
    assert adapted(7.0, errors, 0.0, "mean") == pytest.approx(statistics.fmean(errors), rel=1e-15)
    expected = 0.9 * 7.0 + 0.1 * statistics.median(errors)
    assert adapted(7.0, errors, 0.9, "median") == pytest.approx(expected, rel=1e-15)
    assert adapted(7.0, errors, 1.0, "median") == 7.0
    assert adapted(7.0, [*errors, math.nan, math.inf], 0.0, "mean") == pytest.approx(statistics.fmean(errors))
    assert adapted(7.0, [math.nan], 0.0, "mean") == 7.0


def test_momentum_tail_guesses_a_steady_path() -> None:
    """A constant drift that coast knows: every pass after the first accepts its whole window."""
    line: Problem[Tensor, Tensor] = Problem(
        lambda states, steps: [torch.ones(()) for _ in states],
        torch.add,
        lambda new, old: float((new - old) ** 2),
        lambda x: x + 1.0,
    )
    momentum = solve(line, exact(steps=40, window=8, tail="momentum"), torch.zeros(()))
    copy = solve(line, exact(steps=40, window=8, tail="copy"), torch.zeros(()))
    assert float(momentum.states[0]) == float(copy.states[0]) == 40.0
    assert momentum.passes == 5
    assert copy.passes > 5


# ---- a distance told by drifts, and slots told of ahead


def by_mismatch(
    heard: list[tuple[Tensor, int]] | None = None, streamed: bool = True
) -> Problem[Tensor, tuple[Tensor, Tensor]]:
    """The ODE, its drifts with the state that they were taken at; heard: what is told ahead."""

    def evaluate(states: Sequence[Tensor], steps: Sequence[int]) -> Iterable[tuple[Tensor, Tensor]]:
        made = ((x, H * slope(x, step)) for x, step in zip(states, steps, strict=True))
        return made if streamed else list(made)

    return Problem(
        evaluate,
        lambda x, drift: x + drift[1],
        lambda new, old: math.nan,  # never asked
        lambda x: 1.02 * x,
        lambda x, drift: float((x - drift[0]).square().mean()),
        None if heard is None else lambda x, step: heard.append((x, step)),
    )


@pytest.mark.parametrize("tail", ["copy", "momentum"])
@pytest.mark.parametrize("window", [1, 2, 5, 8, 50])
def test_mismatch_at_threshold_0_is_the_serial_loop(window: int, tail: str) -> None:
    done = solve(by_mismatch(), exact(steps=40, window=window, tail=tail), X0)
    assert torch.equal(done.states[0], euler(40)) and done.passes <= 40


@pytest.mark.parametrize("threshold", [0.0, 1e-7, 1e-5])
def test_mismatch_takes_the_steps_that_the_distance_takes(threshold: float) -> None:
    """Where both measure the same, but for the window's last state, which has no drift to tell."""
    passes: list[list[tuple[int, int]]] = []
    for problem in (ODE, by_mismatch()):
        seen: list[tuple[int, int]] = []
        solve(
            problem,
            exact(threshold, steps=37, window=6),
            X0,
            lambda _, r, seen=seen: seen.append((r.start, r.accepted)),
        )  # type: ignore[misc]
        passes.append(seen)
    assert passes[0] == passes[1]


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("tail", ["copy", "momentum"])
@pytest.mark.parametrize("threshold", [0.0, 1e-6, 1e9])
@pytest.mark.parametrize("told", ["mismatch", "distance"])
def test_what_is_told_is_what_the_next_call_holds(
    threshold: float, tail: str, told: str, streamed: bool
) -> None:
    """In order, the very states; and while a pass is streamed, as soon as its first refusal is known."""
    heard: list[tuple[Tensor, int]] = []
    calls: list[list[tuple[Tensor, int]]] = []
    early: list[int] = []
    problem = by_mismatch(heard, streamed)

    def evaluate(states: Sequence[Tensor], steps: Sequence[int]) -> Iterable[tuple[Tensor, Tensor]]:
        wanted = list(zip(states, steps, strict=True))
        assert len(heard) == (len(wanted) if calls else 0)
        for (x, s), (y, t) in zip(heard, wanted, strict=False):
            assert x is y and s == t
        calls.append(wanted)
        heard.clear()
        yield from list(problem.evaluate(states, steps))
        early.append(len(heard))  # told before the last drift's roll-out was over

    task = replace(problem, evaluate=evaluate)
    if told == "distance":
        task = replace(task, mismatch=None, distance=ODE.distance)
    settings = Settings(31, 6, threshold, ema=1.0, tail=tail)
    done = solve(task, settings, X0)
    assert not heard and done.passes == len(calls)
    assert done.evaluations == sum(len(call) for call in calls)
    assert any(early) == (threshold < 1e9)


def test_a_pass_uses_each_drift_before_it_asks_for_the_next() -> None:
    order: list[str] = []

    def evaluate(states: Sequence[Tensor], steps: Sequence[int]) -> Iterable[Tensor]:
        for x, step in zip(states, steps, strict=True):
            order.append(f"drift {step}")
            yield H * slope(x, step)

    def update(x: Tensor, drift: Tensor) -> Tensor:
        order.append("update")
        return x + drift

    task = Problem(evaluate, update, ODE.distance, ODE.coast)
    advance(init(X0, task, exact(steps=3, window=3)), task, exact(steps=3, window=3))
    assert order == ["drift 0", "update", "drift 1", "update", "drift 2", "update"]


# ---- the window


def test_window_shrinks_at_the_end() -> None:
    sizes: list[tuple[int, int]] = []
    done = solve(ODE, Settings(10, 4, threshold=1e9), X0, lambda w, _: sizes.append((w.start, len(w.states))))
    assert sizes == [(4, 5), (8, 3), (10, 1)]
    assert done.evaluations == 10


def test_evaluate_sees_each_slot_with_its_step() -> None:
    seen: list[list[int]] = []

    def evaluate(states: Sequence[Tensor], steps: Sequence[int]) -> Sequence[Tensor]:
        seen.append(list(steps))
        return ODE.evaluate(states, steps)

    problem = Problem(evaluate, ODE.update, ODE.distance)
    solve(problem, Settings(7, 3, threshold=1e9, tail="copy"), X0)
    assert seen == [[0, 1, 2], [3, 4, 5], [6]]


class Stop(Exception):
    pass


@pytest.mark.parametrize("tail", ["copy", "momentum"])
@pytest.mark.parametrize("window", [1, 2, 4, 9])
def test_goes_on_with_another_window(window: int, tail: str) -> None:
    """Stopped by on_pass, taken up with another window: threshold 0 is still the serial run."""
    held: list[Window[Tensor]] = []

    def stop(window: Window[Tensor], _: Report[Tensor]) -> None:
        held.append(window)
        if window.start > 12:
            raise Stop

    with pytest.raises(Stop):
        solve(ODE, exact(steps=40, window=4, tail=tail), X0, stop)
    w, settings = held[-1], exact(steps=40, window=window, tail=tail)
    again = resume(w.states, w.start, w.threshold, ODE, settings, w.passes, w.evaluations)
    assert len(again.states) == window + 1
    assert all(torch.equal(a, b) for a, b in zip(again.states, w.states, strict=False))
    done = solve(ODE, settings, again)
    assert torch.equal(done.states[0], euler(40))
    assert done.passes > w.passes and done.evaluations > w.evaluations


def test_resumed_is_uninterrupted() -> None:
    """Same window, adaptive threshold: stopping anywhere changes nothing."""
    problem, settings = gaussian_problem(), Settings(30, 4, threshold=1e-4)
    whole = solve(problem, settings, scene(24))
    held: list[Window[State]] = []
    solve(problem, settings, scene(24), lambda window, _: held.append(window))
    for w in held[:: len(held) // 3]:
        states = [State.from_tensors(state.tensors()) for state in w.states]
        done = solve(problem, settings, resume(states, w.start, w.threshold, problem, settings, w.passes))
        assert done.passes == whole.passes and done.threshold == whole.threshold
        for name, tensor in done.states[0].tensors().items():
            assert torch.equal(tensor, whole.states[0].tensors()[name])


def test_begins_later() -> None:
    late = init(euler(15), ODE, exact(steps=40, window=3), start=15)
    assert late.start == 15 and torch.equal(solve(ODE, exact(steps=40, window=3), late).states[0], euler(40))
    nothing = solve(ODE, exact(steps=0), X0)
    assert nothing.passes == 0 and torch.equal(nothing.states[0], X0)


# ---- refusals


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": -1}, "steps must be at least 0, got -1"),
        ({"window": -1}, "window must be at least 0, got -1"),
        ({"threshold": -1e-9}, "threshold must be"),
        ({"threshold": math.nan}, "threshold must be"),
        ({"ema": 1.1}, "ema must be in 0..1"),
        ({"aggregate": "middle"}, "one of mean, median, refused, got 'middle'"),
        ({"tail": "linear"}, "one of copy, momentum, got 'linear'"),
    ],
)
def test_settings_refuse(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**({"steps": 9} | wrong))  # type: ignore[arg-type]


def test_windows_refuse() -> None:
    settings = Settings(9)
    with pytest.raises(ValueError, match=r"start must be in 0\.\.9, got 10"):
        init(X0, ODE, settings, start=10)
    with pytest.raises(ValueError, match="needs its first state"):
        resume([], 0, 0.0, ODE, settings)
    with pytest.raises(ValueError, match="needs coast"):
        init(X0, Problem(ODE.evaluate, ODE.update, ODE.distance), settings)
    with pytest.raises(ValueError, match="no steps left after step 9"):
        advance(init(X0, ODE, settings, start=9), ODE, settings)
    with pytest.raises(ValueError, match="a window of 0 is no window"):
        init(X0, ODE, Settings(9, 0))
    assert Settings(9, 0).among(4).window == 4 and Settings(9, 2).among(4).window == 2
    short: Problem[Tensor, Tensor] = Problem(lambda states, steps: [], ODE.update, ODE.distance, ODE.coast)
    with pytest.raises(ValueError, match="1 states were to be evaluated, 0 drifts came back"):
        solve(short, settings, X0)


@pytest.mark.parametrize("rendered", [False, True])
def test_a_drift_that_breaks_at_a_guess_alone_ends_nothing(rendered: bool) -> None:
    """Far from the serial path there is no number: with a window the run is the serial one all the same."""
    path = [euler(step) for step in range(21)]

    def at(states: Sequence[Tensor], steps: Sequence[int]) -> list[Tensor]:
        return [
            H * slope(x, step) if torch.allclose(x, path[step], atol=1e-3) else torch.full_like(x, math.nan)
            for x, step in zip(states, steps, strict=True)
        ]

    def stepped(x: Tensor, drift: Tensor) -> Tensor:
        if bool(drift.isnan().any()):
            raise FloatingPointError("no number")
        return x + drift

    def mismatch(x: Tensor, drift: Tensor) -> float:
        return 0.0 if bool(drift.isnan().any()) else 1e-9  # none is seen where the drift is none

    problem = replace(ODE, evaluate=at, update=stepped, mismatch=mismatch if rendered else None)
    for window in (1, 4, 30):
        done = solve(problem, exact(steps=20, window=window), X0)
        assert torch.equal(done.states[0], path[20])
    never = replace(problem, evaluate=lambda states, steps: [torch.full_like(x, math.nan) for x in states])
    with pytest.raises(FloatingPointError, match="no number"):
        solve(never, exact(steps=20, window=4), X0)
