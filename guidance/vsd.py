"""Variational score distillation (Wang et al. 2023; the paper's Eq. 2): a LoRA of the prior learns the renders' score.

V views, C latent channels, L latent side; vocabulary and formulas of diffusion.py. The gradient is what separates the
frozen prior's score from that of the LoRA, which sees the camera too and is trained beside the asset, a step a call.
Each rank has a LoRA of its own, updated by the slots that it is dealt and never sent (paper, 4.3): so what a call
returns depends on the calls before it, and a window is not the serial loop bit for bit, whatever its threshold.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from guidance.diffusion import LatentDiffusion
from guidance.folder import LOADING

ADAPTER = "particle"
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")  # of every attention: what a LoRA changes in a UNet
BETAS = (0.9, 0.999)
HALF_SCALE = (
    2.0**16
)  # of the LoRA's loss: in float16 most of its gradients in the UNet are else too small to be numbers


@dataclass(frozen=True)
class Kept:
    """Where a rank's LoRA is kept, at most every so many seconds. mark: what the file must have been made with."""

    path: Path
    mark: str
    every_s: float


class Variational:
    """A prior whose `sds_grad` is VSD's: the prior's UNet with a LoRA in it, switched on for its own score alone."""

    def __init__(
        self,
        prior: LatentDiffusion,
        seed: int,
        rank: int = 4,
        learning_rate: float = 1e-3,
        kept: Kept | None = None,
    ):
        """rank: of the LoRA's matrices; kept: None keeps it in memory alone. A LoRA that was kept under the same mark
        goes on."""
        self.prior, self.seed, self.kept = prior, seed, kept
        self.levels, self.size_px, self.latent_shape = prior.levels, prior.size_px, prior.latent_shape
        self.updates, self.saved_s = 0, time.monotonic()
        self.scale = HALF_SCALE if prior.dtype == torch.float16 else 1.0
        unet = prior.unet
        if ADAPTER in getattr(unet, "peft_config", {}):
            unet.delete_adapters(ADAPTER)  # of the asset before
        with LOADING:
            torch.manual_seed(seed)  # peft draws the first matrices from the global stream
            unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(PROJECTIONS)), ADAPTER)
            width = unet.time_embedding.linear_2.out_features
            last = nn.Linear(width, width)
            nn.init.zeros_(last.weight)  # at first no camera makes a difference
            nn.init.zeros_(last.bias)
            self.camera = nn.Sequential(nn.Linear(4, width), nn.SiLU(), last).to(prior.device)
        self.weights = {f"unet.{n}": p for n, p in unet.named_parameters() if "lora_" in n}
        for weight in self.weights.values():
            weight.data = weight.data.float()
            weight.requires_grad_(True)
        self.weights |= {f"camera.{n}": p for n, p in self.camera.named_parameters()}
        self.optimiser = torch.optim.AdamW(self.weights.values(), lr=learning_rate, betas=BETAS)
        unet.disable_adapters()
        self._restore()

    def sds_grad(
        self,
        images: Tensor,
        conditioning: Any,
        cameras: Tensor,
        t: Tensor,
        noise: Tensor,
        guidance_scale: float,
        weighting: str = "noise",
        space: str = "latent",
    ) -> tuple[Tensor, Tensor]:
        """The paper's Eq. 2 for the pictures, arguments and result as LatentDiffusion.sds_grad; then one step of the
        LoRA's own training on these renders.

        space: Eq. 2 is between latents in either. "pixel" adds SDS's gradient between pictures, which holds the
        colours that a small encoder does not tell apart: nothing else does. (Between the two scores' pictures, Eq. 2
        let them wander off.)
        """

        def own(_: Tensor, noisy: Tensor) -> tuple[Tensor, Tensor]:
            with self.switched_on(cameras):
                return self.prior.predict(noisy, conditioning, cameras, t, 1.0)

        told = conditioning, cameras, guidance_scale
        spaces = {"latent", space}
        pixels, residual, latents = self.prior.pulled(images, told, t, noise, own, weighting, spaces)
        self.learn(latents, conditioning, cameras)
        return pixels, residual

    def stiffness(self, t: Tensor, weighting: str, space: str, follows: str) -> Tensor:
        """[V] as LatentDiffusion.stiffness, of the part between pictures; two scores of the same noisy latents follow a
        change alike, so that between latents nothing of it is left."""
        stiff = self.prior.stiffness(t, weighting, "pixel", follows)
        return stiff if space == "pixel" else torch.zeros_like(stiff)

    def share(self, t: Tensor, space: str, follows: str) -> Tensor:
        """[V] of the part between pictures; between latents all of a change comes through."""
        return self.prior.share(t, space, follows)

    def learn(self, clean: Tensor, conditioning: Any, cameras: Tensor) -> float:
        """One step of the denoising loss on latents [V, C, L, L] of renders; returns it. Timesteps and noise are drawn
        from (seed, number of the update)."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.updates)
        t = torch.randint(20 * self.levels // 1000, self.levels, (len(clean),), generator=generator)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        t = t.to(clean.device)
        alpha, sigma = self.prior.alpha_sigma(t)
        v = self.prior.scheduler.config.prediction_type == "v_prediction"
        target = alpha * noise - sigma * clean if v else noise
        with torch.enable_grad(), self.switched_on(cameras):
            output = self.prior.output(alpha * clean + sigma * noise, conditioning, cameras, t, 1.0)
            loss = F.mse_loss(output, target)
            self.optimiser.zero_grad(set_to_none=True)
            (self.scale * loss).backward()
        self._step()
        self.updates += 1
        if self.kept is not None and time.monotonic() - self.saved_s > self.kept.every_s:
            self.save()
        return float(loss.detach())

    def _step(self) -> None:
        """Of the optimiser, by the gradients of the scaled loss; none where they are not finite, and then the scale is
        halved: what overflows does not stay in Adam's moments."""
        grads = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        for grad in grads:
            grad /= self.scale
        if bool(torch.stack([grad.isfinite().all() for grad in grads]).all()):
            self.optimiser.step()
        else:
            self.scale = max(1.0, self.scale / 2)

    @contextmanager
    def switched_on(self, cameras: Tensor) -> Iterator[None]:
        """The UNet with the LoRA, and each view's camera code [V, 4] added to its time embedding."""
        unet, codes = self.prior.unet, cameras.to(self.prior.device, torch.float32)

        def seen(_: nn.Module, __: Any, embedding: Tensor) -> Tensor:
            return embedding + self.camera(codes).to(embedding)

        hook = unet.time_embedding.register_forward_hook(seen)
        unet.enable_adapters()
        try:
            yield
        finally:
            unet.disable_adapters()
            hook.remove()

    def save(self) -> None:
        """Weights, moments and count, written whole or not at all."""
        if self.kept is None:
            return
        tensors = {name: weight.detach() for name, weight in self.weights.items()}
        for index, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{key}": value for key, value in moments.items()}
        path = self.kept.path
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".part{os.getpid()}")
        written = {name: value.contiguous().cpu() for name, value in tensors.items()}
        about = {"mark": self.kept.mark, "updates": str(self.updates), "scale": str(self.scale)}
        save_file(written, temporary, about)
        os.replace(temporary, path)
        self.saved_s = time.monotonic()

    def _restore(self) -> None:
        if self.kept is None or not self.kept.path.exists():
            return
        with safe_open(self.kept.path, "pt") as file:
            about = file.metadata()
            if about["mark"] != self.kept.mark:
                return
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        for name, weight in self.weights.items():
            weight.data.copy_(tensors[name])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, index, key = name.split(".")
                moments.setdefault(int(index), {})[key] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        self.updates, self.scale = int(about["updates"]), float(about.get("scale", self.scale))
