"""What the pocket priors' trainings share: options, log, checkpoints, the schedule and the loop.

B batch, S picture side in pixels. Every step's random numbers are a function of (seed, step), so that a run goes on
from its folder by the same command.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gs_propeller.base.errors import UserError
from guidance.pocket.stream import SHARDS_FIRST, in_bf16, newest_shard, save

LOG_EVERY = 100
WARM_UP_STEPS, COOL_DOWN_STEPS = 200, 5000  # of the learning rate
# The averaged weights are those of the last thirtieth of all steps, the last tenth of a run's own or of a cool-down's.
AVERAGE_SHARE, RUN_SHARE = 30, 10
CHECKPOINT = "unet.safetensors"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's normalisation
FOCUS_FROM = 0.85  # of all levels
# Of all: where a sampler's second step of two is, and below a distillation's (t_min), which makes clearer assets by a
# prior that believes its renders.
GUESSED_LEVELS = 0.3, 0.56
STEPS_BEFORE = 100_000  # of a UNet that has been trained: the noise levels' warm-up is over
DROP = 0.1  # share of samples that learn the unconditional score


@dataclass(frozen=True)
class Options:
    """One training. seed keys every random number; minutes bound this call, not the training, which ends at step
    `until`; start: a prior's folder to take the first weights from, where out has no checkpoint; workers are processes
    that draw the stream's shards ahead."""

    out: Path
    minutes: float
    until: int = 1_000_000
    start: Path | None = None
    seed: int = 0
    batch: int = 64
    lr: float = 6e-4
    threads: int = 1
    workers: int = 0
    device: str = "cpu"


def arguments(
    description: str, out: str, without: Iterable[str] = (), **defaults: Any
) -> argparse.ArgumentParser:
    """The command line of Options, and --export; defaults override those. without: options that it does not have."""
    values = {f.name: f.default for f in fields(Options)} | {
        "minutes": 60.0,
        "out": Path(out),
        "export": None,
    }
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, kind, remark in (
        ("out", Path, "folder of checkpoints and shards"),
        ("minutes", float, "time for this call; a later one goes on"),
        ("until", int, "the training's last step"),
        ("start", prior_folder, "a prior's folder that a new training starts from"),
        ("seed", int, None),
        ("batch", int, None),
        ("lr", float, "highest learning rate"),
        ("threads", int, "CPU threads"),
        ("workers", int, "processes that draw objects ahead"),
        ("device", str, None),
        ("export", Path, "only write the averaged weights to this folder"),
    ):
        if name not in without:
            parser.add_argument(f"--{name}", type=kind, default=(values | defaults)[name], help=remark)
    return parser


def prior_folder(name: str) -> Path:
    """A prior's folder as a command's argument."""
    if not (Path(name) / "training.json").is_file():
        raise argparse.ArgumentTypeError(f"{name} is no trained prior's folder: it has no training.json")
    return Path(name)


def run_folder(name: str) -> Path:
    """A training's folder as a command's argument."""
    try:
        return checkpoint_of(Path(name)).parent
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


@contextmanager
def faults_of(parser: argparse.ArgumentParser) -> Iterator[None]:
    """What a user can mend ends the command in a line."""
    try:
        yield
    except UserError as error:
        parser.error(str(error))


