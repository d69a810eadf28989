"""Which rasteriser of CUDA tensors works on this machine: its kernels compiled once, and a picture drawn with it.

A trouble is None where a backend works, else one line with what is wrong and the remedy. As a script it tries the
backends that it is given and ends with their troubles as JSON: a process of its own, so that the one that starts the
ranks holds no memory of a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from gs_propeller.base.camera import orbit
from gs_propeller.base.locks import one_at_a_time
from gs_propeller.scenes.gaussians.raster.cuda import (
    INSTALL,
    NO_TOOLKIT,
    PACKAGES,
    has_kernels,
    installed,
    render_gsplat,
    render_inria,
)
from gs_propeller.scenes.gaussians.state import init_ball

FOUND = "PROPELLER_RASTER_TROUBLES"  # in the environment: what the process found that starts the ranks
WAIT_S = 3600.0  # the longest compilation
ROOT = Path(__file__).resolve().parents[3]


def rasteriser(raster: str) -> tuple[str, str | None]:
    """(the backend that draws CUDA tensors where the option raster says so, trouble). With "auto" the first that works;
    where none does that is "cpu", which takes them through the host, and the trouble is why."""
    if raster == "cpu":
        return raster, None
    if raster != "auto":
        return raster, trouble(raster)
    for backend in PACKAGES:
        if trouble(backend) is None:
            return backend, None
    there = [backend for backend, package in PACKAGES.items() if installed(package)]
    return "cpu", trouble((there or list(PACKAGES))[0])


def trouble(backend: str) -> str | None:
    """Of a CUDA backend. Its first call may compile for minutes; ranks that call it at once do so one by one."""
    found = json.loads(os.environ.get(FOUND, "{}"))
    if backend in found:
        return str(found[backend]) if found[backend] else None
    package = PACKAGES[backend]
    if not installed(package):
        return f"raster backend '{backend}' needs the package {package}: {INSTALL[package]}"
    return tried(backend)


@cache
def tried(backend: str) -> str | None:
    """The same of one that is installed; once a process."""
    return attempted(f"raster backend '{backend}'", PACKAGES[backend], lambda: _built_and_drawn(backend))


def attempted(what: str, package: str, attempt: Callable[[], str | None]) -> str | None:
    """The trouble that attempt() returns or raises, by one process at a time: packages that compile themselves at
    their first use delete what another process has built so far."""
    try:
        with one_at_a_time(package, WAIT_S):
            return attempt()
    except Exception as error:  # a compiler's, a loader's or the device's: whatever it is, it does not work
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"{what} does not work here ({reason}); install it anew: {INSTALL[package]}"


def _built_and_drawn(backend: str) -> str | None:
    if backend == "gsplat" and not has_kernels():
        return NO_TOOLKIT
    draw(backend)
    return None


def draw(backend: str) -> None:
    """A picture of a few Gaussians on the current GPU, forward and backward. Raises what the package does."""
    ball = init_ball(16, 0.5, 0, 0, "cuda").params.map(lambda x: x.requires_grad_())
    group = orbit([0.0], [0.0], 2.0, 0.857).to("cuda"), (16, 16), torch.ones(1, 3, device="cuda")
    ((image, *_),) = {"gsplat": render_gsplat, "inria": render_inria}[backend](ball, [group])
    image.sum().backward()
    if not bool(image.isfinite().all()):
        raise RuntimeError("it draws numbers that are not finite")


def try_apart(raster: str) -> None:
    """Has another process try what this option means, and keeps the troubles where ranks find them. Once is enough."""
    backends = [] if raster == "cpu" else list(PACKAGES) if raster == "auto" else [raster]
    if FOUND in os.environ or not backends:
        return
    command = [sys.executable, "-m", __spec__.name, *backends]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, env=environment)
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):  # the package took the process with it
        found = {
            backend: f"raster backend '{backend}' ends the process that draws with it (exit code {done.returncode})"
            for backend in backends
        }
    os.environ[FOUND] = json.dumps(found)


if __name__ == "__main__":
    print(json.dumps({name: trouble(name) for name in sys.argv[1:]}))
