"""Rows of a table by number, and sums of what belongs to a row, each the other's adjoint.

torch's own indexing adds up its gradients in whatever order the threads come; here the order is that of the numbers on
a CPU, so that a run is the same bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def add_rows(values, index, total):  # type: ignore[no-untyped-def]
    """Adds values [K, C] to rows index [K] of total [N, C]."""
    for k in range(index.shape[0]):
        for c in range(values.shape[1]):
            total[index[k], c] += values[k, c]


def rows(table: Tensor, index: Tensor) -> Tensor:
    """[K, C] of table [N, C]; differentiable in it. index [K] int64."""
    return _Rows.apply(table, index)  # type: ignore[no-any-return]


def summed(values: Tensor, index: Tensor, count: int) -> Tensor:
    """[count, C]: the sum of those of values [K, C] whose index it is; differentiable in them."""
    return _Summed.apply(values, index, count)  # type: ignore[no-any-return]


def _sums(values: Tensor, index: Tensor, count: int) -> Tensor:
    if values.device.type != "cpu":
        return values.new_zeros(count, values.shape[1]).index_add(0, index, values)
    given = values.detach().contiguous().numpy()
    total = np.zeros((count, values.shape[1]), given.dtype)  # pages that no row reaches stay unwritten
    add_rows(given, index.contiguous().numpy(), total)
    return torch.from_numpy(total)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.index, ctx.count = index, len(table)
        return table[index]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return summed(grad, ctx.index, ctx.count), None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, count: int) -> Tensor:
        ctx.index = index
        return _sums(values, index, count)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return rows(grad, ctx.index), None, None
