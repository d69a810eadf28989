"""The state that evolves: N Gaussians, Adam's moments, densification statistics, lineage, step.

N Gaussians, A generations remembered, K = (degree + 1)^2 spherical-harmonics coefficients.
Parameters are raw: log-scale, logit of the opacity, unnormalised quaternion (w, x, y, z).
Nothing here is written in place; functions return new records.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

ANCESTORS = 4  # generations kept in a lineage: more than a window ever spans
SH_C0 = 0.28209479177387814  # Y_00, the constant spherical harmonic


@dataclass(frozen=True)
class Gaussians:
    """Raw parameters of N Gaussians; every tensor is float and shares dim 0.

    means [N, 3] world units; log_scales [N, 3]; quats [N, 4] wxyz, not normalised;
    logit_opacities [N]; sh_dc [N, 1, 3]; sh_rest [N, K - 1, 3]. Colour = 0.5 + SH(direction).
    Also used for anything of the same shape: gradients, Adam's moments.
    """

    means: Tensor
    log_scales: Tensor
    quats: Tensor
    logit_opacities: Tensor
    sh_dc: Tensor
    sh_rest: Tensor

    def __post_init__(self) -> None:
        n = self.means.shape[0]
        tails = {"means": (3,), "log_scales": (3,), "quats": (4,), "logit_opacities": (), "sh_dc": (1, 3)}
        for name, tail in tails.items():
            shape = tuple(getattr(self, name).shape)
            if shape != (n, *tail):
                raise ValueError(f"{name} must be {[n, *tail]}, got {list(shape)}")
        rest = tuple(self.sh_rest.shape)
        if len(rest) != 3 or rest[0] != n or rest[2] != 3 or rest[1] not in (0, 3, 8, 15):
            raise ValueError(f"sh_rest must be [{n}, 0|3|8|15, 3], got {list(rest)}")

    def __len__(self) -> int:
        return self.means.shape[0]

    @property
    def sh_degree(self) -> int:
        return {0: 0, 3: 1, 8: 2, 15: 3}[self.sh_rest.shape[1]]

    def map(self, fn: Callable[..., Tensor], *others: Gaussians) -> Gaussians:
        """fn applied field by field: `a.map(torch.add, b)` is a + b."""
        return Gaussians(*(fn(getattr(self, f.name), *(getattr(o, f.name) for o in others)) for f in fields(self)))

    def items(self) -> list[tuple[str, Tensor]]:
        return [(f.name, getattr(self, f.name)) for f in fields(self)]

    def pack(self) -> Tensor:
        """[N, 11 + 3K] all parameters of a row side by side, in the order of the fields."""
        return torch.cat([tensor.reshape(len(self), -1) for _, tensor in self.items()], 1)

    @staticmethod
    def unpack(packed: Tensor) -> Gaussians:
        """Inverse of pack."""
        n, width = packed.shape
        means, log_scales, quats, opacity, dc, rest = packed.split([3, 3, 4, 1, 3, width - 14], 1)
        return Gaussians(means, log_scales, quats, opacity[:, 0], dc.reshape(n, 1, 3), rest.reshape(n, -1, 3))
