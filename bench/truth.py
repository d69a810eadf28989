"""Scoring against the generator's truth: held-out views, PSNR and mask IoU, and the trivial rivals.

V views, S picture side in pixels. Azimuths are measured from the input view, so that an asset made from
a picture and the object in the picture share one frame.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gs_propeller.base.camera import Cameras, orbit
from guidance.pocket.cat import POSE as CAT_POSE
from guidance.pocket.cat import cat
from guidance.pocket.data import Pose, held_out, held_out_models
from guidance.pocket.meshes import TEST, VALIDATION
from guidance.pocket.render import FOV_Y_RAD, RADIUS, Shown, framed, views

SCORE_PX = 128


@dataclass(frozen=True)
class Case:
    """An object with a known view: name, the framed object, the pose of its input picture."""

    name: str
    thing: Shown
    pose: Pose

    def picture(self, size_px: int = 512) -> Tensor:
        """[4, S, S] straight-alpha RGBA: the input picture."""
        camera = orbit([self.pose.azimuth_rad], [self.pose.elevation_rad], RADIUS, FOV_Y_RAD)
        return views(self.thing, camera, size_px)[0]

    def given(self, folder: Path) -> dict[str, object]:
        """The options that a run on it is given; its picture is drawn into the folder."""
        path = folder / f"{self.name}.png"
        part = (
            folder / f"{self.name}.{os.getpid()}.png"
        )  # another process may be reading the one that is there
        save_png(str(part), self.picture())
        os.replace(part, path)
        return {"input": str(path), "elevation": math.degrees(self.pose.elevation_rad)}

    def truth(self, azimuths_rad: Tensor, elevations_rad: Tensor, size_px: int = SCORE_PX) -> Tensor:
        """[V, 4, S, S] true views at azimuths from the input view."""
        cameras = orbit(azimuths_rad + self.pose.azimuth_rad, elevations_rad, RADIUS, FOV_Y_RAD)
        return views(self.thing, cameras, size_px)


def cases(held_out_objects: int, first_seed: int | None = None) -> list[Case]:
    """The cat and that many objects outside the training stream."""
    objects = held_out(held_out_objects) if first_seed is None else held_out(held_out_objects, first_seed)
    listed = [Case("cat", framed(cat(), *CAT_POSE.__dict__.values()), CAT_POSE)]
    return listed + [Case(f"{thing.family}-{thing.seed}", thing, pose) for thing, pose in objects]


def model_cases(count: int, validation: bool = False) -> list[Case]:
    """`count` models that no training view shows, evenly from their split; none where there is no folder of models."""
    if not count:
        return []
    found = held_out_models(count, VALIDATION if validation else TEST)
    return [Case(mesh.key.replace("/", "-").replace(" ", "_"), mesh, pose) for mesh, pose in found]


def novel_angles(pose: Pose, count: int = 16) -> tuple[Tensor, Tensor]:
    """(azimuths, elevations) [V] radians: all round, half a step off the input view, at three heights."""
    azimuths = (torch.arange(count) + 0.5) * (2 * math.pi / count)
    lifts = torch.tensor([0.0, 15.0, -10.0, 25.0]).repeat(-(-count // 4))[:count]
    return azimuths, pose.elevation_rad + torch.deg2rad(lifts)


def asset_cameras(azimuths_rad: Tensor, elevations_rad: Tensor) -> Cameras:
    return orbit(azimuths_rad, elevations_rad, RADIUS, FOV_Y_RAD)


def over_white(rgba: Tensor) -> Tensor:
    return rgba[:, :3] * rgba[:, 3:] + (1 - rgba[:, 3:])


def psnr_db(images: Tensor, truth: Tensor) -> float:
    """Mean over views of the PSNR of [V, 3, S, S] pictures over white."""
    error = (images - truth).square().mean((1, 2, 3)).clamp_min(1e-10)
    return float((-10 * error.log10()).mean())


def mask_iou(alpha: Tensor, truth: Tensor) -> float:
    """Mean over views of the intersection over union of [V, 1, S, S] masks at one half."""
    a, b = alpha > 0.5, truth > 0.5
    joint, either = (a & b).sum((1, 2, 3)), (a | b).sum((1, 2, 3)).clamp_min(1)
    return float((joint / either).mean())


def billboard(
    picture: Tensor, pose: Pose, cameras: Cameras, depth: float, size_px: int = SCORE_PX, samples: int = 160
) -> tuple[Tensor, Tensor]:
    """The picture's silhouette extruded by `depth` (world units, centred) along its line of sight, and textured.

    picture [4, S, S]. Returns (images [V, 3, S, S] over white, alpha [V, 1, S, S]).
    """
    known = orbit([0.0], [pose.elevation_rad], RADIUS, FOV_Y_RAD)
    half = math.tan(FOV_Y_RAD / 2)
    line = (torch.arange(size_px) + 0.5) / size_px * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    rays = torch.stack([x * half, y * half, torch.ones_like(x)], -1).reshape(-1, 3)
    distances = torch.linspace(RADIUS - 1.2, RADIUS + 1.2, samples)
    images, alphas = [], []
    source = F.interpolate(picture[None], (256, 256), mode="area")
    for w2c in cameras.w2c:
        rotation, shift = w2c[:3, :3], w2c[:3, 3]
        colour, hit = torch.ones(len(rays), 3), torch.zeros(len(rays), dtype=torch.bool)
        for d in distances:  # front to back: the first sample inside the slab's silhouette is what is seen
            world = (rays * d - shift) @ rotation
            seen = world @ known.w2c[0, :3, :3].T + known.w2c[0, :3, 3]
            uv = seen[:, :2] / seen[:, 2:] / half
            rgba = F.grid_sample(source, uv[None, None], align_corners=False)[0, :, 0].T
            inside = (rgba[:, 3] > 0.5) & ((seen[:, 2] - RADIUS).abs() <= depth / 2) & ~hit
            colour[inside] = rgba[inside, :3]
            hit |= inside
        images.append(colour.T.reshape(3, size_px, size_px))
        alphas.append(hit.float().reshape(1, size_px, size_px))
    return torch.stack(images), torch.stack(alphas)


def save_png(path: str, rgba: Tensor) -> None:
    """[4, S, S] or [3, S, S] in 0..1 to an 8-bit PNG."""
    from PIL import Image

    array = (rgba.permute(1, 2, 0).clamp(0, 1).numpy() * 255 + 0.5).astype(np.uint8)
    Image.fromarray(array).save(path)