def keyed(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


class Log:
    """One JSON object a line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.start_s = path, time.time()

    def write(self, **values: Any) -> None:
        with self.path.open("a") as file:
            file.write(
                json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()}) + "\n"
            )


def noised(clean: Tensor, noise: Tensor, t: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor]:
    """(noisy latents, v that they hold) [B, C, L, L] at timesteps t [B]; alphas: abar of each level."""
    alpha, sigma = alphas[t].sqrt()[:, None, None, None], sigmas(t, alphas)
    return alpha * clean + sigma * noise, alpha * noise - sigma * clean


def sigmas(t: Tensor, alphas: Tensor) -> Tensor:
    """How much noise there is at timesteps t [B]: [B, 1, 1, 1]."""
    return (1 - alphas[t]).sqrt()[:, None, None, None]


def guesses(
    ask: Callable[[Tensor, Tensor], Tensor], clean: Tensor, noise: Tensor, alphas: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(noisy latents [B, C, L, L], v that leads from them to the clean ones, timesteps [B]), where the model's guesses
    from noise alone stand in for the clean ones. ask(noisy, t) -> v.

    That is what a sampler's later steps meet. A model that knows noisy truth alone takes the blur and the faults of its
    guess for the object's own, and each further step is worse than the first (DREAM, Zhou et al. 2024). Half of the
    guesses are under the noise that they came from, as in DDIM, half under another's."""
    low, high = (round(level * (len(alphas) - 1)) for level in GUESSED_LEVELS)
    t = torch.randint(low, high + 1, clean.shape[:1], generator=generator, device=generator.device)
    t = t.to(clean.device)
    half = len(clean) // 2
    first = torch.cat([noise[:half], noise[half:].roll(1, 0)])
    last = torch.full_like(t, len(alphas) - 1)  # nothing but noise: v is minus the picture
    # Fewer samples, without gradients: a compiled model would be compiled anew for them.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        guess = -ask(first, last)
    noisy, v = noised(guess, noise, t, alphas)
    return noisy, v + (guess - clean) / sigmas(t, alphas), t


def timesteps(step: int, count: int, generator: torch.Generator, focus: float = 0.0) -> Tensor:
    """High noise only at first (plain regression of the novel view), then all, high noise more often, a share `focus`
    of them above FOCUS_FROM: it is what distillation asks for."""
    device = generator.device
    u = torch.rand(count, generator=generator, device=device)
    low = max(0.0, 0.7 - step / 4000)
    level = low + (1.0 - low) * u**0.4
    focused = torch.rand(count, generator=generator, device=device) < focus
    return (torch.where(focused, FOCUS_FROM + (1 - FOCUS_FROM) * u, level) * 999).round().long()


def learning_share(step: int, first: int, until: int, cooling: int = COOL_DOWN_STEPS) -> float:
    """Of the learning rate: a short warm-up, constant, then straight to nought in the last `cooling` steps."""
    return min((step - first + 1) / WARM_UP_STEPS, 1.0, (until - step) / cooling)


def averaging_steps(step: int, first: int, cooling: int = 0) -> float:
    """How many steps the averaged weights reach back."""
    spans = [step / AVERAGE_SHARE, (step - first) / RUN_SHARE, *([cooling / RUN_SHARE] if cooling else [])]
    return 1.0 + min(spans)


@dataclass(frozen=True)
class Run:
    """Where a training stands: steps and samples done, and the step and the shard that it began at. A branch that cools
    down knows its last step and how many steps the cooling lasts; 0, 0 for a run that goes on. newest_shard: one past
    the last one drawn, where that follows from the clock and not from the step; else 0."""

    step: int = 0
    samples: int = 0
    first_step: int = 0
    first_shard: int = newest_shard(0) - SHARDS_FIRST
    until: int = 0
    cooling: int = 0
    newest_shard: int = 0

    def at(self, step: int, batch: int) -> Run:
        return replace(self, step=step, samples=self.samples + (step - self.step) * batch)


def descend(
    options: Options, model: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, run: Run,
    loss_of: Callable[[int], Tensor], log: Log,
) -> None:  # fmt: skip
    """Trains until the minutes or the steps are over, saving every few minutes. loss_of(step): that step's loss []."""
    began = saved = last = time.time()
    total, counted, step = 0.0, 0, run.step
    until, cooling = run.until or options.until, run.cooling or COOL_DOWN_STEPS
    if step > until or step == until == run.first_step:
        raise UserError(
            f"there is nothing to train: the last step is to be {until}, and the run begins at {step}"
        )
    while time.time() - began < options.minutes * 60 and step < until:
        loss = loss_of(step)
        lr = options.lr * learning_share(step, run.first_step, until, cooling)
        update(model, average, optimiser, loss, lr, 1 / averaging_steps(step, run.first_step, run.cooling))
        step += 1
        total, counted = total + loss.item(), counted + 1
        if step % LOG_EVERY == 0:
            took_s, last = time.time() - last, time.time()
            samples = run.samples + (step - run.step) * options.batch
            log.write(
                stage="unet", step=step, samples=samples, loss=total / counted, s_per_step=took_s / counted
            )
            total, counted = 0.0, 0
        if time.time() - saved > 240:
            store(options, run.at(step, options.batch), model, average, optimiser)
            saved = time.time()
    store(options, run.at(step, options.batch), model, average, optimiser)


def update(
    model: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, loss: Tensor, lr: float, newest: float
) -> None:  # fmt: skip
    """One step down the loss [] at this rate; `newest` of the average's way to the new weights is gone."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    moved(model, average, optimiser, lr, newest)


def moved(
    model: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, lr: float, newest: float
) -> None:  # fmt: skip
    """As update, down the gradients that the parameters hold."""
    for group in optimiser.param_groups:
        group["lr"] = lr
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    follow(average, model, newest)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, newest: float) -> None:
    """The average's weights move by a share `newest` of the way to the model's."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), newest)


@contextmanager
def autocast(device: torch.device) -> Iterator[None]:
    """bf16 where the device computes in it; on a CPU the fused attention's backward is slow there: the plain one makes
    a step 15 % shorter. In fp32 they are equally fast."""
    if not in_bf16(device):
        yield
        return
    with torch.autocast(device.type, torch.bfloat16):
        if device.type != "cpu":
            yield
            return
        with sdpa_kernel(SDPBackend.MATH):
            yield


def store(
    options: Options, run: Run, model: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer
) -> None:
    tensors = {f"run.{k}": torch.tensor(v) for k, v in asdict(run).items()}
    for name, part in (("model", model.state_dict()), ("average", average.state_dict())):
        tensors |= {f"{name}.{k}": v for k, v in part.items()}
    for i, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"moments.{i}.{k}": v for k, v in moments.items()}
    save(options.out / CHECKPOINT, {k: v.clone() for k, v in tensors.items()})


