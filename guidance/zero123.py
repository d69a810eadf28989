"""Zero-1-to-3 guidance (Liu et al. 2023) from a diffusers-format folder: the published weights or the pocket ones.

V views, C latent channels, L latent side, E embedding width, S the prior's picture side in pixels; all are read
from the folder. Pictures are RGB over white in 0..1. A relative camera is Zero-1-to-3's code of four numbers:
polar angle (grows downwards), sin and cos of the azimuth (counter-clockwise from above), radius, each target
minus input, radians and world units. Nothing random is drawn here: timesteps and noise are arguments.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ConfigMixin, DDIMScheduler, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection

from gs_propeller.errors import UserError

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")  # owner/name


class CameraProjection(ModelMixin, ConfigMixin):
    """Linear map of (image embedding, relative camera) to the embedding's width, as published beside zero123-xl.

    embedding_dim: width E of the image embedding; additional_embeds: numbers of the camera code, 4.
    """

    @register_to_config
    def __init__(self, embedding_dim: int, additional_embeds: int = 4) -> None:
        super().__init__()
        self.proj = nn.Linear(embedding_dim + additional_embeds, embedding_dim)

    def forward(self, embedding: Tensor) -> Tensor:
        """[V, E + 4] -> [V, E]."""
        return self.proj(embedding)


@dataclass(frozen=True)
class Conditioning:
    """What the prior knows of the input picture: embedding [1, E]; latents [1, C, L, L], not scaled."""

    embedding: Tensor
    latents: Tensor


class Zero123:
    """The frozen prior. Its two working methods are `embed` and `sds_grad`; `refine` serves the second stage."""

    def __init__(
        self, folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ):
        """Loads unet, vae, image_encoder, clip_camera_projection and scheduler from a folder or hub id.

        Raises UserError when a part is missing, naming it.
        """
        self.device, self.dtype = torch.device(device), dtype
        source = str(folder)
        if not Path(source).is_dir() and not HUB_ID.fullmatch(source):
            raise UserError(f"there is no prior folder {source!r}; leave prior= out for the pocket prior")
        try:
            self.unet = UNet2DConditionModel.from_pretrained(source, subfolder="unet", torch_dtype=dtype)
            self.vae = AutoencoderKL.from_pretrained(source, subfolder="vae", torch_dtype=dtype)
            self.encoder = CLIPVisionModelWithProjection.from_pretrained(
                source, subfolder="image_encoder", dtype=dtype
            )
            self.projection = CameraProjection.from_pretrained(
                source, subfolder="clip_camera_projection", torch_dtype=dtype
            )
            self.scheduler = DDIMScheduler.from_pretrained(source, subfolder="scheduler")
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"prior {source!r} cannot be loaded ({reason}); give prior= a Zero-1-to-3 folder in diffusers "
                "format or a hub id, or leave it out for the pocket prior"
            ) from error
        for module in (self.unet, self.vae, self.encoder, self.projection):
            module.to(self.device).eval().requires_grad_(False)
        self.mean, self.std = _normalisation(source, self.device)
        self.alphas = self.scheduler.alphas_cumprod.to(self.device)
        self.levels = len(self.alphas)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, L, L)."""
        side = int(self.unet.config.sample_size)
        return int(self.vae.config.latent_channels), side, side

    @property
    def size_px(self) -> int:
        """S: latent side times the VAE's factor."""
        return self.latent_shape[1] * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def embed(self, image: Tensor) -> Conditioning:
        """image [1, 3, H, W] over white in 0..1 -> what the views are conditioned on."""
        image = image.to(self.device, torch.float32)
        side = self.encoder.config.image_size
        pixels = (_resize(image, side, "bicubic").clamp(0, 1) - self.mean) / self.std
        embedding = self.encoder(pixel_values=pixels.to(self.dtype)).image_embeds
        posterior = self.vae.encode(self._to_model(image)).latent_dist
        return Conditioning(embedding, posterior.mode())

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
        self, noisy: Tensor, conditioning: Conditioning, cameras: Tensor, t: Tensor, guidance_scale: float
    ) -> tuple[Tensor, Tensor]:
        """(noise, clean) [V, C, L, L] as the prior sees them in noisy latents at timesteps t [V].

        Classifier-free guidance (Ho & Salimans 2022) in one UNet call of 2V; a scale of 1 needs V only.
        """
        views = len(noisy)
        embedding = conditioning.embedding.expand(views, -1)
        tokens = self.projection(torch.cat([embedding, cameras.to(embedding)], 1))[:, None]
        stacked = torch.cat([noisy.to(self.dtype), conditioning.latents.expand(views, -1, -1, -1)], 1)
        if guidance_scale == 1.0:
            output = self.unet(stacked, t, tokens).sample.float()
        else:
            bare = torch.cat([noisy.to(self.dtype), torch.zeros_like(stacked[:, noisy.shape[1] :])], 1)
            both = self.unet(
                torch.cat([bare, stacked]), t.repeat(2), torch.cat([torch.zeros_like(tokens), tokens])
            ).sample.float()
            without, given = both.chunk(2)
            output = without + guidance_scale * (given - without)
        alpha, sigma = self._alpha_sigma(t)
        if self.scheduler.config.prediction_type == "v_prediction":
            return alpha * output + sigma * noisy, alpha * noisy - sigma * output
        return output, (noisy - sigma * output) / alpha

    def sds_grad(
        self,
        images: Tensor,
        conditioning: Conditioning,
        cameras: Tensor,
        t: Tensor,
        noise: Tensor,
        guidance_scale: float = 5.0,
        weighting: str = "noise",
    ) -> tuple[Tensor, Tensor]:
        """Score distillation's gradient for the pictures (Poole et al. 2022; paper Eq. 1).

        images [V, 3, H, W] over white; cameras [V, 4] codes; t [V] in 0..levels - 1; noise [V, C, L, L].
        weighting: "noise" has w(t) = sigma_t^2; "clean" w(t) = sigma_t / alpha_t, so that the gradient is what
        separates the latents from the prior's clean ones, as strong at high noise as at low.
        Returns (gradient [V, 3, H, W], residual [V]): the residual is |w (eps_hat - eps)|^2 / 2, for the log.
        """
        images = images.detach().to(self.device, torch.float32).requires_grad_(True)
        with torch.enable_grad():
            latents = self.encode(images).float()
        alpha, sigma = self._alpha_sigma(t)
        noise = noise.to(latents)
        noisy = alpha * latents.detach() + sigma * noise
        predicted, clean = self.predict(noisy, conditioning, cameras, t, guidance_scale)
        grad = latents.detach() - clean if weighting == "clean" else sigma.square() * (predicted - noise)
        (pixels,) = torch.autograd.grad(latents, images, grad_outputs=grad)
        return pixels, 0.5 * grad.square().sum((1, 2, 3))

    @torch.no_grad()
    def refine(
        self,
        images: Tensor,
        conditioning: Conditioning,
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
            alpha, sigma = self._alpha_sigma(levels[:1])
            noisy = alpha * self.encode(images).float() + sigma * noise
        clean = noisy
        for here, there in itertools.pairwise(levels):
            t = here.expand(len(noisy))
            predicted, clean = self.predict(noisy, conditioning, cameras, t, guidance_scale)
            alpha, sigma = self._alpha_sigma(there[None])
            noisy = alpha * clean + sigma * predicted  # DDIM, eta = 0 (Song et al. 2020, Eq. 12)
        return self.decode(clean)

    def _to_model(self, images: Tensor) -> Tensor:
        return (_resize(images, self.size_px, "bilinear") * 2 - 1).to(self.dtype)

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Square roots of abar and 1 - abar at t [V], as [V, 1, 1, 1]."""
        abar = self.alphas[t.to(self.device)][:, None, None, None]
        return abar.sqrt(), (1 - abar).sqrt()


def _resize(images: Tensor, side: int, mode: str) -> Tensor:
    """[V, 3, H, W] -> [V, 3, side, side]; nothing is touched where it fits already."""
    if tuple(images.shape[-2:]) == (side, side):
        return images
    smaller = images.shape[-1] > side
    return F.interpolate(images, (side, side), mode=mode, align_corners=False, antialias=smaller)


def _normalisation(source: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """CLIP's pixel mean and deviation [1, 3, 1, 1], from the folder where it has them."""
    name = "feature_extractor/preprocessor_config.json"
    values = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    try:
        local = Path(source) / name
        path = local if local.exists() or Path(source).is_dir() else Path(hf_hub_download(source, name))
        values |= json.loads(path.read_text())
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError):
        pass  # the file is optional: these are CLIP's own values, which every published conversion uses
    return tuple(
        torch.tensor(values[k], device=device).reshape(1, 3, 1, 1) for k in ("image_mean", "image_std")
    )  # type: ignore[return-value]
