"""One asset's distillation as the solver sees it, whatever the scene: what every rank computes of a guess, and what is
done with it at the exact place.

V novel views, K slots, k updates an evaluation, L losses. Updates count from 0 to T - 1; a step of the solver is an
evaluation and the k updates that it serves, all with its views, noise levels and noise. Two drifts can travel:
pictures, the priors' pull on the step's renders (pull.py), whose gradient is taken in the roll-out, anew at each
update; or gradients, the paper's choice, pulled back to the parameters where they were evaluated. In both the known
view, cheap and stiff, is taken in the roll-out.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from gs_propeller.base.camera import Cameras
from gs_propeller.distil.draw import Draw, camera_of, draw, known_camera, where
from gs_propeller.distil.known import Known
from gs_propeller.distil.pull import Guide, Pull, pulls
from gs_propeller.distil.room import Room
from gs_propeller.distil.settings import (
    KnownSettings,
    LevelSettings,
    PullSettings,
    SceneSettings,
    ViewSettings,
)

DEAR = ("sds",)
DRIFT = "drift"  # no name of a parameter
Group = tuple[Cameras, int, Tensor]  # cameras, pixels along a side, backgrounds


class View(Protocol):
    """What is asked of a render of V views: image [V, 3, S, S], alpha [V, 1, S, S]."""

    @property
    def image(self) -> Tensor: ...

    @property
    def alpha(self) -> Tensor: ...


@dataclass(frozen=True)
class Seen:
    """A state's render of its step's novel views, where pictures travel, and of the known view; leaves: what it can be
    pulled back to; share: of the run that is over."""

    leaves: Any
    novel: Any
    known: Any
    share: float = 1.0

    @property
    def views(self) -> list[Any]:
        return [view for view in (self.novel, self.known) if view is not None]


@dataclass(frozen=True)
class Distillation(ABC):
    """One asset's distillation, the same on every rank. known: None without a picture.

    updates: T. batch_slots: slots rendered and denoised in one call, fewer where the GPU's memory does not hold them; 1
    gives the same bits whoever computes a slot. measure: find out beforehand how many it holds.
    Parameters are a record of tensors with map and items; a state has them as `params`, and its `step`.
    """

    guides: tuple[Guide, ...]
    known: Known | None
    updates: int
    seed: int
    views: ViewSettings
    levels: LevelSettings
    pull: PullSettings
    knowing: KnownSettings
    settings: SceneSettings
    batch_slots: int = field(default=1, kw_only=True)
    measure: bool = field(default=False, kw_only=True)
    cheap: ClassVar[tuple[str, ...]]  # names of the losses taken in the roll-out

    # ---- what a scene says of itself

    @abstractmethod
    def first(self, device: torch.device | str = "cpu") -> Any:
        """The state of step 0."""

    @abstractmethod
    def rendered(
        self, leaves: Any, groups: Sequence[Group], update: int, known: bool = False
    ) -> Sequence[Any]:
        """A View of each group, at an update's place in the run; differentiable. known: the last group is the input's
        view, compared with a picture."""

    @abstractmethod
    def regularised(self, seen: Seen, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The cheap losses with this scene's own; they come in by name, those of the known view taken."""

    def novel_losses(self, view: Any, share: float) -> list[Tensor]:
        """What a scene asks of its novel views when that share of the run is over, where gradients travel; else
        `regularised` sees them."""
        return []

    @abstractmethod
    def evaluation(self, grads: Any, renders: Sequence[Any], losses: Tensor) -> Any:
        """What travels: gradients, and what else is known of the renders that they come through, after backward."""

    @abstractmethod
    def stepped(self, state: Any, grads: Any, renders: Sequence[Any], drift: Any) -> Any:
        """The state one update on, by gradients, what is known of the renders that they come through, after backward,
        and a drift of gradients if it is one."""

    @abstractmethod
    def descended(self, state: Any, grads: Any) -> Any:
        """The state one step of Adam on by gradients, and nothing else done to it."""

    @abstractmethod
    def coasted(self, state: Any) -> Any:
        """A guess of the state one update on, without a drift."""

    @abstractmethod
    def distance(self, new: Any, old: Any) -> float:
        """Of two iterates by their parameters, in the newer one's dimensions; 0 only where they are the same."""

    # ---- the same for all

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of what the log shows of a step."""
        return DEAR + self.cheap

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

    def drawn(self, step: int) -> Draw:
        """The choices of the solver's step."""
        priors = [guide.prior for guide in self.guides]
        return draw(self._first(step), self.updates, self.views, self.levels, priors, self.seed)

    def _first(self, step: int) -> int:
        """The update that a step of the solver begins with."""
        return step * self.settings.updates_per_evaluation

    def _share(self, update: int) -> float:
        """Of the run that is over before an update."""
        return min(update / self.updates, 1.0)

    # ---- at the guess, on every rank

    def compute(self, params: Sequence[Any], steps: Sequence[int]) -> list[Any]:
        """What travels back of several window slots; what is not finite has no number as its loss and is for `update`
        to judge: of a guess that is refused nobody asks. Raises UserError where the GPU's memory does not hold one
        slot."""
        if not params:
            return []
        if not self._rooms:
            self._rooms.append(Room(self.batch_slots, device_of(params[0]), self.measure))
        return self._rooms[0].batches(len(params), lambda slots: self._computed(params[slots], steps[slots]))

    @cached_property
    def _rooms(self) -> list[Room]:
        """At most one: it learns on the way."""
        return []

    def _computed(self, params: Sequence[Any], steps: Sequence[int]) -> list[Any]:
        """A render each, and one encoding and one UNet call of each prior, for K slots of V views."""
        draws = [self.drawn(step) for step in steps]
        leaves = [p if self.pictures else leaves_of(p) for p in params]
        device = device_of(params[0])
        novel = list[Any]()
        with torch.set_grad_enabled(not self.pictures):
            for leaf, d, step in zip(leaves, draws, steps, strict=True):
                camera = camera_of(self.views, d.azimuths, d.elevations).to(device)
                group = (camera, self.side, d.backdrop.to(device))
                novel += self.rendered(leaf, [group], self._first(step))
        found = pulls([view.image.detach() for view in novel], draws, self.guides, self.pull)
        found = [pull if _sound(pull) else pull.skipped() for pull in found]
        if self.pictures:
            return found
        # at once: the slots share one graph
        terms = [(view.image * pull.pull).sum() for view, pull in zip(novel, found, strict=True)]
        for view, step in zip(novel, steps, strict=True):
            terms += self.novel_losses(view, self._share(self._first(step)))
        torch.stack(terms).sum().backward()
        results = []
        for leaf, view, pull in zip(leaves, novel, found, strict=True):
            grads, bad = _gradients(leaf)
            losses = pull.skipped().losses if bad else pull.losses
            results.append(self.evaluation(grads, [] if bad else [view], losses))
        return results

    # ---- at the exact place, on rank 0

    def update(self, state: Any, drift: Any) -> tuple[Any, Tensor]:
        """The state after the k updates that one evaluation serves, and the last one's losses [L] of `cheap`; no
        numbers where the gradient of one was skipped. Raises FloatingPointError where one, or the drift, is not finite
        and is not to be skipped, naming the step and the loss."""
        step = state.step // self.settings.updates_per_evaluation
        losses = skips = torch.zeros(len(self.cheap), device=device_of(state.params))
        for _ in range(min(self.settings.updates_per_evaluation, self.updates - state.step)):
            grads, renders, losses = self._pulled_back(state, drift, step)
            state = self.stepped(state, grads, renders, drift)
            skips = skips + losses
        return state, torch.where(skips.isfinite().all(), losses, math.nan)

    def _pulled_back(self, state: Any, drift: Any, step: int | None) -> tuple[Any, list[Any], Tensor]:
        """The gradient of one update at its exact place, the renders that it comes through, and the losses of `cheap`:
        none and no numbers where it was not finite, and is skipped. step: None sees the known view alone."""
        seen = self.seen(state, step)
        self._last.clear()  # its graph serves once
        losses = self._cheap(seen, state.step)
        total = torch.stack(list(losses.values())).sum()
        if isinstance(drift, Pull) and seen.novel is not None:
            here = drift.here(seen.novel.image.detach())
            total = total + (seen.novel.image * here).sum()
        if total.requires_grad:
            total.backward()
        stops = self.settings.nonfinite == "stop"
        given = drift.losses if drift is not None and stops else None
        grads, bad = _gradients(seen.leaves, given)
        if bad and stops:
            if bad[0] == DRIFT:
                raise broken(state.step, DEAR, "the renders")
            names = self.losses if isinstance(drift, Pull) else self.cheap
            raise broken(state.step, names, ", ".join(bad))
        shown = torch.stack([value.detach().reshape(()).float() for value in losses.values()])
        return grads, [] if bad else seen.views, shown * math.nan if bad else shown

    def _cheap(self, seen: Seen, update: int) -> dict[str, Tensor]:
        """The losses of `cheap` by name."""
        losses = dict.fromkeys(self.cheap, torch.zeros((), device=device_of(seen.leaves)))
        if self.known is not None and seen.known is not None:
            losses |= self.known.losses(seen.known.image, seen.known.alpha, self._share(update), self.knowing)
        return self.regularised(seen, losses)

    def seen(self, state: Any, step: int | None) -> Seen:
        """The state's render of a step's views, None: of the known one alone; that of the state last asked for is kept,
        since mismatch and update ask for the same."""
        kept = self._last
        if kept and kept[0] is state and kept[1] == step:
            return kept[2]  # type: ignore[no-any-return]
        leaves = leaves_of(state.params)
        device = device_of(leaves)
        groups: list[Group] = []
        if self.pictures and step is not None:
            azimuths, elevations, backdrop = where(self._first(step), self.views, self.seed)
            camera = camera_of(self.views, azimuths, elevations).to(device)
            groups.append((camera, self.side, backdrop.to(device)))
        if self.known is not None:
            white = torch.ones(3, device=device)
            groups.append((known_camera(self.views).to(device), self.knowing.reference_size, white))
        found = iter(self.rendered(leaves, groups, min(state.step, self.updates - 1), self.known is not None))
        novel = next(found) if self.pictures and step is not None else None
        known = next(found) if self.known is not None else None
        kept[:] = [state, step, Seen(leaves, novel, known, self._share(state.step))]
        return kept[2]  # type: ignore[no-any-return]

    @cached_property
    def _last(self) -> list[Any]:
        return []

    def finished(self, state: Any) -> Any:
        """The splat of a run's last state: closing_updates more that see the input view alone, without the momentum
        that the priors left. They are no part of the run, which may go on from that state to more steps."""
        updates = self.knowing.closing_updates if self.known is not None else 0
        if updates:
            state = replace(state, exp_avg=state.exp_avg.map(torch.zeros_like))
        for _ in range(updates):
            grads, _, _ = self._pulled_back(state, None, None)
            state = self.descended(state, grads)
        return state

    def coast(self, state: Any) -> Any:
        """A guess of the state after the k updates without a drift."""
        for _ in range(min(self.settings.updates_per_evaluation, self.updates - state.step)):
            state = self.coasted(state)
        return state

    def mismatch(self, state: Any, pull: Pull) -> float:
        """Of a state from the guess that its pull was taken at, by the step's own renders."""
        novel = self.seen(state, state.step // self.settings.updates_per_evaluation).novel
        assert novel is not None  # it is pictures that travel
        return pull.mismatch(novel.image.detach())


def _sound(pull: Pull) -> bool:
    return bool(pull.pull.isfinite().all() & pull.losses.isfinite().all())


def _gradients(leaves: Any, given: Tensor | None = None) -> tuple[Any, list[str]]:
    """Of the leaves, after backward, and the names of those that are not finite, where all are zero. given: losses of a
    drift, told of as DRIFT, first, where they are no numbers."""
    grads = leaves.map(lambda x: torch.zeros_like(x) if x.grad is None else x.grad)
    named = [(name, grad) for name, grad in grads.items()]
    if given is not None:
        named.insert(0, (DRIFT, given))
    finite = torch.stack([x.isfinite().all() for _, x in named]).tolist()  # one wait for the device
    bad = [name for (name, _), fine in zip(named, finite, strict=True) if not fine]
    return (grads.map(torch.zeros_like) if bad else grads), bad


def broken(step: int, names: Sequence[str], what: str) -> FloatingPointError:
    return FloatingPointError(
        f"step {step}: loss {', '.join(names)}: the gradient of {what} is not finite; nonfinite=skip goes on without it"
    )


def leaves_of(params: Any) -> Any:
    """The same bits whether the fields are views of a packed record or, after a checkpoint, tensors of their own: torch
    takes other paths by the stride."""
    return params.map(lambda x: x.detach().contiguous().requires_grad_(True))


def device_of(params: Any) -> torch.device:
    return params.items()[0][1].device  # type: ignore[no-any-return]
