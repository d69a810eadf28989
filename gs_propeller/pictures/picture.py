"""The input picture: any common file to a centred object with a mask.

S px along a side. Output is RGB over white in 0..1 with its mask; resampling is premultiplied, so that no
colour from under the transparent part bleeds into the edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from glob import glob
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from gs_propeller.base.errors import UserError
from gs_propeller.base.files import atomic
from gs_propeller.base.paths import is_folder, is_there
from gs_propeller.pictures.cutout import LEAST_PX, Box, cut_out, framed, is_cut_out, outside, strengthened
from gs_propeller.pictures.photo import read_rgba

BORDER_RATIO = 0.2  # share of the side that stays free around the object, as Zero-1-to-3 expects
# what a folder is searched for
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif",
)  # fmt: skip

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Picture:
    """rgb [3, S, S] over white; mask [1, S, S]; notes: what was done to it that a user should know."""

    rgb: Tensor
    mask: Tensor
    notes: tuple[str, ...] = ()

    @property
    def rgba(self) -> NDArray[np.uint8]:
        """[S, S, 4] straight RGBA: the cut-out."""
        straight = (self.rgb - 1 + self.mask) / self.mask.clamp_min(1e-3)
        rgba = torch.cat([torch.where(self.mask > 0, straight, 1.0), self.mask]).clamp(0, 1)
        return (rgba.permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8)


def picture_files(text: str) -> list[str]:
    """What input= means: a folder's pictures or a pattern's, in the order of their names; else the one file named.

    Raises UserError for a folder or pattern without pictures.
    """
    if is_folder(text):
        found = [path for path in _visible(text) if path.suffix.lower() in SUFFIXES]
        where = f"folder {text}"
    elif any(letter in text for letter in "*?[") and not is_there(text):
        found = [Path(path) for path in sorted(glob(text)) if Path(path).is_file()]
        where = f"pattern {text}"
    else:
        return [text]
    if not found:
        raise UserError(f"no picture in {where}; {', '.join(SUFFIXES)} are looked for")
    return [str(path) for path in found]


def passed_over(text: str) -> list[str]:
    """Names of the files in the folder that input= means, if it means one, that are not taken for pictures."""
    if not is_folder(text):
        return []
    return [path.name for path in _visible(text) if path.is_file() and path.suffix.lower() not in SUFFIXES]


def _visible(folder: str) -> list[Path]:
    return sorted(path for path in Path(folder).iterdir() if not path.name.startswith("."))


def load_picture(
    path: str | Path, size: int = 512, cutout: str = "auto", box: Box | None = None, threshold: float = 1.0
) -> Picture:
    """The object in a picture file, centred, its bounding box 80 % of the side.

    cutout: auto takes transparency that shows an object as it is, else the background is removed, see cutout.py; search
    always removes it; keep never: what is not transparent is the object. box: there is none outside of it. threshold:
    how unlike the background the object is taken to be, against the usual. Asked again for
    the same file, the answer is the same record. Raises UserError for what cannot be used, saying why.
    """
    try:
        stamp = Path(path).stat().st_mtime_ns
    except OSError:
        stamp = 0  # said on reading
    return _loaded(str(path), size, cutout, box, threshold, stamp)


@lru_cache(maxsize=2)  # a run asks for its picture before it loads the prior, and after
def _loaded(path: str, size: int, cutout: str, box: Box | None, threshold: float, stamp: int) -> Picture:
    rgba, notes = read_rgba(Path(path))
    opaque = rgba[..., 3].min() > 0.99
    if not opaque:
        rgba[..., 3], said = strengthened(rgba[..., 3], path)
        notes += said
    search = cutout == "search" or (cutout == "auto" and not is_cut_out(rgba[..., 3]))
    if box is not None:
        rgba[outside(box, *rgba.shape[:2]), 3] = 0.0
    if search:
        given = rgba[..., 3].copy()
        clear = None if given.min() > 0.99 else given < 0.5
        try:
            alpha, said = cut_out(rgba[..., :3], path, clear, threshold)
            rgba[..., 3] = np.minimum(alpha, given)
        except UserError as error:
            if opaque:
                raise
            said = (f"{error}; so all that is not transparent is taken for it",)
        notes += said
    (top, bottom, left, right), said = framed(rgba[..., 3], path)
    if max(bottom - top, right - left) < LEAST_PX:
        raise UserError(
            f"the object in {path} is {right - left} x {bottom - top} px; at least {LEAST_PX} are needed"
        )
    return Picture(*_centred(rgba, top, bottom, left, right, size), notes + said)


def save_picture(path: str | Path, picture: Picture) -> None:
    """What the program sees of the picture, as a PNG with its mask for alpha. Raises UserError."""
    with atomic(path) as temporary:
        Image.fromarray(picture.rgba).save(temporary)


def _centred(rgba: Array, top: int, bottom: int, left: int, right: int, size: int) -> tuple[Tensor, Tensor]:
    """(rgb over white, mask) of the box [top, bottom) x [left, right), centred and scaled."""
    premultiplied = np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], 2)[top:bottom, left:right]
    box = torch.from_numpy(premultiplied.copy()).permute(2, 0, 1)[None]
    scale = size * (1 - BORDER_RATIO) / max(box.shape[2:])
    height, width = max(1, round(box.shape[2] * scale)), max(1, round(box.shape[3] * scale))
    box = F.interpolate(box, (height, width), mode="bicubic", antialias=scale < 1, align_corners=False).clamp(
        0, 1
    )[0]
    canvas = torch.zeros(4, size, size)
    y, x = (size - height) // 2, (size - width) // 2
    canvas[:, y : y + height, x : x + width] = box
    return (canvas[:3] + 1 - canvas[3:]).clamp(0, 1), canvas[3:]
