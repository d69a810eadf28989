"""Records of tensors as flat messages: what the ranks send one another, whatever it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Record(Protocol):
    """What travels: parts() are its tensors, and its class's of(*parts) is the record again."""

    def parts(self) -> Sequence[Tensor]: ...


def packed(records: Sequence[Record]) -> tuple[Tensor, Tensor]:
    """(shapes, numbers) of several records of one class, flat: for each part its dimensions, after how many they are;
    every number of every part, float32, in the host's memory."""
    parts = [part for record in records for part in record.parts()]
    shapes = [n for part in parts for n in (part.ndim, *part.shape)]
    table = torch.tensor([len(records), *shapes])
    return table, torch.cat([part.detach().reshape(-1).float().cpu() for part in parts])


def numbers_in(table: Tensor) -> int:
    """How many numbers the parts of such shapes have."""
    return sum(math.prod(shape) for shape in _shapes(table))


def unpacked(table: Tensor, body: Tensor, kind: Any) -> list[Any]:
    """Inverse of packed."""
    shapes = _shapes(table)
    parts = [
        part.reshape(shape)
        for part, shape in zip(body.split([math.prod(s) for s in shapes]), shapes, strict=True)
    ]
    each = len(parts) // int(table[0])
    return [kind.of(*parts[k : k + each]) for k in range(0, len(parts), each)]


def _shapes(table: Tensor) -> list[list[int]]:
    numbers, shapes = table.tolist()[1:], []
    while numbers:
        shapes.append(numbers[1 : 1 + numbers[0]])
        numbers = numbers[1 + numbers[0] :]
    return shapes
