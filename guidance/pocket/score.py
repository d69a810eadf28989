"""How good a Zero-1-to-3 prior is at turning objects it never saw, beside two rivals that cannot turn anything.

V views of each object, all round. PSNR in dB over white at the prior's own size; IoU of the masks, where a picture
over white has its object: anything that is not nearly white.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gs_propeller.camera import orbit, relative_cameras
from guidance.pocket.data import TEST_SEED, held_out
from guidance.pocket.render import FOV_Y_RAD, RADIUS, on_white, views
from guidance.zero123 import Zero123

NEARLY_WHITE = 0.06


def score(
    prior: Zero123, objects: int = 22, count: int = 8, steps: int = 20, guidance_scale: float = 1.0,
    first_seed: int = TEST_SEED,
) -> dict[str, float]:  # fmt: skip
    """DDIM from noise on held-out objects: mean PSNR and IoU, beside the input view's and a white page's."""
    sums = dict.fromkeys(("psnr_db", "iou", "copy_psnr_db", "copy_iou", "white_psnr_db"), 0.0)
    side = prior.size_px
    turn = (torch.arange(count) + 0.5) * (2 * math.pi / count)
    for index, (thing, pose) in enumerate(held_out(objects, first_seed)):
        lift = pose.elevation_rad + torch.deg2rad(torch.tensor([0.0, 20.0, -15.0])[torch.arange(count) % 3])
        known = on_white(
            views(thing, orbit([pose.azimuth_rad], [pose.elevation_rad], RADIUS, FOV_Y_RAD), side)
        )
        rgba = views(thing, orbit(turn + pose.azimuth_rad, lift, RADIUS, FOV_Y_RAD), side)
        truth, mask = on_white(rgba), rgba[:, 3] > 0.5
        noise = torch.randn(count, *prior.latent_shape, generator=torch.Generator().manual_seed(index))
        codes = relative_cameras(pose.elevation_rad, turn, lift)
        nothing = torch.zeros(count, 3, side, side)
        drawn = prior.refine(nothing, prior.embed(known), codes, noise, 1.0, steps, guidance_scale)
        copied = known.expand(count, -1, -1, -1)
        sums["psnr_db"] += _psnr_db(drawn, truth)
        sums["copy_psnr_db"] += _psnr_db(copied, truth)
        sums["white_psnr_db"] += _psnr_db(torch.ones_like(truth), truth)
        sums["iou"] += _iou(drawn, mask)
        sums["copy_iou"] += _iou(copied, mask)
    return {"objects": objects} | {key: round(value / objects, 3) for key, value in sums.items()}


def _psnr_db(images: Tensor, truth: Tensor) -> float:
    return float((-10 * (images - truth).square().mean((1, 2, 3)).clamp_min(1e-10).log10()).mean())


def _iou(images: Tensor, truth: Tensor) -> float:
    found = (1 - images).amax(1) > NEARLY_WHITE
    return float(((found & truth).sum((1, 2)) / (found | truth).sum((1, 2)).clamp_min(1)).mean())
