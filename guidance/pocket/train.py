"""Trains the pocket Zero-1-to-3: `python -m guidance.pocket.train --out build/pocket --minutes 60`.

First a small VAE on the objects' views, then the view-conditioned UNet with its image encoder and camera
projection, all in the published diffusers layout. A run resumes from its folder by the same command.
B batch, C latent channels, L latent side. The loss is the mean squared error of v (Salimans & Ho 2022).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPImageProcessor

from guidance.pocket.data import SIZE_PX
from guidance.pocket.families import FAMILIES
from guidance.pocket.model import Denoiser, build_scheduler, build_vae
from guidance.pocket.plot import plot
from guidance.pocket.score import fixed_sample, score
from guidance.pocket.stream import (
    SHARDS_FIRST,
    Ahead,
    Encoded,
    cached_shard,
    draw,
    encoded_shard,
    newest_shard,
    save,
    window,
)
from guidance.zero123 import Zero123

DROP = 0.1  # share of samples that learn the unconditional score
LOG_EVERY = 100
WARM_UP_STEPS, COOL_DOWN_STEPS = 200, 5000  # of the learning rate
AVERAGE_SHARE = (
    30  # the averaged weights are those of the last thirtieth of the training, whatever its length
)
CHECKPOINT = "unet.safetensors"
FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "image_encoder": "image_encoder/model.safetensors",
    "clip_camera_projection": "clip_camera_projection/diffusion_pytorch_model.safetensors",
}  # of a prior's folder, by the network's part
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's normalisation


@dataclass(frozen=True)
class Options:
    """One training. seed keys every random number; minutes bound this call, not the training, which ends at step
    `until`; start: a prior's folder to take the first weights from, where out has no checkpoint; workers are processes
    that draw the stream's shards ahead."""

    out: Path
    minutes: float
    until: int = 40_000
    start: Path | None = None
    seed: int = 0
    batch: int = 64
    vae_steps: int = 1400
    vae_batch: int = 16
    lr: float = 6e-4
    threads: int = 1
    workers: int = 0
    device: str = "cpu"


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
    """The VAE, loaded where there is one, else trained; its latents' scale is measured at the end."""
    folder = options.out / "vae"
    if options.start is not None and not (folder / "config.json").exists():
        AutoencoderKL.from_pretrained(options.start / "vae").save_pretrained(folder)
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


def timesteps(step: int, count: int, generator: torch.Generator) -> Tensor:
    """High noise only at first (plain regression of the novel view), then all, high noise more often: it is what
    distillation asks for."""
    u = torch.rand(count, generator=generator)
    low = max(0.0, 0.7 - step / 4000)
    return ((low + (1.0 - low) * u**0.4) * 999).round().long()


def normalise(images: Tensor) -> Tensor:
    """uint8 [B, 3, S, S] -> CLIP's normalised pixels."""
    mean, std = (torch.tensor(v, device=images.device).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def learning_share(step: int, first: int, until: int) -> float:
    """Of the learning rate: a short warm-up, constant, then straight to nought at `until`."""
    return min((step - first + 1) / WARM_UP_STEPS, 1.0, (until - step) / COOL_DOWN_STEPS)


def train_unet(options: Options, vae: AutoencoderKL, log: Log) -> None:
    """Trains until the minutes or the steps are over, saving every few minutes."""
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    model, average = Denoiser().to(device), Denoiser().to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.99), weight_decay=0.01)
    run = _restored(options, model, average, optimiser, log)
    alphas = build_scheduler().alphas_cumprod.to(device)
    scale = vae.config.scaling_factor
    pool: dict[int, Encoded] = {}
    ahead = Ahead(options.out / "shards", options.workers)
    begun = saved = last = time.time()
    total, counted, step = 0.0, 0, run.step
    while time.time() - begun < options.minutes * 60 and step < options.until:
        wanted = window(step, run.first_shard)
        if step == run.step or wanted.stop - 1 not in pool:
            ahead.need(wanted)
            pool = {k: pool[k] if k in pool else encoded_shard(options.out, vae, k) for k in wanted}
        generator = _keyed(options.seed + 1, step)
        known, latents, condition, poses = (x.to(device) for x in draw(pool, options.batch, generator))
        t = timesteps(step, options.batch, generator).to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        keep = (torch.rand(options.batch, generator=generator) >= DROP).float().to(device)
        alpha, sigma = alphas[t].sqrt()[:, None, None, None], (1 - alphas[t]).sqrt()[:, None, None, None]
        clean = latents * scale
        with torch.autocast(device.type, torch.bfloat16), _attention(device):
            v = model(alpha * clean + sigma * noise, t, normalise(known), condition, poses, keep)
        loss = F.mse_loss(v.float(), alpha * noise - sigma * clean)
        optimiser.param_groups[0]["lr"] = options.lr * learning_share(step, run.first_step, options.until)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        decay = (step + 1) / (step + AVERAGE_SHARE)
        with torch.no_grad():
            for a, b in zip(average.parameters(), model.parameters(), strict=True):
                a.lerp_(b, 1 - decay)
        step += 1
        total, counted = total + loss.item(), counted + 1
        if step % LOG_EVERY == 0:
            took_s, last = time.time() - last, time.time()
            samples = run.samples + (step - run.step) * options.batch
            log.write(
                stage="unet", step=step, samples=samples, loss=total / counted, s_per_step=took_s / counted
            )
            total, counted = 0.0, 0
        if time.time() - saved > 240:
            _store(options, run.at(step, options.batch), model, average, optimiser)
            saved = time.time()
    _store(options, run.at(step, options.batch), model, average, optimiser)
    ahead.close()
    plot(log.path, options.out / "training.png")


