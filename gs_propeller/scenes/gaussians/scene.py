"""Gaussians as the solver sees them: what every rank computes of a guess, and what is done with it at the exact place.

N Gaussians, V novel views, K slots, k updates an evaluation. Updates count from 0 to T - 1; a step of the solver is an
evaluation and the k updates that it serves, all with its views, noise levels and noise. Two drifts can travel:
pictures, the priors' pull on the step's renders (distil/pull.py), whose gradient is taken in the roll-out, anew at each
update; or gradients, the paper's choice, pulled back to the parameters where they were evaluated and re-indexed where
rows differ. In both the known view and the regularisers, cheap and stiff, are taken in the roll-out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gs_propeller.distil.draw import Draw, camera_of, draw, known_camera, where
from gs_propeller.distil.known import Known
from gs_propeller.distil.pull import Guide, Pull, pulls
from gs_propeller.distil.settings import KnownSettings, LevelSettings, PullSettings, ViewSettings
from gs_propeller.scenes.gaussians import density
from gs_propeller.scenes.gaussians.density import reindex
from gs_propeller.scenes.gaussians.raster import Rendered, gathered, render_groups, render_slots
from gs_propeller.scenes.gaussians.room import Room
from gs_propeller.scenes.gaussians.settings import (
    AdamSettings,
    BallSettings,
    DensifySettings,
    RegulariserSettings,
    SceneSettings,
)
from gs_propeller.scenes.gaussians.state import Drift, Evaluation, Gaussians, State, StepStats, init_ball

DEAR, CHEAP = ("sds",), ("rgb", "mask", "opacity", "scale")
LOSSES = DEAR + CHEAP


@dataclass(frozen=True)
class Seen:
    """A state's render of its step's novel views, where pictures travel, and of the known view; leaves: what it can be
    pulled back to."""

    leaves: Gaussians
    novel: Rendered | None
    known: Rendered | None


@dataclass(frozen=True)
class GaussianScene:
    """One asset's distillation on Gaussians, the same on every rank. known: None without a picture.

    updates: T. batch_slots: slots rendered and denoised in one call, fewer where the GPU's memory does not hold them; 1
    gives the same bits whoever computes a slot. measure: find out beforehand how many it holds.
    """

    guides: tuple[Guide, ...]
    known: Known | None
    updates: int
    seed: int
    views: ViewSettings
    levels: LevelSettings
    pull: PullSettings
    knowing: KnownSettings
    ball: BallSettings
    adam: AdamSettings
    density: DensifySettings
    regularisers: RegulariserSettings
    settings: SceneSettings
    backend: str = "auto"
    batch_slots: int = 1
    measure: bool = False

    @property
    def steps(self) -> int:
        """The solver's T: evaluations."""
        return -(-self.updates // self.settings.updates_per_evaluation)

    @property
    def pictures(self) -> bool:
        return self.settings.travels == "pictures"

    @property
    def side(self) -> int:
        """Of the novel views, pixels."""
        return self.views.render_size or max(guide.prior.size_px for guide in self.guides)

    def first(self, device: torch.device | str = "cpu") -> State:
        ball = self.ball
        return init_ball(ball.num_points, ball.init_radius, ball.sh_degree, self.seed, device)

    def drawn(self, step: int) -> Draw:
        """The choices of the solver's step."""
        first, priors = step * self.settings.updates_per_evaluation, [guide.prior for guide in self.guides]
        return draw(first, self.updates, self.views, self.levels, priors, self.seed)

    # ---- at the guess, on every rank

    def compute(self, params: Sequence[Gaussians], steps: Sequence[int]) -> list[Pull] | list[Evaluation]:
        """What travels back of several window slots. Raises FloatingPointError where it is not finite, naming the step
        and the loss, and UserError where the GPU's memory does not hold one slot."""
        if not self._rooms and params:
            self._rooms.append(Room(self.batch_slots, params[0].means.device, self.measure))
        return (
            self._rooms[0].batches(len(params), lambda slots: self._computed(params[slots], steps[slots]))
            if params
            else []
        )

    @cached_property
    def _rooms(self) -> list[Room]:
        """At most one: it learns on the way."""
        return []

    def _computed(self, params: Sequence[Gaussians], steps: Sequence[int]) -> list[Pull] | list[Evaluation]:
        """One render, and one encoding and one UNet call of each prior, for K slots of V views."""
        draws = [self.drawn(step) for step in steps]
        leaves = [p if self.pictures else _leaves(p) for p in params]
        device = params[0].means.device
        cameras = [camera_of(self.views, d.azimuths, d.elevations).to(device) for d in draws]
        with torch.set_grad_enabled(not self.pictures):
            novel = render_slots(
                leaves, cameras, self.side, [d.backdrop.to(device) for d in draws], backend=self.backend
            )
        found = pulls([view.image.detach() for view in novel], draws, self.guides, self.pull)
        found = [self._sound(pull, step) for pull, step in zip(found, steps, strict=True)]
        if self.pictures:
            return found
        results = []
        # at once: the slots share one graph
        torch.stack(
            [(view.image * pull.pull).sum() for view, pull in zip(novel, found, strict=True)]
        ).sum().backward()
        for step, leaf, view, pull in zip(steps, leaves, novel, found, strict=True):
            first = step * self.settings.updates_per_evaluation
            grads, stats, sound = self._checked(leaf, first, DEAR, [view])
            results.append(Evaluation(grads, stats, pull.losses if sound else pull.skipped().losses))
        return results

    def _sound(self, pull: Pull, step: int) -> Pull:
        if bool(pull.pull.isfinite().all() & pull.losses.isfinite().all()):
            return pull
        if self.settings.nonfinite == "skip":
            return pull.skipped()
        raise _broken(step * self.settings.updates_per_evaluation, DEAR, "the renders")

    # ---- at the exact place, on rank 0

    def update(self, state: State, drift: Pull | Drift) -> tuple[State, Tensor]:
        """The state after the k updates that one evaluation serves, and the losses [L] of CHEAP of the last of them; no
        numbers where the gradient of one was skipped."""
        step = state.step // self.settings.updates_per_evaluation
        losses = skips = state.params.means.new_zeros(len(CHEAP))
        for _ in range(min(self.settings.updates_per_evaluation, self.updates - state.step)):
            grads, stats, losses = self._gradient(state, drift, step)
            state = density.stepped(state, grads, stats, self.adam, self.density, self.seed)
            skips = skips + losses
        return state, torch.where(skips.isfinite().all(), losses, math.nan)

    def _gradient(self, state: State, drift: Pull | Drift, step: int) -> tuple[Gaussians, StepStats, Tensor]:
        """The whole gradient of one update at its exact place, its statistics, and the losses of CHEAP: no numbers
        where it was not finite, and is skipped."""
        seen = self.seen(state, step)
        self._last.clear()  # its graph serves once
        losses = self._cheap(seen, state.step)
        total = torch.stack(list(losses.values())).sum()
        if isinstance(drift, Pull) and seen.novel is not None:
            here = drift.here(seen.novel.image.detach())
            total = total + (seen.novel.image * here).sum()
        if total.requires_grad:
            total.backward()
        renders = [view for view in (seen.novel, seen.known) if view is not None]
        names = LOSSES if isinstance(drift, Pull) else CHEAP
        grads, stats, sound = self._checked(seen.leaves, state.step, names, renders)
        if isinstance(drift, Drift):
            there = reindex(drift, state)
            grads, stats = grads.map(torch.add, there.grads), stats.joined(there.stats)
        shown = torch.stack([value.detach().reshape(()).float() for value in losses.values()])
        return grads, stats, shown if sound else shown * math.nan

    def _cheap(self, seen: Seen, update: int) -> dict[str, Tensor]:
        """The losses of CHEAP by name."""
        zero, leaves, r = seen.leaves.means.new_zeros(()), seen.leaves, self.regularisers
        losses = {"rgb": zero, "mask": zero, "opacity": zero, "scale": zero}
        if self.known is not None and seen.known is not None:
            warm_up = update / self.updates
            losses |= self.known.losses(seen.known.image, seen.known.alpha, warm_up, self.knowing)
        if r.lambda_opacity:
            opacities = leaves.logit_opacities.sigmoid()
            losses["opacity"] = r.lambda_opacity * (opacities * (1 - opacities)).mean()
        if r.lambda_scale:
            losses["scale"] = r.lambda_scale * leaves.log_scales.exp().square().mean()
        return losses

    def seen(self, state: State, step: int) -> Seen:
        """The state's render of a step's views; that of the state last asked for is kept, since mismatch and update ask
        for the same."""
        kept = self._last
        if kept and kept[0] is state and kept[1] == step:
            return kept[2]
        leaves = _leaves(state.params)
        device = leaves.means.device
        groups = []
        if self.pictures:
            first = step * self.settings.updates_per_evaluation
            azimuths, elevations, backdrop = where(first, self.views, self.seed)
            camera = camera_of(self.views, azimuths, elevations).to(device)
            groups.append((camera, self.side, backdrop.to(device)))
        if self.known is not None:
            white = torch.ones(3, device=device)
            groups.append((known_camera(self.views).to(device), self.knowing.reference_size, white))
        found = iter(render_groups(leaves, groups, backend=self.backend))
        novel = next(found) if self.pictures else None
        known = next(found) if self.known is not None else None
        kept[:] = [state, step, Seen(leaves, novel, known)]
        return kept[2]

    @cached_property
    def _last(self) -> list[Any]:
        return []

    def coast(self, state: State) -> State:
        """A guess of the state after the k updates without a drift."""
        for _ in range(min(self.settings.updates_per_evaluation, self.updates - state.step)):
            state = density.coast(state, self.adam, self.density, self.seed)
        return state

    def distance(self, new: State, old: State) -> float:
        """Of two iterates by their parameters, the older un-projected."""
        if self.settings.distance == "scaled":
            return density.scaled_distance(new, old, self.seed, self.settings.atol, self.settings.rtol)
        return density.distance(new, old, self.seed)

    def mismatch(self, state: State, pull: Pull) -> float:
        """Of a state from the guess that its pull was taken at, by the step's own renders."""
        novel = self.seen(state, state.step // self.settings.updates_per_evaluation).novel
        assert novel is not None  # it is pictures that travel
        return pull.mismatch(novel.image.detach())

    def _checked(
        self, leaves: Gaussians, step: int, names: Sequence[str], renders: Sequence[Rendered]
    ) -> tuple[Gaussians, StepStats, bool]:
        """The leaves' gradients, their statistics, and whether they are finite: zero, where one is to be skipped."""
        grads = leaves.map(lambda x: torch.zeros_like(x) if x.grad is None else x.grad)
        finite = torch.stack(
            [g.isfinite().all() for _, g in grads.items()]
        ).tolist()  # one wait for the device
        broken = [name for (name, _), fine in zip(grads.items(), finite, strict=True) if not fine]
        if not broken:
            return grads, gathered(grads, *renders), True
        if self.settings.nonfinite == "skip":
            return grads.map(torch.zeros_like), StepStats.zeros(grads), False
        raise _broken(step, names, ", ".join(broken))


def _broken(step: int, names: Sequence[str], what: str) -> FloatingPointError:
    return FloatingPointError(
        f"step {step}: loss {', '.join(names)}: the gradient of {what} is not finite; nonfinite=skip goes on without it"
    )


def _leaves(params: Gaussians) -> Gaussians:
    return params.map(lambda x: x.detach().requires_grad_(True))
