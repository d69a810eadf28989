"""A mesh with offsets on its texture and vertices as a view shows it, differentiable in all of them.

V views, S their side, T texels along the texture's side, C along the coarse offset's, F texels with a fine offset, Nv
vertices. Colours are the texture's, plus the coarse offset's, plus the fine one's, each sampled where the pixel looks.
Two routes with one result: compiled kernels with their adjoints in the host's memory (kernels.py), and torch's own
operations on any device, `render_torch`, which the tests hold the kernels against.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gs_propeller.base.camera import Cameras, orbit
from gs_propeller.mesh import kernels
from gs_propeller.mesh.antialias import antialias, barycentrics, edges_of
from gs_propeller.mesh.raster import Hits, rasterize, seen_by
from gs_propeller.mesh.surface import Mesh
from gs_propeller.mesh.texture import Textured, lookup, sample_texture, texel_surface


@dataclass(frozen=True)
class Canvas:
    """What stays while offsets are learnt: the textured mesh; texels [F] int64 into its T * T, those with a fine
    offset; soft: whether silhouettes are blended, so that vertices learn from them. Else vertices learn nothing."""

    textured: Textured
    texels: Tensor
    soft: bool

    @cached_property
    def row_of(self) -> Tensor:
        """[T, T] int32: a texel's row of the fine offset, -1 for none."""
        side = len(self.textured.texture)
        rows = torch.full((side * side,), -1, dtype=torch.int32, device=self.texels.device)
        rows[self.texels] = torch.arange(len(self.texels), dtype=torch.int32, device=rows.device)
        return rows.reshape(side, side)

    @cached_property
    def edges(self) -> tuple[Tensor, Tensor]:
        return edges_of(self.textured.mesh.faces)

    def spread(self, fine: Tensor) -> Tensor:
        """[T, T, 3] of fine [F, 3], differentiable."""
        side = len(self.textured.texture)
        return fine.new_zeros(side * side, 3).index_put((self.texels,), fine).reshape(side, side, 3)

    def painted(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """[T, T, 3]: the texture with its offsets, at its texels."""
        side = len(self.textured.texture)
        table = coarse.permute(2, 0, 1)[None]
        wide = F.interpolate(table, (side, side), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
        return self.textured.texture + wide + self.spread(fine)

    def hits(self, vertices: Tensor, cameras: Cameras, size: int) -> Hits:
        return rasterize(Mesh(vertices.detach(), self.textured.mesh.faces), cameras, size)


def texels_of(textured: Textured, faces: Tensor) -> Tensor:
    """[F] of T * T, in order: every texel that a point on these faces [K] is coloured by."""
    side, device = len(textured.texture), textured.texture.device
    rows, owner, _ = texel_surface(textured.uvs.cpu(), textured.uv_faces.cpu(), side)
    wanted = torch.zeros(len(textured.uv_faces), dtype=torch.bool)
    wanted[faces.cpu()] = True
    covered = torch.zeros(side * side)
    covered[rows[wanted[owner]]] = 1.0
    # A face smaller than a texel may own none: those under its corners count, and of all the ones next to them.
    corners = textured.uvs.cpu()[textured.uv_faces.cpu()[wanted]].reshape(-1, 2)
    column, row = ((x * side).long().clamp(0, side - 1) for x in (corners[:, 0], 1 - corners[:, 1]))
    covered[row * side + column] = 1.0
    near = F.max_pool2d(covered.reshape(1, 1, side, side), 3, 1, 1).reshape(-1)
    return torch.nonzero(near)[:, 0].to(device)


def render(
    canvas: Canvas, coarse: Tensor, fine: Tensor, vertices: Tensor, cameras: Cameras, hits: Hits
) -> tuple[Tensor, Tensor]:
    """(image [V, 3, S, S] over white, coverage [V, 1, S, S]) of coarse [C, C, 3], fine [F, 3] and vertices [Nv, 3],
    differentiable in them. hits: of `canvas.hits` for these vertices."""
    if vertices.is_cuda:
        return render_torch(canvas, coarse, fine, vertices, cameras, hits)
    both = _Render.apply(coarse, fine, vertices, canvas, cameras, hits)
    return both[:, :3], both[:, 3:]


def render_torch(
    canvas: Canvas, coarse: Tensor, fine: Tensor, vertices: Tensor, cameras: Cameras, hits: Hits
) -> tuple[Tensor, Tensor]:
    """The same by torch's operations."""
    textured, mesh = canvas.textured, canvas.textured.mesh
    if canvas.soft:
        hits = replace(hits, barycentric=barycentrics(vertices, mesh.faces, hits, cameras))
    at, white = lookup(textured, hits), hits.mask
    image = sample_texture(textured.texture + canvas.spread(fine), at, white)
    image = image + torch.where(white[:, None], sample_texture(coarse, at, white), 0.0)
    cover = hits.mask[:, None].to(image)
    if not canvas.soft:
        return image, cover
    both = antialias(torch.cat([image, cover], 1), vertices, mesh.faces, canvas.edges, hits, cameras)
    return both[:, :3], both[:, 3:]


def warm() -> None:
    """Compile every kernel, or load it from the cache, by rendering a triangle. Takes seconds once."""
    mesh = Mesh(torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]), torch.tensor([[0, 1, 2]]))
    textured = Textured(mesh, mesh.vertices[:, :2].contiguous(), mesh.faces, torch.zeros(4, 4, 3))
    canvas = Canvas(textured, texels_of(textured, torch.zeros(1, dtype=torch.int64)), True)
    cameras = orbit([0.0], [0.0], 2.0, 0.857)
    offsets = torch.zeros(2, 2, 3), torch.zeros(len(canvas.texels), 3), mesh.vertices
    coarse, fine, moved = (x.clone().requires_grad_() for x in offsets)
    image, cover = render(canvas, coarse, fine, moved, cameras, canvas.hits(mesh.vertices, cameras, 16))
    (image.sum() + cover.sum()).backward()


