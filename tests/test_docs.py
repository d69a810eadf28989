"""The documents: what they link to is there, and so are the configurations and modules that they name."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [ROOT / "README.md", ROOT / "data/README.md", ROOT / "bench/RESULTS.md", *ROOT.glob("docs/*.md")]
)


def missing(text: str, folder: Path) -> list[str]:
    """What a page in that folder names, and is not there."""
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", text)
    gone = [link for link in links if not (folder / link).exists()]
    configs = re.findall(r"(?<![\w/])configs/[\w./]+\.yaml", text)
    gone += [config for config in configs if not (ROOT / config).exists()]
    modules = re.findall(r"python -m ((?:bench|guidance)[\w.]*)", text)
    return gone + [module for module in modules if find_spec(module.rstrip(".")) is None]


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_what_a_page_names_is_there(page: Path) -> None:
    assert missing(page.read_text(), page.parent) == []


def test_what_is_not_there_is_found() -> None:
    text = "[a](nowhere.md) [b](README.md) `python -m bench.nothing` configs/none.yaml https://example.org"
    assert missing(text, ROOT) == ["nowhere.md", "configs/none.yaml", "bench.nothing"]


def test_every_page_can_be_reached_and_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert [p.name for p in ROOT.glob("docs/*.md") if f"(docs/{p.name})" not in text] == []
