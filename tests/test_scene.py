"""Gaussians as the solver sees them: each loss alone moves something, pictures and gradients against the plain formula,
and whole runs whose window at threshold 0 is the serial loop, over clones, splits, prunes and resets."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from functools import cache
from typing import Any

import pytest
import torch

from gs_propeller.app.asset import Logged, problem
from gs_propeller.distil.distillation import Seen
from gs_propeller.distil.draw import camera_of, known_camera
from gs_propeller.distil.phases import Phases
from gs_propeller.distil.pull import LEAST, Guide, Pull
from gs_propeller.scenes.gaussians import density
from gs_propeller.scenes.gaussians.adam import adam_step
from gs_propeller.scenes.gaussians.density import reindex
from gs_propeller.scenes.gaussians.raster.render import gathered, render
from gs_propeller.scenes.gaussians.scene import CHEAP, LOSSES, GaussianScene
from gs_propeller.scenes.gaussians.state import Drift, Evaluation, Gaussians, State, StepStats
from gs_propeller.solver.picard import Settings, Window, resume, solve
from gs_propeller.solver.ranks import Ranks
from tests.toy_prior import COLOUR, UPDATES, Wavy, scene, two_guides

NOTHING = {f"lambda_{name}": 0.0 for name in LOSSES}
BROKEN = (Guide(Wavy(), torch.full((1, 3, 1, 1), math.nan), 1.0),)


def same(one: State, other: State) -> bool:
    return all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


def later(made: GaussianScene, updates: int = 3) -> State:
    """The state after a few serial updates."""
    state = made.first()
    for step in range(updates):
        state = made.update(state, made.compute([state.params], [step])[0].at(state))[0]
    return state


def gradient(made: GaussianScene, state: State, drift: Pull | Drift) -> Gaussians:
    """That of one update: Adam's first moment, had it been zero."""
    fresh = replace(state, exp_avg=state.exp_avg.map(torch.zeros_like))
    quiet = replace(made, density=replace(made.density, densify_from=10**6, densify_until=10**6))
    return quiet.update(fresh, drift)[0].exp_avg.map(lambda m: m / (1 - made.adam.beta_1))


def worst(one: Gaussians, other: Gaussians) -> float:
    """Largest difference of a field, relative to its largest entry."""
    return max(
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-12))
        for (_, a), (_, b) in zip(one.items(), other.items(), strict=True)
        if b.numel()
    )


# ---- one update


@pytest.mark.parametrize("travels", ["pictures", "gradients"])
@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_alone_moves_the_gaussians(name: str, travels: str) -> None:
    made = scene(travels=travels, **(NOTHING | {f"lambda_{name}": 5.0}))
    state = replace(made.first(), step=3)
    drift = made.compute([state.params], [3])[0].at(state)
    after, cheap = made.update(state, drift)
    losses = dict(zip(LOSSES, torch.cat([drift.losses, cheap]).tolist(), strict=True))
    assert (losses.pop(name) > 0) != (
        name == "haze" and travels == "gradients"
    )  # it is no loss of the roll-out then
    assert not any(losses.values())
    assert float(after.exp_avg.pack().abs().max()) > 0
    nothing = scene(travels=travels, **NOTHING)
    still = nothing.update(state, nothing.compute([state.params], [3])[0].at(state))[0]
    assert float(still.exp_avg.pack().abs().max()) == 0


def seen_twice(made: GaussianScene, leaves: Gaussians, step: int) -> tuple[Any, Any]:
    """(novel, known) renders of a step."""
    drawn = made.drawn(step)
    novel = render(leaves, camera_of(made.views, drawn.azimuths, drawn.elevations), 12, drawn.backdrop)
    return novel, render(leaves, known_camera(made.views), 16, torch.ones(3))


