"""The second stage as a problem for the solver: a texture that follows what the prior makes of its own views.

V views, T texels along the texture's side, C along the coarse one's, M = C^2 + T^2 + 1 rows on the wire. Steps count
from 0. What is learnt is an offset of two scales: a coarse one from all views, of no more texels than they can see,
and a fine one from the known view alone. Adam would otherwise leave the texels between the views' pixels behind, as
grain. The dear part of a step is the novel views' (rendered, noised, denoised in several steps); the known view's
gradient is cheap and taken at the exact place in the roll-out, as in losses.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gs_propeller.adam import first_moment, moved, second_moment
from gs_propeller.camera import Cameras
from gs_propeller.mesh_raster import rasterize
from gs_propeller.randomness import keyed_generator
from gs_propeller.texture import Reference, Textured, lookup, sample_texture

BETAS, EPS = (0.9, 0.99), 1e-15
LOSSES = ("novel", "known")


@dataclass(frozen=True)
class Offsets:
    """Of the texture's colours: coarse [C, C, 3] and fine [T, T, 3]. Also used for moments and gradients."""

    coarse: Tensor
    fine: Tensor

    def __len__(self) -> int:
        """M, rows of `pack`."""
        return len(self.coarse) ** 2 + len(self.fine) ** 2 + 1

    def map(self, fn: Callable[..., Tensor], *others: Offsets) -> Offsets:
        """fn applied field by field."""
        return Offsets(
            *(fn(getattr(self, f.name), *(getattr(o, f.name) for o in others)) for f in fields(self))
        )

    def pack(self) -> Tensor:
        """[M, 3]: C and T, then every texel."""
        sides = self.coarse.new_tensor([[len(self.coarse), len(self.fine), 0]])
        return torch.cat([sides, self.coarse.reshape(-1, 3), self.fine.reshape(-1, 3)])

    @staticmethod
    def unpack(packed: Tensor) -> Offsets:
        """Inverse of pack."""
        coarse, fine = (int(n) for n in packed[0, :2])
        texels = packed[1:].split([coarse * coarse, fine * fine])
        return Offsets(texels[0].reshape(coarse, coarse, 3), texels[1].reshape(fine, fine, 3))


class Novel(NamedTuple):
    """The dear part of a step: the novel views' gradient for the coarse offset [C, C, 3], and their loss [1]."""

    coarse: Tensor
    losses: Tensor

    def pack(self) -> Tensor:
        return self.coarse

    @staticmethod
    def unpack(flat: Tensor, losses: Tensor, params: Offsets) -> Novel:
        """Inverse of pack, flattened; params: what it was evaluated at."""
        return Novel(flat.reshape(params.coarse.shape), losses)

    def at(self, state: RefineState) -> Novel:
        """A texture keeps its rows: one state's drift is any other's."""
        return self


@dataclass(frozen=True)
class RefineState:
    """All that evolves: the offsets, Adam's moments of them, and the number of updates done."""

    params: Offsets
    exp_avg: Offsets
    exp_avg_sq: Offsets
    step: int

    def to(self, device: torch.device | str) -> RefineState:
        p, m, v = (g.map(lambda x: x.to(device)) for g in (self.params, self.exp_avg, self.exp_avg_sq))
        return RefineState(p, m, v, self.step)

    def tensors(self) -> dict[str, Tensor]:
        """Flat names to tensors, for a checkpoint."""
        groups = {g: getattr(self, g) for g in ("params", "exp_avg", "exp_avg_sq")}
        flat = {
            f"{g}.{f.name}": getattr(record, f.name) for g, record in groups.items() for f in fields(Offsets)
        }
        return flat | {"step": torch.tensor(self.step)}

    @staticmethod
    def from_tensors(flat: dict[str, Tensor]) -> RefineState:
        """Inverse of tensors."""
        p, m, v = (
            Offsets(**{f.name: flat[f"{g}.{f.name}"] for f in fields(Offsets)})
            for g in ("params", "exp_avg", "exp_avg_sq")
        )
        return RefineState(p, m, v, int(flat["step"]))


@dataclass(frozen=True)
class RefineSettings:
    """steps; batch: views a step; lr: Adam's, of the texture; size: px of the rendered views;
    strength_max, strength_min: noise strength of the first and last step; lambda_known: of the input view.
    """

    steps: int
    batch: int
    lr: float
    size: int
    strength_max: float
    strength_min: float
    lambda_known: float = 4.0


