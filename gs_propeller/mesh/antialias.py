"""Renders of a mesh that are differentiable in its vertices, on any device, from hits that `rasterize` found.

V views, H x W pixels, Nv vertices, Nf faces, E edges, K silhouette edges, Q pairs of neighbouring pixels. Two
gradients meet here: colours move as the surface slides under a pixel (`barycentrics`), and silhouettes move as their
edges do (`antialias`, the method of nvdiffrast, Laine et al. 2020, section 3.4: where an edge crosses the line between
two pixel centres, the nearer surface's colour is blended into the pixel that it reaches into, by how far it does).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gs_propeller.base.camera import Cameras
from gs_propeller.mesh.kernels import JUMP_PX, NOTHING, pair_up
from gs_propeller.mesh.raster import Hits


def barycentrics(vertices: Tensor, faces: Tensor, hits: Hits, cameras: Cameras) -> Tensor:
    """[V, H, W, 3] of what the pixel centres see on the faces of `hits`, differentiable in vertices [Nv, 3]; zero
    where nothing is hit. Values as hits.barycentric; u and v are those of Moeller & Trumbore (1997)."""
    height, width = hits.face_id.shape[1:]
    focal = cameras.focal_px(height)
    rows = torch.arange(height, device=vertices.device) + 0.5 - height / 2
    columns = torch.arange(width, device=vertices.device) + 0.5 - width / 2
    y, x = torch.meshgrid(rows / focal, columns / focal, indexing="ij")
    w2c = cameras.w2c.to(vertices)
    ray = torch.stack([x, y, torch.ones_like(x)], -1).to(vertices) @ w2c[:, None, :3, :3]  # [V, H, W, 3]
    a, b, c = vertices[faces[hits.face_id.clamp_min(0)]].unbind(-2)
    origin = cameras.centres.to(vertices)[:, None, None]
    first, second, away = b - a, c - a, origin - a
    across = torch.linalg.cross(ray, second)
    determinant = (first * across).sum(-1)
    determinant = torch.where(determinant.abs() > 1e-12, determinant, torch.full_like(determinant, 1e-12))
    u = (away * across).sum(-1) / determinant
    v = (ray * torch.linalg.cross(away, first)).sum(-1) / determinant
    return torch.stack([1 - u - v, u, v], -1) * hits.mask[..., None]


def edges_of(faces: Tensor) -> tuple[Tensor, Tensor]:
    """(ends [E, 2] vertices, sides [E, 2] faces) of every edge; the second side is -1 where one face alone has it.
    An edge of more than two faces keeps the first two."""
    if not len(faces):
        return faces.new_zeros(0, 2), faces.new_zeros(0, 2)
    if faces.device.type == "cpu":
        ends, sides = np.empty((3 * len(faces), 2), np.int64), np.empty((3 * len(faces), 2), np.int64)
        count = pair_up(faces.contiguous().numpy(), int(faces.max()) + 1, ends, sides)
        return torch.from_numpy(ends[:count]), torch.from_numpy(sides[:count])
    return edges_torch(faces)


def edges_torch(faces: Tensor) -> tuple[Tensor, Tensor]:
    """The same by torch's operations, of one face at least, in another order."""
    both = torch.stack([faces, faces.roll(-1, 1)], 2).reshape(-1, 2)
    low, high = both.amin(1), both.amax(1)
    count = int(high.max()) + 1
    keys, order = (low * count + high).sort(
        stable=True
    )  # one number an edge: rows are sorted ten times as slowly
    found, times = torch.unique_consecutive(keys, return_counts=True)
    first = times.cumsum(0) - times
    second = (first + 1).clamp_max(len(order) - 1)
    owner = order // 3
    sides = torch.stack([owner[first], torch.where(times > 1, owner[second], -1)], 1)
    return torch.stack([found // count, found % count], 1), sides


def antialias(
    image: Tensor, vertices: Tensor, faces: Tensor, edges: tuple[Tensor, Tensor], hits: Hits, cameras: Cameras
) -> Tensor:
    """image [V, C, H, W], one sample a pixel, with its silhouettes blended; differentiable in image and vertices.

    edges: of `edges_of`. A silhouette is an edge between a face that looks at the camera and one that looks away, or
    a border. nvdiffrast asks the triangle under the pixel for it; here all silhouettes are asked, since a triangle
    smaller than a pixel rarely has the edge itself (of a ball of 1280 faces at 48 px, one in three).
    """
    height, width = hits.face_id.shape[1:]
    w2c, focal = cameras.w2c.to(vertices), cameras.focal_px(height)
    seen = vertices @ w2c[:, :3, :3].transpose(1, 2) + w2c[:, None, :3, 3]
    z = seen[..., 2:].clamp_min(1e-6)
    plane = seen[..., :2] / z * focal + seen.new_tensor([width / 2, height / 2])  # [V, Nv, 2] px
    depth = torch.where(hits.mask, hits.depth, torch.full_like(hits.depth, NOTHING)).to(vertices)
    rows = []
    for view in range(len(cameras)):
        outline = _silhouettes(plane[view].detach(), faces, edges)
        total = torch.zeros_like(image[view]).permute(1, 2, 0)
        for axis in (1, 0):  # pairs along x, then along y
            here, way, between = _jumps(depth[view], axis, focal)
            t, found = _crossings(plane[view], z[view, :, 0], outline, here + 0.5, way, between)
            here, there, t = here[found], (here + way)[found], t[found, None]
            front, back = (image[view][:, p[:, 1], p[:, 0]].T for p in (here, there))  # [Q, C]
            reaches = t > 0.5
            change = torch.where(reaches, (t - 0.5) * (front - back), (0.5 - t) * (back - front))
            target = torch.where(reaches, there, here)
            total = total.index_put((target[:, 1], target[:, 0]), change, accumulate=True)
        rows.append(image[view] + total.permute(2, 0, 1))
    return torch.stack(rows)


def _silhouettes(plane: Tensor, faces: Tensor, edges: tuple[Tensor, Tensor]) -> Tensor:
    """[K, 2] vertices of the silhouette edges in one view; plane [Nv, 2] px."""
    ends, sides = edges
    a, b, c = plane[faces].unbind(1)
    towards = _cross(b - a, c - a) > 0
    return ends[(sides[:, 1] < 0) | (towards[sides[:, 0]] != towards[sides[:, 1]])]


def _jumps(depth: Tensor, axis: int, focal: float) -> tuple[Tensor, Tensor, Tensor]:
    """Neighbours along an axis of depth [H, W] between which the surface ends: the nearer pixel (x, y) [Q, 2], the way
    to the other [Q, 2], and a depth [Q] between the two."""
    size = depth.shape[axis]
    first, second = depth.narrow(axis, 0, size - 1), depth.narrow(axis, 1, size - 1)
    nearer, farther = torch.minimum(first, second), torch.maximum(first, second)
    row, column = torch.nonzero(farther - nearer > JUMP_PX * nearer / focal, as_tuple=True)
    step = torch.tensor([1, 0] if axis == 1 else [0, 1], device=depth.device)
    turned = (second < first)[row, column][:, None]
    here = torch.stack([column, row], 1) + turned * step
    between = 0.5 * (nearer + farther)[row, column]
    return here, torch.where(turned, -1, 1) * step, between


def _crossings(
    plane: Tensor, z: Tensor, outline: Tensor, centre: Tensor, way: Tensor, between: Tensor
) -> tuple[Tensor, Tensor]:
    """(t [Q], whether there is one [Q]): how far from a pixel's centre to its neighbour's the last silhouette edge is
    crossed that is nearer than `between`. plane [Nv, 2] px; z [Nv]; outline [K, 2]; centre, way [Q, 2]."""
    if not len(outline) or not len(centre):
        return plane.new_zeros(len(centre)), torch.zeros(len(centre), dtype=torch.bool, device=plane.device)
    way, centre = way.to(plane), centre.to(plane)
    with torch.no_grad():  # which edge, for every pair against every edge
        t, s, fits = _meet(plane[outline[:, 0]], plane[outline[:, 1]], centre[:, None], way[:, None])
        deep = z[outline[:, 0]] + s * (z[outline[:, 1]] - z[outline[:, 0]])
        fits &= deep < between[:, None]
        last, chosen = torch.where(fits, t, torch.full_like(t, -1.0)).max(1)
    start, end = (plane[outline[chosen, k]] for k in (0, 1))
    return _meet(start, end, centre, way)[0], last >= 0


def _meet(start: Tensor, end: Tensor, centre: Tensor, way: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(t, s, whether both are in 0..1) where centre + t way = start + s (end - start).

    Edges nearer to the way's direction than to its normal are left to the other axis, or a slanted silhouette would
    be blended twice.
    """
    edge, gap = end - start, start - centre
    slope = _cross(way, edge)
    steep = slope.abs() > (way * edge).sum(-1).abs().clamp_min(1e-9)
    slope = torch.where(steep, slope, torch.ones_like(slope))
    t, s = _cross(gap, edge) / slope, _cross(gap, way) / slope
    return t, s, steep & (t >= 0) & (t <= 1) & (s >= 0) & (s <= 1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
