"""The drift: each loss alone moves something, draws depend on the step alone, gradients against differences."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gs_propeller.distil.losses import (
    LOSSES,
    Distillation,
    Evaluation,
    Guide,
    Schedule,
    draw,
    gathered,
    total,
)
from gs_propeller.scenes.gaussians.raster import render
from gs_propeller.scenes.gaussians.state import Drift, Gaussians, init_ball, start

SCHEDULE = Schedule(
    steps=10, batch_size=3, sds_weight="noise", sds_space="latent",
    t_min=0.1, t_max=0.9, anneal_t=True, lambda_sds=0.0, lambda_rgb=0.0,
    lambda_mask=0.0, lambda_opacity=0.0, lambda_scale=0.0, elevation_rad=0.1, min_elevation_rad=-0.3,
    max_elevation_rad=0.4, radius=2.0, fov_y_rad=math.radians(49.1), reference_size=24, render_size=0,
    invert_background=0.0,
)  # fmt: skip


class Towards:
    """A prior that wants one colour everywhere: its score is that of |images - colour|^2 / 2."""

    levels, size_px, latent_shape = 100, 16, (2, 4, 4)

    def sds_grad(
        self,
        images: Tensor,
        conditioning: Any,
        cameras: Tensor,
        t: Tensor,
        noise: Tensor,
        guidance_scale: float,
        weighting: str = "noise",
        space: str = "latent",
    ) -> tuple[Tensor, Tensor]:
        error = images.detach() - conditioning
        return error, 0.5 * error.square().sum((1, 2, 3))


BROKEN = Guide(Towards(), torch.full((1, 3, 1, 1), math.nan), 1.0)


def _problem(**weights: float) -> tuple[Distillation, Gaussians]:
    picture = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    mask = (picture[:, :1] > 0.5).float()
    colour = torch.tensor([0.9, 0.1, 0.2]).view(1, 3, 1, 1)
    schedule = replace(SCHEDULE, **weights)  # type: ignore[arg-type]
    return Distillation((Guide(Towards(), colour, 1.0),), picture, mask, schedule, seed=4), init_ball(
        40, 0.4, 0, 0
    ).params


def _drift(distillation: Distillation, params: Gaussians, step: int) -> Evaluation:
    """Both parts together."""
    grads, stats, losses = distillation.compute([params], [step])[0]
    lineage = start(params).lineage
    whole = total(Drift(grads, stats, lineage, losses), distillation.known(params, step))
    return whole.grads, whole.stats, whole.losses


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_alone_moves_the_gaussians(name: str) -> None:
    distillation, params = _problem(**{f"lambda_{name}": 5.0})
    grads, stats, losses = _drift(distillation, params, 3)
    assert float(losses[LOSSES.index(name)]) > 0
    assert float(losses.sum() - losses[LOSSES.index(name)]) == 0
    assert any(float(g.abs().max()) > 0 for _, g in grads.items())
    assert float(stats.seen.max()) == 4  # the known view and three novel ones


def test_draws_depend_on_the_step_alone() -> None:
    prior = Towards()
    one, again, other = (draw(step, SCHEDULE, [prior], 4) for step in (5, 5, 6))
    for field in ("azimuths", "elevations", "backdrop"):
        assert torch.equal(getattr(one, field), getattr(again, field))
    assert torch.equal(one.t[0], again.t[0]) and torch.equal(one.noise[0], again.noise[0])
    assert not torch.equal(one.noise[0], other.noise[0])
    assert not torch.equal(one.azimuths, draw(5, SCHEDULE, [prior], 5).azimuths)


def test_draws_stay_in_their_ranges() -> None:
    prior = Towards()
    for step in range(SCHEDULE.steps):
        chosen = draw(step, SCHEDULE, [prior], 0)
        assert bool(((chosen.elevations >= -0.2 - 1e-6) & (chosen.elevations <= 0.5 + 1e-6)).all())
        sectors = ((chosen.azimuths - chosen.azimuths[0]) / (2 * math.pi / 3)).round() % 3
        assert len(sectors.unique()) >= 2
        assert bool((chosen.backdrop == 1).all())
        free = draw(step, replace(SCHEDULE, anneal_t=False, invert_background=1.0), [prior], 0)
        assert bool(((free.t[0] >= 10) & (free.t[0] <= 90)).all())
        assert bool((free.backdrop == 0).all())
    annealed = [int(draw(step, SCHEDULE, [prior], 0).t[0][0]) for step in range(10)]
    assert annealed == [90, 82, 74, 65, 57, 50, 42, 33, 26, 18] or annealed == sorted(annealed, reverse=True)


def test_gradient_against_differences() -> None:
    """Known-view colour and mask: the drift's directional derivative is that of the loss it names."""
    distillation, params = _problem(lambda_rgb=100.0, lambda_mask=50.0)
    grads, _, losses = _drift(distillation, params, 5)
    direction = torch.randn(40, 1, 3, generator=torch.Generator().manual_seed(1))
    slope = float((grads.sh_dc * direction).sum())

    def value(step: float) -> float:
        moved = replace(params, sh_dc=params.sh_dc + step * direction)
        return float(_drift(distillation, moved, 5)[2].double().sum())

    assert abs((value(1e-2) - value(-1e-2)) / 2e-2 / slope - 1) < 0.01  # measured 4e-4
    seen = render(params, distillation.reference_camera(), 24, torch.ones(3))
    rgb = 0.5 * 100.0 * float(((seen.image - distillation.reference) ** 2).mean())
    assert abs(float(losses[LOSSES.index("rgb")]) - rgb) < 1e-4 * rgb


