"""Baking and shading textures on meshes whose true colours are known."""

from __future__ import annotations

import gc
import math
import time

import pytest
import torch
import trimesh
import xatlas
from torch import Tensor
from torch.nn import functional as F

from gs_propeller.base.camera import Cameras, orbit
from gs_propeller.mesh.raster import rasterize
from gs_propeller.mesh.surface import Mesh, from_trimesh
from gs_propeller.mesh.texture import (
    Reference,
    Textured,
    bake,
    lookup,
    sample_texture,
    shade,
    texel_surface,
    unwrap,
)

pytestmark = pytest.mark.slow  # loads networks or starts processes all along

FOV = math.radians(49.1)
BALL = from_trimesh(trimesh.creation.icosphere(4, 0.6))


def _paint(points: Tensor) -> Tensor:
    """A smooth colour for every place: [..., 3] -> [..., 3]."""
    return (0.5 + 0.4 * torch.sin(3 * points + torch.tensor([0.0, 1.0, 2.0]))).clamp(0, 1)


def _points(mesh: Mesh, cameras: Cameras, size: int) -> tuple[Tensor, Tensor]:
    hits = rasterize(mesh, cameras, size)
    corners = mesh.vertices[mesh.faces[hits.face_id.clamp_min(0)]]
    return (corners * hits.barycentric[..., None]).sum(-2), hits.mask


def _views(cameras: Cameras, size: int) -> tuple[Tensor, Tensor]:
    """True views of the painted ball, averaged over 2 x 2 rays."""
    points, mask = _points(BALL, cameras, 2 * size)
    image = torch.where(mask[..., None], _paint(points), torch.ones(3)).permute(0, 3, 1, 2)
    pool = torch.nn.functional.avg_pool2d
    return pool(image, 2), pool(mask[:, None].float(), 2)


def _around(count: int) -> Cameras:
    turn = torch.arange(count) * (2 * math.pi / count)
    lift = torch.tensor([0.0, 0.7, -0.7, 1.3, -1.3])[torch.arange(count) % 5]
    return orbit(turn, lift, 2.0, FOV)


@pytest.fixture(scope="module")
def baked() -> Textured:
    return bake(BALL, _views, _around(20), 256, 128)


