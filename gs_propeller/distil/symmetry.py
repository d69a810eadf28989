"""What a picture's prior ought to answer alike: the same view in a mirror, and in other colours.

Zero-1-to-3 is asked for a view of the mirror image from the other side, or of the picture with its channels moved
round, and its answer is put back. An ideal prior would say the same; a real one errs otherwise, and what is the same in
all variants stays. As test-time augmentation does, but a view is asked in one variant, by chance: that costs nothing.
V views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from gs_propeller.base.camera import mirrored_codes
from gs_propeller.base.randomness import keyed_generator
from gs_propeller.distil.settings import ViewSettings

HUES = 3  # as many as channels


class Conditioning(Protocol):
    """What a prior knows of its input pictures: see guidance/zero123.py."""

    def of(self, rows: Tensor) -> Self: ...


Told = TypeVar("Told", bound=Conditioning)


@dataclass(frozen=True)
class Variant:
    """How the prior sees each view: mirror [V], whether in a mirror; hue [V] in 0 .. 2, by how many places its channels
    are moved on."""

    mirror: Tensor
    hue: Tensor

    @staticmethod
    def of(rows: Tensor) -> Variant:
        """By their numbers [V] in 0 .. 5."""
        return Variant(rows % 2 == 1, rows // 2)

    @property
    def rows(self) -> Tensor:
        """[V] in `variants` of the picture that goes with each view."""
        return 2 * self.hue + self.mirror

    @staticmethod
    def joined(parts: Sequence[Variant], device: torch.device) -> Variant:
        """All their views, on the device: one copy to it."""
        return Variant.of(torch.cat([p.rows for p in parts]).to(device))

    def applied(self, images: Tensor) -> Tensor:
        """[V, 3, H, W] as the prior sees them."""
        return moved_on(flipped(images, self.mirror), self.hue)

    def undone(self, images: Tensor) -> Tensor:
        """[V, 3, H, W] of the prior's as they are."""
        return flipped(moved_on(images, -self.hue), self.mirror)

    def codes(self, codes: Tensor) -> Tensor:
        """relative_cameras' [V, 4] from where the prior sees the views."""
        return mirrored_codes(codes, self.mirror)

    def asked(self, told: Told, images: Tensor, codes: Tensor) -> tuple[Told, Tensor, Tensor]:
        """What the prior is told of the picture, shown and asked for, each view in its variant; `undone` puts its
        answer back. told: of all `variants` of the picture."""
        return told.of(self.rows), self.applied(images), self.codes(codes)


def variant_of(step: int, count: int, views: ViewSettings, seed: int, purpose: str = "variant") -> Variant:
    """Of `count` views of a step."""
    if not views.mirror and not views.hue:
        return Variant(torch.zeros(count, dtype=torch.bool), torch.zeros(count, dtype=torch.long))
    generator = keyed_generator(seed, step, purpose)
    mirror, hue = (torch.rand(count, generator=generator) for _ in range(2))
    places = (hue < views.hue).long() + (hue < views.hue / 2)
    return Variant(mirror < views.mirror, places)


def variants(picture: Tensor) -> Tensor:
    """[6, 3, H, W] of a picture [3, H, W]: for each hue as it is and in a mirror, by the numbers of Variant.rows."""
    return Variant.of(torch.arange(2 * HUES, device=picture.device)).applied(
        picture.expand(2 * HUES, -1, -1, -1)
    )


def flipped(images: Tensor, which: Tensor) -> Tensor:
    """[V, C, H, W] with left and right exchanged where `which` [V] says so."""
    return torch.where(which[:, None, None, None], images.flip(-1), images)


def moved_on(images: Tensor, places: Tensor) -> Tensor:
    """[V, 3, H, W] with each picture's channels moved on by so many places [V]."""
    channels = (torch.arange(HUES, device=places.device) - places[:, None]) % HUES
    return images.gather(1, channels[:, :, None, None].expand_as(images))
