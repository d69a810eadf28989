"""Colours that the input picture does not show go to its own at their height; those that it shows stay."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import trimesh
from torch import Tensor

from gs_propeller.base.camera import Cameras, orbit
from gs_propeller.distil import palette
from gs_propeller.distil.palette import Palette
from gs_propeller.mesh.surface import from_trimesh
from gs_propeller.mesh.texture import Reference, Textured, recoloured, shade, unwrap
from tests.toy_prior import scene

FOV = math.radians(49.1)
PINK, BLACK, GREY = (torch.tensor(x) for x in ([1.0, 0.5, 0.6], [0.1, 0.1, 0.1], [0.55, 0.3, 0.35]))


def two_halves(size: int = 64) -> tuple[Tensor, Tensor]:
    """A square, pink above and black below, over white, and its mask."""
    mask = torch.zeros(1, 1, size, size)
    mask[..., size // 8 : -size // 8, size // 8 : -size // 8] = 1
    colour = PINK[None, :, None, None].expand(1, 3, size, size).clone()
    colour[:, :, size // 2 :] = BLACK[None, :, None, None]
    return colour * mask + 1 - mask, mask


def front(elevation_rad: float = 0.0) -> Cameras:
    return orbit([0.0], [elevation_rad], 2.0, FOV)


@pytest.mark.parametrize("elevation_rad", [0.0, 0.4, -0.3])
def test_a_pixel_stands_as_high_as_what_it_shows_of_the_middle_plane(elevation_rad: float) -> None:
    image, mask = two_halves()
    made = Palette.of(image, mask, front(elevation_rad))
    assert made is not None
    camera = front(elevation_rad)
    points = torch.zeros(len(made.heights), 3)
    points[:, 1] = made.heights  # where x and z are nought
    seen = points @ camera.w2c[0, :3, :3].T + camera.w2c[0, :3, 3]
    rows = (seen[:, 1] / seen[:, 2] * camera.focal_px(64) + 32).round()
    pink = made.colours[:, 0] > 0.5
    assert float(rows[pink].max()) <= 32 <= float(rows[~pink].min()) + 1
    assert made.heights[pink].min() > made.heights[~pink].max()


def test_what_is_between_colours_goes_to_that_of_its_height() -> None:
    made = Palette.of(*two_halves(), front())
    assert made is not None
    heights = torch.tensor([0.4, -0.4])
    moved = made.pulled(GREY.expand(2, 3), heights)
    torch.testing.assert_close(moved, torch.stack([PINK, BLACK]), atol=0.02, rtol=0)
    stays = made.pulled(torch.stack([PINK, BLACK]), heights)
    torch.testing.assert_close(stays, torch.stack([PINK, BLACK]), atol=0.02, rtol=0)


def test_many_colours_go_where_each_would_alone() -> None:
    made = Palette.of(*two_halves(), front())
    assert made is not None
    random = torch.Generator().manual_seed(0)
    colours = torch.rand(palette.CHUNK + 1, 3, generator=random)
    heights = torch.rand(palette.CHUNK + 1, generator=random) - 0.5
    some = slice(0, 400)
    gaps = (made.pulled(colours, heights)[some] - made.pulled(colours[some], heights[some])).abs()
    assert float(gaps.mean()) < 0.01


def test_nothing_inside_makes_no_palette() -> None:
    image, mask = two_halves()
    assert Palette.of(image, torch.zeros_like(mask), front()) is None


def test_gaussians_behind_are_recoloured_and_those_in_front_are_not() -> None:
    made = scene(closing_updates=0, recolour=1.0, num_points=400)
    state = made.first()
    pale = state.params.map(lambda x: x)
    pale = replace(
        pale, sh_dc=torch.full_like(pale.sh_dc, 0.8), logit_opacities=torch.full((len(pale),), 6.0)
    )
    state = replace(state, params=pale)
    moved = (made.finished(state).params.sh_dc - pale.sh_dc).abs().amax((1, 2))
    behind, ahead = pale.means[:, 2] < -0.25, pale.means[:, 2] > 0.25
    assert bool(behind.any()) and bool(ahead.any())
    assert float(moved[behind].median()) > 0.1 > 1e-3 > float(moved[ahead].quantile(0.25))
    same = scene(closing_updates=0, recolour=0.0, num_points=400).finished(state)
    assert torch.equal(same.params.sh_dc, pale.sh_dc)


def test_a_texture_is_recoloured_where_the_picture_does_not_show_it() -> None:
    ball = from_trimesh(trimesh.creation.icosphere(3, 0.6))
    textured = Textured(ball, *unwrap(ball, 96), GREY.expand(96, 96, 3).clone())
    camera = front()
    alpha = shade(textured, camera, 64)[1]
    image = PINK[None, :, None, None] * alpha + 1 - alpha
    done = recoloured(textured, Reference(image, alpha, camera), 1.0)
    sides = shade(done, orbit([0.0, math.pi], [0.0, 0.0], 2.0, FOV), 32)[0][:, :, 16, 16]
    torch.testing.assert_close(sides, torch.stack([GREY, PINK]), atol=0.02, rtol=0)
    half = recoloured(textured, Reference(image, alpha, camera), 0.5)
    back = shade(half, orbit([math.pi], [0.0], 2.0, FOV), 32)[0][0, :, 16, 16]
    torch.testing.assert_close(back, (GREY + PINK) / 2, atol=0.02, rtol=0)
