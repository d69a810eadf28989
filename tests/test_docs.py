"""The documents: what they link to is there, and so are the configurations and modules that they name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ELSEWHERE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md", "bench/RESULTS.md")
PAGES = sorted([*(ROOT / name for name in ELSEWHERE), *ROOT.glob("docs/*.md")])


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


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("mkdocs"), reason="mkdocs is missing: pip install -r requirements-docs.txt")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    home = (tmp_path / "index.html").read_text()
    assert 'src="cat_mesh.png"' in home and 'href="bench/RESULTS/"' in (
        tmp_path / "results" / "index.html"
    ).read_text().replace("../", "")
    assert "on_event" in (tmp_path / "api" / "index.html").read_text()


def test_every_page_of_the_site_is_in_its_menu_and_the_newest_change_is_this_version() -> None:
    menu = (ROOT / "mkdocs.yml").read_text()
    assert [p.name for p in ROOT.glob("docs/*.md") if f": {p.name}" not in menu] == []
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    newest = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and newest[1] == version


def test_continuous_integration_runs_what_is_run_here() -> None:
    assert "run: .ci/run" in (ROOT / ".github/workflows/ci.yml").read_text()
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    lint = (ROOT / "Makefile").read_text().split("lint: setup")[1].split("\n\n")[0]
    for tool in ("ruff check", "ruff format --check", "mypy"):
        assert f"/{tool}" in lint and f".venv/bin/{tool}" in hooks
