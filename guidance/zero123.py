"""Zero-1-to-3 guidance (Liu et al. 2023) from a diffusers-format folder: the published weights or the pocket ones.

V views, C latent channels, L latent side, E embedding width; vocabulary and formulas of diffusion.py. A relative camera
is Zero-1-to-3's code of four numbers: polar angle (grows downwards), sin and cos of the azimuth (counter-clockwise from
above), radius, each target minus input, radians and world units.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from guidance.diffusion import LatentDiffusion, resized


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


class Zero123(LatentDiffusion):
    """The frozen prior. Its two working methods are `embed` and `sds_grad`; `refine` serves the second stage."""

    def __init__(
        self, folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ):
        """Loads unet, vae, image_encoder, clip_camera_projection and scheduler from a folder or hub id.

        Raises UserError when a part is missing, naming it.
        """
        super().__init__(folder, "Zero-1-to-3", device, dtype)

    def load(self, source: str) -> list[nn.Module]:
        self.encoder = CLIPVisionModelWithProjection.from_pretrained(
            source, subfolder="image_encoder", dtype=self.dtype
        )
        self.projection = CameraProjection.from_pretrained(
            source, subfolder="clip_camera_projection", torch_dtype=self.dtype
        )
        self.mean, self.std = _normalisation(source, self.device)
        return [self.encoder, self.projection]

    @torch.no_grad()
    def embed(self, image: Tensor) -> Conditioning:
        """image [1, 3, H, W] over white in 0..1 -> what the views are conditioned on."""
        image = image.to(self.device, torch.float32)
        side = self.encoder.config.image_size
        pixels = (resized(image, side, "bicubic").clamp(0, 1) - self.mean) / self.std
        embedding = self.encoder(pixel_values=pixels.to(self.dtype)).image_embeds
        posterior = self.vae.encode(self._to_model(image)).latent_dist
        return Conditioning(embedding, posterior.mode())

    def output(
        self, noisy: Tensor, conditioning: Conditioning, cameras: Tensor, t: Tensor, guidance_scale: float
    ) -> Tensor:
        """Classifier-free guidance (Ho & Salimans 2022) in one UNet call of 2V; a scale of 1 needs V only."""
        views = len(noisy)
        embedding = conditioning.embedding.expand(views, -1)
        tokens = self.projection(torch.cat([embedding, cameras.to(embedding)], 1))[:, None]
        stacked = torch.cat([noisy.to(self.dtype), conditioning.latents.expand(views, -1, -1, -1)], 1)
        if guidance_scale == 1.0:
            return self.unet(stacked, t, tokens).sample.float()
        bare = torch.cat([noisy.to(self.dtype), torch.zeros_like(stacked[:, noisy.shape[1] :])], 1)
        both = self.unet(
            torch.cat([bare, stacked]), t.repeat(2), torch.cat([torch.zeros_like(tokens), tokens])
        ).sample.float()
        without, given = both.chunk(2)
        return without + guidance_scale * (given - without)


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
