"""A picture file as straight RGBA: any common format, upright, in sRGB, and no larger than is used.

Shrinking comes first: of a photograph of 50 million pixels, what is centred and fitted is a few hundred across.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from gs_propeller.base.errors import UserError
from gs_propeller.base.grey import deep_grey, is_deep
from gs_propeller.base.paths import is_file, is_folder

MOST_PIXELS = 100_000_000
WORK_PX = 2048  # longest side that is kept: an object of a fifth of it still has the pixels that the fit uses
# No others: for some Pillow starts programs, as Ghostscript for EPS.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "TIFF", "GIF", "HEIF", "AVIF", "PPM", "TGA")
# May hold several pictures; what a phone adds to its JPEG is none.
MOVING = ("GIF", "WEBP", "PNG", "AVIF", "TIFF")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

Array = NDArray[np.float32]


def read_rgba(path: Path) -> tuple[Array, tuple[str, ...]]:
    """([H, W, 4] straight-alpha RGBA in 0..1, notes), the longest side at most WORK_PX. Raises UserError."""
    with _opened(path) as opened:
        opened.draft(None, (WORK_PX, WORK_PX))  # a JPEG is decoded at a half, a quarter or an eighth
        width, height = opened.size
        if width * height > MOST_PIXELS:
            raise UserError(
                f"{path} has {width} x {height} px; at most {MOST_PIXELS // 10**6} million are read, of a JPEG more"
            )
        frames = getattr(opened, "n_frames", 1) if opened.format in MOVING else 1
        opened.load()
        rgba, notes = _straight(opened, path)
    if frames > 1:
        notes += (f"{path} has {frames} pictures; the first is taken",)
    return rgba, notes


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) px by the file's header, nothing decoded. Raises UserError."""
    with _opened(path) as opened:
        return opened.size


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Raises UserError for what is no picture, whenever that is found."""
    if is_folder(path):
        raise UserError(f"{path} is a folder; give input= one picture")
    if not is_file(path):
        around = [p.name for p in path.parent.iterdir()] if is_folder(path.parent) else []
        near = difflib.get_close_matches(path.name, around, 1, 0.5)
        raise UserError(f"no picture {path}" + (f"; did you mean {path.parent / near[0]}?" if near else ""))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            _allow_heif(path)
            # by a file object: of a name, Pillow maps uncompressed TIFFs with their sides already turned by EXIF
            Image.init()
            formats = [name for name in FORMATS if name in Image.OPEN]
            with path.open("rb") as file, Image.open(file, formats=formats) as opened:
                yield opened
    except UserError:
        raise
    except UnidentifiedImageError as error:  # whose text names a Python object, not the file
        raise UserError(
            f"{path} is not a picture that can be read: PNG, JPEG, WebP, BMP and TIFF are, whatever their names end in"
        ) from error
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is not a picture that can be read: {error}") from error


def _allow_heif(path: Path) -> None:
    """Teaches Pillow HEIC, which iPhones write, where that is wanted. Raises UserError where it cannot be."""
    with path.open("rb") as file:
        head = file.read(12)
    if head[4:8] != b"ftyp" or head[8:12] not in HEIF_BRANDS:
        return
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise UserError(
            f"{path} is a HEIC picture; `pip install pillow-heif` to have it read, or save it as JPEG or PNG"
        ) from error
    register_heif_opener()


def _straight(image: Image.Image, path: Path) -> tuple[Array, tuple[str, ...]]:
    if is_deep(image):
        grey = deep_grey(ImageOps.exif_transpose(image))
        if max(grey.shape) > WORK_PX:
            scale = WORK_PX / max(grey.shape)
            grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        return np.stack([grey, grey, grey, np.ones_like(grey)], 2).clip(0, 1), ()
    profile = image.info.get("icc_profile")
    if image.mode in ("P", "PA", "1") or "transparency" in image.info:
        image = image.convert("RGBA")
    if max(image.size) > WORK_PX:
        image = image.copy()
        image.thumbnail((WORK_PX, WORK_PX), Image.Resampling.LANCZOS)  # by itself premultiplied
    image = ImageOps.exif_transpose(image)
    image, notes = _in_srgb(image, profile, path) if profile else (image, ())
    return np.asarray(image.convert("RGBA"), dtype=np.float32) / 255.0, notes


def _in_srgb(image: Image.Image, profile: bytes, path: Path) -> tuple[Image.Image, tuple[str, ...]]:
    """The picture's colours as sRGB has them, from those of the profile that it carries (Display P3, Adobe RGB)."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if ImageCms.getProfileDescription(source).startswith("sRGB"):
            return image, ()
        alpha = image.getchannel("A") if "A" in image.getbands() else None
        bare = image.convert(image.mode[:-1]) if alpha is not None else image
        told = ImageCms.profileToProfile(bare, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, KeyError):
        return image, (f"{path}: its colour profile cannot be used; colours are taken for sRGB",)
    if alpha is not None:
        told.putalpha(alpha)
    return told, ()
