"""Texture: unwrapping, baking from rendered views, shading, and the second stage's refinement.

V views, T texels along a side, Nt texture coordinates. UVs are in 0..1 with the origin at the bottom left, as
in OBJ files; texture row 0 is the top. Pictures are over white in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import xatlas
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional as F

from gs_propeller.camera import Cameras
from gs_propeller.mesh import Mesh, vertex_normals
from gs_propeller.mesh_raster import Hits, rasterize
from gs_propeller.randomness import keyed_generator

RenderViews = Callable[[Cameras, int], tuple[Tensor, Tensor]]  # (image over white, alpha)
SHARPNESS = 4.0  # exponent of the cosine: a view that looks straight on outweighs a slanted one
REFERENCE_WEIGHT = 8.0  # of the input picture against one rendered view
DEPTH_SLACK = 0.015  # world units: a surface this far behind what a view sees still counts as seen
CHUNK = 1 << 20  # texels projected at a time: bounds memory at any texture size


@dataclass(frozen=True)
class Textured:
    """A mesh with its texture: uvs [Nt, 2]; uv_faces [Nf, 3] int64 into uvs; texture [T, T, 3] in 0..1."""

    mesh: Mesh
    uvs: Tensor
    uv_faces: Tensor
    texture: Tensor

    def __post_init__(self) -> None:
        if self.uv_faces.shape != self.mesh.faces.shape:
            raise ValueError(f"{len(self.mesh.faces)} faces but {len(self.uv_faces)} faces of uvs")


@dataclass(frozen=True)
class Reference:
    """The input picture: image [1, 3, S, S] over white, mask [1, 1, S, S], its one camera."""

    image: Tensor
    mask: Tensor
    camera: Cameras


def unwrap(mesh: Mesh, texture_size: int = 1024) -> tuple[Tensor, Tensor]:
    """(uvs [Nt, 2], uv_faces [Nf, 3]) by xatlas: charts that do not overlap, with gaps for filtering."""
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh.vertices.numpy(), mesh.faces.numpy().astype(np.uint32))
    charts, packing = xatlas.ChartOptions(), xatlas.PackOptions()
    charts.max_iterations = 1  # more takes seconds and saves few seams
    packing.padding, packing.resolution, packing.bruteForce = 4, texture_size, False
    atlas.generate(charts, packing)
    _, uv_faces, uvs = atlas[0]
    return torch.from_numpy(uvs.astype(np.float32)), torch.from_numpy(uv_faces.astype(np.int64))


def texel_surface(mesh: Mesh, uvs: Tensor, uv_faces: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, face, barycentric): which texels of [T * T] are covered, by which face, and where in it."""
    flat = Mesh(torch.cat([uvs, torch.zeros(len(uvs), 1)], 1), uv_faces)
    # Seen from above by a camera so far away that it is orthographic: the ray caster serves here too.
    far = 1000.0
    w2c = torch.tensor([[1.0, 0, 0, -0.5], [0, -1.0, 0, 0.5], [0, 0, -1.0, far], [0, 0, 0, 1.0]])[None]
    hits = rasterize(flat, Cameras(w2c, 2 * math.atan(0.5 / far)), size)
    rows = hits.mask.reshape(-1).nonzero()[:, 0]
    return rows, hits.face_id.reshape(-1)[rows], hits.barycentric.reshape(-1, 3)[rows]


