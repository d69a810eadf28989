"""`propeller serve`: the server's command line.

    propeller serve --port 8017 steps=200

Options as key=value hold for every order where it says nothing else.
"""

from __future__ import annotations

import argparse
import ipaddress
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gs_propeller.app.config import Config, load, updated
from gs_propeller.app.events import Event
from gs_propeller.base.errors import UserError
from gs_propeller.places import install
from gs_propeller.studio.address import address
from gs_propeller.studio.queue import PICTURE, Make, Queue

if TYPE_CHECKING:
    from gs_propeller.app.guides import Priors
    from gs_propeller.app.job import Asset

PORT = 8017
PATIENCE_S = 5  # after Ctrl-C, with clients that wait for an asset


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until Ctrl-C; the exit code, 2 for bad arguments."""
    parser = argparse.ArgumentParser("propeller serve", description=__doc__)
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on; this machine's own alone"
    )
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--waiting", type=int, default=16, help="most orders in the line")
    parser.add_argument("--limit-s", type=float, default=600.0, help="longest time at work on one, s")
    parser.add_argument("--most-mb", type=float, default=20.0, help="of a picture, million bytes")
    parser.add_argument("--most-mpx", type=float, default=40.0, help="of a picture, million pixels")
    parser.add_argument(
        "options", nargs="*", metavar="key=value", help="of every order; propeller --help lists them"
    )
    asked = parser.parse_args(argv)
    lacking = [name for name in ("fastapi", "uvicorn", "python_multipart") if not find_spec(name)]
    try:
        if lacking:
            raise UserError(f"propeller serve needs {', '.join(lacking)}: {install('app')}")
        address([f"host={asked.host}", f"port={asked.port}"], PORT)
        make = maker(asked.options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    import uvicorn

    from gs_propeller.studio.server import Limits, build

    own, shown = _loopback(asked.host), f"[{asked.host}]" if ":" in asked.host else asked.host
    if not own:
        print(
            f"note: whoever reaches {asked.host} can have assets made here, unasked for a name",
            file=sys.stderr,
        )
    # of "[::1]:8017" the middleware sees what stands before the first colon; no name begins so
    hosts = (*Limits.hosts, shown.split(":")[0]) if own else ("*",)
    limits = Limits(int(asked.most_mb * 1e6), int(asked.most_mpx * 1e6), hosts=hosts)
    app = build(Queue(make, asked.waiting, asked.limit_s), limits)
    print(f"assets at http://{shown}:{asked.port}/generate, how at /docs; Ctrl-C ends it", flush=True)
    uvicorn.run(
        app, host=asked.host, port=asked.port, log_level="warning", limit_concurrency=128,
        timeout_graceful_shutdown=PATIENCE_S,
    )  # fmt: skip
    return 0


def maker(pairs: Sequence[str]) -> Make:
    """What makes an order's asset, with these options where it says nothing else. The priors stay loaded. Raises
    UserError for a bad option."""
    own = [
        pair.split("=", 1)[0]
        for pair in pairs
        if pair.split("=", 1)[0] in ("input", "prompt", "outdir", "name")
    ]
    if own:
        raise UserError(f"{own[0]}= is each order's own")
    pictured, _ = load(["--config", "configs/image.yaml", *pairs, "ranks=1", "turntable_frames=0"])
    said, _ = load(["--config", "configs/text.yaml", *pairs, "ranks=1", "turntable_frames=0"])
    held: dict[str, Any] = {}

    def make(options: Mapping[str, Any], folder: Path, listen: Callable[[Event], None]) -> bytes:
        from gs_propeller.app.events import Audience
        from gs_propeller.app.first_stage import make_assets

        given = (folder / PICTURE).exists()
        config = updated(pictured if given else said, dict(options))
        config = config.but(input=str(folder / PICTURE) if given else "", outdir=str(folder), name="asset")
        assets: list[Asset] = []
        priors = _priors(config, held) if config.loss == "sds" else None
        make_assets([config], Audience(listen), assets, priors)
        return assets[0].files["glb"].read_bytes()

    return make


def _priors(config: Config, held: dict[str, Any]) -> Priors:
    """Those that the order needs, of the held ones, which others join."""
    from gs_propeller.app.devices import device_of
    from gs_propeller.app.guides import Priors, load_priors, picture_of
    from gs_propeller.app.log import quiet_libraries

    quiet_libraries()
    picture_of(config)  # what is wrong with it is said before anything is loaded
    if config.input and "view" not in held:
        held["view"] = load_priors(config.but(prompt=""), device_of(config)).zero123
    if config.prompt and "text" not in held:
        held["text"] = load_priors(config.but(input=""), device_of(config)).text
    return Priors(held["view"] if config.input else None, held["text"] if config.prompt else None)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
