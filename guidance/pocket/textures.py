"""Square textures: procedural ones, and parts of the photographs that scikit-image carries. T side in pixels."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import skimage
from numpy.typing import NDArray
from PIL import Image

from guidance.pocket.objects import PALETTE

TEXTURE_PX = 96  # finer than what is seen of it at 64 px, so that it need not be filtered
PHOTOGRAPHS = (
    "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg", "brick.png", "grass.png",
    "gravel.png",
)  # fmt: skip

Picture = NDArray[np.floating]


@lru_cache(maxsize=1)
def photographs() -> tuple[Picture, ...]:
    """Each [H, W, 3] in 0..1, its shorter side 256; those of the list that the installed package has."""
    folder = Path(skimage.__file__).parent / "data"
    found: list[Picture] = []
    for name in PHOTOGRAPHS:
        if (folder / name).is_file():
            image = Image.open(folder / name).convert("RGB")
            scale = 256 / min(image.size)
            image = image.resize(
                (round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX
            )
            found.append(np.asarray(image, np.float32) / 255)
    return tuple(found)


def photograph(rng: np.random.Generator, side: int = TEXTURE_PX) -> Picture:
    """[side, side, 3]: a square part of a photograph, its larger parts made smaller."""
    source = photographs()[rng.integers(len(photographs()))]
    most = min(source.shape[:2])
    wide = int(rng.integers(min(side, most), most + 1))
    y, x = (int(rng.integers(n - wide + 1)) for n in source.shape[:2])
    part = Image.fromarray((source[y : y + wide, x : x + wide] * 255 + 0.5).astype(np.uint8))
    return np.asarray(part.resize((side, side), Image.Resampling.BOX), np.float32) / 255


def pattern(rng: np.random.Generator, side: int = TEXTURE_PX) -> Picture:
    """[side, side, 3]: stripes, dots, chequers, bricks or clouds of two or three colours."""
    line = np.arange(side) / side
    u, v = np.meshgrid(line, line, indexing="xy")
    count = int(rng.integers(2, 9))
    kind = int(rng.integers(5))
    if kind == 0:
        turned = u * int(rng.integers(-2, 3)) + v * int(rng.integers(1, 3))
        share = (np.mod(turned * count, 1.0) < rng.uniform(0.25, 0.75)).astype(float)
    elif kind == 1:
        shifted = np.mod(u * count + 0.5 * (np.floor(v * count) % 2), 1.0)
        share = (np.hypot(shifted - 0.5, np.mod(v * count, 1.0) - 0.5) < rng.uniform(0.2, 0.45)).astype(float)
    elif kind == 2:
        share = (np.floor(u * count) + np.floor(v * count)) % 2
    elif kind == 3:
        row = np.floor(v * 2 * count)
        gap = (np.mod(v * 2 * count, 1.0) < 0.15) | (np.mod(u * count + 0.5 * (row % 2), 1.0) < 0.08)
        share = gap.astype(float)
    else:
        share = np.zeros((side, side))
        for octave in range(1, 5):
            wave = rng.normal(0, 1, 2) * 2**octave
            share += np.sin(2 * np.pi * (u * round(wave[0]) + v * round(wave[1]) + rng.random())) / octave
        share = 0.5 + 0.25 * share
    names = list(PALETTE)
    first, second = (np.array(PALETTE[names[i]]) for i in rng.choice(len(names), 2, replace=False))
    return np.clip(first + share[..., None] * (second - first), 0, 1).astype(np.float32)


def texture(rng: np.random.Generator, grey: bool = False) -> Picture:
    """[T, T, 3] in 0..1: a pattern or a photograph; grey: light and dark alone, around its mean of about one."""
    image = photograph(rng) if photographs() and rng.random() < 0.5 else pattern(rng)
    if not grey:
        return image
    value = image.mean(2, keepdims=True)
    return np.repeat(np.clip(0.55 + 0.45 * value / max(float(value.max()), 1e-3), 0, 1), 3, 2)