def bake(
    mesh: Mesh, render_views: RenderViews, cameras: Cameras, texture_size: int, view_size: int = 256,
    reference: Reference | None = None,
) -> Textured:  # fmt: skip
    """Unwraps the mesh and paints every texel with what the views that see it show there.

    Weights: the cosine to the view to a power, nothing where depth says hidden or alpha says edge; the input
    picture counts most where it looks straight on and fades with the angle, so that no seam rings it. Texels
    that no view sees take the nearest painted one's colour.
    """
    uvs, uv_faces = unwrap(mesh, texture_size)
    rows, face, barycentric = texel_surface(mesh, uvs, uv_faces, texture_size)
    normals = vertex_normals(mesh)
    total = torch.zeros(len(rows), 4)
    sources = [(cameras, *render_views(cameras, view_size), 1.0)]
    if reference is not None:
        sources.append((reference.camera, reference.image, reference.mask, REFERENCE_WEIGHT))
    for where, image, alpha, gain in sources:
        depth = rasterize(mesh, where, image.shape[-1]).depth
        depth = torch.where(depth > 0, depth, torch.full_like(depth, 1e4))[:, None]
        # Rendered colours are over white; what the surface alone has is c = (C - (1 - a)) / a.
        colour = ((image - (1 - alpha)) / alpha.clamp_min(0.05)).clamp(0, 1)
        inner = -F.max_pool2d(-(alpha > 0.5).float(), 3, 1, 1)  # one pixel in from the silhouette
        stack = torch.cat([colour, inner, depth], 1)
        for begin in range(0, len(rows), CHUNK):
            part = slice(begin, begin + CHUNK)
            corner = mesh.faces[face[part]]
            point = (mesh.vertices[corner] * barycentric[part, :, None]).sum(1)
            normal = F.normalize((normals[corner] * barycentric[part, :, None]).sum(1), dim=1)
            for v in range(len(where)):
                total[part] += gain * _seen(point, normal, where[v : v + 1], stack[v : v + 1])
    texture = torch.full((texture_size * texture_size, 3), 0.5)
    painted = total[:, 3] > 1e-4
    texture[rows[painted]] = total[painted, :3] / total[painted, 3:]
    holes = torch.ones(texture_size * texture_size, dtype=torch.bool)
    holes[rows[painted]] = False
    if bool(painted.any()):  # unseen texels and the gaps between charts: the nearest painted one
        grid = holes.reshape(texture_size, texture_size).numpy()
        near = distance_transform_edt(grid, return_distances=False, return_indices=True)
        texture = texture.reshape(texture_size, texture_size, 3)[
            torch.from_numpy(near[0]).long(), torch.from_numpy(near[1]).long()
        ]
    return Textured(mesh, uvs, uv_faces, texture.reshape(texture_size, texture_size, 3).clamp(0, 1))


def _seen(point: Tensor, normal: Tensor, camera: Cameras, stack: Tensor) -> Tensor:
    """[M, 4] weighted colour and weight of surface points [M, 3] in one view; stack [1, 5, S, S]."""
    w2c, side = camera.w2c[0], stack.shape[-1]
    seen = point @ w2c[:3, :3].T + w2c[:3, 3]
    z = seen[:, 2].clamp_min(1e-6)
    at = seen[:, :2] / z[:, None] * (2 * camera.focal_px(side) / side)
    sample = F.grid_sample(stack, at[None, None], mode="bilinear", align_corners=False)[0, :, 0].T
    nearest = F.grid_sample(stack[:, 3:], at[None, None], mode="nearest", align_corners=False)[0, :, 0].T
    towards = F.normalize(camera.centres[0] - point, dim=1)
    cosine = (normal * towards).sum(1).clamp_min(0)
    visible = (nearest[:, 0] > 0.5) & (z < nearest[:, 1] + DEPTH_SLACK) & (at.abs().amax(1) < 1)
    weight = cosine**SHARPNESS * visible
    return torch.cat([sample[:, :3] * weight[:, None], weight[:, None]], 1)


def lookup(textured: Textured, hits: Hits) -> Tensor:
    """[V, H, W, 2] texture coordinates for grid_sample (-1..1, y down) of what the pixels hit."""
    corners = textured.uvs[textured.uv_faces[hits.face_id.clamp_min(0)]]
    uv = (corners * hits.barycentric[..., None]).sum(-2)
    return torch.stack([uv[..., 0] * 2 - 1, 1 - uv[..., 1] * 2], -1)


def sample_texture(texture: Tensor, at: Tensor, mask: Tensor) -> Tensor:
    """[V, 3, H, W] over white, differentiable in texture [T, T, 3]; at from `lookup`, mask [V, H, W]."""
    table = texture.permute(2, 0, 1)[None].expand(len(at), -1, -1, -1)
    image = F.grid_sample(table, at, mode="bilinear", padding_mode="border", align_corners=False)
    return torch.where(mask[:, None], image, torch.ones_like(image))


