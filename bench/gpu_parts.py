"""The parts of bench.gpu: each measures one thing on a device and a prior, and returns its figures by row.

As a script it is one of the two ranks that share a device.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.scaling import message_s, middle
from gs_propeller.app.asset import scene_of, travellers
from gs_propeller.app.config import Config, updated
from gs_propeller.app.devices import device_of
from gs_propeller.app.guides import Priors, load_view_prior
from gs_propeller.app.log import quiet_libraries
from gs_propeller.base.camera import orbit
from gs_propeller.base.errors import UserError
from gs_propeller.distil.phases import Distilled
from gs_propeller.distil.pull import Pull
from gs_propeller.pictures.picture import load_picture
from gs_propeller.scenes.gaussians.raster.render import BACKENDS, render
from gs_propeller.scenes.gaussians.state import Gaussians, State
from gs_propeller.solver.launcher import launch
from gs_propeller.solver.ranks import Ranks
from guidance.zero123 import Zero123
from tests import raster_twin as twin

TWIN_SIZE = (16, 16)  # one tile: backends differ in which Gaussians a tile lists

Figures = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What the parts measure on. batches: views a step; windows: slots; repeats: of each timing."""

    config: Config
    prior: Zero123
    batches: tuple[int, ...]
    windows: tuple[int, ...]
    repeats: int
    profile: Path | None

    @property
    def device(self) -> torch.device:
        return self.prior.device

    def task(self, batch: int, slots: int = 1) -> Distilled:
        config = updated(self.config, {"batch_size": batch, "batch_slots": slots})
        return scene_of(config, load_picture(config.input), Priors(self.prior, None))

    def state(self) -> State:
        return self.task(1).first(self.device)

    def ms(self, call: Callable[[], object]) -> float:
        """Median of a call, the device's work included."""

        def whole() -> None:
            call()
            if self.device.type == "cuda":
                torch.cuda.synchronize()

        return round(1e3 * middle(whole, self.repeats), 3)


def memory_mib(bench: Bench, call: Callable[[], object]) -> float | None:
    """Peak of the device's memory in a call, weights included; None on a CPU."""
    if bench.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return round(torch.cuda.max_memory_allocated() / 2**20, 1)


# --- parts: each returns its figures ---


def backends(bench: Bench) -> Figures:
    """Largest difference of picture and gradients from the twin's; ms forward and backward of the largest batch."""
    small = twin.ball(60, 0, 1, scale=(0.02, 0.2))
    views = orbit([0.3, 2.1], [0.2, -0.4], 2.0, 0.857)
    grey = torch.full((3,), 0.5)
    exact = small.map(lambda x: x.double().requires_grad_())
    truth = twin.render(exact, views, TWIN_SIZE, grey)[0]
    weights = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    truth.backward(weights.double())
    found: Figures = {}
    for name in BACKENDS:
        device = torch.device("cpu") if name == "cpu" else bench.device
        try:
            ours = leaves(small, device)
            image = render(ours, views.to(device), TWIN_SIZE, grey.to(device), backend=name).image
        except (UserError, ImportError, RuntimeError, OSError) as error:
            found[name] = {"skipped": str(error).strip().splitlines()[0]}
            continue
        image.backward(weights.to(device))
        pairs: Any = zip(ours.items(), exact.items(), strict=True)
        grads = [(a.grad.cpu(), b.grad) for (_, a), (_, b) in pairs if a.numel()]
        found[name] = {
            "image_error": float((image.detach().cpu() - truth.detach()).abs().max()),
            "gradient_error": max(float((a - b).abs().max() / b.abs().max()) for a, b in grads),
            "ms": bench.ms(partial(drawn, bench, name, device)),
        }
    return found


def leaves(scene: Gaussians, device: torch.device) -> Gaussians:
    return scene.map(lambda x: x.detach().to(device, copy=True).requires_grad_())


def drawn(bench: Bench, backend: str, device: torch.device) -> None:
    """The asset's Gaussians, as many views as the largest batch, forward and backward."""
    views = max(bench.batches)
    cameras = orbit([6.28 * k / views for k in range(views)], [0.2] * views, 2.0, 0.857).to(device)
    side = bench.config.render_size or bench.prior.size_px
    white = torch.ones(3, device=device)
    render(leaves(bench.state().params, device), cameras, side, white, backend=backend).image.sum().backward()


