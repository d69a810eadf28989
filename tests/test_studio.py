"""The page and the viewer in a real browser, through the whole of a small run; needs requirements-app.txt, playwright
and chromium, and skips without.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import gradio_app
import main_propeller
from gs_propeller.app.config import Config, load, to_yaml
from gs_propeller.app.events import Event, Note, PassDone
from gs_propeller.scenes.gaussians.ply import load_ply
from gs_propeller.studio.runs import KEPT, Gone, Shown, followed, fresh_folder, zipped
from tests.ports import free_port
from tests.test_main import ROOT, SMALL, _words, picture, prior
from tests.test_viewers import BROWSER, NODE, WEB, installed

gradio = pytest.importorskip("gradio", reason="requirements-app.txt is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from gs_propeller.studio import page as page_room  # noqa: E402
from gs_propeller.studio import view as view_room  # noqa: E402

__all__ = ["picture", "prior"]  # fixtures
needs_browser = pytest.mark.skipif(not BROWSER, reason="chromium is missing")
WAIT_MS = 120_000


def _pass(step: int) -> PassDone:
    def draw(azimuths: Any, size: int) -> torch.Tensor:
        return torch.full((1, 3, size, size), azimuths[0] / 360)

    return PassDone("distil", step, 3, step, 1, 1, 0.1, {}, draw)


def test_a_run_is_followed_to_its_end_its_error_or_until_nobody_does() -> None:
    def three(tell: Callable[[Event], None]) -> None:
        tell(Note("hello"))
        for step in (1, 2, 3):
            tell(_pass(step))

    events = list(followed(three, every_s=0.0, size=4))
    assert [type(event) for event in events] == [Note, Shown, Shown, Shown]
    assert [int(event.picture[0, 0, 0]) for event in events[1:]] == [0, 11, 21]  # type: ignore[union-attr]
    seldom = [event for event in followed(three, every_s=60.0, size=4) if isinstance(event, Shown)]
    assert [event.done.step for event in seldom] == [1, 3]  # the last one always

    def failing(tell: Callable[[Event], None]) -> None:
        tell(Note("hello"))
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        list(followed(failing))
    ended: list[BaseException] = []

    def endless(tell: Callable[[Event], None]) -> None:
        try:
            while True:
                tell(Note("again"))
                time.sleep(0.01)
        except Gone as error:
            ended.append(error)

    events = followed(endless)
    assert next(events) == Note("again")
    events.close()
    assert len(ended) == 1


def test_folders_of_runs_are_few_and_zipped_without_what_goes_on(tmp_path: Path) -> None:
    """Those of others stay, whatever they are called."""
    for k in range(KEPT + 3):
        (tmp_path / f"20000101-000000-{k:06x}").mkdir()
        (tmp_path / f"{k}st try").mkdir()
    fresh = fresh_folder(tmp_path)
    ours = [path for path in tmp_path.iterdir() if "try" not in path.name]
    assert len(ours) == KEPT and fresh.exists() and not (tmp_path / "20000101-000000-000003").exists()
    assert len(list(tmp_path.iterdir())) == 2 * KEPT + 3
    run = fresh / "cat"
    (run / "snapshots").mkdir(parents=True)
    for name in (
        "cat.glb",
        "checkpoint.safetensors",
        "refine_checkpoint.safetensors",
        ".lock",
        "config.yaml",
    ):
        (run / name).write_text(name)
    with zipfile.ZipFile(zipped(run)) as archive:
        assert archive.namelist() == ["cat/cat.glb", "cat/config.yaml"]


@pytest.mark.parametrize(
    ("words", "said"),
    [(["port=x"], "port=x"), (["stepz=3"], "did you mean steps"), (["prior"], "key=value")],
)
def test_bad_arguments_of_the_page_are_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gradio_app.main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_bad_arguments_of_the_viewer_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        ([str(tmp_path)], "no run's folder"),
        ([], "say which run"),
        (["a", "port=x"], "port=x"),
        (["a", "port=70000"], "port=70000: a whole number of 0 to 65535"),
        (["a", "speed=3"], "say which run"),
        (["a", "port"], "say which run"),
    ):
        assert view_room.view(words) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_without_the_packages_the_remedy_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("gradio", "viser"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "gs_propeller.studio.page")
    (tmp_path / "config.yaml").write_text(to_yaml(Config()))
    assert gradio_app.main([]) == view_room.view([str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert ["make app" in line for line in said] == [True, True]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        browser = driver.chromium.launch(executable_path=BROWSER, args=arguments)
        yield browser
        browser.close()


def opened(browser: Any, address: str, foreign: list[str], size: tuple[int, int] = (1240, 900)) -> Any:
    """A tab of that address; what it asks of other machines is noted."""
    tab = browser.new_page(viewport={"width": size[0], "height": size[1]}, reduced_motion="reduce")
    tab.set_default_timeout(WAIT_MS)
    own = ("http://127.0.0.1", "http://localhost", "ws://127.0.0.1", "data:", "blob:")
    tab.on("request", lambda request: None if request.url.startswith(own) else foreign.append(request.url))
    tab.goto(address)
    return tab


def pixels(shot: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), dtype=np.float32)


@pytest.fixture(scope="module")
def address(prior: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    outdir = tmp_path_factory.mktemp("page")
    page = page_room.Page(
        [f"prior={prior}", f"text_prior={prior}", f"outdir={outdir}", *SMALL, "densify_until=0"]
    )
    yield page.launch("127.0.0.1", free_port(), block=False)
    page.blocks.close()


def photographed(
    tab: Any, canvas: Any, shows: Callable[[np.ndarray], Any], wait_s: float = 30.0
) -> np.ndarray:
    """The canvas's pixels as soon as it `shows` what is waited for; fails where it never does."""
    end = time.monotonic() + wait_s
    while not shows(shot := pixels(canvas.screenshot())):
        assert time.monotonic() < end, "the viewer never showed it"
        tab.wait_for_timeout(250)
    return shot


