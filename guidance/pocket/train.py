"""Trains the pocket Zero-1-to-3: `python -m guidance.pocket.train --out build/pocket --minutes 60`.

First a small VAE on the objects' views, then the view-conditioned UNet with its image encoder and camera
projection, all in the published diffusers layout. A run resumes from its folder by the same command.
B batch, C latent channels, L latent side. The loss is the mean squared error of v (Salimans & Ho 2022).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPImageProcessor

from guidance.pocket.data import EARLY_SHARDS, SIZE_PX, Shard, mirrored, shard
from guidance.pocket.families import FAMILIES
from guidance.pocket.model import Denoiser, build_scheduler, build_vae
from guidance.pocket.plot import plot
from guidance.pocket.score import fixed_sample, score
from guidance.zero123 import Zero123

DROP = 0.1  # share of samples that learn the unconditional score
LOG_EVERY = 100
SHARDS_KEPT = 64  # the pool that batches are drawn from: the newest of the stream
CONSTANT_STEPS = 16_000  # of the learning rate; then it falls with the inverse square root of the step
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's normalisation


@dataclass(frozen=True)
class Options:
    """One training run. seed keys every random number; minutes bound this call, not the training; workers are
    processes that draw the stream's shards ahead."""

    out: Path
    minutes: float
    seed: int = 0
    batch: int = 32
    vae_steps: int = 1400
    vae_batch: int = 16
    lr: float = 5e-4
    threads: int = 1
    workers: int = 0
    device: str = "cpu"


def cached_shard(folder: Path, number: int) -> Shard:
    """Shard `number`, drawn once and kept in the folder."""
    path = folder / f"shard{number:04d}.safetensors"
    if not path.exists():
        value = shard(number)
        _save(path, {"images": value.images, "poses": value.poses})
    tensors = load_file(path)
    return Shard(tensors["images"], tensors["poses"])


def _keep_shard(folder: Path, number: int) -> None:
    cached_shard(folder, number)


class Ahead:
    """Draws shards before they are needed, in processes of their own; none where workers is 0."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder, self.workers = folder, workers
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(workers, context) if workers else None
        self.drawn: dict[int, Future[None]] = {}

    def need(self, newest: int) -> None:
        """All shards below `newest` are on disk when this returns, and the next ones under way."""
        if self.pool is None:
            return
        for number in range(max(0, newest - SHARDS_KEPT), newest + 2 * self.workers):
            if number not in self.drawn:
                self.drawn[number] = self.pool.submit(_keep_shard, self.folder, number)
        for number, future in self.drawn.items():
            if number < newest:
                future.result()

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary)
    os.replace(temporary, path)


def _keyed(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def _batch(images: Tensor, generator: torch.Generator, size: int) -> Tensor:
    """[size, 3, S, S] in -1..1 from uint8 [M, 3, S, S]."""
    rows = torch.randint(len(images), (size,), generator=generator)
    return images[rows].float() / 127.5 - 1.0


class Log:
    """One JSON object a line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.start_s = path, time.time()

    def write(self, **values: Any) -> None:
        with self.path.open("a") as file:
            file.write(
                json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()}) + "\n"
            )


