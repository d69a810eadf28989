"""Texture: unwrapping, baking from rendered views, shading.

V views, T texels along a side, Nt texture coordinates. UVs are in 0..1 with the origin at the bottom left, as
in OBJ files; texture row 0 is the top. Pictures are over white in 0..1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
import xatlas
from numba import njit
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional as F

from gs_propeller.base.camera import Cameras
from gs_propeller.distil.palette import Palette, shown
from gs_propeller.mesh.raster import Hits, rasterize
from gs_propeller.mesh.surface import Mesh, vertex_normals

RenderViews = Callable[[Cameras, int], tuple[Tensor, Tensor]]  # (image over white, alpha)
SHARPNESS = 4.0  # exponent of the cosine: a view that looks straight on outweighs a slanted one
DEPTH_SLACK = 0.015  # world units: a surface this far behind what a view sees still counts as seen
EDGE_PX = 2  # so near to a silhouette or to something in front, a view is trusted less
EDGE_SLACK = 0.06  # world units: so far behind that something, it is not trusted at all
FAINT = 1e-4  # a weight under this is none
USUAL = 0.1, 10.0  # longest side of a mesh that is unwrapped as it is, world units
# Faces that are unwrapped at once, else in slabs: xatlas ended at 81920 of a ball, not at 20480. In slabs of 20
# thousand 6 % of that ball's texels were shared, of 4 thousand 1 %.
WHOLE, SLAB = 40_000, 4_000
REST_S = 0.02  # before an atlas is let go: of empty ones 12 in 13 thousand hung at once, none in 15 thousand after 3 ms
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

    def to(self, device: torch.device | str) -> Textured:
        mesh = Mesh(self.mesh.vertices.to(device), self.mesh.faces.to(device))
        return Textured(mesh, self.uvs.to(device), self.uv_faces.to(device), self.texture.to(device))


@dataclass(frozen=True)
class Reference:
    """The input picture: image [1, 3, S, S] over white, mask [1, 1, S, S], its one camera."""

    image: Tensor
    mask: Tensor
    camera: Cameras

    def to(self, device: torch.device | str) -> Reference:
        return Reference(self.image.to(device), self.mask.to(device), self.camera.to(device))


def unwrap(mesh: Mesh, texture_size: int = 1024) -> tuple[Tensor, Tensor]:
    """(uvs [Nt, 2], uv_faces [Nf, 3]) by xatlas: charts that do not overlap, with gaps for filtering. A large mesh is
    unwrapped in slabs: smooth charts of very many faces end xatlas, and with it this process, by a segmentation
    fault."""
    vertices, slabs = (mesh.vertices * _usual(mesh.vertices)).numpy(), _slabs(mesh)
    charts, packing = xatlas.ChartOptions(), xatlas.PackOptions()
    charts.max_iterations = 1  # more takes seconds and saves few seams
    packing.padding, packing.resolution, packing.bruteForce = 4, texture_size, False
    uv_faces, uvs, first = np.empty((len(mesh.faces), 3), np.int64), [], 0
    with _atlas() as atlas:
        for slab in slabs:
            used, faces = np.unique(mesh.faces.numpy()[slab], return_inverse=True)
            atlas.add_mesh(vertices[used], faces.reshape(-1, 3).astype(np.uint32))
        atlas.generate(charts, packing)
        for k, slab in enumerate(slabs):
            _, corners, found = atlas[k]
            uv_faces[slab] = corners.astype(np.int64) + first
            uvs.append(found.astype(np.float32))
            first += len(found)
    return torch.from_numpy(np.concatenate(uvs)), torch.from_numpy(uv_faces)


@contextmanager
def _atlas() -> Iterator[xatlas.Atlas]:
    """An atlas of xatlas that is let go once its threads sleep: its end wakes them without holding their locks, and
    waits for ever for one that was about to sleep just then."""
    atlas = xatlas.Atlas()
    try:
        yield atlas
    finally:
        time.sleep(REST_S)


def _slabs(mesh: Mesh) -> list[NDArray[np.int64]]:
    """Faces by number in slabs across the longest side, of SLAB at most; in one as they come up to WHOLE."""
    if len(mesh.faces) <= WHOLE:
        return [np.arange(len(mesh.faces))]
    extent = mesh.vertices.amax(0) - mesh.vertices.amin(0)
    along = mesh.vertices[:, int(extent.argmax())][mesh.faces].mean(1)
    return np.array_split(np.argsort(along.numpy(), kind="stable"), -(-len(mesh.faces) // SLAB))


def _usual(vertices: Tensor) -> float:
    """What brings a mesh far smaller or larger than an asset to an asset's size: xatlas has no charts for faces under
    some area of its own."""
    longest = float((vertices.amax(0) - vertices.amin(0)).max())
    return 1.0 if USUAL[0] < longest < USUAL[1] or longest <= 0 else 1.0 / longest


@njit(cache=True)
def _fill(corners, size, face_id, barycentric):  # type: ignore[no-untyped-def] # pragma: no cover
    """Which triangle holds each texel's centre. corners [Nf, 3, 2] in texels, y down; the first face wins."""
    for f in range(corners.shape[0]):
        ax, ay = corners[f, 0]
        bx, by = corners[f, 1]
        cx, cy = corners[f, 2]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0.0:
            continue
        left, right = max(0, int(min(ax, bx, cx) - 0.5)), min(size - 1, int(max(ax, bx, cx) + 0.5))
        top, bottom = max(0, int(min(ay, by, cy) - 0.5)), min(size - 1, int(max(ay, by, cy) + 0.5))
        for row in range(top, bottom + 1):
            y = row + 0.5
            for column in range(left, right + 1):
                x = column + 0.5
                u = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
                v = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
                if u >= 0.0 and v >= 0.0 and u + v <= 1.0 and face_id[row, column] < 0:
                    face_id[row, column] = f
                    barycentric[row, column, 0] = u
                    barycentric[row, column, 1] = v