def shade(textured: Textured, cameras: Cameras, size: int, supersample: int = 2) -> tuple[Tensor, Tensor]:
    """(image [V, 3, S, S] over white, alpha [V, 1, S, S]); edges averaged over supersample^2 rays."""
    hits = rasterize(textured.mesh, cameras, size * supersample)
    image = sample_texture(textured.texture, lookup(textured, hits), hits.mask)
    alpha = hits.mask[:, None].float()
    return F.avg_pool2d(image, supersample), F.avg_pool2d(alpha, supersample)


@dataclass(frozen=True)
class RefineSettings:
    """steps; batch: views a step; lr: Adam's, of the texture; size: px of the rendered views;
    strength_max, strength_min: noise strength of the first and last step; lambda_known: of the input view.
    """

    steps: int
    batch: int
    lr: float
    size: int
    strength_max: float
    strength_min: float
    lambda_known: float = 4.0


def refine(
    textured: Textured,
    cameras_of: Callable[[int], Cameras],
    targets_of: Callable[[int, Tensor, float], Tensor],
    reference: Reference,
    settings: RefineSettings,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Textured:
    """DreamGaussian's second stage: the texture follows what the prior makes of its own renders.

    cameras_of(step): that step's views. targets_of(step, images [V, 3, S, S], strength): the prior's multi-step
    denoising of them, any size. The loss is the mean squared error to the targets inside the mesh, plus that of
    the known view. Deterministic: all draws are the step's own.

    What is learnt is an offset of two scales: a coarse one from all views, of no more texels than they can see,
    and a fine one from the known view alone. Adam would otherwise leave the texels between the views' pixels
    behind, as grain.
    """
    side = len(textured.texture)
    coarse_side = min(side, 2 * settings.size)
    coarse = torch.zeros(1, 3, coarse_side, coarse_side, requires_grad=True)
    fine = torch.zeros_like(textured.texture, requires_grad=True)
    optimiser = torch.optim.Adam([coarse, fine], lr=settings.lr, betas=(0.9, 0.99), eps=1e-15)
    known_hits = rasterize(textured.mesh, reference.camera, reference.image.shape[-1])
    known_at, known_mask = lookup(textured, known_hits), known_hits.mask & (reference.mask[:, 0] > 0.99)
    for step in range(settings.steps):
        share = step / max(settings.steps - 1, 1)
        strength = settings.strength_max + (settings.strength_min - settings.strength_max) * share
        cameras = cameras_of(step)
        hits = rasterize(textured.mesh, cameras, settings.size)
        at = lookup(textured, hits)
        wide = F.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
        texture = textured.texture + wide
        image = sample_texture(texture + fine.detach(), at, hits.mask)
        target = targets_of(step, image.detach(), strength)
        target = F.interpolate(target, image.shape[-2:], mode="bilinear", align_corners=False)
        novel = ((image - target).square() * hits.mask[:, None]).sum() / hits.mask.sum().clamp_min(1) / 3
        shown = sample_texture(texture + fine, known_at, known_mask)
        gap = (shown - reference.image).square() * known_mask[:, None]
        loss = novel + settings.lambda_known * gap.sum() / known_mask.sum().clamp_min(1) / 3
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        on_step(step, float(loss))
    with torch.no_grad():
        wide = F.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
        return replace(textured, texture=(textured.texture + wide + fine).clamp(0, 1))


def refine_angles(step: int, batch: int, low_rad: float, high_rad: float, seed: int) -> tuple[Tensor, Tensor]:
    """(azimuths, elevations) [V] of one refinement step: round the circle, a function of (seed, step) alone."""
    generator = keyed_generator(seed, step, "refine views")
    turn = (torch.arange(batch) + torch.rand(batch, generator=generator)) * (2 * math.pi / batch)
    return turn, low_rad + (high_rad - low_rad) * torch.rand(batch, generator=generator)
