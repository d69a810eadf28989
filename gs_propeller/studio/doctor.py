"""`propeller doctor`: what this machine has, and what is missing, with the command for each.

A finding that stops the program is marked !!, one that it does without --.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from gs_propeller.places import checkout, install, rembg_weights, shipped

FINE, WITHOUT, STOPS = "ok", "--", "!!"


class Finding(NamedTuple):
    """mark: FINE, WITHOUT or STOPS. remedy: the command for it, "" where nothing is to be done."""

    mark: str
    what: str
    remedy: str = ""


def main(argv: Sequence[str] = ()) -> int:
    """Prints the findings; 1 where one of them stops the program, else 0; 2 for arguments."""
    if argv:
        print(f"error: propeller doctor takes no arguments, this is {argv[0]!r}", file=sys.stderr)
        return 2
    worst = 0
    for finding in findings():
        print(
            f"{finding.mark}  {finding.what}" + (f"\n      {finding.remedy}" if finding.remedy else ""),
            flush=True,
        )
        worst |= finding.mark == STOPS
    return int(worst)


def findings() -> Iterator[Finding]:
    """One after the other, as they are found; trying a GPU's rasteriser may take minutes the first time."""
    yield _python()
    yield _program()
    yield from _needed()
    if find_spec("torch"):
        yield from _devices()
        yield from _weights()
    yield from _optional()
    yield from _places()


def _python() -> Finding:
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    said = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    return (
        Finding(FINE, said)
        if fits
        else Finding(STOPS, said, "3.11 to 3.13 is needed: python3.12 -m venv .venv")
    )


def _program() -> Finding:
    try:
        said = f"propeller {version('gs-propeller')}"
    except PackageNotFoundError:
        said = "propeller"
    return Finding(FINE, f"{said}, {'a checkout' if checkout() else 'installed'} in {shipped()}")


def _needed() -> Iterator[Finding]:
    for package, module in (
        ("torch", "torch"), ("numba", "numba"), ("diffusers", "diffusers"), ("transformers", "transformers"),
        ("safetensors", "safetensors"), ("omegaconf", "omegaconf"), ("trimesh", "trimesh"), ("xatlas", "xatlas"),
        ("opencv-python-headless", "cv2"), ("pillow", "PIL"), ("imageio-ffmpeg", "imageio_ffmpeg"),
    ):  # fmt: skip
        if find_spec(module) is None:
            yield Finding(STOPS, f"{package} is missing", install())


def _devices() -> Iterator[Finding]:
    import torch

    from gs_propeller.solver.launcher import core_share

    build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    yield Finding(FINE, f"torch {torch.__version__}, built {build}")
    yield Finding(FINE, f"{core_share(1)} CPU threads")
    if torch.backends.mps.is_available():
        yield Finding(FINE, "an Apple GPU: device=mps has the prior on it (untested), the CPU draws")
    if not torch.cuda.is_available():
        built = "torch sees none" if torch.version.cuda else "this torch is built for CPUs"
        remedy = (
            ""
            if torch.version.cuda
            else "with one: pip install --force-reinstall torch, on Linux a CUDA build"
        )
        yield Finding(WITHOUT, f"no CUDA device ({built}): the CPU does it all", remedy)
        return
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        yield Finding(FINE, f"cuda:{index} {about.name}, {about.total_memory / 2**30:.0f} GiB")
    yield from _kernels()


def _kernels() -> Iterator[Finding]:
    """Of the GPU's packages, by trying them."""
    import torch

    from gs_propeller.mesh.raster import mesh_trouble
    from gs_propeller.scenes.gaussians.raster.cuda import PACKAGES
    from gs_propeller.scenes.gaussians.raster.ready import trouble

    for backend in PACKAGES:
        wrong = trouble(backend)
        yield Finding(WITHOUT if wrong else FINE, wrong or f"raster backend '{backend}' draws")
    wrong = mesh_trouble(torch.device("cuda"))
    yield Finding(WITHOUT if wrong else FINE, wrong or "meshes are drawn by nvdiffrast")


def _optional() -> Iterator[Finding]:
    yield _rembg()
    for module, use, remedy in (
        ("gradio", "the page: propeller app", install("app")),
        ("viser", "the viewer: propeller view", install("app")),
        ("fastapi", "the server: propeller serve", install("app")),
        ("gsply", "compressed=spz", "pip install gsply"),
        ("pillow_heif", "HEIC pictures", "pip install pillow-heif"),
    ):
        if find_spec(module):
            yield Finding(FINE, f"{module}: {use}")
        else:
            yield Finding(WITHOUT, f"{module} is not installed: {use}", remedy)


def _rembg() -> Finding:
    use = "cuts photographs out better than GrabCut does"
    if not find_spec("rembg"):
        return Finding(WITHOUT, f"rembg is not installed: {use}", install("rembg"))
    if not rembg_weights().is_file():
        return Finding(
            WITHOUT, f"rembg lacks its model, {rembg_weights()}: {use}", "rembg i PICTURE.png OUT.png"
        )
    return Finding(FINE, f"rembg: {use}")


def _weights() -> Iterator[Finding]:
    from guidance.folder import POCKET, POCKET_TEXT, TEXT, ZERO123, cached, missing

    for folder, family in ((POCKET, ZERO123), (POCKET_TEXT, TEXT)):
        lacking = missing(folder, family.parts)
        if lacking:
            yield Finding(
                STOPS, f"{folder} lacks {', '.join(lacking)}", "restore data/, or install the program anew"
            )
        else:
            yield Finding(FINE, f"pocket weights in {folder}")
    for family in (ZERO123, TEXT):
        whole = [hub for hub in family.known if (place := cached(hub)) and not missing(place, family.parts)]
        if whole:
            yield Finding(FINE, f"published weights in the cache: {whole[0]}")
        else:
            yield Finding(
                WITHOUT, f"no published {family.name} weights in the cache", f"hf download {family.known[0]}"
            )


def _places() -> Iterator[Finding]:
    try:
        with tempfile.TemporaryFile(dir=Path.cwd()):
            yield Finding(FINE, f"runs/ can be written in {Path.cwd()}")
    except OSError as error:
        yield Finding(
            WITHOUT, f"{Path.cwd()} cannot be written to ({error.strerror})", "outdir=ANOTHER/FOLDER"
        )
    from gs_propeller.base.kernels import find_place

    find_place()
    kept = os.environ.get("NUMBA_CACHE_DIR")
    yield Finding(
        FINE,
        f"compiled kernels are kept in {kept}" if kept else "compiled kernels are kept beside their source",
    )
