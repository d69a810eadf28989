"""Many models at once: the pictures, framings and shapes that the stream's own code makes, one after another."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gs_propeller.base.camera import orbit
from guidance.pocket import many, many_render, meshes, stream, train_cuda
from guidance.pocket.data import VIEWS
from guidance.pocket.many import Chance, Many
from guidance.pocket.meshes import ColouredMesh
from guidance.pocket.render import FILL, FOV_Y_RAD, RADIUS, fitted, on_white, views
from guidance.zero123 import CameraProjection
from tests.test_meshes import _write


def _shreds(seed: int, count: int = 30) -> ColouredMesh:
    """Triangles that hide and cut one another, every corner of its own colour; one is a line."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-0.5, 0.5, (3 * count, 3))
    points[2] = points[1]
    light = np.array([0.36, 0.48, 0.8])
    faces = np.arange(3 * count).reshape(-1, 3)
    return ColouredMesh("pack/shreds", 0, "", points, faces, rng.uniform(0, 1, (count, 3, 3)), light, 0.6)


def _together(models: list[ColouredMesh]) -> Many:
    points = [torch.from_numpy(m.points).float() for m in models]
    first = np.cumsum([0, *(len(p) for p in points)])
    return Many(
        torch.cat(points),
        torch.cat([torch.full((len(p),), i) for i, p in enumerate(points)]),
        torch.cat([torch.from_numpy(m.faces) + int(k) for m, k in zip(models, first, strict=False)]),
        torch.cat([torch.full((len(m.faces),), i) for i, m in enumerate(models)]),
        torch.cat([torch.from_numpy(m.colours).float() for m in models]),
        torch.stack([torch.from_numpy(m.light).float() for m in models]),
        torch.tensor([m.ambient for m in models]),
    )


def test_pictures_are_those_of_the_other_renderer() -> None:
    models, azimuth, elevation = [_shreds(0), _shreds(1, 50)], [0.4, -2.0], [0.3, -0.2]
    found = many_render.view(
        _together(models), many.looking(torch.tensor(azimuth), torch.tensor(elevation)), 24
    )
    for i, model in enumerate(models):
        cameras = orbit(azimuth[i : i + 1], elevation[i : i + 1], RADIUS, FOV_Y_RAD)
        wanted = (on_white(views(model, cameras, 24)) * 255 + 0.5).to(torch.uint8)[0]
        apart = (found[i].int() - wanted.int()).abs()
        assert float((wanted < 255).float().mean()) > 0.2
        assert int((apart > 1).sum()) <= 3  # where two faces cut one another in a pixel's centre


def test_an_empty_picture_is_white() -> None:
    away = replace(_shreds(0), points=_shreds(0).points + np.array([9.0, 0, 0]))
    flat = torch.zeros(1)
    assert bool((many_render.view(_together([away]), many.looking(flat, flat), 16) == 255).all())


def test_cameras_and_framings_are_those_of_one_object() -> None:
    models = [_shreds(k) for k in range(3)]
    azimuth, elevation = torch.tensor([0.2, 3.0, -1.4]), torch.tensor([0.0, 0.4, -0.1])
    w2c = many.looking(azimuth, elevation)
    assert torch.allclose(w2c, orbit(azimuth, elevation, RADIUS, FOV_Y_RAD).w2c[:, :3], atol=1e-6)
    together = _together(models)
    scale, offset = many.fitted(together.points, together.of, w2c)
    for i, model in enumerate(models):
        one, shift = fitted(model.points, float(azimuth[i]), float(elevation[i]))
        assert float(scale[i]) == pytest.approx(one, rel=2e-3)
        assert np.allclose(offset[i].numpy(), shift, atol=2e-3)


class Noted(Chance):
    """Chance that keeps what it gave, in order."""

    def __init__(self, seed: int) -> None:
        super().__init__(torch.Generator().manual_seed(seed))
        self.given: list[Tensor] = []

    def _kept(self, value: Tensor) -> Tensor:
        self.given.append(value)
        return value

    def uniform(self, *told: Any) -> Tensor:
        return self._kept(super().uniform(*told))

    def normal(self, *told: Any) -> Tensor:
        return self._kept(super().normal(*told))

    def below(self, *told: Any) -> Tensor:
        return self._kept(super().below(*told))


class Told:
    """A numpy generator that says these numbers, whatever it is asked for."""

    def __init__(self, *numbers: Any) -> None:
        self.numbers = list(numbers)

    def _next(self, *_: Any) -> Any:
        return self.numbers.pop(0)

    uniform = normal = integers = random = _next


def test_bent_as_one_model_is() -> None:
    together, chance = _together([_shreds(k, 5 + k) for k in range(4)]), Noted(3)
    found = many.deformed(together.points, together.of, 4, chance)
    axis, width, turn, sheared, curved = chance.given
    for i in range(4):
        points = together.points[together.of == i].double().numpy()
        sideways = [float(x[i, k]) for k in range(2) for x in (sheared, curved)]
        wanted = meshes.deformed(points, Told(int(axis[i]), float(width[i]), float(turn[i]), *sideways))  # type: ignore[arg-type]
        assert np.allclose(found[together.of == i].numpy(), wanted, atol=1e-5)


