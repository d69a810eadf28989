"""Random numbers as functions of what they are for: ask twice, get the same answer.

Nothing draws from torch's global stream. A draw belongs to a key, (seed, step, purpose) for a whole
tensor or (seed, id) for one Gaussian, so every pass, rank and resumed run sees the same numbers.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor


def _signed(word: int) -> int:
    """The int64 with the bits of a 64-bit word."""
    return word - (1 << 64) if word >> 63 else word


GOLDEN = _signed(0x9E3779B97F4A7C15)  # splitmix64's increment, 2^64 / golden ratio
MIX_1, MIX_2 = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def keyed_generator(
    seed: int, step: int, purpose: str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator that depends on these alone. step: from 0. purpose: a word, e.g. "noise", "views"."""
    digest = hashlib.blake2b(f"{seed}/{step}/{purpose}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little", signed=True))


def splitmix64(words: Tensor) -> Tensor:
    """splitmix64's output for the states words, int64 of any shape: a bijection that mixes all 64 bits.

    int64 products wrap around in torch on every device, which is what is wanted here.
    """
    x = words + GOLDEN
    x = (x ^ _shift_right(x, 30)) * MIX_1
    x = (x ^ _shift_right(x, 27)) * MIX_2
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's own drags the sign along."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def normals(seed: int, ids: Tensor) -> Tensor:
    """[N, 3] float64 standard normals, row i a function of (seed, ids[i]) alone. ids: [N] int64."""
    key = splitmix64(ids ^ splitmix64(torch.full_like(ids, seed)))
    counters = torch.arange(4, device=ids.device) * GOLDEN
    bits = _shift_right(splitmix64(key[:, None] + counters), 11)  # [N, 4], 53 bits
    uniform = (bits.double() + 0.5) * 2.0**-53  # in (0, 1]: its logarithm is finite
    radius = (-2.0 * uniform[:, 0::2].log()).sqrt()  # Box-Muller on two pairs
    angle = 2.0 * math.pi * uniform[:, 1::2]
    return torch.cat([radius * angle.cos(), (radius * angle.sin())[:, :1]], 1)
