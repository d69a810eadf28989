"""The second stage: where a texture goes, and that every window and rank goes there by the same bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from torch import Tensor

from gs_propeller.app.config import Config, updated
from gs_propeller.app.guides import Priors, told
from gs_propeller.app.refining import refinement
from gs_propeller.base.camera import Cameras, orbit, relative_cameras
from gs_propeller.distil.pull import Pull
from gs_propeller.distil.symmetry import variant_of
from gs_propeller.mesh.raster import rasterize
from gs_propeller.mesh.refine import Offsets, Refinement, RefineState, distance, refine_angles
from gs_propeller.mesh.settings import RefineSettings
from gs_propeller.mesh.surface import Mesh, from_trimesh
from gs_propeller.mesh.texture import Reference, Textured, lookup, sample_texture, shade, unwrap
from gs_propeller.pictures.picture import Picture, load_picture
from gs_propeller.solver.picard import Problem, Report, Settings, Window, solve
from gs_propeller.solver.wire import packed, unpacked
from guidance.diffusion import resized
from guidance.zero123 import Conditioning

FOV = math.radians(49.1)
BALL = from_trimesh(trimesh.creation.icosphere(3, 0.6))
STEPS = 12


def cameras_of(step: int) -> Cameras:
    return orbit(*refine_angles(step, 3, -0.4, 0.4, 0), 2.0, FOV)


def greener(step: int, images: Tensor, strength: float) -> Tensor:
    """A prior that wants everything greener, the more the earlier, and depends on what it is shown."""
    shift = torch.tensor([-0.1, 0.2, -0.1]).view(1, 3, 1, 1) * strength
    return (images + shift + 0.05 * torch.sin(9 * images + step)).clamp(0, 1)


@pytest.fixture(scope="module")
def task() -> Refinement:
    """A grey ball, of which the known view shows a red front."""
    front = orbit([0.0], [0.0], 2.0, FOV)
    textured = Textured(BALL, *unwrap(BALL, 96), torch.full((96, 96, 3), 0.5))
    alpha = shade(textured, front, 64)[1]
    red = torch.tensor([0.8, 0.2, 0.2]).view(1, 3, 1, 1)
    reference = Reference(red * alpha + (1 - alpha), alpha, front)
    settings = RefineSettings(
        refine_steps=STEPS, refine_batch=3, texture_lr=0.03, refine_texels=48, refine_strength_max=0.6,
        refine_strength_min=0.2, refine_updates_per_evaluation=1, train_geo=False,
    )  # fmt: skip
    return Refinement(textured, cameras_of, greener, reference, settings, 24)


@pytest.fixture(scope="module")
def swelling(task: Refinement) -> Refinement:
    """The same ball, whose geometry is trained; the known view shows a larger one."""
    front = task.reference.camera
    alpha = shade(replace(task.textured, mesh=replace(BALL, vertices=1.15 * BALL.vertices)), front, 64)[1]
    red = torch.tensor([0.8, 0.2, 0.2]).view(1, 3, 1, 1)
    reference = Reference(red * alpha + (1 - alpha), alpha, front)
    settings = replace(task.settings, train_geo=True, geo_lr=0.01, lambda_smooth=10.0)
    return replace(task, reference=reference, settings=settings)


def problem_of(task: Refinement, by: str = "render", travels: bool = False) -> Problem[RefineState, Pull]:
    """travels: what ranks would send one another goes over the wire's format."""

    def evaluate(states: list[RefineState], steps: list[int]) -> list[Pull]:
        params = [s.params for s in states]
        if not travels:
            return task.compute(params, steps)
        return unpacked(*packed(task.compute(unpacked(*packed(params), Offsets), steps)), Pull)

    return Problem(
        evaluate,  # type: ignore[arg-type]
        lambda state, drift: task.update(state, drift)[0],
        distance,
        task.coast,
        task.mismatch if by == "render" else None,
    )


def run(
    task: Refinement, window: int, by: str = "render", travels: bool = False, **changes: object
) -> Window[RefineState]:
    settings = Settings(task.steps, window, **{"threshold": 0.0, "ema": 1.0, **changes})  # type: ignore[arg-type]
    return solve(problem_of(task, by, travels), settings, task.first())


