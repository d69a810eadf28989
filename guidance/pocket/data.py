"""The training stream: objects by seed, each with the view it is known by and the views to be guessed.

B objects in a shard, V views of each (view 0 is the known one), both also mirrored. A shard is a pure
function of its number, so a stream resumes by counting. Validation and test objects have their own seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gs_propeller.base.camera import orbit
from guidance.pocket.families import FAMILIES, make
from guidance.pocket.objects import Thing
from guidance.pocket.render import FOV_Y_RAD, RADIUS, framed, on_white, surface, views

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
    rng = np.random.default_rng([seed, 77])
    thing = make(family, seed)
    for _ in range(20):
        front = rng.random() < 0.7
        azimuth = rng.normal(0.0, 0.6) if front else rng.uniform(-math.pi, math.pi)
        elevation = 0.0 if rng.random() < 0.4 else rng.uniform(math.radians(-5), math.radians(25))
        pose = Pose(float(azimuth), float(elevation))
        placed = framed(thing, *pose.__dict__.values())
        if np.linalg.norm(surface(placed).vertices, axis=1).max() <= REACH:
            break
    return placed, pose


def held_out(
    count: int, first_seed: int = TEST_SEED, families: Iterable[str] = FAMILIES
) -> list[tuple[Thing, Pose]]:
    """`count` objects outside the training stream, family after family."""
    names = list(families)
    return [posed(names[i % len(names)], first_seed + i) for i in range(count)]


def member(number: int, index: int) -> tuple[Thing, Pose]:
    """Object `index` of shard `number`."""
    names = list(FAMILIES)
    seed = TRAIN_SEED + number * OBJECTS + index
    return posed(names[seed % len(names)], seed)


def relative_pose(known: Pose, target: Pose) -> list[float]:
    """Zero-1-to-3's camera code [4]: polar angle, sin and cos of azimuth, radius, all relative (Liu et al. 2023)."""
    turn = target.azimuth_rad - known.azimuth_rad
    return [known.elevation_rad - target.elevation_rad, math.sin(turn), math.cos(turn), 0.0]


@dataclass(frozen=True)
class Shard:
    """images [B, V, 3, S, S] uint8 over white, view 0 the known one; poses [B, V, 4] relative to it."""

    images: Tensor
    poses: Tensor


def shard(number: int, objects: int = OBJECTS) -> Shard:
    """Shard `number` of the training stream."""
    images = torch.empty(objects, VIEWS, 3, SIZE_PX, SIZE_PX, dtype=torch.uint8)
    poses = torch.zeros(objects, VIEWS, 4)
    for i in range(objects):
        thing, known = member(number, i)
        rng = np.random.default_rng([thing.seed, 78])
        targets = [known]
        for _ in range(VIEWS - 1):
            tilt = 0.0 if rng.random() < 0.2 else rng.uniform(math.radians(-30), math.radians(30))
            targets.append(Pose(float(rng.uniform(-math.pi, math.pi)), known.elevation_rad + float(tilt)))
        cameras = orbit(
            [p.azimuth_rad for p in targets], [p.elevation_rad for p in targets], RADIUS, FOV_Y_RAD
        )
        images[i] = (on_white(views(thing, cameras, SIZE_PX)) * 255 + 0.5).to(torch.uint8)
        poses[i] = torch.tensor([relative_pose(known, p) for p in targets])
    return Shard(images, poses)


def mirrored(value: Shard) -> Shard:
    """The shard seen in a mirror: pictures flipped, azimuths negated."""
    return Shard(value.images.flip(-1), value.poses * torch.tensor([1.0, -1.0, 1.0, 1.0]))
