"""Meshes of other programs: of any materials, scale and place, as the second stage works on them.

Nv vertices, Nf faces, T texels along a side. Colours are sRGB in 0..1; glTF's factors and vertex colours are linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from gs_propeller.base.camera import Cameras
from gs_propeller.base.errors import UserError
from gs_propeller.mesh.raster import rasterize
from gs_propeller.mesh.surface import Mesh
from gs_propeller.mesh.texture import Reference, Textured, filled, texel_surface, unwrap

Array = NDArray[Any]
GREY = 0.7  # of a surface that says no colour
SLACK = 1e-3  # so far outside 0..1 a texture coordinate is still rounding
MOST_TEXELS = 4096  # side of a texture that is taken as it is
UNIT = (0.5, 1.6)  # longest side of an asset of ours; the cameras look at about so much, world units
OFF_CENTRE = 0.3  # world units
KEPT_OVERLAP, LEAST_OVERLAP = (
    0.5,
    0.25,
)  # IoU of outlines: the mesh stays where it is; it is no mesh of that picture
OUTLINE_PX = 96


@dataclass(frozen=True)
class Part:
    """A piece of one material: vertices [n, 3], faces [m, 3], uvs [n, 2], image, factor [3] (linear), and the colours
    of vertices [n, 3] or of faces [m, 3] (both sRGB); None where it has none."""

    vertices: Array
    faces: Array
    uvs: Array | None = None
    image: Image.Image | None = None
    factor: Array | None = None
    vertex_colours: Array | None = None
    face_colours: Array | None = None

    @property
    def plain(self) -> bool:
        """Whether its image is its colours, once over."""
        if self.image is None or self.uvs is None or self.vertex_colours is not None:
            return False
        inside = (self.uvs > -SLACK).all() and (self.uvs < 1 + SLACK).all()
        return bool(inside) and (self.factor is None or bool((self.factor > 0.99).all()))


def load_mesh(path: str | Path, texture_size: int = 1024) -> Textured:
    """A mesh file with one square texture: its own where it has that, else one of texture_size that is painted anew.

    .glb, .gltf, .obj, .ply, .stl; several materials, repeated textures, colour factors, colours of vertices and faces.
    Raises UserError.
    """
    if not Path(path).is_file():
        raise UserError(
            f"no mesh {path}; run main_propeller.py first, or give mesh=FILE.glb, .obj, .ply or .stl"
        )
    try:
        parts = _parts(Path(path))
    except Exception as error:  # a reader of many formats, each with errors of its own
        raise UserError(
            f"{path} is not a mesh that can be read: {str(error) or type(error).__name__}"
        ) from error
    if len(parts) > 1 or not parts[0].plain:
        return _repainted(parts, texture_size)
    (part,) = parts
    assert part.image is not None and part.uvs is not None
    mesh, faces = _merged(part.vertices, part.faces)
    uvs = torch.from_numpy(np.array(part.uvs, dtype=np.float32))
    return Textured(mesh, uvs, faces, torch.from_numpy(_square(part.image)))


def _parts(path: Path) -> list[Part]:
    """Raises what trimesh does, and ValueError where there are no faces."""
    loaded = trimesh.load(path, process=False)
    pieces = loaded.dump() if isinstance(loaded, trimesh.Scene) else [loaded]
    parts = [_part(piece, linear=path.suffix.lower() in (".glb", ".gltf")) for piece in pieces
             if isinstance(piece, trimesh.Trimesh) and len(piece.faces)]  # fmt: skip
    if not parts:
        if any(isinstance(piece, trimesh.PointCloud) for piece in pieces):
            raise ValueError("it has points and no faces; of a splat, give the .glb beside it")
        raise ValueError("it has no faces")
    if not all(np.isfinite(part.vertices).all() for part in parts):
        raise ValueError("some of its vertices are not finite")
    return parts


def _part(piece: trimesh.Trimesh, linear: bool) -> Part:
    visual, material = piece.visual, getattr(piece.visual, "material", None)
    found = Part(np.array(piece.vertices, dtype=np.float32), np.array(piece.faces, dtype=np.int64))
    if material is None:
        kind = getattr(visual, "kind", None)
        colours = _colours(visual.vertex_colors if kind == "vertex" else visual.face_colors) if kind else None
        if colours is not None and linear:
            colours = _encoded(colours)
        if kind == "vertex":
            return replace(found, vertex_colours=colours)
        return replace(found, face_colours=colours) if kind == "face" else found
    uvs, image = getattr(visual, "uv", None), getattr(material, "baseColorTexture", None)
    image = getattr(material, "image", None) if image is None else image
    factor = getattr(material, "baseColorFactor", None)
    if not hasattr(material, "baseColorFactor") and image is None:
        factor = material.diffuse  # of an .obj: beside a picture, whatever the exporter left there
    painted = visual.vertex_attributes.get("color") if hasattr(visual, "vertex_attributes") else None
    if factor is not None:
        factor = _colours(np.asarray(factor)[None])[0]
        factor = factor if linear else _decoded(factor)
    return replace(
        found,
        uvs=None if uvs is None else np.array(uvs, dtype=np.float32),
        image=image if uvs is not None else None,
        factor=factor,
        vertex_colours=None if painted is None else _encoded(_colours(painted)),
    )


def _colours(values: Any) -> Array:
    """[n, 3] in 0..1 of bytes, 16-bit numbers or floats."""
    values = np.asarray(values)
    scale = float(np.iinfo(values.dtype).max) if values.dtype.kind in "ui" else 1.0
    return (values[:, :3] / scale).astype(np.float32)


def _encoded(linear: Array) -> Array:
    """sRGB of linear light."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clip(1e-9) ** (1 / 2.4) - 0.055).clip(
        0, 1
    )