def serving(task: Refinement, every: int) -> Refinement:
    """The same with k updates an evaluation."""
    return replace(task, settings=replace(task.settings, refine_updates_per_evaluation=every))


def same(one: RefineState, other: RefineState) -> bool:
    return all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


def test_refinement_goes_where_prior_and_picture_point(
    task: Refinement, serially: Callable[[Refinement, int], Window[RefineState]]
) -> None:
    result = task.result(serially(task, 1).states[0])
    back, front = orbit([math.pi], [0.0], 2.0, FOV), task.reference.camera
    middle = shade(result, back, 32)[0][0, :, 16, 16]
    assert float(middle[1]) > 0.55 > 0.5 > float(middle[0])
    shown = shade(result, front, 64)[0][0, :, 28:36, 28:36].mean((1, 2))
    assert float(shown[0]) > 0.6 and float(shown[1]) < 0.4


@pytest.fixture(scope="module")
def serially() -> Callable[[Refinement, int], Window[RefineState]]:
    """The serial run of a task whose evaluations serve so many updates, made once."""
    made: dict[tuple[bool, int], Window[RefineState]] = {}

    def of(task: Refinement, every: int) -> Window[RefineState]:
        key = task.settings.train_geo, every
        if key not in made:
            made[key] = run(serving(task, every), 1)
        return made[key]

    return of


@pytest.mark.parametrize(
    ("window", "tail", "by"),
    [(2, "momentum", "paper"), (4, "copy", "render"), (4, "momentum", "render"), (8, "copy", "paper")],
)
@pytest.mark.parametrize("every", [1, 3])
def test_every_window_is_the_serial_run_at_threshold_nought(
    task: Refinement, serially: Callable[[Refinement, int], Window[RefineState]], window: int, tail: str, by: str,
    every: int,
) -> None:  # fmt: skip
    serial, task = serially(task, every), serving(task, every)
    parallel = run(task, window, by, tail=tail, travels=True)
    assert same(serial.states[0], parallel.states[0])
    assert serial.states[0].step == STEPS
    assert parallel.passes <= task.steps == STEPS // every


def test_geometry_grows_into_the_known_outline(
    swelling: Refinement, serially: Callable[[Refinement, int], Window[RefineState]]
) -> None:
    result = swelling.result(serially(swelling, 1).states[0])
    assert result.mesh.trimesh().is_watertight
    front = swelling.reference.camera

    def gap(textured: Textured) -> float:
        return float((shade(textured, front, 64)[1] - swelling.reference.mask).abs().mean())

    assert gap(result) < 0.5 * gap(swelling.textured)


@pytest.mark.parametrize(
    ("window", "every", "by"),
    [
        pytest.param(3, 1, "paper", marks=pytest.mark.slow),
        pytest.param(5, 1, "render", marks=pytest.mark.slow),
        (2, 3, "render"),
        pytest.param(4, 5, "paper", marks=pytest.mark.slow),
    ],
)
def test_geometry_too_is_the_serial_run_s(
    swelling: Refinement,
    serially: Callable[[Refinement, int], Window[RefineState]],
    window: int,
    every: int,
    by: str,
) -> None:
    """Five does not divide the steps: the last evaluation serves what is left."""
    serial = serially(swelling, every).states[0]
    assert same(serial, run(serving(swelling, every), window, by, travels=True).states[0])
    assert serial.step == STEPS


def test_no_gradient_is_summed_in_the_order_of_threads(swelling: Refinement) -> None:
    """torch's own indexing does so, on large meshes; rows.py does not. The graph shows it on a small one."""
    leaves = swelling.first().params.map(lambda x: x.detach().requires_grad_(True))
    seen = swelling.seen(leaves, 0)
    for loss in (swelling.known(leaves), seen.image.sum() + seen.cover.sum()):
        names, left = set(), [loss.grad_fn]
        while left:
            node = left.pop()
            if node is not None:
                names.add(type(node).__name__)
                left += [following for following, _ in node.next_functions]
        assert names & {"_RowsBackward", "_RenderBackward"}
        assert not {name for name in names if name.startswith(("Index", "Scatter", "Gather", "GridSampler"))}


