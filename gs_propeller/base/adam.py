"""Adam as pure functions of tensors, operation for operation torch.optim.Adam's.

theta, m, v, beta_1, beta_2, eps as in Adam's paper; `age`: steps that the moments are old, with this one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def first_moment(m: Tensor, grad: Tensor, betas: tuple[float, float]) -> Tensor:
    return m.lerp(grad, 1.0 - betas[0])


def second_moment(v: Tensor, grad: Tensor, betas: tuple[float, float]) -> Tensor:
    return (v * betas[1]).addcmul(grad, grad, value=1.0 - betas[1])


def moved(
    theta: Tensor, m: Tensor, v: Tensor, lr: float, age: int, betas: tuple[float, float], eps: float
) -> Tensor:
    """theta after a step with moments m and v."""
    return theta.addcdiv(m, _denominator(v, age, betas, eps), value=-lr / (1.0 - betas[0] ** age))


def moved_columns(
    theta: Tensor,
    m: Tensor,
    v: Tensor,
    rates: Sequence[float],
    age: int,
    betas: tuple[float, float],
    eps: float,
) -> Tensor:
    """The same of [.., C], each column with its own rate of C."""
    strides = [-rate / (1.0 - betas[0] ** age) for rate in rates]
    denominator = _denominator(v, age, betas, eps)
    return theta.addcdiv(m * torch.tensor(strides, dtype=m.dtype, device=m.device), denominator)


def _denominator(v: Tensor, age: int, betas: tuple[float, float], eps: float) -> Tensor:
    return (v.sqrt() / math.sqrt(1.0 - betas[1] ** age)).add(eps)
