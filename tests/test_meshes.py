"""Coloured meshes in the training stream: the folder of models, their pictures, and what varies of them."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.mesh import seen
from gs_propeller.base.camera import orbit
from guidance import POCKET
from guidance.pocket import captions, data, laws, meshes, model_captions, text_stream, textures, train
from guidance.pocket.families import make
from guidance.pocket.meshes import ColouredMesh
from guidance.pocket.objects import PALETTE
from guidance.pocket.render import FOV_Y_RAD, RADIUS, framed, on_white, views

UP = np.array([0.0, 1.0, 0.0])
CUBE_FACES = np.array(
    [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1], [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4],
     [1, 5, 7], [1, 7, 3]]
)  # fmt: skip


def _cube(half: float = 0.3, **changes: object) -> ColouredMesh:
    """Every face of its own colour; +x is faces 8, 9 of ... by their normals, whatever their winding."""
    corners = np.array([[x, y, z] for z in (-1, 1) for y in (-1, 1) for x in (-1, 1)], float) * half
    colours = np.repeat(np.random.default_rng(0).uniform(0.2, 0.9, (12, 1, 3)), 3, 1)
    made = ColouredMesh("pack/cube", 0, "a cube", corners, CUBE_FACES, colours, UP, 1.0)
    return replace(made, **changes)  # type: ignore[arg-type]


def _write(folder: Path, pack: str, names: list[str], splits: list[str]) -> None:
    cube = _cube(0.5)
    count, v, f = len(names), len(cube.points), len(cube.faces)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / f"{pack}.npz", names=np.array(names), split=np.array(splits), pack=np.array([pack] * count),
        vertex_start=np.arange(count + 1) * v, face_start=np.arange(count + 1) * f,
        vertices=np.tile(cube.points, (count, 1)).astype(np.float16),
        faces=np.tile(cube.faces, (count, 1)).astype(np.uint16),
        colors=np.tile((cube.colours * 255).astype(np.uint8), (count, 1, 1)),
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    _write(tmp_path / "models", "animals", ["Fox", "Old_Hen", "Cow"], ["train", "test", "train"])
    _write(tmp_path / "models" / "cc-by", "voxels", ["bot", "imp", "cat"], ["train", "validation", "test"])
    monkeypatch.setenv(meshes.FOLDER_VARIABLE, str(tmp_path / "models"))
    return tmp_path / "models"


def _nearest_hit(mesh: ColouredMesh, origin: np.ndarray, way: np.ndarray) -> np.ndarray | None:
    """The colour where a ray first meets a face (Moeller and Trumbore), plainly."""
    best, colour = math.inf, None
    for face, corners in zip(mesh.faces, mesh.colours, strict=True):
        a, b, c = mesh.points[face]
        p = np.cross(way, c - a)
        det = (b - a) @ p
        if abs(det) < 1e-12:
            continue
        s = origin - a
        u = (s @ p) / det
        q = np.cross(s, b - a)
        v, t = (way @ q) / det, ((c - a) @ q) / det
        if u >= 0 and v >= 0 and u + v <= 1 and 0 < t < best:
            best, colour = t, (1 - u - v) * corners[0] + u * corners[1] + v * corners[2]
    return colour


@pytest.mark.slow
def test_a_mesh_is_seen_as_rays_see_it() -> None:
    """Corner colours mixed over each face, the nearest one shown; ambient 1 leaves out the light."""
    rng = np.random.default_rng(1)
    mesh = _cube(colours=rng.uniform(0, 1, (12, 3, 3)))
    turn, lift, size = 0.7, 0.4, 16
    camera = orbit([turn], [lift], RADIUS, FOV_Y_RAD)
    image = views(mesh, camera, size, supersample=1)[0].double().numpy()
    w2c = camera.w2c[0].double().numpy()
    eye, half, compared = -w2c[:3, :3].T @ w2c[:3, 3], math.tan(FOV_Y_RAD / 2), 0
    for row in range(size):
        for col in range(size):
            x, y = ((col + 0.5) / size * 2 - 1) * half, ((row + 0.5) / size * 2 - 1) * half
            found = _nearest_hit(mesh, eye, w2c[:3, :3].T @ np.array([x, y, 1.0]))
            if (found is not None) != (image[3, row, col] > 0.5):
                continue  # an edge, where the two round differently
            if found is not None:
                assert np.abs(image[:3, row, col] - found).max() < 1e-4  # measured 3e-6
                compared += 1
    assert compared > 40


def test_both_sides_are_drawn_and_lit_alike() -> None:
    """The winding of a face decides nothing: a mesh turned inside out looks the same."""
    cube = _cube(ambient=0.3, light=np.array([0.6, 0.64, 0.48]))
    inside_out = replace(cube, faces=cube.faces[:, ::-1].copy(), colours=cube.colours[:, ::-1].copy())
    cameras = orbit([0.5, 2.0], [0.3, -0.2], RADIUS, FOV_Y_RAD)
    assert torch.allclose(views(cube, cameras, 32), views(inside_out, cameras, 32), atol=1e-6)


def test_the_side_to_the_light_is_brighter() -> None:
    grey = _cube(colours=np.full((12, 3, 3), 0.8), ambient=0.4, light=np.array([0.0, 0.0, 1.0]))
    front, back = (views(grey, orbit([a], [0.0], RADIUS, FOV_Y_RAD), 16)[0, 0, 8, 8] for a in (0.0, math.pi))
    assert float(front) == pytest.approx(0.8, abs=1e-5)
    assert float(back) == pytest.approx(0.4 * 0.8, abs=1e-5)  # half-Lambert is nought right behind


def test_a_texture_lies_on_the_faces_and_goes_with_them() -> None:
    image = np.zeros((8, 8, 3), np.float32)
    image[:, :4, 0] = 1.0  # its left half red
    mesh = _cube(0.4, texture=image, repeats=1.25, colours=np.ones((12, 3, 3)))
    seen = views(mesh, orbit([0.0], [0.0], RADIUS, FOV_Y_RAD), 64)[0]
    right, left = seen[0, 32, 40], seen[0, 32, 24]  # x in 0..0.4 is u in 0..0.5
    assert float(right) > 0.9
    assert float(left) < 0.1
    larger = views(mesh.moved(1.1, np.zeros(3)), orbit([0.0], [0.0], RADIUS, FOV_Y_RAD), 64)[0]
    assert float(larger[0, 32, 41]) > 0.9  # the texture grew with its cube: it did not slide
    assert float(larger[0, 32, 23]) < 0.1


def test_a_mesh_is_framed_as_other_objects_are() -> None:
    alpha = views(framed(_cube(0.7), 0.6, 0.2), orbit([0.6], [0.2], RADIUS, FOV_Y_RAD), 128)[0, 3] > 0.5
    rows, cols = torch.nonzero(alpha, as_tuple=True)
    spans = [int(x.max() - x.min() + 1) / 128 for x in (rows, cols)]
    assert abs(max(spans) - 0.8) < 0.03


def test_the_folder_is_read_by_split(folder: Path) -> None:
    assert meshes.keys(meshes.TRAIN) == ("animals/Fox", "animals/Cow", "voxels/bot")
    assert meshes.keys(meshes.VALIDATION) == ("voxels/imp",)
    assert meshes.keys(meshes.TEST) == ("animals/Old_Hen", "voxels/cat")
    mesh = meshes.read("voxels/bot")
    assert mesh.points.shape == (8, 3)
    assert np.abs(mesh.points).max() == 0.5
    assert mesh.colours.shape == (12, 3, 3)
    assert mesh.colours.max() <= 1.0


@pytest.mark.slow
def test_only_the_training_split_is_in_the_stream(folder: Path) -> None:
    shown = [data.member(5, i)[0] for i in range(24)]
    keys = {thing.key for thing in shown if isinstance(thing, ColouredMesh)}
    assert keys <= set(meshes.keys(meshes.TRAIN))
    share = (1 - sum(laws.FURTHER.values())) * 2 / 3  # two of three of what is no other family
    assert abs(len([t for t in shown if isinstance(t, ColouredMesh)]) - 24 * share) < 5
    held = data.held_out_models()
    assert [mesh.key for mesh, _ in held] == list(meshes.keys(meshes.TEST))
    assert np.array_equal(held[0][0].colours, meshes.read("animals/Old_Hen").colours)  # shown as it is
    assert [mesh.key for mesh, _ in data.held_out_models(1)] == ["animals/Old_Hen"]
    assert data.held_out_models(split=meshes.VALIDATION)[0][0].key == "voxels/imp"


def test_a_shard_of_both_worlds_is_a_function_of_its_number(folder: Path) -> None:
    one, again = data.shard(3, 4), data.shard(3, 4)
    assert torch.equal(one.images, again.images)
    assert torch.equal(one.poses, again.poses)
    assert not torch.equal(one.images, data.shard(4, 4).images)


@pytest.mark.slow
def test_without_the_folder_the_stream_is_procedural(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(meshes.FOLDER_VARIABLE, str(tmp_path))
    assert meshes.models_folder() is None
    assert meshes.keys(meshes.TRAIN) == ()
    assert data.held_out_models() == []
    assert not any(isinstance(data.member(5, i)[0], ColouredMesh) for i in range(6))
    with pytest.raises(KeyError, match="no folder of models"):
        meshes.read("animals/Fox")


def test_members_of_a_model_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretched, recoloured, lit otherwise; turned only where the pack has no front; a share bent out of shape."""
    bent = [meshes.varied(_cube(), np.random.default_rng(k)).points for k in range(12)]
    boxes = [np.allclose(np.abs(points), np.abs(points[0])) for points in bent]  # along the axes still
    assert 2 <= sum(boxes) <= 8
    monkeypatch.setattr(laws, "DEFORMED", 0.0)
    cube, rngs = _cube(), [np.random.default_rng(k) for k in range(12)]
    made = [meshes.lit(meshes.varied(cube, rng), rng) for rng in rngs]
    assert len({m.light.tobytes() for m in made}) == 12
    assert len({m.colours.tobytes() for m in made}) > 5
    assert all(np.allclose(np.abs(m.points), np.abs(m.points[0])) for m in made)  # boxes along the axes still
    assert all((m.colours >= 0).all() and (m.colours <= 1).all() for m in made)
    assert all(np.linalg.norm(m.light) == pytest.approx(1.0) for m in made)
    turned = meshes.varied(replace(cube, key="quaternius_crops_pack/Beet_1"), np.random.default_rng(3))
    assert not np.allclose(np.abs(turned.points[:, 0]), np.abs(turned.points[0, 0]))


