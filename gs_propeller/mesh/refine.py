"""The second stage as a problem for the solver: a texture that follows what the prior makes of its own views.

V views, C texels along the coarse offset's side, F texels that have a fine one, Nv vertices (none unless the geometry
is trained), k updates an evaluation. Updates count from 0 to T - 1; a step of the solver is an evaluation and the k
updates that it serves, all with its views, noise and target. What is learnt of the texture is an offset of two scales:
a coarse one from all views, of no more texels than they can see, and a fine one from the known view alone, on the
texels that it sees. Adam would otherwise leave the texels between the views' pixels behind, as grain.

What travels is a `Pull` (distil/pull.py), as in the first stage: the dear part renders a step's views at the guess and
has the prior noise and denoise them, in several steps; the pull towards those targets is taken back to the offsets in
the roll-out, anew at each update, together with the known view and the regularisers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gs_propeller.base.adam import first_moment, moved, second_moment
from gs_propeller.base.camera import Cameras
from gs_propeller.base.randomness import keyed_generator
from gs_propeller.distil.pull import Pull
from gs_propeller.mesh.raster import Hits
from gs_propeller.mesh.render import Canvas, render, texels_of
from gs_propeller.mesh.rows import rows
from gs_propeller.mesh.settings import RefineSettings
from gs_propeller.mesh.surface import Mesh
from gs_propeller.mesh.texture import Reference, Textured, recoloured

BETAS, EPS = (0.9, 0.99), 1e-15
LOSSES = ("novel", "known")


@dataclass(frozen=True)
class Offsets:
    """Of the texture's colours: coarse [C, C, 3] and fine [F, 3]; of the mesh: vertices [Nv | 0, 3], world units.
    Also used for moments and gradients."""

    coarse: Tensor
    fine: Tensor
    vertices: Tensor

    def __len__(self) -> int:
        """Texels and vertices that move."""
        return len(self.coarse) ** 2 + len(self.fine) + len(self.vertices)

    def map(self, fn: Callable[..., Tensor], *others: Offsets) -> Offsets:
        """fn applied field by field."""
        return Offsets(
            *(fn(*parts) for parts in zip(self.parts(), *(o.parts() for o in others), strict=True))
        )

    def parts(self) -> tuple[Tensor, ...]:
        return self.coarse, self.fine, self.vertices

    @staticmethod
    def of(*parts: Tensor) -> Offsets:
        return Offsets(*parts)


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
class Seen:
    """A step's views of some offsets: image [V, 3, S, S] over white, cover [V, 1, S, S], soft at silhouettes where
    geometry is trained; leaves: what they can be pulled back to."""

    leaves: Offsets
    image: Tensor
    cover: Tensor


@dataclass(frozen=True)
class Refinement:
    """DreamGaussian's second stage, all deterministic: the draws are the step's own; the same on every rank.

    cameras_of(step): that step's views, of side pixels. targets_of(step, images [V, 3, S, S], strength): the prior's
    multi-step denoising of them, any size. The loss is the mean squared error to the targets, per pixel of the mesh,
    plus that of the known view, if there is one; where geometry is trained, of its mask too, and the regularisers.
    skips: a step whose target is not finite has no pull towards it, instead of ending the run. recolour: of the
    finished texture, share of the way to the known view's palette.
    """

    textured: Textured
    cameras_of: Callable[[int], Cameras]
    targets_of: Callable[[int, Tensor, float], Tensor]
    reference: Reference | None
    settings: RefineSettings
    side: int
    skips: bool = False
    recolour: float = 0.0

    @property
    def device(self) -> torch.device:
        return self.textured.texture.device

    @property
    def every(self) -> int:
        """k."""
        return self.settings.refine_updates_per_evaluation

    @property
    def steps(self) -> int:
        """The solver's T: evaluations."""
        return -(-self.settings.refine_steps // self.every)

    def first(self) -> RefineState:
        coarse = min(len(self.textured.texture), self.settings.refine_texels)
        vertices = len(self.textured.mesh.vertices) if self.settings.train_geo else 0
        like = self.textured.texture
        shapes = ((coarse, coarse), (len(self.canvas.texels),), (vertices,))
        zeros = Offsets(*(like.new_zeros(*row, 3) for row in shapes))
        return RefineState(zeros, zeros, zeros, 0)

    @cached_property
    def canvas(self) -> Canvas:
        """Fine offsets are for the faces that the known view sees of the mesh as it was given."""
        seen = self._known_hits
        faces = self.textured.mesh.faces[:0, 0] if seen is None else seen.face_id[seen.mask].unique()
        return Canvas(self.textured, texels_of(self.textured, faces), self.settings.train_geo)

    @cached_property
    def _known_hits(self) -> Hits | None:
        """Of the mesh as it was given, in the known view."""
        if self.reference is None:
            return None
        mesh, reference = self.textured.mesh, self.reference
        return Canvas(self.textured, mesh.faces[:0, 0], False).hits(
            mesh.vertices, reference.camera, reference.image.shape[-1]
        )

    @cached_property
    def _views(self) -> Callable[[int], tuple[Cameras, Hits | None]]:
        """A step's cameras, and what they see of a mesh that keeps its shape."""

        def views(step: int) -> tuple[Cameras, Hits | None]:
            cameras = self.cameras_of(step).to(self.device)
            still = None if self.settings.train_geo else self._hits(self.textured.mesh.vertices, cameras)
            return cameras, still

        return lru_cache(16)(views)

    def _hits(self, vertices: Tensor, cameras: Cameras) -> Hits:
        return self.canvas.hits(vertices, cameras, self.side)

    def vertices(self, params: Offsets) -> Tensor:
        """[Nv, 3] with their offsets, differentiable in them."""
        given = self.textured.mesh.vertices
        return given + params.vertices if self.settings.train_geo else given

    # ---- at the guess, on every rank

    def compute(self, params: Sequence[Offsets], steps: Sequence[int]) -> list[Pull]:
        """What travels back of several window slots."""
        return [self._pull(p, step) for p, step in zip(params, steps, strict=True)]

    def _pull(self, params: Offsets, step: int) -> Pull:
        """The gradient of the squared error to the target. The target stays: what the prior does not follow of a
        render's change is all of it. None, and no number as its loss, where the target is not finite."""
        s, seen = self.settings, self.seen(params, step)
        done = step / max(self.steps - 1, 1)
        strength = s.refine_strength_max + (s.refine_strength_min - s.refine_strength_max) * done
        image = seen.image.detach()
        target = self.targets_of(step, image, strength)
        target = F.interpolate(target, image.shape[-2:], mode="bilinear", align_corners=False).to(image)
        gap, stiff, ones = image - target, self._stiffness(seen), image.new_ones(len(image))
        # A mesh that keeps its shape has nothing to learn outside it.
        inside = gap if s.train_geo else gap * seen.cover
        losses = (stiff / 2 * inside.square().sum()).reshape(1)
        pull = Pull(
            stiff * gap, image, stiff * ones, ones, losses
        )  # a guess is judged by the renders themselves
        return pull if bool(gap.isfinite().all()) else pull.skipped()

    def _stiffness(self, seen: Seen) -> Tensor:
        """The gradient of the loss for a render, per unit of its gap: 2 / (3 area in pixels)."""
        return 2 / 3 / seen.cover.detach().sum().clamp_min(1)

    # ---- at the exact place, on rank 0

    def update(self, state: RefineState, drift: Pull) -> tuple[RefineState, Tensor]:
        """The state after the k updates that one evaluation serves, and the known view's loss [1] of the last. Raises
        FloatingPointError for a drift that is not finite and not to be skipped."""
        step, losses = state.step // self.every, drift.losses
        if not self.skips and not bool(losses.isfinite().all()):
            raise FloatingPointError(
                f"step {state.step}: loss novel: what the prior makes of the views is not finite; "
                "nonfinite=skip goes on without it"
            )
        for _ in range(min(self.every, self.settings.refine_steps - state.step)):
            seen = self.seen(state.params, step)
            self._last.clear()  # its graph serves once
            cheap = self.known(seen.leaves)
            pulled = (seen.image * drift.here(seen.image.detach())).sum()
            leaves = seen.leaves.parts()
            grads = torch.autograd.grad(pulled + cheap, leaves, allow_unused=True)
            found = (torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True))
            state, losses = self._stepped(state, Offsets(*found)), cheap.detach().reshape(1)
        return state, losses

    def seen(self, params: Offsets, step: int) -> Seen:
        """Those of the offsets last asked for are kept: compute, mismatch and update may ask for the same."""
        kept = self._last
        if kept and kept[0] is params and kept[1] == step:
            return kept[2]  # type: ignore[no-any-return]
        leaves = params.map(lambda x: x.detach().requires_grad_(True))
        cameras, still = self._views(step)
        vertices = self.vertices(leaves)
        hits = self._hits(vertices, cameras) if still is None else still
        # The novel views teach the coarse offset alone.
        image, cover = render(self.canvas, leaves.coarse, leaves.fine.detach(), vertices, cameras, hits)
        kept[:] = [params, step, Seen(leaves, image, cover)]
        return kept[2]  # type: ignore[no-any-return]

    @cached_property
    def _last(self) -> list[Any]:
        return []

    def known(self, leaves: Offsets) -> Tensor:
        """The known view's and the regularisers' loss: cheap, taken at the exact state."""
        s, reference = self.settings, self.reference
        loss = sum((x.sum() for x in leaves.parts()), torch.zeros(())) * 0.0
        if reference is not None and (hits := self._known_hits) is not None:
            vertices, size = self.vertices(leaves), reference.image.shape[-1]
            if s.train_geo:
                hits = self.canvas.hits(vertices, reference.camera, size)
            image, cover = render(self.canvas, leaves.coarse, leaves.fine, vertices, reference.camera, hits)
            mask = hits.mask[:, None] & (reference.mask > 0.99)
            area = mask.sum().clamp_min(1)
            loss = s.lambda_known * ((image - reference.image).square() * mask).sum() / area / 3
            if s.train_geo:
                loss = loss + s.lambda_known * (cover - reference.mask).square().sum() / area
        return loss + self._roughness(leaves) if s.train_geo else loss

    def _roughness(self, params: Offsets) -> Tensor:
        """Offsets that differ along edges, and faces that fold more than they did."""
        ends, sides = self.canvas.edges
        start, end = (rows(params.vertices, column) for column in ends.unbind(1))
        stretch = (start - end).square().sum(1).mean()
        inner = sides[sides[:, 1] >= 0]

        def folds(vertices: Tensor) -> Tensor:
            a, b, c = (rows(vertices, corner) for corner in self.textured.mesh.faces.unbind(1))
            normals = F.normalize(torch.linalg.cross(b - a, c - a), dim=1)
            return (rows(normals, inner[:, 0]) * rows(normals, inner[:, 1])).sum(1)

        bends = (folds(self.textured.mesh.vertices) - folds(self.vertices(params))).clamp_min(0)
        bent = bends.mean() if len(bends) else bends.sum()  # none where no two faces share an edge
        return self.settings.lambda_smooth * stretch + self.settings.lambda_normal * bent

    def coast(self, state: RefineState) -> RefineState:
        """A guess of the state after the k updates without a drift: the gradients are what Adam's first moment
        expects."""
        for _ in range(min(self.every, self.settings.refine_steps - state.step)):
            if state.step == 0:
                state = replace(state, step=1)
            else:
                correction = 1.0 - BETAS[0] ** state.step
                state = self._stepped(state, state.exp_avg.map(lambda m, c=correction: m / c))
        return state

    def mismatch(self, state: RefineState, pull: Pull) -> float:
        """Of a state from the guess that its pull was taken at, by the step's own renders."""
        seen = self.seen(state.params, state.step // self.every)
        # White on white, an outline may differ where no pixel does; then the pull is another one all the same.
        moved = pull.mismatch(seen.image.detach())
        if not bool(pull.kappa.any()):  # skipped; so it is of any views that look the same
            return moved
        return moved or float((self._stiffness(seen) - pull.kappa).abs().max())

    def _stepped(self, state: RefineState, grads: Offsets) -> RefineState:
        age, s = state.step + 1, self.settings
        exp_avg = state.exp_avg.map(lambda m, g: first_moment(m, g, BETAS), grads)
        exp_avg_sq = state.exp_avg_sq.map(lambda v, g: second_moment(v, g, BETAS), grads)
        # What the prior makes of a view differs from step to step: falling rates average over it. The known view's own
        # offset has no such noise.
        left = 1.0 - state.step / s.refine_steps
        rates = {"coarse": s.texture_lr * left, "fine": s.texture_lr, "vertices": s.geo_lr * left}

        def moved_field(name: str) -> Tensor:
            theta, m, v = (getattr(record, name) for record in (state.params, exp_avg, exp_avg_sq))
            return moved(theta, m, v, rates[name], age, BETAS, EPS)

        return RefineState(Offsets(*(moved_field(f.name) for f in fields(Offsets))), exp_avg, exp_avg_sq, age)

    def result(self, state: RefineState) -> Textured:
        with torch.no_grad():
            texture = self.canvas.painted(state.params.coarse, state.params.fine).clamp(0, 1)
            mesh = Mesh(self.vertices(state.params), self.textured.mesh.faces)
            return replace(self.textured, mesh=mesh, texture=texture).to("cpu")

    def finished(self, state: RefineState) -> Textured:
        """The result of the last state, recoloured."""
        found = self.result(state)
        return recoloured(found, self.reference.to("cpu"), self.recolour) if self.reference else found


def distance(new: RefineState, old: RefineState) -> float:
    """The largest mean squared difference of the offsets: of colours in 0..1, of vertices in world units."""
    gaps = new.params.map(lambda a, b: (a - b).square().mean() if len(a) else a.sum(), old.params)
    return max(float(gap) for gap in gaps.parts())


def refine_angles(step: int, batch: int, low_rad: float, high_rad: float, seed: int) -> tuple[Tensor, Tensor]:
    """(azimuths, elevations) [V] of one refinement step: round the circle, a function of (seed, step) alone."""
    generator = keyed_generator(seed, step, "refine views")
    turn = (torch.arange(batch) + torch.rand(batch, generator=generator)) * (2 * math.pi / batch)
    return turn, low_rad + (high_rad - low_rad) * torch.rand(batch, generator=generator)