def written_out(made: GaussianScene, state: State, step: int, pull: Pull) -> tuple[Gaussians, StepStats]:
    """The gradient of the whole loss in one backward, pull and stiffness as the quadratic that they are."""
    leaves = state.params.map(lambda x: x.detach().clone().requires_grad_(True))
    novel, known = seen_twice(made, leaves, step)
    moved = novel.image - pull.seen
    total = (novel.image * pull.pull).sum() + (pull.kappa.reshape(-1, 1, 1, 1) * moved.square() / 2).sum()
    assert made.known is not None
    share = state.step / made.updates
    total = total + made.knowing.lambda_rgb * share * ((known.image - made.known.image) ** 2).mean()
    total = total + made.knowing.lambda_mask * share * ((known.alpha - made.known.mask) ** 2).mean()
    opacities = leaves.logit_opacities.sigmoid()
    total = total + made.regularisers.lambda_opacity * (opacities - opacities**2).mean()
    total = total + made.regularisers.lambda_scale * (2 * leaves.log_scales).exp().mean()
    total = total + made.regularisers.lambda_haze * share**2 * (novel.alpha - novel.alpha**2).mean()
    total.backward()
    grads = leaves.map(lambda x: torch.zeros_like(x) if x.grad is None else x.grad)
    return grads, gathered(grads, novel, known)


@pytest.mark.parametrize("follows", ["abar", "none", "all"])
def test_an_update_against_the_loss_written_out(follows: str) -> None:
    """At the guess and away from it; at the guess the pictures' update is the gradients'."""
    made = scene(follows=follows)
    paper = replace(made, settings=replace(made.settings, travels="gradients"))
    state = later(made)
    nudged = state.params.map(
        lambda x: x + 0.05 * torch.sin(37 * x + torch.arange(len(x)).reshape(-1, *[1] * (x.ndim - 1)))
    )
    (pull,) = made.compute([state.params], [3])
    assert isinstance(pull, Pull)
    for params in (state.params, nudged):
        here = replace(state, params=params)
        expected = written_out(made, here, 3, pull)[0]
        assert worst(gradient(made, here, pull), expected) < 2e-5  # 6e-6
    (evaluation,) = paper.compute([state.params], [3])
    ours, theirs = gradient(made, state, pull), gradient(paper, state, evaluation.at(state))
    assert worst(ours, theirs) < 2e-5
    assert same(made.update(state, pull)[0], made.update(state, pull)[0])


def test_gradients_that_travel_are_the_pull_s_own() -> None:
    """The paper's choice, as it was before pictures travelled: the pull pulled back where it was evaluated, re-indexed,
    and the known view's gradient and the statistics of both added."""
    made = scene(travels="gradients", lambda_haze=0.0)
    state = later(made)
    (evaluation,) = made.compute([state.params], [3])
    assert isinstance(evaluation, Evaluation)
    leaves = state.params.map(lambda x: x.detach().clone().requires_grad_(True))
    novel, _ = seen_twice(made, leaves, 3)
    drawn = made.drawn(3)
    pixels, miss = Wavy().sds_grad(novel.image, COLOUR, drawn.codes, drawn.t[0], drawn.noise[0], 1.0)
    (novel.image * (pixels / 2)).sum().backward()
    grads = leaves.map(lambda x: torch.zeros_like(x) if x.grad is None else x.grad)
    assert torch.equal(evaluation.grads.pack(), grads.pack())
    assert float(evaluation.losses) == pytest.approx(float(miss.sum()) / 2, rel=1e-6)
    fewer = replace(state, **{f.name: getattr(state, f.name) for f in fields(State) if f.name == "step"})
    rows = torch.arange(len(state)) != 4
    fewer = replace(
        state, params=state.params.map(lambda x: x[rows]), exp_avg=state.exp_avg.map(lambda x: x[rows]),
        exp_avg_sq=state.exp_avg_sq.map(lambda x: x[rows]), lineage=state.lineage[rows],
        stats=type(state.stats)(*(getattr(state.stats, f.name)[rows] for f in fields(state.stats))),
    )  # fmt: skip
    drift = evaluation.at(state)
    there = reindex(drift, fewer)
    zero = Pull(
        torch.zeros(2, 3, 12, 12), novel.image.detach(), torch.zeros(2), torch.ones(2), torch.zeros(1)
    )
    cheap = written_out(made, fewer, 3, zero)[0]
    assert worst(gradient(made, fewer, drift), cheap.map(torch.add, there.grads)) < 2e-5