def _attention(device: torch.device) -> AbstractContextManager[None]:
    """On a CPU the fused attention's backward is slow: the plain one makes a step 15 % shorter."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


@dataclass(frozen=True)
class Run:
    """Where a training stands: steps and samples done, and the step and the shard that it began at."""

    step: int = 0
    samples: int = 0
    first_step: int = 0
    first_shard: int = newest_shard(0) - SHARDS_FIRST

    def at(self, step: int, batch: int) -> Run:
        return replace(self, step=step, samples=self.samples + (step - self.step) * batch)


def _store(
    options: Options, run: Run, model: Denoiser, average: Denoiser, optimiser: torch.optim.Optimizer
) -> None:
    tensors = {f"run.{k}": torch.tensor(v) for k, v in asdict(run).items()}
    for name, part in (("model", model.state_dict()), ("average", average.state_dict())):
        tensors |= {f"{name}.{k}": v for k, v in part.items()}
    for i, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{k}": v for k, v in moments.items()}
    save(options.out / CHECKPOINT, {k: v.clone() for k, v in tensors.items()})


def _restored(
    options: Options, model: Denoiser, average: Denoiser, optimiser: torch.optim.Optimizer, log: Log
) -> Run:
    """The checkpoint's run; else a new one, from the weights that --start names or from nothing."""
    path = options.out / CHECKPOINT
    if path.exists():
        tensors = load_file(path)
        model.load_state_dict(_under("model", tensors))
        average.load_state_dict(_under("average", tensors))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _under("adam", tensors).items():
            i, name = key.split(".")
            state.setdefault(int(i), {})[name] = value
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
        run = Run(**{k: int(v) for k, v in _under("run", tensors).items()})
        log.write(stage="resume", step=run.step, batch=options.batch)
        return run
    run, came_from = Run(), None
    if options.start is not None:
        record = json.loads((options.start / "training.json").read_text())
        step = int(record["steps"])
        run = Run(
            step, int(record.get("samples", step * record["batch"])), step, newest_shard(step) - SHARDS_FIRST
        )
        for name, file in FILES.items():
            weights = load_file(options.start / file)
            model.get_submodule(name).load_state_dict({k: v.float() for k, v in weights.items()})
        came_from = record["sha256"][FILES["unet"]]
    average.load_state_dict(model.state_dict())
    log.write(
        stage="start", step=run.step, seed=options.seed, batch=options.batch, lr=options.lr, until=options.until,
        first_shard=run.first_shard, families=len(FAMILIES), unet_sha256=came_from,
    )  # fmt: skip
    return run


def _under(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those whose key begins with `name.`, without it."""
    return {k[len(name) + 1 :]: v for k, v in tensors.items() if k.startswith(f"{name}.")}


def export(options: Options, folder: Path) -> dict[str, str]:
    """Writes the averaged weights as a prior's folder, half precision; returns each file's SHA-256."""
    average = Denoiser()
    tensors = load_file(options.out / CHECKPOINT)
    average.load_state_dict(_under("average", tensors))
    run = {k: int(v) for k, v in _under("run", tensors).items()}
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
        "steps": run["step"],
        "samples": run["samples"],
        "shards": [run["first_shard"], newest_shard(run["step"])],
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
    parser.add_argument("--until", type=int, default=Options.until, help="the training's last step")
    parser.add_argument(
        "--start", type=Path, help="a prior's folder whose weights and log a new training goes on from"
    )
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
        given.until,
        given.start,
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
    if options.start is not None and not log.path.exists():
        log.path.write_text((options.start / "training.jsonl").read_text())
    train_unet(options, train_vae(options, log), log)


if __name__ == "__main__":
    main()
