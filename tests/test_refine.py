"""The second stage: where a texture goes, and that every window and rank goes there by the same bits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import trimesh
from torch import Tensor

from gs_propeller.base.camera import Cameras, orbit
from gs_propeller.mesh.refine import (
    Novel,
    Offsets,
    Refinement,
    RefineSettings,
    RefineState,
    distance,
    refine_angles,
)
from gs_propeller.mesh.surface import from_trimesh
from gs_propeller.mesh.texture import Reference, Textured, shade, unwrap
from gs_propeller.solver.picard import Problem, Report, Settings, Window, solve

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
    return Refinement(
        textured, cameras_of, greener, reference, RefineSettings(STEPS, 3, 0.03, 24, 48, 0.6, 0.2)
    )


@pytest.fixture(scope="module")
def swelling(task: Refinement) -> Refinement:
    """The same ball, whose geometry is trained; the known view shows a larger one."""
    front = task.reference.camera
    alpha = shade(replace(task.textured, mesh=replace(BALL, vertices=1.15 * BALL.vertices)), front, 64)[1]
    red = torch.tensor([0.8, 0.2, 0.2]).view(1, 3, 1, 1)
    reference = Reference(red * alpha + (1 - alpha), alpha, front)
    settings = replace(task.settings, geometry=True, geometry_lr=0.01, lambda_smooth=10.0)
    return replace(task, reference=reference, settings=settings)


def problem_of(task: Refinement) -> Problem[RefineState, Novel]:
    def update(state: RefineState, drift: Novel) -> RefineState:
        return task.update(state, drift, task.known(state.params)[0])

    def evaluate(states: list[RefineState], steps: list[int]) -> list[Novel]:
        return task.compute([s.params for s in states], steps)

    return Problem(evaluate, update, distance, task.coast)  # type: ignore[arg-type]


def run(task: Refinement, window: int, **changes: object) -> Window[RefineState]:
    settings = Settings(STEPS, window, **{"threshold": 0.0, "ema": 1.0, **changes})  # type: ignore[arg-type]
    return solve(problem_of(task), settings, task.first_state())


def same(one: RefineState, other: RefineState) -> bool:
    return all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


def test_refinement_goes_where_prior_and_picture_point(task: Refinement) -> None:
    result = task.result(run(task, 1).states[0])
    back, front = orbit([math.pi], [0.0], 2.0, FOV), task.reference.camera
    middle = shade(result, back, 32)[0][0, :, 16, 16]
    assert float(middle[1]) > 0.55 > 0.5 > float(middle[0])
    shown = shade(result, front, 64)[0][0, :, 28:36, 28:36].mean((1, 2))
    assert float(shown[0]) > 0.6 and float(shown[1]) < 0.4


@pytest.mark.parametrize("tail", ["momentum", "copy"])
@pytest.mark.parametrize("window", [2, 4, 8])
def test_every_window_is_the_serial_run_at_threshold_nought(task: Refinement, window: int, tail: str) -> None:
    serial, parallel = run(task, 1), run(task, window, tail=tail)
    assert same(serial.states[0], parallel.states[0])
    assert parallel.passes <= STEPS


def test_geometry_grows_into_the_known_outline(swelling: Refinement) -> None:
    result = swelling.result(run(swelling, 1).states[0])
    assert result.mesh.trimesh().is_watertight
    front = swelling.reference.camera

    def gap(textured: Textured) -> float:
        return float((shade(textured, front, 64)[1] - swelling.reference.mask).abs().mean())

    assert gap(result) < 0.5 * gap(swelling.textured)


@pytest.mark.parametrize("window", [3, 5])
def test_geometry_too_is_the_serial_run_s(swelling: Refinement, window: int) -> None:
    assert same(run(swelling, 1).states[0], run(swelling, window).states[0])


@pytest.mark.parametrize("alone", ["lambda_smooth", "lambda_normal"])
def test_each_regulariser_alone_has_a_gradient(swelling: Refinement, alone: str) -> None:
    off = {"lambda_known": 0.0, "lambda_smooth": 0.0, "lambda_normal": 0.0}
    task = replace(swelling, settings=replace(swelling.settings, **(off | {alone: 1.0})))
    params = task.first_state().params
    noise = 0.02 * torch.randn(params.vertices.shape, generator=torch.Generator().manual_seed(0))
    grads, _ = task.known(replace(params, vertices=noise))
    assert float(grads.vertices.abs().max()) > 0
    assert float(grads.coarse.abs().max()) == float(grads.fine.abs().max()) == 0


def test_a_window_takes_several_steps_a_pass(task: Refinement) -> None:
    """With a threshold of a thousandth of the range, and ends near the serial run."""
    serial, parallel = run(task, 1), run(task, 4, threshold=1e-6)
    assert parallel.passes < 0.7 * STEPS
    assert distance(serial.states[0], parallel.states[0]) < 1e-3  # measured 5e-5


def test_the_update_is_adam_on_the_sum_of_both_losses(task: Refinement) -> None:
    """Against torch.optim.Adam on the loss written out in one piece; the coarse offset's rate falls to nought."""
    first = task.first_state().params
    coarse, fine = (t.clone().requires_grad_(True) for t in (first.coarse, first.fine))
    groups = [{"params": [coarse]}, {"params": [fine]}]
    adam = torch.optim.Adam(groups, lr=task.settings.lr, betas=(0.9, 0.99), eps=1e-15)
    from gs_propeller.mesh.raster import rasterize
    from gs_propeller.mesh.texture import lookup, sample_texture

    s, mesh = task.settings, task.textured.mesh
    for step in range(3):
        strength = s.strength_max + (s.strength_min - s.strength_max) * step / (STEPS - 1)
        hits = rasterize(mesh, cameras_of(step), s.size)
        image = sample_texture(
            task.painted(Offsets(coarse, fine.detach(), first.vertices)),
            lookup(task.textured, hits),
            hits.mask,
        )
        gap = (image - greener(step, image.detach(), strength)).square() * hits.mask[:, None]
        seen = rasterize(mesh, task.reference.camera, 64)
        mask = seen.mask & (task.reference.mask[:, 0] > 0.99)
        shown = sample_texture(
            task.painted(Offsets(coarse, fine, first.vertices)), lookup(task.textured, seen), mask
        )
        miss = (shown - task.reference.image).square() * mask[:, None]
        loss = gap.sum() / hits.mask.sum() / 3 + s.lambda_known * miss.sum() / mask.sum() / 3
        adam.zero_grad()
        loss.backward()
        adam.param_groups[0]["lr"] = s.lr * (1 - step / STEPS)
        adam.step()
    three = replace(task, settings=s)
    ours = solve(problem_of(three), Settings(3, 1), three.first_state()).states[0].params
    assert torch.allclose(ours.coarse, coarse, atol=1e-6)
    assert torch.allclose(ours.fine, fine, atol=1e-6)


