"""The state that evolves: N Gaussians, Adam's moments, densification statistics, lineage, step.

N Gaussians, A generations remembered, V views, K = (degree + 1)^2 spherical-harmonics coefficients.
Parameters are raw: log-scale, logit of the opacity, unnormalised quaternion (w, x, y, z).
Nothing here is written in place; functions return new records.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from gs_propeller.base.randomness import keyed_generator
from gs_propeller.scenes.gaussians.lineage import founders

ANCESTORS = (
    4  # generations kept in a lineage; iterates further apart cannot be compared, and a guess is refused
)
SH_C0 = 0.28209479177387814  # Y_00, the constant spherical harmonic


@dataclass(frozen=True)
class Gaussians:
    """Raw parameters of N Gaussians; every tensor is float and shares dim 0.

    means [N, 3] world units; log_scales [N, 3]; quats [N, 4] wxyz, not normalised;
    logit_opacities [N]; sh_dc [N, 1, 3]; sh_rest [N, K - 1, 3]. Colour = 0.5 + SH(direction).
    Also used for anything of the same shape: gradients, Adam's moments. A record made by `unpack` keeps the one tensor
    that its fields are views of, so what treats all columns alike packs, computes once and unpacks, at no cost.
    """

    means: Tensor
    log_scales: Tensor
    quats: Tensor
    logit_opacities: Tensor
    sh_dc: Tensor
    sh_rest: Tensor
    _packed: ClassVar[Tensor | None] = None  # an instance's own, where it has one; not a field

    def __post_init__(self) -> None:
        n = self.means.shape[0]
        tails = {"means": (3,), "log_scales": (3,), "quats": (4,), "logit_opacities": (), "sh_dc": (1, 3)}
        for name, tail in tails.items():
            shape = tuple(getattr(self, name).shape)
            if shape != (n, *tail):
                raise ValueError(f"{name} must be {[n, *tail]}, got {list(shape)}")
        rest = tuple(self.sh_rest.shape)
        if len(rest) != 3 or rest[0] != n or rest[2] != 3 or rest[1] not in (0, 3, 8, 15):
            raise ValueError(f"sh_rest must be [{n}, 0|3|8|15, 3], got {list(rest)}")

    def __len__(self) -> int:
        return self.means.shape[0]

    @property
    def sh_degree(self) -> int:
        return {0: 0, 3: 1, 8: 2, 15: 3}[self.sh_rest.shape[1]]

    def map(self, fn: Callable[..., Tensor], *others: Gaussians) -> Gaussians:
        """fn applied field by field: `a.map(torch.add, b)` is a + b."""
        return Gaussians(
            *(fn(getattr(self, f.name), *(getattr(o, f.name) for o in others)) for f in fields(self))
        )

    def items(self) -> list[tuple[str, Tensor]]:
        return [(f.name, getattr(self, f.name)) for f in fields(self)]

    def parts(self) -> tuple[Tensor, ...]:
        """What travels between ranks."""
        return (self.pack(),)

    @staticmethod
    def of(*parts: Tensor) -> Gaussians:
        """Inverse of parts."""
        return Gaussians.unpack(parts[0])

    def pack(self) -> Tensor:
        """[N, 11 + 3K] all parameters of a row side by side, in the order of the fields."""
        if self._packed is not None:
            return self._packed
        return torch.cat(
            [tensor.reshape(len(self), math.prod(tensor.shape[1:])) for _, tensor in self.items()], 1
        )

    @staticmethod
    def unpack(packed: Tensor) -> Gaussians:
        """Inverse of pack."""
        width = packed.shape[1]
        means, log_scales, quats, opacity, dc, rest = packed.split([3, 3, 4, 1, 3, width - 14], 1)
        record = Gaussians(
            means,
            log_scales,
            quats,
            opacity[:, 0],
            dc.unflatten(1, (1, 3)),
            rest.unflatten(1, ((width - 14) // 3, 3)),
        )
        object.__setattr__(record, "_packed", packed)
        return record


@dataclass(frozen=True)
class StepStats:
    """What one step tells densification about each Gaussian; all [N] float.

    grad2d: sum over the views of |d loss / d 2D mean|, the means in normalised device coordinates (the
    gradient per pixel times (W / 2, H / 2)), as 3DGS. seen: number of views that saw it. radii: largest
    over the views, as a fraction of the image's longer side.
    """

    grad2d: Tensor
    seen: Tensor
    radii: Tensor

    def __post_init__(self) -> None:
        _check_vectors(self)

    def __len__(self) -> int:
        return self.grad2d.shape[0]

    def joined(self, other: StepStats) -> StepStats:
        """Of the views of both."""
        radii = torch.maximum(self.radii, other.radii)
        return StepStats(self.grad2d + other.grad2d, self.seen + other.seen, radii)

    @staticmethod
    def zeros(like: Gaussians) -> StepStats:
        return StepStats(*(torch.zeros_like(like.logit_opacities) for _ in range(3)))


@dataclass(frozen=True)
class Stats:
    """StepStats gathered since the last densification: sums of grad2d and seen, maximum of radii; [N]."""

    grad2d_sum: Tensor
    seen: Tensor
    max_radii: Tensor

    def __post_init__(self) -> None:
        _check_vectors(self)

    def __len__(self) -> int:
        return self.grad2d_sum.shape[0]

    @staticmethod
    def zeros(like: Gaussians) -> Stats:
        return Stats(*(torch.zeros_like(like.logit_opacities) for _ in range(3)))

    def add(self, step: StepStats) -> Stats:
        return Stats(
            self.grad2d_sum + step.grad2d,
            self.seen + step.seen,
            torch.maximum(self.max_radii, step.radii),
        )


@dataclass(frozen=True)
class Drift:
    """The dear part of one step, and the rows that it was computed at.

    grads: of the loss, by parameter. lineage: [N, A, 2] of the state evaluated. losses: [L], by name in
    an order that the caller knows; for the log only.
    """

    grads: Gaussians
    stats: StepStats
    lineage: Tensor
    losses: Tensor

    def __post_init__(self) -> None:
        _check_lengths(len(self.grads), stats=self.stats, lineage=self.lineage)


class Evaluation(NamedTuple):
    """Gradients, statistics and losses [L] at one slot: a drift that does not know yet whose rows it has."""

    grads: Gaussians
    stats: StepStats
    losses: Tensor

    def parts(self) -> tuple[Tensor, ...]:
        """What travels between ranks."""
        stats = (self.stats.grad2d, self.stats.seen, self.stats.radii)
        return (*self.grads.parts(), *stats, self.losses)

    @staticmethod
    def of(*parts: Tensor) -> Evaluation:
        """Inverse of parts."""
        *grads, grad2d, seen, radii, losses = parts
        return Evaluation(Gaussians.of(*grads), StepStats(grad2d, seen, radii), losses)

    def at(self, state: State) -> Drift:
        """The drift of that state."""
        return Drift(self.grads, self.stats, state.lineage, self.losses)


@dataclass(frozen=True)
class State:
    """All that evolves. exp_avg, exp_avg_sq: Adam's moments. lineage: [N, A, 2], see lineage.py.

    step: number of updates done so far, so also the number of the step to do next.
    """

    params: Gaussians
    exp_avg: Gaussians
    exp_avg_sq: Gaussians
    stats: Stats
    lineage: Tensor
    step: int

    def __post_init__(self) -> None:
        n = len(self.params)
        _check_lengths(
            n, exp_avg=self.exp_avg, exp_avg_sq=self.exp_avg_sq, stats=self.stats, lineage=self.lineage
        )
        if tuple(self.lineage.shape) != (n, ANCESTORS, 2) or self.lineage.dtype != torch.int64:
            raise ValueError(
                f"lineage must be {[n, ANCESTORS, 2]} int64, "
                f"got {list(self.lineage.shape)} {self.lineage.dtype}"
            )
        if self.step < 0:
            raise ValueError(f"step must be at least 0, got {self.step}")

    def __len__(self) -> int:
        return len(self.params)

    @property
    def ids(self) -> Tensor:
        """[N] int64."""
        return self.lineage[:, 0, 0]

    def to(self, device: torch.device | str) -> State:
        return State.from_tensors({name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by a flat name, and the step as one: what a checkpoint holds."""
        flat = {"lineage": self.lineage, "step": torch.tensor(self.step)}
        for group in ("params", "exp_avg", "exp_avg_sq", "stats"):
            record = getattr(self, group)
            flat |= {f"{group}.{f.name}": getattr(record, f.name) for f in fields(record)}
        return flat

    @staticmethod
    def from_tensors(flat: dict[str, Tensor]) -> State:
        """Inverse of tensors. Raises KeyError for a name that is missing."""
        params, exp_avg, exp_avg_sq = (
            Gaussians(**{f.name: flat[f"{group}.{f.name}"] for f in fields(Gaussians)})
            for group in ("params", "exp_avg", "exp_avg_sq")
        )
        stats = Stats(**{f.name: flat[f"stats.{f.name}"] for f in fields(Stats)})
        return State(params, exp_avg, exp_avg_sq, stats, flat["lineage"], int(flat["step"]))


