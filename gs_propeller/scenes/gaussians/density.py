"""The cheap part of a step: Adam, then clone, split and prune on their schedule, with lineage.

N Gaussians. Numbers and rules are those of 3DGS as DreamGaussian runs it, differences said where they are.
Also what the solver needs when iterates differ in their rows: a drift re-indexed, an older iterate lifted
to a newer one's rows, and the distance between two.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gs_propeller.base.randomness import normals
from gs_propeller.scenes.gaussians.adam import adam_step, momentum
from gs_propeller.scenes.gaussians.lineage import (
    COPY,
    FIRST_HALF,
    NOBODY,
    SECOND_HALF,
    born,
    is_half,
    match,
    relate,
)
from gs_propeller.scenes.gaussians.settings import AdamSettings, DensifySettings
from gs_propeller.scenes.gaussians.state import Drift, Gaussians, State, Stats, StepStats

MOST_FORGOTTEN = 0.1  # share of an iterate's rows that may have no relative in another by pruning alone
SPLIT_SHRINK = 0.8 * 2  # a half's scale is its parent's over this (3DGS, N = 2)


def update(state: State, drift: Drift, adam: AdamSettings, density: DensifySettings, seed: int) -> State:
    """One step on: the drift re-indexed, Adam, statistics, then density control where the schedule has it.

    Statistics count from step 0 on, as in 3DGS; DreamGaussian's first densification sees one step only.
    """
    drift = reindex(drift, state)
    return stepped(state, drift.grads, drift.stats, adam, density, seed)


def stepped(
    state: State, grads: Gaussians, stats: StepStats, adam: AdamSettings, density: DensifySettings, seed: int
) -> State:
    """`update` with gradients and statistics that have the state's rows."""
    state = adam_step(state, grads, adam)
    state = replace(state, stats=state.stats.add(stats))
    if density.densify_from <= state.step <= density.densify_until:
        if state.step % density.densify_every == 0:
            state = densify_and_prune(state, density, seed)
        if state.step % density.opacity_reset_every == 0:
            state = reset_opacity(state, density.reset_opacity)
    return state


def coast(state: State, adam: AdamSettings, density: DensifySettings, seed: int) -> State:
    """A guess of the next state without a drift: the same update, momentum for a gradient, nothing seen."""
    guess = Drift(
        momentum(state, adam), StepStats.zeros(state.params), state.lineage, state.params.means.new_zeros(0)
    )
    return update(state, guess, adam, density, seed)


def densify_and_prune(state: State, settings: DensifySettings, seed: int) -> State:
    """Clone, split, prune; statistics start anew. Rows: those kept, copies, first halves, second halves.

    Past max_gaussians the largest gradients come first, equal ones by row. New rows start with zero
    moments. Departure: the screen radius is measured here, where theirs is zeroed before it is compared.
    """
    grads = state.stats.grad2d_sum / state.stats.seen.clamp(min=1.0)
    size = state.params.log_scales.exp().amax(1)
    room = max(0, settings.max_gaussians - len(state))  # each clone and each split adds one row
    chosen = torch.zeros_like(grads, dtype=torch.bool)
    chosen[grads.argsort(descending=True, stable=True)[:room]] = True
    chosen &= grads >= settings.densify_grad_threshold
    cloned = chosen & (size <= settings.split_scale)
    halved = chosen & ~cloned

    kept, copied, parted = (mask.nonzero()[:, 0] for mask in (~halved, cloned, halved))
    children = ((copied, COPY), (parted, FIRST_HALF), (parted, SECOND_HALF))
    grown = _grown(state, kept, children, seed)
    survivors = _rows(grown, _worth_keeping(grown, settings).nonzero()[:, 0])
    return replace(survivors, stats=Stats.zeros(survivors.params))