def test_one_evaluation_serves_several_updates_by_hand(swelling: Refinement) -> None:
    """The target stays: three updates are three gradients of one and the same loss, each at its own place."""
    task = serving(swelling, 3)
    state = task.update(task.first(), task.compute([task.first().params], [0])[0])[
        0
    ]  # no offset is nought any more
    pull = task.compute([state.params], [1])[0]
    begun = task.seen(state.params, 1)
    target = greener(1, begun.image.detach(), 0.6 + (0.2 - 0.6) / 3)
    by_hand = state
    for _ in range(3):
        seen = task.seen(by_hand.params, 1)
        loss = (seen.image - target).square().sum() / begun.cover.detach().sum() / 3 + task.known(seen.leaves)
        task._last.clear()
        grads = torch.autograd.grad(loss, seen.leaves.parts())
        by_hand = task._stepped(by_hand, Offsets(*grads))
    ours, _ = task.update(state, pull)
    assert ours.step == by_hand.step == 6
    assert distance(ours, by_hand) < 1e-9  # measured 2e-11: Adam is steep where gradients are nought
    assert distance(ours, state) > 1e-5


@pytest.mark.slow
def test_the_bench_goes_through_the_same_loop(
    task: Refinement,
    serially: Callable[[Refinement, int], Window[RefineState]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bench import second

    for name, value in (("refinement", task), ("picture_of", None), ("priors_called", None)):
        monkeypatch.setattr(second, name, lambda *_, value=value: value)
    done = second.refined(Config(input="a.png", window=1, refine_steps=STEPS), task.textured)
    assert torch.equal(done.textured.texture, task.result(serially(task, 1).states[0]).texture)
    assert done.steps == done.passes == STEPS and done.seconds > 0


def test_a_broken_prior_is_named(task: Refinement) -> None:
    broken = replace(serving(task, 3), targets_of=lambda step, images, strength: images / 0.0)
    state = replace(task.first(), step=6)
    (pull,) = broken.compute([state.params], [2])
    with pytest.raises(FloatingPointError, match="step 6: loss novel"):
        broken.update(state, pull)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "window"), [("task", 8), ("swelling", 3)])
def test_a_prior_that_breaks_now_and_then_is_skipped(
    kind: str, window: int, request: pytest.FixtureRequest
) -> None:
    """Those steps have no pull, in every window alike; their loss is no number."""
    broken = (2, 5, 6)

    def targets_of(step: int, images: Tensor, strength: float) -> Tensor:
        return greener(step, images, strength) * (math.nan if step in broken else 1.0)

    task = replace(request.getfixturevalue(kind), targets_of=targets_of, skips=True)
    serial, lost = run(task, 1), set[int]()

    def on_pass(_: Window[RefineState], report: Report[Pull]) -> None:
        for k, drift in enumerate(report.drifts):
            if not bool(drift.losses.isfinite().all()):
                lost.add(report.start + k)

    settings = Settings(task.steps, window, threshold=0.0, ema=1.0)
    whole = solve(problem_of(task), settings, task.first(), on_pass)
    assert same(serial.states[0], whole.states[0]) and whole.passes <= serial.passes
    assert lost == set(broken) and all(x.isfinite().all() for x in serial.states[0].params.parts())


def test_mismatch_is_nought_where_the_pull_is_the_same(swelling: Refinement) -> None:
    first = swelling.first()
    (pull,) = swelling.compute([first.params], [0])
    assert swelling.mismatch(first, pull) == 0.0
    assert torch.equal(pull.here(swelling.seen(first.params, 0).image.detach()), pull.pull)
    grown = replace(first, params=replace(first.params, vertices=0.01 * BALL.vertices))
    assert swelling.mismatch(grown, pull) > 1e-6
    # white on white: no pixel differs, the outline does
    blank = replace(swelling, textured=replace(swelling.textured, texture=torch.ones(96, 96, 3)))
    (pull,) = blank.compute([first.params], [0])
    assert pull.mismatch(blank.seen(grown.params, 0).image.detach()) < 1e-12
    assert blank.mismatch(grown, pull) > 0.0


