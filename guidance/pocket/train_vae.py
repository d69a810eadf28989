"""The pocket priors' VAE: `python -m guidance.pocket.train_vae --out build/pocket --minutes 15`.

What it is trained on, its loss, and how it begins with the one before (--start, by default the shipped one).

B batch, C latent channels, L latent side, S picture side in pixels. The first channels of the new latents are held to
the old VAE's, so that a UNet trained on those goes on with what it knows; the others are free to hold what the old
latents lose, and end with a deviation of DETAIL beside the first ones' 1.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from guidance import POCKET
from guidance.pocket.data import SIZE_PX
from guidance.pocket.model import build_vae
from guidance.pocket.muon import orthogonal
from guidance.pocket.stream import cached_shard
from guidance.pocket.textures import pattern, photograph
from guidance.pocket.training import Log, Options, arguments, follow, keyed

SHARDS = 4  # of the stream, whose views it is trained on
DETAIL = 0.5  # deviation of the free channels, after scaling: less than 1, so that noise covers them sooner
# Shares of a batch up to which these come; renders fill the rest.
FLAT, UNIFORM, PHOTOGRAPHS = 0.05, 0.1, 0.25

Picture = NDArray[np.floating]


def pictures(renders: Tensor, rng: np.random.Generator, size: int) -> Tensor:
    """[size, 3, S, S] in 0..1: renders (uint8 [M, 3, S, S]), half of them recoloured; photographs and patterns cut out
    over white; planes of any colours; and one colour alone."""
    return torch.stack([torch.from_numpy(_picture(renders, rng)).permute(2, 0, 1) for _ in range(size)])


def _picture(renders: Tensor, rng: np.random.Generator) -> Picture:
    kind = rng.random()
    if kind < PHOTOGRAPHS:
        return unrendered(rng, kind)
    image = renders[int(rng.integers(len(renders)))].permute(1, 2, 0).numpy().astype(np.float32) / 255
    return _recoloured(image, rng) if rng.random() < 0.5 else image


def unrendered(rng: np.random.Generator, kind: float) -> Picture:
    """One of the pictures that are no renders, [S, S, 3] in 0..1; kind: in 0..PHOTOGRAPHS, decides which."""
    if kind < FLAT:
        return np.broadcast_to(rng.random(3).astype(np.float32), (SIZE_PX, SIZE_PX, 3)).copy()
    if kind < UNIFORM:
        return _planes(rng)
    image = photograph(rng, SIZE_PX) if rng.random() < 0.8 else pattern(rng, SIZE_PX)
    if rng.random() < 0.3:
        image = _recoloured(image, rng)
    return image if rng.random() < 0.2 else _cut_out(image, rng)


def _recoloured(image: Picture, rng: np.random.Generator) -> Picture:
    """White stays white: the darkness below it is mixed among the channels."""
    mixing = np.eye(3) + rng.normal(0, 0.5, (3, 3))
    mixing /= np.maximum(mixing.sum(1, keepdims=True), 0.3)
    return np.clip(1 - (1 - image) @ mixing.T, 0, 1).astype(np.float32)


def _planes(rng: np.random.Generator) -> Picture:
    """Nearest-point regions of uniform colours, some with a gradient."""
    line = (np.arange(SIZE_PX) + 0.5) / SIZE_PX
    where = np.stack(np.meshgrid(line, line), -1)
    points = rng.random((int(rng.integers(2, 12)), 2))
    region = np.linalg.norm(where[:, :, None] - points, axis=-1).argmin(2)
    slope = rng.normal(0, 0.3, (len(points), 2, 3)) * (rng.random((len(points), 1, 1)) < 0.5)
    image = rng.random((len(points), 3))[region] + np.einsum("hwi,hwic->hwc", where - 0.5, slope[region])
    return np.clip(image, 0, 1).astype(np.float32)


def _cut_out(image: Picture, rng: np.random.Generator) -> Picture:
    """Within a random star-shaped outline, over white, its edge a pixel soft."""
    line = np.arange(SIZE_PX) + 0.5 - SIZE_PX / 2
    x, y = np.meshgrid(line, line)
    angle, radius = np.arctan2(y, x), np.ones((SIZE_PX, SIZE_PX))
    for k in range(1, 7):
        radius += rng.normal(0, 0.25 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    inside = np.clip(rng.uniform(0.3, 0.45) * SIZE_PX * radius - np.hypot(x, y) + 0.5, 0, 1)[..., None]
    return (image * inside + 1 - inside).astype(np.float32)


def begun(start: Path) -> tuple[AutoencoderKL, AutoencoderKL]:
    """(new VAE, old one): every tensor of the same shape is the old one's, of wider ones the old channels are."""
    old = AutoencoderKL.from_pretrained(start / "vae", torch_dtype=torch.float32).eval().requires_grad_(False)
    new = build_vae()
    few, many = int(old.config.latent_channels), int(new.config.latent_channels)
    fresh, known = new.state_dict(), old.state_dict()
    for name, value in known.items():
        if fresh[name].shape == value.shape:
            fresh[name] = value
    if few == many:
        new.load_state_dict(fresh)
        return new, old
    both = torch.cat(
        [torch.arange(few), many + torch.arange(few)]
    )  # a posterior's means, then its log variances
    for name in ("encoder.conv_out", "quant_conv"):
        for part in ("weight", "bias"):
            fresh[f"{name}.{part}"][both] = _widened(
                known[f"{name}.{part}"], fresh[f"{name}.{part}"][both], both
            )
    fresh["quant_conv.weight"][many + few :] *= 0.1
    fresh["quant_conv.bias"][many + few :] = -6.0  # free channels begin almost without noise
    kept = torch.arange(few)
    fresh["post_quant_conv.weight"][kept] = _widened(
        known["post_quant_conv.weight"], fresh["post_quant_conv.weight"][kept], kept
    )
    fresh["post_quant_conv.weight"][few:, :few] = 0.0
    fresh["post_quant_conv.bias"][few:] = 0.0
    fresh["post_quant_conv.bias"][kept] = known["post_quant_conv.bias"]
    fresh["decoder.conv_in.weight"] *= 0.1  # the free channels say little at first
    fresh["decoder.conv_in.weight"][:, kept] = known["decoder.conv_in.weight"]
    fresh["decoder.conv_in.bias"] = known["decoder.conv_in.bias"]
    new.load_state_dict(fresh)
    return new, old


