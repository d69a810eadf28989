"""A field's pixels: kernels against torch's operations in float64, formulas by hand, and what is skipped."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gs_propeller.base.camera import orbit
from gs_propeller.base.threads import set_threads
from gs_propeller.scenes.fields import march
from gs_propeller.scenes.fields.march import (
    Look,
    composed,
    composed_torch,
    march_cpu,
    march_torch,
    occupancy,
    render,
)
from gs_propeller.scenes.fields.state import Grids, first_state
from tests.toy_field import scene

CELLS, SIZE = 8, 12
DENSE, NEUS = Look(1.0, 0.5, 10.0, 0.75), Look(1.0, 0.5, 10.0, 0.75, True, 20.0, 0.6)
EYES = orbit([0.3, 2.0], [0.2, -0.5], 2.0, 0.857)


def grids(amount: float, dtype: torch.dtype = torch.float64, seed: int = 0) -> Grids:
    generator = torch.Generator().manual_seed(seed)
    sides = (CELLS // 2 + 1, CELLS + 1)
    draws = [
        amount * torch.randn(s, s, s, 4, generator=generator, dtype=torch.float64).to(dtype) for s in sides
    ]
    return Grids(tuple(draw.requires_grad_() for draw in draws))


def worst(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.slow
def test_grids_added_up_against_torch() -> None:
    for many in (grids(1.0), Grids((grids(1.0).levels[1],))):
        ours, theirs = composed(many, DENSE), composed_torch(many, DENSE)
        assert float((ours - theirs).abs().max()) < 1e-14  # 2e-15
        pull = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        pair = (torch.autograd.grad((x * pull).sum(), many.levels) for x in (ours, theirs))
        assert worst(*pair) < 1e-14


def test_a_coarse_grid_is_trilinear_between_its_corners() -> None:
    coarse, _ = grids(1.0).levels
    both = composed_torch(
        Grids((coarse, torch.zeros(9, 9, 9, 4, dtype=torch.float64))), replace(DENSE, peak=0.0)
    )
    wanted = torch.nn.functional.interpolate(
        coarse.permute(3, 0, 1, 2)[None], [9] * 3, mode="trilinear", align_corners=True
    )
    assert float((both - wanted[0].permute(1, 2, 3, 0)).abs().max()) < 1e-14


@pytest.mark.slow
@pytest.mark.parametrize("normals", [False, True])
@pytest.mark.parametrize("look", [DENSE, NEUS, replace(NEUS, ratio=1.0, sharpness=60.0)])
def test_rays_against_torch(look: Look, normals: bool) -> None:
    """Values, then gradients under random cotangents: of colours, alpha, normals and what faces away."""
    many = grids(0.03 if look.sdf else 0.3)
    generator = torch.Generator().manual_seed(1)
    backdrop = torch.rand(2, 3, generator=generator, dtype=torch.float64)
    grid, cell = composed(many, look), 2 / CELLS
    occupied = occupancy(grid, look, cell)
    assert 0.05 < float(occupied.double().mean()) < 0.95
    ours, theirs = (
        kind(grid, occupied, look, EYES, SIZE, backdrop, normals) for kind in (march_cpu, march_torch)
    )
    assert ours.shape == (2, 8 if normals else 4, SIZE, SIZE) and 0.1 < float(ours[:, 3].mean()) < 0.9
    assert float((ours - theirs).abs().max()) < 1e-14  # 2e-15
    pull = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    pair = (torch.autograd.grad((x * pull).sum(), many.levels, retain_graph=True) for x in (ours, theirs))
    assert worst(*pair) < 2e-14  # 4e-15


def test_what_torch_does_is_the_derivative() -> None:
    """Of NeuS' opacity and the normals, by differences along a random direction."""
    many, generator = grids(0.03), torch.Generator().manual_seed(1)
    occupied = torch.ones(CELLS, CELLS, CELLS, dtype=torch.bool)
    pull = torch.randn(
        2, 7, SIZE, SIZE, generator=generator, dtype=torch.float64
    )  # the eighth holds weights still
    way = many.map(lambda x: torch.randn(x.shape, generator=generator, dtype=torch.float64))

    def value(step: float) -> Tensor:
        grid = composed_torch(many.map(lambda x, d: x + step * d, way), NEUS)
        white = torch.ones(2, 3, dtype=torch.float64)
        return (march_torch(grid, occupied, NEUS, EYES, SIZE, white, True)[:, :7] * pull).sum()

    slope = sum(
        float((g * d).sum())
        for g, d in zip(torch.autograd.grad(value(0.0), many.levels), way.levels, strict=True)
    )
    with torch.no_grad():
        measured = float(value(1e-8) - value(-1e-8)) / 2e-8  # short: NeuS' maxima have kinks
    assert measured == pytest.approx(slope, rel=1e-5)


