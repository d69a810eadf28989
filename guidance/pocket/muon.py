"""Muon (Jordan et al. 2024), for the pocket priors' trainings: the step of a matrix is made orthogonal, so that every
direction moves alike and few samples go far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

ROUNDS = 5  # of Newton-Schulz
MOMENTUM = 0.95
MATCHED = (
    0.2  # root mean square of a step for a rate of one: about AdamW's (Liu et al. 2025), whose rates it takes
)
# Not matrices in this sense: what tables look up, and the first and last layers, which speak in pixels' units.
OTHERS = ("embed", "conv_in", "conv_out")


class Muon(torch.optim.AdamW):
    """Nesterov's momentum made orthogonal for every matrix of a model, a convolution's kernel as [out, in x 3 x 3];
    AdamW for what is none, at the same rate."""

    def __init__(self, model: nn.Module, lr: float, fused: bool = False) -> None:
        """fused: AdamW's steps as one kernel, on a GPU."""
        named = list(model.named_parameters())
        matrices = [p for name, p in named if p.ndim >= 2 and not any(word in name for word in OTHERS)]
        chosen = {id(p) for p in matrices}
        others = [p for _, p in named if id(p) not in chosen]
        super().__init__(
            [{"params": others}, {"params": matrices}],
            lr=lr,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            fused=fused or None,
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step down the gradients that the parameters hold; takes no closure."""
        groups = self.param_groups
        self.param_groups = groups[:1]
        super().step()
        self.param_groups = groups
        alike: dict[tuple[int, int], list[Tensor]] = {}
        for p in groups[1]["params"]:
            if p.grad is not None:
                alike.setdefault((len(p), p[0].numel()), []).append(p)
        rate, decay = groups[1]["lr"], groups[1]["weight_decay"]
        for shape, same in alike.items():
            grads = [p.grad for p in same if p.grad is not None]
            speeds = [self._speed(p) for p in same]
            torch._foreach_lerp_(speeds, grads, 1 - MOMENTUM)
            ways = torch._foreach_lerp(grads, speeds, MOMENTUM)
            stacked = orthogonal(torch.stack([way.flatten(1) for way in ways]))
            stacked = stacked * (-rate * MATCHED * max(shape) ** 0.5)
            torch._foreach_mul_(same, 1 - rate * decay)
            torch._foreach_add_(same, [way.reshape(p.shape) for way, p in zip(stacked, same, strict=True)])

    def _speed(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "speed" not in state:
            state["speed"] = torch.zeros_like(p)
            state["step"] = torch.zeros(())  # AdamW, when it is restored, asks every parameter for one
        return state["speed"]


def orthogonal(matrices: Tensor) -> Tensor:
    """[..., R, C] near the nearest ones whose singular values are one."""
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-9)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x
