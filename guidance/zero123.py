"""Zero-1-to-3 guidance: placeholder for the loader."""
from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


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