def _widened(known: Tensor, fresh: Tensor, columns: Tensor) -> Tensor:
    """Rows of `known`, which read `columns` of the wider input alone where there are more inputs than before."""
    if known.ndim == 1 or known.shape[1] == fresh.shape[1]:
        return known
    wide = torch.zeros_like(fresh)
    wide[:, columns] = known
    return wide


class KernelMuon:
    """Momentum whose step for a convolution is made orthogonal (Jordan et al. 2024, Newton-Schulz of five rounds), for
    its kernel as a matrix [out, in x 3 x 3]: every direction moves alike, so that few steps go far. All other
    parameters by AdamW, at `plain` of the rate."""

    def __init__(self, model: nn.Module, lr: float, plain: float = 0.05) -> None:
        self.kernels = [p for p in model.parameters() if p.ndim == 4]
        others = [p for p in model.parameters() if p.ndim != 4]
        self.lr, self.plain, self.speeds = lr, plain, [torch.zeros_like(p) for p in self.kernels]
        self.adam = torch.optim.AdamW(others, lr=lr * plain, betas=(0.9, 0.99), weight_decay=0.0)

    @torch.no_grad()
    def step(self, share: float) -> None:
        """share: of the learning rate."""
        self.adam.param_groups[0]["lr"] = self.lr * self.plain * share
        self.adam.step()
        for p, speed in zip(self.kernels, self.speeds, strict=True):
            if p.grad is None:
                continue
            speed.lerp_(p.grad, 0.1)
            way = orthogonal(p.grad.lerp(speed, 0.9).flatten(1))
            p.sub_(self.lr * share * max(1.0, way.shape[0] / way.shape[1]) ** 0.5 * way.reshape(p.shape))


