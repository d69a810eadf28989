"""python -m bench.gpu: everything that is to be known of one GPU, with a full-size Zero-1-to-3 of random weights.

    backends   every splatting backend: how far from the slow twin, and ms at the asset's size
    drift      one step's dear part at each batch: whole, its UNet alone (the floor), VAE, render; memory
    compiled   the same after torch.compile, and what the first call cost
    roll-out   the cheap part of a step at the largest batch, and a guess
    window     slots of a window in one batch against one by one: what a single GPU gains
    floor      one drift repeated, and how far apart one update then puts two states: thresholds below are noise
    ranks      two processes sharing the device, and a message between them
    profile    the operators of one drift, only with --profile

Weights are random and time does not depend on them; quality is not measured here, nor is how many steps a pass
accepts, so the window's gain is a bound: the one at full acceptance. A part that fails is named and the others go on.
`--small --device cpu` runs all of it in seconds on a tiny prior, to show that it runs. Ends with one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bench import published
from bench.gpu_parts import PARTS, Bench, Figures
from bench.model import Costs, loop_s, serial_s
from gs_propeller.app.config import load, updated
from gs_propeller.app.devices import device_of
from gs_propeller.app.guides import load_view_prior
from gs_propeller.app.log import quiet_libraries

SMALL = {"num_points": 60, "reference_size": 32, "render_size": 32}  # beside the tiny prior


def modelled(figures: Figures) -> Figures:
    """bench.scaling's model at these costs: 8 devices, 500 steps, 8 and 7 of 8 steps a pass."""
    costs = Costs(
        drift=1e-3 * list(figures["drift"].values())[-1]["drift_ms"],
        message=1e-3 * next(iter(figures["ranks"].values()))["message_ms"],
        **{
            name: 1e-3 * figures["roll-out"]["the asset's size"][f"{name}_ms"]
            for name in ("roll_out", "guess")
        },
    )
    serial = serial_s(costs, 500)
    full, usual = [8] * 62 + [4], [7] * 71 + [3]
    return {
        "costs": asdict(costs),
        "speedup_at_8_full": round(serial / loop_s(costs, full, 500, 8, 8), 3),
        "speedup_at_8_usual": round(serial / loop_s(costs, usual, 500, 8, 8), 3),
    }


def shown(console: Console, title: str, figures: Figures) -> None:
    columns = list(dict.fromkeys(name for row in figures.values() for name in row))
    table = Table(title, *columns)
    for name, row in figures.items():
        values = [row.get(column, "") for column in columns]
        table.add_row(name, *(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values))
    console.print(table)


def described(bench: Bench, begun_s: float) -> Figures:
    """The device and the prior, as they are."""
    parts = {part: getattr(bench.prior, part) for part in ("unet", "vae", "encoder", "projection")}
    weights = {part: sum(p.numel() for p in module.parameters()) for part, module in parts.items()}
    on_gpu = bench.device.type == "cuda"
    return {
        "name": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "memory_mib": torch.cuda.get_device_properties(bench.device).total_memory // 2**20
        if on_gpu
        else None,
        "torch": torch.__version__,
        "precision": str(bench.prior.dtype).removeprefix("torch."),
        "weights": weights,
        "weights_mib": round(sum(weights.values()) * bench.prior.dtype.itemsize / 2**20, 1),
        "write_and_load_s": round(time.perf_counter() - begun_s, 1),
    }


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a tiny prior and few repeats")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--skip", nargs="*", default=[], choices=list(PARTS), help="parts to leave out")
    parser.add_argument("--profile", type=Path, help="file for the profiler's table")
    parser.add_argument("--out", type=Path, default=Path("build/bench/gpu.json"), help="written part by part")
    given = parser.parse_args(words)
    if given.device == "cuda" and not torch.cuda.is_available():
        print(
            "bench.gpu needs a CUDA device and a CUDA build of torch; --small --device cpu only shows that it runs",
            file=sys.stderr,
        )
        return 2
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    quiet_libraries()
    skipped = set(given.skip) | (set() if given.profile else {"profile"})
    with tempfile.TemporaryDirectory() as scratch:
        return measured(given, Path(scratch), skipped)


def measured(given: argparse.Namespace, scratch: Path, skipped: set[str]) -> int:
    """Every part in turn; 1 where one of them failed."""
    begun_s, console = time.perf_counter(), Console(width=130)
    dtype = torch.float16 if given.device == "cuda" else torch.float32
    folder = published.write(scratch / "zero123", dtype=dtype, small=given.small)
    config, _ = load(["--config", "configs/zero123_xl.yaml", "input=data/cat.png", "nonfinite=skip"])
    config = updated(config, {"prior": str(folder), "device": given.device, **(SMALL if given.small else {})})
    prior = load_view_prior(config, device_of(config), str(folder))
    batches, windows = ((1, 2), (2, 3)) if given.small else ((1, 4, 16), (2, 4, 8, 16))
    bench = Bench(config, prior, batches, windows, 2 if given.small else 10, given.profile)
    figures: Figures = {"device": described(bench, begun_s)}
    console.print(f"{figures['device']['name']}, {figures['device']['weights_mib']} MiB of weights")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in [part for part in PARTS if part not in skipped]:
        try:
            figures[name] = PARTS[name](bench)
            shown(console, name, figures[name])
        except Exception as error:  # a GPU's time is too dear for one part to cost the others
            traceback.print_exc()
            figures[name] = {"failed": str(error).strip().splitlines()[:1]}
            failed.append(name)
        given.out.write_text(json.dumps(figures, indent=1))
    if not failed and not {"drift", "ranks", "roll-out"} & skipped:
        figures["modelled"] = modelled(figures)
        shown(console, "modelled", {"8 devices": figures["modelled"]})
    given.out.write_text(json.dumps(figures, indent=1))
    print(json.dumps(figures))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