def test_recoloured_as_one_model_is() -> None:
    together, chance = _together([_shreds(k, 4) for k in range(60)]), Noted(1)
    found = many.recoloured(together.colours, together.face_of, 60, chance)
    kind, angle, power, share, tint = chance.given
    kinds = [0, 0]
    for i in range(60):
        numbers = [float(kind[i])]
        if 0.4 <= kind[i] < 0.8:
            numbers.append(float(angle[i]))
        if kind[i] > 0.6:
            numbers.append(float(power[i]))
        if kind[i] > 0.9:
            numbers += [float(share[i]), tint[i].double().numpy()]
        kinds[kind[i] > 0.9] += 1
        before = together.colours[together.face_of == i].double().numpy()
        wanted = meshes.recoloured(before, Told(*numbers))  # type: ignore[arg-type]
        assert np.allclose(found[together.face_of == i].numpy(), wanted, atol=1e-4)
    assert min(kinds) > 2


def test_joined_as_two_models_are() -> None:
    models, chance = [_shreds(k, 6) for k in range(8)], Noted(2)
    together, joiners = _together(models), torch.tensor([0, 2, 3])
    found = many.joined(together.points, together.of, 5, joiners, chance)
    size, side = chance.given
    for i in range(5):
        assert torch.equal(found[together.of == i], together.points[together.of == i])
    for k, first in enumerate(joiners.tolist()):
        wanted = meshes.joined(models[first], models[5 + k], Told(float(size[k]), int(side[k])))  # type: ignore[arg-type]
        theirs = wanted.points[len(models[first].points) :]
        assert np.allclose(found[together.of == 5 + k].numpy(), theirs, atol=1e-5)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    _write(tmp_path / "models", "animals", ["Fox", "Old_Hen", "Cow"], ["train", "test", "train"])
    _write(tmp_path / "models", "quaternius_nature_pack", ["Rock"], ["train"])
    monkeypatch.setenv(meshes.FOLDER_VARIABLE, str(tmp_path / "models"))
    return tmp_path / "models"


def test_a_library_holds_every_models_own_corners(folder: Path) -> None:
    keys = meshes.keys(meshes.TRAIN)
    kept = many.library(keys, torch.device("cpu"))
    assert kept.frontless.tolist() == [False, False, True]
    for i, key in enumerate(keys):
        model = meshes.read(key)
        points, _ = many.spread(kept.first_point[i : i + 1], kept.point_count[i : i + 1])
        faces, _ = many.spread(kept.first_face[i : i + 1], kept.face_count[i : i + 1])
        assert np.allclose(kept.points[points].numpy(), model.points)
        assert np.array_equal(kept.faces[faces].numpy(), model.faces)
        assert np.allclose(kept.colours[faces].numpy(), model.colours)


def test_runs_lie_behind_one_another() -> None:
    index, of = many.spread(torch.tensor([7, 0, 3]), torch.tensor([2, 0, 3]))
    assert index.tolist() == [7, 8, 3, 4, 5]
    assert of.tolist() == [0, 0, 2, 2, 2]


def test_objects_fill_their_known_view_and_codes_say_where_the_others_stand(folder: Path) -> None:
    models = many.library(meshes.keys(meshes.TRAIN), torch.device("cpu"))
    images, poses = many_render.drawn(models, 6, torch.Generator().manual_seed(0))
    assert images.shape == (6, VIEWS, 3, 64, 64)
    assert images.dtype == torch.uint8
    assert torch.equal(poses[:, 0], torch.tensor([0.0, 0.0, 1.0, 0.0]).expand(6, 4))
    assert torch.allclose(poses[:, :, 1] ** 2 + poses[:, :, 2] ** 2, torch.ones(6, VIEWS), atol=1e-5)
    assert float(poses[:, :, 0].abs().max()) <= math.radians(30)
    for known in images[:, 0]:
        where = (known.amin(0) < 250).nonzero()
        low, high = where.amin(0), where.amax(0) + 1
        assert float((high - low).max()) == pytest.approx(FILL * 64, abs=3)
        assert torch.allclose((low + high) / 2, torch.full((2,), 32.0), atol=1.5)
    again, _ = many_render.drawn(models, 6, torch.Generator().manual_seed(0))
    assert torch.equal(images, again)


@pytest.mark.slow
def test_a_training_on_a_gpu_draws_models_beside_what_arrives(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New ones every few batches; latents are those of the pictures that lie beside them."""
    for name, value in (("OWN_OBJECTS", 3), ("OWN_FIRST", 2), ("OWN_STEPS", 2), ("OWN_KEPT", 16)):
        monkeypatch.setattr(train_cuda, name, value)
    vae = train_cuda.vae_of(train_cuda.Options(folder / "run", 1.0, start=train_cuda.POCKET))
    own = train_cuda.Own(torch.device("cpu"), vae.eval(), torch.Generator().manual_seed(0))
    counts = []
    for _ in range(5):
        known, latents, condition, poses = own.draw(4)
        counts.append(own.held.count)
    assert counts == [6, 6, 9, 9, 12]
    assert latents.shape == condition.shape == (4, 16, 16, 16)
    assert poses.shape == (4, 4)
    assert torch.allclose(stream.encode(vae, known).float(), condition, atol=0.1)


def test_each_token_is_told_where_the_view_is() -> None:
    projection = CameraProjection(6, 4, patches=True)
    seen, cameras = torch.rand(2, 5, 6), torch.rand(2, 4)
    tokens = projection.tokens(seen, cameras)
    for v in range(2):
        for k in range(5):
            one = projection(torch.cat([seen[v, k], cameras[v]]))
            assert torch.allclose(tokens[v, k], one, atol=1e-6)