def test_charts_do_not_overlap_and_cover_all_faces() -> None:
    uvs, uv_faces = unwrap(BALL, 512)
    assert uv_faces.shape == BALL.faces.shape
    assert float(uvs.min()) >= 0
    assert float(uvs.max()) <= 1
    corners = uvs[uv_faces]
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).abs().sum() / 2
    rows, face, barycentric = texel_surface(uvs, uv_faces, 512)
    assert abs(len(rows) / 512**2 / float(area) - 1) < 0.02  # overlaps would cover less than the sum of areas
    assert len(face.unique()) > 0.99 * len(BALL.faces)
    at = (uvs[uv_faces[face]] * barycentric[:, :, None]).sum(1)
    assert float((at[:, 0] * 512 - 0.5 - rows % 512).abs().max()) < 0.05
    assert float(((1 - at[:, 1]) * 512 - 0.5 - rows // 512).abs().max()) < 0.05


def test_baking_finds_the_true_colours_seams_included(baked: Textured) -> None:
    cameras = orbit([0.4, 2.5, 4.0], [0.3, -0.5, 0.9], 2.0, FOV)
    image, alpha = shade(baked, cameras, 96)
    truth, mask = _views(cameras, 96)
    inside = (mask > 0.999).expand_as(image)
    error = (image - truth)[inside].abs()
    assert float(error.mean()) < 0.012  # measured 0.005
    assert float(error.quantile(0.999)) < 0.08  # measured 0.03: a seam would stand out here
    assert float((alpha - mask).abs().max()) < 1e-6


def test_the_reference_counts_most_where_it_looks() -> None:
    camera = orbit([0.0], [0.0], 2.0, FOV)
    _, mask = _points(BALL, camera, 128)
    red = torch.where(mask[..., None], torch.tensor([1.0, 0.0, 0.0]), torch.ones(3)).permute(0, 3, 1, 2)
    given = bake(BALL, _views, _around(20), 256, 128, Reference(red, mask[:, None].float(), camera))
    front = shade(given, camera, 32)[0][0, :, 16, 16]
    assert float((front - torch.tensor([1.0, 0.0, 0.0])).abs().max()) < 0.5
    plain = shade(bake(BALL, _views, _around(20), 256, 128), camera, 32)[0][0, :, 16, 16]
    assert float(front[0]) > float(plain[0]) + 0.2
    back = orbit([math.pi], [0.0], 2.0, FOV)
    assert float((shade(given, back, 32)[0] - _views(back, 32)[0])[0, :, 16, 16].abs().max()) < 0.03


def test_unseen_texels_take_the_nearest_colour() -> None:
    half = bake(BALL, _views, orbit([0.0], [0.0], 2.0, FOV), 128, 96)
    image, alpha = shade(half, orbit([math.pi], [0.0], 2.0, FOV), 32)
    assert bool((alpha[0, 0, 10:22, 10:22] == 1).all())
    assert float(image[0, :, 10:22, 10:22].min()) >= 0.05  # painted, neither black nor left grey everywhere
    assert float(image[0, :, 10:22, 10:22].std()) > 0.01
    nobody = bake(
        BALL,
        lambda c, s: (torch.ones(1, 3, s, s), torch.zeros(1, 1, s, s)),
        orbit([0.0], [0.0], 2.0, FOV),
        64,
        32,
    )
    assert bool((nobody.texture == 0.5).all())


def test_lookup_is_differentiable_in_the_texture(baked: Textured) -> None:
    hits = rasterize(baked.mesh, orbit([0.2], [0.1], 2.0, FOV), 24)
    at = lookup(baked, hits)
    texture = baked.texture.double().requires_grad_(True)
    weight = torch.randn(1, 3, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (sample_texture(texture, at.double(), hits.mask) * weight).sum().backward()
    assert texture.grad is not None
    direction = torch.randn(texture.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    slope = float((texture.grad * direction).sum())
    ends = [
        float((sample_texture(texture.detach() + h * direction, at.double(), hits.mask) * weight).sum())
        for h in (1e-3, -1e-3)
    ]
    assert abs((ends[0] - ends[1]) / 2e-3 / slope - 1) < 1e-6  # linear in the texture


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="faces of uvs"):
        Textured(BALL, torch.zeros(3, 2), torch.zeros(1, 3, dtype=torch.int64), torch.zeros(4, 4, 3))


def test_a_large_smooth_mesh_is_unwrapped_in_slabs() -> None:
    """At once, xatlas ends the process by a segmentation fault. Hardly a texel belongs to two faces."""
    mesh = from_trimesh(trimesh.creation.icosphere(6, 0.5))
    uvs, faces = unwrap(mesh, 1024)
    assert faces.shape == mesh.faces.shape and float(uvs.min()) >= 0 and float(uvs.max()) <= 1
    corners = F.pad(uvs[faces].double() * 1024, (0, 1))
    areas = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=1) / 2
    held = len(texel_surface(uvs, faces, 1024)[0])
    assert 0.2 * 1024**2 < float(areas.sum()) < 1.03 * held  # 1.012


@pytest.mark.parametrize("fails", [False, True])
def test_an_atlas_is_let_go_once_its_threads_sleep(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """Let go at once, one in very many waits for its own threads for ever."""
    events: list[str] = []
    real, rest = xatlas.Atlas, time.sleep

    class Watched:
        def __init__(self) -> None:
            self.inner = real()

        def __getattr__(self, name: str) -> object:
            if fails and name == "generate":
                raise RuntimeError("no charts")
            return getattr(self.inner, name)

        def __getitem__(self, index: int) -> object:
            return self.inner[index]

        def __del__(self) -> None:
            events.append("let go")

    monkeypatch.setattr(xatlas, "Atlas", Watched)

    def rested(seconds: float) -> None:
        events.append("rest")
        rest(seconds)

    monkeypatch.setattr(time, "sleep", rested)
    if fails:
        with pytest.raises(RuntimeError, match="no charts"):
            unwrap(BALL, 64)
    else:
        unwrap(BALL, 64)
    gc.collect()
    assert events == ["rest", "let go"]