def _worth_keeping(state: State, settings: DensifySettings) -> Tensor:
    """[N] bool, true for min_gaussians at least, if there are so many."""
    params = state.params
    keep = params.logit_opacities >= _logit(settings.min_opacity)
    keep &= params.log_scales.amax(1) <= math.log(settings.max_scale)
    keep &= state.stats.max_radii <= settings.max_radius
    if int(keep.sum()) < settings.min_gaussians:
        order = params.logit_opacities.argsort(descending=True, stable=True)
        keep[order[: settings.min_gaussians]] = True
    return keep


def split_half(parents: Gaussians, ids: Tensor, seed: int) -> Gaussians:
    """The half that bears an id, of each parent: smaller, its mean drawn from the parent's own Gaussian.

    ids: [N] of the halves. An id knows parent, step and child, so whoever splits this Gaussian at this
    step gets this half: in every pass, on every rank, beside whatever other rows.
    """
    drawn = parents.log_scales.exp() * normals(seed, ids).to(parents.means)
    means = parents.means + (rotations(parents.quats) @ drawn[:, :, None])[:, :, 0]
    return replace(parents, means=means, log_scales=parents.log_scales - math.log(SPLIT_SHRINK))


def rotations(quats: Tensor) -> Tensor:
    """[N, 3, 3] from quaternions [N, 4], wxyz, of any length but 0."""
    w, x, y, z = normalize(quats, dim=1).unbind(1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, 1).reshape(-1, 3, 3)


def reset_opacity(state: State, ceiling: float = 0.01) -> State:
    """No opacity above the ceiling, in 0..1; the moments of the opacities start anew, as in 3DGS."""
    params = state.params
    lowered = params.logit_opacities.clamp(max=_logit(ceiling))
    zeros = torch.zeros_like(lowered)
    return replace(
        state,
        params=replace(params, logit_opacities=lowered),
        exp_avg=replace(state.exp_avg, logit_opacities=zeros),
        exp_avg_sq=replace(state.exp_avg_sq, logit_opacities=zeros),
    )


def reindex(drift: Drift, state: State) -> Drift:
    """The drift at the state's rows: of the same Gaussian, else of its nearest relative, else zero."""
    if _same_rows(drift.lineage, state.lineage):
        return drift
    index = match(state.lineage, drift.lineage)
    found, at = index >= 0, index.clamp(min=0)

    def taken(values: Tensor) -> Tensor:
        mask = found.reshape(-1, *[1] * (values.ndim - 1))
        return torch.where(mask, values[at], torch.zeros((), dtype=values.dtype, device=values.device))

    stats = StepStats(*(taken(getattr(drift.stats, f.name)) for f in fields(StepStats)))
    return Drift(Gaussians.unpack(taken(drift.grads.pack())), stats, state.lineage, drift.losses)


def unproj(old: State, like: State, seed: int) -> Gaussians:
    """The old iterate's parameters at the rows of `like` (Eq. 11): the births between them are replayed.

    A row of like that descends from a row of old is made from it by the same clones and splits. Where old
    went on further its nearest relative stands in as it is, since a split has no inverse; where old
    pruned the Gaussian nothing is known of it, and the row is like's own.
    """
    return _lifted(old, like, *relate(like.lineage, old.lineage), seed)


def _lifted(old: State, like: State, index: Tensor, births: Tensor, seed: int) -> Gaussians:
    """unproj, of what `relate` says of like and old."""
    lifted = Gaussians.unpack(old.params.pack()[index.clamp(min=0)])
    for generation in range(like.lineage.shape[1] - 2, -1, -1):
        own, birth = like.lineage[:, generation].unbind(1)
        halved = (births > generation) & is_half(birth)
        if bool(halved.any()):
            lifted = _where(halved, split_half(lifted, own, seed), lifted)
    return _where(index >= 0, lifted, like.params)


def distance(new: State, old: State, seed: int) -> float:
    """d(new, old)^2 / D of Eq. 14: mean squared difference of all parameters, the older un-projected.

    Adam's moments do not count (App. C). Where the rows differ it is never 0, however alike the lifted
    parameters are: a drift taken at other rows is another drift, and threshold 0 promises the serial run.
    In float64, where a difference of two floats is exact and its square cannot vanish.
    """
    older, least = _older(new, old, seed)
    return max(float((new.params.pack().double() - older.pack().double()).square().mean()), least)


