"""How many slots of a window the GPU's memory holds at once: measured on the first, halved where it was too many.

What a slot needs depends on the prior, the pictures' side, the views and the number type; so none of them is asked, but
the first slot is taken alone and its peak of memory read.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from gs_propeller.base.errors import UserError

SHARE = 0.9  # of the free memory: what is left is for fragments and for what other parts of a step need


class Room:
    """Slots at once: `most` of them, fewer once that was too many. measure: on a GPU, as many of them as should fit."""

    def __init__(self, most: int, device: torch.device | str = "cpu", measure: bool = True):
        self.most, self.device = most, torch.device(device)
        self.slots = most
        self.measured = self.device.type != "cuda" or most == 1 or not measure

    def batches(self, count: int, call: Callable[[slice], list[Any]]) -> list[Any]:
        """The results of `call` on all of `count` slots, so many at once as there is room for. Raises UserError where
        there is none for a single one."""
        results: list[Any] = []
        while len(results) < count:
            first = len(results)
            last = min(count, first + (self.slots if self.measured else 1))
            found = self._unless_full(lambda a=first, b=last: call(slice(a, b)))  # type: ignore[misc]
            if found is None:
                self._halve(last - first)
            else:
                results += found
        return results

    def _unless_full(self, call: Callable[[], list[Any]]) -> list[Any] | None:
        """None where memory did not suffice; then what the call held is free again."""
        try:
            return call() if self.measured else self._measuring(call)
        except torch.OutOfMemoryError:
            return None

    def _halve(self, tried: int) -> None:
        torch.cuda.empty_cache()
        if tried == 1:
            raise UserError(
                "the GPU's memory does not hold one slot of the window: fewer views (batch_size), a smaller "
                "render_size, attention_slicing=on or precision=float16 need less, device=cpu none"
            )
        self.slots, self.measured = tried // 2, True
        _say(f"the GPU's memory was full with {tried} slots of the window at once; from here on {self.slots}")

    def _measuring(self, call: Callable[[], list[Any]]) -> list[Any]:
        """One slot, and how many fit by what it took."""
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        found = call()
        a_slot = max(1, torch.cuda.max_memory_allocated(self.device) - before)
        free = torch.cuda.mem_get_info(self.device)[0]
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        self.slots = max(1, min(self.most, int(SHARE * (free + kept) / a_slot)))
        self.measured = True
        if self.slots < self.most:
            _say(
                f"{self.slots} of {self.most} slots of the window at once: each takes {a_slot / 2**20:.0f} MiB of "
                f"{(free + kept) / 2**20:.0f} MiB that are free on the GPU"
            )
        return found


def _say(line: str) -> None:
    where = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    print(f"note: {where}{line}", file=sys.stderr, flush=True)
