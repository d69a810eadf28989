"""Differentiable meshes: values against the rasteriser, gradients against geometry and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import trimesh
from torch import Tensor

from gs_propeller.base.camera import orbit
from gs_propeller.mesh.antialias import antialias, barycentrics, edges_of
from gs_propeller.mesh.raster import rasterize
from gs_propeller.mesh.surface import Mesh, from_trimesh

FOV = math.radians(49.1)
CAMERAS = orbit([0.3, 2.0], [0.2, -0.4], 2.0, FOV)
BALL = from_trimesh(trimesh.creation.icosphere(3, 0.6))
SIZE = 48


def coverage(vertices: Tensor, mesh: Mesh) -> Tensor:
    """[V, 1, H, W] in 0..1."""
    hits = rasterize(Mesh(vertices.detach().float(), mesh.faces), CAMERAS, SIZE)
    mask = hits.mask[:, None].to(vertices)
    return antialias(mask, vertices, mesh.faces, edges_of(mesh.faces), hits, CAMERAS)


def test_barycentrics_are_the_rasterisers() -> None:
    hits = rasterize(BALL, CAMERAS, SIZE)
    ours = barycentrics(BALL.vertices, BALL.faces, hits, CAMERAS)
    assert torch.allclose(ours, hits.barycentric, atol=2e-4)  # measured 3e-5
    assert float(ours[~hits.mask].abs().max()) == 0.0


def test_barycentrics_slide_as_finite_differences_say() -> None:
    hits = rasterize(BALL, CAMERAS, SIZE)
    vertices = BALL.vertices.double().requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(*hits.barycentric.shape, dtype=torch.float64, generator=generator)
    direction = torch.randn(vertices.shape, dtype=torch.float64, generator=generator)

    def total(v: Tensor) -> Tensor:
        return (barycentrics(v, BALL.faces, hits, CAMERAS) * weight).sum()

    (grad,) = torch.autograd.grad(total(vertices), vertices)
    ends = [float(total(vertices.detach() + h * direction)) for h in (1e-6, -1e-6)]
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float((grad * direction).sum()), rel=1e-4)


def test_edges_and_their_sides() -> None:
    """Two triangles that share an edge; then a ball, against a search through all faces."""
    ends, sides = edges_of(torch.tensor([[0, 1, 2], [2, 1, 3]]))
    table = {tuple(e): set(s) for e, s in zip(ends.tolist(), sides.tolist(), strict=True)}
    assert table == {(0, 1): {0, -1}, (0, 2): {0, -1}, (1, 2): {0, 1}, (1, 3): {1, -1}, (2, 3): {1, -1}}
    ends, sides = edges_of(BALL.faces)
    assert len(ends) == 3 * len(BALL.faces) // 2
    faces = BALL.faces.tolist()
    for pair, found in list(zip(ends.tolist(), sides.tolist(), strict=True))[::97]:
        assert set(found) == {j for j, f in enumerate(faces) if set(pair) <= set(f)}


def test_a_silhouette_covers_what_many_rays_say() -> None:
    hard = rasterize(BALL, CAMERAS, SIZE).mask[:, None].float()
    truth = torch.nn.functional.avg_pool2d(rasterize(BALL, CAMERAS, 16 * SIZE).mask[:, None].float(), 16)
    soft = coverage(BALL.vertices, BALL)
    assert (soft >= -1e-6).all() and (soft <= 1 + 1e-6).all()
    errors = [float((x - truth).square().mean()) for x in (soft, hard)]
    assert errors[0] < 0.02 * errors[1]  # measured 0.0064


def test_a_growing_ball_covers_more_by_its_rim() -> None:
    """d area / d radius against the same from many rays; hard masks have no gradient at all."""
    vertices = BALL.vertices.double().requires_grad_(True)
    (grad,) = torch.autograd.grad(coverage(vertices, BALL).sum(), vertices)
    growth = float((grad * vertices.detach() / 0.6).sum())

    def area(scale: float) -> float:
        mesh = Mesh(BALL.vertices * scale, BALL.faces)
        return float(rasterize(mesh, CAMERAS, 16 * SIZE).mask.sum()) / 256

    true = (area(1.03) - area(0.97)) / (0.06 * 0.6)
    assert growth == pytest.approx(true, rel=0.005)  # measured 0.002 apart


def test_inner_edges_are_no_silhouettes() -> None:
    """Inside the outline of a smooth surface nothing is blended, whatever the faces."""
    hits = rasterize(BALL, CAMERAS, SIZE)
    image = hits.face_id[:, None].float()
    blended = antialias(image, BALL.vertices, BALL.faces, edges_of(BALL.faces), hits, CAMERAS)
    inner = -torch.nn.functional.max_pool2d(-hits.mask[:, None].float(), 5, 1, 2) > 0
    assert torch.equal(blended[inner], image[inner])


def test_nothing_to_see() -> None:
    far = Mesh(BALL.vertices + torch.tensor([50.0, 0.0, 0.0]), BALL.faces)
    hits = rasterize(far, CAMERAS, 16)
    image = torch.ones(2, 3, 16, 16)
    assert torch.equal(antialias(image, far.vertices, far.faces, edges_of(far.faces), hits, CAMERAS), image)