def _decoded(srgb: Array) -> Array:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _square(image: Image.Image) -> Array:
    """[T, T, 3] of a picture of any shape: texture coordinates are shares of its sides."""
    image = image.convert("RGB")
    side = min(max(image.size), MOST_TEXELS)
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.array(image, dtype=np.float32) / 255


def _merged(vertices: Array, faces: Array) -> tuple[Mesh, Tensor]:
    """(mesh, faces as they were): vertices that a seam doubled are one again, so that normals are smooth across it."""
    points, index = np.unique(vertices, axis=0, return_inverse=True)
    kept = torch.from_numpy(faces)
    return Mesh(torch.from_numpy(points), torch.from_numpy(index.reshape(-1))[kept]), kept


def _repainted(parts: Sequence[Part], size: int) -> Textured:
    """All parts as one mesh, unwrapped, each texel in the colour of the face that it lies on."""
    starts = np.cumsum([0, *(len(part.vertices) for part in parts)])
    faces = np.concatenate([part.faces + start for part, start in zip(parts, starts, strict=False)])
    mesh, _ = _merged(np.concatenate([part.vertices for part in parts]), faces)
    uvs, uv_faces = unwrap(mesh, size)
    rows, face, barycentric = texel_surface(uvs, uv_faces, size)
    colour = np.full((len(rows), 3), GREY, np.float32)
    first = 0
    for part in parts:
        there = np.flatnonzero((face >= first) & (face < first + len(part.faces)))
        colour[there] = _shown(part, face.numpy()[there] - first, barycentric.numpy()[there], size)
        first += len(part.faces)
    texture = filled(rows, torch.from_numpy(colour), size)
    return Textured(mesh, uvs, uv_faces, texture.clamp(0, 1))


def _shown(part: Part, face: Array, barycentric: Array, size: int) -> Array:
    """[n, 3] sRGB at points of faces [n], barycentric [n, 3]; glTF multiplies in linear light."""
    corners = part.faces[face]

    def between(values: Array) -> Array:
        return (values[corners] * barycentric[..., None]).sum(1)

    factors = [] if part.factor is None else [part.factor]
    if part.image is not None and part.uvs is not None:
        factors.append(_decoded(_sampled(part.image, between(part.uvs), size)))
    if part.vertex_colours is not None:
        factors.append(_decoded(between(part.vertex_colours)))
    if part.face_colours is not None:
        factors.append(_decoded(part.face_colours[face]))
    if not factors:
        return np.full((len(face), 3), GREY, np.float32)
    linear = np.ones((len(face), 3))
    for factor in factors:
        linear = linear * factor
    return _encoded(linear).astype(np.float32)


