"""What the priors make of a step's renders: the dear part of a step, a function of pictures, and its result pictures.

V views, S their side, K slots. A pull P [V, 3, S, S] is the gradient of score distillation for the renders R, at the
guess where they were rendered. At another place of the same step, where the same views show R', the pull that is used
is P + kappa (R' - R): kappa [V] says how much of a render's change the prior's clean picture does not follow. At R' = R
that is P to the bit, so a window at threshold 0 is the serial loop. (The paper's Eq. 8 to 11 with another choice of the
unit that is computed apart: theirs is the gradient for the parameters.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gs_propeller.distil.draw import Draw, Noised
from gs_propeller.distil.settings import PullSettings
from gs_propeller.distil.symmetry import Variant

LEAST = 0.1  # share of a change that is never ruled out: what is measured is an average


class ViewPrior(Noised, Protocol):
    """What a pull needs of a prior: see guidance/diffusion.py."""

    @property
    def size_px(self) -> int: ...

    def sds_grad(
        self,
        images: Tensor,
        conditioning: Any,
        cameras: Tensor,
        t: Tensor,
        noise: Tensor,
        guidance_scale: float,
        weighting: str = "noise",
        space: str = "latent",
    ) -> tuple[Tensor, Tensor]: ...

    def share(self, t: Tensor, space: str, follows: str) -> Tensor: ...

    def stiffness(self, t: Tensor, weighting: str, space: str, follows: str) -> Tensor: ...


@dataclass(frozen=True)
class Guide:
    """A prior with what it is told: its conditioning, guidance scale, and the weight of its gradient.

    Below a noise level of csd_below, a share of all, what the prior does to any picture, told nothing, counts csd_rest
    of itself beside what the conditioning changes of it: there it pulls blurred renders towards paler ones, step by
    step (classifier score distillation, Yu et al. 2023, has a rest of 0).
    variants: whether the conditioning has a row for each of symmetry.variants, so that views can be asked for in them.
    """

    prior: ViewPrior
    conditioning: Any
    guidance_scale: float
    weight: float = 1.0
    csd_below: float = 0.0
    csd_rest: float = 1.0
    variants: bool = False


class Pull(NamedTuple):
    """What travels: pull and seen [V, 3, S, S], the gradient P for the renders R and those renders; kappa [V]; share
    [V], a, of a render's change that comes through to the prior's clean picture; losses [1], for the log, no number
    where the step was skipped."""

    pull: Tensor
    seen: Tensor
    kappa: Tensor
    share: Tensor
    losses: Tensor

    def parts(self) -> Sequence[Tensor]:
        return self

    @staticmethod
    def of(*parts: Tensor) -> Pull:
        return Pull(*parts)

    def skipped(self) -> Pull:
        """In its place where it is not finite: none, wherever the views are taken, and no number as its loss."""
        zero = torch.zeros_like(self.kappa)
        return self._replace(
            pull=torch.zeros_like(self.pull), kappa=zero, losses=torch.full_like(self.losses, math.nan)
        )

    def at(self, state: object) -> Pull:
        """Pictures are any state's."""
        return self

    def here(self, images: Tensor) -> Tensor:
        """The pull where the same views show `images` [V, 3, S, S]."""
        return self.pull + self.kappa[:, None, None, None] * (images - self.seen)

    def mismatch(self, images: Tensor) -> float:
        """Mean squared change of the prior's clean pictures, to first order: of the renders, times the square of the
        share that comes through. 0 only where the pull is the same: LEAST is taken of any share, and in float64 a
        difference of two floats is exact and its square does not vanish."""
        moved = (images.double() - self.seen.double()).square().mean((1, 2, 3))
        return float((moved * self.share.double().clamp_min(LEAST).square()).mean())


def _varied(
    guide: Guide,
    images: Tensor,
    codes: Tensor,
    variant: Variant | None,
    t: Tensor,
    noise: Tensor,
    settings: PullSettings,
) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient [V, 3, S, S], residual [V], kappa [V]) of one prior, which sees each view in its variant; None: as it
    is."""
    if variant is None:
        return _pulled(guide, images, codes, t, noise, settings)
    told, shown, there = variant.asked(guide.conditioning, images, codes)
    pixels, misses, stays = _pulled(replace(guide, conditioning=told), shown, there, t, noise, settings)
    return variant.undone(pixels.to(images)), misses, stays


def _pulled(
    guide: Guide, images: Tensor, codes: Tensor, t: Tensor, noise: Tensor, settings: PullSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient [V, 3, S, S], residual [V], kappa [V]) of one prior."""
    how = settings.sds_weight, settings.sds_space
    pixels, misses = guide.prior.sds_grad(
        images, guide.conditioning, codes, t, noise, guide.guidance_scale, *how
    )
    stays = guide.prior.stiffness(t, *how, settings.follows)
    if not guide.csd_below or guide.csd_rest == 1:
        return pixels, misses, stays  # to look which are low is to wait for the device
    low = (t < guide.csd_below * guide.prior.levels).nonzero()[:, 0]
    if len(low):
        bare, _ = guide.prior.sds_grad(
            images[low], guide.conditioning, codes[low], t[low], noise[low], 0.0, *how
        )
        pixels = pixels.index_add(0, low.to(pixels.device), bare, alpha=guide.csd_rest - 1)
        there = low.to(stays.device)
        stays = stays.index_copy(0, there, guide.csd_rest * stays[there])
    return pixels, misses, stays


@torch.no_grad()
def pulls(
    images: Sequence[Tensor], draws: Sequence[Draw], guides: Sequence[Guide], settings: PullSettings
) -> list[Pull]:
    """The pulls of K slots, by one encoding and one UNet call of each prior. images: K of [V, 3, S, S]."""
    together = torch.cat(list(images))
    pull, residual = torch.zeros_like(together), together.new_zeros(len(together))
    stiff, shares = together.new_zeros(len(together)), together.new_zeros(len(together))
    codes = torch.cat([d.codes for d in draws]).to(together.device)
    for k, guide in enumerate(guides):
        variant = Variant.joined([d.variant for d in draws], together.device) if guide.variants else None
        t, noise = (
            torch.cat([getattr(d, name)[k] for d in draws]).to(codes.device) for name in ("t", "noise")
        )
        pixels, misses, stays = _varied(guide, together, codes, variant, t, noise, settings)
        pull = pull + guide.weight * pixels.to(pull)  # a prior may stand on a device of its own
        residual = residual + guide.weight * misses.to(residual)
        stiff = stiff + guide.weight * stays.to(stiff)
        share = guide.prior.share(t, settings.sds_space, settings.follows)
        shares = torch.maximum(shares, share.to(shares))
    # Divided by V, so that the batch size does not shift the balance (DreamGaussian sums).
    weight = settings.lambda_sds / len(images[0])
    counts = [len(x) for x in images]
    scaled = ((weight * x).split(counts) for x in (pull, stiff, residual))
    parts = zip(*scaled, shares.split(counts), images, strict=True)
    return [Pull(p, seen, k, a, r.sum().reshape(1).float()) for p, k, r, a, seen in parts]