@pytest.mark.parametrize("alone", ["lambda_smooth", "lambda_normal"])
def test_each_regulariser_alone_has_a_gradient(swelling: Refinement, alone: str) -> None:
    off = {"lambda_known": 0.0, "lambda_smooth": 0.0, "lambda_normal": 0.0}
    task = replace(swelling, settings=replace(swelling.settings, **(off | {alone: 1.0})))
    params = task.first().params
    noise = 0.02 * torch.randn(params.vertices.shape, generator=torch.Generator().manual_seed(0))
    leaves = replace(params, vertices=noise).map(lambda x: x.requires_grad_(True))
    of_coarse, of_fine, of_vertices = torch.autograd.grad(task.known(leaves), leaves.parts())
    assert float(of_vertices.abs().max()) > 0
    assert float(of_coarse.abs().max()) == float(of_fine.abs().max()) == 0


def test_faces_that_share_no_edge_are_refined(swelling: Refinement) -> None:
    """Leaves, feathers, cards: the regulariser of folds has nothing to say of them."""
    ball, given = swelling.textured, swelling.textured.mesh
    apart = Mesh(given.vertices[given.faces].reshape(-1, 3), torch.arange(given.faces.numel()).reshape(-1, 3))
    task = replace(swelling, textured=replace(ball, mesh=apart))
    assert math.isfinite(float(task.known(task.first().params)))


def test_a_window_takes_several_steps_a_pass(
    task: Refinement, serially: Callable[[Refinement, int], Window[RefineState]]
) -> None:
    """With a threshold of a thousandth of the range, and ends near the serial run."""
    serial, parallel = serially(task, 1), run(task, 4, threshold=1e-6)
    assert parallel.passes < 0.7 * STEPS
    assert distance(serial.states[0], parallel.states[0]) < 1e-3  # measured 5e-5


def test_the_update_is_adam_on_the_sum_of_both_losses(task: Refinement) -> None:
    """Against torch.optim.Adam on the loss written out in one piece, with a fine offset on every texel; the coarse
    offset's rate falls to nought."""
    coarse, fine = (torch.zeros(side, side, 3, requires_grad=True) for side in (48, 96))
    groups = [{"params": [coarse]}, {"params": [fine]}]
    adam = torch.optim.Adam(groups, lr=task.settings.texture_lr, betas=(0.9, 0.99), eps=1e-15)
    s, mesh, textured = task.settings, task.textured.mesh, task.textured
    for step in range(3):
        strength = 0.6 + (0.2 - 0.6) * step / (STEPS - 1)
        hits = rasterize(mesh, cameras_of(step), 24)
        at = lookup(textured, hits)
        image = sample_texture(textured.texture + fine.detach(), at, hits.mask) + torch.where(
            hits.mask[:, None], sample_texture(coarse, at, hits.mask), 0.0
        )
        gap = (image - greener(step, image.detach(), strength)).square() * hits.mask[:, None]
        seen = rasterize(mesh, task.reference.camera, 64)
        at = lookup(textured, seen)
        mask = seen.mask & (task.reference.mask[:, 0] > 0.99)
        shown = sample_texture(textured.texture + fine, at, mask) + sample_texture(coarse, at, mask)
        miss = (shown - task.reference.image).square() * mask[:, None]
        loss = gap.sum() / hits.mask.sum() / 3 + s.lambda_known * miss.sum() / mask.sum() / 3
        adam.zero_grad()
        loss.backward()
        adam.param_groups[0]["lr"] = s.texture_lr * (1 - step / STEPS)
        adam.step()
    ours = solve(problem_of(task), Settings(3, 1), task.first()).states[0].params
    assert float((ours.coarse - coarse).abs().max()) < 1e-5  # measured 4e-6
    assert float((task.canvas.spread(ours.fine) - fine).abs().max()) < 1e-7  # measured 2e-8


@pytest.mark.parametrize("kind", ["task", "swelling"])
def test_what_is_kept_and_what_travels_comes_back_whole(kind: str, request: pytest.FixtureRequest) -> None:
    task = request.getfixturevalue(kind)
    state = run(task, 3).states[0]
    (again,) = unpacked(*packed([state.params]), Offsets)
    assert all(torch.equal(x, y) for x, y in zip(again.parts(), state.params.parts(), strict=True))
    assert same(RefineState.from_tensors(state.tensors()), state)
    assert same(state.to("cpu"), state)


