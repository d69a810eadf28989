"""glTF files in the few words of the format that trimesh reads: what it would pass over is neither lost nor wrong.

Texture coordinates become those that the base colour is looked up at, moved and turned as KHR_texture_transform says;
these, positions and colours become floats where they are whole numbers. What cannot be put so is refused by name.
n vertices.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gs_propeller.base.errors import UserError

Array = NDArray[Any]
Json = dict[str, Any]
NUMBERS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
FLOAT, FANS = 5126, 6
TRANSFORM, WEBP = "KHR_texture_transform", "EXT_texture_webp"
PACKED = ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_meshopt_compression")
# extensions of what holds numbers and pictures, and of how often a mesh stands there
LOST = (*PACKED, "KHR_texture_basisu", "EXT_mesh_gpu_instancing")
MAGIC, JSON_CHUNK, BINARY_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942


def in_plain_words(path: Path) -> bytes:
    """A .glb of a .glb or .gltf, with all that it keeps in files of its own. Raises UserError for what trimesh would
    leave out, ValueError, KeyError, IndexError or struct.error where the file is broken."""
    header, inside = _opened(path)
    lost = [name for name in LOST if name in header.get("extensionsUsed", [])]
    if lost:
        raise _left_out(path, lost[0])
    data = _Data(header, path, inside)
    for mesh in header.get("meshes", []):
        for primitive in mesh["primitives"]:
            if primitive.get("mode") == FANS:
                raise _left_out(path, "triangle fans")
            _plainly(primitive, header, data)
    for texture in header.get("textures", []):
        if WEBP in texture.get("extensions", {}):
            texture["source"] = texture["extensions"][WEBP]["source"]
    for image in header.get("images", []):
        if "uri" in image:
            image["bufferView"] = data.view(data.beside(image.pop("uri"), "its colours"))
    for material in header.get("materials", []):
        _check_readable(material, header, data)
    header["buffers"] = [{"byteLength": len(data.bytes)}]
    return _closed(header, bytes(data.bytes))


def _left_out(path: Path, what: str) -> UserError:
    return UserError(f"{path} has {what}, which is not read; export it as glTF 2.0 without that, or as .obj")


def _opened(path: Path) -> tuple[Json, bytes]:
    """(the JSON, the binary chunk) of a file."""
    raw = path.read_bytes()
    if raw[:4] != struct.pack("<I", MAGIC):
        try:
            return json.loads(raw), b""
        except ValueError as error:
            raise ValueError("it does not begin as a glTF file does") from error
    if len(raw) < (whole := struct.unpack_from("<I", raw, 8)[0]):
        raise ValueError(f"it is cut off: {len(raw)} bytes of {whole}")
    header, inside, at = {}, b"", 12
    while at + 8 <= len(raw):
        size, kind = struct.unpack_from("<II", raw, at)
        chunk = raw[at + 8 : at + 8 + size]
        if kind == JSON_CHUNK:
            header = json.loads(chunk)
        elif kind == BINARY_CHUNK:
            inside = chunk
        at += 8 + size
    return header, inside


def _closed(header: Json, inside: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    inside += bytes(-len(inside) % 4)
    body = (
        struct.pack("<II", len(text), JSON_CHUNK)
        + text
        + struct.pack("<II", len(inside), BINARY_CHUNK)
        + inside
    )
    return struct.pack("<III", MAGIC, 2, 12 + len(body)) + body


class _Data:
    """All buffers of a file as one, to which numbers can be added."""

    def __init__(self, header: Json, path: Path, inside: bytes) -> None:
        self.header, self.path, self.bytes = header, path, bytearray()
        starts = []
        for buffer in header.get("buffers", []):
            starts.append(len(self.bytes))
            self.bytes += self.beside(buffer["uri"], "its numbers") if "uri" in buffer else inside
            self.bytes += bytes(-len(self.bytes) % 4)
        for view in header.get("bufferViews", []):
            view["byteOffset"] = view.get("byteOffset", 0) + starts[view["buffer"]]
            view["buffer"] = 0

    def beside(self, uri: str, what: str) -> bytes:
        """What a file or the uri itself holds. Raises UserError where it is not there, saying what that is."""
        if uri.startswith("data:"):
            return base64.b64decode(uri.split(",", 1)[1])
        file = self.path.parent / unquote(uri).replace("\\", "/")
        if not file.is_file():
            raise UserError(f"{self.path} keeps {what} in {file}, which is not there; put it beside the mesh")
        return file.read_bytes()

    def view(self, raw: bytes) -> int:
        """The number of a new view of these bytes."""
        views = self.header.setdefault("bufferViews", [])
        self.bytes += bytes(-len(self.bytes) % 4)
        views.append({"buffer": 0, "byteOffset": len(self.bytes), "byteLength": len(raw)})
        self.bytes += raw
        return len(views) - 1

    def numbers(self, accessor: Json) -> Array:
        """[n, w] float32 of one accessor."""
        if "sparse" in accessor:
            raise _left_out(self.path, "sparse accessors")
        view = self.header["bufferViews"][accessor["bufferView"]]
        kind, width = np.dtype(NUMBERS[accessor["componentType"]]), WIDTHS[accessor["type"]]
        start = view["byteOffset"] + accessor.get("byteOffset", 0)
        strides = view.get("byteStride", kind.itemsize * width), kind.itemsize
        raw: Array = np.ndarray((accessor["count"], width), kind, self.bytes, start, strides)
        values = raw.astype(np.float32)
        return (values / np.iinfo(kind).max).clip(-1) if accessor.get("normalized") else values

    def add(self, values: Array) -> int:
        """The number of a new accessor of float32 [n, w]."""
        accessors, view = self.header["accessors"], self.view(np.ascontiguousarray(values, "<f4").tobytes())
        kind = next(name for name, width in WIDTHS.items() if width == values.shape[1])
        shape = {"componentType": FLOAT, "count": len(values), "type": kind}
        if kind == "VEC3":  # positions want their box
            shape |= {"min": values.min(0).tolist(), "max": values.max(0).tolist()}
        accessors.append({"bufferView": view, **shape})
        return len(accessors) - 1


def _plainly(primitive: Json, header: Json, data: _Data) -> None:
    """The primitive's positions, colours and texture coordinates as trimesh reads them."""
    attributes, accessors = primitive["attributes"], header["accessors"]
    looked_up = _looked_up(primitive, header)
    moved = looked_up.get("extensions", {}).get(TRANSFORM, {})
    uvs = f"TEXCOORD_{moved.get('texCoord', looked_up.get('texCoord', 0))}"
    if uvs != "TEXCOORD_0" or moved:
        if uvs not in attributes:
            attributes.pop("TEXCOORD_0", None)
        else:
            values = data.numbers(accessors[attributes[uvs]])
            attributes["TEXCOORD_0"] = data.add(_transformed(values, moved))
    for name in ("POSITION", "TEXCOORD_0", "COLOR_0"):
        if name in attributes:
            accessor = accessors[attributes[name]]
            if accessor["componentType"] != FLOAT or "sparse" in accessor:
                attributes[name] = data.add(data.numbers(accessor))
    if "indices" in primitive and "sparse" in accessors[primitive["indices"]]:
        raise _left_out(data.path, "sparse accessors")


