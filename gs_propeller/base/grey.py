"""Grey pictures of more than 8 bits, which Pillow's own conversions would clip."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def is_deep(image: Image.Image) -> bool:
    """Whether its pixels are whole numbers of more than 8 bits, or floats."""
    return image.mode == "F" or image.mode.startswith("I")


def deep_grey(image: Image.Image) -> NDArray[np.float32]:
    """[H, W] in 0..1 of a picture that `is_deep`. Where its mode leaves open what white is, its values tell: 1 of
    floats, 255, or 65535. What is no number is black."""
    grey = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if image.mode.startswith("I;"):
        return (grey / 65535).astype(np.float32)
    most = float(grey.max(initial=0.0))
    white = 1.0 if image.mode == "F" and most <= 1 else 255.0 if most <= 255 else 65535.0
    return (grey / white).clip(0, 1).astype(np.float32)


def eight_bit(image: Image.Image) -> Image.Image:
    """The picture, a deep one at 8 bits."""
    return Image.fromarray((deep_grey(image) * 255 + 0.5).astype(np.uint8)) if is_deep(image) else image