def start(params: Gaussians) -> State:
    """The state of step 0 at these parameters: no moments, no statistics, no ancestors."""
    zeros = params.map(torch.zeros_like)
    lineage = founders(len(params), ANCESTORS).to(params.means.device)
    return State(params, zeros, zeros, Stats.zeros(params), lineage, 0)


def init_ball(
    num_points: int, radius: float, sh_degree: int, seed: int, device: torch.device | str = "cpu"
) -> State:
    """DreamGaussian's first state: points uniform in a ball, nearly the same grey, opacity 0.1, round.

    num_points: at least 4. radius: world units, above 0. sh_degree: 0..3.
    Each is as wide as the root mean square distance to its 3 nearest neighbours. Raises ValueError.
    """
    if num_points < 4:
        raise ValueError(f"num_points must be at least 4, got {num_points}")
    if not radius > 0.0:
        raise ValueError(f"radius must be above 0, got {radius}")
    if sh_degree not in (0, 1, 2, 3):
        raise ValueError(f"sh_degree must be in 0..3, got {sh_degree}")
    n, generator = num_points, keyed_generator(seed, 0, "ball")
    phi = 2.0 * math.pi * torch.rand(n, generator=generator)
    cos_theta = 2.0 * torch.rand(n, generator=generator) - 1.0
    distance = radius * torch.rand(n, generator=generator) ** (1.0 / 3.0)
    sin_theta = (1.0 - cos_theta.square()).clamp(min=0.0).sqrt()
    means = distance[:, None] * torch.stack([sin_theta * phi.cos(), cos_theta, sin_theta * phi.sin()], 1)
    spacing = neighbour_distance(means.to(device)).cpu().log()
    quats = torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(n, 1)
    opacities = torch.full((n,), 0.1).logit()
    sh_dc = torch.rand(n, 1, 3, generator=generator) / 255.0  # theirs; so the colour is 0.5 to 0.501
    sh_rest = torch.zeros(n, (sh_degree + 1) ** 2 - 1, 3)
    params = Gaussians(means, spacing[:, None].repeat(1, 3), quats, opacities, sh_dc, sh_rest)
    return start(params).to(device)