def test_a_model_bent_out_of_shape_keeps_its_place_and_heights() -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (200, 3)) * [1, 2, 1] + 5
    for seed in range(20):
        bent = meshes.deformed(points, np.random.default_rng(seed))
        assert bent.shape == points.shape
        assert np.abs(bent - points).max() < 4.0
        # Nothing is turned inside out: height keeps its order, or the taper that is along another axis its side.
        side = np.sign(points[:, 1] - 5) == np.sign(bent[:, 1] - 5)
        assert side.mean() > 0.95
    assert not np.allclose(
        meshes.deformed(points, np.random.default_rng(0)), meshes.deformed(points, np.random.default_rng(1))
    )


def test_two_models_touch_and_hardly_overlap() -> None:
    cube, places = _cube(), set()
    for seed in range(20):
        both = meshes.joined(cube, cube, np.random.default_rng(seed))
        first, other = both.points[: len(cube.points)], both.points[len(cube.points) :]
        assert np.array_equal(first, cube.points)
        assert np.array_equal(both.faces[len(cube.faces) :], cube.faces + len(cube.points))
        assert len(both.colours) == len(both.faces)
        gaps = np.maximum(other.min(0) - first.max(0), first.min(0) - other.max(0))
        reach = np.ptp(first, axis=0).max()
        # By less than a thirtieth of the first one's size, along one axis.
        assert -0.03 * reach < gaps.max() < 0
        assert 0.39 < np.ptp(other, axis=0).max() / reach < 0.91
        places.add(int(gaps.argmax()))
    assert places == {0, 1, 2}