def test_an_even_fog_by_its_formula() -> None:
    """A ray along an axis, and one that misses."""
    fog = replace(DENSE, peak=0.0, step=0.5)
    many = grids(0.0)
    many = Grids((many.levels[0], torch.full_like(many.levels[1], 0.7)))
    (view,) = render(many, fog, [(orbit([0.0], [0.0], 3.0, 1.2), 33, torch.tensor([1.0, 0.5, 0.0]))])
    alpha = 1 - math.exp(-2.0 * math.log1p(math.exp(0.7)))
    assert float(view.alpha[0, 0, 16, 16]) == pytest.approx(alpha, rel=1e-12)
    colour = 1 / (1 + math.exp(-0.7))
    assert float(view.image[0, 1, 16, 16]) == pytest.approx(alpha * colour + (1 - alpha) * 0.5, rel=1e-12)
    assert view.image[0, :, 0, 0].tolist() == [1.0, 0.5, 0.0] and float(view.alpha[0, 0, 0, 0]) == 0.0


@pytest.mark.parametrize("look", [DENSE, NEUS])
def test_the_same_bits_on_any_number_of_threads(look: Look) -> None:
    many, white = grids(0.03, torch.float32), torch.ones(3)

    def everything() -> list[Tensor]:
        views = render(many, look, [(EYES, SIZE, white), (EYES[:1], 9, white)], True)
        total = sum((v.image.square().sum() + (v.normal * v.away).sum() for v in views), torch.zeros(()))
        return [*(v.image for v in views), *torch.autograd.grad(total, many.levels)]

    set_threads(1)
    one = everything()
    for threads in (2, 3, 7):
        set_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(one, everything(), strict=True)), threads


@pytest.mark.parametrize("look", [DENSE, replace(NEUS, ratio=1.0)])
def test_what_is_skipped_is_next_to_nothing(look: Look) -> None:
    """Some of the space, and hardly any light; the rays of another state skip by that state."""
    many = grids(0.01 if look.sdf else 0.1)
    grid, white = composed(many, look).detach(), torch.ones(2, 3)
    occupied = occupancy(grid, look, 2 / CELLS)
    whole = march_cpu(grid, torch.ones_like(occupied), look, EYES, SIZE, white, False)
    part = march_cpu(grid, occupied, look, EYES, SIZE, white, False)
    most = float((whole - part).abs().max())
    assert 0 < most < (5e-5 if look.sdf else 5e-3)  # 1.5e-5, 1.6e-3
    by_hand = (grid[..., 0] - look.bound(2 / CELLS)) * (-1 if look.sdf else 1)
    for i, j, k in ((0, 0, 0), (2, 3, 4), (4, 4, 4), (1, 4, 6)):
        assert bool(occupied[i, j, k]) == bool((by_hand[i : i + 2, j : j + 2, k : k + 2] > 0).any())


def test_a_ball_is_seen_as_one() -> None:
    """Of distances: opaque inside its outline, clear outside, normals outward, none that faces away."""
    many = first_state(32, 3).params
    (view,) = render(many, replace(NEUS, ratio=1.0, sharpness=200.0), [(EYES, 64, torch.ones(3))], True)
    away = (torch.arange(64) + 0.5 - 32) / EYES.focal_px(64)
    slant = (away.square()[:, None] + away.square()).sqrt().atan()
    inside, outside = slant < math.asin(0.46 / 2), slant > math.asin(0.54 / 2)
    assert float(view.alpha[:, 0, inside].min()) > 0.97 and float(view.alpha[:, 0, outside].max()) < 0.03
    assert view.normal is not None and view.away is not None
    towards = torch.nn.functional.normalize(EYES.centres, dim=1)
    middle = view.normal[:, :, 31:33, 31:33].mean((2, 3))
    assert float((middle * towards).sum(1).min()) > 0.97
    assert float(view.away[:, 0, inside].max()) < 1e-3


def test_warming_compiles_whatever_a_step_needs() -> None:
    march.warm()
    state = scene().first()
    before = {
        name: len(getattr(march.kernels, name).signatures) for name in ("march", "march_adjoint", "coarsen")
    }
    made = scene(scene="sdf")
    made.update(state, made.compute([state.params], [0])[0])
    assert before == {name: len(getattr(march.kernels, name).signatures) for name in before}