def unet_inputs(bench: Bench, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the UNet is given for a guided step: twice the views."""
    unet, (channels, side, _) = bench.prior.unet, bench.prior.latent_shape
    shape = (2 * batch, 2 * channels, side, side)
    options = {"device": bench.device, "dtype": bench.prior.dtype}
    latents = torch.randn(shape, **options)  # type: ignore[call-overload]
    tokens = torch.randn(2 * batch, 1, unet.config.cross_attention_dim, **options)  # type: ignore[call-overload]
    return latents, torch.full((2 * batch,), 500, device=bench.device), tokens


def bare(prior: Zero123, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    with torch.no_grad():
        prior.unet(*inputs)


def encoded(prior: Zero123, images: Tensor) -> None:
    """Forward and backward."""
    prior.encode(images.requires_grad_()).float().sum().backward()


def unless_full(row: Callable[[], Figures]) -> Figures:
    """A row, or that it does not fit the device's memory."""
    try:
        return row()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"skipped": "out of memory"}


def drift(bench: Bench) -> Figures:
    return {f"batch {batch}": unless_full(partial(drift_row, bench, batch)) for batch in bench.batches}


def drift_row(bench: Bench, batch: int) -> Figures:
    task, state = bench.task(batch), bench.state()
    images = torch.rand(batch, 3, bench.prior.size_px, bench.prior.size_px, device=bench.device)
    whole = partial(task.compute, [state.params], [0])
    drift_ms = bench.ms(whole)
    floor_ms = bench.ms(partial(bare, bench.prior, unet_inputs(bench, batch)))
    return {
        "drift_ms": drift_ms,
        "unet_ms": floor_ms,
        "over_floor": round(drift_ms / floor_ms, 3),
        "vae_ms": bench.ms(partial(encoded, bench.prior, images)),
        "peak_mib": memory_mib(bench, whole),
    }


def compiled(bench: Bench) -> Figures:
    """On a prior of its own, so that the other parts keep theirs."""
    prior = Zero123(bench.config.prior, bench.device, bench.prior.dtype)
    prior.tune(compiled=True)
    torch.cuda.empty_cache()
    other, batch = replace(bench, prior=prior), max(bench.batches)
    task, state = other.task(batch), other.state()
    begun_s = time.perf_counter()
    task.compute([state.params], [0])
    first_s = round(time.perf_counter() - begun_s, 1)
    plain, state_of = bench.task(batch), bench.state()
    off = bench.ms(lambda: plain.compute([state_of.params], [0]))
    on = other.ms(lambda: task.compute([state.params], [0]))
    saved_s = 1e-3 * (off - on)
    steps = round(first_s / saved_s) if saved_s > 0 else None
    return {
        f"batch {batch}": {"off_ms": off, "on_ms": on, "first_call_s": first_s, "steps_until_it_pays": steps}
    }


def roll_out(bench: Bench) -> Figures:
    """At the largest batch, the distance of the guess included; mebibytes that a slot's answer has."""
    task, state = bench.task(max(bench.batches)), bench.state()
    (pull,) = task.compute([state.params], [0])
    assert isinstance(pull, Pull)
    answer = sum(part.numel() * 4 for part in pull.parts())
    return {
        "the asset's size": {
            "gaussians": len(state),
            "roll_out_ms": bench.ms(lambda: (task.mismatch(state, pull), task.update(state, pull))),
            "guess_ms": bench.ms(lambda: task.coast(state)),
            "answer_mib": round(answer / 2**20, 3),
        }
    }


def window(bench: Bench) -> Figures:
    """bound: serial steps' time over a pass's, roll-out and distances included, every step of it accepted."""
    cheap = next(iter(roll_out(bench).values()))
    found: Figures = {}
    for batch in [b for b in (1, 2, 4) if b <= max(bench.batches)]:
        serial = bench.ms(partial(bench.task(batch).compute, [bench.state().params], [0]))
        for slots in bench.windows:
            row = partial(window_row, bench, batch, slots, serial, cheap)
            found[f"batch {batch}, window {slots}"] = unless_full(row)
    return found