def test_hues_turn_about_grey() -> None:
    grey = np.full((5, 3), 0.4)
    assert np.allclose(meshes._hue_turned(grey, 1.0), grey)
    red = np.array([[1.0, 0.0, 0.0]])
    assert np.allclose(meshes._hue_turned(red, 2 * math.pi / 3), [[0, 1, 0]]) or np.allclose(
        meshes._hue_turned(red, 2 * math.pi / 3), [[0, 0, 1]]
    )


def test_textures_are_pictures_and_come_from_the_installed_package() -> None:
    assert len(textures.photographs()) > 3
    for seed in range(12):
        for image in (
            textures.texture(np.random.default_rng(seed)),
            textures.pattern(np.random.default_rng(seed)),
        ):
            assert image.shape == (textures.TEXTURE_PX, textures.TEXTURE_PX, 3)
            assert image.min() >= 0
            assert image.max() <= 1
            assert image.std() > 0.005
        grey = textures.texture(np.random.default_rng(seed), grey=True)
        assert np.array_equal(grey[..., 0], grey[..., 1])


@pytest.mark.slow
def test_models_of_the_real_folder_are_all_readable() -> None:
    """Where it is there: every object has faces within its points and one picture that is not empty."""
    if meshes.models_folder() is None:
        pytest.skip("no folder of models on this machine")
    for split in (meshes.VALIDATION, meshes.TEST):
        for mesh, pose in data.held_out_models(12, split):
            assert mesh.faces.max() < len(mesh.points)
            camera = orbit([pose.azimuth_rad], [pose.elevation_rad], RADIUS, FOV_Y_RAD)
            assert float((1 - on_white(views(mesh, camera, 32))).amax(1).gt(0.06).float().mean()) > 0.02


