"""python -m bench.raster [--quick]: what the CPU rasteriser costs, beside its twin and gsplat's torch code.

Times are the best of several repeats (the median in brackets in the table): other programs on the
machine only ever add to them. A cell is the whole thing, one view: projection, spherical harmonics of
degree 0, sorting, blending; backward goes to every field, from cotangents on image, alpha and depth.
The last line is one JSON object:
{"ms": {"5000@128x1": {"forward", "backward"}, ...}, "speedup_vs_twin", "projection_vs_gsplat"}, where
the key is Gaussians @ px x threads.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gs_propeller.base.camera import Cameras, orbit
from gs_propeller.scenes.gaussians.raster import cpu as raster_cpu
from gs_propeller.scenes.gaussians.raster.render import render
from gs_propeller.scenes.gaussians.state import Gaussians
from tests import raster_twin as twin

CAMERA = orbit([0.3], [0.2], 2.0, math.radians(49.1))
GRAY = torch.full((3,), 0.5)
TWIN_CELL = (1000, 128)  # Gaussians, px: what the twin can do in seconds
PROJECTION_CELL = (5000, 128)

Step = Callable[[], list[Tensor]]  # a forward pass: the tensors to differentiate


def leaves(scene: Gaussians, dtype: torch.dtype = torch.float32) -> Gaussians:
    return scene.map(lambda tensor: tensor.to(dtype, copy=True).requires_grad_())


def timed(forward: Step, inputs: list[Tensor], seconds: float) -> tuple[list[float], list[float]]:
    """ms of every repeat, forward and backward, for about that many seconds; at least 3 repeats."""
    forward_ms: list[float] = []
    backward_ms: list[float] = []
    cotangents: list[Tensor] = []
    end = time.perf_counter() + seconds
    while len(forward_ms) < 4 or time.perf_counter() < end:
        begin = time.perf_counter()
        outputs = forward()
        forward_ms.append(1e3 * (time.perf_counter() - begin))
        if not cotangents:
            generator = torch.Generator().manual_seed(0)
            cotangents = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in outputs]
        begin = time.perf_counter()
        torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True)
        backward_ms.append(1e3 * (time.perf_counter() - begin))
    return forward_ms[1:], backward_ms[1:]  # the first one warms up


def rasteriser(n: int, size: int, threads: int, seconds: float) -> tuple[list[float], list[float]]:
    raster_cpu.set_threads(threads)
    inputs = leaves(twin.ball(n, 0, 0))

    def forward() -> list[Tensor]:
        rendered = render(inputs, CAMERA, size, GRAY, backend="cpu")
        return [rendered.image, rendered.alpha, rendered.depth]

    return timed(forward, [tensor for _, tensor in inputs.items()], seconds)


def dense_twin(n: int, size: int) -> tuple[list[float], list[float]]:
    """The twin in float32 and on one thread, as the rasteriser beside it."""
    inputs = leaves(twin.ball(n, 0, 0))
    return timed(
        lambda: list(twin.render(inputs, CAMERA, (size, size), GRAY)[:3]),
        [tensor for _, tensor in inputs.items()],
        0.0,
    )


def gsplat_projection(inputs: Gaussians, camera: Cameras, size: int) -> list[Tensor]:
    """means2d [1, N, 2], conics [1, N, 3], depths [1, N], by gsplat's torch code."""
    from gsplat.cuda import _torch_impl as peer

    covariances, _ = peer._quat_scale_to_covar_preci(
        inputs.quats, inputs.log_scales.exp(), compute_preci=False
    )
    focal = camera.focal_px(size)
    intrinsics = torch.tensor([[[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]]).to(inputs.means)
    _, means2d, depths, conics, _ = peer._fully_fused_projection(
        inputs.means, covariances, camera.w2c.to(inputs.means), intrinsics, size, size, eps2d=0.3
    )
    return [means2d, conics, depths]


def our_projection(inputs: Gaussians, camera: Cameras, size: int) -> list[Tensor]:
    means2d, splats, _, _ = raster_cpu.splat(inputs, [(camera, (size, size), torch.zeros(3))])
    return [means2d, splats[..., :3], splats[..., 7]]


def projection_vs_gsplat(seconds: float) -> dict[str, Any] | None:
    """Values and gradients against gsplat in float64, time against it in float32; None: not installed."""
    try:
        import gsplat  # noqa: F401
    except ImportError:
        return None
    n, size = PROJECTION_CELL
    raster_cpu.set_threads(1)
    scene = twin.ball(n, 0, 0)
    names = ("means", "log_scales", "quats")
    ours, exact, peer = leaves(scene), leaves(scene, torch.float64), leaves(scene)
    values, truth = our_projection(ours, CAMERA, size), gsplat_projection(exact, CAMERA, size)
    value_diff = max(float((a - b).detach().abs().max()) for a, b in zip(values, truth, strict=True))
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(value.shape, generator=generator) for value in values]
    torch.autograd.backward(values, weights)
    torch.autograd.backward(truth, [weight.double() for weight in weights])
    pairs = [(getattr(ours, name).grad, getattr(exact, name).grad) for name in names]
    grad_diff = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)

    total = []
    for project, inputs in ((our_projection, ours), (gsplat_projection, peer)):
        wanted = [getattr(inputs, name) for name in names]
        forward_ms, backward_ms = timed(partial(project, inputs, CAMERA, size), wanted, seconds)
        total.append(min(forward_ms) + min(backward_ms))
    return {
        "max_abs_diff": value_diff,
        "max_grad_rel_diff": grad_diff,
        "ms": round(total[0], 3),
        "gsplat_ms": round(total[1], 3),
        "speedup": round(total[1] / total[0], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.raster", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="1000 and 5000 Gaussians at 128 px only")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    raster_cpu.warm()
    counts, sizes, seconds = (
        ((1000, 5000), (128,), 0.5) if quick else ((1000, 5000, 20000), (128, 256, 512), 2.0)
    )

    table = Table("Gaussians", "px", "threads", "forward ms", "backward ms", "sum ms", title="CPU rasteriser")
    ms: dict[str, dict[str, float]] = {}
    for n in counts:
        for size in sizes:
            for threads in (1, 2):
                both = rasteriser(n, size, threads, seconds)
                forward, backward = (min(times) for times in both)
                cells = [f"{min(times):.2f} ({statistics.median(times):.2f})" for times in both]
                table.add_row(str(n), str(size), str(threads), *cells, f"{forward + backward:.2f}")
                ms[f"{n}@{size}x{threads}"] = {"forward": round(forward, 3), "backward": round(backward, 3)}

    n, size = TWIN_CELL
    twin_ms = sum(min(times) for times in dense_twin(n, size))
    ours_ms = sum(ms[f"{n}@{size}x1"].values())
    table.add_section()
    table.add_row(f"{n} (dense torch twin)", str(size), "1", "", "", f"{twin_ms:.0f}")
    projection = projection_vs_gsplat(seconds)
    if projection:
        n, size = PROJECTION_CELL
        table.add_row(f"{n} (projection alone)", str(size), "1", "", "", f"{projection['ms']:.2f}")
        table.add_row(f"{n} (gsplat's projection)", str(size), "1", "", "", f"{projection['gsplat_ms']:.2f}")
    console = Console()
    console.print(table)
    if projection is None:
        console.print("gsplat is not installed: the projection was not compared (pip install gsplat==1.5.3)")
    result = {"ms": ms, "speedup_vs_twin": round(twin_ms / ours_ms, 1), "projection_vs_gsplat": projection}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
