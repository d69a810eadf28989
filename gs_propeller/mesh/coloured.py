"""A mesh with values at its vertices as a view shows it, differentiable in values and vertices, silhouettes blended.

V views, S their side, Nv vertices, Nf faces, C channels. Two routes with one result: compiled kernels with their
adjoints in the host's memory, and torch's own operations on any device, `draw_torch`, which the tests hold the kernels
against. What a pixel sees and what its outlines are, with their adjoints, stands in kernels.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

from gs_propeller.base.camera import Cameras
from gs_propeller.mesh import kernels
from gs_propeller.mesh.antialias import antialias, barycentrics
from gs_propeller.mesh.raster import Hits, rasterize, seen_by
from gs_propeller.mesh.surface import Mesh

Edges = tuple[Tensor, Tensor]  # of edges_of


def draw(
    vertices: Tensor, values: Tensor, faces: Tensor, edges: Edges, cameras: Cameras, size: int
) -> Tensor:
    """[V, C + 1, S, S]: values [Nv, C] times coverage, and coverage, 0 where nothing is seen."""
    hits = rasterize(Mesh(vertices.detach().float(), faces), cameras, size)
    if vertices.device.type != "cpu":
        return draw_torch(vertices, values, faces, edges, cameras, hits)
    return _Draw.apply(vertices, values, faces, edges, cameras, hits)  # type: ignore[no-any-return]


def draw_torch(
    vertices: Tensor, values: Tensor, faces: Tensor, edges: Edges, cameras: Cameras, hits: Hits
) -> Tensor:
    """The same by torch's operations. hits: of `rasterize`."""
    weights = barycentrics(vertices, faces, hits, cameras)
    corners = values[faces[hits.face_id.clamp_min(0)]]
    inside = (corners * weights[..., None]).sum(-2).permute(0, 3, 1, 2)
    both = torch.cat([inside, hits.mask[:, None].to(inside)], 1)
    return antialias(both, vertices, faces, edges, hits, cameras)


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def between(face_id, barycentric, faces, values, image):  # type: ignore[no-untyped-def]
    """image [C + 1, H, W] of one view gets values [Nv, C] between the corners of what is seen, then 1; else nothing."""
    for row in range(face_id.shape[0]):
        for column in range(face_id.shape[1]):
            f = face_id[row, column]
            if f < 0:
                continue
            b = barycentric[row, column]
            for c in range(values.shape[1]):
                sum_ = np.float64(b[0]) * values[faces[f, 0], c]
                sum_ += np.float64(b[1]) * values[faces[f, 1], c]
                sum_ += np.float64(b[2]) * values[faces[f, 2], c]
                image[c, row, column] = sum_
            image[values.shape[1], row, column] = 1.0


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def between_adjoint(grad, face_id, barycentric, faces, values, seen, focal, g_values, g_seen):  # type: ignore[no-untyped-def]
    """Adjoint of between for grad [C + 1, H, W]: adds to g_values, and to g_seen [Nv, 3], since the surface slides
    under a pixel whose corners move. Barycentrics are e / s with e of kernels.py."""
    height, width = face_id.shape
    weight = np.zeros(3)
    corner, turned = np.zeros((3, 3)), np.zeros((3, 3))
    for row in range(height):
        for column in range(width):
            f = face_id[row, column]
            if f < 0:
                continue
            mean = 0.0
            for k in range(3):
                weight[k] = 0.0
                for c in range(values.shape[1]):
                    g = np.float64(grad[c, row, column])
                    g_values[faces[f, k], c] += g * barycentric[row, column, k]
                    weight[k] += g * values[faces[f, k], c]
                mean += weight[k] * barycentric[row, column, k]
            dx, dy = (column + 0.5 - 0.5 * width) / focal, (row + 0.5 - 0.5 * height) / focal
            for k in range(3):
                corner[k] = seen[faces[f, k]]
                turned[k, 0] = dy * corner[k, 2] - corner[k, 1]  # d x corner
                turned[k, 1] = corner[k, 0] - dx * corner[k, 2]
                turned[k, 2] = dx * corner[k, 1] - dy * corner[k, 0]
            s = 0.0
            for k in range(3):
                after = (k + 1) % 3
                for n in range(3):
                    s += turned[k, n] * corner[after, n]
            # e_k = d . (corner k + 1 x corner k + 2): its derivative in k + 2 is d x (k + 1), and in k + 1 -(d x k + 2)
            for k in range(3):
                h = (weight[k] - mean) / s
                one, two = (k + 1) % 3, (k + 2) % 3
                for n in range(3):
                    g_seen[faces[f, two], n] += h * turned[one, n]
                    g_seen[faces[f, one], n] -= h * turned[two, n]


class _Draw(torch.autograd.Function):
    """The kernels' route."""

    @staticmethod
    def forward(
        ctx: Any, vertices: Tensor, values: Tensor, faces: Tensor, edges: Edges, cameras: Cameras, hits: Hits
    ) -> Tensor:
        views, height, width = hits.face_id.shape
        focal, seen = cameras.focal_px(height), seen_by(vertices, cameras)
        face_id, barycentric = hits.face_id.numpy(), hits.barycentric.numpy()
        table, corners = values.detach().contiguous().numpy(), faces.numpy()
        hard = np.zeros((views, values.shape[1] + 1, height, width), table.dtype)
        depth = np.where(face_id >= 0, hits.depth.numpy(), kernels.NOTHING).astype(np.float32)
        ends, sides = (x.contiguous().numpy() for x in edges)
        edge, far = np.full((views, 2, height, width), -1, np.int32), np.empty((views, 2, height, width))
        for v in range(views):
            between(face_id[v], barycentric[v], corners, table, hard[v])
        soft = hard.copy()
        for v in range(views):
            kernels.crossings(seen[v], corners, ends, sides, depth[v], focal, edge[v], far[v])
            kernels.blend(hard[v], depth[v], edge[v], far[v], soft[v])
        ctx.kept = cameras, corners, face_id, barycentric, table, focal, hard, seen, depth, ends, edge, far
        ctx.dtype = vertices.dtype
        return torch.from_numpy(soft)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cameras, faces, face_id, barycentric, table, focal, hard, seen, depth, ends, edge, far = ctx.kept
        given = grad.contiguous().numpy()
        of_values, of_seen = np.zeros(table.shape), np.zeros(seen.shape)
        for v in range(len(seen)):
            inner = given[v].copy()
            kernels.blend_adjoint(
                given[v], hard[v], depth[v], edge[v], far[v], ends, seen[v], focal, inner, of_seen[v]
            )
            between_adjoint(  # type: ignore[call-arg]
                inner, face_id[v], barycentric[v], faces, table, seen[v], focal, of_values, of_seen[v]
            )
        world = np.zeros(seen.shape[1:])
        kernels.unproject_adjoint(of_seen, cameras.w2c.double().numpy(), world)
        places, colours = torch.from_numpy(world).to(ctx.dtype), torch.from_numpy(of_values).to(grad.dtype)
        return places, colours, None, None, None, None
