"""The second stage as a problem for the solver: a texture that follows what the prior makes of its own views.

V views, T texels along the texture's side, C along the coarse one's, Nv vertices (none unless the geometry is trained),
M = 1 + C^2 + T^2 + Nv rows on the wire. Steps count from 0. What is learnt of the texture is an offset of two scales: a
coarse one from all views, of no more texels than they can see, and a fine one from the known view alone. Adam would
otherwise leave the texels between the views' pixels behind, as grain. The dear part of a step is the novel views'
(rendered, noised, denoised in several steps); the known view's gradient is cheap and taken at the exact place in the
roll-out, as in losses.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gs_propeller.base.camera import Cameras
from gs_propeller.base.randomness import keyed_generator
from gs_propeller.mesh.antialias import antialias, barycentrics, edges_of
from gs_propeller.mesh.raster import Hits, rasterize
from gs_propeller.mesh.surface import Mesh
from gs_propeller.mesh.texture import Reference, Textured, lookup, sample_texture
from gs_propeller.scenes.gaussians.adam import first_moment, moved, second_moment

BETAS, EPS = (0.9, 0.99), 1e-15
LOSSES = ("novel", "known")


@dataclass(frozen=True)
class Offsets:
    """Of the texture's colours: coarse [C, C, 3] and fine [T, T, 3]; of the mesh: vertices [Nv | 0, 3], world units.
    Also used for moments and gradients."""

    coarse: Tensor
    fine: Tensor
    vertices: Tensor

    def __len__(self) -> int:
        """M, rows of `pack`."""
        return 1 + len(self.coarse) ** 2 + len(self.fine) ** 2 + len(self.vertices)

    def map(self, fn: Callable[..., Tensor], *others: Offsets) -> Offsets:
        """fn applied field by field."""
        return Offsets(
            *(fn(getattr(self, f.name), *(getattr(o, f.name) for o in others)) for f in fields(self))
        )

    def parts(self) -> tuple[Tensor, ...]:
        return self.coarse, self.fine, self.vertices

    @staticmethod
    def of(*parts: Tensor) -> Offsets:
        return Offsets(*parts)

    def pack(self) -> Tensor:
        """[M, 3]: C, T and Nv, then every texel and vertex."""
        sizes = self.coarse.new_tensor([[len(self.coarse), len(self.fine), len(self.vertices)]])
        return torch.cat([sizes, self.coarse.reshape(-1, 3), self.fine.reshape(-1, 3), self.vertices])

    @staticmethod
    def unpack(packed: Tensor) -> Offsets:
        """Inverse of pack."""
        coarse, fine, vertices = (int(n) for n in packed[0])
        parts = packed[1:].split([coarse * coarse, fine * fine, vertices])
        return Offsets(parts[0].reshape(coarse, coarse, 3), parts[1].reshape(fine, fine, 3), parts[2])


class Novel(NamedTuple):
    """The dear part of a step: the novel views' gradient for coarse [C, C, 3] and vertices [Nv | 0, 3]; losses [1]."""

    coarse: Tensor
    vertices: Tensor
    losses: Tensor

    def parts(self) -> tuple[Tensor, ...]:
        return self

    @staticmethod
    def of(*parts: Tensor) -> Novel:
        return Novel(*parts)

    def pack(self) -> Tensor:
        return torch.cat([self.coarse.reshape(-1, 3), self.vertices])

    @staticmethod
    def unpack(flat: Tensor, losses: Tensor, params: Offsets) -> Novel:
        """Inverse of pack, flattened; params: what it was evaluated at."""
        rows = [len(params.coarse) ** 2, len(params.vertices)]
        coarse, vertices = flat.reshape(-1, 3).split(rows)
        return Novel(coarse.reshape(params.coarse.shape), vertices, losses)

    def at(self, state: RefineState) -> Novel:
        """A texture keeps its rows: one state's drift is any other's."""
        return self


@dataclass(frozen=True)
class RefineState:
    """All that evolves: the offsets, Adam's moments of them, and the number of updates done."""

    params: Offsets
    exp_avg: Offsets
    exp_avg_sq: Offsets
    step: int

    def to(self, device: torch.device | str) -> RefineState:
        p, m, v = (g.map(lambda x: x.to(device)) for g in (self.params, self.exp_avg, self.exp_avg_sq))
        return RefineState(p, m, v, self.step)

    def tensors(self) -> dict[str, Tensor]:
        """Flat names to tensors, for a checkpoint."""
        groups = {g: getattr(self, g) for g in ("params", "exp_avg", "exp_avg_sq")}
        flat = {
            f"{g}.{f.name}": getattr(record, f.name) for g, record in groups.items() for f in fields(Offsets)
        }
        return flat | {"step": torch.tensor(self.step)}

    @staticmethod
    def from_tensors(flat: dict[str, Tensor]) -> RefineState:
        """Inverse of tensors."""
        p, m, v = (
            Offsets(**{f.name: flat[f"{g}.{f.name}"] for f in fields(Offsets)})
            for g in ("params", "exp_avg", "exp_avg_sq")
        )
        return RefineState(p, m, v, int(flat["step"]))


