"""The installed commands: `propeller` is main_propeller.py, `propeller-mesh` is main2_mesh.py, and both take a picture
or a sentence in place of --config and input= or prompt=.

    propeller photo.jpg steps=200
    propeller "a red cube on a blue cylinder"
    propeller view runs/cat         (and: serve, app, doctor)
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from gs_propeller.base.paths import is_there
from gs_propeller.places import install

DOORS = {
    "view": "gs_propeller.studio.view:view",
    "serve": "gs_propeller.studio.serve:main",
    "app": "gradio_app:main",
    "doctor": "gs_propeller.studio.doctor:main",
}
SUITS = {"input": "configs/image.yaml", "prompt": "configs/text.yaml"}
OPTION = re.compile(r"\w+=")
USAGE = """propeller PICTURE [key=value ...]      a picture (or a folder or pattern of them) to assets, into runs/
propeller "A SENTENCE" [key=value ...] a sentence to an asset
propeller --config FILE [key=value ...] as main_propeller.py; --help lists every option
propeller-mesh ...                     the second stage, with the same arguments
propeller view RUN                     a run in the browser: splat, mesh, the training's states
propeller app                          the page to make assets on
propeller serve                        assets over HTTP
propeller doctor                       what this machine has, and what is missing
"""


def main(argv: Sequence[str] | None = None) -> int:
    """`propeller`; returns the exit code, see command.py."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        print(USAGE, end="")
        return 0
    if words[0] in DOORS and not Path(words[0]).exists():
        return _said(lambda: _door(words[0])(words[1:]))
    from main_propeller import main as made

    return _said(lambda: made(spelt_out(words)))


def mesh(argv: Sequence[str] | None = None) -> int:
    """`propeller-mesh`."""
    from main2_mesh import main as refined

    return _said(lambda: refined(spelt_out(sys.argv[1:] if argv is None else argv)))


def _door(name: str) -> Callable[[Sequence[str]], int]:
    """Imported once it is asked for: each needs packages of its own. Raises UserError where one is missing."""
    from gs_propeller.base.errors import UserError

    module, _, function = DOORS[name].partition(":")
    try:
        return getattr(import_module(module), function)  # type: ignore[no-any-return]
    except ModuleNotFoundError as error:
        raise UserError(f"propeller {name} needs {error.name}: {install('app')}") from error


def _said(run: Callable[[], int]) -> int:
    """What run returns; 2 for bad input, which is said in a line."""
    from gs_propeller.base.errors import UserError
    from gs_propeller.command import say_all_letters

    say_all_letters()
    try:
        return int(run())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def spelt_out(words: Sequence[str]) -> list[str]:
    """The arguments as main_propeller.py takes them: a picture or sentence that stands first becomes its option, and
    where no configuration is named, the one that suits it is. Raises UserError for a first word that is neither."""
    given = list(words)
    if given and not given[0].startswith("-") and (is_there(given[0]) or not OPTION.match(given[0])):
        given[0] = _meant(given[0])
    if not any(word == "--config" or word.startswith("--config=") for word in given):
        for option, config in SUITS.items():
            if any(word.startswith(f"{option}=") for word in given):
                return ["--config", config, *given]
    return given


def _meant(word: str) -> str:
    """The option that a picture or a sentence stands for."""
    from gs_propeller.base.errors import UserError
    from gs_propeller.pictures.picture import SUFFIXES

    spaced = " " in word.strip()
    pattern = not spaced and any(letter in word for letter in "*?[")  # a question ends in one, and has spaces
    if is_there(word) or Path(word).suffix.lower() in SUFFIXES or pattern:
        return f"input={word}"
    if spaced:
        return f"prompt={word}"
    near = difflib.get_close_matches(word, DOORS, 1, 0.6)
    hint = f"did you mean `propeller {near[0]}`?" if near else f"a sentence of one word is prompt={word}"
    raise UserError(f"'{word}' is no picture here and no command; {hint}")