def test_names_become_nouns() -> None:
    for name, wanted in {
        "kitchenCabinetDrawer 1": "cabinet", "coatRackStanding": "coat rack", "burger-cheese-double": "burger",
        "tree_pine_orange_large": "pine tree", "Orange_Harvested": "orange", "chr_lady2": "toy woman",
        "veh_police1": "police car", "mushrooms": "mushroom", "ice-cream-truck": "ice cream truck",
        "crate_tomatoes": "crate", "Trex": "dinosaur", "TV_2": "television", "pot_A_stew": "pot",
        "building_church_blue": "church", "Wonder_FirstAge_Level1": None, "Bob": None,
    }.items():  # fmt: skip
        assert model_captions.noun(name) == wanted, name


def test_a_caption_names_the_colours_that_cover_most() -> None:
    """Measured by area: a cube with one red face of six is its other colour; with three it is both."""
    blue, red = (np.array(PALETTE[name]) for name in ("blue", "red"))
    colours = np.tile(blue, (12, 3, 1))
    mesh = _cube(key="pack/crate_small", colours=colours)
    assert model_captions.caption(mesh) == "a blue crate"
    colours = colours.copy()
    colours[:2] = red
    assert model_captions.caption(replace(mesh, colours=colours)) == "a blue crate"
    colours[:4] = red
    assert model_captions.caption(replace(mesh, colours=colours)) == "a blue and red crate"
    assert model_captions.caption(replace(mesh, key="pack/Bob")) is None
    names = list(PALETTE)
    assert [names[k] for k in model_captions.nearest(np.array(list(PALETTE.values())))] == names


@pytest.mark.slow
def test_what_is_seen_of_a_mesh_is_its_outside() -> None:
    """Points for the Chamfer distance of bench.mesh: on the outer cube alone, on all its faces, about evenly."""
    outer, inner = _cube(0.4), _cube(0.2)
    both = replace(
        outer, points=np.concatenate([outer.points, inner.points]),
        faces=np.concatenate([outer.faces, inner.faces + 8]), colours=np.tile(outer.colours, (2, 1, 1)),
    )  # fmt: skip
    points = seen(both, np.random.default_rng(0))
    assert (
        np.abs(np.abs(points).max(1) - 0.4).max() < 0.01
    )  # measured 0.004: pixels blend nothing at one sample
    counts = np.array([(np.abs(points[:, k] - s * 0.4) < 0.01).sum() for k in range(3) for s in (-1, 1)])
    assert counts.min() > 0.5 * counts.max()


@pytest.mark.slow
def test_the_text_stream_tells_of_models_where_asked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of four objects, in the words that a tokenizer for them knows; the stream without them is untouched."""
    plain = [text_stream.told(2, i) for i in range(6)]
    assert [text for _, text in plain] == [make(*text_stream.member(2, i)).caption for i in range(6)]
    both = [text_stream.told(2, i, models=True) for i in range(8)]
    meshes_told = [(thing, text) for thing, text in both if isinstance(thing, ColouredMesh)]
    assert len(meshes_told) == 6
    monkeypatch.setattr(captions, "MEMBERS", 20)
    words = set(captions.vocabulary(captions.corpus(with_models=True)))
    for thing, text in meshes_told:
        assert thing.key in ("animals/Fox", "animals/Cow")  # "bot" is no noun
        assert text in (model_captions.caption(thing), f"a {model_captions.noun(thing.key.split('/')[1])}")
        assert set(text.split()) <= words
        assert np.abs(thing.points).max() <= text_stream.REACH + 1e-9
    images, angles, told = text_stream.drawn(2, 2, models=True)
    assert told == [caption for _, caption in both[:2]]
    assert images.shape == (2, text_stream.VIEWS, 3, 64, 64)
    assert torch.equal(angles, text_stream.drawn(2, 2)[1])
    vae = train.AutoencoderKL.from_pretrained(POCKET / "vae", torch_dtype=torch.float32)
    monkeypatch.setattr(text_stream, "drawn", partial(text_stream.drawn, objects=2))
    kept = text_stream.described(tmp_path, vae, 2, models=True)
    again = text_stream.described(tmp_path, vae, 2)  # what is kept stays what it is called
    assert kept.captions == again.captions == told and torch.equal(kept.latents, again.latents)
