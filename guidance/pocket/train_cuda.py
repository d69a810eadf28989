"""Trains the pocket Zero-1-to-3 on a GPU: `python -m guidance.pocket.train_cuda --out build/pocket-cuda --minutes 9`.

The networks, stream, losses and checkpoints of train.py and train_vae.py, arranged so that the GPU waits for nothing:
it draws models itself (many.py), processes draw procedural and textured objects without a pause, every view stays in
the device's memory, the UNet is compiled while the VAE trains. First the VAE, for --vae of the minutes, from that of
--start; then the UNet on its latents, the rest of them. The learning rates follow the clock. The weights' average is
written every minute as out/average.safetensors. The same command goes on from the end of the last one, on other
objects, with the VAE as it is.
B batch, N objects, V views, C latent channels, L latent side, S picture side in pixels.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor, nn

from gs_propeller.base.errors import UserError
from gs_propeller.base.processes import end_with_parent, pool_of
from guidance import POCKET
from guidance.pocket import many_render
from guidance.pocket.clock import (
    Arrivals,
    Replay,
    Resident,
    Sample,
    Tensors,
    chance,
    compiled,
    descend,
    encoded,
    fast,
    frozen,
    share_left,
)
from guidance.pocket.data import OBJECTS, SIZE_PX, VIEWS, mirrored
from guidance.pocket.many import library
from guidance.pocket.meshes import TRAIN, keys, say_if_missing
from guidance.pocket.model import LATENTS, Denoiser, build_scheduler
from guidance.pocket.muon import Muon
from guidance.pocket.stream import cached_shard, humbly, keep_shard, newest_shard, save
from guidance.pocket.train import loss_of, restored, vae_of
from guidance.pocket.train_vae import PHOTOGRAPHS, KernelMuon, unrendered
from guidance.pocket.train_vae import loss_of as vae_loss_of
from guidance.pocket.training import (
    CHECKPOINT,
    STEPS_BEFORE,
    Log,
    Options,
    arguments,
    autocast,
    follow,
)

DROP = 0.05  # share of samples that learn the unconditional score: pictures are distilled without guidance
OTHERS, OTHERS_DRAWN = 16, 500  # files of pictures for the VAE that are no renders, and how many in each
OTHERS_SHARE = 0.25  # of the VAE's batch
HELD = 0.05  # weight of the old VAE's latents in the new one's loss: enough that the UNet goes on with what it knows
VAE_BATCH, VAE_LR = 256, 0.003
VARIED = 0.25  # deviation of how an object's channels are mixed for its second appearance
FIRST_RENDERS = 8  # shards that the VAE's training waits for
RENDERS = 64  # shards that it draws from at most
KEPT = 200_000  # objects that processes have drawn, and these varied, in the device's memory: 16 GB
# Models that the device draws at once, which takes an H200 0.2 s, and how often: a view is used about four times.
OWN_OBJECTS, OWN_STEPS = 512, 32
OWN_FIRST = 16  # times that many before the first step
OWN_KEPT = 65_536  # of them in memory
OWN_SHARE = 0.5  # of the batch
DONE = "vae.done"  # in a run's folder: its VAE is trained


def keep_others(folder: Path, number: int) -> None:
    """File `number` of the pictures that are no renders is in the folder when this returns."""
    rng = np.random.default_rng([91, number])
    drawn = np.stack([unrendered(rng, PHOTOGRAPHS * rng.random()) for _ in range(OTHERS_DRAWN)])
    images = torch.from_numpy(drawn * 255 + 0.5).to(torch.uint8).permute(0, 3, 1, 2)
    save(folder / f"others{number:04d}.safetensors", {"images": images})


def files(folder: Path, pattern: str, wanted: int) -> list[Path]:
    """The folder's files of a pattern, as soon as there are `wanted` of them."""
    while len(found := sorted(folder.glob(pattern))) < wanted:
        time.sleep(0.2)
    return found