def test_statistics_against_loops() -> None:
    made = scene()
    leaves = made.first().params.map(lambda x: x.detach().requires_grad_(True))
    one = render(leaves, known_camera(made.views), (20, 30), torch.ones(3))
    two = render(leaves, known_camera(made.views), (16, 16), torch.ones(3))
    (one.image.square().sum() + two.image.sum()).backward()
    stats = gathered(leaves, one, two)
    for i in range(len(leaves)):
        norm, seen, radius = 0.0, 0, 0.0
        for view, (height, width) in ((one, (20, 30)), (two, (16, 16))):
            if view.radii_px[0, i] > 0:
                assert view.means2d.grad is not None
                gx, gy = view.means2d.grad[0, i].tolist()
                norm += math.hypot(gx * width / 2, gy * height / 2)
                seen += 1
            radius = max(radius, float(view.radii_px[0, i]) / max(height, width))
        assert abs(float(stats.grad2d[i]) - norm) < 1e-5 * max(norm, 1.0)
        assert float(stats.seen[i]) == seen
        assert abs(float(stats.radii[i]) - radius) < 1e-6


@pytest.mark.parametrize("travels", ["pictures", "gradients"])
def test_statistics_count_every_view_once(travels: str) -> None:
    made = scene(travels=travels)
    state = made.first()
    after = made.update(state, made.compute([state.params], [0])[0].at(state))[0]
    assert float(after.stats.seen.max()) == 3  # two novel views and the known one


def test_the_known_view_against_differences() -> None:
    made = scene(**(NOTHING | {"lambda_rgb": 100.0, "lambda_mask": 50.0}))
    state = replace(made.first(), step=5)
    (pull,) = made.compute([state.params], [5])
    direction = torch.randn(20, 1, 3, generator=torch.Generator().manual_seed(1))
    slope = float((gradient(made, state, pull).sh_dc * direction).sum())

    def value(step: float) -> float:
        moved = replace(state.params, sh_dc=state.params.sh_dc + step * direction)
        return float(made.update(replace(state, params=moved), pull)[1].double().sum())

    assert abs((value(1e-2) - value(-1e-2)) / 2e-2 / slope - 1) < 0.01  # 1e-3


def test_black_backdrops_are_rendered_and_pulled_back() -> None:
    """A pull on the background alone moves nothing; the render lies over black where the draw says so."""
    white, black = scene(), scene(invert_background=1.0)
    state = white.first()
    (light,), (dark,) = (made.compute([state.params], [0]) for made in (white, black))
    assert isinstance(light, Pull) and isinstance(dark, Pull)
    assert float(light.seen.max()) == 1.0 and float(dark.seen.min()) == 0.0
    assert worst(gradient(black, state, dark), written_out(black, state, 0, dark)[0]) < 2e-5
    assert black.mismatch(state, dark) == 0.0 < black.mismatch(state, light)


def test_mismatch_is_zero_at_the_guess_alone() -> None:
    made = scene()
    state = later(made)
    (pull,) = made.compute([state.params], [3])
    assert isinstance(pull, Pull)
    assert made.mismatch(state, pull) == 0.0
    quarter = torch.zeros_like(state.params.means)
    quarter[0, 0] = 1e-3
    off = replace(state, params=replace(state.params, means=state.params.means + quarter))
    moved = (seen_twice(made, off.params, 3)[0].image.double() - pull.seen.double()).square().mean((1, 2, 3))
    expected = float((moved * pull.share.double().clamp_min(LEAST).square()).mean())
    assert made.mismatch(off, pull) == pytest.approx(expected, rel=1e-6) and expected > 0


@pytest.mark.parametrize("travels", ["pictures", "gradients"])
@pytest.mark.parametrize("at_once", [2, 8])
def test_slots_together_are_slots_alone(at_once: int, travels: str) -> None:
    """Scenes of different sizes in one render and one call of a prior that treats its pictures one by one."""
    made = two_guides(scene(travels=travels))
    params = made.first().params
    scenes = [params, params.map(lambda x: x[:13]), params]
    together = replace(made, batch_slots=at_once).compute(scenes, [1, 2, 3])
    for found, one, step in zip(together, scenes, (1, 2, 3), strict=True):
        (alone,) = made.compute([one], [step])
        assert all(torch.equal(a, b) for a, b in zip(found.parts(), alone.parts(), strict=True))


# ---- what is not finite


