"""A pretended CUDA device: tensors that say `cuda`, compute on the processor, and refuse what a real device refuses.

Two layers. Every operator of torch that meets such a tensor, the backward pass's and the ones inside torch's own C++
too, comes to `_ran`, which holds it to the rules of devices, counts it where the host would have to wait, and computes
it on the numbers, which lie in the host's memory. To torch's C++ the tensors are on `lazy`, a device type that every
build knows, that nothing uses, and that needs no driver, so an operator that makes a new tensor says on which side. A
second layer only translates names: who asks for `cuda` is given `lazy`, and a tensor that is asked says `cuda:0`.

What it cannot see: kernels, streams, memory, the range of a GPU's half precision, operators under torch.compile, and
anything off the thread that entered. A gradient of the wrong side it sees at the next operator, torch as it arrives.
"""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

SAID = torch.device("cuda", 0)  # what it calls itself
KNOWN = torch.device("lazy", 0)  # what torch takes it for
ROOT = Path(__file__).parents[2]
OURS = ("gs_propeller", "guidance", "main_propeller.py", "main2_mesh.py", "bench", "tests")

MIXED = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({})"
INDEX = "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
NUMPY = "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
GENERATOR = "Expected a '{}' device type for generator but found '{}'"

# Operators whose result or whose result's shape the host must know: each waits for all that was asked before.
ANSWERED = {
    "_local_scalar_dense": "a number", "nonzero": "nonzero", "masked_select": "a mask", "equal": "equal",
    "allclose": "allclose", "is_nonzero": "a number", "_linalg_check_errors": "linalg's errors", "bincount": "bincount",
    "unique_dim": "unique", "_unique": "unique", "_unique2": "unique", "unique_consecutive": "unique",
}  # fmt: skip


class Pretended(Tensor):
    """A tensor on the device; host: its numbers. As an argument of `Tensor.f` it is as good as any other."""

    host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    device = property(lambda self: SAID)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, host: Tensor) -> Pretended:
        made = Tensor._make_wrapper_subclass(
            cls, host.size(), strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype,
            layout=host.layout, device=KNOWN,
        )  # fmt: skip
        made.host = host.detach()
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _ran(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{self.host!r} on {SAID}"

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)  # type: ignore[attr-defined,no-any-return]

    @data.setter
    def data(self, other: Tensor) -> None:
        assert type(other) is Pretended
        Tensor.data.__set__(self, other)  # type: ignore[attr-defined]
        self.host = other.host

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(NUMPY)

    __array__ = __dlpack__ = numpy  # type: ignore[assignment]

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def pin_memory(self, *_: Any) -> Tensor:
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")


class Generator(torch.Generator):
    """Random numbers of either side; torch's own knows of no CUDA on this build."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        made = super().__new__(cls)  # type: ignore[call-arg]
        made.side = _side(torch.device(device))
        return made  # type: ignore[no-any-return]

    def __init__(self, device: Any = "cpu") -> None:
        super().__init__()

    side: str
    device = property(lambda self: SAID if self.side == "cuda" else torch.device("cpu"))  # type: ignore[assignment]


def _side(device: torch.device) -> str:
    return "cuda" if device.type == KNOWN.type else device.type


# ---- what a device does with an operator


def _ran(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [*_tensors(args), *_tensors(tuple(kwargs.values()))]
    asked = kwargs.get("device")
    ours = any(type(x) is Pretended for x in tensors)
    lands = ours if asked is None else _side(asked) == "cuda"
    if not (ours or lands):
        return func(*args, **kwargs)
    name = func.overloadpacket.__name__
    if ours:
        _together(func, name, args, kwargs, tensors)
    _waited(name, args, kwargs, tensors, lands)
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    known = {id(_host(x)): x for x in tensors}
    out = func(*_each(args, _host), **{key: _each(value, _host) for key, value in kwargs.items()})
    return _each(out, lambda x: known.get(id(x)) if id(x) in known else Pretended(x) if lands else x)


def _host(x: Any) -> Any:
    return x.host if type(x) is Pretended else x


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _each(value: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (list, tuple):
        return type(value)([_each(item, change) for item in value])
    return value


def _together(
    func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
) -> None:
    """Raises RuntimeError where a real device would, for tensors of both sides in one operator."""
    strangers = [x for x in tensors if type(x) is not Pretended]
    if not strangers or name in ("copy_", "_to_copy"):
        return
    if name in ("index", "index_put", "index_put_", "_unsafe_index", "_unsafe_index_put", "_index_put_impl_"):
        if type(args[0]) is not Pretended:
            raise RuntimeError(INDEX)
        strangers = [x for x in args[2:3] if isinstance(x, Tensor) and type(x) is not Pretended]
        if all(x.ndim == 0 for x in strangers):
            return  # indices of the host's are copied, and so is a single value
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    written = [given.get(argument.name) for argument in func._schema.arguments if argument.is_write]
    if any(isinstance(x, Tensor) and type(x) is not Pretended for x in written):
        raise RuntimeError(MIXED.format(f"{name} writes to the host"))
    lenient = torch.Tag.pointwise in func.tags or name.removesuffix("_") in (
        "fill",
        "masked_fill",
        "index_fill",
    )
    if not (lenient and all(x.ndim == 0 for x in strangers)):  # a number of the host's goes along
        raise RuntimeError(MIXED.format(f"{name} of {[list(x.shape) for x in tensors]}"))


# ---- where the host waits


waits: collections.Counter[tuple[str, str]] = collections.Counter()  # (place, kind)


def wait(kind: str) -> None:
    """The host waits for the device here: counted under the innermost line of the project's own."""
    frame, place = sys._getframe(1), "?"
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(str(ROOT)) and file != __file__:
            parts = Path(file).relative_to(ROOT).parts
            if parts[0] in OURS and parts[:2] != ("tests", "pretended"):
                place = f"{'/'.join(parts)}:{frame.f_lineno}"
                break
        frame = frame.f_back  # type: ignore[assignment]
    waits[place, kind] += 1


