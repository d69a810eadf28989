"""An asset from Python, watched while it is made.

PYTHONPATH=. python examples/1_asset.py data/cat.png steps=60
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from gs_propeller.app.events import Event, PassDone
from gs_propeller.config import Config, load
from main_propeller import make_asset


def told(event: Event) -> None:
    """A line for every pass, with the mean colour of four sides as they are now."""
    if isinstance(event, PassDone):
        red, green, blue = event.draw([0, 90, 180, 270], 32).mean((0, 2, 3)).tolist()
        print(f"step {event.step} of {event.steps}: mean colour {red:.2f} {green:.2f} {blue:.2f}")


def main(words: Sequence[str]) -> Config:
    """words: a picture, then options as on the command line. Returns the configuration that was used."""
    config, _ = load(["--config", "configs/image.yaml", f"input={words[0]}", *words[1:]])
    asset = make_asset(config, quiet=True, on_event=told)
    print(len(asset.state.params), "Gaussians,", len(asset.textured.mesh.faces), "faces")
    print("mesh:", asset.files["glb"])

    # the solution can be looked at from anywhere: azimuths from the input's view, absolute elevations, degrees
    image, alpha = asset.viewer.views(asset.viewer.cameras([0, 120, 240], [0, 20, 0]), size=64)
    print("three views:", tuple(image.shape), f"of which {100 * float(alpha.mean()):.0f} % are covered")
    return config


if __name__ == "__main__":
    main(sys.argv[1:] or ["data/cat.png"])