def _sampled(image: Image.Image, uv: Array, size: int) -> Array:
    """[n, 3] of a picture that repeats in both directions, bilinear; far finer than `size` it is shrunk before."""
    image = image.convert("RGB")
    if max(image.size) > 2 * size:
        image.thumbnail((2 * size, 2 * size))
    table = np.array(image, dtype=np.float32) / 255
    height, width = table.shape[:2]
    x, y = uv[:, 0] * width - 0.5, (1 - uv[:, 1]) * height - 0.5
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    right, down = (x - left)[:, None], (y - top)[:, None]

    def at(row: Array, column: Array) -> Array:
        return table[row % height, column % width]

    upper = at(top, left) * (1 - right) + at(top, left + 1) * right
    lower = at(top + 1, left) * (1 - right) + at(top + 1, left + 1) * right
    return upper * (1 - down) + lower * down


class Frame(NamedTuple):
    """Where a file's mesh is put: world = scale * (file + shift)."""

    scale: float = 1.0
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def into(self, textured: Textured) -> Textured:
        return (
            textured
            if self == Frame()
            else _moved(textured, lambda x: (x + torch.tensor(self.shift)) * self.scale)
        )

    def back(self, textured: Textured) -> Textured:
        """The file's scale and place again."""
        return (
            textured
            if self == Frame()
            else _moved(textured, lambda x: x / self.scale - torch.tensor(self.shift))
        )


def _moved(textured: Textured, move: Any) -> Textured:
    vertices = move(textured.mesh.vertices.double()).float()
    return replace(textured, mesh=Mesh(vertices, textured.mesh.faces))


def placed(textured: Textured, reference: Reference | None, path: str) -> Frame:
    """How to put a mesh of any scale and place before the cameras: as it is where that fits; else so that its outline
    has the place and size of the picture's object, or without a picture, at the origin. Raises UserError where outline
    and picture hardly overlap; path: the mesh's, for the error."""
    points = textured.mesh.vertices.double()
    low, high = points.amin(0), points.amax(0)
    longest = float((high - low).max())
    if longest <= 0.0:
        raise UserError(f"{path} has no extent: all its vertices are in one place")
    centred = Frame(1.0 / longest, tuple((-(low + high) / 2).tolist()))
    if reference is None:
        ours = UNIT[0] < longest < UNIT[1] and float((low + high).abs().max()) / 2 < OFF_CENTRE
        return Frame() if ours else centred
    side = (OUTLINE_PX, OUTLINE_PX)
    mask = F.interpolate(reference.mask, side, mode="area")[0, 0] > 0.5
    outside = longest < float(reference.camera.centres[0].norm())  # a camera in the mesh sees it everywhere
    if outside and _overlap(_outline(textured, Frame(), reference.camera), mask) >= KEPT_OVERLAP:
        return Frame()
    frame = centred
    for _ in range(6):  # perspective: each time nearer
        frame = _nearer(frame, _outline(textured, frame, reference.camera), mask, reference.camera)
    overlap = _overlap(_outline(textured, frame, reference.camera), mask)
    if overlap < LEAST_OVERLAP:
        raise UserError(
            f"{path} and the picture hardly overlap ({100 * overlap:.0f} % of their outlines): turn the mesh, y up and "
            "its front towards +z, so that the camera sees it as in the picture, or leave input= out for a prompt"
        )
    return frame


def _outline(textured: Textured, frame: Frame, camera: Cameras) -> Tensor:
    mesh = frame.into(textured).mesh
    return rasterize(mesh, camera, OUTLINE_PX).mask[0]


def _overlap(one: Tensor, two: Tensor) -> float:
    return float((one & two).sum() / (one | two).sum().clamp_min(1))


def _nearer(frame: Frame, seen: Tensor, wanted: Tensor, camera: Cameras) -> Frame:
    """The frame that brings the box of one outline onto that of the other, but for perspective."""
    boxes = []
    for outline in (seen, wanted):
        rows, columns = torch.nonzero(outline, as_tuple=True)
        if not len(rows):
            return frame
        boxes.append((rows.min(), rows.max() + 1, columns.min(), columns.max() + 1))
    sizes = [max(float(bottom - top), float(right - left)) for top, bottom, left, right in boxes]
    offset_y, offset_x = (
        float(boxes[1][k] + boxes[1][k + 1] - boxes[0][k] - boxes[0][k + 1]) / 2 for k in (0, 2)
    )
    w2c, distance = camera.w2c[0].double(), float(camera.centres[0].norm())
    unit = distance / camera.focal_px(OUTLINE_PX)
    way = (offset_x * w2c[0, :3] + offset_y * w2c[1, :3]) * unit
    scale = frame.scale * sizes[1] / sizes[0]
    return Frame(scale, tuple((torch.tensor(frame.shift, dtype=torch.float64) + way / scale).tolist()))
