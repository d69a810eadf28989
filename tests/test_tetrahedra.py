"""Marching tetrahedra against plain loops and finite differences, and their pixels against torch's operations."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from gs_propeller.base.camera import orbit
from gs_propeller.base.threads import set_threads
from gs_propeller.mesh import coloured
from gs_propeller.mesh import rows as rows_module
from gs_propeller.mesh.antialias import edges_of, edges_torch
from gs_propeller.mesh.coloured import draw, draw_torch
from gs_propeller.mesh.raster import rasterize
from gs_propeller.mesh.rows import rows, summed
from gs_propeller.mesh.surface import Mesh
from gs_propeller.scenes.fields.march import Look, ground
from gs_propeller.scenes.fields.state import Grids, first_state
from gs_propeller.scenes.tetrahedra import kernels
from gs_propeller.scenes.tetrahedra.extract import extract_tets
from gs_propeller.scenes.tetrahedra.march import (
    BEND,
    WALL,
    Surface,
    connected,
    connected_torch,
    kuhn,
    marched,
)
from gs_propeller.scenes.tetrahedra.scene import consistency, laplacian, normals, render, warm
from tests import toy_field

BALL = Look(1.0, 0.5, 10.0, 0.75, True)
EYES = orbit([0.3, 2.0], [0.2, -0.5], 2.0, 0.857)


def rough(side: int, seed: int = 0) -> Tensor:
    """[R, R, R, 7] float64: a ball whose distances, colours and shifts are noise."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.randn(side, side, side, 7, generator=generator, dtype=torch.float64)
    grid[..., 0] = 0.1 * grid[..., 0] + ground(grid, BALL)
    return grid


def places(grid: Tensor, extent: float) -> Tensor:
    """[R, R, R, 3] where the corners stand."""
    axis = torch.linspace(-extent, extent, len(grid), dtype=grid.dtype)
    still = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    return still + BEND * 2 * extent / (len(grid) - 1) * grid[..., 4:].tanh()


def slow(grid: Tensor, extent: float) -> list[list[Tensor]]:
    """Triangles as lists of three [6] (place, colour), a tetrahedron at a time, turned outward by their own volume."""
    side, cell, found = len(grid), 2 * extent / (len(grid) - 1), []
    at, corners = places(grid, extent), kuhn()[0].tolist()
    for i, j, k in itertools.product(range(side - 1), repeat=3):
        for path in corners:
            spots = [(i + x, j + y, k + z) for x, y, z in path]
            border = [min(s) == 0 or max(s) == side - 1 for s in spots]
            f = [
                max(float(grid[s][0]), WALL * cell) if b else float(grid[s][0])
                for s, b in zip(spots, border, strict=True)
            ]
            inside, outside = [n for n in range(4) if f[n] < 0], [n for n in range(4) if f[n] >= 0]

            def crossing(a: int, b: int, spots=spots, f=f) -> Tensor:  # type: ignore[no-untyped-def]
                share = f[a] / (f[a] - f[b])
                one, two = (torch.cat([at[spots[n]], grid[spots[n]][1:4]]) for n in (a, b))
                return one + share * (two - one)

            if len(inside) == 1:
                made = [[crossing(inside[0], n) for n in outside]]
            elif len(inside) == 3:
                made = [[crossing(n, outside[0]) for n in inside]]
            elif len(inside) == 2:
                (a, b), (c, d) = inside, outside
                ring = [crossing(a, c), crossing(a, d), crossing(b, d), crossing(b, c)]
                made = [ring[:3], [ring[0], ring[2], ring[3]]]
            else:
                continue
            way = sum(at[spots[n]] for n in outside) / len(outside) - sum(at[spots[n]] for n in inside) / len(
                inside
            )
            for triangle in made:
                p, q, r = (x[:3] for x in triangle)
                outward = float(torch.linalg.cross(q - p, r - p) @ way) > 0
                found.append(triangle if outward else triangle[::-1])
    return found


def keys(triangles: list[list[list[float]]]) -> list[tuple[tuple[float, ...], ...]]:
    """Triangles by what they hold, each begun at its least corner."""
    turned = []
    for triangle in triangles:
        rounded = [tuple(round(x, 9) + 0.0 for x in corner) for corner in triangle]
        first = rounded.index(min(rounded))
        turned.append(tuple(rounded[first:] + rounded[:first]))
    return sorted(turned)


def test_six_tetrahedra_fill_a_cell() -> None:
    corners, odd = kuhn()
    volumes = torch.linalg.det((corners[:, 1:] - corners[:, :1]).double()) / 6
    assert torch.equal(volumes < 0, odd) and float((volumes.abs() - 1 / 6).abs().max()) < 1e-15
    points = torch.rand(1000, 3, generator=torch.Generator().manual_seed(0))
    orders = torch.argsort(
        points, 1, descending=True
    ).tolist()  # a point's tetrahedron goes along its largest axis first
    steps = [[axis.index(1) for axis in (path[1:] - path[:-1]).tolist()] for path in corners]
    assert sorted(map(tuple, steps)) == sorted({tuple(order) for order in orders})


