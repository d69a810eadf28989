"""A distillation whose options change on the way: larger views, fewer of them, other noise levels or losses.

Each phase is a distillation of its own, from an update on; they share the guides and move one state. A step of the
solver belongs wholly to the phase of its first update. So what a step is stays a function of its number, and a window
may reach across a change.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gs_propeller.distil.distillation import Distillation, Seen
from gs_propeller.distil.draw import Draw
from gs_propeller.distil.pull import Guide, Pull
from gs_propeller.distil.settings import SceneSettings


@dataclass(frozen=True)
class Phases:
    """begins: the update that each of `parts` begins with, growing from 0; parts: distillations that differ in options
    which shape no state. The interface is a Distillation's, as the solver and the log use it."""

    begins: tuple[int, ...]
    parts: tuple[Distillation, ...]

    def __post_init__(self) -> None:
        growing = self.begins[:1] == (0,) and list(self.begins) == sorted(set(self.begins))
        if not growing or len(self.begins) != len(self.parts):
            raise ValueError(f"phases must begin at growing updates from 0, got {self.begins}")

    def at(self, step: int) -> Distillation:
        """That of the solver's step."""
        return self.parts[bisect_right(self.begins, step * self.settings.updates_per_evaluation) - 1]

    def _of(self, state: Any) -> Distillation:
        return self.at(state.step // self.settings.updates_per_evaluation)

    @property
    def guides(self) -> tuple[Guide, ...]:
        return self.parts[0].guides

    @property
    def settings(self) -> SceneSettings:
        return self.parts[0].settings

    @property
    def losses(self) -> tuple[str, ...]:
        return self.parts[0].losses

    @property
    def steps(self) -> int:
        return self.parts[0].steps

    @property
    def updates(self) -> int:
        return self.parts[0].updates

    @property
    def pictures(self) -> bool:
        return self.parts[0].pictures

    def first(self, device: torch.device | str = "cpu") -> Any:
        return self.parts[0].first(device)

    def compute(self, params: Sequence[Any], steps: Sequence[int]) -> list[Any]:
        """Slots of one phase in one call."""
        results, begin = list[Any](), 0
        while begin < len(steps):
            part, end = self.at(steps[begin]), begin + 1
            while end < len(steps) and self.at(steps[end]) is part:
                end += 1
            results += part.compute(params[begin:end], steps[begin:end])
            begin = end
        return results

    def drawn(self, step: int) -> Draw:
        return self.at(step).drawn(step)

    def seen(self, state: Any, step: int) -> Seen:
        return self.at(step).seen(state, step)

    def update(self, state: Any, drift: Any) -> tuple[Any, Tensor]:
        return self._of(state).update(state, drift)

    def finished(self, state: Any) -> Any:
        """By the options of the last step that there is."""
        return self.at(self.steps - 1).finished(state)

    def coast(self, state: Any) -> Any:
        return self._of(state).coast(state)

    def mismatch(self, state: Any, pull: Pull) -> float:
        return self._of(state).mismatch(state, pull)

    def distance(self, new: Any, old: Any) -> float:
        return self.parts[0].distance(new, old)


Distilled = Distillation | Phases