def train_vae(options: Options, log: Log) -> AutoencoderKL:
    """The VAE, trained or loaded; its latents' scale is measured at the end."""
    folder = options.out / "vae"
    if (folder / "config.json").exists():
        return AutoencoderKL.from_pretrained(folder)
    torch.manual_seed(options.seed)
    vae = build_vae().to(options.device)
    images = torch.cat([cached_shard(options.out / "shards", k).images.flatten(0, 1) for k in range(8)])
    optimiser = torch.optim.AdamW(vae.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    begun = time.time()
    for step in range(options.vae_steps):
        share = step / options.vae_steps
        for group in optimiser.param_groups:
            group["lr"] = 1.5e-3 * min(1.0, (step + 1) / 50) * (1.0 - share) ** 0.7
        generator = _keyed(options.seed, step)
        x = _batch(images, generator, options.vae_batch).to(options.device)
        with torch.autocast(options.device, torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(x)
            output = vae.decode(posterior.mean + posterior.std * noise).sample
        error = output.float() - x
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = error.abs().mean() + 2.0 * error.square().mean() + 1e-4 * kl
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 0 or step == options.vae_steps - 1:
            psnr = -10 * torch.log10((error / 2).square().mean()).item()
            log.write(stage="vae", step=step, psnr_db=psnr, kl=kl.item(), elapsed_s=time.time() - begun)
    with torch.no_grad():
        latents = vae.encode(
            _batch(images, _keyed(options.seed, -1), 256).to(options.device)
        ).latent_dist.mode()
    vae.register_to_config(scaling_factor=round(1.0 / latents.std().item(), 5))
    vae.save_pretrained(folder)
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """uint8 [M, 3, S, S] -> unscaled latent means [M, C, L, L], half precision."""
    device = next(vae.parameters()).device
    parts = []
    for chunk in images.split(128):
        with torch.autocast(device.type, torch.bfloat16):
            parts.append(vae.encode(chunk.to(device).float() / 127.5 - 1.0).latent_dist.mode().half().cpu())
    return torch.cat(parts)


@dataclass(frozen=True)
class Encoded:
    """known [B, 3, S, S] uint8; latents [B, V, C, L, L]; poses [B, V, 4]: a shard and its mirror image."""

    known: Tensor
    latents: Tensor
    poses: Tensor


def encoded_shard(options: Options, vae: AutoencoderKL, number: int) -> Encoded:
    path = options.out / "latents" / f"shard{number:04d}.safetensors"
    if not path.exists():
        drawn = cached_shard(options.out / "shards", number)
        both = (drawn, mirrored(drawn))
        latents = [encode(vae, s.images.flatten(0, 1)).unflatten(0, s.images.shape[:2]) for s in both]
        known, poses = torch.cat([s.images[:, 0] for s in both]), torch.cat([s.poses for s in both])
        _save(path, {"known": known, "latents": torch.cat(latents), "poses": poses})
    tensors = load_file(path)
    return Encoded(tensors["known"], tensors["latents"], tensors["poses"])


def newest_shard(step: int) -> int:
    """How many shards of the stream a step may draw from: one more every so often, many when new families begin."""
    if step < CONSTANT_STEPS:
        return 12 + step // 160
    return EARLY_SHARDS + 24 + (step - CONSTANT_STEPS) // 120


def timesteps(step: int, count: int, generator: torch.Generator) -> Tensor:
    """High noise only at first (plain regression of the novel view), then all, the noisy half more often."""
    u = torch.rand(count, generator=generator)
    low = max(0.0, 0.7 - step / 4000)
    return ((low + (1.0 - low) * u**0.5) * 999).round().long()


def normalise(images: Tensor) -> Tensor:
    """uint8 [B, 3, S, S] -> CLIP's normalised pixels."""
    mean, std = (torch.tensor(v, device=images.device).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def train_unet(options: Options, vae: AutoencoderKL, log: Log) -> None:
    """Trains until the minutes are over, saving every few; then writes the averaged weights."""
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    model, average = Denoiser().to(device), Denoiser().to(device)
    average.load_state_dict(model.state_dict())
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.99), weight_decay=0.01)
    checkpoint, first = options.out / "unet.safetensors", 0
    if checkpoint.exists():
        first = _restore(checkpoint, model, average, optimiser)
    alphas = build_scheduler().alphas_cumprod.to(device)
    scale = vae.config.scaling_factor
    log.write(
        stage="start",
        step=first,
        batch=options.batch,
        families=len(FAMILIES),
        last_alpha=alphas[-1].sqrt().item(),
    )
    pool: dict[int, Encoded] = {}
    ahead = Ahead(options.out / "shards", options.workers)
    begun, saved, last = time.time(), time.time(), time.time()
    total, counted = 0.0, 0
    step = first
    while time.time() - begun < options.minutes * 60:
        newest = newest_shard(step)
        ahead.need(newest)
        wanted = range(max(0, newest - SHARDS_KEPT), newest)
        pool = {k: pool[k] if k in pool else encoded_shard(options, vae, k) for k in wanted}
        generator = _keyed(options.seed + 1, step)
        known, latents, condition, poses = (x.to(device) for x in _draw(pool, options.batch, generator))
        t = timesteps(step, options.batch, generator).to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        keep = (torch.rand(options.batch, generator=generator) >= DROP).float().to(device)
        alpha, sigma = alphas[t].sqrt()[:, None, None, None], (1 - alphas[t]).sqrt()[:, None, None, None]
        clean = latents * scale
        for group in optimiser.param_groups:
            group["lr"] = options.lr * min((step + 1) / 200, 1.0, math.sqrt(CONSTANT_STEPS / (step + 1)))
        with torch.autocast(device.type, torch.bfloat16), _attention(device):
            v = model(alpha * clean + sigma * noise, t, normalise(known), condition, poses, keep)
        loss = F.mse_loss(v.float(), alpha * noise - sigma * clean)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        decay = (step + 1) / (step + 10)  # an average over the last tenth of the run, whatever its length
        with torch.no_grad():
            for a, b in zip(average.parameters(), model.parameters(), strict=True):
                a.lerp_(b, 1 - decay)
        step += 1
        total, counted = total + loss.item(), counted + 1
        if step % LOG_EVERY == 0:
            took_s, last = time.time() - last, time.time()
            samples, mean = step * options.batch, total / counted
            log.write(stage="unet", step=step, samples=samples, loss=mean, s_per_step=took_s / counted)
            total, counted = 0.0, 0
        if time.time() - saved > 240:
            _store(checkpoint, model, average, optimiser, step)
            saved = time.time()
    _store(checkpoint, model, average, optimiser, step)
    ahead.close()
    plot(log.path, options.out / "training.png")


def _attention(device: torch.device) -> AbstractContextManager[None]:
    """On a CPU the fused attention's backward is slow: the plain one makes a step 15 % shorter."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def _draw(pool: dict[int, Encoded], size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Known pictures, target latents, known latents, poses: one target view each."""
    keys = sorted(pool)
    chosen = torch.randint(len(keys), (size,), generator=generator)
    rows = torch.randint(len(pool[keys[0]].known), (size,), generator=generator)
    targets = torch.randint(1, pool[keys[0]].latents.shape[1], (size,), generator=generator)
    picks = [(pool[keys[int(k)]], int(r), int(v)) for k, r, v in zip(chosen, rows, targets, strict=True)]
    yield torch.stack([e.known[r] for e, r, _ in picks])
    yield torch.stack([e.latents[r, v] for e, r, v in picks]).float()
    yield torch.stack([e.latents[r, 0] for e, r, _ in picks]).float()
    yield torch.stack([e.poses[r, v] for e, r, v in picks])


def _store(
    path: Path, model: Denoiser, average: Denoiser, optimiser: torch.optim.Optimizer, step: int
) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v.clone() for k, v in average.state_dict().items()}
    for i, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{k}": v.clone() for k, v in moments.items()}
    tensors["step"] = torch.tensor(step)
    _save(path, {k: v.clone() for k, v in tensors.items()})


