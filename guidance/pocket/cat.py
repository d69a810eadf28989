"""The cat of data/cat.png: hand-set parameters, in no training stream. `python -m guidance.pocket.cat` draws it.

World: y up, front +z; it sits on y = 0 and is not yet normalised.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from gs_propeller.base.camera import orbit
from guidance.pocket.data import Pose
from guidance.pocket.objects import BLACK, CONE, SOLID, STRIPES, Paint, Thing, blob, euler, named, tube
from guidance.pocket.render import FOV_Y_RAD, RADIUS, framed, views

POSE = Pose(azimuth_rad=0.5, elevation_rad=0.0)  # of the picture: a three-quarter view
SIZE_PX = 512


def cat() -> Thing:
    """The tabby cat of data/cat.png: hand-set, in no training stream."""
    coat = Paint("tabby", np.array([0.89, 0.56, 0.24]), np.array([0.58, 0.30, 0.11]), STRIPES, 1, 4.6, 0.2)
    side = replace(coat, axis=1, frequency=4.0)
    face = replace(coat, axis=0, frequency=2.2, phase=1.57, second=np.array([0.72, 0.41, 0.16]))
    ivory = np.array([0.96, 0.90, 0.79])
    cream, rose, jade = Paint("cream", ivory, ivory, SOLID), named("pink"), named("green")
    parts = [
        blob((0, 0.47, -0.05), (0.33, 0.48, 0.35), coat, taper=-0.28),
        blob((0, 0.50, 0.14), (0.19, 0.33, 0.19), cream),
        blob((0, 1.05, 0.07), (0.31, 0.265, 0.27), face),
        blob((-0.085, 0.965, 0.305), (0.105, 0.08, 0.075), cream),
        blob((0.085, 0.965, 0.305), (0.105, 0.08, 0.075), cream),
        blob((0, 1.015, 0.365), (0.038, 0.028, 0.03), rose),
    ]
    for s in (-1, 1):
        tilt = euler(roll=-s * 0.32)
        parts.append(
            blob((s * 0.205, 1.325, 0.04), (0.095, 0.155, 0.065), coat, eps=CONE, taper=-0.9, turn=tilt)
        )
        parts.append(
            blob((s * 0.205, 1.305, 0.075), (0.055, 0.105, 0.045), rose, eps=CONE, taper=-0.9, turn=tilt)
        )
        parts.append(blob((s * 0.125, 1.095, 0.285), (0.062, 0.062, 0.045), jade))
        parts.append(blob((s * 0.127, 1.095, 0.32), (0.020, 0.045, 0.018), BLACK))
        parts.append(blob((s * 0.125, 0.30, 0.255), (0.085, 0.31, 0.09), side, eps=(0.6, 1)))
        parts.append(blob((s * 0.125, 0.055, 0.315), (0.092, 0.06, 0.13), cream))
        parts.append(blob((s * 0.27, 0.215, 0.02), (0.165, 0.21, 0.27), side))
        parts.append(blob((s * 0.29, 0.055, 0.20), (0.085, 0.055, 0.15), cream))
    root = np.array([0.05, 0.10, -0.35])
    bend = [
        np.array(p)
        for p in ([0.28, 0.08, -0.42], [0.46, 0.16, -0.28], [0.54, 0.36, -0.17], [0.50, 0.54, -0.13])
    ]
    parts += tube(root, bend, 0.068, replace(coat, frequency=2.0))
    parts.append(blob((0.49, 0.59, -0.125), (0.066, 0.075, 0.066), cream))
    light = np.array([0.35, 0.80, 0.49])
    return Thing("cat", 0, "a sitting orange tabby cat", tuple(parts), light / np.linalg.norm(light), 0.66)


def picture() -> Tensor:
    """[4, S, S] straight-alpha RGBA of the cat as data/cat.png shows it."""
    placed = framed(cat(), POSE.azimuth_rad, POSE.elevation_rad)
    return views(placed, orbit([POSE.azimuth_rad], [POSE.elevation_rad], RADIUS, FOV_Y_RAD), SIZE_PX)[0]


if __name__ == "__main__":
    pixels = (picture().permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8)
    Image.fromarray(pixels).save(Path(__file__).resolve().parents[2] / "data" / "cat.png")
