"""How good a Zero-1-to-3 prior is at turning objects it never saw, beside two rivals that cannot turn anything.

V views of each object, all round. PSNR in dB over white at the prior's own size; IoU of the masks, where a picture
over white has its object: anything that is not nearly white.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gs_propeller.base.camera import orbit, relative_cameras
from guidance.pocket.data import TEST_SEED, Pose, held_out
from guidance.pocket.render import FOV_Y_RAD, RADIUS, Shown, on_white, views
from guidance.zero123 import Zero123

NEARLY_WHITE = 0.06


@dataclass(frozen=True)
class Turned:
    """An object's known view [3, S, S] over white, and V views of it: truth [V, 3, S, S], masks [V, S, S], and the
    angles [V] they are seen from, radians, azimuths from the known view's."""

    known: Tensor
    truth: Tensor
    masks: Tensor
    azimuths_rad: Tensor
    elevations_rad: Tensor
    pose: Pose


def turned(thing: Shown, pose: Pose, size_px: int, count: int = 8) -> Turned:
    """`count` views all round, half a step off the known one, at three heights."""
    turn = (torch.arange(count) + 0.5) * (2 * math.pi / count)
    lift = pose.elevation_rad + torch.deg2rad(torch.tensor([0.0, 20.0, -15.0])[torch.arange(count) % 3])
    front = orbit([pose.azimuth_rad], [pose.elevation_rad], RADIUS, FOV_Y_RAD)
    rgba = views(thing, orbit(turn + pose.azimuth_rad, lift, RADIUS, FOV_Y_RAD), size_px)
    known = on_white(views(thing, front, size_px))[0]
    return Turned(known, on_white(rgba), rgba[:, 3] > 0.5, turn, lift, pose)


def sampled(prior: Zero123, case: Turned, steps: int, seed: int, guidance_scale: float = 1.0) -> Tensor:
    """[V, 3, S, S]: the prior's own novel views, DDIM from noise."""
    count = len(case.truth)
    noise = torch.randn(count, *prior.latent_shape, generator=torch.Generator().manual_seed(seed))
    codes = relative_cameras(case.pose.elevation_rad, case.azimuths_rad, case.elevations_rad)
    nothing = torch.zeros_like(case.truth)
    return prior.refine(
        nothing,
        prior.embed(case.known[None], case.pose.elevation_rad),
        codes,
        noise,
        1.0,
        steps,
        guidance_scale,
    ).cpu()


def score(
    prior: Zero123, objects: int = 42, count: int = 8, steps: int = 20, first_seed: int = TEST_SEED
) -> dict[str, float]:
    """Mean PSNR and IoU on held-out objects, beside the known view's and a white page's."""
    sums = dict.fromkeys(("psnr_db", "iou", "copy_psnr_db", "copy_iou", "white_psnr_db"), 0.0)
    for index, (thing, pose) in enumerate(held_out(objects, first_seed)):
        case = turned(thing, pose, prior.size_px, count)
        drawn, copied = sampled(prior, case, steps, index), case.known.expand(count, -1, -1, -1)
        sums["psnr_db"] += psnr_db(drawn, case.truth)
        sums["copy_psnr_db"] += psnr_db(copied, case.truth)
        sums["white_psnr_db"] += psnr_db(torch.ones_like(case.truth), case.truth)
        sums["iou"] += iou(drawn, case.masks)
        sums["copy_iou"] += iou(copied, case.masks)
    return {"objects": objects} | {key: round(value / objects, 3) for key, value in sums.items()}


def fixed_sample(prior: Zero123) -> Tensor:
    """[3, 4, 4]: the back of one held-out object by 8 DDIM steps, in coarse pixels, to know weights again by."""
    case = turned(*held_out(1)[0], prior.size_px, 2)
    return F.adaptive_avg_pool2d(sampled(prior, case, 8, 0)[0], 4)


def psnr_db(images: Tensor, truth: Tensor) -> float:
    """Mean over views of [V, 3, S, S] in 0..1."""
    return float((-10 * (images - truth).square().mean((1, 2, 3)).clamp_min(1e-10).log10()).mean())


def iou(images: Tensor, masks: Tensor) -> float:
    """Mean over views; images [V, 3, S, S] over white against masks [V, S, S]."""
    found = (1 - images).amax(1) > NEARLY_WHITE
    return float(((found & masks).sum((1, 2)) / (found | masks).sum((1, 2)).clamp_min(1)).mean())
