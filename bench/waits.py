"""python -m bench.waits: where the host waits for a GPU in one step, by the line of the project that makes it.

    guess                           one state further without a drift
    evaluation                      one drift: render, prior, what travels
    roll-out                        one update at the exact place, and how far its guess was off
    roll-out with density control   the same where clones, splits and prunes are due

No GPU is needed: the step runs on the tests' pretended one (tests/pretended), with gsplat's stand-in, on a tiny prior.
What is counted does not depend on sizes. Every wait stalls the queue of kernels that keeps a GPU busy. Ends with one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import linecache
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gs_propeller.app.asset import scene_of
from gs_propeller.app.config import load
from gs_propeller.app.devices import device_of
from gs_propeller.app.guides import load_priors, picture_of
from gs_propeller.app.log import quiet_libraries
from gs_propeller.distil.phases import Distilled
from gs_propeller.scenes.gaussians.state import State
from tests import tiny_prior
from tests.pretended import device as pretended_device
from tests.pretended.packages import packages

Waits = Counter[tuple[str, str]]  # (file:line, kind) -> how often
SMALL = ["num_points=150", "batch_size=2", "reference_size=32", "densify_from=2", "densify_every=2", "densify_until=9",
         "densify_grad_threshold=0.001", "max_gaussians=200", "window=2"]  # fmt: skip


def step_waits(scene: Distilled, state: State) -> dict[str, Waits]:
    """Of a scene on the pretended device and its first state: what each part of a step waits for, by place."""
    found: dict[str, Waits] = {}

    def of(part: str, call: Callable[[], Any]) -> Any:
        with pretended_device.counted() as found[part]:
            return call()

    def rolled_out(before: State, drift: Any) -> State:
        scene.mismatch(before, drift)
        return scene.update(before, drift)[0]

    def evaluated(at: State) -> Any:
        return scene.compute([at.params], [at.step // scene.settings.updates_per_evaluation])[0]

    of("guess", lambda: scene.coast(state))
    drift = of("evaluation", lambda: evaluated(state))
    state = of("roll-out", lambda: rolled_out(state, drift))
    drift = evaluated(state)
    of("roll-out with density control", lambda: rolled_out(state, drift))
    return found


def shown(console: Console, part: str, found: Waits) -> None:
    table = Table("waits", "for", "at", "line", title=f"{part}: {sum(found.values())} waits")
    for (place, kind), count in sorted(found.items()):
        file, _, line = place.rpartition(":")
        text = linecache.getline(str(pretended_device.ROOT / file), int(line or 0)).strip()
        table.add_row(str(count), kind, place, text[:70])
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="python -m bench.waits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("options", nargs="*", help="options of the run, as in updates_per_evaluation=3")
    given = parser.parse_args(words)
    quiet_libraries()
    with tempfile.TemporaryDirectory() as scratch, pretended_device.pretended(), packages("gsplat"):
        prior = tiny_prior.write(Path(scratch))
        line = [
            "--config",
            "configs/image.yaml",
            "input=data/cat.png",
            "elevation=0",
            f"prior={prior}",
            *SMALL,
            *given.options,
        ]
        config, _ = load(line)
        device = device_of(config)
        scene = scene_of(config, picture_of(config), load_priors(config, device))
        found = step_waits(scene, scene.first(device))
    console = Console(width=150)
    for part, waits in found.items():
        shown(console, part, waits)
    print(
        json.dumps(
            {part: {f"{place} {kind}": n for (place, kind), n in w.items()} for part, w in found.items()}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