def texel_surface(uvs: Tensor, uv_faces: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, face, barycentric): which texels of [T * T] are covered, by which face, and where in it."""
    corners = uvs[uv_faces].double().numpy() * size
    corners[..., 1] = size - corners[..., 1]
    face_id = np.full((size, size), -1, np.int32)
    two = np.zeros((size, size, 2), np.float32)
    _fill(corners, size, face_id, two)
    rows = np.flatnonzero(face_id >= 0)
    barycentric = torch.from_numpy(two.reshape(-1, 2)[rows])
    third = 1 - barycentric.sum(1, keepdim=True)
    face = torch.from_numpy(face_id.reshape(-1)[rows].astype(np.int64))
    return torch.from_numpy(rows), face, torch.cat([barycentric, third], 1)


def bake(
    mesh: Mesh, render_views: RenderViews, cameras: Cameras, texture_size: int, view_size: int = 256,
    reference: Reference | None = None, recolour: float = 0.0,
) -> Textured:  # fmt: skip
    """Unwraps the mesh and paints every texel with what the views that see it show there.

    Weights: the cosine to the view to a power, nothing where depth says hidden, fading towards silhouettes and
    towards what stands in front. The input picture takes over where it looks straight on and fades with the
    angle, so that no seam rings it. Texels that no view sees take the colours nearest in space. recolour: share of the
    way to the picture's colours, of what it does not show.
    """
    uvs, uv_faces = unwrap(mesh, texture_size)
    rows, points, normals = _texels(mesh, uvs, uv_faces, texture_size)
    rendered = _view_stack(mesh, cameras, *render_views(cameras, view_size))
    colour, weight = torch.full((len(rows), 3), 0.5), torch.zeros(len(rows))
    for begin in range(0, len(rows), CHUNK):
        part = slice(begin, begin + CHUNK)
        total = torch.zeros(len(points[part]), 3)
        for v in range(len(cameras)):
            there, seen, cosine, trust = _seen(
                points[part], normals[part], cameras[v : v + 1], rendered[v : v + 1]
            )
            gain = cosine**SHARPNESS * trust
            total[there] += gain[:, None] * seen
            weight[begin + there] += gain
        colour[part] = torch.where(
            weight[part, None] > FAINT, total / weight[part, None].clamp_min(FAINT), 0.5
        )
    own = torch.zeros(len(rows))
    if reference is not None:
        there, seen, own = _known(mesh, points, normals, reference)
        share = own[there]
        share = torch.where(weight[there] > FAINT, share, (share > FAINT).float())
        colour[there] = colour[there].lerp(seen, share[:, None])
        weight[there] += share
    painted = weight > FAINT
    if bool(painted.any()) and not bool(painted.all()):
        colour[~painted] = _nearest_in_space(points[painted], colour[painted], points[~painted])
    if reference is not None:
        colour = _pulled(colour.clamp(0, 1), points, own, reference, recolour)
    return Textured(mesh, uvs, uv_faces, filled(rows, colour, texture_size).clamp(0, 1))


def recoloured(textured: Textured, reference: Reference, share: float) -> Textured:
    """With what the input picture does not show pulled to its colours by that share."""
    size = len(textured.texture)
    rows, points, normals = _texels(textured.mesh, textured.uvs, textured.uv_faces, size)
    own = _known(textured.mesh, points, normals, reference)[2]
    given = textured.texture.reshape(-1, 3)[rows]
    colour = _pulled(given, points, own, reference, share)
    if colour is given:
        return textured
    return replace(textured, texture=filled(rows, colour, size).clamp(0, 1))


def _texels(mesh: Mesh, uvs: Tensor, uv_faces: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """(which texels of [T * T] are covered, their points [M, 3], their normals [M, 3])."""
    rows, face, barycentric = texel_surface(uvs, uv_faces, size)
    vertex, points, normals = vertex_normals(mesh), torch.empty(len(rows), 3), torch.empty(len(rows), 3)
    for begin in range(0, len(rows), CHUNK):
        part = slice(begin, begin + CHUNK)
        corner, where = mesh.faces[face[part]], barycentric[part, :, None]
        points[part] = (mesh.vertices[corner] * where).sum(1)
        normals[part] = F.normalize((vertex[corner] * where).sum(1), dim=1)
    return rows, points, normals


def _known(
    mesh: Mesh, points: Tensor, normals: Tensor, reference: Reference
) -> tuple[Tensor, Tensor, Tensor]:
    """(rows [K] of those points [M, 3] that the input view sees, their colours [K, 3], the share [M] of 1 in which the
    picture decides)."""
    stack = _view_stack(mesh, reference.camera, reference.image, reference.mask)
    rows, colours, own = [], [], torch.zeros(len(points))
    for begin in range(0, len(points), CHUNK):
        part = slice(begin, begin + CHUNK)
        there, seen, cosine, trust = _seen(points[part], normals[part], reference.camera, stack)
        rows.append(begin + there)
        colours.append(seen)
        own[rows[-1]] = shown(cosine) * trust
    if not rows:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3), own
    return torch.cat(rows), torch.cat(colours), own


def _pulled(colour: Tensor, points: Tensor, own: Tensor, reference: Reference, share: float) -> Tensor:
    """Colours [M, 3] at those points, by that share nearer to the picture's, less so where it decides already."""
    palette = Palette.of(reference.image, reference.mask, reference.camera) if share and len(colour) else None
    if palette is None:
        return colour
    return colour + share * (1 - own)[:, None] * (palette.pulled(colour, points[:, 1]) - colour)


