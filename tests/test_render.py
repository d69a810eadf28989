"""The mesh's compiled kernels against loops and against torch's operations: values, then gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from gs_propeller.base.camera import Cameras, orbit
from gs_propeller.mesh import kernels
from gs_propeller.mesh.raster import Hits, mesh_device, rasterize
from gs_propeller.mesh.render import Canvas, render, render_torch, texels_of, warm
from gs_propeller.mesh.surface import Mesh, from_trimesh
from gs_propeller.mesh.texture import Textured, lookup, sample_texture, unwrap

FOV = math.radians(49.1)
CAMERAS = orbit([0.3, 2.0], [0.2, -0.4], 2.0, FOV)
BALL = from_trimesh(trimesh.creation.icosphere(3, 0.6))
SIZE, SIDE = 48, 96


def by_rays(mesh: Mesh, cameras: Cameras, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(depth, point) of the nearest face at each pixel centre, pixel by pixel and face by face (Moeller & Trumbore)."""
    focal = cameras.focal_px(size)
    depth, point = np.full((len(cameras), size, size), np.inf), np.zeros((len(cameras), size, size, 3))
    corners = mesh.vertices.double().numpy()[mesh.faces.numpy()]
    for v, w2c in enumerate(cameras.w2c.double().numpy()):
        centre = -w2c[:3, :3].T @ w2c[:3, 3]
        for row, column in np.ndindex(size, size):
            ray = w2c[:3, :3].T @ [(column + 0.5 - size / 2) / focal, (row + 0.5 - size / 2) / focal, 1.0]
            for a, b, c in corners:
                across = np.cross(ray, c - a)
                determinant = (b - a) @ across
                if determinant == 0:
                    continue
                u = (centre - a) @ across / determinant
                turned = np.cross(centre - a, b - a)
                w, z = ray @ turned / determinant, (c - a) @ turned / determinant
                if u >= 0 and w >= 0 and u + w <= 1 and 0 < z < depth[v, row, column]:
                    depth[v, row, column], point[v, row, column] = z, centre + z * ray
    return depth, point


@pytest.mark.slow
@pytest.mark.parametrize("place", ["before", "through"])
def test_the_nearest_face_is_the_one_that_rays_find(place: str) -> None:
    """Before the camera; and with faces that reach behind it."""
    mesh = from_trimesh(trimesh.creation.box((0.7, 0.5, 0.9)))
    cameras = CAMERAS
    if place == "through":
        mesh, cameras = Mesh(mesh.vertices * 4, mesh.faces), orbit([0.3, 2.0], [0.2, -0.4], 1.2, FOV)
    hits = rasterize(mesh, cameras, 16)
    depth, point = by_rays(mesh, cameras, 16)
    assert np.array_equal(hits.mask.numpy(), np.isfinite(depth))
    assert float(hits.depth[~hits.mask].abs().sum()) == 0.0
    ours = (mesh.vertices[mesh.faces[hits.face_id.clamp_min(0)]] * hits.barycentric[..., None]).sum(-2)
    mask = hits.mask.numpy()
    assert np.abs(hits.depth.numpy() - depth)[mask].max() < 1e-6  # measured 2e-7
    assert np.abs(ours.numpy() - point)[mask].max() < 1e-6  # measured 4e-7


def test_no_pixel_falls_between_two_faces() -> None:
    """A square of many triangles that share their corners with pixel centres has no hole."""
    line = torch.linspace(-1, 1, 33)
    y, x = torch.meshgrid(line, line, indexing="ij")
    corner = (torch.arange(32)[:, None] * 33 + torch.arange(32)).reshape(-1)
    faces = torch.cat([torch.stack([corner, corner + 1, corner + 33], 1),
                       torch.stack([corner + 1, corner + 34, corner + 33], 1)])  # fmt: skip
    sheet = Mesh(torch.stack([x, y, torch.zeros_like(x)], -1).reshape(-1, 3), faces)
    for turn in (0.0, 0.37):
        camera = orbit([turn], [turn / 2], 1.0, FOV)
        assert bool(rasterize(sheet, camera, 64).mask.all())


def canvas_of(mesh: Mesh, soft: bool) -> tuple[Canvas, Hits]:
    """Random colours; fine offsets on what the first view sees."""
    texture = torch.rand(SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0))
    textured = Textured(mesh, *unwrap(mesh, SIDE), texture)
    hits = rasterize(mesh, CAMERAS, SIZE)
    return Canvas(textured, texels_of(textured, hits.face_id[0][hits.mask[0]].unique()), soft), hits


