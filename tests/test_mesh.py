"""Meshes of Gaussians, and which triangle a pixel sees, against geometry worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from scipy.ndimage import binary_dilation, gaussian_filter, label

from gs_propeller.base.camera import orbit
from gs_propeller.base.errors import UserError
from gs_propeller.mesh.raster import rasterize
from gs_propeller.mesh.surface import (
    CUBE,
    KEPT_SHARE,
    Mesh,
    clean,
    density_grid,
    extract,
    from_trimesh,
    solid,
    vertex_normals,
)
from gs_propeller.scenes.gaussians.state import Gaussians, init_ball

FOV = math.radians(49.1)


def _gaussians(means: list[list[float]], scale: float = 0.1, opacity: float = 0.9) -> Gaussians:
    n = len(means)
    quats = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    logits = torch.full((n,), math.log(opacity / (1 - opacity)))
    return Gaussians(
        torch.tensor(means),
        torch.full((n, 3), math.log(scale)),
        quats,
        logits,
        torch.zeros(n, 1, 3),
        torch.zeros(n, 0, 3),
    )


def test_density_against_loops() -> None:
    scene = _gaussians([[0.1, -0.2, 0.3], [-0.3, 0.2, 0.0]], 0.15)
    scene = replace(scene, log_scales=scene.log_scales + torch.tensor([[0.0, 0.3, -0.4], [0.2, -0.2, 0.1]]))
    grid = density_grid(scene, 12, 0.8)
    line = np.linspace(-0.8, 0.8, 12)
    worst = 0.0
    for i, x in enumerate(line):
        for j, y in enumerate(line):
            for k, z in enumerate(line):
                value = 0.0
                for n in range(2):
                    q = scene.quats[n].double().numpy()
                    w, a, b, c = q / np.linalg.norm(q)
                    rotation = np.array(
                        [
                            [1 - 2 * (b * b + c * c), 2 * (a * b - w * c), 2 * (a * c + w * b)],
                            [2 * (a * b + w * c), 1 - 2 * (a * a + c * c), 2 * (b * c - w * a)],
                            [2 * (a * c - w * b), 2 * (b * c + w * a), 1 - 2 * (a * a + b * b)],
                        ]
                    )
                    scales = np.exp(scene.log_scales[n].double().numpy())
                    local = rotation.T @ (np.array([x, y, z]) - scene.means[n].double().numpy()) / scales
                    power = float(local @ local)
                    value += 0.9 * math.exp(-0.5 * power) if power < 9 else 0.0
                worst = max(worst, abs(value - grid[i, j, k]))
    assert worst < 5e-7  # measured 1e-7


def test_one_round_gaussian_gives_its_level_set() -> None:
    """o exp(-r^2 / 2 s^2) = level on a sphere of radius s sqrt(2 ln(o / level))."""
    mesh = extract(_gaussians([[0.1, 0.0, -0.1]], 0.2), 64, 4000).trimesh()
    assert mesh.is_watertight
    level = 0.6  # the highest candidate under nine tenths of the peak
    radius = 0.2 * math.sqrt(2 * math.log(0.9 / level))
    assert abs(mesh.volume / (4 / 3 * math.pi * radius**3) - 1) < 0.12  # measured 0.05: the field is smoothed
    assert np.allclose(mesh.bounds.mean(0), [0.1, 0.0, -0.1], atol=0.01)


def test_faces_look_outward_and_stay_within_the_budget() -> None:
    mesh = extract(init_ball(300, 0.5, 0, 0).params, 64, 1500)
    assert len(mesh.faces) <= 1700
    assert mesh.trimesh().is_watertight
    assert mesh.trimesh().volume > 0
    outward = (vertex_normals(mesh) * mesh.vertices).sum(1)
    assert float((outward > 0).float().mean()) > 0.9


@pytest.mark.parametrize("case", ["faint", "one", "same place", "tiny", "huge"])
def test_degenerate_states_still_give_a_closed_mesh(case: str) -> None:
    scene = {
        "faint": _gaussians([[0.0, 0, 0], [0.2, 0, 0]], 0.1, 0.001),
        "one": _gaussians([[0.0, 0, 0]]),
        "same place": _gaussians([[0.1, 0.1, 0.1]] * 20),
        "tiny": _gaussians([[0.0, 0, 0]], 1e-6),
        "huge": _gaussians([[0.0, 0, 0]], 50.0),
    }[case]
    mesh = extract(scene, 48, 2000)
    assert len(mesh.faces) > 0
    assert mesh.trimesh().is_watertight


def test_nothing_at_all_is_said() -> None:
    with pytest.raises(UserError, match="no Gaussian"):
        extract(_gaussians([[0.0, 0, 0]]).map(lambda x: x[:0]))


def test_floaters_go_and_silhouettes_choose_the_level() -> None:
    body = [[x, y, z] for x in (-0.1, 0.1) for y in (-0.1, 0.1) for z in (-0.1, 0.1)]
    scene = _gaussians([*body, [0.7, 0.7, 0.7]], 0.08)
    scene = replace(
        scene, log_scales=torch.where(torch.arange(9)[:, None] == 8, math.log(0.02), scene.log_scales)
    )
    whole = extract(scene, 64, 4000)
    assert float(whole.vertices.max()) < 0.5
    small = extract(scene, 64, 4000, lambda mesh: -mesh.trimesh().volume)
    large = extract(scene, 64, 4000, lambda mesh: mesh.trimesh().volume)
    assert small.trimesh().volume < large.trimesh().volume


def _shell(count: int, radius: float, scale: float) -> Gaussians:
    """Evenly over a sphere, along a spiral of the golden angle."""
    height = 1 - (2 * torch.arange(count) + 1) / count
    turn = torch.arange(count) * math.pi * (3 - math.sqrt(5))
    ring = (1 - height.square()).sqrt()
    return _gaussians(
        (radius * torch.stack([ring * turn.cos(), height, ring * turn.sin()], 1)).tolist(), scale
    )


def test_a_hollow_object_becomes_one_solid() -> None:
    """Opaque only at its surface, with something loose inside: nobody sees in, so no triangle is spent there."""
    scene = _shell(2000, 0.5, 0.03)
    parts = _gaussians([[0.0, 0.0, 0.0]], 0.1)
    scene = scene.map(lambda a, b: torch.cat([a, b]), parts)
    mesh = extract(scene, 64, 4000).trimesh()
    assert mesh.is_watertight
    assert mesh.body_count == 1
    radii = np.linalg.norm(mesh.vertices, axis=1)
    assert radii.min() > 0.45  # measured 0.546
    assert abs(mesh.volume / (4 / 3 * math.pi * radii.mean() ** 3) - 1) < 0.03  # measured 0.003


def test_solid_touches_only_floaters_and_cavities() -> None:
    """Against a flood from outside, voxel by voxel."""
    line = np.linspace(-1, 1, 13)
    x, y, z = np.meshgrid(line, line, line, indexing="ij")
    radius = np.sqrt(x * x + y * y + z * z)
    field = np.exp(-(((radius - 0.6) / 0.2) ** 2)).astype(np.float32)
    field[0, 0, 0] = 1.0
    result = solid(field, 0.5)
    outside, queue = {(0, 0, 1)}, [(0, 0, 1)]
    while queue:
        i, j, k = queue.pop()
        for a, b, c in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)):
            near = (i + a, j + b, k + c)
            if near not in outside and all(0 <= n < 13 for n in near) and field[near] <= 0.5:
                outside.add(near)
                queue.append(near)
    for place in np.ndindex(13, 13, 13):
        if place == (0, 0, 0):
            assert result[place] == 0
        elif place in outside or field[place] > 0.5:
            assert result[place] == field[place]
        else:
            assert result[place] == 1.0  # twice the level
    assert np.array_equal(solid(field, 2.0), field)


def _slow_solid(grid: np.ndarray, level: float) -> np.ndarray:
    """Over the whole grid, with scipy's dilation."""

    def shut_off(walls: np.ndarray) -> np.ndarray:
        rooms, _ = label(~walls)
        return (rooms > 0) & (rooms != rooms[0, 0, 0])

    inside, count = label(grid > level, CUBE)
    if not count:
        return grid
    sizes = np.bincount(inside.reshape(-1))
    sizes[0] = 0
    grid = np.where((inside > 0) & ~(sizes >= KEPT_SHARE * sizes.max())[inside], 0, grid)
    walls = np.pad(grid > level, 3)
    hidden = shut_off(walls) | binary_dilation(shut_off(binary_dilation(walls, CUBE)), CUBE) & ~walls
    return np.where(hidden[3:-3, 3:-3, 3:-3], np.float32(2 * level), grid)


