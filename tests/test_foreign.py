"""Meshes of other programs: every way to say a colour, any scale and place, and what the second stage makes of it."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from trimesh.visual import ColorVisuals, TextureVisuals
from trimesh.visual.material import PBRMaterial, SimpleMaterial

from gs_propeller.base.camera import orbit
from gs_propeller.base.errors import UserError
from gs_propeller.mesh.foreign import Frame, load_mesh, placed, read_mesh
from gs_propeller.mesh.io import save_obj
from gs_propeller.mesh.surface import Mesh, from_trimesh
from gs_propeller.mesh.texture import Reference, Textured, shade, unwrap

CAMERA = orbit([0.0], [0.0], 2.0, math.radians(49.1))
RED, BLUE = (200, 40, 30), (20, 60, 220)


def _plane(x: float = 0.0) -> trimesh.Trimesh:
    """A unit square that looks at the input camera, v up."""
    points = np.array([[x - 0.5, -0.5, 0], [x + 0.5, -0.5, 0], [x + 0.5, 0.5, 0], [x - 0.5, 0.5, 0]])
    return trimesh.Trimesh(points, [[0, 1, 2], [0, 2, 3]], process=False)


UV = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float64)


def _halves(width: int = 64, height: int = 64) -> Image.Image:
    """Red on the left, blue on the right; the upper quarter green."""
    table = np.empty((height, width, 3), np.uint8)
    table[:, : width // 2], table[:, width // 2 :] = RED, BLUE
    table[: height // 4] = (30, 180, 40)
    return Image.fromarray(table)


def _seen(textured: Textured, x: float, y: float) -> list[int]:
    """The colour at a point of the plane, as the input camera sees it."""
    image = shade(textured, CAMERA, 128)[0][0]
    pixels = CAMERA.focal_px(128) / 2.0
    at = image[:, round(63.5 - y * pixels), round(63.5 + x * pixels)]
    return (at * 255).round().int().tolist()


def _near(colour: list[int], wanted: tuple[int, int, int], slack: int = 3) -> bool:
    return max(abs(a - b) for a, b in zip(colour, wanted, strict=True)) <= slack


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_a_texture_of_any_shape(kind: str, tmp_path: Path) -> None:
    plane = _plane()
    material = (
        PBRMaterial(baseColorTexture=_halves(256, 64)) if kind == "glb" else SimpleMaterial(_halves(256, 64))
    )
    plane.visual = TextureVisuals(UV, material)
    plane.export(tmp_path / f"a.{kind}")
    textured = load_mesh(tmp_path / f"a.{kind}", 128)
    assert textured.texture.shape == (256, 256, 3)  # its own, made square
    assert _near(_seen(textured, -0.25, 0), RED) and _near(_seen(textured, 0.25, 0), BLUE)
    assert _near(_seen(textured, 0.25, 0.4), (30, 180, 40))


def test_texture_coordinates_repeat(tmp_path: Path) -> None:
    plane = _plane()
    plane.visual = TextureVisuals(UV * 2 - 1, PBRMaterial(baseColorTexture=_halves()))
    plane.export(tmp_path / "a.glb")
    textured = load_mesh(tmp_path / "a.glb", 256)
    for x, colour in ((-0.375, RED), (-0.125, BLUE), (0.125, RED), (0.375, BLUE)):
        for y in (-0.3, 0.2):
            assert _near(_seen(textured, x, y), colour)
    assert _near(_seen(textured, -0.375, -0.05), (30, 180, 40))


def _srgb(linear: float) -> int:
    return round(255 * (1.055 * linear ** (1 / 2.4) - 0.055))


def test_several_materials_factors_and_vertex_colours(tmp_path: Path) -> None:
    """Squares side by side: a texture, a factor alone (linear in glTF), colours of vertices, and none at all."""
    scene = trimesh.Scene()
    first, second, third, fourth = (_plane(x).apply_scale(0.5) for x in (-0.0, 0.0, 0.0, 0.0))
    first.visual = TextureVisuals(UV, PBRMaterial(baseColorTexture=_halves()))
    second.visual = TextureVisuals(UV, PBRMaterial(baseColorFactor=[0.5, 0.25, 0.125, 1.0]))
    third.visual = ColorVisuals(third, vertex_colors=np.tile([51, 102, 204, 255], (4, 1)))
    for piece, x, y in (
        (first, -0.25, 0.25),
        (second, 0.25, 0.25),
        (third, -0.25, -0.25),
        (fourth, 0.25, -0.25),
    ):
        scene.add_geometry(piece, transform=trimesh.transformations.translation_matrix([x, y, 0]))
    scene.export(tmp_path / "a.glb")
    textured = load_mesh(tmp_path / "a.glb", 256)
    assert len(textured.mesh.faces) == 8
    assert _near(_seen(textured, -0.375, 0.2), RED) and _near(_seen(textured, -0.125, 0.2), BLUE)
    assert _near(_seen(textured, 0.25, 0.25), (_srgb(0.5), _srgb(0.25), _srgb(0.125)))
    assert _near(_seen(textured, -0.25, -0.25), (_srgb(0.2), _srgb(0.4), _srgb(0.8)))
    seen = _seen(textured, 0.25, -0.25)
    assert seen[0] == seen[1] == seen[2] > 100


def test_a_factor_multiplies_the_texture_in_linear_light(tmp_path: Path) -> None:
    plane = _plane()
    white = Image.new("RGB", (8, 8), (255, 255, 255))
    plane.visual = TextureVisuals(
        UV, PBRMaterial(baseColorTexture=white, baseColorFactor=[0.5, 1.0, 0.25, 1.0])
    )
    plane.export(tmp_path / "a.glb")
    assert _near(_seen(load_mesh(tmp_path / "a.glb", 64), 0, 0), (_srgb(0.5), 255, _srgb(0.25)))


@pytest.mark.parametrize("kind", ["ply", "stl", "obj", "faces.ply"])
def test_meshes_without_texture_coordinates(kind: str, tmp_path: Path) -> None:
    plane = _plane()
    if kind in ("ply", "obj"):
        plane.visual = ColorVisuals(plane, vertex_colors=np.tile([*RED, 255], (4, 1)))
    elif kind == "faces.ply":
        plane.visual = ColorVisuals(plane, face_colors=np.array([[*RED, 255], [*BLUE, 255]]))
    plane.export(tmp_path / f"a.{kind}")
    textured = load_mesh(tmp_path / f"a.{kind}", 64)
    assert textured.texture.shape == (64, 64, 3) and len(textured.mesh.vertices) == 4
    assert _near(_seen(textured, 0.3, -0.2), (178, 178, 178) if kind == "stl" else RED)
    if kind == "faces.ply":
        assert _near(_seen(textured, -0.3, 0.2), BLUE)


def _bowl() -> Textured:
    """Something whose outline has a size and a place: a cone on a box."""
    cone = trimesh.creation.cone(0.5, 0.8).apply_transform(
        trimesh.transformations.rotation_matrix(-math.pi / 2, [1, 0, 0])
    )
    box = trimesh.creation.box([0.4, 0.6, 0.4]).apply_translation([0, -0.3, 0])
    mesh = from_trimesh(trimesh.util.concatenate([cone, box]))
    return Textured(mesh, *unwrap(mesh, 64), torch.full((64, 64, 3), 0.4))


def _reference(textured: Textured, elevation: float = 0.0) -> Reference:
    camera = orbit([0.0], [elevation], 2.0, math.radians(49.1))
    image, mask = shade(textured, camera, 128)
    return Reference(image, mask, camera)


@pytest.mark.parametrize("elevation", [0.0, 0.5])
@pytest.mark.parametrize("scale", [0.01, 1.0, 120.0])
def test_any_scale_and_place_finds_the_picture(scale: float, elevation: float) -> None:
    here = _bowl()
    reference = _reference(here, elevation)
    away = Frame(1 / scale, (-3.0 * scale, 2.0 * scale, 7.0 * scale)).back(here)
    frame = placed(away, reference, "a.glb")
    found = frame.into(away)
    seen = shade(found, reference.camera, 128)[1]
    overlap = float(torch.minimum(seen, reference.mask).sum() / torch.maximum(seen, reference.mask).sum())
    assert overlap > 0.9  # measured 0.97 and more: the mask is pixels
    again = frame.back(found).mesh.vertices
    assert torch.allclose(again, away.mesh.vertices, rtol=1e-6, atol=1e-5 * scale)


def test_what_fits_stays_as_it_is() -> None:
    here = _bowl()
    assert placed(here, _reference(here), "a.glb") == Frame()
    assert Frame().into(here) is here and Frame().back(here) is here
    assert placed(here, None, "a.glb") == Frame()
    away = Frame(0.02, (50.0, 0.0, 0.0)).back(here)
    found = placed(away, None, "a.glb").into(away).mesh.vertices
    assert float((found.amax(0) - found.amin(0)).max()) == pytest.approx(1.0)
    assert float((found.amax(0) + found.amin(0)).abs().max()) < 1e-5


def test_another_object_is_refused() -> None:
    here, wanted = _bowl(), torch.zeros(1, 1, 128, 128)
    wanted[..., 60:64, 10:118] = 1.0
    with pytest.raises(UserError, match=r"a\.glb and the picture hardly overlap"):
        placed(here, Reference(torch.ones(1, 3, 128, 128), wanted, CAMERA), "a.glb")


def _rewritten(path: Path, change: Callable[[dict[str, Any]], None], more: bytes = b"") -> None:
    """A .glb with its JSON changed, and bytes added to its buffer."""
    raw = path.read_bytes()
    size = struct.unpack_from("<I", raw, 12)[0]
    header, inside = json.loads(raw[20 : 20 + size]), raw[28 + size :] + more
    change(header)
    header["buffers"][0]["byteLength"] = len(inside)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    body = (
        struct.pack("<II", len(text), 0x4E4F534A)
        + text
        + struct.pack("<II", len(inside), 0x004E4942)
        + inside
    )
    path.write_bytes(struct.pack("<III", 0x46546C67, 2, 12 + len(body)) + body)


def _textured_plane(path: Path) -> None:
    plane = _plane()
    plane.visual = TextureVisuals(UV, PBRMaterial(baseColorTexture=_halves()))
    plane.export(path)


def _base_colour(header: dict[str, Any]) -> dict[str, Any]:
    return header["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"]  # type: ignore[no-any-return]


def test_texture_coordinates_of_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.glb"
    _textured_plane(path)
    own = np.array(
        [[0, 65535], [65535, 65535], [65535, 0], [0, 0]], "<u2"
    ).tobytes()  # glTF counts from the top

    def change(header: dict[str, Any]) -> None:
        start = header["buffers"][0]["byteLength"]
        start += -start % 4
        header["bufferViews"].append({"buffer": 0, "byteOffset": start, "byteLength": len(own)})
        header["accessors"].append(
            {"bufferView": len(header["bufferViews"]) - 1, "componentType": 5123, "normalized": True, "count": 4,
             "type": "VEC2"}
        )  # fmt: skip
        header["meshes"][0]["primitives"][0]["attributes"]["TEXCOORD_0"] = len(header["accessors"]) - 1

    _rewritten(path, change, own)
    textured = load_mesh(path, 64)
    assert _near(_seen(textured, -0.25, 0), RED) and _near(_seen(textured, 0.25, 0), BLUE)
    assert _near(_seen(textured, 0.25, 0.4), (30, 180, 40))


def test_a_texture_is_moved_as_its_transform_says(tmp_path: Path) -> None:
    path = tmp_path / "a.glb"
    _textured_plane(path)
    half = {"offset": [0.5, 0.0], "scale": [1.0, 1.0]}
    _rewritten(
        path, lambda header: _base_colour(header).update(extensions={"KHR_texture_transform": half})
    )  # the halves change places
    textured = load_mesh(path, 128)
    assert _near(_seen(textured, -0.25, -0.1), BLUE) and _near(_seen(textured, 0.25, -0.1), RED)

    _textured_plane(path)
    turned = {"rotation": math.pi / 2, "offset": [0.0, 1.0]}  # of the picture, clockwise: its left is on top
    _rewritten(path, lambda header: _base_colour(header).update(extensions={"KHR_texture_transform": turned}))
    textured = load_mesh(path, 128)
    assert _near(_seen(textured, -0.1, 0.3), RED) and _near(_seen(textured, -0.1, -0.3), BLUE)
    assert _near(_seen(textured, 0.45, 0.0), (30, 180, 40))


def test_a_second_set_of_texture_coordinates(tmp_path: Path) -> None:
    path = tmp_path / "a.glb"
    _textured_plane(path)

    def change(header: dict[str, Any]) -> None:
        attributes = header["meshes"][0]["primitives"][0]["attributes"]
        attributes["TEXCOORD_1"] = attributes.pop("TEXCOORD_0")
        _base_colour(header)["texCoord"] = 1

    _rewritten(path, change)
    textured = load_mesh(path, 64)
    assert _near(_seen(textured, -0.25, 0), RED) and _near(_seen(textured, 0.25, 0), BLUE)


@pytest.mark.parametrize("what", ["KHR_draco_mesh_compression", "EXT_mesh_gpu_instancing", "fans"])
def test_what_is_not_read_of_a_gltf_is_named(what: str, tmp_path: Path) -> None:
    path = tmp_path / "a.glb"
    _textured_plane(path)

    def change(header: dict[str, Any]) -> None:
        if what == "fans":
            header["meshes"][0]["primitives"][0]["mode"] = 6
        else:
            header["extensionsUsed"] = [what]

    _rewritten(path, change)
    with pytest.raises(UserError, match=what):
        load_mesh(path)


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_colours_of_vertices_beside_a_material(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "glb":
        plane = _plane()
        white = PBRMaterial(baseColorTexture=Image.new("RGB", (8, 8), (255, 255, 255)))
        plane.visual = TextureVisuals(UV, white)
        plane.visual.vertex_attributes["color"] = np.tile(np.array([128, 64, 32, 255], np.uint8), (4, 1))
        plane.export(path)
        wanted = tuple(_srgb(x / 255) for x in (128, 64, 32))
    else:
        (tmp_path / "a.mtl").write_text("newmtl a\nKd 1 1 1\n")
        corners = "".join(f"v {x} {y} 0 0.5 0.25 0.125\n" for x, y in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5)))
        path.write_text(f"mtllib a.mtl\n{corners}usemtl a\nf 1 2 3\n")
        wanted = (128, 64, 32)
    assert _near(_seen(load_mesh(path, 64), 0.3, -0.2), wanted)  # type: ignore[arg-type]


def test_shared_texels_are_painted_anew(tmp_path: Path) -> None:
    """A box with all of the picture on every side, and one whose sides are each one texel of a palette."""
    box = trimesh.creation.box([0.8, 0.8, 0.8])
    corners = box.faces.reshape(-1)
    points = box.vertices[corners]
    split = trimesh.Trimesh(points, np.arange(len(corners)).reshape(-1, 3), process=False)
    for name, uvs in (("block", np.tile(UV[:3], (12, 1))), ("palette", np.full((36, 2), 0.25))):
        split.visual = TextureVisuals(uvs, PBRMaterial(baseColorTexture=_halves()))
        split.export(tmp_path / f"{name}.glb")
        textured, notes = read_mesh(tmp_path / f"{name}.glb", 128)
        assert textured.texture.shape == (128, 128, 3) and "painted anew" in " ".join(notes)
    assert _near(_seen(textured, 0.1, -0.1), RED)


def test_a_mesh_of_a_centimetre_keeps_its_colours(tmp_path: Path) -> None:
    ball = trimesh.creation.icosphere(3, 0.005)
    colours = np.where(ball.vertices[:, :1] > 0, [[*RED, 255]], [[*BLUE, 255]])
    ball.visual = ColorVisuals(ball, vertex_colors=colours)
    ball.export(tmp_path / "a.ply")
    textured = load_mesh(tmp_path / "a.ply", 128)
    frame = placed(textured, None, "a")
    seen = frame.into(textured)
    assert _near(_seen(seen, 0.3, 0.0), RED, 6) and _near(_seen(seen, -0.3, 0.0), BLUE, 6)
    save_obj(tmp_path / "b.obj", textured)
    again = load_mesh(tmp_path / "b.obj").mesh
    assert np.array_equal(
        np.unique(again.vertices.numpy(), axis=0), np.unique(textured.mesh.vertices.numpy(), axis=0)
    )


def test_far_from_the_origin_and_vertices_of_no_face(tmp_path: Path) -> None:
    lines = [
        f"v {500000 + x} {100 + y} {4649776 + z}" for x in (0, 0.01) for y in (0, 0.01) for z in (0, 0.01)
    ]
    faces = [[1, 2, 4], [1, 4, 3], [5, 7, 8], [5, 8, 6], [1, 5, 6], [1, 6, 2], [3, 4, 8], [3, 8, 7]]
    lines += [f"f {' '.join(map(str, face))}" for face in faces]
    (tmp_path / "a.obj").write_text("\n".join(lines) + "\n")
    textured, notes = read_mesh(tmp_path / "a.obj", 64)
    assert len(textured.mesh.vertices) == 8 and "too far from the origin" in notes[0]
    ball = trimesh.creation.icosphere(2, 0.5)
    stray = trimesh.Trimesh([*ball.vertices, [100, 0, 0]], ball.faces, process=False)
    stray.export(tmp_path / "b.ply")
    assert placed(load_mesh(tmp_path / "b.ply", 64), None, "b") == Frame()


def test_pictures_that_a_material_names(tmp_path: Path) -> None:
    corners = "v -.5 -.5 0\nv .5 -.5 0\nv .5 .5 0\nv -.5 .5 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
    (tmp_path / "a.obj").write_text(f"mtllib a.mtl\n{corners}usemtl skin\nf 1/1 2/2 3/3 4/4\n")
    _halves().save(tmp_path / "skin of it.png")
    for said in ("skin of it.png", ".\\skin of it.png", "-s 1 1 1 skin of it.png"):
        (tmp_path / "a.mtl").write_text(f"newmtl skin\nKd 1 1 1\nmap_Kd {said}\n")
        textured = load_mesh(tmp_path / "a.obj", 64)
        assert _near(_seen(textured, -0.25, 0), RED) and _near(_seen(textured, 0.25, 0), BLUE)
    (tmp_path / "a.mtl").write_text("newmtl skin\nmap_Kd none.png\n")
    with pytest.raises(UserError, match=r"none\.png, which is not there"):
        load_mesh(tmp_path / "a.obj")
    (tmp_path / "a.mtl").unlink()
    textured, notes = read_mesh(tmp_path / "a.obj", 64)
    assert _near(_seen(textured, 0, 0), (178, 178, 178)) and "a.mtl" in notes[0]


def test_what_a_file_of_broken_numbers_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.glb"
    plane = _plane()
    broken = UV.copy()
    broken[3, 1] = np.nan
    plane.visual = TextureVisuals(broken, PBRMaterial(baseColorTexture=_halves()))
    plane.export(path)
    with pytest.raises(UserError, match="texture coordinates are not finite"):
        load_mesh(path)
    _textured_plane(path)
    _rewritten(path, _far_index)
    with pytest.raises(UserError, match="names a vertex that is not there"):
        load_mesh(path)


def test_what_is_no_glb_or_cut_off_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.glb"
    _textured_plane(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=f"it is cut off: {len(whole) - 100} bytes of {len(whole)}"):
        load_mesh(path)
    for broken in (b"hello", b"", b"glTF"):
        path.write_bytes(broken)
        with pytest.raises(UserError, match="not a mesh that can be read"):
            load_mesh(path)


def _far_index(header: dict[str, Any]) -> None:
    """The positions are one fewer than the faces need."""
    attributes = header["meshes"][0]["primitives"][0]["attributes"]
    header["accessors"][attributes["POSITION"]]["count"] = 3


def test_grey_of_sixteen_bits_is_a_texture(tmp_path: Path) -> None:
    plane = _plane()
    deep = Image.fromarray(np.full((16, 16), 100 * 257, np.uint16))
    plane.visual = TextureVisuals(UV, PBRMaterial(baseColorTexture=deep))
    plane.export(tmp_path / "a.glb")
    assert _near(_seen(load_mesh(tmp_path / "a.glb"), 0, 0), (100, 100, 100))


def test_a_gltf_with_files_of_its_own(tmp_path: Path) -> None:
    plane = _plane()
    plane.visual = TextureVisuals(UV, PBRMaterial(baseColorTexture=_halves()))
    for name, data in trimesh.Scene(plane).export(file_type="gltf").items():
        (tmp_path / name).write_bytes(data)
    path = tmp_path / "model.gltf"
    header = json.loads(path.read_text())
    header["images"] = [{"uri": "its%20skin.png"}]
    path.write_text(json.dumps(header))
    with pytest.raises(UserError, match=r"its colours in .*its skin\.png, which is not there"):
        load_mesh(path)
    _halves().save(tmp_path / "its skin.png")
    textured = load_mesh(path, 64)
    assert _near(_seen(textured, -0.25, 0), RED) and _near(_seen(textured, 0.25, 0), BLUE)
    (tmp_path / "its skin.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="colours that cannot be read"):
        load_mesh(path)
    (tmp_path / header["buffers"][0]["uri"]).unlink()
    with pytest.raises(UserError, match="its numbers in"):
        load_mesh(path)


def test_a_mesh_without_a_surface_is_named() -> None:
    line = Textured(
        Mesh(torch.tensor([[0.0, 0, 0], [1, 1, 0], [2, 2, 0]]), torch.tensor([[0, 1, 2]])),
        torch.zeros(3, 2), torch.tensor([[0, 1, 2]]), torch.zeros(4, 4, 3),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"line.obj has no surface"):
        placed(line, None, "line.obj")
