"""The drift: one step's losses and gradients, a pure function of (Gaussians, step).

N Gaussians, V novel views, S pixels. Steps count from 0 to T - 1. Azimuths are relative to the input view,
which stands at azimuth 0 and its own elevation; pictures are over white in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gs_propeller.camera import Cameras, orbit, relative_cameras
from gs_propeller.gaussians import Gaussians, StepStats
from gs_propeller.randomness import keyed_generator
from gs_propeller.raster import Rendered, render

Evaluation = tuple[Gaussians, StepStats, Tensor]  # grads, statistics, losses [L]
LOSSES = ("rgb", "mask", "sds", "opacity", "scale")


class ViewPrior(Protocol):
    """What the drift needs of a prior: see guidance/zero123.py."""

    @property
    def levels(self) -> int: ...

    @property
    def size_px(self) -> int: ...

    @property
    def latent_shape(self) -> tuple[int, int, int]: ...

    def sds_grad(
        self,
        images: Tensor,
        conditioning: Any,
        cameras: Tensor,
        t: Tensor,
        noise: Tensor,
        guidance_scale: float,
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Schedule:
    """What a step looks like; lengths in world units, angles in radians.

    t_min, t_max: shares of the prior's noise levels; anneal_t goes from t_max down to t_min over the steps,
    else t is uniform. lambda_*: weights of the named losses. min/max_elevation: relative to the input's.
    invert_background: probability that a novel view is seen over black.
    """

    steps: int
    batch_size: int
    guidance_scale: float
    t_min: float
    t_max: float
    anneal_t: bool
    lambda_sds: float
    lambda_rgb: float
    lambda_mask: float
    lambda_opacity: float
    lambda_scale: float
    elevation_rad: float
    min_elevation_rad: float
    max_elevation_rad: float
    radius: float
    fov_y_rad: float
    reference_size: int
    render_size: int
    invert_background: float


@dataclass(frozen=True)
class Draw:
    """The random choices of one step: azimuths, elevations [V] radians; t [V]; noise [V, C, L, L]; backdrop [V, 3]."""

    azimuths: Tensor
    elevations: Tensor
    t: Tensor
    noise: Tensor
    backdrop: Tensor


def draw(step: int, schedule: Schedule, prior: ViewPrior, seed: int) -> Draw:
    """The choices of `step`, a function of (seed, step) alone ("eliminating stochasticity", App. C)."""
    views = schedule.batch_size
    where, levels, noise = (keyed_generator(seed, step, purpose) for purpose in ("views", "t", "noise"))
    # Stratified over the circle: V views of one step never look at the same side by chance.
    azimuths = (torch.arange(views) + torch.rand(views, generator=where)) * (2 * math.pi / views)
    azimuths = azimuths + torch.rand(1, generator=where) * 2 * math.pi
    low, high = schedule.min_elevation_rad, schedule.max_elevation_rad
    elevations = schedule.elevation_rad + low + (high - low) * torch.rand(views, generator=where)
    elevations = elevations.clamp(-1.5, 1.5)  # straight up or down has no azimuth
    dark = torch.rand(views, generator=where) < schedule.invert_background
    if schedule.anneal_t:
        share = torch.full(
            (views,), schedule.t_max + (schedule.t_min - schedule.t_max) * step / schedule.steps
        )
    else:
        share = schedule.t_min + (schedule.t_max - schedule.t_min) * torch.rand(views, generator=levels)
    t = (share * prior.levels).long().clamp(0, prior.levels - 1)
    drawn = torch.randn(views, *prior.latent_shape, generator=noise)
    return Draw(azimuths, elevations, t, drawn, (~dark).float()[:, None].expand(views, 3))


@dataclass(frozen=True)
class Distillation:
    """Drift of one picture's distillation. reference [1, 3, S, S] over white, mask [1, 1, S, S]."""

    prior: ViewPrior
    conditioning: Any
    reference: Tensor
    mask: Tensor
    schedule: Schedule
    seed: int
    backend: str = "auto"

    def reference_camera(self) -> Cameras:
        s = self.schedule
        return orbit([0.0], [s.elevation_rad], s.radius, s.fov_y_rad).to(self.reference.device)

    def compute(self, params: Sequence[Gaussians], steps: Sequence[int]) -> list[Evaluation]:
        """`drift` of several window slots, one at a time: the same bits whoever computes them, and how many."""
        return [self.drift(p, step) for p, step in zip(params, steps, strict=True)]

    def drift(self, params: Gaussians, step: int) -> Evaluation:
        """Gradients, densification statistics and losses [L] (in the order of LOSSES) of one step.

        Losses as DreamGaussian's image mode, summed by name: the known view's colour and mask (weights
        growing with the step), and score distillation on V novel views, divided by V so that the batch size
        does not shift the balance (DreamGaussian sums). Raises FloatingPointError where a gradient is not finite.
        """
        s = self.schedule
        params = params.map(lambda x: x.detach().requires_grad_(True))
        device = params.means.device
        warm_up = step / s.steps
        white = torch.ones(3, device=device)

        known = render(params, self.reference_camera(), s.reference_size, white, backend=self.backend)
        losses = {
            "rgb": s.lambda_rgb * warm_up * (known.image - self.reference).square().mean(),
            "mask": s.lambda_mask * warm_up * (known.alpha - self.mask).square().mean(),
        }

        chosen = draw(step, s, self.prior, self.seed)
        cameras = orbit(chosen.azimuths, chosen.elevations, s.radius, s.fov_y_rad).to(device)
        side = s.render_size or self.prior.size_px
        novel = render(params, cameras, side, chosen.backdrop.to(device), backend=self.backend)
        codes = relative_cameras(s.elevation_rad, chosen.azimuths, chosen.elevations).to(device)
        pixels, residual = self.prior.sds_grad(
            novel.image,
            self.conditioning,
            codes,
            chosen.t.to(device),
            chosen.noise.to(device),
            s.guidance_scale,
        )
        views = len(chosen.t)
        # Its gradient is `pixels`; its value is replaced by the residual's below, which says more.
        losses["sds"] = s.lambda_sds / views * (novel.image * pixels).sum()
        opacities, scales = params.logit_opacities.sigmoid(), params.log_scales.exp()
        losses["opacity"] = s.lambda_opacity * (opacities * (1 - opacities)).mean()
        losses["scale"] = s.lambda_scale * scales.square().mean()
        sum(losses.values()).backward()  # type: ignore[union-attr]

        grads = params.map(lambda x: torch.zeros_like(x) if x.grad is None else x.grad)
        if not all(bool(g.isfinite().all()) for _, g in grads.items()):
            raise FloatingPointError(f"step {step}: a gradient is not finite ({_broken(grads)})")
        losses["sds"] = s.lambda_sds / views * residual.sum()
        values = torch.stack([losses[name].detach().reshape(()).float() for name in LOSSES])
        return grads, gathered(known, novel), values


def gathered(*renders: Rendered) -> StepStats:
    """Densification's statistics over all views of a step, where DreamPropeller's release keeps the last view's."""
    zero = torch.zeros(())
    grad, seen, radii = zero, zero, zero
    for view in renders:
        height, width = view.image.shape[-2:]
        at = torch.zeros_like(view.means2d) if view.means2d.grad is None else view.means2d.grad
        half = torch.tensor([width / 2, height / 2], dtype=at.dtype, device=at.device)
        visible = (view.radii_px > 0).to(at.dtype)
        grad = grad + ((at * half).norm(dim=2) * visible).sum(0)
        seen = seen + visible.sum(0)
        largest = view.radii_px.to(at.dtype).amax(0) / max(height, width)
        radii = torch.maximum(radii.to(at), largest)
    return StepStats(grad, seen, radii)


def _broken(grads: Gaussians) -> str:
    return ", ".join(name for name, g in grads.items() if not bool(g.isfinite().all()))