@pytest.mark.slow
@needs_browser
def test_the_page_from_a_picture_to_the_zip(browser: Any, address: str, tmp_path: Path) -> None:
    foreign: list[str] = []
    tab = opened(browser, address, foreign)
    tab.click("#make")
    tab.get_by_text("drop a picture or type a sentence").wait_for()
    tab.set_input_files("#picture input[type=file]", ROOT / "data" / "cat.png")
    tab.wait_for_selector("#cutout img")
    tab.fill("#steps input[type=number]", "1000")
    tab.press("#steps input[type=number]", "Tab")
    tab.click("#make")
    tab.wait_for_selector("#live img")
    first = tab.get_attribute("#live img", "src")
    tab.wait_for_function("src => document.querySelector('#live img').src != src", arg=first)
    tab.click("#stop")
    tab.wait_for_selector("#live table")
    steps = int(tab.inner_text("#live td >> nth=1").split()[0])
    assert 1 < steps < 1000
    assert "stopped at step" in tab.inner_text("#notes")
    canvas = tab.wait_for_selector("#mesh canvas")
    tab.wait_for_function("() => !document.querySelector('#mesh .wrap.generating')")
    box = canvas.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    still = photographed(tab, canvas, lambda shot: (shot < 250).mean() > 0.02)  # there is something to see
    tab.mouse.move(*middle)
    tab.mouse.down()
    tab.mouse.move(middle[0] + 90.0, middle[1], steps=4)
    tab.mouse.up()
    photographed(tab, canvas, lambda shot: np.abs(shot - still).mean() > 1.0)  # and it has turned
    with tab.expect_download() as downloading:
        tab.click("#zip")
    downloading.value.save_as(tmp_path / "all.zip")
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        archive.extractall(tmp_path)
    assert {"cat.glb", "cat.ply", "cat.mp4", "config.yaml"} <= {p.name for p in (tmp_path / "cat").iterdir()}
    if NODE and installed:
        done = subprocess.run(
            [NODE, "validate.mjs", str(tmp_path / "cat" / "cat.glb")],
            cwd=WEB,
            capture_output=True,
            timeout=60,
        )
        assert json.loads(done.stdout)["numErrors"] == 0
    tab.click("#refine")
    tab.get_by_text("2 in 2 passes").wait_for()  # refine_steps=2
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.wait_for_timeout(500)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    named = tab.request.get(f"{address}gradio_api/info").json()["named_endpoints"]
    assert set(named) == {"/cut_out", "/make", "/refine", "/result", "/stop"}
    assert all(endpoint["description"] for endpoint in named.values())
    assert foreign == []
    tab.close()


