"""Who descends from whom: matching the rows of two iterates that split at different places.

N Gaussians, A generations. lineage [N, A, 2] int64: [:, 0] is (own id, own birth), [:, 1] the same of the
parent, and so on; (-1, -1) before the first generation. birth = 4 step + child: the number of updates done
when it was born, and child 0 for a clone's copy, 1 and 2 for the two halves of a split; -1 for the first
Gaussians. An id is a hash of (parent's id, birth), 63 bits, so iterates that never met agree on it. In a
clone the original keeps its id and the copy is its child; in a split the parent's row goes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gs_propeller.base.randomness import splitmix64

NOBODY = -1
COPY, FIRST_HALF, SECOND_HALF = 0, 1, 2
POSITIVE = (1 << 63) - 1  # mask: ids are never negative, so NOBODY is none of them


def founders(rows: int, generations: int) -> Tensor:
    """[N, A, 2] lineage of N Gaussians that have no parents."""
    lineage = torch.full((rows, generations, 2), NOBODY, dtype=torch.int64)
    lineage[:, 0, 0] = splitmix64(torch.arange(rows)) & POSITIVE
    return lineage


def born(parents: Tensor, step: int, child: int) -> Tensor:
    """[M, A, 2] lineage of one child of each parent, [M, A, 2]. Its oldest generation is forgotten."""
    birth = torch.full_like(parents[:, 0, 0], 4 * step + child)
    own = splitmix64(parents[:, 0, 0] ^ splitmix64(birth)) & POSITIVE
    return torch.cat([torch.stack([own, birth], 1)[:, None], parents[:, :-1]], 1)


def is_half(births: Tensor) -> Tensor:
    """Whether a birth was a split: bool, of the same shape."""
    return (births >= 0) & (births % 4 != COPY)


def match(target: Tensor, source: Tensor) -> Tensor:
    """[N_target] the source row that stands for each target row, -1 where none does: see `relate`."""
    return relate(target, source)[0]


def relate(target: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """The source row that stands for each target row, and the births that lie between them.

    target [N, A, 2], source [M, A, 2]. In this order: the row with the same id; the nearest ancestor that
    is a row of the source; where the source went on and the target did not, a row that descends from the
    target row; a row that shares the nearest ancestor. Of several equals, the first row of the source.
    Returns index [N], -1 where no row is related, and births [N]: how many generations the target row is
    below the source row in the first two cases, else 0.
    """
    index = torch.full_like(target[:, 0, 0], NOBODY)
    births = torch.zeros_like(index)
    if not len(source):
        return index, births
    depths = range(target.shape[1])
    sorted_ids = [source[:, depth, 0].sort(stable=True) for depth in range(source.shape[1])]
    pairs = [(own, 0) for own in depths] + [
        (own, other) for own in depths for other in range(1, len(sorted_ids))
    ]
    for own, other in pairs:
        if bool((index >= 0).all()):
            break
        wanted = target[:, own, 0].contiguous()
        ids, rows = sorted_ids[other]
        at = torch.searchsorted(ids, wanted).clamp(max=len(ids) - 1)
        hit = (index < 0) & (wanted != NOBODY) & (ids[at] == wanted)
        index = torch.where(hit, rows[at], index)
        if other == 0:
            births = torch.where(hit, own, births)
    return index, births