def mixed(renders: Tensor, others: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """[count, 3, S, S] in -1..1 from uint8 pictures [M, 3, S, S] of both kinds; half of all are recoloured, white
    staying white, and half mirrored, as train_vae.py does on a CPU."""
    device = renders.device

    def some(pool: Tensor, size: int) -> Tensor:
        return pool[torch.randint(len(pool), (size,), generator=generator, device=device)]

    few = int(count * OTHERS_SHARE)
    x = torch.cat([some(others, few), some(renders, count - few)]).float() / 255
    drawn = torch.rand(2, count, 1, 1, 1, generator=generator, device=device)
    x = torch.where(drawn[0] < 0.5, recoloured(x, 0.5, generator), x)
    return torch.where(drawn[1] < 0.5, x.flip(-1), x) * 2 - 1


def recoloured(x: Tensor, by: float, generator: torch.Generator) -> Tensor:
    """[B, ..., 3, S, S] in 0..1, each of the B with its own mixing of the channels' darkness; white stays white."""
    size = len(x), 3, 3
    mixing = torch.eye(3, device=x.device) + by * torch.randn(size, generator=generator, device=x.device)
    mixing = mixing / mixing.sum(2, keepdim=True).clamp_min(0.3)
    return (1 - torch.einsum("bij,b...jhw->b...ihw", mixing, 1 - x)).clamp(0, 1)


def varied(images: Tensor, poses: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Objects once more, for what they cost to draw: in a mirror and in other colours, the same in all of an object's
    views. images [B, V, 3, S, S] uint8, poses [B, V, 4]; all on the generator's device."""
    seen, codes = mirrored(images, poses)
    return (recoloured(seen.float() / 255, VARIED, generator) * 255 + 0.5).to(torch.uint8), codes


def train_vae(options: Options, minutes: float, place: Path) -> None:
    """Trains the VAE in out/vae for some minutes on the shards in `place` and replaces it by the averaged weights;
    out/vae.done (DONE) says so."""
    end_with_parent()
    device, log = torch.device(options.device), Log(options.out / "log.jsonl")
    torch.manual_seed(options.seed)
    fast()
    vae = vae_of(options).to(device, memory_format=torch.channels_last)
    old, average = copy.deepcopy(vae).eval().requires_grad_(False), copy.deepcopy(vae)
    optimiser = KernelMuon(vae, VAE_LR)
    others = torch.cat([load_file(f)["images"] for f in files(place, "others*.safetensors", OTHERS)]).to(
        device
    )
    generator = torch.Generator(device).manual_seed(options.seed)
    renders, seen, step, last, begun_s = others, 0, 0, 0.0, time.time()
    while (share := (time.time() - begun_s) / 60 / minutes) < 1.0:
        found = files(place, "shard*.safetensors", FIRST_RENDERS)
        if len(found) >= max(2 * seen, FIRST_RENDERS):  # every doubling
            seen = len(found)
            pool = [cached_shard(place, int(f.stem[5:])).images.flatten(0, 1) for f in found[-RENDERS:]]
            renders = torch.cat(pool).to(device)
        x = mixed(renders, others, options.batch if device.type == "cpu" else VAE_BATCH, generator)
        x = x.to(memory_format=torch.channels_last)
        with autocast(device):
            loss, measured = vae_loss_of(vae, old, x, len(x) // 4, HELD, generator)
        vae.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step(min(1.0, (step + 1) / 50) * share_left(share))
        follow(average, vae, 12 / (step + 12))
        step += 1
        if time.time() - last > 5:
            last = time.time()
            log.write(stage="vae", step=step, samples=step * len(x), **measured(), elapsed_s=last - begun_s)
    average.cpu().to(memory_format=torch.contiguous_format).save_pretrained(options.out / "vae")
    (options.out / DONE).touch()


def draw(held: Resident, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As stream.draw: known pictures, target latents, known latents, poses."""
    rows = held.some(count, generator)
    views = held.below(VIEWS, count, generator, first=1)
    known, latents, poses = (held.rows[name] for name in ("known", "latents", "poses"))
    return known[rows], latents[rows, views].float(), latents[rows, 0].float(), poses[rows, views]


def resident(capacity: int, device: torch.device) -> Resident:
    """known [N, 3, S, S] uint8, latents [N, V, C, L, L] half, unscaled, poses [N, V, 4]."""
    side = SIZE_PX // 4
    return Resident(
        capacity, device,
        known=((3, SIZE_PX, SIZE_PX), torch.uint8),
        latents=((VIEWS, LATENTS, side, side), torch.float16),
        poses=((VIEWS, 4), torch.float32),
    )  # fmt: skip


class Own:
    """Models drawn on the device itself, latents beside them; new ones every OWN_STEPS batches."""

    def __init__(self, device: torch.device, vae: AutoencoderKL, generator: torch.Generator) -> None:
        self.models, self.held = library(keys(TRAIN), device), resident(OWN_KEPT, device)
        self.vae, self.generator, self.batches = vae, generator, 0

    @torch.no_grad()
    def add(self) -> None:
        images, poses = many_render.drawn(self.models, OWN_OBJECTS, self.generator)
        self.held.add(
            known=images[:, 0], latents=encoded(self.vae, images, self.generator.device), poses=poses
        )

    def draw(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As the function draw."""
        for _ in range(OWN_FIRST if not self.batches else not self.batches % OWN_STEPS):
            self.add()
        self.batches += 1
        return draw(self.held, count, self.generator)


def train_unet(
    options: Options, ends_s: float, place: Path, first: int, drawn: list[Future[None]], vae_trains: Callable[[], bool]
) -> None:  # fmt: skip
    """Compiles, waits for the VAE while vae_trains(), then trains until the clock says ends_s."""
    torch.manual_seed(options.seed)
    device, log = torch.device(options.device), Log(options.out / "log.jsonl")
    fast()
    model, average = Denoiser().to(device), Denoiser().to(device)
    model.unet.to(memory_format=torch.channels_last)
    optimiser = Muon(model, options.lr, fused=device.type == "cuda")
    alphas = build_scheduler().alphas_cumprod.to(device)
    generator = chance(device)
    held = resident(min(2 * OBJECTS * len(drawn), KEPT), device)
    blank = [torch.zeros_like(x[:1]).expand(options.batch, *x.shape[1:]) for x in held.rows.values()]
    known, latents, poses = blank[0], blank[1][:, 0].float(), blank[2][:, 0]
    sample = known, latents, latents, poses
    scale = float(vae_of(options).config.scaling_factor)

    def loss(drawn: Sample) -> Tensor:
        known, latents, condition, poses = drawn
        return loss_of(
            model, (known, latents, condition, poses), STEPS_BEFORE, scale, alphas, generator, DROP
        )

    compiled(model, model.unet, lambda: loss(sample), log)
    while not (options.out / DONE).exists():
        if not (vae_trains() or (options.out / DONE).exists()) or time.time() > ends_s:
            raise UserError(
                "the VAE's training broke off or had too few minutes; the same command begins it anew"
            )
        time.sleep(0.2)
    vae = vae_of(options)
    run = restored(options, model, average, optimiser, vae, log, first)
    vae = frozen(vae, device)
    replay = Replay(model, loss, sample, log)
    own = Own(device, vae, generator) if keys(TRAIN) else None

    def add(shard: Tensors) -> int:
        drawn = shard["images"].to(device), shard["poses"].to(device)
        for images, codes in (drawn, varied(*drawn, generator)):
            held.add(known=images[:, 0], latents=encoded(vae, images, device), poses=codes)
        return held.count // 2 + (own.held.count if own else 0)

    def batch() -> Sample:
        few = int(options.batch * OWN_SHARE) if own else 0
        theirs = draw(held, options.batch - few, generator)
        return tuple(torch.cat(x) for x in zip(theirs, own.draw(few), strict=True)) if own else theirs

    arrivals = Arrivals(place, drawn, first)
    descend(
        options, ends_s, model, average, optimiser, run, arrivals, add,
        lambda: replay(batch()), log,
    )  # fmt: skip


def main() -> None:
    parser = gpu_arguments(__doc__, "build/pocket-cuda", 9.0)
    parser.add_argument(
        "--vae", type=float, default=0.15, help="share of the minutes that trains the VAE; 0: none"
    )
    parser.add_argument(
        "--shards", type=int, default=1200, help="shards drawn at most; the newest are kept in memory"
    )
    given = vars(parser.parse_args())
    vae_share, count = given.pop("vae"), given.pop("shards")
    options = Options(**given)
    if without_a_gpu(options):
        parser.error("there is no CUDA device here; `python -m guidance.pocket.train` trains on a CPU")
    say_if_missing("procedural objects alone")
    start = options.start or POCKET
    options = replace(options, start=start)
    ends_s, place = time.time() + options.minutes * 60, options.out / "shards"
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    vae_of(options)
    if not vae_share:
        (options.out / DONE).touch()
    log = options.out / "log.jsonl"
    if not log.exists():  # that of the weights it begins with comes first
        log.write_text((start / "training.jsonl").read_text())
    pool = pool_of(options.workers)
    done = (options.out / DONE).exists()
    for number in range(0 if done else OTHERS):
        pool.submit(humbly, partial(keep_others, place), number)
    first = newest(options.out, start)
    beside = bool(keys(TRAIN))
    drawn = [pool.submit(humbly, partial(keep_shard, place, beside=beside), first + k) for k in range(count)]
    trained = multiprocessing.get_context("spawn").Process(
        target=train_vae, args=(options, options.minutes * vae_share, place), daemon=True
    )
    if not done:
        trained.start()
    train_unet(options, ends_s, place, first, drawn, lambda: trained.pid is not None and trained.is_alive())
    pool.shutdown(wait=False, cancel_futures=True)


def gpu_arguments(description: str, out: str, minutes: float) -> argparse.ArgumentParser:
    """The command line of a training by the clock, which ends when it is over and is exported by its CPU twin."""
    given = {"batch": 1024, "lr": 1e-3, "device": "cuda", "workers": 16, "minutes": minutes}
    return arguments(description, out, ("until", "export"), **given)


def without_a_gpu(options: Options) -> bool:
    """Whether it is to train where there is none."""
    return torch.device(options.device).type == "cuda" and not torch.cuda.is_available()


def newest(out: Path, start: Path | None = None) -> int:
    """One past the last shard that the run in `out` has drawn, or else the weights in `start`, or else none."""
    if (out / CHECKPOINT).exists():
        return int(load_file(out / CHECKPOINT)["run.newest_shard"])
    return int(json.loads((start / "training.json").read_text())["shards"][1]) if start else newest_shard(0)


if __name__ == "__main__":
    main()
