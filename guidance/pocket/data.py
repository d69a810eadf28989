"""The training stream: objects by seed, each with the view it is known by and the views to be guessed. Two of three
are meshes of the models' folder where there is one, the others procedural; before that laws.FURTHER takes its shares.

B objects in a shard, V views of each (view 0 is the known one), half of the objects mirrored. A shard is a pure
function of its number, so a stream resumes by counting. Validation and test objects have their own seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gs_propeller.base.camera import mirrored_codes, orbit
from guidance.pocket import laws, meshes
from guidance.pocket.families import FAMILIES, make
from guidance.pocket.meshes import ColouredMesh
from guidance.pocket.objects import Thing
from guidance.pocket.render import FOV_Y_RAD, RADIUS, AnyShown, Shown, fitted, on_white, outline, views

OBJECTS, VIEWS = 256, 8
SIZE_PX = 64
TRAIN_SEED, VALIDATION_SEED, TEST_SEED = 10_000_000, 1_000, 2_000  # disjoint ranges of object seeds
REACH = 0.95  # world units: a larger object leaves the picture when the camera goes round


@dataclass(frozen=True)
class Pose:
    """One view's place on the orbit, radians."""

    azimuth_rad: float
    elevation_rad: float


def posed(family: str, seed: int) -> tuple[Thing, Pose]:
    """A framed object and the pose of its known view: mostly from the front, mostly level."""
    return _posed(make(family, seed), np.random.default_rng([seed, 77]))


def posed_model(
    key: str, seed: int, vary: bool = True, textured: float = laws.TEXTURED
) -> tuple[ColouredMesh, Pose]:
    """A framed model and the pose of its known view; vary: as another member of its kind, to train on, a share of them
    textured."""
    rng = np.random.default_rng([seed, 81])
    mesh = replace(meshes.read(key), seed=seed)
    if vary:
        mesh = meshes.varied(mesh, rng, textured)
        if rng.random() < laws.JOINED:
            models = meshes.keys(meshes.TRAIN)
            other = meshes.read(models[int(rng.integers(len(models)))])
            mesh = meshes.joined(mesh, meshes.varied(other, rng, textured=0.0), rng)
    return _posed(meshes.lit(mesh, rng), rng)


def _posed(thing: AnyShown, rng: np.random.Generator) -> tuple[AnyShown, Pose]:
    points = outline(thing)
    for _ in range(20):
        front = rng.random() < laws.FRONTAL
        azimuth = rng.normal(0.0, laws.FRONTAL_SPREAD_RAD) if front else rng.uniform(-math.pi, math.pi)
        elevation = 0.0 if rng.random() < laws.LEVEL else rng.uniform(*laws.RAISED_RAD)
        pose = Pose(float(azimuth), float(elevation))
        scale, offset = fitted(points, pose.azimuth_rad, pose.elevation_rad)
        if np.linalg.norm(points * scale + offset, axis=1).max() <= REACH:
            break
    return thing.moved(scale, offset), pose


def held_out(
    count: int, first_seed: int = TEST_SEED, families: Iterable[str] = FAMILIES
) -> list[tuple[Thing, Pose]]:
    """`count` objects outside the training stream, family after family."""
    names = list(families)
    return [posed(names[i % len(names)], first_seed + i) for i in range(count)]


def held_out_models(count: int | None = None, split: str = meshes.TEST) -> list[tuple[ColouredMesh, Pose]]:
    """`count` models that no training view shows, evenly from the split; all of it where count is None. As they are in
    the folder, each from the view and under the light that its place in the split decides."""
    keys = meshes.keys(split)
    count = len(keys) if count is None else min(count, len(keys))
    first = VALIDATION_SEED if split == meshes.VALIDATION else TEST_SEED
    rows = [k * len(keys) // count for k in range(count)]
    return [posed_model(keys[row], first + row, vary=False) for row in rows]


def kind_of(number: int, index: int, beside: bool = False) -> tuple[str, bool]:
    """What object `index` of shard `number` is: a family's name, or a model's key and True. beside: for a training that
    draws plain models itself (many.py), so that one of three is a model, half of these textured."""
    names, models = list(FAMILIES), meshes.keys(meshes.TRAIN)
    seed = _seed(number, index)
    drawn = np.random.default_rng([seed, 83]).random()
    for family, share in laws.FURTHER.items():
        drawn -= share
        if drawn < 0:
            return family, False
    if models and (seed % 3 == 1 or (seed % 3 == 2 and not beside)):
        return models[int(np.random.default_rng([seed, 82]).integers(len(models)))], True
    return names[seed // 3 % len(names)], False


def _seed(number: int, index: int) -> int:
    return TRAIN_SEED + number * OBJECTS + index


def member(number: int, index: int, beside: bool = False) -> tuple[Shown, Pose]:
    """Object `index` of shard `number`, of the kind that kind_of says."""
    seed = _seed(number, index)
    name, is_model = kind_of(number, index, beside)
    if is_model:
        return posed_model(name, seed, textured=0.5 if beside else laws.TEXTURED)
    return posed(name, seed)


def relative_pose(known: Pose, target: Pose) -> list[float]:
    """Zero-1-to-3's camera code [4]: polar angle, sin and cos of azimuth, radius, all relative (Liu et al. 2023)."""
    turn = target.azimuth_rad - known.azimuth_rad
    return [known.elevation_rad - target.elevation_rad, math.sin(turn), math.cos(turn), 0.0]


@dataclass(frozen=True)
class Shard:
    """images [B, V, 3, S, S] uint8 over white, view 0 the known one; poses [B, V, 4] relative to it."""

    images: Tensor
    poses: Tensor


def shard(number: int, objects: int = OBJECTS, beside: bool = False) -> Shard:
    """Shard `number` of the training stream; beside: see member."""
    images = torch.empty(objects, VIEWS, 3, SIZE_PX, SIZE_PX, dtype=torch.uint8)
    poses = torch.zeros(objects, VIEWS, 4)
    for i in range(objects):
        thing, known = member(number, i, beside)
        rng = np.random.default_rng([thing.seed, 78])
        targets = [known]
        for _ in range(VIEWS - 1):
            tilt = 0.0 if rng.random() < laws.SAME_HEIGHT else rng.uniform(*laws.TILT_RAD)
            targets.append(Pose(float(rng.uniform(-math.pi, math.pi)), known.elevation_rad + float(tilt)))
        cameras = orbit(
            [p.azimuth_rad for p in targets], [p.elevation_rad for p in targets], RADIUS, FOV_Y_RAD
        )
        seen = on_white(views(thing, cameras, SIZE_PX))
        codes = torch.tensor([relative_pose(known, p) for p in targets])
        if rng.random() < laws.MIRRORED:
            seen, codes = mirrored(seen, codes)
        images[i], poses[i] = (seen * 255 + 0.5).to(torch.uint8), codes
    return Shard(images, poses)


def mirrored(images: Tensor, poses: Tensor) -> tuple[Tensor, Tensor]:
    """What a mirror shows: pictures [..., S, S] flipped, and their codes [..., 4]."""
    return images.flip(-1), mirrored_codes(poses, torch.ones_like(poses[..., 0]))
