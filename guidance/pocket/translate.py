"""A UNet's first and last layers carried over to another VAE's latents, so that it begins with what it knows.

C and D channels of the old and the new latents, M renders, L latent side. Both maps between the two are linear, pixel
by pixel, and fitted by least squares on renders of the stream; all layers between stay as they are.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from guidance.pocket.data import shard
from guidance.pocket.stream import encode

OBJECTS = 48  # of the stream's first shard, all views: four hundred renders

Weights = dict[str, Tensor]


def translated(weights: Weights, old_folder: Path, new: AutoencoderKL, number: int = 0) -> Weights:
    """The weights of a UNet for the VAE in old_folder, made over for the latents of `new`; unchanged where both VAEs
    have as many channels."""
    old = AutoencoderKL.from_pretrained(old_folder, torch_dtype=torch.float32)
    if old.config.latent_channels == new.config.latent_channels:
        return weights
    images = shard(number, OBJECTS).images.flatten(0, 1)
    few = encode(old, images).float() * old.config.scaling_factor
    many = encode(new, images).float() * new.config.scaling_factor
    return carried(weights, few, many, old.config.scaling_factor / new.config.scaling_factor)


def deepened(weights: Weights, encoder: nn.Module) -> Weights:
    """The weights of a CLIP tower of fewer layers for this one: the layers that they lack stand last and change nothing
    at first, since what they would add to the tokens is nought."""
    own, result = encoder.state_dict(), dict(weights)
    for name in own.keys() - weights.keys():
        adds = name.split(".", 4)[-1].startswith(("self_attn.out_proj", "mlp.fc2"))
        result[name] = torch.zeros_like(own[name]) if adds else own[name]
    return result


def carried(weights: Weights, few: Tensor, many: Tensor, ratio: float = 1.0) -> Weights:
    """few [M, C, L, L], many [M, D, L, L]: the same pictures' latents, scaled; ratio: of the old scale to the new. The
    known view's channels are not scaled."""
    old_of_new, new_of_old = fitted(many, few), fitted(few, many)
    count = few.shape[1]
    kernel = weights["conv_in.weight"]
    first = torch.einsum("ockl,cd->odkl", kernel[:, :count], old_of_new)
    known = torch.einsum("ockl,cd->odkl", kernel[:, count:], old_of_new / ratio)
    return weights | {
        "conv_in.weight": torch.cat([first, known], 1),
        "conv_out.weight": torch.einsum("dc,cikl->dikl", new_of_old, weights["conv_out.weight"]),
        "conv_out.bias": new_of_old @ weights["conv_out.bias"],
    }


def fitted(given: Tensor, wanted: Tensor) -> Tensor:
    """[B, A] that maps given [M, A, L, L] nearest to wanted [M, B, L, L], pixel by pixel."""
    a, b = (x.movedim(1, -1).flatten(0, -2).double() for x in (given, wanted))
    return torch.linalg.lstsq(a.T @ a, a.T @ b).solution.T.float()
