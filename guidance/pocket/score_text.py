"""How good a text prior is by itself: pictures it draws from sentences, judged by a retrieval model it never met.

V views. For held-out objects' own captions, each from one side: how often the judge (bench/retrieval.py) finds the
right caption among 30 for the picture, beside how often it does for the true view.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from gs_propeller.base.camera import orbit, relative_cameras
from guidance.pocket.captions import articled
from guidance.pocket.families import make
from guidance.pocket.render import FOV_Y_RAD, RADIUS, on_white, views
from guidance.pocket.text_stream import SLOTS, spoken
from guidance.stable_diffusion import StableDiffusion

TEST_SEED = 3_000  # of objects that neither the prior nor the judge was trained on
AZIMUTHS_DEG = (0.0, 90.0, 180.0, -90.0)
Chosen = Callable[[Tensor, list[str]], Tensor]  # pictures [V, 3, H, W], sentences -> [V] which sentence


def sampled(
    prior: StableDiffusion, prompt: str, azimuths_deg: list[float], elevation_deg: float, steps: int,
    guidance_scale: float, seed: int,
) -> Tensor:  # fmt: skip
    """[V, 3, S, S]: the prior's own pictures of a sentence from those sides, DDIM from noise."""
    count = len(azimuths_deg)
    noise = torch.randn(count, *prior.latent_shape, generator=torch.Generator().manual_seed(seed))
    azimuths = torch.deg2rad(torch.tensor(azimuths_deg))
    codes = relative_cameras(0.0, azimuths, torch.full((count,), math.radians(elevation_deg)))
    nothing = torch.zeros(count, 3, prior.size_px, prior.size_px)
    return prior.refine(nothing, prior.embed(prompt), codes, noise, 1.0, steps, guidance_scale).cpu()


def truth(family: str, seed: int, azimuth_deg: float, elevation_deg: float, size_px: int) -> Tensor:
    """[1, 3, S, S]: what there is to see of an object from that side."""
    angles = [math.radians(azimuth_deg)], [math.radians(elevation_deg)]
    return on_white(views(spoken(family, seed), orbit(*angles, RADIUS, FOV_Y_RAD), size_px))


def score(
    prior: StableDiffusion, chosen: Chosen, prompts: int = 60, steps: int = 10, guidance_scale: float = 3.0
) -> dict[str, float]:
    """Shares of right captions of 30, for the prior's pictures and for the true ones."""
    cases = [(SLOTS[(TEST_SEED + k) % len(SLOTS)], TEST_SEED + k) for k in range(prompts)]
    captions = [articled(make(*case).caption) for case in cases]
    drawn, real = [], []
    for k, (case, caption) in enumerate(zip(cases, captions, strict=True)):
        azimuth = AZIMUTHS_DEG[k % 4]
        drawn.append(sampled(prior, caption, [azimuth], 15.0, steps, guidance_scale, k))
        real.append(truth(*case, azimuth, 15.0, prior.size_px))
    found = {"top1": 0.0, "true_top1": 0.0}
    for first in range(0, prompts, 30):
        part = slice(first, first + 30)
        for name, images in (("top1", drawn), ("true_top1", real)):
            which = chosen(torch.cat(images[part]), captions[part])
            found[name] += float((which == torch.arange(len(which))).sum())
    return {"prompts": prompts} | {name: round(value / prompts, 3) for name, value in found.items()}


def fixed_sample(prior: StableDiffusion) -> Tensor:
    """[3, 4, 4]: one sentence's picture by 8 DDIM steps, in coarse pixels, to know weights again by."""
    image = sampled(prior, "a red cube on a blue cylinder", [0.0], 15.0, 8, 3.0, 0)
    return F.adaptive_avg_pool2d(image[0], 4)


def sheet(prior: StableDiffusion, prompts: list[str], steps: int = 10, guidance_scale: float = 3.0) -> Tensor:
    """[3, H, W]: a row of four sides for each sentence."""
    rows = [
        torch.cat(list(sampled(prior, p, list(AZIMUTHS_DEG), 15.0, steps, guidance_scale, 0)), 2)
        for p in prompts
    ]
    return torch.cat(rows, 1)