def loss_of(
    vae: AutoencoderKL, old: AutoencoderKL, x: Tensor, held_count: int, held_weight: float, generator: torch.Generator
) -> tuple[Tensor, Callable[[], dict[str, float]]]:  # fmt: skip
    """(loss [], its parts for the log) of pictures x [B, 3, S, S] in -1..1: error, its gradient, KL, and how far the
    first held_count posteriors have moved from those of `old`, in its channels. Noise is of the generator's device."""
    posterior = vae.encode(x).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator, device=generator.device)
    output = vae.decode(posterior.mean + posterior.std * noise.to(x.device)).sample.float()
    with torch.no_grad():
        wanted = old.encode(x[:held_count]).latent_dist.mode().float()
    error = output - x
    kl = posterior.kl().float().mean() / posterior.mean[0].numel()
    mean = posterior.mean[:held_count, : wanted.shape[1]].float()
    held = F.mse_loss(mean, wanted) * float(old.config.scaling_factor) ** 2
    loss = error.abs().mean() + 2.0 * error.square().mean() + 0.5 * gradient_loss(error)
    loss = loss + 1e-4 * kl + held_weight * held

    def measured() -> dict[str, float]:
        psnr = -10 * (error.detach() / 2).square().mean((1, 2, 3)).clamp_min(1e-8).log10().mean()
        return {"psnr_db": psnr.item(), "kl": kl.item(), "held": held.item()}

    return loss, measured


def gradient_loss(error: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring errors: edges in their places."""
    across, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    return across.abs().mean() + down.abs().mean()


def train_vae(options: Options, start: Path, log: Log, batch: int = 8, lr: float = 0.003) -> AutoencoderKL:
    """Trains for some minutes, from out/vae or else the VAE of `start`, and keeps the averaged weights in out/vae."""
    torch.manual_seed(options.seed)
    vae, old = begun(start)
    if (options.out / "vae" / "config.json").exists():
        vae = AutoencoderKL.from_pretrained(options.out / "vae", torch_dtype=torch.float32)
    few, scale = int(old.config.latent_channels), float(old.config.scaling_factor)
    shards = [cached_shard(options.out / "shards", k) for k in range(SHARDS)]
    renders = torch.cat([s.images.flatten(0, 1) for s in shards])
    average = copy.deepcopy(vae)
    optimiser = KernelMuon(vae, lr)
    begun_s, step, share = time.time(), 0, 0.0
    while share < 1.0:
        share = min((time.time() - begun_s) / 60 / options.minutes, 1.0)
        rng = np.random.default_rng([options.seed, step])
        x = pictures(renders, rng, batch) * 2 - 1
        loss, measured = loss_of(vae, old, x, batch // 2, 0.3, keyed(options.seed, step))
        vae.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step(min(1.0, (step + 1) / 20) * (1.0 - share))
        follow(average, vae, 1 - (step + 1) / (step + 12))
        if step % 10 == 0 or share == 1.0:
            log.write(stage="vae", step=step, **measured(), elapsed_s=time.time() - begun_s)
        step += 1
    even_out(average, renders[:: max(1, len(renders) // 512)], few, scale)
    average.save_pretrained(options.out / "vae")
    return average


@torch.no_grad()
def even_out(vae: AutoencoderKL, renders: Tensor, few: int, scale: float) -> None:
    """Sets the scaling factor, and moves and scales the free channels to mean 0 and deviation DETAIL under it; exact:
    the 1x1 convolutions at both ends of the latents take it up."""
    vae.register_to_config(scaling_factor=scale)
    latents = torch.cat([vae.encode(x.float() / 127.5 - 1).latent_dist.mode() for x in renders.split(32)])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    factor = DETAIL / (scale * deviation)
    mean[:few], factor[:few] = 0.0, 1.0
    channels = len(factor)
    after = vae.post_quant_conv
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight /= factor[None, :, None, None]
    before = vae.quant_conv
    before.bias[:channels] = (before.bias[:channels] - mean) * factor
    before.weight[:channels] *= factor[:, None, None, None]
    before.bias[channels:] += 2 * factor.log()


def main() -> None:
    without = "until", "batch", "lr", "workers", "device", "export"
    given = vars(arguments(__doc__, "build/pocket", without, minutes=15.0).parse_args())
    options = Options(**given)
    torch.set_num_threads(options.threads)
    train_vae(options, options.start or POCKET, Log(options.out / "log.jsonl"))


if __name__ == "__main__":
    main()
