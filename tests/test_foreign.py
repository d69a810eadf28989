"""Meshes of other programs: every way to say a colour, any scale and place, and what the second stage makes of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from trimesh.visual import ColorVisuals, TextureVisuals
from trimesh.visual.material import PBRMaterial, SimpleMaterial

from gs_propeller.base.camera import orbit
from gs_propeller.base.errors import UserError
from gs_propeller.mesh.foreign import Frame, load_mesh, placed
from gs_propeller.mesh.surface import from_trimesh
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