def resumed(
    options: Options, model: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, log: Log
) -> Run | None:
    """The checkpoint's run, its weights and moments put in place; None where there is none."""
    path = options.out / CHECKPOINT
    if not path.exists():
        return None
    tensors = load_file(path)
    model.load_state_dict(under("model", tensors))
    average.load_state_dict(under("average", tensors))
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in under(
        "moments", tensors
    ).items():  # a checkpoint of another optimiser has none of these
        i, name = key.split(".")
        state.setdefault(int(i), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    run = Run(**{k: int(v) for k, v in under("run", tensors).items()})
    log.write(stage="resume", step=run.step, batch=options.batch)
    return run


def branched(source: Path, out: Path, cooling: int) -> None:
    """The checkpoint of `source` put into `out`, to end `cooling` steps later: for weights to use while the run itself
    goes on. Nothing where `out` has one already."""
    if (out / CHECKPOINT).exists():
        return
    tensors = load_file(source / CHECKPOINT)
    tensors["run.until"] = tensors["run.step"] + cooling
    tensors["run.cooling"] = torch.tensor(cooling)
    save(out / CHECKPOINT, tensors)
    (out / "log.jsonl").write_text((source / "log.jsonl").read_text())


def checkpoint_of(out: Path) -> Path:
    """The file of a training that has begun. Raises UserError."""
    if not (out / CHECKPOINT).is_file():
        raise UserError(f"{out} is no training's folder: it has no {CHECKPOINT}")
    return out / CHECKPOINT


def averaged(options: Options, average: nn.Module) -> Run:
    """The checkpoint's averaged weights into `average`; returns where the training stood. Raises UserError."""
    tensors = load_file(checkpoint_of(options.out))
    average.load_state_dict(under("average", tensors))
    return Run(**{k: int(v) for k, v in under("run", tensors).items()})


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every weights file."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*.safetensors"))
    }


def record(options: Options, run: Run, folder: Path, **more: Any) -> dict[str, str]:
    """Writes a prior's log and its training.json: the run, `more`, and the weights' SHA-256, which
    it returns."""
    (folder / "training.jsonl").write_text((options.out / "log.jsonl").read_text())
    sums = checksums(folder)
    made = {"seed": options.seed, "batch": options.batch, "steps": run.step, "samples": run.samples}
    shards = {"shards": [run.first_shard, run.newest_shard or newest_shard(run.step)]}
    (folder / "training.json").write_text(
        json.dumps(made | shards | more | {"sha256": sums}, indent=2) + "\n"
    )
    return sums


def under(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those whose key begins with `name.`, without it."""
    return {k[len(name) + 1 :]: v for k, v in tensors.items() if k.startswith(f"{name}.")}
