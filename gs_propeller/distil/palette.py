"""The input picture's colours by their height: what the sides that it does not show are most likely painted with.

A prior that is unsure answers with the mean of what may be, so backs come out pale: a black dress grey, gold a dull
yellow. Things that stand upright mostly have the same colours all round at a height. So colours that the picture does
not show move to those of its own that are near both in colour and in height: a mean shift (Comaniciu and Meer 2002) of
the asset's colours over the picture's.

M pixels of the picture, N colours. Heights are world units, y up; colours in 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gs_propeller.base.camera import Cameras

COLOUR, HEIGHT = 0.08, 0.1  # deviations of the kernel
SHIFTS = 1
MOST = 1000  # pixels that are enough
INSIDE = 0.99  # of a pixel that shows nothing but the object, as its neighbours do
BINS, LEVELS = 32, 32  # heights and shades of a channel that are told apart where there are many colours
CHUNK = 8192
SEEN = 0.2, 0.6  # how well the picture shows a place: not at all, well


@dataclass(frozen=True)
class Palette:
    """colours [M, 3] of a picture's object and the heights [M] that they stand at."""

    colours: Tensor
    heights: Tensor

    @staticmethod
    def of(image: Tensor, mask: Tensor, camera: Cameras) -> Palette | None:
        """Of a picture [1, 3, S, S], its mask [1, 1, S, S] and its camera; None where nothing of the object is inside
        its silhouette. A pixel counts as on the upright plane through the middle that faces the camera."""
        inside = torch.nonzero(-F.max_pool2d(-mask, 3, 1, 1)[0, 0] > INSIDE)
        if not len(inside):
            return None
        rows, columns = inside[:: -(-len(inside) // MOST)].unbind(1)
        side, rotation, centre = image.shape[-1], camera.w2c[0, :3, :3], camera.centres[0]
        at = torch.stack([columns, rows], 1).to(image) + 0.5 - side / 2
        rays = torch.cat([at / camera.focal_px(side), torch.ones_like(at[:, :1])], 1) @ rotation
        level = F.normalize(centre * centre.new_tensor([1.0, 0.0, 1.0]), dim=0)
        reach = (centre @ level) / -(rays @ level).clamp_max(-1e-6)
        return Palette(image[0, :, rows, columns].T, centre[1] + reach * rays[:, 1])

    def pulled(self, colours: Tensor, heights: Tensor) -> Tensor:
        """[N, 3]: colours [N, 3] at heights [N] moved to the palette's."""
        if len(colours) <= CHUNK:
            return self._shifted(colours, heights)
        keys = torch.cat([colours.clamp(0, 1) * LEVELS, self._bin(heights)[:, None]], 1).round().long()
        places = keys.new_tensor([1, LEVELS + 1, (LEVELS + 1) ** 2, (LEVELS + 1) ** 3])
        packed = (keys * places).sum(1)  # CUDA has no product of matrices of integers
        _, which, counts = packed.unique(return_inverse=True, return_counts=True)
        means = [x.new_zeros(len(counts), *x.shape[1:]).index_add_(0, which, x) for x in (colours, heights)]
        mean, height = means[0] / counts[:, None], means[1] / counts
        moves = [self._shifted(c, h) - c for c, h in zip(mean.split(CHUNK), height.split(CHUNK), strict=True)]
        return colours + torch.cat(moves)[which]

    def _bin(self, heights: Tensor) -> Tensor:
        low, high = heights.aminmax()
        return (heights - low) / (high - low).clamp_min(1e-6) * BINS

    def _shifted(self, colours: Tensor, heights: Tensor) -> Tensor:
        """The mean shift; the kernel's exponent is minus half the squared distance, less what all pixels share."""
        own = torch.cat([self.colours / COLOUR, self.heights[:, None] / HEIGHT], 1)
        bias = own.square().sum(1) / 2
        for _ in range(SHIFTS):
            asked = torch.cat([colours / COLOUR, heights[:, None] / HEIGHT], 1)
            colours = (asked @ own.T - bias).softmax(1) @ self.colours
        return colours


def shown(cosine: Tensor) -> Tensor:
    """The share [N] of 1 in which the picture itself decides, by how well it shows a place."""
    ramp = ((cosine - SEEN[0]) / (SEEN[1] - SEEN[0])).clamp(0, 1)
    return ramp * ramp * (3 - 2 * ramp)