def test_marching_against_plain_loops() -> None:
    grid = rough(6)
    surface = marched(grid, 0.8)
    both = torch.cat([surface.vertices, surface.colours], 1)[surface.faces]
    ours, theirs = keys(both.tolist()), keys([[c.tolist() for c in t] for t in slow(grid, 0.8)])
    assert len(ours) > 100 and ours == theirs


def test_signs_alone_say_what_is_connected() -> None:
    """The kernel's edges and faces are torch's, in their order; so is a surface closed, whatever the signs."""
    for seed in range(3):
        inside = torch.rand(6, 7 - 1, 6, generator=torch.Generator().manual_seed(seed)) < 0.5
        for ours, theirs in zip(connected(inside), connected_torch(inside), strict=True):
            assert torch.equal(ours, theirs)
        grid = torch.where(inside, -1.0, 1.0)[..., None].repeat(1, 1, 1, 7)
        surface = marched(grid, 1.0)
        mesh = Mesh(surface.vertices, surface.faces).trimesh()
        assert mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0
    for nothing in (torch.zeros(4, 4, 4, dtype=torch.bool), torch.ones(4, 4, 4, dtype=torch.bool)):
        assert [len(x) for x in connected(nothing)] == [len(x) for x in connected_torch(nothing)] == [0, 0]


def test_edges_are_torch_s_in_another_order() -> None:
    faces = marched(rough(6), 1.0).faces
    tables = [
        {tuple(e): sorted(s) for e, s in zip(ends.tolist(), sides.tolist(), strict=True)}
        for ends, sides in (edges_of(faces), edges_torch(faces))
    ]
    assert tables[0] == tables[1]


def test_gradients_of_marching_by_differences() -> None:
    grid = rough(6).requires_grad_()
    generator = torch.Generator().manual_seed(1)
    surface = marched(grid, 0.9)
    pulls = [
        torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in (surface.vertices, surface.colours)
    ]
    way = torch.randn(grid.shape, generator=generator, dtype=grid.dtype)

    def value(at: Tensor) -> Tensor:
        s = marched(at, 0.9)
        return (s.vertices * pulls[0]).sum() + (s.colours * pulls[1]).sum()

    (grad,) = torch.autograd.grad(value(grid), grid)
    with torch.no_grad():  # so short that no sign changes
        measured = float(value(grid + 1e-7 * way) - value(grid - 1e-7 * way)) / 2e-7
    assert measured == pytest.approx(float((grad * way).sum()), rel=1e-5)  # 5e-8
    assert all(float(grad[..., c].abs().max()) > 0 for c in range(7))