def test_what_is_not_finite_is_named() -> None:
    made = scene()
    state = replace(made.first(), step=7)
    for travels in ("pictures", "gradients"):
        settings = replace(made.settings, travels=travels, updates_per_evaluation=3)
        early = replace(state, step=6)
        broken = replace(made, guides=BROKEN, settings=settings)
        drift = broken.compute([early.params], [2])[0].at(early)  # at a guess, it is nobody's fault
        with pytest.raises(
            FloatingPointError, match=r"step 6: loss sds: the gradient of the renders .*nonfinite=skip"
        ):
            broken.update(early, drift)
    (pull,) = made.compute([state.params], [7])
    assert made.known is not None
    unknown = replace(made, known=replace(made.known, image=torch.full((1, 3, 16, 16), math.inf)))
    with pytest.raises(FloatingPointError, match=r"step 7: loss .*rgb.*: the gradient of means"):
        unknown.update(state, pull)


@pytest.mark.parametrize("travels", ["pictures", "gradients"])
def test_a_broken_step_can_be_skipped(travels: str) -> None:
    """The pull counts as zero, the known view still pulls; a step whose known view broke stands still."""
    made = scene(travels=travels, nonfinite="skip", lambda_haze=0.0)
    broken, silent = replace(made, guides=BROKEN), scene(travels=travels, lambda_sds=0.0, lambda_haze=0.0)
    state = later(scene(travels=travels))
    drift = broken.compute([state.params], [3])[0].at(state)
    assert bool(drift.losses.isnan().all())
    nothing = silent.compute([state.params], [3])[0].at(state)
    assert same(broken.update(state, drift)[0], silent.update(state, nothing)[0])
    if travels == "pictures":
        assert broken.mismatch(state, drift) == 0.0
    assert made.known is not None
    blind = replace(broken, known=replace(made.known, image=torch.full((1, 3, 16, 16), math.nan)))
    assert float(gradient(blind, state, drift).pack().abs().max()) == 0.0
    assert bool(blind.update(state, drift)[1].isnan().all())
    assert bool(broken.update(state, drift)[1].isfinite().all())


class Overflowing(Wavy):
    """No number at some levels of noise: at some steps, whoever computes them."""

    def sds_grad(
        self, images: torch.Tensor, conditioning: Any, cameras: torch.Tensor, t: torch.Tensor, *told: Any
    ) -> Any:
        pixels, miss = super().sds_grad(images, conditioning, cameras, t, *told)
        return torch.where((t % 4 == 0)[:, None, None, None], math.inf, pixels), miss


@pytest.mark.slow
@pytest.mark.parametrize("travels", ["pictures", "gradients"])
@pytest.mark.parametrize("k", [1, 3])
def test_steps_are_skipped_alike_in_every_window(travels: str, k: int) -> None:
    """And counted, by losses that are no number."""
    made = scene(travels=travels, updates_per_evaluation=k, nonfinite="skip")
    made = replace(made, guides=(Guide(Overflowing(), COLOUR, 1.0),))
    first: list[int] = []
    one = run(made, 1, skipped=first)
    assert 0 < len(first) < made.steps
    again: list[int] = []
    assert same(run(made, 5, skipped=again).states[0], one.states[0])
    assert again == first
    assert not same(one.states[0], serial(travels, k))


def test_a_state_from_a_file_has_the_gradient_of_the_one_that_was_saved() -> None:
    """To the bit: as views of one packed tensor, and as tensors of their own."""
    made = scene(num_points=1500, lambda_opacity=10.0)
    state = later(made)
    again = State.from_tensors({name: tensor.clone() for name, tensor in state.tensors().items()})
    (pull,) = made.compute([state.params], [3])
    assert same(made.update(state, pull)[0], made.update(again, pull)[0])


# ---- several updates an evaluation


@pytest.mark.parametrize("travels", ["pictures", "gradients"])
def test_an_evaluation_serves_k_updates(travels: str) -> None:
    """Against a loop of single ones: the views, noise and level of its first, its own place and rate."""
    made = scene(travels=travels, updates_per_evaluation=3)
    single = replace(made, settings=replace(made.settings, updates_per_evaluation=1))
    state = later(single, 6)
    drift = made.compute([state.params], [2])[0].at(state)
    alone = single.compute([state.params], [6])[0].at(state)
    assert all(torch.equal(a, b) for a, b in zip(made.drawn(2).noise, single.drawn(6).noise, strict=True))
    assert torch.equal(drift.losses, alone.losses)
    after, losses = made.update(state, drift)
    expected = state
    for _ in range(3):
        grads = gradient_of_view(made, expected, drift, 2)
        expected = density.stepped(expected, *grads, made.adam, made.density, made.seed)
    assert after.step == 9 and losses.shape == (len(CHEAP),) and len(after) > len(state)
    assert torch.equal(after.ids, expected.ids)
    assert worst(after.params, expected.params) < 2e-3 and after.step == expected.step


