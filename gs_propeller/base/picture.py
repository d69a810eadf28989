"""The input picture: any common file to a centred object with a mask.

S px along a side. Output is RGB over white in 0..1 with its mask; resampling is premultiplied, so that no
colour from under the transparent part bleeds into the edge.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import warnings
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from gs_propeller.base.errors import UserError

BORDER_RATIO = 0.2  # share of the side that stays free around the object, as Zero-1-to-3 expects
LEAST_PX = 8  # smaller objects hold nothing to fit
CUT_PX = 512  # side at which the background is searched for
MOST_PIXELS = 100_000_000
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # what a folder is searched for

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Picture:
    """rgb [3, S, S] over white; mask [1, S, S]; note: what was done to it, "" if nothing a user should know."""

    rgb: Tensor
    mask: Tensor
    note: str


def picture_files(text: str) -> list[str]:
    """What input= means: a folder's pictures or a pattern's, in the order of their names; else the one file named.

    Raises UserError for a folder or pattern without pictures.
    """
    if Path(text).is_dir():
        found = [path for path in sorted(Path(text).iterdir()) if path.suffix.lower() in SUFFIXES]
        where = f"folder {text}"
    elif any(letter in text for letter in "*?[") and not Path(text).exists():
        found = [Path(path) for path in sorted(glob(text)) if Path(path).is_file()]
        where = f"pattern {text}"
    else:
        return [text]
    if not found:
        raise UserError(f"no picture in {where}; {', '.join(SUFFIXES)} are looked for")
    return [str(path) for path in found]


def load_picture(path: str | Path, size: int = 512) -> Picture:
    """The object in a picture file, centred, its bounding box 80 % of the side.

    Transparency is taken as it is; an opaque picture has its background removed, by rembg where that and its
    model are on this machine, else by GrabCut. Raises UserError for what cannot be used, saying why.
    """
    rgba, note = _read(Path(path)), ""
    if rgba[..., 3].min() > 0.99:
        alpha, note = _cut_out(rgba[..., :3], str(path))
        rgba = np.concatenate([rgba[..., :3], alpha[..., None]], 2)
    rows, cols = np.nonzero(rgba[..., 3] > 0.5)
    if not len(rows):
        raise UserError(f"{path} is transparent everywhere: there is no object in it")
    top, bottom, left, right = rows.min(), rows.max() + 1, cols.min(), cols.max() + 1
    if max(bottom - top, right - left) < LEAST_PX:
        raise UserError(
            f"the object in {path} is {right - left} x {bottom - top} px; at least {LEAST_PX} are needed"
        )
    return Picture(*_centred(rgba, int(top), int(bottom), int(left), int(right), size), note)


def _read(path: Path) -> Array:
    """[H, W, 4] straight-alpha RGBA in 0..1."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; give input= one picture")
    if not path.is_file():
        around = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, around, 1, 0.5)
        raise UserError(f"no picture {path}" + (f"; did you mean {path.parent / near[0]}?" if near else ""))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                width, height = opened.size
                if width * height > MOST_PIXELS:
                    raise UserError(
                        f"{path} has {width} x {height} px; at most {MOST_PIXELS // 10**6} million are read"
                    )
                opened.load()
                image = ImageOps.exif_transpose(opened)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is not a picture that can be read: {error}") from error
    if image.mode.startswith("I"):  # 16 bits a channel: Pillow's own conversion would clip at 255
        grey = np.asarray(image, dtype=np.float32) / (
            65535.0 if image.mode != "I" or np.asarray(image).max() > 255 else 255.0
        )
        return np.stack([grey, grey, grey, np.ones_like(grey)], 2).clip(0, 1)
    return np.asarray(image.convert("RGBA"), dtype=np.float32) / 255.0


def _cut_out(rgb: Array, path: str) -> tuple[Array, str]:
    """(alpha [H, W], note) of an opaque picture."""
    if max(rgb.shape[:2]) < LEAST_PX:
        raise UserError(f"{path} is {rgb.shape[1]} x {rgb.shape[0]} px; at least {LEAST_PX} are needed")
    model = Path(os.environ.get("U2NET_HOME", Path.home() / ".u2net")) / "u2net.onnx"
    if (
        importlib.util.find_spec("rembg") is not None and model.is_file()
    ):  # pragma: no cover - needs its weights
        from rembg import remove

        cut = remove(Image.fromarray((rgb * 255).astype(np.uint8)))
        return np.asarray(cut, dtype=np.float32)[..., 3] / 255.0, f"{path}: background removed by rembg"
    note = (
        f"{path} has no transparency: its background was removed by GrabCut, which guesses; look at the result, or "
        "give a picture with alpha (or `pip install rembg` and run it once)"
    )
    return _grab_cut(rgb, path), note


def _grab_cut(rgb: Array, path: str) -> Array:
    """Alpha [H, W]: GrabCut started from how unlike the border each pixel is."""
    height, width = rgb.shape[:2]
    scale = min(1.0, CUT_PX / max(height, width))
    small = cv2.resize(
        rgb, (max(3, round(width * scale)), max(3, round(height * scale))), interpolation=cv2.INTER_AREA
    )
    colours = (small * 255).astype(np.uint8)
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB)
    edge = max(1, min(small.shape[:2]) // 40)
    ring = np.ones(small.shape[:2], dtype=bool)
    ring[edge:-edge, edge:-edge] = False
    if ring.all():
        raise UserError(f"{path} is too small to find an object in; give a picture with transparency")
    # Distance to the nearest of a few border colours: a background may have several.
    samples = lab[ring].astype(np.float32)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 1.0)
    cv2.setRNGSeed(0)
    clusters = min(4, len(samples))
    _, _, centres = cv2.kmeans(
        samples, clusters, np.zeros((len(samples), 1), np.int32), criteria, 1, cv2.KMEANS_PP_CENTERS
    )
    unlike = np.min(np.linalg.norm(lab[:, :, None] - centres[None, None], axis=3), axis=2)
    strange = float(
        np.percentile(np.min(np.linalg.norm(samples[:, None] - centres[None], axis=2), axis=1), 95)
    )
    mask = np.full(small.shape[:2], cv2.GC_PR_BGD, dtype=np.uint8)
    mask[unlike > max(12.0, 1.5 * strange)] = cv2.GC_PR_FGD
    inner = np.zeros_like(ring)
    inner[small.shape[0] // 4 : -(small.shape[0] // 4), small.shape[1] // 4 : -(small.shape[1] // 4)] = True
    if (mask == cv2.GC_PR_FGD).sum() < 20:
        mask[inner] = cv2.GC_PR_FGD
    mask[ring] = cv2.GC_BGD
    models = np.zeros((1, 65)), np.zeros((1, 65))
    try:
        cv2.grabCut(colours, mask, None, *models, 5, cv2.GC_INIT_WITH_MASK)
    except cv2.error as error:
        raise UserError(
            f"no object stands out from the background of {path}; give a picture with transparency"
        ) from error
    front = ((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    front = cv2.morphologyEx(cv2.morphologyEx(front, cv2.MORPH_OPEN, kernel), cv2.MORPH_CLOSE, kernel)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(front)
    if count < 2 or stats[1:, cv2.CC_STAT_AREA].max() < 0.002 * front.size:
        raise UserError(
            f"no object stands out from the background of {path}; give a picture with transparency"
        )
    largest = (labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())).astype(np.float32)
    soft = cv2.GaussianBlur(largest, (3, 3), 0)
    return cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR).clip(0, 1)


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