def _looked_up(primitive: Json, header: Json) -> Json:
    """How the base colour's texture is said to be looked up; empty where there is none."""
    if "material" not in primitive:
        return {}
    return _colours_of(header["materials"][primitive["material"]])


def _colours_of(material: Json) -> Json:
    """What a material says of its base colour's texture; empty where it has none."""
    found = material.get("pbrMetallicRoughness", {}).get("baseColorTexture", {})
    return found  # type: ignore[no-any-return]


def _check_readable(material: Json, header: Json, data: _Data) -> None:
    """Raises UserError where the picture of a material's colours cannot be read."""
    said = _colours_of(material)
    if not said:
        return
    view = header["bufferViews"][header["images"][header["textures"][said["index"]]["source"]]["bufferView"]]
    begin = view["byteOffset"]
    try:
        with Image.open(BytesIO(data.bytes[begin : begin + view["byteLength"]])):
            pass
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{data.path} has a picture of its colours that cannot be read: {error}") from error


def _transformed(uvs: Array, moved: Json) -> Array:
    """[n, 2] as KHR_texture_transform moves them: scaled, turned counter-clockwise, shifted."""
    turn = moved.get("rotation", 0.0)
    x, y = (uvs * np.asarray(moved.get("scale", (1.0, 1.0)), np.float32)).T
    turned = np.stack([math.cos(turn) * x + math.sin(turn) * y, math.cos(turn) * y - math.sin(turn) * x], 1)
    return turned + np.asarray(moved.get("offset", (0.0, 0.0)), np.float32)