@dataclass(frozen=True)
class RefineSettings:
    """steps; batch: views a step; lr: Adam's, of the texture, at first; size: px of the rendered views; coarse: C;
    strength_max, strength_min: noise strength of the first and last step; lambda_known: of the input view.
    geometry: whether vertices move too, with geometry_lr world units a step at first; lambda_smooth: of their offsets'
    differences along edges; lambda_normal: of the angles between neighbouring faces.
    """

    steps: int
    batch: int
    lr: float
    size: int
    coarse: int
    strength_max: float
    strength_min: float
    lambda_known: float = 4.0
    geometry: bool = False
    geometry_lr: float = 5e-4
    lambda_smooth: float = 100.0
    lambda_normal: float = 0.01


@dataclass(frozen=True)
class Refinement:
    """DreamGaussian's second stage in four functions, all deterministic: the draws are the step's own.

    cameras_of(step): that step's views. targets_of(step, images [V, 3, S, S], strength): the prior's multi-step
    denoising of them, any size. The loss is the mean squared error to the targets, inside the mesh where its shape is
    kept, plus that of the known view, if there is one; where geometry is trained, of its mask too, and the
    regularisers.
    """

    textured: Textured
    cameras_of: Callable[[int], Cameras]
    targets_of: Callable[[int, Tensor, float], Tensor]
    reference: Reference | None
    settings: RefineSettings

    def first_state(self) -> RefineState:
        side = len(self.textured.texture)
        coarse = min(side, self.settings.coarse)
        moved_vertices = len(self.textured.mesh.vertices) if self.settings.geometry else 0
        zeros = Offsets(
            torch.zeros(coarse, coarse, 3), torch.zeros(side, side, 3), torch.zeros(moved_vertices, 3)
        )
        return RefineState(zeros, zeros, zeros, 0)

    def painted(self, params: Offsets) -> Tensor:
        """[T, T, 3] the texture with its offsets, differentiable in them."""
        side = len(self.textured.texture)
        table = params.coarse.permute(2, 0, 1)[None]
        wide = F.interpolate(table, (side, side), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
        return self.textured.texture + wide + params.fine

    def compute(self, params: Sequence[Offsets], steps: Sequence[int]) -> list[Novel]:
        """The dear part of several window slots."""
        return [self._novel(p, step) for p, step in zip(params, steps, strict=True)]

    def shaped(self, params: Offsets) -> Mesh:
        """The mesh with its offsets, differentiable in them."""
        mesh = self.textured.mesh
        return Mesh(mesh.vertices + params.vertices, mesh.faces) if self.settings.geometry else mesh

    def seen(
        self, params: Offsets, cameras: Cameras, size: int, still: Hits | None = None
    ) -> tuple[Tensor, Tensor]:
        """(image [V, 3, S, S] over white, coverage [V, 1, S, S]): soft at silhouettes where geometry is trained.
        still: hits that were found before, good as long as the mesh keeps its shape."""
        mesh = self.shaped(params)
        if still is None or self.settings.geometry:
            hits = rasterize(Mesh(mesh.vertices.detach(), mesh.faces), cameras, size)
        else:
            hits = still
        if not self.settings.geometry:
            image = sample_texture(self.painted(params), lookup(self.textured, hits), hits.mask)
            return image, hits.mask[:, None].to(image)
        slid = replace(hits, barycentric=barycentrics(mesh.vertices, mesh.faces, hits, cameras))
        image = sample_texture(self.painted(params), lookup(self.textured, slid), hits.mask)
        both = torch.cat([image, hits.mask[:, None].to(image)], 1)
        both = antialias(both, mesh.vertices, mesh.faces, self._edges, hits, cameras)
        return both[:, :3], both[:, 3:]

    def _novel(self, params: Offsets, step: int) -> Novel:
        s = self.settings
        strength = s.strength_max + (s.strength_min - s.strength_max) * step / max(s.steps - 1, 1)
        coarse, vertices = (x.detach().requires_grad_(True) for x in (params.coarse, params.vertices))
        image, cover = self.seen(
            Offsets(coarse, params.fine.detach(), vertices), self.cameras_of(step), s.size
        )
        target = self.targets_of(step, image.detach(), strength)
        target = F.interpolate(target, image.shape[-2:], mode="bilinear", align_corners=False)
        area = cover.detach().sum().clamp_min(1)
        # A mesh that keeps its shape has nothing to learn outside it.
        gap = (image - target).square() * (1.0 if s.geometry else cover)
        loss = gap.sum() / area / 3
        of_coarse, of_vertices = torch.autograd.grad(loss, (coarse, vertices), allow_unused=True)
        return Novel(_or_zero(of_coarse, coarse), _or_zero(of_vertices, vertices), loss.detach()[None])

    @cached_property
    def _edges(self) -> tuple[Tensor, Tensor]:
        return edges_of(self.textured.mesh.faces)

    @cached_property
    def _known_hits(self) -> Hits | None:
        """Of the mesh as it was given, in the known view: the roll-out asks at every step."""
        if self.reference is None:
            return None
        return rasterize(self.textured.mesh, self.reference.camera, self.reference.image.shape[-1])

    def known(self, params: Offsets) -> tuple[Offsets, Tensor]:
        """The known view's and the regularisers' gradient and loss [1]: cheap, taken at the exact state."""
        s, reference = self.settings, self.reference
        leaves = params.map(lambda x: x.detach().requires_grad_(True))
        loss = sum(x.sum() for x in leaves.__dict__.values()) * 0.0
        if reference is not None and (hits := self._known_hits) is not None:
            image, cover = self.seen(leaves, reference.camera, reference.image.shape[-1], hits)
            mask = hits.mask[:, None] & (reference.mask > 0.99)
            area = mask.sum().clamp_min(1)
            loss = s.lambda_known * ((image - reference.image).square() * mask).sum() / area / 3
            if s.geometry:
                loss = loss + s.lambda_known * (cover - reference.mask).square().sum() / area
        if s.geometry:
            loss = loss + self._roughness(leaves)
        grads = torch.autograd.grad(loss, tuple(leaves.__dict__.values()), allow_unused=True)
        found = (_or_zero(g, x) for g, x in zip(grads, leaves.__dict__.values(), strict=True))
        return Offsets(*found), loss.detach()[None]

    def _roughness(self, params: Offsets) -> Tensor:
        """Offsets that differ along edges, and faces that fold more than they did."""
        ends, sides = self._edges
        stretch = (params.vertices[ends[:, 0]] - params.vertices[ends[:, 1]]).square().sum(1).mean()

        def folds(mesh: Mesh) -> Tensor:
            a, b, c = mesh.vertices[mesh.faces].unbind(1)
            normals = F.normalize(torch.linalg.cross(b - a, c - a), dim=1)
            inner = sides[sides[:, 1] >= 0]
            return (normals[inner[:, 0]] * normals[inner[:, 1]]).sum(1)

        bent = (folds(self.textured.mesh) - folds(self.shaped(params))).clamp_min(0).mean()
        return self.settings.lambda_smooth * stretch + self.settings.lambda_normal * bent

    def update(self, state: RefineState, drift: Novel) -> tuple[RefineState, Tensor]:
        """An Adam step with the gradients of both parts, and the known view's loss [1]."""
        known, losses = self.known(state.params)
        grads = replace(known, coarse=known.coarse + drift.coarse, vertices=known.vertices + drift.vertices)
        return self._stepped(state, grads), losses

    def coast(self, state: RefineState) -> RefineState:
        """The next state if the gradient were what Adam's first moment expects: a guess without a drift."""
        if state.step == 0:
            return replace(state, step=1)
        correction = 1.0 - BETAS[0] ** state.step
        return self._stepped(state, state.exp_avg.map(lambda m: m / correction))

    def _stepped(self, state: RefineState, grads: Offsets) -> RefineState:
        age, s = state.step + 1, self.settings
        exp_avg = state.exp_avg.map(lambda m, g: first_moment(m, g, BETAS), grads)
        exp_avg_sq = state.exp_avg_sq.map(lambda v, g: second_moment(v, g, BETAS), grads)
        # What the prior makes of a view differs from step to step: falling rates average over it. The known view's own
        # offset has no such noise.
        left = 1.0 - state.step / s.steps
        rates = {"coarse": s.lr * left, "fine": s.lr, "vertices": s.geometry_lr * left}

        def moved_field(name: str, theta: Tensor) -> Tensor:
            return moved(
                theta, getattr(exp_avg, name), getattr(exp_avg_sq, name), rates[name], age, BETAS, EPS
            )

        params = Offsets(
            **{f.name: moved_field(f.name, getattr(state.params, f.name)) for f in fields(Offsets)}
        )
        return RefineState(params, exp_avg, exp_avg_sq, age)

    def result(self, state: RefineState) -> Textured:
        with torch.no_grad():
            texture = self.painted(state.params).clamp(0, 1)
            return replace(self.textured, mesh=self.shaped(state.params), texture=texture)


def distance(new: RefineState, old: RefineState) -> float:
    """The largest mean squared difference of the offsets: of colours in 0..1, of vertices in world units."""
    gaps = new.params.map(lambda a, b: (a - b).square().mean() if len(a) else a.sum(), old.params)
    return max(float(gap) for gap in gaps.__dict__.values())


def _or_zero(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad


def refine_angles(step: int, batch: int, low_rad: float, high_rad: float, seed: int) -> tuple[Tensor, Tensor]:
    """(azimuths, elevations) [V] of one refinement step: round the circle, a function of (seed, step) alone."""
    generator = keyed_generator(seed, step, "refine views")
    turn = (torch.arange(batch) + torch.rand(batch, generator=generator)) * (2 * math.pi / batch)
    return turn, low_rad + (high_rad - low_rad) * torch.rand(batch, generator=generator)