def leaves_of(canvas: Canvas, kind: torch.dtype) -> list[Tensor]:
    """coarse, fine and vertices."""
    generator = torch.Generator().manual_seed(1)
    coarse = 0.3 * torch.randn(12, 12, 3, generator=generator)
    fine = 0.1 * torch.randn(len(canvas.texels), 3, generator=generator)
    return [x.to(kind).requires_grad_(True) for x in (coarse, fine, canvas.textured.mesh.vertices.clone())]


def torus() -> Mesh:
    """Silhouettes before a surface, not before nothing alone."""
    return from_trimesh(trimesh.creation.torus(0.45, 0.2, 24, 12))


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("shape", ["ball", "torus"])
def test_kernels_against_torch(shape: str, soft: bool) -> None:
    canvas, hits = canvas_of(BALL if shape == "ball" else torus(), soft)
    weight = torch.randn(2, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    mesh, given = canvas.textured.mesh, canvas.textured
    exact = replace(
        given,
        mesh=Mesh(mesh.vertices.double(), mesh.faces),
        uvs=given.uvs.double(),
        texture=given.texture.double(),
    )
    ours, twin = leaves_of(canvas, torch.float32), leaves_of(canvas, torch.float64)
    shown = torch.cat(render(canvas, *ours, CAMERAS, hits), 1)
    expected = torch.cat(render_torch(replace(canvas, textured=exact), *twin, CAMERAS, hits), 1)
    assert float((shown - expected).abs().max()) < 8e-5  # measured 2.5e-5
    found = torch.autograd.grad((shown * weight).sum(), ours, allow_unused=not soft)
    wanted = torch.autograd.grad((expected * weight.double()).sum(), twin, allow_unused=not soft)
    for grad, slow in zip(found[: 2 + soft], wanted[: 2 + soft], strict=True):
        assert float((grad - slow).abs().max() / slow.abs().max()) < 8e-5  # measured 3.1e-5
    assert soft or found[2] is wanted[2] is None


def test_fine_offsets_are_on_every_texel_that_has_a_gradient() -> None:
    """What the list leaves out, the first view never reads; in the second view it is left out on purpose."""
    canvas, hits = canvas_of(BALL, False)
    table = canvas.textured.texture.clone().requires_grad_(True)
    at = lookup(canvas.textured, hits)[:1]
    sample_texture(table, at, hits.mask[:1]).sum().backward()
    assert table.grad is not None
    read = table.grad.abs().sum(2) > 0
    assert bool((canvas.row_of[read] >= 0).all())
    assert len(canvas.texels) < 0.6 * SIDE**2  # measured 0.35
    assert torch.equal(
        canvas.row_of.reshape(-1)[canvas.texels], torch.arange(len(canvas.texels), dtype=torch.int32)
    )


def test_what_is_baked_is_what_was_shown() -> None:
    """Coarse and fine offsets at the texels: the same picture, to the filtering of the coarse one."""
    canvas, hits = canvas_of(BALL, False)
    coarse, fine, vertices = (x.detach() for x in leaves_of(canvas, torch.float32))
    shown = render(canvas, coarse, fine, vertices, CAMERAS, hits)[0]
    painted = replace(canvas.textured, texture=canvas.painted(coarse, fine))
    plain = Canvas(painted, canvas.texels[:0], False)
    baked = render(plain, torch.zeros(1, 1, 3), torch.zeros(0, 3), vertices, CAMERAS, hits)[0]
    assert float((shown - baked).abs().max()) < 0.1  # measured 0.04, of offsets of 0.3 from texel to texel
    assert float((shown - baked).abs().mean()) < 0.005


def test_threads_change_no_bit() -> None:
    canvas, hits = canvas_of(BALL, True)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        leaves = leaves_of(canvas, torch.float32)
        shown = torch.cat(render(canvas, *leaves, CAMERAS, hits), 1)
        found.append([shown, *torch.autograd.grad(shown.square().sum(), leaves)])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_a_mesh_is_drawn_where_its_rasteriser_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the prior's device where nvdiffrast works there, else in the host's memory."""
    for trouble, expected in (("it is not there", "cpu"), (None, "cuda")):
        monkeypatch.setattr("gs_propeller.mesh.raster.mesh_trouble", lambda device, said=trouble: said)
        assert mesh_device(torch.device("cuda")).type == expected
        assert mesh_device(torch.device("cpu")).type == "cpu"


def test_warming_compiles_whatever_a_step_needs() -> None:
    warm()
    compiled = [
        getattr(kernels, name) for name in dir(kernels) if hasattr(getattr(kernels, name), "signatures")
    ]
    assert len(compiled) == 10
    assert all(kernel.signatures or kernel is kernels._texel for kernel in compiled)
