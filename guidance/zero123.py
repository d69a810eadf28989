"""Zero-1-to-3 guidance (Liu et al. 2023) from a diffusers-format folder: the published weights or the pocket ones.

V views, T tokens, C latent channels, L latent side, E embedding width; vocabulary and formulas of diffusion.py. A
relative camera is Zero-1-to-3's code of four numbers: polar angle (grows downwards), sin and cos of the azimuth
(counter-clockwise from above), radius, each target minus input, radians and world units. Stable-Zero123 reads the same
first three, but in the place of the radius the input view's own polar angle, from straight above: pi / 2 minus its
elevation.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from guidance.diffusion import LatentDiffusion, resized
from guidance.folder import ZERO123, network

STABLE_NAME = re.compile(r"stable[-_]?zero[-_]?(123|1-?to-?3)", re.IGNORECASE)


class CameraProjection(ModelMixin, ConfigMixin):
    """Linear map of (image embedding, camera code) to the embedding's width, as published beside zero123-xl.

    embedding_dim: width E of the image embedding; additional_embeddings: numbers of the camera code, 4; patches:
    whether the picture's patches are tokens beside its embedding (the published weights have the embedding alone).
    """

    @register_to_config
    def __init__(
        self, embedding_dim: int = 768, additional_embeddings: int = 4, patches: bool = False
    ) -> None:
        super().__init__()
        self.proj = nn.Linear(embedding_dim + additional_embeddings, embedding_dim)

    def forward(self, embedding: Tensor) -> Tensor:
        """[..., E + 4] -> [..., E]."""
        return self.proj(embedding)

    def tokens(self, seen: Tensor, cameras: Tensor) -> Tensor:
        """[V, T, E] for the UNet, of what was `seen` [V, T, E] and relative cameras [V, 4]: each token is told where
        the view is."""
        return self(torch.cat([seen, cameras.to(seen)[:, None].expand(-1, seen.shape[1], -1)], 2))


def seen(encoder: CLIPVisionModelWithProjection, pixels: Tensor, patches: bool) -> Tensor:
    """What the image encoder makes of normalised pictures [B, 3, H, W]: their embeddings [B, 1, E]; with patches, those
    of all patches behind it [B, T, E], in the same space."""
    made = encoder(pixel_values=pixels)
    embeddings = made.image_embeds[:, None]
    if not patches:
        return embeddings
    last = encoder.vision_model.post_layernorm(made.last_hidden_state[:, 1:])
    return torch.cat([embeddings, encoder.visual_projection(last)], 1)


@dataclass(frozen=True)
class Conditioning:
    """What the prior knows of its input pictures: seen [B, T, E], T 1 in published weights; latents [B, C, L, L], not
    scaled; polar_rad: the camera's angle from straight above, for Stable-Zero123. B is 1 for all views, or their
    number."""

    seen: Tensor
    latents: Tensor
    polar_rad: float = math.pi / 2

    def of(self, rows: Tensor) -> Conditioning:
        """For V views, of which each is told of the picture in `rows` [V], whole numbers."""
        rows = rows.to(self.latents.device)
        return Conditioning(self.seen[rows], self.latents[rows], self.polar_rad)


class Zero123(LatentDiffusion):
    """The frozen prior. Its two working methods are `embed` and `sds_grad`; `refine` serves the second stage."""

    family, beside = ZERO123, 1

    def __init__(
        self,
        folder: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        camera_code: str = "auto",
    ):
        """Loads unet, vae, image_encoder, clip_camera_projection and scheduler from a folder or hub id.

        camera_code: "relative" is Zero-1-to-3's, "stable" Stable-Zero123's; "auto" is what the folder says or is
        called, see `is_stable`. Raises UserError when a part is missing, naming it.
        """
        self.camera_code = camera_code
        super().__init__(folder, device, dtype)

    def load(self, source: str) -> list[nn.Module]:
        folder = Path(source)
        self.encoder = network(CLIPVisionModelWithProjection, folder, "image_encoder", self.dtype, "dtype")
        self.projection = network(CameraProjection, folder, "clip_camera_projection", self.dtype)
        self.token_size = int(self.encoder.config.projection_dim)
        self.mean, self.std = _normalisation(folder, self.device)
        self.stable = self.camera_code == "stable" or (self.camera_code == "auto" and is_stable(folder))
        return [self.encoder, self.projection]

    @torch.no_grad()
    def embed(self, image: Tensor, elevation_rad: float = 0.0) -> Conditioning:
        """image [B, 3, H, W] over white in 0..1, from that elevation -> what the views are conditioned on."""
        image = image.to(self.device, torch.float32)
        side = self.encoder.config.image_size
        pixels = (resized(image, side, "bicubic").clamp(0, 1) - self.mean) / self.std
        tokens = seen(self.encoder, pixels.to(self.dtype), self.projection.config.patches)
        posterior = self.vae.encode(self._to_model(image)).latent_dist
        return Conditioning(tokens, posterior.mode(), math.pi / 2 - elevation_rad)

    def output(
        self, noisy: Tensor, conditioning: Conditioning, cameras: Tensor, t: Tensor, guidance_scale: float
    ) -> Tensor:
        """Classifier-free guidance (Ho & Salimans 2022) in one UNet call of 2V; a scale of 1 needs V only."""
        views = len(noisy)
        if self.stable:
            cameras = torch.cat([cameras[:, :3], torch.full_like(cameras[:, 3:], conditioning.polar_rad)], 1)
        tokens = self.projection.tokens(conditioning.seen.expand(views, -1, -1), cameras)
        stacked = torch.cat([noisy.to(self.dtype), conditioning.latents.expand(views, -1, -1, -1)], 1)
        if guidance_scale == 1.0:
            return self.unet(stacked, t, tokens).sample.float()
        bare = torch.cat([noisy.to(self.dtype), torch.zeros_like(stacked[:, noisy.shape[1] :])], 1)
        both = self.unet(
            torch.cat([bare, stacked]), t.repeat(2), torch.cat([torch.zeros_like(tokens), tokens])
        ).sample.float()
        without, given = both.chunk(2)
        return without + guidance_scale * (given - without)


def is_stable(folder: Path) -> bool:
    """Whether a folder holds Stable-Zero123: "camera_code": "stable" or "relative" in its projection's config.json
    decides; else its own name, the hub id in a cache's path, or _name_or_path in its model_index.json."""
    said = _read_json(folder / "clip_camera_projection" / "config.json").get("camera_code")
    if said is not None:
        return bool(said == "stable")
    named = _read_json(folder / "model_index.json").get("_name_or_path", "")
    in_cache = [part for part in folder.resolve().parts if part.startswith("models--")]
    names = [*in_cache, folder.name, folder.resolve().name, str(named).rsplit("/", 1)[-1]]
    return any(STABLE_NAME.search(name) for name in names)


def _normalisation(folder: Path, device: torch.device) -> tuple[Tensor, Tensor]:
    """CLIP's pixel mean and deviation [1, 3, 1, 1], from the folder where it has them."""
    # the file is optional: these are CLIP's own values, which every published conversion uses
    values = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    } | _read_json(folder / "feature_extractor" / "preprocessor_config.json")
    mean, std = (
        torch.tensor(values[k], device=device).reshape(1, 3, 1, 1) for k in ("image_mean", "image_std")
    )
    return mean, std


def _read_json(path: Path) -> dict[str, Any]:
    """Empty where there is no such file. Raises ValueError where it is not JSON."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