@pytest.mark.parametrize("kind", ["task", "swelling"])
def test_what_travels_comes_back_whole(kind: str, request: pytest.FixtureRequest) -> None:
    task = request.getfixturevalue(kind)
    state = run(task, 3).states[0]
    packed = state.params.pack()
    assert packed.shape == (len(state.params), 3)
    again = Offsets.unpack(packed)
    assert all(torch.equal(value, getattr(state.params, name)) for name, value in again.__dict__.items())
    drift = task.compute([state.params], [2])[0]
    back = Novel.unpack(drift.pack().reshape(-1), drift.losses, state.params)
    assert torch.equal(back.coarse, drift.coarse) and torch.equal(back.vertices, drift.vertices)
    assert back.at(state) is back
    assert same(RefineState.from_tensors(state.tensors()), state)
    assert same(state.to("cpu"), state)


def test_reports_name_errors_of_colours(task: Refinement) -> None:
    reports: list[Report[Novel]] = []
    settings = Settings(STEPS, 4, threshold=1e-9, ema=1.0)
    solve(problem_of(task), settings, task.first_state(), lambda window, report: reports.append(report))
    assert all(0.0 <= error < 0.1 for report in reports for error in report.errors)


def test_refinement_views_are_functions_of_the_step() -> None:
    one, again, other = (refine_angles(step, 4, -0.2, 0.3, 7) for step in (3, 3, 4))
    assert torch.equal(one[0], again[0])
    assert not torch.equal(one[0], other[0])
    assert bool(((one[1] >= -0.2) & (one[1] <= 0.3)).all())
