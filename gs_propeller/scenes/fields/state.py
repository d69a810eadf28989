"""The state of a field that evolves: grids, Adam's moments, step.

Grids: L of them, level l [R_l, R_l, R_l, C] with R_l = 2^l n + 1 corners along x, y and z, n the cells of the coarsest.
What a field holds at a point is the sum of what each has there, trilinear between corners: channel 0 the raw density or
the distance, from a first one that is no parameter (march.py), then raw red, green, blue; tetrahedra have three more,
C = 7. The coarse grids add nothing that the finest could not hold: they make one step of Adam move what is large by
more than a cell. Nothing here is written in place; functions return new records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

CHANNELS = 4  # of a field


@dataclass(frozen=True)
class Grids:
    """levels: from coarse to fine. Also used for anything of the same shape: gradients, Adam's moments."""

    levels: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("a field needs one grid at least")
        cells, channels = self.levels[0].shape[0] - 1, self.levels[0].shape[-1]
        for k, level in enumerate(self.levels):
            wanted = [(cells << k) + 1] * 3 + [channels]
            if list(level.shape) != wanted:
                raise ValueError(f"level {k} must be {wanted}, got {list(level.shape)}")

    def __len__(self) -> int:
        """Numbers in all grids."""
        return sum(level.numel() for level in self.levels)

    @property
    def cells(self) -> int:
        """Along a side of the finest."""
        return self.levels[-1].shape[0] - 1

    @property
    def device(self) -> torch.device:
        return self.levels[0].device

    def map(self, fn: Callable[..., Tensor], *others: Grids) -> Grids:
        """fn applied level by level: `a.map(torch.add, b)` is a + b."""
        return Grids(tuple(fn(*row) for row in zip(self.levels, *(o.levels for o in others), strict=True)))

    def items(self) -> list[tuple[str, Tensor]]:
        return [(f"level {k}", level) for k, level in enumerate(self.levels)]

    def parts(self) -> Sequence[Tensor]:
        """What travels between ranks."""
        return self.levels

    @staticmethod
    def of(*parts: Tensor) -> Grids:
        """Inverse of parts."""
        return Grids(parts)


class Slope(NamedTuple):
    """The dear part of one step as gradients for the parameters, and its losses [L], for the log."""

    grads: Grids
    losses: Tensor

    def parts(self) -> Sequence[Tensor]:
        """What travels between ranks."""
        return (*self.grads.parts(), self.losses)

    @staticmethod
    def of(*parts: Tensor) -> Slope:
        """Inverse of parts."""
        return Slope(Grids.of(*parts[:-1]), parts[-1])

    def at(self, state: object) -> Slope:
        """A grid's cells are any state's."""
        return self


@dataclass(frozen=True)
class FieldState:
    """All that evolves. exp_avg, exp_avg_sq: Adam's moments. step: number of updates done so far."""

    params: Grids
    exp_avg: Grids
    exp_avg_sq: Grids
    step: int

    def to(self, device: torch.device | str) -> FieldState:
        return FieldState.from_tensors({name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by a flat name, and the step as one: what a checkpoint holds."""
        flat = {"step": torch.tensor(self.step)}
        for group in ("params", "exp_avg", "exp_avg_sq"):
            flat |= {f"{group}.{k}": level for k, level in enumerate(getattr(self, group).levels)}
        return flat

    @staticmethod
    def from_tensors(flat: dict[str, Tensor]) -> FieldState:
        """Inverse of tensors. Raises KeyError for a name that is missing."""
        count = sum(name.startswith("params.") for name in flat)
        params, exp_avg, exp_avg_sq = (
            Grids(tuple(flat[f"{group}.{k}"] for k in range(max(count, 1))))
            for group in ("params", "exp_avg", "exp_avg_sq")
        )
        return FieldState(params, exp_avg, exp_avg_sq, int(flat["step"]))


def first_state(
    cells: int, levels: int, device: torch.device | str = "cpu", channels: int = CHANNELS
) -> FieldState:
    """The state of step 0: nothing but the first density or distance, and grey. cells: of the finest grid."""
    sides = [(cells >> (levels - 1 - k)) + 1 for k in range(levels)]
    zeros = Grids(tuple(torch.zeros(side, side, side, channels, device=device) for side in sides))
    return FieldState(zeros, zeros, zeros, 0)
