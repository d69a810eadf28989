"""What the program needs of a kind of scene: what travels, what is solved, seen and meshed, and how it starts from
another.

V views, S their side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from gs_propeller.app.config import Config, Sections
from gs_propeller.base.camera import Cameras
from gs_propeller.distil.distillation import Distillation
from gs_propeller.mesh.surface import Mesh
from gs_propeller.scenes.volume import Volume

PINHOLE = 4  # voxels: what one kind hands to another has no hole in the wall of a cavity up to twice as wide
Silhouettes = Callable[[Mesh], float]  # how well a mesh fits the renders' alphas, higher is better


class Kind(NamedTuple):
    """size: what it is that the log counts. params, gradients: the classes of what travels. read: a state from a
    checkpoint's tensors. scene(sections, the fields that all kinds share). views(config, params, cameras, size) ->
    (image [V, 3, S, S] over white, alpha [V, 1, S, S]). mesh(config, params on the CPU, silhouettes). warm: compiles
    the CPU's kernels. volume(config, params on the CPU, silhouettes): what another kind starts from. started(sections,
    volume): the state of step 0 from one. again(config, params on the CPU, sections): that of the same kind."""

    size: str
    params: Any
    gradients: Any
    read: Callable[[dict[str, Tensor]], Any]
    scene: Callable[[Sections, dict[str, Any]], Distillation]
    views: Callable[[Config, Any, Cameras, int], tuple[Tensor, Tensor]]
    mesh: Callable[[Config, Any, Silhouettes], Mesh]
    warm: Callable[[], None]
    volume: Callable[[Config, Any, Silhouettes], Volume]
    started: Callable[[Sections, Volume], Any]
    again: Callable[[Config, Any, Sections], Any]
