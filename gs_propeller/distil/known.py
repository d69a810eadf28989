"""The known view: the input picture's own losses, cheap and by far the stiffest part of a step, on pictures alone.

S pixels. They are taken at the exact place in the roll-out. (All in the dear part, a window of 8 lost 0.9 dB of the
input view and took a quarter more passes.)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from gs_propeller.distil.settings import KnownSettings


@dataclass(frozen=True)
class Known:
    """image [1, 3, S, S] over white, mask [1, 1, S, S]."""

    image: Tensor
    mask: Tensor

    @staticmethod
    def of(rgb: Tensor, mask: Tensor, size: int) -> Known:
        """A picture [3, H, W] with its mask [1, H, W], at a side of `size`."""
        image, alpha = (
            F.interpolate(x[None], (size, size), mode="bilinear", antialias=True, align_corners=False).clamp(
                0, 1
            )
            for x in (rgb, mask)
        )
        return Known(image, alpha)

    def losses(
        self, image: Tensor, alpha: Tensor, warm_up: float, settings: KnownSettings
    ) -> dict[str, Tensor]:
        """By name, of a render of that view; warm_up: weights grow with the step, as DreamGaussian's image mode."""
        return {
            "rgb": settings.lambda_rgb * warm_up * (image - self.image).square().mean(),
            "mask": settings.lambda_mask * warm_up * (alpha - self.mask).square().mean(),
        }
