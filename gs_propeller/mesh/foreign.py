"""Meshes of other programs: of any materials, scale and place, as the second stage works on them.

Nv vertices, Nf faces, T texels along a side. Colours are sRGB in 0..1; glTF's factors and vertex colours are linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from gs_propeller.base.camera import Cameras
from gs_propeller.base.errors import UserError
from gs_propeller.base.grey import eight_bit
from gs_propeller.mesh.formats.parts import Array, Part, decoded, encoded, parts_of
from gs_propeller.mesh.raster import rasterize
from gs_propeller.mesh.surface import Mesh
from gs_propeller.mesh.texture import Reference, Textured, filled, texel_surface, unwrap

GREY = 0.7  # of a surface that says no colour
MOST_TEXELS = 4096  # side of a texture that is taken as it is
UNIT = (0.5, 1.6)  # longest side of an asset of ours; the cameras look at about so much, world units
OFF_CENTRE = 0.3  # world units
LEAST_AREA = 1e-9  # twice a face's, the longest side being 1
KEPT_OVERLAP, LEAST_OVERLAP = (
    0.5,
    0.25,
)  # IoU of outlines: the mesh stays where it is; it is no mesh of that picture
OUTLINE_PX = 96
SHARED = (
    0.05  # of the texels, or of the surface: so much may be shared, or have none, of a texture that is kept
)
NO_TEXELS = 1e-3  # a face of fewer has none
FAR = 1000.0  # of its size from the origin: there, 32 bits leave a mesh a few thousand places along a side


def load_mesh(path: str | Path, texture_size: int = 1024) -> Textured:
    """read_mesh's, without its notes."""
    return read_mesh(path, texture_size)[0]


def read_mesh(path: str | Path, texture_size: int = 1024) -> tuple[Textured, tuple[str, ...]]:
    """(a mesh file with one square texture: its own where each face has texels of its own there, else one of
    texture_size that is painted anew; what the user should know of the reading, a line each).

    .glb, .gltf, .obj, .ply, .stl; several materials, repeated and shared textures, colour factors, colours of vertices
    and faces. So far from the origin that floats cannot tell its vertices apart, it is moved there. Raises UserError.
    """
    if not Path(path).is_file():
        raise UserError(
            f"no mesh {path}; run main_propeller.py first, or give mesh=FILE.glb, .obj, .ply or .stl"
        )
    try:
        parts, notes = parts_of(Path(path))
    except UserError:
        raise
    except Exception as error:  # a reader of many formats, each with errors of its own
        raise UserError(
            f"{path} is not a mesh that can be read: {str(error) or type(error).__name__}"
        ) from error
    parts, moved = _near_origin(parts)
    if moved:
        notes.append(f"{path} lies too far from the origin for its size: the result stands at the origin")
    if len(parts) == 1 and parts[0].plain:
        (part,) = parts
        assert part.image is not None and part.uvs is not None
        mesh, faces = _merged(part.vertices, part.faces)
        uvs = torch.from_numpy(np.array(part.uvs, dtype=np.float32))
        own = Textured(mesh, uvs, faces, torch.from_numpy(_square(part.image)))
        if _once_over(own):
            return own, tuple(notes)
        notes.append(f"faces of {path} share parts of its texture: it is painted anew, at {texture_size} px")
    return _repainted(parts, texture_size), tuple(notes)


def _once_over(textured: Textured) -> bool:
    """Whether each face has texels of its own: none that another has, or none at all."""
    side, mesh = len(textured.texture), textured.mesh
    uvs, corners = textured.uvs[textured.uv_faces].double(), mesh.vertices[mesh.faces].double()
    texels = _areas(F.pad(uvs, (0, 1))) * side**2
    areas = _areas(corners)
    held = len(texel_surface(textured.uvs, textured.uv_faces, side)[0])
    without = float(areas[texels < NO_TEXELS].sum() / areas.sum().clamp_min(1e-30))
    return float(texels.sum()) <= (1 + SHARED) * held + 1 and without <= SHARED


def _areas(corners: Tensor) -> Tensor:
    """[n] of triangles [n, 3, 3]."""
    return torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=1) / 2


def _near_origin(parts: Sequence[Part]) -> tuple[list[Part], bool]:
    """The parts in 32 bits, and whether they were moved to the origin for that."""
    points = np.concatenate([part.vertices for part in parts])
    low, high = points.min(0), points.max(0)
    far = bool(np.abs(low + high).max() / 2 > FAR * (high - low).max())
    shift = (low + high) / 2 if far else np.zeros(3)
    return [replace(part, vertices=(part.vertices - shift).astype(np.float32)) for part in parts], far


def _square(image: Image.Image) -> Array:
    """[T, T, 3] of a picture of any shape: texture coordinates are shares of its sides."""
    image = eight_bit(image).convert("RGB")
    side = min(max(image.size), MOST_TEXELS)
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.array(image, dtype=np.float32) / 255


def _merged(vertices: Array, faces: Array) -> tuple[Mesh, Tensor]:
    """(mesh, faces as they were): vertices that a seam doubled are one again, so that normals are smooth across it, and
    those of no face are gone."""
    used = np.unique(faces)
    points, index = np.unique(vertices[used], axis=0, return_inverse=True)
    again = np.zeros(len(vertices), np.int64)
    again[used] = index.reshape(-1)
    return Mesh(torch.from_numpy(points), torch.from_numpy(again[faces])), torch.from_numpy(faces)


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
        factors.append(decoded(_sampled(part.image, between(part.uvs), size)))
    if part.vertex_colours is not None:
        factors.append(decoded(between(part.vertex_colours)))
    if part.face_colours is not None:
        factors.append(decoded(part.face_colours[face]))
    if not factors:
        return np.full((len(face), 3), GREY, np.float32)
    linear = np.ones((len(face), 3))
    for factor in factors:
        linear = linear * factor
    return encoded(linear).astype(np.float32)


def _sampled(image: Image.Image, uv: Array, size: int) -> Array:
    """[n, 3] of a picture that repeats in both directions, bilinear; far finer than `size` it is shrunk before."""
    image = eight_bit(image).convert("RGB")
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
    corners = (points[textured.mesh.faces] - low) / longest
    across = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    if float(across.norm(dim=1).max()) < LEAST_AREA:
        raise UserError(f"{path} has no surface: the corners of each of its faces stand in one line")
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