def _waited(name: str, args: Any, kwargs: Any, tensors: list[Tensor], lands: bool) -> None:
    if name in ANSWERED:
        wait(ANSWERED[name])
    elif name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        indices = [x for x in args[1] if x is not None]
        if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
            wait("a mask")
        elif any(type(x) is not Pretended for x in indices):
            wait("to the device")
    elif name == "repeat_interleave" and kwargs.get("output_size") is None:
        wait("repeats")
    elif name == "_to_copy" and not kwargs.get("non_blocking"):
        if lands != (type(args[0]) is Pretended):
            wait("to the device" if lands else "to the host")
    elif name == "copy_" and len({type(x) is Pretended for x in tensors}) == 2 and not any(args[2:3]):
        wait("to the device" if type(args[0]) is Pretended else "to the host")


@contextmanager
def counted() -> Iterator[collections.Counter[tuple[str, str]]]:
    """What is waited for inside, (place, kind) -> how often."""
    before = collections.Counter(waits)
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    yield found
    found.update(waits - before)


# ---- entering and leaving, for what computes behind the device's back


class _Off(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Pretended) -> Tensor:
        return x.host.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return Pretended(grad)


class _On(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return Pretended(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad.host if type(grad) is Pretended else grad


def off(x: Tensor) -> Tensor:
    """A device tensor's numbers, differentiable, and no wait: as a kernel reads them. One of the host's is itself."""
    return _Off.apply(x) if type(x) is Pretended else x  # type: ignore[no-any-return]


def on(x: Tensor) -> Tensor:
    """Back on the device."""
    return _On.apply(x)  # type: ignore[no-any-return]


# ---- the machine


class _Operators(TorchDispatchMode):
    """Operators that no device tensor has a part in: factories, and whatever comes onto the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _ran(func, args, kwargs or {})


class _Names(TorchFunctionMode):
    """`cuda` in a call becomes what torch knows the device by."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.device:  # what the project says is what it will be told
            return func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "cuda" and isinstance(args[0], Tensor):
            return args[0].to(KNOWN)
        named = {key: _known(value) for key, value in kwargs.items()} if kwargs else {}
        if named.get("generator") is not None:  # torch's C++ forgets which class it is of
            _drawn_rightly(named["generator"], named.get("device"), args)
        return func(*map(_known, args), **named)


def _drawn_rightly(generator: Any, asked: Any, args: Any) -> None:
    lands = asked == KNOWN or (asked is None and any(type(x) is Pretended for x in _tensors(args)))
    wanted, side = "cuda" if lands else "cpu", getattr(generator, "side", "cpu")
    if side != wanted:
        raise RuntimeError(GENERATOR.format(wanted, side))


def _known(value: Any) -> Any:
    is_name = type(value) is torch.device or type(value) is str
    return KNOWN if is_name and str(value).partition(":")[0] == "cuda" else value


PROPERTIES = SimpleNamespace(
    name="pretended", total_memory=80 << 30, major=9, minor=0, multi_processor_count=132
)
ANSWERS: dict[str, Callable[..., Any]] = {
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": lambda device: None,
    "get_device_properties": lambda device=None: PROPERTIES,
    "get_device_name": lambda device=None: PROPERTIES.name,
    "get_device_capability": lambda device=None: (PROPERTIES.major, PROPERTIES.minor),
    "mem_get_info": lambda device=None: (PROPERTIES.total_memory, PROPERTIES.total_memory),
    "memory_allocated": lambda device=None: 0,
    "max_memory_allocated": lambda device=None: 0,
    "reset_peak_memory_stats": lambda device=None: None,
    "empty_cache": lambda: None,
    "manual_seed_all": lambda seed: None,
    "synchronize": lambda device=None: wait("synchronize"),
}


@contextmanager
def pretended() -> Iterator[None]:
    """A machine with one such device. Not on one that has a real one: there the real one is the better witness."""
    with ExitStack() as stack:
        for name, answer in ANSWERS.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        stack.enter_context(mock.patch.object(torch, "Generator", Generator))
        # torch.tensor then makes a host tensor and brings it over by an operator that is seen, not by one that is not
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        stack.enter_context(_Operators())
        stack.enter_context(_Names())
        yield
