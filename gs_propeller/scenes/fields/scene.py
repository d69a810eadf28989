"""Fields as the solver sees them (distil/distillation.py): a radiance field, or signed distances under NeuS' opacity.

Regularisers are of the renders, so they go where the views do: those of the novel views to the guess where gradients
travel, else to the roll-out with the known view's. (The log has what the roll-out takes.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gs_propeller.base.adam import first_moment, moved_columns, second_moment
from gs_propeller.distil.distillation import DEAR, Distillation, Group, Seen
from gs_propeller.distil.pull import Pull
from gs_propeller.scenes.fields.march import FieldView, Look, render
from gs_propeller.scenes.fields.settings import FieldLossSettings, FieldSettings, SdfSettings
from gs_propeller.scenes.fields.state import FieldState, Grids, Slope, first_state

CHEAP = ("rgb", "mask", "normal_smooth", "orient", "sparsity", "opaque", "eikonal")
LOSSES = DEAR + CHEAP
HIT = 0.01  # opacity^2 under the root of the sparsity loss, threestudio's


def look_of(field: FieldSettings, sdf: SdfSettings, scene: str, share: float) -> Look:
    """How grids are seen when that share of the updates is done."""
    ball = field.grid_extent, field.blob_radius, field.blob_density, field.ray_step
    if scene == "field":
        return Look(*ball)
    sharpness = sdf.sharpness_first ** (1 - share) * sdf.sharpness_last**share
    return Look(*ball, True, sharpness, share)


@dataclass(frozen=True)
class FieldScene(Distillation):
    """One asset's distillation on a field; settings.scene says of which kind."""

    field: FieldSettings
    sdf: SdfSettings
    shaping: FieldLossSettings
    cheap: ClassVar[tuple[str, ...]] = CHEAP

    @property
    def distances(self) -> bool:
        return self.settings.scene != "field"

    def look(self, update: int) -> Look:
        return look_of(self.field, self.sdf, self.settings.scene, update / self.updates)

    def first(self, device: torch.device | str = "cpu") -> FieldState:
        return first_state(self.field.grid_cells, self.field.grid_levels, device)

    def rendered(
        self, leaves: Grids, groups: Sequence[Group], update: int, known: bool = False
    ) -> list[FieldView]:
        return render(leaves, self.look(update), groups, self.shaping.normals)

    def regularised(self, seen: Seen, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        for view in seen.views:
            for name, value in self._shaped(view).items():
                losses[name] = losses[name] + value
        if seen.novel is not None:
            losses |= self._eikonal(seen.novel)
        return losses

    def novel_losses(self, view: FieldView, share: float) -> list[Tensor]:
        return [*self._shaped(view).values(), *self._eikonal(view).values()]

    def _shaped(self, view: FieldView) -> dict[str, Tensor]:
        """Losses on a render, by name."""
        losses, s, alpha = dict[str, Tensor](), self.shaping, view.alpha
        if s.lambda_normal_smooth and view.normal is not None:
            across, down = (_mean(view.normal.diff(dim=dim).square()) for dim in (3, 2))
            losses["normal_smooth"] = s.lambda_normal_smooth * (across + down)
        if s.lambda_orient and view.away is not None:
            hit = (alpha.detach() > 0).sum().clamp_min(1)
            losses["orient"] = s.lambda_orient * view.away.sum() / hit
        if s.lambda_sparsity:
            losses["sparsity"] = s.lambda_sparsity * (alpha.square() + HIT).sqrt().mean()
        if s.lambda_opaque:
            o = alpha.clamp(1e-3, 1 - 1e-3)
            losses["opaque"] = -s.lambda_opaque * (o * o.log() + (1 - o) * (1 - o).log()).mean()
        return losses

    def _eikonal(self, view: FieldView) -> dict[str, Tensor]:
        """Of a distance, mean (|slope| - 1)^2 over the finest cells, slopes by differences along a cell's edges."""
        if not (self.distances and self.sdf.lambda_eikonal):
            return {}
        f, cell = view.grid[..., 0], self.field.cell
        corner = f[:-1, :-1, :-1]
        along = f[1:, :-1, :-1] - corner, f[:-1, 1:, :-1] - corner, f[:-1, :-1, 1:] - corner
        squared = sum((d.square() for d in along), torch.zeros_like(corner))
        slope = (squared / cell**2 + 1e-12).sqrt()
        return {"eikonal": self.sdf.lambda_eikonal * (slope - 1).square().mean()}

    def evaluation(self, grads: Grids, renders: Sequence[FieldView], losses: Tensor) -> Slope:
        return Slope(grads, losses)

    def stepped(
        self, state: FieldState, grads: Grids, renders: Sequence[FieldView], drift: Pull | Slope
    ) -> FieldState:
        if isinstance(drift, Slope):
            grads = grads.map(torch.add, drift.grads)
        return self.descended(state, grads)

    def descended(self, state: FieldState, grads: Grids) -> FieldState:
        field, age = self.field, state.step + 1
        left = field.grid_lr_share ** min(state.step / self.updates, 1.0)
        rates = [left * rate for rate in self.rates()]
        m = state.exp_avg.map(lambda m, g: first_moment(m, g, field.betas), grads)
        v = state.exp_avg_sq.map(lambda v, g: second_moment(v, g, field.betas), grads)
        params = state.params.map(
            lambda theta, m, v: moved_columns(theta, m, v, rates, age, field.betas, field.grid_eps), m, v
        )
        return FieldState(params, m, v, age)

    def rates(self) -> list[float]:
        """Of the channels, before they fall."""
        first = self.field.distance_lr if self.distances else self.field.density_lr
        return [first] + 3 * [self.field.colour_lr]

    def coasted(self, state: FieldState) -> FieldState:
        """By the gradient that Adam's first moment expects next, as Gaussians."""
        unbiased = 1.0 - self.field.betas[0] ** max(state.step, 1)
        return self.descended(state, state.exp_avg.map(lambda m: m / unbiased))

    def distance(self, new: FieldState, old: FieldState) -> float:
        """Of two iterates by their parameters: mean squared difference; or, scaled, the worse of channel 0's and the
        others' rms of difference / (atol + rtol |new|)."""
        pairs = list(zip(new.params.levels, old.params.levels, strict=True))
        if self.settings.distance != "scaled":
            total = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
            return total / len(new.params)
        worst = 0.0
        for channels in (slice(0, 1), slice(1, None)):
            total, count = 0.0, 0
            for a, b in pairs:
                one, other = a[..., channels].double(), b[..., channels].double()
                gap = (one - other) / (self.settings.atol + self.settings.rtol * one.abs())
                total, count = total + float(gap.square().sum()), count + gap.numel()
            error = math.sqrt(total / count)
            worst = error if math.isnan(error) else max(worst, error)
        return worst


def _mean(values: Tensor) -> Tensor:
    """[] their mean; nought of none, as the differences along the side of one pixel are."""
    return values.mean() if values.numel() else values.sum()