def gradient_of_view(
    made: GaussianScene, state: State, drift: Pull | Drift, step: int
) -> tuple[Gaussians, StepStats]:
    """The slow twin's gradient and statistics at this place, by the views of the solver's step."""
    if isinstance(drift, Pull):
        return written_out(made, state, step, drift)
    novel = seen_twice(made, state.params, step)[0].image.detach()
    zero = Pull(torch.zeros_like(novel), novel, torch.zeros(2), torch.ones(2), torch.zeros(1))
    grads, stats = written_out(made, state, step, zero)
    novel_stats = gathered(state.params, seen_twice(made, state.params, step)[0])
    there = reindex(drift, state)
    known = StepStats(stats.grad2d, stats.seen - novel_stats.seen, stats.radii)
    return grads.map(torch.add, there.grads), known.joined(there.stats)


def test_the_last_evaluation_serves_what_is_left() -> None:
    made = scene(updates=7, updates_per_evaluation=3)
    assert made.steps == 3
    state = made.first()
    for step, age in ((0, 3), (1, 6), (2, 7)):
        assert made.coast(state).step == age
        state = made.update(state, made.compute([state.params], [step])[0].at(state))[0]
        assert state.step == age


class Forbidden:
    """A prior that nobody may ask."""

    levels, size_px, latent_shape = 100, 12, (2, 3, 3)

    def sds_grad(self, *_: object, **__: object) -> Any:
        raise AssertionError("the prior was asked")

    share = stiffness = sds_grad