def scaled_distance(new: State, old: State, seed: int, atol: float = 0.01, rtol: float = 0.01) -> float:
    """As an ODE solver weighs errors: the worst field's rms of difference / (atol + rtol |new|).

    Blind to how many parameters a field has and to its unit; otherwise as `distance`.
    """
    older, least = _older(new, old, seed)
    worst = least
    for name, values in new.params.items():
        if values.numel():
            wide = values.double()
            gap = (wide - getattr(older, name).double()) / (atol + rtol * wide.abs())
            error = float(gap.square().mean().sqrt())
            worst = error if math.isnan(error) else max(worst, error)
    return worst


def _older(new: State, old: State, seed: int) -> tuple[Gaussians, float]:
    """The older iterate at the newer one's rows, and the least distance that the two may have: without bound where more
    rows than pruning explains have no relative, since their lineages do not reach back so many births."""
    if _same_rows(new.lineage, old.lineage):
        return old.params, 0.0
    index, births = relate(new.lineage, old.lineage)
    forgotten = (index < 0) & (new.lineage[:, -1, 0] != NOBODY)
    far = int(forgotten.sum()) > MOST_FORGOTTEN * len(forgotten)
    return _lifted(old, new, index, births, seed), math.inf if far else sys.float_info.min


def _same_rows(one: Tensor, other: Tensor) -> bool:
    """Whether two lineages are of the same Gaussians; between densifications it is one and the same tensor."""
    return one is other or torch.equal(one[:, 0, 0], other[:, 0, 0])


def _logit(probability: float) -> float:
    return math.log(probability / (1.0 - probability))


def _where(mask: Tensor, chosen: Gaussians, other: Gaussians) -> Gaussians:
    return chosen.map(lambda a, b: torch.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b), other)


def _rows(state: State, rows: Tensor) -> State:
    """The state's rows of those numbers; itself where they are all."""
    if len(rows) == len(state):  # a mask's numbers go up
        return state
    params, exp_avg, exp_avg_sq = (
        Gaussians.unpack(record.pack()[rows]) for record in (state.params, state.exp_avg, state.exp_avg_sq)
    )
    stats = Stats(*(getattr(state.stats, f.name)[rows] for f in fields(Stats)))
    return State(params, exp_avg, exp_avg_sq, stats, state.lineage[rows], state.step)


def _grown(state: State, kept: Tensor, children: Sequence[tuple[Tensor, int]], seed: int) -> State:
    """Rows kept, then the newborn of each (parents' rows, child): parents' parameters, moved and shrunk for a half; own
    ids, zero moments and statistics."""
    if not any(len(rows) for rows, _ in children):
        return _rows(state, kept)
    old = _rows(state, kept)
    params, lineages = [old.params.pack()], [old.lineage]
    for rows, child in children:
        lineage = born(state.lineage[rows], state.step, child)
        newborn = Gaussians.unpack(state.params.pack()[rows])
        if child != COPY:
            newborn = split_half(newborn, lineage[:, 0, 0], seed)
        params.append(newborn.pack())
        lineages.append(lineage)
    grown, lineage = torch.cat(params), torch.cat(lineages)
    room = len(grown) - len(old)

    def padded(values: Tensor) -> Tensor:
        return torch.cat([values, values.new_zeros(room, *values.shape[1:])])

    exp_avg, exp_avg_sq = (
        Gaussians.unpack(padded(record.pack())) for record in (old.exp_avg, old.exp_avg_sq)
    )
    stats = Stats(*(padded(getattr(old.stats, f.name)) for f in fields(Stats)))
    return State(Gaussians.unpack(grown), exp_avg, exp_avg_sq, stats, lineage, state.step)