def filled(rows: Tensor, colour: Tensor, size: int) -> Tensor:
    """[T, T, 3] with these colours at texels `rows` of [T * T], and between charts that of the nearest texel of one, so
    that filtering across a border finds its own colour."""
    texture = torch.full((size * size, 3), 0.5)
    if not len(rows):
        return texture.reshape(size, size, 3)
    texture[rows] = colour
    gaps = torch.ones(size * size, dtype=torch.bool)
    gaps[rows] = False
    grid = gaps.reshape(size, size).numpy()
    near = distance_transform_edt(grid, return_distances=False, return_indices=True)
    texture = texture[torch.from_numpy(near[0].astype(np.int64) * size + near[1]).reshape(-1)]
    return texture.reshape(size, size, 3)


def _view_stack(mesh: Mesh, cameras: Cameras, image: Tensor, alpha: Tensor) -> Tensor:
    """[V, 6, S, S]: colour of the surface alone, trust in it, depth, least depth within EDGE_PX."""
    depth = rasterize(mesh, cameras, image.shape[-1]).depth
    depth = torch.where(depth > 0, depth, torch.full_like(depth, 1e4))[:, None]
    # Rendered colours are over white; what the surface alone has is c = (C - (1 - a)) / a.
    colour = ((image - (1 - alpha)) / alpha.clamp_min(0.05)).clamp(0, 1)
    side = 2 * EDGE_PX + 1
    front = -F.max_pool2d(-depth, side, 1, EDGE_PX)
    inner = -F.max_pool2d(-(alpha > 0.5).float(), 3, 1, 1)  # one pixel in from the silhouette
    trust = F.avg_pool2d(inner, side, 1, EDGE_PX, count_include_pad=False) * inner
    return torch.cat([colour, trust, depth, front], 1)