@pytest.mark.parametrize("travels", ["pictures", "gradients"])
def test_closing_updates_see_the_picture_alone(travels: str) -> None:
    """By Adam on the known view's losses written out, from no momentum; no density control though it is due."""
    asked: dict[str, Any] = {"travels": travels, "closing_updates": 3, "densify_from": 0, "densify_every": 1}
    made = scene(**asked)
    made = replace(made, guides=tuple(replace(guide, prior=Forbidden()) for guide in made.guides))
    state = replace(scene().first(), step=made.updates)
    state = replace(
        state, exp_avg=state.params.map(torch.ones_like), exp_avg_sq=state.params.map(torch.ones_like)
    )
    done = made.finished(state)
    assert done.step == made.updates + 3 and torch.equal(done.lineage, state.lineage)

    twin = replace(state, exp_avg=state.params.map(torch.zeros_like))
    assert made.known is not None
    before = []
    for _ in range(3):
        leaves = twin.params.map(lambda x: x.detach().requires_grad_(True))
        view = seen_twice(made, leaves, 0)[1]
        losses = made.known.losses(view.image, view.alpha, 1.0, made.knowing)
        total = sum(made.regularised(Seen(leaves, None, view), losses).values(), torch.zeros(()))
        total.backward()
        before.append(float(total.detach()))
        twin = adam_step(
            twin, leaves.map(lambda x: torch.zeros_like(x) if x.grad is None else x.grad), made.adam
        )
    for (name, ours), (_, theirs) in zip(done.params.items(), twin.params.items(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=2e-5), name
    assert before[2] < before[0]
    assert replace(made, known=None).finished(state) is state
    assert scene(travels=travels).finished(state) is state
    phased = Phases((0, 9), (scene(), made))
    assert torch.equal(phased.finished(state).params.pack(), done.params.pack())


# ---- whole runs


def run(
    made: GaussianScene, window: int, tail: str = "momentum", begin: Window[State] | None = None,
    held: list[Window[State]] | None = None, at_once: int = 1, threshold: float = 0.0,
    skipped: list[int] | None = None,
) -> Window[State]:  # fmt: skip
    """Solved in this process, as the program does it."""
    with Ranks(at_once=at_once) as ranks:
        ranks.begin(0, made.compute)
        logged = Logged()
        task = problem(made, ranks, logged)
        settings = Settings(made.steps, window, threshold, ema=1.0, tail=tail)
        again = begin and resume(
            begin.states, begin.start, begin.threshold, task, settings, begin.passes, begin.evaluations
        )

        def on_pass(now: Window[State], report: Any) -> None:
            rows = logged.rows(report)
            assert len(rows) == report.accepted and all(len(row) == len(LOSSES) for row in rows)
            if held is not None:
                held.append(now)
            if skipped is not None:
                lost = [k for k, row in enumerate(rows) if not bool(row.isfinite().all())]
                skipped.extend(report.start + k for k in lost)

        return solve(task, settings, again or made.first(), on_pass)


KINDS = [
    (travels, distance, k)
    for travels, distance in (("pictures", "render"), ("pictures", "paper"), ("gradients", "paper"))
    for k in (1, 3)
]


@cache
def serial(travels: str, k: int) -> State:
    """A plain loop's last state."""
    made = scene(travels=travels, updates_per_evaluation=k)
    return later(made, made.steps)


@pytest.mark.parametrize("travels", ["pictures", "gradients"])
@pytest.mark.parametrize("k", [1, 3])
def test_the_toy_clones_splits_dies_and_is_reset(travels: str, k: int) -> None:
    """Else the runs below would show nothing."""
    made = scene(travels=travels, updates_per_evaluation=k)
    state, births, died, resets = made.first(), set[int](), 0, 0
    for step in range(made.steps):
        after = made.update(state, made.compute([state.params], [step])[0].at(state))[0]
        births |= {birth % 4 for birth in after.lineage[:, 0, 1].tolist() if birth >= 0}
        parents = {row[1][0] for row in after.lineage.tolist() if row[0][1] % 4 in (1, 2)}
        died += len(set(state.ids.tolist()) - set(after.ids.tolist()) - parents)
        ceiling = math.log(0.01 / 0.99) + 0.5 * k
        high, low = (float(s.params.logit_opacities.max()) for s in (state, after))
        resets += high > low + 1 and low < ceiling
        state = after
    assert births == {0, 1, 2} and died > 0 and resets > 0 and state.step == UPDATES


@pytest.mark.parametrize(
    ("window", "tail"),
    [
        pytest.param(1, "copy", marks=pytest.mark.slow),
        pytest.param(2, "copy", marks=pytest.mark.slow),
        (5, "momentum"),
        pytest.param(8, "copy", marks=pytest.mark.slow),
        pytest.param(8, "momentum", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(("travels", "distance", "k"), KINDS)
def test_threshold_0_is_the_serial_loop(travels: str, distance: str, k: int, window: int, tail: str) -> None:
    made = scene(travels=travels, distance=distance, updates_per_evaluation=k)
    done = run(made, window, tail)
    assert same(done.states[0], serial(travels, k))
    assert done.passes == made.steps if window == 1 else done.passes <= made.steps


@pytest.mark.slow
@pytest.mark.parametrize("travels", ["pictures", "gradients"])
def test_slots_in_one_call_change_no_bit(travels: str) -> None:
    made = replace(two_guides(scene(12, travels=travels)), batch_slots=3)
    one = run(made, 1).states[0]
    for at_once in (2, 8):
        assert same(run(made, 5, at_once=at_once).states[0], one)


@pytest.mark.slow
def test_without_a_picture() -> None:
    made = replace(scene(12), known=None)
    assert same(run(made, 1).states[0], run(made, 6).states[0])


@pytest.mark.slow
@pytest.mark.parametrize("distance", ["paper", "scaled", "render"])
def test_a_threshold_saves_passes(distance: str) -> None:
    made = scene(distance=distance)
    done = run(made, 8, threshold={"paper": 1e-3, "scaled": 1.0, "render": 1e-3}[distance])
    assert done.passes < 0.7 * made.steps
    with torch.no_grad():
        ours, theirs = (
            seen_twice(made, s.params, 0)[1].image for s in (done.states[0], serial("pictures", 1))
        )
    assert float((ours - theirs).square().mean()) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("travels", "k"), [("pictures", 3), ("gradients", 1)])
def test_taken_up_with_another_window(travels: str, k: int) -> None:
    """From any pass's checkpoint: threshold 0 is still the serial run."""
    made = scene(travels=travels, updates_per_evaluation=k)
    held: list[Window[State]] = []
    run(made, 3, held=held)
    middle = held[len(held) // 2]
    assert 0 < middle.start < made.steps and middle.states[0].step == k * middle.start
    states = tuple(State.from_tensors(state.tensors()) for state in middle.states)
    assert same(run(made, 5, begin=replace(middle, states=states)).states[0], serial(travels, k))
