"""The pieces of a mesh file, each with what it says of its colours; several formats, by trimesh.

n vertices, m faces. Colours are sRGB in 0..1; glTF's factors and vertex colours are linear.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image

from gs_propeller.mesh.formats.gltf import in_plain_words
from gs_propeller.mesh.formats.mtl import pictures_of

Array = NDArray[Any]
SLACK = 1e-3  # so far outside 0..1 a texture coordinate is still rounding


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


def parts_of(path: Path) -> tuple[list[Part], list[str]]:
    """(what has faces, in the world's coordinates, 64 bits; what of its look is not read, a line each). Raises what
    trimesh does, UserError, and ValueError where there are no faces."""
    linear = path.suffix.lower() in (".glb", ".gltf")
    pictures, notes = pictures_of(path) if path.suffix.lower() == ".obj" else (None, [])
    if linear:
        plain = BytesIO(in_plain_words(path))
        loaded = trimesh.load(plain, file_type="glb", process=False)
    else:
        loaded = trimesh.load(path, process=False)
    pieces = _pieces(loaded)
    parts = [_part(piece, at, linear, pictures) for piece, at in pieces
             if isinstance(piece, trimesh.Trimesh) and len(piece.faces)]  # fmt: skip
    if not parts:
        if any(isinstance(piece, trimesh.PointCloud) for piece, _ in pieces):
            raise ValueError("it has points and no faces; of a splat, give the .glb beside it")
        raise ValueError("it has no faces")
    for part in parts:
        if not np.isfinite(part.vertices).all():
            raise ValueError("some of its vertices are not finite")
        if part.uvs is not None and not np.isfinite(part.uvs).all():
            raise ValueError("some of its texture coordinates are not finite")
    if left_out := sorted({what for piece, _ in pieces for what in _left_out(piece)}):
        notes.append(f"of {path} is left out: {', '.join(left_out)}")
    return parts, notes


def _pieces(loaded: Any) -> list[tuple[Any, Array]]:
    """(geometry, its place in the world [4, 4]) of all that a file shows. trimesh's own dump would lose the colours of
    vertices beside a material."""
    if not isinstance(loaded, trimesh.Scene):
        return [(loaded, np.eye(4))]
    found = (loaded.graph[node] for node in loaded.graph.nodes_geometry)
    return [(loaded.geometry[name], np.asarray(at, np.float64)) for at, name in found]


def _left_out(piece: Any) -> list[str]:
    """What of a piece's look the second stage does not keep."""
    material = getattr(getattr(piece, "visual", None), "material", None)
    found = []
    if getattr(material, "alphaMode", None) in ("MASK", "BLEND"):
        found.append("transparency")
    if (getattr(material, "metallicFactor", 0) or 0) > 0.5 or getattr(
        material, "metallicRoughnessTexture", None
    ):
        found.append("metal")
    if getattr(material, "emissiveTexture", None):
        found.append("glow")
    return found


def _part(piece: trimesh.Trimesh, at: Array, linear: bool, pictures: dict[str, Path] | None) -> Part:
    """at [4, 4]: its place in the world; pictures: of an .obj's materials, by name, all that count of these."""
    visual, material = piece.visual, getattr(piece.visual, "material", None)
    vertices, faces = np.array(piece.vertices, dtype=np.float64), np.array(piece.faces, dtype=np.int64)
    if faces.max() >= len(vertices) or faces.min() < 0:
        raise ValueError("a face names a vertex that is not there")
    if not np.array_equal(at, np.eye(4)):
        vertices = vertices @ at[:3, :3].T + at[:3, 3]
        faces = (
            faces[:, ::-1].copy() if np.linalg.det(at[:3, :3]) < 0 else faces
        )  # a mirror turns them inside out
    found = Part(vertices, faces)
    painted = getattr(visual, "vertex_attributes", {}).get("color")
    if painted is None:
        painted = piece.vertex_attributes.get("color")  # of an .obj
    colours = None if painted is None else _colours(painted)
    if material is None:
        kind = getattr(visual, "kind", None)
        if kind == "face":
            shades = _colours(visual.face_colors)
            return replace(found, face_colours=encoded(shades) if linear else shades)
        if kind == "vertex" and colours is None:
            colours = _colours(visual.vertex_colors)
    if colours is not None:
        found = replace(found, vertex_colours=encoded(colours) if linear else colours)
    if material is None:
        return found
    uvs, image = getattr(visual, "uv", None), getattr(material, "baseColorTexture", None)
    image = getattr(material, "image", None) if image is None else image
    if pictures is not None:  # where there is none, trimesh makes one up
        named = pictures.get(getattr(material, "name", None) or "")
        image = None if named is None else Image.open(named)
    factor = getattr(material, "baseColorFactor", None)
    if not hasattr(material, "baseColorFactor") and image is None and _says_colour(material):
        factor = material.diffuse  # of an .obj: beside a picture, whatever the exporter left there
    if factor is not None:
        factor = _colours(np.asarray(factor)[None])[0]
        factor = factor if linear else decoded(factor)
    return replace(
        found,
        uvs=None if uvs is None else np.array(uvs, dtype=np.float32),
        image=image if uvs is not None else None,
        factor=factor,
    )


def _says_colour(material: Any) -> bool:
    """Whether an .obj's material has a colour of its own: where it has none, trimesh makes one up."""
    return any(key in getattr(material, "kwargs", {}) for key in ("kd", "Kd"))


def _colours(values: Any) -> Array:
    """[n, 3] in 0..1 of bytes, 16-bit numbers or floats."""
    values = np.asarray(values)
    scale = float(np.iinfo(values.dtype).max) if values.dtype.kind in "ui" else 1.0
    return (values[:, :3] / scale).astype(np.float32)


def encoded(linear: Array) -> Array:
    """sRGB of linear light."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clip(1e-9) ** (1 / 2.4) - 0.055).clip(
        0, 1
    )


def decoded(srgb: Array) -> Array:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