def test_reports_name_errors_of_colours(task: Refinement) -> None:
    reports: list[Report[Pull]] = []
    settings = Settings(task.steps, 4, threshold=1e-9, ema=1.0)
    solve(problem_of(task), settings, task.first(), lambda window, report: reports.append(report))
    assert all(0.0 <= error < 0.1 for report in reports for error in report.errors)


class Pointed:
    """A prior that moves views by what they are told: their code's second number, and the row of the conditioning."""

    device, size_px, latent_shape, levels = torch.device("cpu"), 16, (3, 16, 16), 10

    def embed(self, image: Tensor, elevation_rad: float) -> Conditioning:
        return Conditioning(image.mean((2, 3))[:, None], resized(image, 16, "bilinear"))

    def refine(self, images: Tensor, told: Conditioning, codes: Tensor, noise: Tensor, *how: float) -> Tensor:
        return images.roll(1, -1) + 0.1 * codes[:, 1].view(-1, 1, 1, 1) + 0.2 * (told.latents - 0.5)

    def encode(self, images: Tensor) -> Tensor:
        return images

    decode = encode


def test_refined_views_in_variants(task: Refinement, tmp_path: Path) -> None:
    """The target of a view is that of the render's variant, told of the picture's, put back."""
    shades = np.tile(np.arange(16, dtype=np.uint8)[None, :, None] * 16, (16, 1, 4))
    shades[..., 1] //= 2
    shades[..., 3] = 255
    Image.fromarray(shades).save(tmp_path / "shades.png")
    picture = load_picture(str(tmp_path / "shades.png"), cutout="keep")
    ours = Priors(Pointed(), None)  # type: ignore[arg-type]
    given = {"input": str(tmp_path / "shades.png"), "elevation": 10.0, "refine_batch": 8}
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    configs = [updated(Config(), given | {"mirror": m, "hue": h}) for m, h in ((0.0, 0.0), (0.5, 0.667))]
    plain, mixed = (refinement(c, task.textured, picture, ours).targets_of(2, images, 0.5) for c in configs)
    variant = variant_of(2, 8, configs[1].sections.views, 0, "refine variant")
    assert len(variant.rows.unique()) > 3
    low, high = (math.radians(10.0 + x) for x in (-30.0, 30.0))
    sine = relative_cameras(0.0, *refine_angles(2, 8, low, high, 0))[:, 1]
    shown = resized(picture.rgb[None], 16, "bilinear")
    for v in range(8):
        sign, hue = (-1 if variant.mirror[v] else 1), int(variant.hue[v])
        told, render = (x.flip(-1) if sign < 0 else x for x in (shown, images[v : v + 1]))
        made = render.roll(hue, 1).roll(1, -1) + 0.1 * sign * sine[v] + 0.2 * (told.roll(hue, 1) - 0.5)
        expected = made.clamp(0, 1).roll(-hue, 1)
        assert torch.allclose(mixed[v], (expected.flip(-1) if sign < 0 else expected)[0], atol=1e-5)
    same = variant.rows == 0
    assert torch.allclose(mixed[same], plain[same], atol=1e-5) and not torch.allclose(mixed, plain, atol=1e-3)


def test_a_picture_is_told_in_variants_where_any_part_of_the_run_asks_for_them(tmp_path: Path) -> None:
    picture = Picture(torch.rand(3, 16, 16), torch.ones(1, 16, 16))
    ours = Priors(Pointed(), None)  # type: ignore[arg-type]
    for given, rows in (({}, 1), ({"hue": 0.1}, 6), ({"changes": "{50: {mirror: 0.5}}"}, 6)):
        (guide,) = told(updated(Config(), {"input": "thing.png"} | given), picture, ours)
        assert guide.variants == (rows == 6) and len(guide.conditioning.latents) == rows


def test_refinement_views_are_functions_of_the_step() -> None:
    one, again, other = (refine_angles(step, 4, -0.2, 0.3, 7) for step in (3, 3, 4))
    assert torch.equal(one[0], again[0])
    assert not torch.equal(one[0], other[0])
    assert bool(((one[1] >= -0.2) & (one[1] <= 0.3)).all())
