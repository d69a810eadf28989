"""The pocket priors' networks, as diffusers and transformers build them: the published layouts, small.

B batch, C latent channels, L latent side, S picture side in pixels.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from guidance.pocket.data import SIZE_PX
from guidance.zero123 import CameraProjection, seen

WIDTH = 128  # of the image's and the text's embedding
LATENTS = 16  # channels of a new VAE's latents
CHANNELS = 64, 128, 128  # of the UNet at each resolution
TOKENS = 32  # of a sentence, its ends included


def build_vae() -> AutoencoderKL:
    """64 px -> 16x16x16 latents; no attention, it pays for nothing at this size."""
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=LATENTS, sample_size=SIZE_PX, layers_per_block=1,
        norm_num_groups=8, block_out_channels=(24, 48, 64), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, mid_block_add_attention=False,
    )  # fmt: skip


def build_unet(in_channels: int = 2 * LATENTS, out_channels: int = LATENTS) -> UNet2DConditionModel:
    """Noisy latents beside the known view's in; alone for text. Attention from 8x8 down: there views turn."""
    return UNet2DConditionModel(
        sample_size=SIZE_PX // 4, in_channels=in_channels, out_channels=out_channels, layers_per_block=1,
        norm_num_groups=16, block_out_channels=CHANNELS, cross_attention_dim=WIDTH, attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def build_encoder() -> CLIPVisionModelWithProjection:
    """A CLIP-style vision tower. It sees a picture once, however many views are asked for: its depth costs no step."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=128, intermediate_size=256, num_hidden_layers=6, num_attention_heads=4,
            image_size=SIZE_PX, patch_size=8, projection_dim=WIDTH,
        )
    )  # fmt: skip


def build_text_encoder(vocabulary: int) -> CLIPTextModel:
    """A CLIP-style text tower of four layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=4,
            num_attention_heads=4, max_position_embeddings=TOKENS, projection_dim=WIDTH, bos_token_id=0, eos_token_id=1,
            pad_token_id=1,
        )
    )  # fmt: skip


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's levels, stretched until the last is noise alone (Lin et al. 2023): 16x16 latents under the
    plain levels still show their mean, so that a sample's colours came from its noise and not from the picture."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction", rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )  # fmt: skip


class Denoiser(nn.Module):
    """All that the second stage trains, as one module."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = build_unet()
        self.image_encoder = build_encoder()
        self.clip_camera_projection = CameraProjection(WIDTH, 4, patches=True)
        with torch.no_grad():  # the pose starts as a plain addition to the embedding
            self.clip_camera_projection.proj.weight[:, :WIDTH] = torch.eye(WIDTH)
            self.clip_camera_projection.proj.bias.zero_()

    def forward(
        self, noisy: Tensor, t: Tensor, known: Tensor, known_latents: Tensor, poses: Tensor, keep: Tensor
    ) -> Tensor:
        """v [B, C, L, L]. known [B, 3, S, S] normalised pictures; keep [B] 0 drops the condition."""
        tokens = self.clip_camera_projection.tokens(seen(self.image_encoder, known, patches=True), poses)
        tokens = tokens * keep[:, None, None]
        stacked = torch.cat([noisy, known_latents * keep[:, None, None, None]], 1)
        return self.unet(stacked, t, tokens).sample


class TextDenoiser(nn.Module):
    """All that the text prior's training trains, as one module."""

    def __init__(self, vocabulary: int, latents: int = LATENTS) -> None:
        """latents: their channels."""
        super().__init__()
        self.unet = build_unet(latents, latents)
        self.text_encoder = build_text_encoder(vocabulary)

    def forward(self, noisy: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """v [B, C, L, L]. ids [B, T] of the sentences' pieces."""
        return self.unet(noisy, t, self.text_encoder(ids).last_hidden_state).sample