def _restore(path: Path, model: Denoiser, average: Denoiser, optimiser: torch.optim.Optimizer) -> int:
    tensors = load_file(path)
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    average.load_state_dict({k[8:]: v for k, v in tensors.items() if k.startswith("average.")})
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("adam."):
            _, i, name = key.split(".", 2)
            state.setdefault(int(i), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return int(tensors["step"])


def export(options: Options, folder: Path) -> dict[str, str]:
    """Writes the averaged weights as a prior's folder, half precision; returns each file's SHA-256."""
    average = Denoiser()
    tensors = load_file(options.out / "unet.safetensors")
    average.load_state_dict({k[8:]: v for k, v in tensors.items() if k.startswith("average.")})
    average.half().eval()
    AutoencoderKL.from_pretrained(options.out / "vae").half().save_pretrained(folder / "vae")
    average.unet.save_pretrained(folder / "unet")
    average.image_encoder.save_pretrained(folder / "image_encoder")
    average.clip_camera_projection.save_pretrained(folder / "clip_camera_projection")
    build_scheduler().save_pretrained(folder / "scheduler")
    size = {"height": SIZE_PX, "width": SIZE_PX}
    CLIPImageProcessor(size=size, do_center_crop=False, image_mean=MEAN, image_std=STD).save_pretrained(
        folder / "feature_extractor"
    )
    index = {
        "_class_name": "Zero1to3StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "clip_camera_projection": ["guidance.zero123", "CameraProjection"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    log = (options.out / "log.jsonl").read_text()
    (folder / "training.jsonl").write_text(log)
    sums = {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*.safetensors"))
    }
    record = {
        "seed": options.seed,
        "batch": options.batch,
        "steps": int(tensors["step"]),
        "held_out": score(Zero123(folder)),
        "fixed_sample": [round(v, 3) for v in fixed_sample(Zero123(folder)).flatten().tolist()],
        "sha256": sums,
    }
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    return sums


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("build/pocket"), help="folder of checkpoints and shards"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="time for this call; a later one goes on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw objects ahead")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--vae-steps", type=int, default=Options.vae_steps)
    parser.add_argument("--export", type=Path, help="only write the averaged weights to this folder")
    given = parser.parse_args()
    options = Options(
        given.out,
        given.minutes,
        given.seed,
        threads=given.threads,
        workers=given.workers,
        device=given.device,
        vae_steps=given.vae_steps,
    )
    if given.export:
        print(json.dumps(export(options, given.export), indent=2))
        return
    torch.set_num_threads(options.threads)
    log = Log(options.out / "log.jsonl")
    train_unet(options, train_vae(options, log), log)


if __name__ == "__main__":
    main()
