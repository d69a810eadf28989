"""What the latent-diffusion priors share: the VAE's side of a picture, the noise levels, and the two formulas that use
them, score distillation and DDIM.

V views, C latent channels, L latent side, S the prior's picture side in pixels; all are read from the folder. Pictures
are RGB over white in 0..1. Nothing random is drawn here: timesteps and noise are arguments.
"""

from __future__ import annotations

import itertools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F

from gs_propeller.base.errors import UserError
from guidance.folder import Family, local_folder, network

RESPONSE = "response.json"  # of a prior's folder: what bench/response.py measured
PREDICTIONS = ("epsilon", "v_prediction")
SHORT_BYTES = 8 * 2**30  # GPU memory below which attention is sliced, if it would be held whole


class LatentDiffusion(ABC):
    """A frozen UNet with its VAE and noise levels. A prior adds what its UNet is told: `embed` and `output`.

    family: what its folder should be, for the errors. beside: pictures whose latents the UNet reads beside the noisy
    ones. token_size: the numbers of a token that it attends to, where `load` says so.
    """

    family: Family
    beside = 0
    token_size: int | None = None
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: DDIMScheduler

    def __init__(self, folder: str | Path, device: torch.device | str, dtype: torch.dtype):
        """Loads every part that `load` names from a folder or hub id.

        Raises UserError when a part is missing or does not fit the others, naming it.
        """
        self.device, self.dtype = torch.device(device), dtype
        source = str(folder)
        place = local_folder(source, half=dtype != torch.float32)
        try:
            self.unet = network(UNet2DConditionModel, place, "unet", dtype)
            self.vae = network(AutoencoderKL, place, "vae", dtype)
            self.scheduler = DDIMScheduler.from_pretrained(str(place / "scheduler"))
            others = self.load(str(place))
            self._check_parts_fit()
            self.response = _response(place / RESPONSE)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"prior {source!r} cannot be loaded ({reason}); give a {self.family.name} folder in diffusers format "
                f"or a hub id, or {self.family.option}=pocket"
            ) from error
        for module in (self.unet, self.vae, *others):
            module.to(self.device).eval().requires_grad_(False)
        # convolutions are written for this order, on CUDA in half precision and on a CPU, where it saves a tenth
        self.unet.to(memory_format=torch.channels_last)
        self.vae.to(memory_format=torch.channels_last)
        self.alphas = self.scheduler.alphas_cumprod.to(self.device)
        self.levels = len(self.alphas)

    def _check_parts_fit(self) -> None:
        """Raises ValueError for parts of different models, or of one that these formulas are not for."""
        unet, kind = self.unet.config, self.scheduler.config.prediction_type
        if kind not in PREDICTIONS:
            raise ValueError(
                f"its scheduler says prediction_type={kind}; {' and '.join(PREDICTIONS)} are known"
            )
        if unet.addition_embed_type is not None:
            raise ValueError(
                f"its unet wants more than tokens, addition_embed_type={unet.addition_embed_type}"
            )
        wanted = (1 + self.beside) * int(self.vae.config.latent_channels)
        if unet.in_channels != wanted:
            raise ValueError(f"its unet reads {unet.in_channels} channels where {wanted} are given")
        size = unet.cross_attention_dim
        if self.token_size is not None and isinstance(size, int) and size != self.token_size:
            raise ValueError(
                f"its unet attends to tokens of {size} numbers, and the encoder's have {self.token_size}"
            )

    def tune(self, compiled: bool = False, attention_slicing: str = "auto") -> None:
        """Trades of time and memory. compiled: UNet and the VAE's encoder by torch.compile, minutes at their first call
        for each shape. attention_slicing: "on", "off", or "auto", which slices on GPUs of less than SHORT_BYTES where
        attention is not torch's own: that one never holds its matrix, and slices would cost memory and time."""
        if attention_slicing == "on" or (attention_slicing == "auto" and self._short()):
            self.unet.set_attention_slice("auto")
        if compiled:
            self.unet.compile()
            self.vae.encoder.compile()

    def _short(self) -> bool:
        if all(isinstance(p, AttnProcessor2_0) for p in self.unet.attn_processors.values()):
            return False
        cuda = self.device.type == "cuda"
        return cuda and torch.cuda.get_device_properties(self.device).total_memory < SHORT_BYTES

    @abstractmethod
    def load(self, source: str) -> list[nn.Module]:
        """Loads what the prior needs beside UNet, VAE and scheduler; returns the networks among it."""

    @abstractmethod
    def output(
        self, noisy: Tensor, conditioning: Any, cameras: Tensor, t: Tensor, guidance_scale: float
    ) -> Tensor:
        """The guided UNet's output [V, C, L, L], float32, for noisy latents at timesteps t [V]; differentiable."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, L, L)."""
        side = int(self.unet.config.sample_size)
        return int(self.vae.config.latent_channels), side, side

    @property
    def size_px(self) -> int:
        """S: latent side times the VAE's factor."""
        return self.latent_shape[1] * 2 ** (len(self.vae.config.block_out_channels) - 1)

    def encode(self, images: Tensor) -> Tensor:
        """[V, 3, H, W] -> scaled latents [V, C, L, L], differentiable.

        The posterior's mean, where DreamGaussian draws a sample: one random number less, the same on average.
        """
        return self.vae.encode(self._to_model(images)).latent_dist.mode() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [V, C, L, L] -> [V, 3, S, S] in 0..1."""
        decoded = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.dtype)).sample
        return (decoded.float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def predict(
        self, noisy: Tensor, conditioning: Any, cameras: Tensor, t: Tensor, guidance_scale: float
    ) -> tuple[Tensor, Tensor]:
        """(noise, clean) [V, C, L, L] as the prior sees them in noisy latents at timesteps t [V]."""
        output = self.output(noisy, conditioning, cameras, t, guidance_scale)
        alpha, sigma = self.alpha_sigma(t)
        if self.scheduler.config.prediction_type == "v_prediction":
            return alpha * output + sigma * noisy, alpha * noisy - sigma * output
        return output, (noisy - sigma * output) / alpha

    def sds_grad(
        self,
        images: Tensor,
        conditioning: Any,
        cameras: Tensor,
        t: Tensor,
        noise: Tensor,
        guidance_scale: float = 5.0,
        weighting: str = "noise",
        space: str = "latent",
    ) -> tuple[Tensor, Tensor]:
        """Score distillation's gradient for the pictures (Poole et al. 2022; paper Eq. 1).

        images [V, 3, H, W] over white; cameras [V, 4] codes; t [V] in 0..levels - 1; noise [V, C, L, L].
        weighting: "noise" has w(t) = sigma_t^2; "clean" w(t) = sigma_t / alpha_t, so that the gradient is what
        separates the latents from the prior's clean ones, as strong at high noise as at low.
        space: where the two are compared. "latent": the gradient goes back through the encoder. "pixel": against the
        decoded clean latents, under the same weight (the image-space residual of HiFA, Zhu & Zhuang 2023, alone). A
        small encoder gives one latent to many colours, and the way back through it leaves the pictures' own.
        Returns (gradient [V, 3, H, W], residual [V]): the residual is half its square in that space, for the log.
        """

        def compared(latents: Tensor, noisy: Tensor) -> tuple[Tensor, Tensor]:
            return noise.to(latents), latents

        told = conditioning, cameras, guidance_scale
        return self.pulled(images, told, t, noise, compared, weighting, {space})[:2]

    def pulled(
        self,
        images: Tensor,
        told: tuple[Any, Tensor, float],
        t: Tensor,
        noise: Tensor,
        compared: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        weighting: str,
        spaces: set[str],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What SDS and VSD share: the gradient of the prior's guided score against another one.

        told: conditioning, camera codes, guidance scale. compared(latents, noisy): the other's noise and clean latents
        [V, C, L, L]. spaces: "latent" for that comparison, "pixel" for the pictures' with the prior's, or both, added.
        Returns sds_grad's pair and the latents, detached.
        """
        images = images.detach().to(self.device, torch.float32).requires_grad_(True)
        t = t.to(self.device)
        with torch.set_grad_enabled("latent" in spaces):
            encoded = self.encode(images).float()
        latents = encoded.detach()
        alpha, sigma = self.alpha_sigma(t)
        noisy = alpha * latents + sigma * noise.to(latents)
        conditioning, cameras, guidance_scale = told
        predicted, clean = self.predict(noisy, conditioning, cameras, t, guidance_scale)
        pixels, residual = torch.zeros_like(images), latents.new_zeros(len(latents))
        if "latent" in spaces:  # sigma^2 (eps_hat - eps) is sigma alpha (shown - clean)
            other, shown = compared(latents, noisy)
            grad = shown - clean if weighting == "clean" else sigma.square() * (predicted - other)
            (pixels,) = torch.autograd.grad(encoded, images, grad_outputs=grad)
            residual = grad.square().sum((1, 2, 3)) / 2
        if "pixel" in spaces:
            weight = torch.ones_like(sigma) if weighting == "clean" else sigma * alpha
            grad = weight * (images.detach() - resized(self.decode(clean), images.shape[-1], "bilinear"))
            pixels = pixels + grad
            residual = residual + grad.square().sum((1, 2, 3)) / 2
        return pixels, residual, latents

    def stiffness(self, t: Tensor, weighting: str, space: str, follows: str) -> Tensor:
        """[V] how much of a render's change stays in the gradient of `sds_grad`, per unit of it: w (1 - a), w the
        weight of the residual between pictures and a `share`. Between latents none is counted: the gradient that comes
        back through an encoder hardly knows of a change (2 % of one, with the pocket VAE)."""
        alpha, sigma = (x.reshape(-1) for x in self.alpha_sigma(t))
        weight = torch.ones_like(sigma) if weighting == "clean" else sigma * alpha
        return weight * (1 - self.share(t, space, follows))

    def share(self, t: Tensor, space: str, follows: str) -> Tensor:
        """[V] a in 0..1, the share of a render's change that comes through to the prior's clean picture: about 0 at
        high noise and about 1 at low.

        follows: "none" or "all" of it, "abar" (the squared signal share of the noised picture), or "measured", from the
        folder's RESPONSE (bench/response.py), else abar. Between latents it is all.
        """
        if space == "latent":
            return torch.ones(len(t), device=self.device)
        if follows == "measured" and self.response:
            shares = torch.as_tensor(self.response, device=self.device)  # of levels, evenly from 0 to 1
            at = t.to(self.device).float() / (self.levels - 1) * (len(shares) - 1)
            low = at.floor().long().clamp(max=len(shares) - 2)
            return shares[low] + (at - low) * (shares[low + 1] - shares[low])
        signal = self.alpha_sigma(t)[0].reshape(-1).square()
        return {"none": torch.zeros_like(signal), "all": torch.ones_like(signal)}.get(follows, signal)

    @torch.no_grad()
    def refine(
        self,
        images: Tensor,
        conditioning: Any,
        cameras: Tensor,
        noise: Tensor,
        strength: float = 0.8,
        steps: int = 20,
        guidance_scale: float = 5.0,
    ) -> Tensor:
        """Noises pictures [V, 3, H, W] to a strength in (0, 1], denoises them by DDIM; [V, 3, S, S] in 0..1.

        A strength of 1 starts from noise alone: the prior's own novel views.
        """
        if not 0.0 < strength <= 1.0:
            raise ValueError(f"strength must be in (0, 1], got {strength}")
        first = self.levels - 1
        levels = torch.linspace(first * strength, 0, max(2, math.ceil(steps * strength) + 1)).round().long()
        levels = levels.to(self.device)
        noise = noise.to(self.device, torch.float32)
        if strength == 1.0:
            noisy = noise
        else:
            alpha, sigma = self.alpha_sigma(levels[:1])
            noisy = alpha * self.encode(images).float() + sigma * noise
        clean = noisy
        for here, there in itertools.pairwise(levels):
            t = here.expand(len(noisy))
            predicted, clean = self.predict(noisy, conditioning, cameras, t, guidance_scale)
            alpha, sigma = self.alpha_sigma(there[None])
            noisy = alpha * clean + sigma * predicted  # DDIM, eta = 0 (Song et al. 2020, Eq. 12)
        return self.decode(clean)

    def _to_model(self, images: Tensor) -> Tensor:
        return (resized(images, self.size_px, "bilinear") * 2 - 1).to(self.dtype)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Square roots of abar and 1 - abar at t [V], as [V, 1, 1, 1]."""
        abar = self.alphas[t.to(self.device)][:, None, None, None]
        return abar.sqrt(), (1 - abar).sqrt()


def resized(images: Tensor, side: int, mode: str) -> Tensor:
    """[V, 3, H, W] -> [V, 3, side, side]; nothing is touched where it fits already."""
    if tuple(images.shape[-2:]) == (side, side):
        return images
    smaller = images.shape[-1] > side
    return F.interpolate(images, (side, side), mode=mode, align_corners=False, antialias=smaller)


def _response(path: Path) -> list[float]:
    """Its shares, none where there is no file. Raises ValueError."""
    if not path.is_file():
        return []
    try:
        return [float(share) for share in json.loads(path.read_text(encoding="utf-8"))["share"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} is not as bench.response writes it") from error
