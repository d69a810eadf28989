"""The losses of a step and their gradients, pure functions of (Gaussians, step), in a dear and a cheap part.

N Gaussians, V novel views, K slots, S pixels. Steps count from 0 to T - 1. Azimuths are relative to the input view,
which stands at azimuth 0 and its own elevation; pictures are over white in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gs_propeller.base.camera import Cameras, orbit, relative_cameras
from gs_propeller.base.randomness import keyed_generator
from gs_propeller.scenes.gaussians.raster import Rendered, render, render_slots
from gs_propeller.scenes.gaussians.state import Drift, Evaluation, Gaussians, StepStats

DEAR, CHEAP = ("sds",), ("rgb", "mask", "opacity", "scale")
LOSSES = DEAR + CHEAP


class ViewPrior(Protocol):
    """What the drift needs of a prior: see guidance/diffusion.py."""

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
        weighting: str = "noise",
        space: str = "latent",
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Guide:
    """A prior with what it is told: its conditioning, guidance scale, and the weight of its gradient."""

    prior: ViewPrior
    conditioning: Any
    guidance_scale: float
    weight: float = 1.0


@dataclass(frozen=True)
class Schedule:
    """What a step looks like; lengths in world units, angles in radians.

    sds_weight: "noise" or "clean", of the levels; sds_space: "latent" or "pixel" (guidance/diffusion.py). t_min, t_max:
    shares of the prior's noise levels; anneal_t goes from t_max down to t_min over the steps, else t is uniform.
    lambda_*: weights of the named losses. min/max_elevation: relative to the input's.
    invert_background: probability that a novel view is seen over black.
    """

    steps: int
    batch_size: int
    sds_weight: str
    sds_space: str
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
    """The random choices of one step: azimuths, elevations [V] radians; backdrop [V, 3]; and for each prior, t [V] and
    noise [V, C, L, L]."""

    azimuths: Tensor
    elevations: Tensor
    backdrop: Tensor
    t: tuple[Tensor, ...]
    noise: tuple[Tensor, ...]


def draw(step: int, schedule: Schedule, priors: Sequence[ViewPrior], seed: int) -> Draw:
    """The choices of `step`, a function of (seed, step) alone ("eliminating stochasticity", App. C)."""
    views = schedule.batch_size
    where, levels = (keyed_generator(seed, step, purpose) for purpose in ("views", "t"))
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
    t = tuple((share * prior.levels).long().clamp(0, prior.levels - 1) for prior in priors)
    noise = tuple(
        torch.randn(
            views, *prior.latent_shape, generator=keyed_generator(seed, step, f"noise{k}" if k else "noise")
        )
        for k, prior in enumerate(priors)
    )
    return Draw(azimuths, elevations, (~dark).float()[:, None].expand(views, 3), t, noise)


@dataclass(frozen=True)
class Distillation:
    """The losses of one asset's distillation. reference [1, 3, S, S] over white, mask [1, 1, S, S]; None without a
    picture: then a step's cheap part is the regularisers alone.

    In two parts, a step's gradient being their sum. `compute`: score distillation, dear, evaluated in parallel
    at guesses. `known`: the picture's own view and the regularisers, cheap and by far the stiffest, taken at
    the exact place in the roll-out. (All in `compute`, a window of 8 lost 0.9 dB of the input view and took a
    quarter more passes.) batch_slots: slots rendered and denoised in one call; 1 gives the same bits whatever
    rank a slot goes to. skip_broken: a gradient that is not finite counts as zero, instead of raising.
    """

    guides: tuple[Guide, ...]
    reference: Tensor | None
    mask: Tensor | None
    schedule: Schedule
    seed: int
    backend: str = "auto"
    batch_slots: int = 1
    skip_broken: bool = False

    def reference_camera(self) -> Cameras:
        s = self.schedule
        return orbit([0.0], [s.elevation_rad], s.radius, s.fov_y_rad)

    def compute(self, params: Sequence[Gaussians], steps: Sequence[int]) -> list[Evaluation]:
        """Gradients, densification statistics and losses [1] of DEAR, of several window slots.

        Raises FloatingPointError where a gradient is not finite, naming the step and the loss.
        """
        results: list[Evaluation] = []
        for first in range(0, len(params), self.batch_slots):
            slots = slice(first, first + self.batch_slots)
            results += self._novel(params[slots], steps[slots])
        return results

    def _novel(self, params: Sequence[Gaussians], steps: Sequence[int]) -> list[Evaluation]:
        """One render, and one encoding and one UNet call of each prior, for K slots of V views."""
        s = self.schedule
        leaves = [_leaves(p) for p in params]
        device = leaves[0].means.device
        draws = [draw(step, s, [guide.prior for guide in self.guides], self.seed) for step in steps]
        cameras = [orbit(d.azimuths, d.elevations, s.radius, s.fov_y_rad).to(device) for d in draws]
        side = s.render_size or max(guide.prior.size_px for guide in self.guides)
        backdrops = [d.backdrop.to(device) for d in draws]
        novel = render_slots(leaves, cameras, side, backdrops, backend=self.backend)
        codes = torch.cat([relative_cameras(s.elevation_rad, d.azimuths, d.elevations) for d in draws])
        images = torch.cat([view.image for view in novel])
        pull, residuals = torch.zeros_like(images), images.new_zeros(len(images))
        for k, guide in enumerate(self.guides):
            t, noise = torch.cat([d.t[k] for d in draws]), torch.cat([d.noise[k] for d in draws])
            pixels, residual = guide.prior.sds_grad(
                images, guide.conditioning, codes.to(device), t.to(device), noise.to(device),
                guide.guidance_scale, s.sds_weight, s.sds_space,
            )  # fmt: skip
            pull, residuals = pull + guide.weight * pixels, residuals + guide.weight * residual
        # Divided by V, so that the batch size does not shift the balance (DreamGaussian sums).
        weight = s.lambda_sds / s.batch_size
        (weight * images * pull).sum().backward()
        results = []
        for step, leaf, view, residual in zip(
            steps, leaves, novel, residuals.split(s.batch_size), strict=True
        ):
            # what the log shows: the gradient's own surrogate says nothing
            value = (weight * residual.sum()).detach().reshape(1).float()
            results.append(self._checked(leaf, step, [view], DEAR, value))
        return results

    def known(self, params: Gaussians, step: int) -> Evaluation:
        """Gradients, statistics and losses [L - 1] of CHEAP: the known view's colour and mask (weights growing
        with the step, as DreamGaussian's image mode) and the regularisers. Raises FloatingPointError."""
        s = self.schedule
        leaves = _leaves(params)
        opacities, scales = leaves.logit_opacities.sigmoid(), leaves.log_scales.exp()
        losses = {
            "rgb": leaves.means.new_zeros(()),
            "mask": leaves.means.new_zeros(()),
            "opacity": s.lambda_opacity * (opacities * (1 - opacities)).mean(),
            "scale": s.lambda_scale * scales.square().mean(),
        }
        views = []
        if self.reference is not None and self.mask is not None:
            white, camera = torch.ones(3).to(leaves.means), self.reference_camera().to(leaves.means.device)
            view = render(leaves, camera, s.reference_size, white, backend=self.backend)
            warm_up = step / s.steps
            losses["rgb"] = s.lambda_rgb * warm_up * (view.image - self.reference).square().mean()
            losses["mask"] = s.lambda_mask * warm_up * (view.alpha - self.mask).square().mean()
            views.append(view)
        sum(losses.values()).backward()  # type: ignore[union-attr]
        values = torch.stack([losses[name].detach().reshape(()).float() for name in CHEAP])
        return self._checked(leaves, step, views, CHEAP, values)

    def _checked(
        self, leaves: Gaussians, step: int, views: Sequence[Rendered], names: Sequence[str], values: Tensor
    ) -> Evaluation:
        grads = leaves.map(lambda x: torch.zeros_like(x) if x.grad is None else x.grad)
        finite = torch.stack(
            [g.isfinite().all() for _, g in grads.items()]
        ).tolist()  # one wait for the device
        broken = [name for (name, _), fine in zip(grads.items(), finite, strict=True) if not fine]
        if not broken:
            stats = gathered(*views) if views else StepStats.zeros(grads)
            return Evaluation(grads, stats, values)
        if self.skip_broken:
            return Evaluation(grads.map(torch.zeros_like), StepStats.zeros(grads), values)
        guilty = [
            name for name, value in zip(names, values.tolist(), strict=True) if not math.isfinite(value)
        ]
        raise FloatingPointError(
            f"step {step}: loss {', '.join(guilty or names)}: the gradient of {', '.join(broken)} is not finite; "
            "nonfinite=skip goes on without it"
        )


def total(dear: Drift, cheap: Evaluation) -> Drift:
    """The step's whole drift at the rows of both: gradients and sightings added, the larger radius."""
    grads, stats, losses = cheap
    both = StepStats(
        dear.stats.grad2d + stats.grad2d,
        dear.stats.seen + stats.seen,
        torch.maximum(dear.stats.radii, stats.radii),
    )
    return Drift(dear.grads.map(torch.add, grads), both, dear.lineage, torch.cat([dear.losses, losses]))


def _leaves(params: Gaussians) -> Gaussians:
    return params.map(lambda x: x.detach().requires_grad_(True))


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
