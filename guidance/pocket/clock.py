"""What the trainings on a GPU share, so that the GPU waits for nothing: processes draw shards without a pause, what is
drawn stays in the device's memory, the UNet is compiled, a step is one launch, and the learning rate follows the clock.

M rows of a shard, C latent channels, L latent side, S picture side in pixels.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor, nn

from guidance.pocket.stream import save
from guidance.pocket.training import (
    LOG_EVERY,
    Log,
    Options,
    Run,
    averaging_steps,
    moved,
    store,
)

FLAT_SHARE = 0.5  # of a training, at the end of which its learning rate falls to nought in a straight line
WAITING = 4  # shards read ahead of the device
AVERAGE = "average.safetensors"  # in a run's folder: the averaged weights, written every minute
ENCODED = 1024  # pictures in one call of the VAE

Tensors = dict[str, Tensor]
Sample = tuple[Tensor, ...]


def share_left(share: float) -> float:
    """Of the learning rate, when this share of the time is over."""
    return min(1.0, (1.0 - share) / FLAT_SHARE)


def fast() -> None:
    """TF32 for what is left in float32, and the fastest kernels for shapes that stay."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


class Arrivals:
    """The shards of a folder as they are drawn, from number `first` on, read ahead by a thread; their files go. next:
    one past the last that was taken."""

    def __init__(self, place: Path, drawn: list[Future[None]], first: int) -> None:
        self.place, self.drawn, self.first, self.next = place, drawn, first, first
        self.read: queue.Queue[Tensors | Exception] = queue.Queue(WAITING)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for number, future in enumerate(self.drawn, self.first):
                future.result()
                path = self.place / f"shard{number:04d}.safetensors"
                self.read.put(load_file(path))
                path.unlink()
        except Exception as error:  # a process that was killed, a full disk: the training says it
            self.read.put(error)

    def take(self, wait: bool) -> Tensors | None:
        """A shard where one is there; waits for it where told to. Raises what went wrong in drawing it."""
        try:
            found = self.read.get(block=wait)
        except queue.Empty:
            return None
        if isinstance(found, Exception):
            raise found
        self.next += 1
        return found


class Resident:
    """The stream in the device's memory: tensors by name, each [capacity, ...], of which the first `count` rows are
    filled; the oldest are replaced when it is full."""

    def __init__(
        self, capacity: int, device: torch.device, **like: tuple[tuple[int, ...], torch.dtype]
    ) -> None:
        """like: each tensor's shape after the first, and its type."""
        self.rows = {
            k: torch.empty(capacity, *shape, dtype=t, device=device) for k, (shape, t) in like.items()
        }
        self.capacity, self.count, self.device = capacity, 0, device

    def add(self, **shard: Tensor) -> None:
        """M rows of every tensor."""
        count = len(next(iter(shard.values())))
        at = (self.count + torch.arange(count, device=self.device)) % self.capacity
        for name, values in shard.items():
            self.rows[name][at] = values.to(self.rows[name])
        self.count += count

    def some(self, count: int, generator: torch.Generator) -> Tensor:
        """[count] numbers of filled rows."""
        return self.below(min(self.count, self.capacity), count, generator)

    def below(self, end: int, count: int, generator: torch.Generator, first: int = 0) -> Tensor:
        """[count] numbers in first..end - 1, on the device."""
        return torch.randint(first, end, (count,), generator=generator, device=self.device)


def frozen(vae: AutoencoderKL, device: torch.device) -> AutoencoderKL:
    """On the device, to encode with: in half precision on a GPU."""
    vae = vae.to(device, memory_format=torch.channels_last)
    return (vae.half() if device.type == "cuda" else vae).eval().requires_grad_(False)


@torch.no_grad()
def encoded(vae: AutoencoderKL, images: Tensor, device: torch.device) -> Tensor:
    """[B, V, C, L, L] half, unscaled, of uint8 pictures [B, V, 3, S, S], by a VAE on the device, in its precision."""
    images = images.to(device, non_blocking=True)
    parts = [
        vae.encode(x.to(vae.dtype) / 127.5 - 1.0).latent_dist.mode()
        for x in images.flatten(0, 1).split(ENCODED)
    ]
    return torch.cat(parts).half().unflatten(0, images.shape[:2])


