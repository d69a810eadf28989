"""Trains the pocket Zero-1-to-3: `python -m guidance.pocket.train --out build/pocket --minutes 60`.

First a small VAE on the objects' views, then the view-conditioned UNet with its image encoder and camera
projection, all in the published diffusers layout. A run resumes from its folder by the same command.
B batch, C latent channels, L latent side. The loss is the mean squared error of v (Salimans & Ho 2022).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPImageProcessor

from guidance.pocket.data import SIZE_PX
from guidance.pocket.families import FAMILIES
from guidance.pocket.model import Denoiser, build_scheduler, build_vae
from guidance.pocket.plot import plot
from guidance.pocket.score import fixed_sample, score
from guidance.pocket.stream import (
    SHARDS_FIRST,
    Ahead,
    Pool,
    cached_shard,
    draw,
    encoded_shard,
    keep_shard,
    newest_shard,
)
from guidance.pocket.training import (
    DROP,
    MEAN,
    STD,
    Log,
    Options,
    Run,
    arguments,
    autocast,
    averaged,
    descend,
    keyed,
    noised,
    record,
    resumed,
    timesteps,
)
from guidance.zero123 import Zero123

FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "image_encoder": "image_encoder/model.safetensors",
    "clip_camera_projection": "clip_camera_projection/diffusion_pytorch_model.safetensors",
}  # of a prior's folder, by the network's part


@dataclass(frozen=True)
class VaeOptions(Options):
    """A training that begins with the VAE."""

    vae_steps: int = 1400
    vae_batch: int = 16


def _batch(images: Tensor, generator: torch.Generator, size: int) -> Tensor:
    """[size, 3, S, S] in -1..1 from uint8 [M, 3, S, S]."""
    rows = torch.randint(len(images), (size,), generator=generator)
    return images[rows].float() / 127.5 - 1.0


def train_vae(options: VaeOptions, log: Log) -> AutoencoderKL:
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
        generator = keyed(options.seed, step)
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
            _batch(images, keyed(options.seed, -1), 256).to(options.device)
        ).latent_dist.mode()
    vae.register_to_config(scaling_factor=round(1.0 / latents.std().item(), 5))
    vae.save_pretrained(folder)
    return vae


def normalise(images: Tensor) -> Tensor:
    """uint8 [B, 3, S, S] -> CLIP's normalised pixels."""
    mean, std = (torch.tensor(v, device=images.device).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def train_unet(options: Options, vae: AutoencoderKL, log: Log) -> None:
    """Trains until the minutes or the steps are over, saving every few minutes."""
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    model, average = Denoiser().to(device), Denoiser().to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.99), weight_decay=0.01)
    run = _restored(options, model, average, optimiser, log)
    alphas = build_scheduler().alphas_cumprod.to(device)
    scale = vae.config.scaling_factor
    ahead = Ahead(partial(keep_shard, options.out / "shards"), options.workers)
    pool = Pool(run.first_shard, ahead, lambda number: encoded_shard(options.out, vae, number))

    def loss_of(step: int) -> Tensor:
        generator = keyed(options.seed + 1, step)
        known, latents, condition, poses = (
            x.to(device) for x in draw(pool.at(step), options.batch, generator)
        )
        t = timesteps(step, options.batch, generator).to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        keep = (torch.rand(options.batch, generator=generator) >= DROP).float().to(device)
        noisy, target = noised(latents * scale, noise, t, alphas)
        with autocast(device):
            v = model(noisy, t, normalise(known), condition, poses, keep)
        return F.mse_loss(v.float(), target)

    descend(options, model, average, optimiser, run, loss_of, log)
    ahead.close()
    plot(log.path, options.out / "training.png")


def _restored(
    options: Options, model: Denoiser, average: Denoiser, optimiser: torch.optim.Optimizer, log: Log
) -> Run:
    """The checkpoint's run; else a new one, from the weights that --start names or from nothing."""
    found = resumed(options, model, average, optimiser, log)
    if found is not None:
        return found
    run, came_from = Run(), None
    if options.start is not None:
        made = json.loads((options.start / "training.json").read_text())
        step = int(made["steps"])
        run = Run(
            step, int(made.get("samples", step * made["batch"])), step, newest_shard(step) - SHARDS_FIRST
        )
        for name, file in FILES.items():
            weights = load_file(options.start / file)
            model.get_submodule(name).load_state_dict({k: v.float() for k, v in weights.items()})
        came_from = made["sha256"][FILES["unet"]]
    average.load_state_dict(model.state_dict())
    log.write(
        stage="start", step=run.step, seed=options.seed, batch=options.batch, lr=options.lr, until=options.until,
        first_shard=run.first_shard, families=len(FAMILIES), unet_sha256=came_from,
    )  # fmt: skip
    return run


def export(options: Options, folder: Path) -> dict[str, str]:
    """Writes the averaged weights as a prior's folder, half precision; returns each file's SHA-256."""
    average = Denoiser()
    run = averaged(options, average)
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
    sample = fixed_sample(Zero123(folder)).flatten().tolist()
    return record(
        options,
        run,
        folder,
        held_out=score(Zero123(folder)),
        fixed_sample=[round(v, 3) for v in sample],
    )


def main() -> None:
    parser = arguments(__doc__, "build/pocket")
    parser.add_argument("--vae-steps", type=int, default=VaeOptions.vae_steps)
    given = vars(parser.parse_args())
    folder = given.pop("export")
    options = VaeOptions(**given)
    if folder:
        print(json.dumps(export(options, folder), indent=2))
        return
    torch.set_num_threads(options.threads)
    log = Log(options.out / "log.jsonl")
    if options.start is not None and not log.path.exists():
        log.path.write_text((options.start / "training.jsonl").read_text())
    train_unet(options, train_vae(options, log), log)


if __name__ == "__main__":
    main()
