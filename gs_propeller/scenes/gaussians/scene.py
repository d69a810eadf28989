"""Gaussians as the solver sees them (distil/distillation.py).

N Gaussians. Gradients that travel are re-indexed where rows differ. The regularisers are taken in the roll-out; that of
the novel views where these are rendered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from gs_propeller.distil.distillation import DEAR, Distillation, Group, Seen, leaves_of
from gs_propeller.distil.draw import camera_of, known_camera
from gs_propeller.distil.palette import Palette, shown
from gs_propeller.distil.pull import Pull
from gs_propeller.scenes.gaussians import density
from gs_propeller.scenes.gaussians.adam import adam_step
from gs_propeller.scenes.gaussians.density import reindex
from gs_propeller.scenes.gaussians.raster.render import Rendered, gathered, render_groups
from gs_propeller.scenes.gaussians.settings import (
    AdamSettings,
    BallSettings,
    DensifySettings,
    RegulariserSettings,
)
from gs_propeller.scenes.gaussians.state import SH_C0, Drift, Evaluation, Gaussians, State, init_ball

CHEAP = ("rgb", "mask", "opacity", "scale", "haze")
LOSSES = DEAR + CHEAP
AROUND, AROUND_PX = 8, 128  # views, the first the input's, that say who paints what


@dataclass(frozen=True)
class GaussianScene(Distillation):
    """One asset's distillation on Gaussians."""

    ball: BallSettings
    adam: AdamSettings
    density: DensifySettings
    regularisers: RegulariserSettings
    backend: str = field(default="auto", kw_only=True)
    cheap: ClassVar[tuple[str, ...]] = CHEAP

    def first(self, device: torch.device | str = "cpu") -> State:
        ball = self.ball
        return init_ball(ball.num_points, ball.init_radius, ball.sh_degree, self.seed, device)

    def rendered(
        self, leaves: Gaussians, groups: Sequence[Group], update: int, known: bool = False
    ) -> list[Rendered]:
        return render_groups(leaves, groups, backend=self.backend)

    def regularised(self, seen: Seen, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        leaves, r = seen.leaves, self.regularisers
        if r.lambda_opacity:
            opacities = leaves.logit_opacities.sigmoid()
            losses["opacity"] = r.lambda_opacity * (opacities * (1 - opacities)).mean()
        if r.lambda_scale:
            losses["scale"] = r.lambda_scale * leaves.log_scales.exp().square().mean()
        if seen.novel is not None:
            losses |= self._hazy(seen.novel, seen.share)
        return losses

    def novel_losses(self, view: Rendered, share: float) -> list[Tensor]:
        return list(self._hazy(view, share).values())

    def _hazy(self, view: Rendered, share: float) -> dict[str, Tensor]:
        """The loss of a novel view, by name."""
        weight = self.regularisers.lambda_haze * share**2
        return {"haze": weight * (view.alpha * (1 - view.alpha)).mean()} if weight else {}

    def evaluation(self, grads: Gaussians, renders: Sequence[Rendered], losses: Tensor) -> Evaluation:
        return Evaluation(grads, gathered(grads, *renders), losses)

    def stepped(
        self, state: State, grads: Gaussians, renders: Sequence[Rendered], drift: Pull | Drift
    ) -> State:
        stats = gathered(grads, *renders)
        if isinstance(drift, Drift):
            there = reindex(drift, state)
            grads, stats = grads.map(torch.add, there.grads), stats.joined(there.stats)
        return density.stepped(state, grads, stats, self.adam, self.density, self.seed)

    def descended(self, state: State, grads: Gaussians) -> State:
        return adam_step(state, grads, self.adam)

    def finished(self, state: State) -> State:
        """With its colours pulled to the input picture's, then as any scene's."""
        share = self.knowing.recolour
        if self.known is None or not share:
            return super().finished(state)
        colours = state.params.sh_dc
        palette = Palette.of(self.known.image, self.known.mask, known_camera(self.views).to(colours.device))
        if palette is not None:
            now = 0.5 + SH_C0 * colours[:, 0]
            there = palette.pulled(now, state.params.means[:, 1])
            hidden = 1 - shown(self._seen_share(state.params))
            moved = colours + (share * hidden[:, None] * (there - now) / SH_C0)[:, None]
            state = replace(state, params=replace(state.params, sh_dc=moved))
        return super().finished(state)

    def _seen_share(self, params: Gaussians) -> Tensor:
        """[N]: what of the input view each Gaussian paints, as a share of what it does of the view that it paints most
        of among those all round."""
        leaves, level = leaves_of(params), self.views.elevation_rad
        angles = torch.arange(AROUND) * (2 * math.pi / AROUND)
        white = torch.ones(1, 3, device=leaves.means.device)
        painted = []
        for angle in angles:
            camera = camera_of(self.views, angle[None], [level]).to(leaves.means.device)
            view = render_groups(leaves, [(camera, AROUND_PX, white)], backend=self.backend)[0]
            (weight,) = torch.autograd.grad(view.image.sum(), leaves.sh_dc)
            painted.append(weight.abs().sum((1, 2)))
        return painted[0] / torch.stack(painted).amax(0).clamp_min(1e-9)

    def coasted(self, state: State) -> State:
        return density.coast(state, self.adam, self.density, self.seed)

    def distance(self, new: State, old: State) -> float:
        """Of two iterates by their parameters, the older un-projected."""
        if self.settings.distance == "scaled":
            return density.scaled_distance(new, old, self.seed, self.settings.atol, self.settings.rtol)
        return density.distance(new, old, self.seed)