class _Render(torch.autograd.Function):
    """The kernels' route: [V, 4, S, S], colours and coverage."""

    @staticmethod
    def forward(
        ctx: Any, coarse: Tensor, fine: Tensor, vertices: Tensor, canvas: Canvas, cameras: Cameras, hits: Hits
    ) -> Tensor:
        textured = canvas.textured
        views, height, width = hits.face_id.shape
        focal = cameras.focal_px(height)
        faces = textured.mesh.faces.numpy()
        face_id, barycentric = hits.face_id.numpy(), hits.barycentric.numpy()
        skin = (
            textured.uvs.numpy(),
            textured.uv_faces.numpy(),
            textured.texture.numpy(),
            coarse.detach().contiguous().numpy(),
            canvas.row_of.numpy(),
            fine.detach().contiguous().numpy(),
        )
        hard = np.empty((views, 4, height, width), np.float32)
        hard[:, 3] = face_id >= 0
        for v in range(views):
            kernels.paint(face_id[v], barycentric[v], *skin, hard[v])
        ctx.kept = canvas, cameras, faces, face_id, barycentric, skin, focal, hard, None
        if not canvas.soft:
            return torch.from_numpy(hard)
        seen = seen_by(vertices, cameras)
        depth = np.where(face_id >= 0, hits.depth.numpy(), kernels.NOTHING).astype(np.float32)
        ends, sides = (x.numpy() for x in canvas.edges)
        edge, far = np.full((views, 2, height, width), -1, np.int32), np.empty((views, 2, height, width))
        soft = hard.copy()
        for v in range(views):
            kernels.crossings(seen[v], faces, ends, sides, depth[v], focal, edge[v], far[v])
            kernels.blend(hard[v], depth[v], edge[v], far[v], soft[v])
        ctx.kept = (*ctx.kept[:-1], (seen, depth, ends, edge, far))
        return torch.from_numpy(soft)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        canvas, cameras, faces, face_id, barycentric, skin, focal, hard, outline = ctx.kept
        given = grad.contiguous().numpy()
        of_coarse, of_fine = np.zeros(skin[3].shape), np.zeros(skin[5].shape)
        count = len(canvas.textured.mesh.vertices) if canvas.soft else 1
        of_seen = np.zeros((len(cameras), count, 3))
        for v in range(len(cameras)):
            inner, seen = given[v], of_seen[v]
            if outline is not None:
                all_seen, depth, ends, edge, far = outline
                inner, seen = given[v].copy(), all_seen[v]
                kernels.blend_adjoint(
                    given[v], hard[v], depth[v], edge[v], far[v], ends, seen, focal, inner, of_seen[v]
                )
            kernels.paint_adjoint(  # type: ignore[call-arg]
                inner, face_id[v], barycentric[v], *skin, seen, faces, focal, canvas.soft, of_coarse, of_fine,
                of_seen[v],
            )  # fmt: skip
        of_vertices = None
        if canvas.soft:
            world = np.zeros((count, 3))
            kernels.unproject_adjoint(of_seen, cameras.w2c.double().numpy(), world)
            of_vertices = torch.from_numpy(world).float()
        return (
            torch.from_numpy(of_coarse).float(),
            torch.from_numpy(of_fine).float(),
            of_vertices,
            None,
            None,
            None,
        )