def chance(device: torch.device) -> torch.Generator:
    """The device's own generator: the one whose draws a CUDA graph repeats anew at every replay."""
    if device.type == "cpu":
        return torch.default_generator
    return torch.cuda.default_generators[device.index or torch.cuda.current_device()]


def compiled(model: nn.Module, unet: nn.Module, loss_of: Callable[[], Tensor], log: Log) -> None:
    """The UNet compiled, for training by this loss; as it is where that fails."""
    began, plain, error = time.time(), unet.forward, ""
    try:
        unet.forward = torch.compile(plain, dynamic=False)
        loss_of().backward()
    except Exception as failure:  # the compiler's own classes are many
        unet.forward, error = plain, f"{type(failure).__name__}: {failure}"[:300]
    model.zero_grad(set_to_none=True)
    log.write(stage="compiled", took_s=time.time() - began, failed=error)


class Replay:
    """(sample) -> loss []: a loss and the gradients that the parameters then hold, launched as one CUDA graph, for a
    launch from Python takes longer than most of the kernels do. Without a GPU, or where it cannot be captured, kernel
    after kernel."""

    def __init__(
        self, model: nn.Module, loss_of: Callable[[Sample], Tensor], sample: Sample, log: Log
    ) -> None:
        """sample: as all later ones in shape and type."""
        self.model, self.loss_of, error, began = model, loss_of, "", time.time()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.given = tuple(x.clone(memory_format=torch.contiguous_format) for x in sample)
        if sample[0].is_cuda:
            try:
                self._capture()
            except Exception as failure:  # of the runtime, the compiler or a kernel
                self.graph, error = None, f"{type(failure).__name__}: {failure}"[:300]
                torch.cuda.synchronize()
            log.write(stage="captured", took_s=time.time() - began, failed=error)

    def _capture(self) -> None:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                self._plain(self.given)
        torch.cuda.current_stream().wait_stream(aside)
        self.model.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.loss = self.loss_of(self.given)
            self.loss.backward()
        self.graph = graph

    def _plain(self, sample: Sample) -> Tensor:
        self.model.zero_grad(set_to_none=True)
        loss = self.loss_of(sample)
        loss.backward()
        return loss.detach()

    def __call__(self, sample: Sample) -> Tensor:
        if self.graph is None:
            return self._plain(sample)
        for mine, theirs in zip(self.given, sample, strict=True):
            mine.copy_(theirs)
        self.graph.replay()
        return self.loss.detach()


def descend(
    options: Options, ends_s: float, model: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, run: Run,
    arrivals: Arrivals, add: Callable[[Tensors], int], next_loss: Callable[[], Tensor], log: Log,
) -> None:  # fmt: skip
    """Trains until the clock says ends_s. add(shard) -> objects there have been so far; next_loss(): a step's loss [],
    on the device, whose gradients the parameters then hold; nothing waits for it but the log."""
    began = last = saved = time.time()
    total, counted, step, objects = torch.zeros(()), 0, run.step, 0
    while (now := time.time()) < ends_s:
        if step % 4 == 0 or not objects:
            shard = arrivals.take(wait=not objects)
            if shard is not None:
                objects = add(shard)
        loss = next_loss()
        warm = min((step - run.first_step + 1) / 200, 1.0)
        lr = options.lr * warm * share_left((now - began) / (ends_s - began))
        moved(model, average, optimiser, lr, 1 / averaging_steps(step, run.first_step))
        step += 1
        total, counted = total.to(loss.device) + loss, counted + 1
        if step % LOG_EVERY == 0:
            mean = total.item() / counted
            took_s, last = time.time() - last, time.time()
            log.write(
                stage="unet", step=step, samples=run.at(step, options.batch).samples, loss=mean,
                s_per_step=took_s / counted, objects=objects,
            )  # fmt: skip
            total, counted = torch.zeros(()), 0
        if time.time() - saved > 60:
            save(options.out / AVERAGE, {k: v.clone() for k, v in average.state_dict().items()})
            saved = time.time()
    store(
        options, replace(run.at(step, options.batch), newest_shard=arrivals.next), model, average, optimiser
    )
