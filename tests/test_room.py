"""Slots of a window at once: as many as the GPU's memory holds, fewer where it was full, and the same drifts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gs_propeller.base.errors import UserError
from gs_propeller.distil.pull import Guide
from gs_propeller.distil.room import SHARE, Room
from gs_propeller.scenes.gaussians.scene import GaussianScene
from tests.toy_prior import COLOUR, Wavy, scene

MIB = 2**20
VIEWS = 2  # of a slot


@dataclass
class Memory:
    """A GPU's: bytes in all and of a slot; what torch's allocator holds though nobody uses it; peak since the reset."""

    total: int
    a_slot: int
    used: int = 0
    kept: int = 0
    peak: int = 0

    def take(self, slots: int) -> None:
        if self.used + slots * self.a_slot > self.total:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.peak = max(self.peak, self.used + slots * self.a_slot)

    def reset(self, device: Any) -> None:
        self.peak = self.used


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    gpu = Memory(1000 * MIB, 100 * MIB, used=200 * MIB)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", gpu.reset)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: gpu.used)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: gpu.used + gpu.kept)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: gpu.peak)
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda device: (gpu.total - gpu.used - gpu.kept, gpu.total)
    )
    yield gpu


def asked(room: Room, memory: Memory, count: int) -> list[int]:
    """How many slots each call had; the results are the slots in their order."""
    sizes: list[int] = []

    def call(slots: slice) -> list[int]:
        memory.take(slots.stop - slots.start)
        sizes.append(slots.stop - slots.start)
        return list(range(slots.start, slots.stop))

    assert room.batches(count, call) == list(range(count))
    return sizes


def test_the_first_slot_says_how_many_fit(memory: Memory, capsys: pytest.CaptureFixture[str]) -> None:
    room = Room(8, "cuda")
    memory.kept = 300 * MIB  # counts as free: the allocator gives it back
    fit = int(SHARE * 800 / 100)
    assert asked(room, memory, 9) == [1, fit, 1]
    said = capsys.readouterr().err
    assert (
        said
        == f"note: {fit} of 8 slots of the window at once: each takes 100 MiB of 800 MiB that are free on the GPU\n"
    )
    assert asked(room, memory, 8) == [fit, 8 - fit] and not capsys.readouterr().err


def test_a_number_that_was_asked_for_is_taken_until_it_is_too_many(
    memory: Memory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked(Room(8, "cuda", measure=False), memory, 10) == [8, 2] and not capsys.readouterr().err
    memory.used = 650 * MIB
    assert asked(Room(8, "cuda", measure=False), memory, 8) == [2] * 4


@pytest.mark.parametrize(("most", "sizes"), [(3, [1, 3, 1]), (1, [1] * 5)])
def test_no_more_than_asked_for(
    memory: Memory, most: int, sizes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked(Room(most, "cuda"), memory, 5) == sizes
    assert not capsys.readouterr().err


def test_where_memory_is_full_after_all_slots_are_halved(
    memory: Memory, capsys: pytest.CaptureFixture[str]
) -> None:
    room = Room(8, "cuda")
    asked(room, memory, 8)
    memory.used = 650 * MIB  # another program came: three fit
    capsys.readouterr()
    assert asked(room, memory, 8) == [3, 3, 2]
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "note: the GPU's memory was full with 7 slots of the window at once; from here on 3"
    assert asked(room, memory, 4) == [3, 1]


def test_one_that_does_not_fit_is_one_line(memory: Memory) -> None:
    memory.used = memory.total
    with pytest.raises(UserError, match=r"does not hold one slot .*batch_size.*attention_slicing=on"):
        asked(Room(8, "cuda"), memory, 8)


# --- a scene


class Narrow(Wavy):
    """A prior that holds so many pictures at once."""

    def __init__(self, pictures: int) -> None:
        self.pictures, self.calls = pictures, list[int]()

    def sds_grad(self, images: Tensor, *told: Any) -> tuple[Tensor, Tensor]:
        if len(images) > self.pictures:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.calls.append(len(images))
        return super().sds_grad(images, *told)


def under(prior: Wavy, slots: int, travels: str) -> GaussianScene:
    return replace(scene(travels=travels), guides=(Guide(prior, COLOUR, 1.0),), batch_slots=slots)


@pytest.mark.parametrize("travels", ["pictures", "gradients"])
def test_a_full_gpu_changes_no_drift(travels: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Eight slots where three fit: halved to two, once, and every slot's bits are those of the serial loop."""
    params = scene().first().params
    scenes, steps = [params, params.map(lambda x: x[:13])] * 4, list(range(8))
    prior = Narrow(3 * VIEWS)
    made = under(prior, 8, travels)
    found = made.compute(scenes, steps)
    assert prior.calls == [2 * VIEWS] * 4
    assert [line.split()[-1] for line in capsys.readouterr().err.splitlines()] == ["4", "2"]
    made.compute(scenes, steps)
    assert prior.calls == [2 * VIEWS] * 8 and not capsys.readouterr().err
    for slot, one, step in zip(found, scenes, steps, strict=True):
        (alone,) = under(Wavy(), 1, travels).compute([one], [step])
        assert all(torch.equal(a, b) for a, b in zip(slot.parts(), alone.parts(), strict=True))
    with pytest.raises(UserError, match="does not hold one slot"):
        under(Narrow(0), 8, travels).compute(scenes, steps)
    assert under(prior, 8, travels).compute([], []) == []
