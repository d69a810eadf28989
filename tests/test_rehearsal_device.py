"""The pretended device itself (tests/pretended): what a real device refuses is refused there, what is sound passes, and
every wait is counted at its line. At least as strict as a real one: what passes here is what the rehearsal relies on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.pretended.device import counted, pretended

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real device here")


@pytest.fixture
def device() -> Iterator[None]:
    with pretended():
        yield


# ---- mismatches, planted: each is raised as a real device raises it


class _LeavesItBehind(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * grad.cpu()


class _ReadsIt(_LeavesItBehind):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return torch.from_numpy(2 * grad.numpy()).to(grad.device)


SIDES, INDICES, TYPES, DRAWS = "same device", "indices should be either on cpu", "dtype", "for generator"
PLANTED: dict[str, tuple[type[Exception], str, Callable[[Tensor, Tensor], Any]]] = {  # of d on the device and h not
    "sum": (RuntimeError, SIDES, lambda d, h: d + h),
    "sum turned round": (RuntimeError, SIDES, lambda d, h: h * d),
    "comparison": (RuntimeError, SIDES, lambda d, h: d > h),
    "sum in place": (RuntimeError, SIDES, lambda d, h: d.add_(h)),
    "sum in place of a number of the host's": (RuntimeError, SIDES, lambda d, h: h.sum().add_(d.sum())),
    "sum into the host's": (RuntimeError, SIDES, lambda d, h: torch.add(d, d, out=h)),
    "number into the host's": (RuntimeError, SIDES, lambda d, h: torch.neg(d.sum(), out=torch.tensor(0.0))),
    "cat": (RuntimeError, SIDES, lambda d, h: torch.cat([d, h])),
    "stack of numbers": (RuntimeError, SIDES, lambda d, h: torch.stack([d.sum(), h.sum()])),
    "where": (RuntimeError, SIDES, lambda d, h: torch.where(d > 0, d, h)),
    "where by the host's mask": (RuntimeError, SIDES, lambda d, h: torch.where(h > 0, d, 0.0)),
    "masked_fill": (RuntimeError, SIDES, lambda d, h: d.masked_fill(h > 0, 0.0)),
    "matmul": (RuntimeError, SIDES, lambda d, h: d @ h),
    "einsum": (RuntimeError, SIDES, lambda d, h: torch.einsum("ij,jk->ik", d, h)),
    "host indexed by the device's": (RuntimeError, INDICES, lambda d, h: h[d[0].long()]),
    "host masked by the device's": (RuntimeError, INDICES, lambda d, h: h[d > 0]),
    "values put from the host": (RuntimeError, SIDES, lambda d, h: d.__setitem__(d > 0, h[h > 0])),
    "index_add": (RuntimeError, SIDES, lambda d, h: d.index_add(0, torch.tensor([0]), d[:1])),
    "gather": (RuntimeError, SIDES, lambda d, h: d.gather(0, h.long().clamp(0, 1))),
    "lerp": (RuntimeError, SIDES, lambda d, h: d.lerp(h, 0.5)),
    "loss": (RuntimeError, SIDES, lambda d, h: F.mse_loss(d, h)),
    "module left behind": (RuntimeError, SIDES, lambda d, h: nn.Linear(3, 3)(d)),
    "picture left behind": (RuntimeError, SIDES, lambda d, h: nn.Conv2d(1, 1, 1).to("cuda")(h[None, None])),
    "grid_sample": (RuntimeError, SIDES, lambda d, h: F.grid_sample(d[None, None], h[None, None, :, :2])),
    "embedding": (RuntimeError, SIDES, lambda d, h: F.embedding(torch.tensor([0]), d)),
    "numpy": (TypeError, "can't convert cuda:0", lambda d, h: d.numpy()),
    "asarray": (TypeError, "can't convert cuda:0", lambda d, h: np.asarray(d)),
    "array of a list": (TypeError, "can't convert cuda:0", lambda d, h: np.array([*d])),
    "numpy function": (TypeError, "can't convert cuda:0", lambda d, h: np.sqrt(d)),
    "host's generator": (RuntimeError, DRAWS, lambda d, h: torch.rand(3, device="cuda", generator=torch.Generator())),
    "device's generator": (RuntimeError, DRAWS, lambda d, h: torch.rand(3, generator=torch.Generator("cuda"))),
    "generator in place": (RuntimeError, DRAWS, lambda d, h: d.normal_(generator=torch.Generator())),
    "half by float": (RuntimeError, TYPES, lambda d, h: d.half() @ d),
    "half into a float module": (RuntimeError, TYPES, lambda d, h: nn.Linear(3, 3).to("cuda")(d.half())),
    "half into a float convolution": (
        RuntimeError, "type", lambda d, h: nn.Conv2d(1, 1, 1).to("cuda")(d.half()[None, None])),
    "gradient left behind": (
        RuntimeError, SIDES, lambda d, h: _LeavesItBehind.apply(d.detach().requires_grad_() * d).sum().backward()),
    "gradient read": (TypeError, "can't convert", lambda d, h: _ReadsIt.apply(d.requires_grad_()).sum().backward()),
    "page-locking": (RuntimeError, "cannot pin", lambda d, h: d.pin_memory()),
}  # fmt: skip
SOUND: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "number": lambda d, h: 2.0 * d + 1,
    "number of the host's": lambda d, h: d + h.sum(),
    "number on the left": lambda d, h: h.sum() * d,
    "where with a number": lambda d, h: torch.where(d > 0, d, h.sum()),
    "masked_fill by a number": lambda d, h: d.masked_fill(d > 0, h.sum()),
    "index of the host's": lambda d, h: d[h[0].long()],
    "mask of the host's": lambda d, h: d[h > 0],
    "value of the host's": lambda d, h: d.__setitem__(d > 0, h.sum()),
    "copied in": lambda d, h: d.copy_(h),
    "copied out": lambda d, h: h.copy_(d),
    "rows copied in": lambda d, h: d.__setitem__(0, h[0]),
    "brought over": lambda d, h: h.to(d) + d,
    "brought back": lambda d, h: d.cpu().numpy() + h.numpy(),
    "made there": lambda d, h: d + d.new_tensor([1.0, 2.0, 3.0]) + torch.ones(3, device=d.device),
    "drawn there": lambda d, h: torch.randn(3, device="cuda", generator=torch.Generator("cuda")) + d,
    "module moved": lambda d, h: nn.Linear(3, 3).to("cuda")(d).sum().backward(),
    "module in half": lambda d, h: nn.Linear(3, 3).to("cuda", torch.float16)(d.half()),
    "weights replaced": lambda d, h: setattr(d, "data", d.half()) or d.half() + d,
}


def _pair() -> tuple[Tensor, Tensor]:
    host = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.0, -0.5], [1.0, 1.0, 0.25]])
    return host.to("cuda"), host


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mismatch_is_caught(name: str, device: None) -> None:
    error, says, call = PLANTED[name]
    with pytest.raises(error, match=says):
        call(*_pair())


@pytest.mark.parametrize("name", SOUND)
def test_what_is_sound_passes(name: str, device: None) -> None:
    SOUND[name](*_pair())


def test_it_says_what_a_device_says(device: None) -> None:
    on, host = _pair()
    assert on.is_cuda and str(on.device) == "cuda:0" == str(torch.zeros_like(on).device) and not host.is_cuda
    assert on.device == torch.device("cuda", 0) and on.to("cpu").device == torch.device("cpu")
    assert torch.equal(on.cpu(), host) and on.tolist() == host.tolist()
    layer = nn.Linear(3, 3).cuda().to(memory_format=torch.channels_last)
    assert all(isinstance(p, nn.Parameter) and p.is_cuda and p.is_leaf for p in layer.parameters())


def test_gradients_are_those_of_the_host(device: None) -> None:
    found = []
    for side in _pair():
        leaf = side.detach().requires_grad_()
        rows = torch.cat([leaf[1:], leaf[:1] ** 2])
        (rows.softmax(1) @ rows.T).tril().unbind(0)[1].sum().backward()
        assert leaf.grad is not None and leaf.grad.device == side.device
        found.append(leaf.grad.cpu())
    assert torch.equal(*found)


# ---- waits


WAITS: dict[str, tuple[list[str], Callable[[Tensor, Tensor], Any]]] = {
    "item": (["a number"], lambda d, h: d.sum().item()),
    "float": (["a number"], lambda d, h: float(d[0, 0])),
    "if": (["a number"], lambda d, h: 1 if d.sum() > 0 else 0),
    "cpu": (["to the host"], lambda d, h: d.cpu()),
    "to": (["to the host"], lambda d, h: d.to("cpu", torch.float64)),
    "tolist": (["to the host"], lambda d, h: d.tolist()),
    "copied out": (["to the host"], lambda d, h: h.copy_(d)),
    "brought over": (["to the device"], lambda d, h: h.to(d)),
    "made of numbers": (["to the device"], lambda d, h: torch.tensor([1.0, 2.0], device="cuda")),
    "host's indices": (["to the device"], lambda d, h: d[torch.tensor([0, 1])]),
    "list of indices": (["to the device"], lambda d, h: d[[0, 1]]),
    "nonzero": (["nonzero"], lambda d, h: d.nonzero()),
    "mask": (["a mask"], lambda d, h: d[d > 0]),
    "mask set": (["a mask"], lambda d, h: d.__setitem__(d > 0, 1.0)),
    "index of the device's": (["a number"], lambda d, h: d[d[0, 2].long()]),
    "unique": (["unique"], lambda d, h: d.unique()),
    "equal": (["equal"], lambda d, h: torch.equal(d, d)),
    "inverse": (["linalg's errors"], lambda d, h: torch.linalg.inv(d)),
    "repeats": (["repeats"], lambda d, h: d.repeat_interleave(d[0].long().abs(), 0)),
    "synchronize": (["synchronize"], lambda d, h: torch.cuda.synchronize()),
    "arithmetic": ([], lambda d, h: (d * 2 + h.sum()).softmax(1).argsort()),
    "rows": ([], lambda d, h: d[1:, None].expand(2, 2, 3).to(d)),
    "rows by the device's indices": ([], lambda d, h: d[d[0].argsort()]),
    "no wait asked for": ([], lambda d, h: h.to("cuda", non_blocking=True)),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_wait_is_counted_at_its_line(name: str, device: None) -> None:
    kinds, call = WAITS[name]
    pair = _pair()
    with counted() as found:
        call(*pair)
    line = call.__code__.co_firstlineno
    assert dict(found) == {(f"tests/test_rehearsal_device.py:{line}", kind): 1 for kind in kinds}