def window_row(bench: Bench, batch: int, slots: int, serial_ms: float, cheap: Figures) -> Figures:
    whole = partial(bench.task(batch, slots).compute, [bench.state().params] * slots, range(slots))
    together = bench.ms(whole)
    a_pass = together + slots * (cheap["roll_out_ms"] + cheap["guess_ms"])
    return {
        "slot_ms": round(together / slots, 3),
        "serial_ms": serial_ms,
        "drift_gain": round(slots * serial_ms / together, 3),
        "bound": round(slots * (serial_ms + cheap["roll_out_ms"]) / a_pass, 3),
        "peak_mib": memory_mib(bench, whole),
    }


def floor(bench: Bench) -> Figures:
    """Repeats of one and the same drift, a few steps into a run."""
    task, state = bench.task(max(bench.batches)), bench.state()

    def pulled(at: State, step: int) -> Pull:
        (found,) = task.compute([at.params], [step])
        assert isinstance(found, Pull)
        return found

    for step in range(3):
        state, _ = task.update(state, pulled(state, step))
    again = [pulled(state, 3) for _ in range(max(2, bench.repeats))]
    first = again[0].pull
    worst = max(float((other.pull - first).norm() / first.norm()) for other in again[1:])
    states = [task.update(state, pull)[0] for pull in again]
    apart = max(task.mismatch(other, pulled(states[0], 4)) for other in states[1:])
    return {
        "one drift repeated": {
            "pull_relative": worst,
            "distance_after_an_update": apart,
            "shipped_threshold": bench.config.threshold,
            "bitwise_equal": worst == 0.0,
        }
    }


def ranks(bench: Bench) -> Figures:
    batch = max(bench.batches)
    with tempfile.TemporaryDirectory() as folder:
        brief = Path(folder) / "brief.json"
        config = updated(bench.config, {"batch_size": batch}).flat()
        brief.write_text(json.dumps({"config": config, "repeats": bench.repeats}))
        code = launch([__file__, str(brief)], ranks=2)
        if code:
            raise RuntimeError(f"the ranks ended with exit code {code}")
        two = float((brief.with_name("ms")).read_text())
    task, params = bench.task(batch, 2), [bench.state().params] * 2
    one = bench.ms(lambda: task.compute(params, [0, 1]))
    message = round(1e3 * message_s(bench.config.num_points), 3)
    return {
        f"batch {batch}, 2 slots": {
            "two_ranks_ms": two,
            "one_process_ms": one,
            "gain": round(one / two, 3),
            "message_ms": message,
        }
    }


def shared(brief: Path) -> None:
    """One of the two ranks that share the device."""
    quiet_libraries()
    given = json.loads(brief.read_text())
    config = Config(**given["config"])
    device = device_of(config)
    bench = Bench(
        config,
        load_view_prior(config, device, config.prior),
        (config.batch_size,),
        (),
        given["repeats"],
        None,
    )
    task, state = bench.task(config.batch_size), bench.state()
    with Ranks(device, timeout_s=300.0, kinds=travellers(config)) as group:
        if group.rank > 0:
            group.serve(lambda job: task.compute)
            return
        group.begin(0, task.compute)
        brief.with_name("ms").write_text(str(bench.ms(lambda: list(group.evaluate([state, state], [0, 1])))))


def profile(bench: Bench) -> Figures:
    from torch import profiler

    assert bench.profile is not None
    task, state = bench.task(max(bench.batches)), bench.state()
    on_gpu = bench.device.type == "cuda"
    activities = [profiler.ProfilerActivity.CPU] + ([profiler.ProfilerActivity.CUDA] if on_gpu else [])
    task.compute([state.params], [0])
    with profiler.profile(activities=activities) as record:
        task.compute([state.params], [1])
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    bench.profile.parent.mkdir(parents=True, exist_ok=True)
    bench.profile.write_text(record.key_averages().table(sort_by=key, row_limit=40))
    return {"written": {"file": str(bench.profile)}}


PARTS = {
    "backends": backends,
    "drift": drift,
    "compiled": compiled,
    "roll-out": roll_out,
    "window": window,
    "floor": floor,
    "ranks": ranks,
    "profile": profile,
}


if __name__ == "__main__":
    shared(Path(sys.argv[1]))
