"""The training stream on disk: shards drawn once, also ahead of need, encoded by the VAE, and batches drawn from them.

B objects in a shard, V views, C latent channels, L latent side, S picture side in
pixels, K samples of a batch. Which shards a step may draw from is a function of the step alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from gs_propeller.base.processes import pool_of
from guidance.pocket.data import Shard, shard

FIRST_SHARD = 58
SHARDS_KEPT = 64  # the pool that batches are drawn from: the newest of the stream
SHARDS_FIRST = 4  # that a run begins with, so that it begins soon
SHARD_STEPS = (
    20  # training steps from one new shard to the next: at 128 samples, each view is used about once
)


def save(path: Path, tensors: dict[str, Tensor]) -> None:
    """Written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".part{os.getpid()}")
    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary)
    os.replace(temporary, path)


def cached_shard(folder: Path, number: int, beside: bool = False) -> Shard:
    """Shard `number`, drawn once and kept in the folder; beside: see data.member."""
    path = folder / f"shard{number:04d}.safetensors"
    if not path.exists():
        value = shard(number, beside=beside)
        save(path, {"images": value.images, "poses": value.poses})
    tensors = load_file(path)
    return Shard(tensors["images"], tensors["poses"])


def newest_shard(step: int) -> int:
    """One past the newest shard that a step may draw from."""
    return SHARDS_FIRST + FIRST_SHARD + step // SHARD_STEPS


def window(step: int, first: int) -> range:
    """The shards that a step draws from, in a run that began at shard `first`."""
    newest = newest_shard(step)
    return range(max(first, newest - SHARDS_KEPT), newest)


def keep_shard(folder: Path, number: int, beside: bool = False) -> None:
    """Shard `number` is in the folder when this returns; beside: see data.member."""
    cached_shard(folder, number, beside)


def humbly(draw: Callable[[int], object], number: int) -> None:
    """draw(number) on one thread, behind everything else that the machine does."""
    os.nice(10)  # the training waits for nothing else on a machine of few cores
    torch.set_num_threads(1)
    draw(number)


class Ahead:
    """Calls draw(number) for shards before they are needed, in processes of their own; none where workers is 0."""

    def __init__(self, draw: Callable[[int], object], workers: int) -> None:
        self.draw, self.workers = draw, workers
        self.pool = pool_of(workers) if workers else None
        self.drawn: dict[int, Future[None]] = {}

    def need(self, wanted: range) -> None:
        """All these shards are on disk when this returns, and the next ones under way."""
        if self.pool is None:
            return
        for number in range(wanted.start, wanted.stop + self.workers):
            if number not in self.drawn:
                self.drawn[number] = self.pool.submit(humbly, self.draw, number)
        for number in wanted:
            self.drawn[number].result()

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)


T = TypeVar("T")


class Pool(Generic[T]):
    """The shards that a step draws from, by number, as `read` gives them; first: the run's first one."""

    def __init__(
        self, first: int, ahead: Ahead, read: Callable[[int], T], forget: Callable[[int], None] | None = None
    ) -> None:
        self.first, self.ahead, self.read, self.forget = first, ahead, read, forget
        self.shards: dict[int, T] = {}

    def at(self, step: int) -> dict[int, T]:
        wanted = window(step, self.first)
        if self.shards.keys() != set(wanted):
            self.ahead.need(wanted)
            for number in self.shards.keys() - set(wanted):
                if self.forget is not None:
                    self.forget(number)
            self.shards = {k: self.shards[k] if k in self.shards else self.read(k) for k in wanted}
        return self.shards


def in_bf16(device: torch.device) -> bool:
    """Whether it computes in bf16 itself: elsewhere that only costs conversions."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """uint8 [M, 3, S, S] -> unscaled latent means [M, C, L, L], half precision."""
    device = next(vae.parameters()).device
    parts = []
    for chunk in images.split(
        32 if device.type == "cpu" else 512
    ):  # 32 stay in a CPU's cache: a quarter faster
        with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16(device)):
            parts.append(vae.encode(chunk.to(device).float() / 127.5 - 1.0).latent_dist.mode().half().cpu())
    return torch.cat(parts)


def keep_encodable(folder: Path, number: int) -> None:
    """What encoded_shard needs of shard `number` is in the folder when this returns."""
    if not latents_file(folder, number).exists():
        cached_shard(folder / "shards", number)


@dataclass(frozen=True)
class Encoded:
    """known [B, 3, S, S] uint8; latents [B, V, C, L, L]; poses [B, V, 4]."""

    known: Tensor
    latents: Tensor
    poses: Tensor


def latents_file(folder: Path, number: int) -> Path:
    return folder / "latents" / f"shard{number:04d}.safetensors"


def encoded_shard(folder: Path, vae: AutoencoderKL, number: int) -> Encoded:
    """Shard `number` with its latents, made once and kept in the folder; its pictures are not kept beside them."""
    path = latents_file(folder, number)
    if not path.exists():
        drawn = cached_shard(folder / "shards", number)
        latents = encode(vae, drawn.images.flatten(0, 1)).unflatten(0, drawn.images.shape[:2])
        save(path, {"known": drawn.images[:, 0], "latents": latents, "poses": drawn.poses})
        (folder / "shards" / path.name).unlink(missing_ok=True)
    tensors = load_file(path)
    return Encoded(tensors["known"], tensors["latents"], tensors["poses"])


def draw(
    pool: dict[int, Encoded], size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Known pictures [K, 3, S, S] uint8, target latents and known latents [K, C, L, L], poses [K, 4]."""
    keys = sorted(pool)
    chosen = torch.randint(len(keys), (size,), generator=generator)
    rows = torch.randint(len(pool[keys[0]].known), (size,), generator=generator)
    targets = torch.randint(1, pool[keys[0]].latents.shape[1], (size,), generator=generator)
    picks = [(pool[keys[int(k)]], int(r), int(v)) for k, r, v in zip(chosen, rows, targets, strict=True)]
    return (
        torch.stack([e.known[r] for e, r, _ in picks]),
        torch.stack([e.latents[r, v] for e, r, v in picks]).float(),
        torch.stack([e.latents[r, 0] for e, r, _ in picks]).float(),
        torch.stack([e.poses[r, v] for e, r, v in picks]),
    )
