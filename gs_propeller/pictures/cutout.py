"""Where the object is in a picture: whether its transparency says so, and a mask where it does not.

H, W: the picture's sides in pixels.
"""

from __future__ import annotations

import importlib.util

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gs_propeller.base.errors import UserError
from gs_propeller.places import rembg_weights

Array = NDArray[np.float32]
Box = tuple[float, float, float, float]  # left, top, right, bottom: shares of the picture's sides
CUT_PX = 512  # side at which the background is searched for
LEAST_PX = 8  # smaller objects hold nothing to fit
VISIBLE = 0.1  # alpha from which there is something
SOLID_SHARE = 0.1  # of what is visible: with less of it over one half, alpha is faint as a whole
CLEAR_SHARE = 0.02  # of the picture: less transparency than that is no cut-out
WHOLE = 0.95  # of both sides: a box of that size is nearly the whole picture
SPECK = 0.01  # of the largest part's area: what is smaller does not count for the box
INSET = 0.04  # of the shorter side: so near to the border is at it
SMALL_SHARE = 0.05  # of the picture: an object of less is said


def outside(box: Box, height: int, width: int) -> NDArray[np.bool_]:
    """[H, W]: what is not in the box."""
    left, top, right, bottom = box
    beyond = np.ones((height, width), dtype=bool)
    rows, columns = (
        slice(int(top * height), round(bottom * height)),
        slice(int(left * width), round(right * width)),
    )
    beyond[rows, columns] = False
    return beyond


def strengthened(alpha: Array, path: str) -> tuple[Array, tuple[str, ...]]:
    """(alpha, notes) with a semi-transparent object made solid: what is fitted is a surface. Raises UserError."""
    visible = alpha[alpha > VISIBLE]
    if not len(visible):
        raise UserError(f"{path} is transparent everywhere: there is no object in it")
    if (visible > 0.5).mean() >= SOLID_SHARE:
        return alpha, ()
    level = float(np.median(visible))
    note = f"{path}: the object is semi-transparent (alpha about {level:.2f}); it is taken as solid"
    return (alpha / level).clip(0, 1), (note,)


def is_cut_out(alpha: Array) -> bool:
    """Whether transparency shows an object, not the rounded corners of a screenshot or a few stray pixels.

    It does not where there is little of it, or where the opaque part's box is nearly the whole picture and mostly
    opaque along its own edge: objects that are cropped tightly touch their box in a few places.
    """
    front = alpha > 0.5
    if front.mean() > 1 - CLEAR_SHARE:
        return False
    top, bottom, left, right = box_of(front)
    whole = bottom - top > WHOLE * alpha.shape[0] and right - left > WHOLE * alpha.shape[1]
    box = front[top:bottom, left:right]
    edge = np.concatenate([box[0], box[-1], box[:, 0], box[:, -1]])
    return not (whole and edge.mean() > 0.5)


def box_of(front: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of what is true, ends excluded; the whole where nothing is."""
    rows, cols = np.flatnonzero(front.any(1)), np.flatnonzero(front.any(0))
    if not len(rows):
        return 0, front.shape[0], 0, front.shape[1]
    return int(rows[0]), int(rows[-1]) + 1, int(cols[0]), int(cols[-1]) + 1


def framed(alpha: Array, path: str) -> tuple[tuple[int, int, int, int], tuple[str, ...]]:
    """(box, notes): of the parts of some size; one stray pixel does not make the object small. Raises UserError."""
    front = alpha > 0.5
    count, _, stats, _ = cv2.connectedComponentsWithStats(front.astype(np.uint8))
    if count < 2:
        raise UserError(f"no object is left in {path}; give a picture with transparency")
    left, top, width, height, area = stats[1:].T
    large = area >= SPECK * area.max()
    box = (
        int(top[large].min()), int((top + height)[large].max()),
        int(left[large].min()), int((left + width)[large].max()),
    )  # fmt: skip
    outside = (top < box[0]) | (top + height > box[1]) | (left < box[2]) | (left + width > box[3])
    specks = area[outside & ~large]
    if not len(specks):
        return box, ()
    return box, (f"{path}: {len(specks)} specks off the object, {specks.max()} px at most, are left out",)


def cut_out(
    rgb: Array, path: str, clear: NDArray[np.bool_] | None = None, threshold: float = 1.0
) -> tuple[Array, tuple[str, ...]]:
    """(alpha [H, W], notes) of a picture without a cut-out, by rembg where that and its model are on this machine, else
    by GrabCut. clear [H, W]: what is background for sure. threshold: how unlike the background the object is
    taken to be, against the usual. Raises UserError where no object
    is found."""
    if max(rgb.shape[:2]) < LEAST_PX:
        raise UserError(f"{path} is {rgb.shape[1]} x {rgb.shape[0]} px; at least {LEAST_PX} are needed")
    if (
        importlib.util.find_spec("rembg") and rembg_weights().is_file()
    ):  # pragma: no cover - needs its weights
        from rembg import remove

        cut = remove(Image.fromarray((rgb * 255).astype(np.uint8)))
        alpha, note = (
            np.asarray(cut, dtype=np.float32)[..., 3] / 255.0,
            f"{path}: background removed by rembg"
            + ("; cutout_threshold= is GrabCut's" if threshold != 1 else ""),
        )
    else:
        alpha = _grab_cut(rgb, path, clear, threshold)
        note = (
            f"{path}: its background was removed by GrabCut, which guesses; look at the result, and correct it by "
            "cutout_box= or cutout_threshold=, or give a picture with alpha (or `pip install rembg` and run it once)"
        )
    return alpha, (note, *_doubts(alpha > 0.5, path))


def _doubts(front: NDArray[np.bool_], path: str) -> tuple[str, ...]:
    """What about an object that was searched for speaks against a good asset."""
    inset = max(1, round(INSET * min(front.shape)))
    inner = front[inset:-inset, inset:-inset]
    said = []
    if inner.size and np.concatenate([inner[0], inner[-1], inner[:, 0], inner[:, -1]]).mean() > 0.02:
        said.append(f"{path}: the object touches the border; what is beyond it is made up")
    if (share := front.mean()) < SMALL_SHARE:
        said.append(f"{path}: the object is {100 * share:.1f} % of the picture; a closer crop shows more")
    return tuple(said)


def _grab_cut(rgb: Array, path: str, clear: NDArray[np.bool_] | None, threshold: float) -> Array:
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
    level = threshold * max(12.0, 1.5 * strange)
    mask[unlike > level] = cv2.GC_PR_FGD if threshold >= 1.0 else cv2.GC_FGD  # who asks for more gets it
    inner = np.zeros_like(ring)
    inner[small.shape[0] // 4 : -(small.shape[0] // 4), small.shape[1] // 4 : -(small.shape[1] // 4)] = True
    if (mask == cv2.GC_PR_FGD).sum() < 20:
        mask[inner] = cv2.GC_PR_FGD
    if threshold > 1.0:
        mask[unlike <= level] = cv2.GC_BGD
    mask[ring] = cv2.GC_BGD
    if clear is not None:
        mask[cv2.resize(clear.astype(np.uint8), mask.shape[::-1], interpolation=cv2.INTER_AREA) > 0] = (
            cv2.GC_BGD
        )
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