def test_rows_and_sums_are_each_other_s_adjoint() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(5, 3, generator=generator, dtype=torch.float64).requires_grad_()
    index = torch.randint(5, (20,), generator=generator)
    assert torch.equal(rows(table, index), table[index])
    assert torch.autograd.gradcheck(lambda x: rows(x, index), table)
    values = torch.randn(20, 3, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.allclose(summed(values, index, 5), torch.zeros(5, 3).double().index_add(0, index, values))
    assert torch.autograd.gradcheck(lambda x: summed(x, index, 5), values)


@pytest.mark.slow
def test_pixels_against_torch() -> None:
    """Values, then gradients under random cotangents, of colours, coverage and places."""
    surface = marched(rough(9).float(), 1.0)
    vertices, values = (x.double().requires_grad_() for x in (surface.vertices, surface.colours))
    edges, size = edges_of(surface.faces), 24
    hits = rasterize(Mesh(surface.vertices, surface.faces), EYES, size)
    ours = draw(vertices, values, surface.faces, edges, EYES, size)
    theirs = draw_torch(vertices, values, surface.faces, edges, EYES, hits)
    assert ours.shape == (2, 4, size, size) and 0.1 < float(ours[:, 3].mean()) < 0.9
    assert float((ours - theirs).abs().max()) < 1e-3  # 2e-4: barycentrics of slivers are float32's
    pull = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pairs = (torch.autograd.grad((x * pull).sum(), (vertices, values)) for x in (ours, theirs))
    for mine, other in zip(*pairs, strict=True):
        assert float((mine - other).abs().max() / other.abs().max()) < 1e-3  # 1e-4


def test_a_ball_s_outline_grows_with_it() -> None:
    """Coverage's gradient for the distances, against the area of a disc."""
    grid = torch.zeros(25, 25, 25, 7)
    grid[..., 0] = ground(grid, BALL)
    grid.requires_grad_()
    surface = marched(grid, 1.0)
    out = draw(surface.vertices, surface.colours, surface.faces, edges_of(surface.faces), EYES, 64)
    (grad,) = torch.autograd.grad(out[:, 3].sum(), grid)
    focal = EYES.focal_px(64)

    def area(radius: float) -> float:  # of a ball at distance 2
        return math.pi * (focal * math.tan(math.asin(radius / 2.0))) ** 2

    assert float(out[:, 3].sum()) / 2 == pytest.approx(area(0.5), rel=0.01)
    assert -float(grad[..., 0].sum()) / 2 == pytest.approx((area(0.51) - area(0.49)) / 0.02, rel=0.1)


def test_regularisers_of_a_ball_and_of_a_rough_one() -> None:
    grid = torch.zeros(33, 33, 33, 7)
    grid[..., 0] = ground(grid, BALL)
    smooth, crooked = marched(grid, 1.0), marched(rough(33).float(), 1.0)
    out = torch.nn.functional.normalize(smooth.vertices, dim=1)
    assert float((normals(smooth) * out).sum(1).min()) > 0.95
    for loss, factor in (
        (laplacian, 1.3),
        (consistency, 5),
    ):  # 1.5, 12: a grid's own triangles are no even ones
        values = [float(loss(s, edges_of(s.faces))) for s in (smooth, crooked)]
        assert 0 < factor * values[0] < values[1], loss
    flat = Surface(torch.eye(3), torch.zeros(3, 3), torch.tensor([[0, 1, 2]]))
    one = (
        flat.vertices.mean(0) - flat.vertices[0]
    )  # of three vertices the neighbours' mean lies half beyond the middle
    assert float(laplacian(flat, edges_of(flat.faces))) == pytest.approx(1.5 * float(one.norm()), rel=1e-5)
    assert float(consistency(flat, edges_of(flat.faces))) == pytest.approx(0.0, abs=1e-6)


def test_the_same_bits_on_any_number_of_threads() -> None:
    levels = first_state(8, 2, channels=7).params.levels
    noise = tuple(
        (0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(k))).requires_grad_()
        for k, x in enumerate(levels)
    )

    def everything() -> list[Tensor]:
        (view,) = render(Grids(noise), BALL, [(EYES, 16, torch.ones(3))])
        total = view.image.square().sum() + laplacian(view.surface, view.edges)
        return [view.image, *torch.autograd.grad(total, noise)]

    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            set_threads(threads)
            torch.set_num_threads(threads)
            results.append(everything())
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    finally:
        torch.set_num_threads(before)


def test_warming_compiles_whatever_a_step_needs() -> None:
    warm()
    compiled = [
        kernels.triangles,
        kernels.renumber,
        rows_module.add_rows,
        coloured.between,
        coloured.between_adjoint,
    ]
    before = [len(kernel.signatures) for kernel in compiled]
    made = toy_field.scene(scene="tetrahedra")
    state = made.first()
    made.update(state, made.compute([state.params], [0])[0])
    assert before == [len(kernel.signatures) for kernel in compiled]


def test_the_mesh_is_the_surface_without_what_floats_or_hides() -> None:
    """A ball with a cavity, a smaller one far off, and a crumb."""
    grids = first_state(32, 1, channels=7).params
    axis = torch.linspace(-1, 1, 33)
    at = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)

    def ball(x: float, radius: float) -> Tensor:
        return (at - torch.tensor([x, 0.0, 0.0])).norm(dim=-1) - radius

    f = torch.minimum(
        torch.maximum(ball(-0.3, 0.45), -ball(-0.3, 0.2)), torch.minimum(ball(0.6, 0.25), ball(0.95, 0.1))
    )
    level = grids.levels[0].clone()
    level[..., 0] = f - ground(level, BALL)
    mesh = extract_tets(Grids((level,)), BALL, 3000).trimesh()
    assert mesh.is_watertight
    wanted = 4 / 3 * math.pi * (0.45**3 + 0.25**3)
    assert mesh.volume == pytest.approx(wanted, rel=0.03)
    assert len(mesh.split(only_watertight=False)) == 2
    empty = Grids((torch.full((9, 9, 9, 7), 5.0),))
    assert extract_tets(empty, BALL).trimesh().is_watertight
    assert np.isfinite(mesh.vertices).all()


def test_the_picture_is_compared_with_colours_whatever_the_priors_are_shown() -> None:
    found = []
    for shows in ("colours", "normals"):
        scene = toy_field.scene(scene="tetrahedra", shows=shows, lambda_sds=0.0)
        state = replace(scene.first(), step=7)
        found.append(scene.update(state, scene.compute([state.params], [7])[0]))
    (one, ours), (two, theirs) = found
    assert torch.equal(ours, theirs)
    assert float(two.exp_avg.levels[-1][..., 1:4].abs().max()) > 0
    for a, b in zip(one.exp_avg.levels, two.exp_avg.levels, strict=True):
        assert torch.equal(a, b)