@dataclass(frozen=True)
class Refinement:
    """DreamGaussian's second stage in four functions, all deterministic: the draws are the step's own.

    cameras_of(step): that step's views. targets_of(step, images [V, 3, S, S], strength): the prior's multi-step
    denoising of them, any size. The loss is the mean squared error to the targets inside the mesh, plus that of
    the known view.
    """

    textured: Textured
    cameras_of: Callable[[int], Cameras]
    targets_of: Callable[[int, Tensor, float], Tensor]
    reference: Reference
    settings: RefineSettings

    def first_state(self) -> RefineState:
        side = len(self.textured.texture)
        coarse = min(side, 2 * self.settings.size)
        zeros = Offsets(torch.zeros(coarse, coarse, 3), torch.zeros(side, side, 3))
        return RefineState(zeros, zeros, zeros, 0)

    def painted(self, params: Offsets) -> Tensor:
        """[T, T, 3] the texture with its offsets, differentiable in them."""
        side = len(self.textured.texture)
        table = params.coarse.permute(2, 0, 1)[None]
        wide = F.interpolate(table, (side, side), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
        return self.textured.texture + wide + params.fine

    def compute(self, params: Sequence[Offsets], steps: Sequence[int]) -> list[Novel]:
        """The dear part of several window slots."""
        return [self._novel(p, step) for p, step in zip(params, steps, strict=True)]

    def _novel(self, params: Offsets, step: int) -> Novel:
        s = self.settings
        strength = s.strength_max + (s.strength_min - s.strength_max) * step / max(s.steps - 1, 1)
        hits = rasterize(self.textured.mesh, self.cameras_of(step), s.size)
        coarse = params.coarse.detach().requires_grad_(True)
        texture = self.painted(Offsets(coarse, params.fine.detach()))
        image = sample_texture(texture, lookup(self.textured, hits), hits.mask)
        target = self.targets_of(step, image.detach(), strength)
        target = F.interpolate(target, image.shape[-2:], mode="bilinear", align_corners=False)
        gap = (image - target).square() * hits.mask[:, None]
        loss = gap.sum() / hits.mask.sum().clamp_min(1) / 3
        (grad,) = torch.autograd.grad(loss, coarse)
        return Novel(grad, loss.detach().reshape(1))

    @cached_property
    def _known_view(self) -> tuple[Tensor, Tensor]:
        hits = rasterize(self.textured.mesh, self.reference.camera, self.reference.image.shape[-1])
        return lookup(self.textured, hits), hits.mask & (self.reference.mask[:, 0] > 0.99)

    def known(self, params: Offsets) -> tuple[Offsets, Tensor]:
        """The known view's gradient and loss [1]: cheap, taken at the exact state."""
        at, mask = self._known_view
        leaves = params.map(lambda x: x.detach().requires_grad_(True))
        gap = (sample_texture(self.painted(leaves), at, mask) - self.reference.image).square() * mask[:, None]
        loss = self.settings.lambda_known * gap.sum() / mask.sum().clamp_min(1) / 3
        coarse, fine = torch.autograd.grad(loss, (leaves.coarse, leaves.fine))
        return Offsets(coarse, fine), loss.detach().reshape(1)

    def update(self, state: RefineState, drift: Novel, known: Offsets) -> RefineState:
        """An Adam step with the gradients of both parts."""
        grads = replace(known, coarse=known.coarse + drift.coarse)
        return self._stepped(state, grads)

    def coast(self, state: RefineState) -> RefineState:
        """The next state if the gradient were what Adam's first moment expects: a guess without a drift."""
        if state.step == 0:
            return replace(state, step=1)
        correction = 1.0 - BETAS[0] ** state.step
        return self._stepped(state, state.exp_avg.map(lambda m: m / correction))

    def _stepped(self, state: RefineState, grads: Offsets) -> RefineState:
        age, lr = state.step + 1, self.settings.lr
        exp_avg = state.exp_avg.map(lambda m, g: first_moment(m, g, BETAS), grads)
        exp_avg_sq = state.exp_avg_sq.map(lambda v, g: second_moment(v, g, BETAS), grads)
        params = state.params.map(
            lambda theta, m, v: moved(theta, m, v, lr, age, BETAS, EPS), exp_avg, exp_avg_sq
        )
        return RefineState(params, exp_avg, exp_avg_sq, age)

    def result(self, state: RefineState) -> Textured:
        with torch.no_grad():
            return replace(self.textured, texture=self.painted(state.params).clamp(0, 1))


def distance(new: RefineState, old: RefineState) -> float:
    """The larger mean squared difference of the two scales' colours, in squares of the range 0..1."""
    gaps = new.params.map(lambda a, b: (a - b).square().mean(), old.params)
    return max(float(gaps.coarse), float(gaps.fine))


def refine_angles(step: int, batch: int, low_rad: float, high_rad: float, seed: int) -> tuple[Tensor, Tensor]:
    """(azimuths, elevations) [V] of one refinement step: round the circle, a function of (seed, step) alone."""
    generator = keyed_generator(seed, step, "refine views")
    turn = (torch.arange(batch) + torch.rand(batch, generator=generator)) * (2 * math.pi / batch)
    return turn, low_rad + (high_rad - low_rad) * torch.rand(batch, generator=generator)