@pytest.fixture(scope="module")
def run(prior: str, picture: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = _words(prior, picture, tmp_path_factory.mktemp("run"), "snapshots=4")
    main_propeller.make_asset(load(words)[0], quiet=True)
    return Path(load(words)[0].run_folder)


@pytest.mark.slow
def test_snapshots_are_the_states_on_the_way(run: Path, prior: str, picture: str, tmp_path: Path) -> None:
    states = view_room.Run(run).states()
    assert list(states) == [3, 6, 9, 12] and states[12] == run / "thing.ply"
    torn = run / "snapshots" / ".000006.ab12cd34.safetensors"
    torn.touch()  # of a kill, or of a moment
    assert view_room.Run(run).states() == states
    torn.unlink()
    moved = view_room.Run(shutil.copytree(run, tmp_path / "elsewhere"))  # a folder of another name
    assert moved.mesh() == tmp_path / "elsewhere" / "thing.glb" and moved.picture() is not None
    shutil.copy(moved.folder / "thing.glb", moved.folder / "thing_refined.glb")
    os.utime(moved.folder / "thing_refined.glb", (0, 0))
    assert moved.mesh() == tmp_path / "elsewhere" / "thing.glb"  # made anew since
    part = shutil.copytree(run, tmp_path / "thing")
    (part / "thing.ply").unlink()
    assert view_room.Run(part).states()[12] == part / "checkpoint.safetensors"  # no asset of it yet
    shutil.rmtree(part)
    asset = main_propeller.make_asset(
        load(_words(prior, picture, tmp_path, "steps=9", "snapshots=1"))[0].but(outdir=str(tmp_path)),
        quiet=True,
    )
    last = view_room.Run(run).params(states[12])
    drawn = view_room.ellipsoids(last)
    assert [array.shape for array in drawn] == [
        (len(last), 3),
        (len(last), 3, 3),
        (len(last), 3),
        (len(last), 1),
    ]
    scales = np.linalg.eigvalsh(drawn[1])
    assert np.allclose(np.sort(last.log_scales.exp().numpy() ** 2), scales, rtol=1e-3, atol=1e-7)
    assert asset.state.step == 9 + 3 and len(list((tmp_path / "thing" / "snapshots").iterdir())) == 1
    (tmp_path / "thing" / "snapshots" / ".000009.ab12cd34.safetensors").touch()
    more = load(_words(prior, picture, tmp_path, "steps=12", "snapshots=2"))[0].but(outdir=str(tmp_path))
    assert main_propeller.make_asset(more, quiet=True).state.step == 12 + 3


@pytest.mark.slow
def test_the_viewer_turns_to_the_splat_once_it_is_there(run: Path, tmp_path: Path) -> None:
    """It is written when checkpoint and snapshots have come to rest."""
    part = shutil.copytree(run, tmp_path / "thing")
    (part / "thing.ply").unlink()
    shown = view_room.Shown(view_room.Run(part), "127.0.0.1", free_port())
    try:
        shown.follow()
        assert shown.states[12] == part / "checkpoint.safetensors"
        shutil.copy2(run / "thing.ply", part)
        shown.follow()
        assert shown.states[12] == part / "thing.ply"
        assert shown.params is not None
        assert torch.equal(shown.params.means, load_ply(run / "thing.ply").means)
    finally:
        shown.server.stop()


@pytest.mark.slow
@needs_browser
def test_the_viewer_shows_a_run_and_follows_it(browser: Any, run: Path, tmp_path: Path) -> None:
    foreign: list[str] = []
    shown = view_room.Shown(view_room.Run(run), "127.0.0.1", free_port())
    try:
        tab = opened(browser, f"http://127.0.0.1:{shown.server.get_port()}", foreign, (800, 450))
        tab.wait_for_selector("canvas")
        tab.get_by_text("states kept: 4").wait_for()
        tab.wait_for_timeout(3000)
        last = pixels(tab.screenshot())
        shown.slider.value = 3
        tab.get_by_text("step 3 of 12").wait_for()
        (run / "snapshots" / "000011.safetensors").write_bytes(
            (run / "snapshots" / "000009.safetensors").read_bytes()
        )
        shown.follow()
        tab.get_by_text("states kept: 5").wait_for()
        shown.cameras.value = True
        tab.wait_for_timeout(3000)
        early = pixels(tab.screenshot())
        assert np.abs(last - early).mean() > 0.3
        with tab.expect_download() as downloading:
            tab.get_by_text("Turntable (.mp4)").click()
        downloading.value.save_as(tmp_path / "film.mp4")
        assert b"moov" in (tmp_path / "film.mp4").read_bytes()
        assert foreign == []
        tab.close()
    finally:
        shown.server.stop()