def neighbour_distance(points: Tensor) -> Tensor:
    """[N] root of the mean squared distance to the 3 nearest others, at least 3e-4; points [N, 3], N > 3."""
    squared = _neighbours_cuda(points) if points.is_cuda else None
    if squared is None:
        positions = points.cpu().numpy()
        found, _ = cKDTree(positions).query(positions, k=4)  # the nearest of all is the point itself
        squared = torch.from_numpy(found[:, 1:] ** 2).mean(1).to(points)
    return squared.clamp(min=1e-7).sqrt()


def _neighbours_cuda(points: Tensor) -> Tensor | None:
    """The same squared means by 3DGS's own kernel, where that is installed."""
    try:
        from simple_knn._C import distCUDA2
    except ImportError:  # also where the index's package of that name is installed: another project
        return None
    return distCUDA2(points)


def _check_vectors(record: Stats | StepStats) -> None:
    shapes = {f.name: tuple(getattr(record, f.name).shape) for f in fields(record)}
    if len(set(shapes.values())) != 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"statistics must all be [N], got {shapes}")


def _check_lengths(n: int, **parts: Gaussians | Stats | StepStats | Tensor) -> None:
    for name, part in parts.items():
        if len(part) != n:
            raise ValueError(f"{name} has {len(part)} rows, the parameters {n}")