@pytest.mark.parametrize("seed", range(4))
def test_solid_against_the_whole_grid(seed: int) -> None:
    """Porous blobs, off centre, one of them at the grid's border, with dust."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.random((40, 33, 36)), 1.2).astype(np.float32)
    field = (field - field.min()) / (field.max() - field.min())
    line = np.mgrid[:40, :33, :36].transpose(1, 2, 3, 0)
    near = np.minimum(*(np.abs(line - at).max(3) for at in ((14, 12, 20), (36, 20, 8))))
    field[near > 9] = 0
    field[rng.random(field.shape) > 0.999] = 1
    for level in (0.2, 0.4, 0.5, 0.6, 2.0):
        assert np.array_equal(solid(field, level), _slow_solid(field, level))


def test_a_pinhole_does_not_open_a_cavity() -> None:
    line = np.arange(24) - 11.5
    x, y, z = np.meshgrid(line, line, line, indexing="ij")
    radius = np.sqrt(x * x + y * y + z * z)
    wall = ((radius > 7) & (radius < 10)).astype(np.float32)
    wall[11:13, 11:13, 12:] = 0.0  # two voxels wide
    result = solid(wall, 0.5)
    assert bool((result[radius < 6.9] > 0.5).all())
    assert np.array_equal(result[radius > 10], wall[radius > 10])
    wall[9:15, 9:15, 12:] = 0.0  # six: now it is the mouth of a cup
    assert np.array_equal(solid(wall, 0.5), wall)


@pytest.mark.slow
def test_a_rugged_surface_still_keeps_near_its_budget() -> None:
    """Flakes that no decimation simplifies without holes: closed all the same, and not 100 times too large."""
    generator = torch.Generator().manual_seed(2)
    means = torch.nn.functional.normalize(torch.randn(4000, 3, generator=generator), dim=1)
    scene = replace(
        _gaussians((0.5 * means).tolist()),
        log_scales=(torch.rand(4000, 3, generator=generator) * 0.05 + 0.002).log(),
        logit_opacities=torch.logit(torch.rand(4000, generator=generator) * 0.9 + 0.05),
    )
    mesh = extract(scene, 96, 1500)
    assert mesh.trimesh().is_watertight
    assert len(mesh.faces) < 8000  # measured 3426; undecimated about 100,000
    assert float(mesh.vertices.norm(dim=1).quantile(0.9)) > 0.45


def test_the_grid_goes_where_the_object_is_and_broken_rows_are_left_out() -> None:
    small = extract(_gaussians([[0.6, -0.2, 0.1]], 0.02), 48, 4000).trimesh()
    assert np.allclose(small.bounds.mean(0), [0.6, -0.2, 0.1], atol=1e-3)
    radius = 0.02 * math.sqrt(2 * math.log(0.9 / 0.6))
    assert abs(np.cbrt(small.volume * 3 / 4 / math.pi) / radius - 1) < 0.06  # measured 0.017
    scene = _gaussians([[0.6, -0.2, 0.1], [0.0, math.nan, 0.0]], 0.02)
    assert torch.equal(
        extract(scene, 48, 4000).vertices, extract(_gaussians([[0.6, -0.2, 0.1]], 0.02), 48, 4000).vertices
    )


def test_clean_keeps_a_good_mesh() -> None:
    mesh = clean(trimesh.creation.icosphere(3, 0.5), 10_000)
    assert mesh.trimesh().is_watertight
    assert abs(mesh.trimesh().volume / trimesh.creation.icosphere(3, 0.5).volume - 1) < 0.02


def test_normals_of_a_sphere_and_of_nothing() -> None:
    ball = from_trimesh(trimesh.creation.icosphere(3, 2.0))
    expected = ball.vertices / ball.vertices.norm(dim=1, keepdim=True)
    assert float((vertex_normals(ball) * expected).sum(1).min()) > 0.999
    lonely = Mesh(torch.zeros(1, 3), torch.zeros(0, 3, dtype=torch.int64))
    assert vertex_normals(lonely).tolist() == [[0.0, 0.0, 1.0]]
    with pytest.raises(ValueError, match="faces must be"):
        Mesh(torch.zeros(1, 3), torch.zeros(2, 4, dtype=torch.int64))


def test_rays_against_a_sphere() -> None:
    cameras = orbit([0.3, 2.0], [0.2, -0.4], 2.0, FOV)
    mesh = from_trimesh(trimesh.creation.icosphere(5, 0.5))
    hits = rasterize(mesh, cameras, 96)
    focal = cameras.focal_px(96)
    for row, col in ((48, 48), (40, 55), (30, 30)):
        ray = np.array([(col + 0.5 - 48) / focal, (row + 0.5 - 48) / focal, 1.0])
        # |t ray - (0, 0, 2)|^2 = 0.25, the nearer root: t is camera z
        a, b, c = ray @ ray, -4.0, 4 - 0.25
        disc = b * b - 4 * a * c
        for v in range(2):
            if disc < 0:
                assert hits.face_id[v, row, col] == -1
                assert hits.depth[v, row, col] == 0
            else:
                depth = (-b - math.sqrt(disc)) / 2 / a
                assert abs(float(hits.depth[v, row, col]) - depth) < 3e-3  # measured 1e-3: facets
    area = hits.mask[0].sum() / (math.pi * (focal * math.tan(math.asin(0.25))) ** 2)
    assert abs(float(area) - 1) < 0.02


def test_barycentrics_give_back_the_point() -> None:
    camera = orbit([0.5], [0.3], 2.0, FOV)
    mesh = from_trimesh(trimesh.creation.box((0.6, 0.8, 0.5)))
    hits = rasterize(mesh, camera, (40, 64))
    assert hits.face_id.shape == (1, 40, 64)
    corners = mesh.vertices[mesh.faces[hits.face_id[0].clamp_min(0)]]
    points = (corners * hits.barycentric[0, :, :, :, None]).sum(2)
    seen = points @ camera.w2c[0, :3, :3].T + camera.w2c[0, :3, 3]
    focal = camera.focal_px(40)
    mask = hits.mask[0]
    cols = (torch.arange(64) + 0.5).expand(40, 64)
    assert float((seen[..., 0] / seen[..., 2] * focal + 32 - cols)[mask].abs().max()) < 1e-3
    assert float((seen[..., 2] - hits.depth[0])[mask].abs().max()) < 1e-5