def _seen(
    point: Tensor, normal: Tensor, camera: Cameras, stack: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(rows [K], colour [K, 3], cosine [K], trust [K]) of those surface points [M, 3] that one view [1, 6, S, S] sees.

    Most do not face it or are hidden: only what is left is looked up with care.
    """
    w2c, side = camera.w2c[0], stack.shape[-1]
    rows = torch.nonzero((normal * (camera.centres[0] - point)).sum(1) > 0)[:, 0]
    point = point[rows]
    seen = point @ w2c[:3, :3].T + w2c[:3, 3]
    z = seen[:, 2].clamp_min(1e-6)
    at = seen[:, :2] / z[:, None] * (2 * camera.focal_px(side) / side)
    nearest = F.grid_sample(stack[:, 3:], at[None, None], mode="nearest", align_corners=False)[0, :, 0].T
    visible = (nearest[:, 0] > 0) & (z < nearest[:, 1] + DEPTH_SLACK) & (z < nearest[:, 2] + EDGE_SLACK)
    left = torch.nonzero(visible & (at.abs().amax(1) < 1))[:, 0]
    rows, at = rows[left], at[left]
    sample = F.grid_sample(stack[:, :4], at[None, None], mode="bilinear", align_corners=False)[0, :, 0].T
    cosine = (normal[rows] * F.normalize(camera.centres[0] - point[left], dim=1)).sum(1).clamp_min(0)
    return rows, sample[:, :3], cosine, sample[:, 3]


def _nearest_in_space(known: Tensor, colours: Tensor, wanted: Tensor) -> Tensor:
    """[M, 3] colours at points wanted [M, 3]: of the 8 nearest known points, by inverse square distance."""
    count = min(8, len(known))
    stride = max(1, len(known) // 50_000)  # a tree of more is slow, and the fill is smooth anyway
    tree = cKDTree(known[::stride].numpy())
    found = tree.query(wanted.numpy(), count, workers=torch.get_num_threads())
    distance, index = (torch.from_numpy(x.reshape(len(wanted), -1)) for x in found)
    weight = (1 / (distance.square() + 1e-8)).float()
    return (colours[::stride][index] * weight[:, :, None]).sum(1) / weight.sum(1, keepdim=True)


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