def test_sds_pulls_towards_what_the_prior_wants() -> None:
    distillation, params = _problem(lambda_sds=1.0)
    grads, _, losses = _drift(distillation, params, 0)
    moved = params.map(lambda p, g: p - 1e-3 * g, grads)
    assert float(_drift(distillation, moved, 0)[2].sum()) < float(losses.sum())


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_slots_together_are_slots_alone(at_once: int) -> None:
    """Scenes of different sizes in one render and one call of a prior that treats its pictures one by one."""
    distillation, params = _problem(lambda_sds=1.0)
    smaller = params.map(lambda x: x[:25])
    together = replace(distillation, batch_slots=at_once).compute([params, smaller, params], [1, 2, 3])
    for (grads, stats, losses), scene, step in zip(
        together, (params, smaller, params), (1, 2, 3), strict=True
    ):
        alone = distillation.compute([scene], [step])[0]
        assert torch.equal(grads.pack(), alone[0].pack())
        for field in ("grad2d", "seen", "radii"):
            assert torch.equal(getattr(stats, field), getattr(alone[1], field))
        # the surrogate's values are summed over fewer or more pictures
        assert torch.equal(losses, alone[2])


def test_statistics_against_loops() -> None:
    params = init_ball(12, 0.4, 0, 1).params.map(lambda x: x.detach().requires_grad_(True))
    distillation, _ = _problem()
    one = render(params, distillation.reference_camera(), (20, 30), torch.ones(3))
    two = render(params, distillation.reference_camera(), (16, 16), torch.ones(3))
    (one.image.square().sum() + two.image.sum()).backward()
    stats = gathered(one, two)
    for i in range(12):
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


def test_a_gradient_that_is_no_number_is_named() -> None:
    distillation, params = _problem(lambda_sds=1.0, lambda_rgb=1.0)
    broken = replace(distillation, guides=(BROKEN,))
    with pytest.raises(
        FloatingPointError, match=r"step 7: loss sds: the gradient of means, .*nonfinite=skip"
    ):
        broken.compute([params], [7])
    unknown = replace(distillation, reference=torch.full((1, 3, 24, 24), math.inf))
    with pytest.raises(FloatingPointError, match="step 7: loss rgb"):
        unknown.known(params, 7)


def test_a_broken_step_can_be_skipped() -> None:
    distillation, params = _problem(lambda_sds=1.0)
    broken = replace(distillation, guides=(BROKEN,), skip_broken=True)
    grads, stats, losses = broken.compute([params], [7])[0]
    assert float(grads.pack().abs().sum()) == 0.0 and float(stats.seen.sum()) == 0.0
    assert math.isnan(float(losses[0]))
