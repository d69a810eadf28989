"""The commands themselves, small but whole: files, equality of windows and ranks, resuming, bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

import main2_mesh
import main_propeller
from gs_propeller.app.config import SECTION_OF, Config, load
from gs_propeller.app.job import Asset
from gs_propeller.app.log import Progress
from gs_propeller.base.files import load_tensors
from gs_propeller.mesh.foreign import load_mesh
from gs_propeller.scenes.gaussians.ply import load_ply
from gs_propeller.scenes.gaussians.state import State
from tests import tiny_prior
from tests.loaded import Loaded
from tests.ports import world_of_two

ROOT = Path(__file__).parent.parent
IMAGE = str(ROOT / "configs" / "image.yaml")
SMALL = [
    "elevation=10",
    "steps=12",
    "num_points=150",
    "batch_size=2",
    "reference_size=32",
    "mesh_resolution=32",
    "mesh_faces=400",
    "texture_size=64",
    "bake_views=8",
    "bake_size=64",
    "turntable_frames=4",
    "turntable_size=32",
    "densify_from=2",
    "densify_every=3",
    "densify_until=10",
    "densify_grad_threshold=0.001",
    "max_gaussians=260",
    "min_opacity=0.095",
    "refine_steps=2",
    "refine_batch=2",
    "updates_per_evaluation=1",
    "closing_updates=3",
    "refine_updates_per_evaluation=1",
    "threads=1",
    "device=cpu",
]
EXACT = ["threshold=0", "ema=1"]
LAST = 28
LONG = [f"steps={LAST}", "densify_until=26", "densify_every=5", "opacity_reset_every=12", "max_gaussians=600"]


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_prior.write(tmp_path_factory.mktemp("prior")))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng = np.random.default_rng(0)
    rgba = np.zeros((64, 64, 4), dtype=np.uint8)
    rgba[10:54, 20:50, :3] = rng.integers(0, 255, (44, 30, 3))
    rgba[10:54, 20:50, 3] = 255
    path = tmp_path_factory.mktemp("picture") / "thing.png"
    Image.fromarray(rgba).save(path)
    return str(path)


def _words(prior: str, picture: str, outdir: Path, *more: str) -> list[str]:
    return ["--config", IMAGE, f"prior={prior}", f"input={picture}", f"outdir={outdir}", *SMALL, *more]


@contextmanager
def as_before() -> Iterator[None]:
    """Ranks are started from here: environment and signal handlers, which a launcher leaves as it likes, are then as
    they were. A launcher in a process of its own is in tests/test_torchrun.py."""
    before = dict(os.environ)
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        for sign, handler in handlers.items():
            signal.signal(sign, handler)


def on_two_ranks(words: list[str], program: ModuleType = main_propeller) -> int:
    """Rank 0's exit code; it is this process, for a process takes seconds to start. torchrun does as much."""
    with as_before():
        os.environ |= world_of_two() | {"RANK": "1", "LOCAL_RANK": "1"}
        other = Loaded(str(program.__file__), words, os.environ)
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0"}
        try:
            code = program.main(words)
            assert other.wait(timeout=120) in (0, code)
        finally:
            other.kill()
            other.wait()
    return code


def state_of(folder: Path, steps: int = 12) -> State:
    tensors, meta = load_tensors(folder / "checkpoint.safetensors")
    assert meta["start"] == steps and meta["passes"] <= steps
    return State.from_tensors({k[2:]: v for k, v in tensors.items() if k.startswith("0/")})


def same(a: State, b: State) -> bool:
    one, two = a.tensors(), b.tensors()
    return all(torch.equal(one[key], two[key]) for key in one)


@pytest.fixture(scope="module")
def serial(prior: str, picture: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    outdir = tmp_path_factory.mktemp("serial")
    assert main_propeller.main(_words(prior, picture, outdir, *EXACT)) == 0
    return outdir / "thing"


@pytest.mark.slow
def test_every_file_is_there_and_opens(serial: Path) -> None:
    state = state_of(serial)
    assert len(load_ply(serial / "thing.ply")) == len(state)
    births = state.lineage[:, 0, 1]
    assert int((births >= 0).sum()) > 0  # it has densified
    assert len(state) < 150 + int((births >= 0).sum())  # and pruned
    for name in ("thing.obj", "thing.glb"):
        mesh = trimesh.load(serial / name, force="mesh")
        assert len(mesh.faces) > 20
        textured = load_mesh(serial / name)
        assert textured.mesh.trimesh().is_watertight
        assert textured.texture.shape == (64, 64, 3)
    assert Image.open(serial / "thing_sheet.png").size[0] > 100
    assert (serial / "thing.mp4").stat().st_size > 500
    lines = [json.loads(line) for line in (serial / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(12))
    assert load(["--config", str(serial / "config.yaml")])[0].num_points == 150


@pytest.mark.slow
def test_closing_updates_are_no_part_of_the_run(
    serial: Path, prior: str, picture: str, tmp_path: Path
) -> None:
    """The splat has them, checkpoint and mesh have not; without them the same folder gives the last state itself."""
    state = state_of(serial)
    assert not torch.equal(load_ply(serial / "thing.ply").means, state.params.means)
    shutil.copytree(serial, tmp_path / "thing")
    assert main_propeller.main(_words(prior, picture, tmp_path, *EXACT, "closing_updates=0")) == 0
    assert same(state_of(tmp_path / "thing"), state)
    assert torch.equal(load_ply(tmp_path / "thing" / "thing.ply").means, state.params.means)
    assert (tmp_path / "thing" / "thing.glb").read_bytes() == (serial / "thing.glb").read_bytes()


@pytest.fixture(scope="module")
def long(prior: str, picture: str, tmp_path_factory: pytest.TempPathFactory) -> State:
    """The serial run over densifications, prunes and opacity resets."""
    outdir = tmp_path_factory.mktemp("long")
    assert main_propeller.main(_words(prior, picture, outdir, *EXACT, *LONG)) == 0
    state = state_of(outdir / "thing", LAST)
    births = state.lineage[:, 0, 1].unique()
    assert len(births) > 3 and len(state) < 600  # it has densified again and again, and pruned
    return state


@pytest.mark.slow
def test_ranks_give_the_serial_state(long: State, prior: str, picture: str, tmp_path: Path) -> None:
    """More of them than steps in the window are in tests/test_ranks.py."""
    words = _words(prior, picture, tmp_path, *EXACT, *LONG, "window=5", "ranks=2", "tail=copy")
    assert on_two_ranks(words) == 0
    assert same(long, state_of(tmp_path / "thing", LAST))


@pytest.mark.slow
@pytest.mark.parametrize(("window", "tail"), [(2, "momentum"), (5, "copy"), (8, "momentum")])
def test_windows_give_the_serial_state(
    long: State, prior: str, picture: str, tmp_path: Path, window: int, tail: str
) -> None:
    words = _words(prior, picture, tmp_path, *EXACT, *LONG, f"window={window}", f"tail={tail}")
    assert main_propeller.main(words) == 0
    assert same(long, state_of(tmp_path / "thing", LAST))


def stop_after(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    """Ctrl-C once that step is done."""
    before = Progress.update

    def interrupting(self: Progress, step: int, **values: str) -> None:
        before(self, step, **values)
        if step >= last:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "update", interrupting)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_end(
    serial: Path,
    prior: str,
    picture: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = _words(prior, picture, tmp_path, *EXACT, "window=3")
    stop_after(monkeypatch, 5)
    assert main_propeller.main(words) == 130
    assert "goes on from there" in capsys.readouterr().err
    assert not (tmp_path / "thing" / "thing.glb").exists()
    monkeypatch.undo()
    assert main_propeller.main([*words, "window=2"]) == 0
    assert same(state_of(serial), state_of(tmp_path / "thing"))
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "thing" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(12))
    assert main_propeller.main([*words, "lambda_rgb=1"]) == 2
    assert "resume=false" in capsys.readouterr().err
    assert main_propeller.main([*words, "lambda_rgb=1", "resume=false"]) == 0
    assert main_propeller.main([*words, "lambda_rgb=1", "steps=14"]) == 0  # more of the same: it goes on
    assert state_of(tmp_path / "thing", 14).step == 14
    assert "distil 13/14" in capsys.readouterr().err
    assert main_propeller.main([*words, "lambda_rgb=1"]) == 2
    assert "steps=14 (here 12)" in capsys.readouterr().err


@pytest.mark.slow
def test_two_runs_in_one_folder(
    prior: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = _words(prior, picture, tmp_path, "steps=100000")
    first = Loaded(str(ROOT / "main_propeller.py"), words, os.environ)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "thing" / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert main_propeller.main(words) == 2
        assert "another run is at work" in capsys.readouterr().err
        first.terminate()
        assert first.wait(timeout=120) == 130
    finally:
        first.kill()
        first.wait()
    assert (tmp_path / "thing" / "checkpoint.safetensors").exists()


@pytest.mark.slow
def test_refinement(serial: Path, prior: str, picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = _words(prior, picture, serial.parent)
    assert main2_mesh.main(words) == 0
    before, after = load_mesh(serial / "thing.obj"), load_mesh(serial / "thing_refined.glb")
    assert len(after.mesh.faces) == len(before.mesh.faces)
    assert not torch.equal(before.texture, after.texture)
    assert main2_mesh.main([*words, f"mesh={serial / 'thing.glb'}", "turntable_frames=0"]) == 0
    assert main2_mesh.main([*words, "mesh=nowhere.obj"]) == 2
    assert "no mesh nowhere.obj" in capsys.readouterr().err


@pytest.mark.slow
def test_a_mesh_of_another_program_is_refined_where_it_is(
    prior: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two materials, a hundred times our size, far off: so it comes back, and a mesh of something else is refused."""
    scene = trimesh.Scene()
    for height, colour in ((10.0, [255, 0, 0, 255]), (-10.0, [0, 0, 255, 255])):
        box = trimesh.creation.box([30.0, 24.0, 20.0]).subdivide().apply_translation([500.0, height, 0.0])
        box.visual.vertex_colors = np.tile(colour, (len(box.vertices), 1))
        scene.add_geometry(box)
    scene.export(tmp_path / "other.glb")
    words = _words(prior, picture, tmp_path, f"mesh={tmp_path / 'other.glb'}", "turntable_frames=0")
    assert main2_mesh.main(words) == 0
    refined = load_mesh(tmp_path / "thing" / "thing_refined.glb")
    assert len(refined.mesh.faces) == 2 * 48
    assert np.allclose(refined.mesh.vertices.numpy().mean(0), [500, 0, 0], atol=1.0)
    assert np.allclose(np.ptp(refined.mesh.vertices.numpy(), axis=0), [30, 44, 20], atol=1.5)
    red, blue = (refined.texture[..., k].mean() for k in (0, 2))
    assert red > 0.3 and blue > 0.3
    trimesh.creation.box([60.0, 1.0, 1.0]).export(tmp_path / "bar.stl")
    assert main2_mesh.main([*words, f"mesh={tmp_path / 'bar.stl'}"]) == 2
    error = capsys.readouterr().err
    assert "hardly overlap" in error and "Traceback" not in error


REFINEMENT = ["refine_steps=6", "refine_updates_per_evaluation=2"]


def _refined(folder: Path) -> tuple[torch.Tensor, list[tuple[float, float]]]:
    """The refined texture, and every step's losses."""
    lines = [json.loads(line) for line in (folder / "refine_metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4]  # of each evaluation, its first update
    return load_mesh(folder / "thing_refined.glb").texture, [(line["novel"], line["known"]) for line in lines]


@pytest.fixture(scope="module")
def refined(
    serial: Path, prior: str, picture: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[torch.Tensor, list[tuple[float, float]]]:
    outdir = tmp_path_factory.mktemp("refined")
    words = _words(prior, picture, outdir, f"mesh={serial / 'thing.obj'}", *REFINEMENT, "window=1")
    assert main2_mesh.main(words) == 0
    return _refined(outdir / "thing")


EXACT_REFINEMENT = [*REFINEMENT, "refine_threshold=0", "ema=1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [["window=4"], ["window=3", "tail=copy"], ["window=4", "ranks=2"]], ids=" ".join
)
def test_refinement_windows_and_ranks_give_the_serial_texture(
    serial: Path,
    refined: tuple[torch.Tensor, list],
    prior: str,
    picture: str,
    tmp_path: Path,
    more: list[str],
) -> None:
    words = _words(prior, picture, tmp_path, f"mesh={serial / 'thing.obj'}", *EXACT_REFINEMENT, *more)
    assert (on_two_ranks(words, main2_mesh) if "ranks=2" in more else main2_mesh.main(words)) == 0
    texture, losses = _refined(tmp_path / "thing")
    assert torch.equal(texture, refined[0])
    assert losses == refined[1]


@pytest.mark.slow
def test_an_interrupted_refinement_goes_on_to_the_same_end(
    serial: Path, refined: tuple[torch.Tensor, list], prior: str, picture: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = _words(prior, picture, tmp_path, f"mesh={serial / 'thing.obj'}", *EXACT_REFINEMENT, "window=2")
    before = Progress.update

    def interrupting(self: Progress, step: int, **values: str) -> None:
        before(self, step, **values)
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "update", interrupting)
    assert main2_mesh.main(words) == 130
    assert "goes on from there" in capsys.readouterr().err
    assert not (tmp_path / "thing" / "thing_refined.glb").exists()
    monkeypatch.setattr(Progress, "update", before)
    assert main2_mesh.main([*words, "texture_lr=0.5"]) == 2
    assert "resume=false" in capsys.readouterr().err
    assert main2_mesh.main([*words, "window=3"]) == 0
    texture, losses = _refined(tmp_path / "thing")
    assert torch.equal(texture, refined[0])
    assert losses == refined[1]
    assert main2_mesh.main([*words, "texture_lr=0.5"]) == 0  # done: another call may ask for something else


@pytest.fixture
def pictures(picture: str, tmp_path: Path) -> Path:
    """Three good ones and a bad one."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("one.png", "two.png", "three.png"):
        (folder / name).write_bytes(Path(picture).read_bytes())
    (folder / "bad.png").write_text("no picture")
    return folder


@pytest.mark.slow
def test_what_is_said_to_be_done_is_there_by_these_options(
    prior: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a queue, of both stages: after options of the files alone, after a film that a kill kept from being written,
    and after a refinement that had only begun."""
    (pictures / "bad.png").unlink()
    (pictures / "three.png").unlink()
    words = _words(prior, str(pictures), tmp_path)
    film, refined = tmp_path / "one" / "one.mp4", tmp_path / "one" / "one_refined.glb"
    for program, name in ((main_propeller, "done"), (main2_mesh, "refined")):
        assert program.main(words) == 0 and program.main(words) == 0
        assert capsys.readouterr().out.count(f"{name} before") == 2
    film.unlink()
    assert main_propeller.main(words) == 0 and film.exists()
    assert capsys.readouterr().out.count("done before") == 1
    assert main_propeller.main([*words, "texture_size=128"]) == 0
    assert Image.open(tmp_path / "one" / "one.png").size == (128, 128)
    assert "done before" not in capsys.readouterr().out
    assert main2_mesh.main([*words, "texture_size=128"]) == 0
    before, options = refined.read_bytes(), tmp_path / "one" / "refine_config.yaml"
    options.write_text(options.read_text().replace("refine_steps: 2", "refine_steps: 3"))  # and killed
    os.utime(options)
    assert main2_mesh.main([*words, "texture_size=128", "refine_steps=3"]) == 0
    assert refined.read_bytes() != before


@pytest.mark.slow
def test_another_picture_of_the_same_name(
    serial: Path, prior: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither stage takes the run for its own, and what it shows stays."""
    other = tmp_path / "thing.png"
    red = Image.new("RGBA", (64, 64))
    red.paste((200, 0, 0, 255), (10, 20, 50, 50))
    red.save(other)
    shown = (serial / "thing_input.png").read_bytes()
    words = _words(prior, str(other), serial.parent, *EXACT)
    assert main_propeller.main(words) == 2
    assert "another file as the picture" in capsys.readouterr().err
    assert (serial / "thing_input.png").read_bytes() == shown
    assert main2_mesh.main(words) == 2
    assert "was not made of" in capsys.readouterr().err


@pytest.mark.slow
def test_no_run_writes_over_what_it_is_made_of(
    serial: Path, prior: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "thing" / "thing.png"
    own.parent.mkdir()
    shutil.copy(picture, own)
    assert main_propeller.main(_words(prior, str(own), tmp_path)) == 2
    assert "would be written over by its own run" in capsys.readouterr().err
    assert own.read_bytes() == Path(picture).read_bytes()
    mesh = tmp_path / "thing" / "thing_refined.glb"
    shutil.copy(serial / "thing.glb", mesh)
    before = mesh.read_bytes()
    assert main2_mesh.main(_words(prior, picture, tmp_path, f"mesh={mesh}")) == 2
    assert "would be overwritten" in capsys.readouterr().err and mesh.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["ranks=2"], ["ranks=2", "group=2", "window=3"]], ids=" ".join)
def test_many_pictures(
    serial: Path,
    prior: str,
    pictures: Path,
    tmp_path: Path,
    more: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A queue for all groups; the bad one is named and skipped; a second call finds all done."""
    words = _words(prior, str(pictures / "*.png") if more else str(pictures), tmp_path, *EXACT)
    assert (on_two_ranks([*words, *more]) if more else main_propeller.main(words)) == 2
    said = capfd.readouterr().err
    assert f"skipped {pictures / 'bad.png'}" in said and "Traceback" not in said
    for name in ("one", "two", "three"):
        assert same(state_of(serial), state_of(tmp_path / name))
        assert (tmp_path / name / f"{name}.glb").exists()
    (pictures / "bad.png").unlink()
    assert main_propeller.main(words) == 0
    assert capfd.readouterr().out.count("done before") == 3


@pytest.mark.slow
def test_pictures_of_one_name(
    prior: str, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Both stages of a queue, in folders that tell the pictures apart; the second skips what has no mesh."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rgba.png").write_bytes((pictures / "one.png").read_bytes())
    words = _words(
        prior, str(tmp_path / "*" / "rgba.png"), tmp_path / "runs", "steps=2", "turntable_frames=0"
    )
    assert main_propeller.main(words) == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["cat-rgba", "dog-rgba"]
    assert (tmp_path / "runs" / "cat-rgba" / "cat-rgba_input.png").exists()
    assert on_two_ranks([*words, "ranks=2"], main2_mesh) == 0
    for name in ("cat-rgba", "dog-rgba"):
        assert (tmp_path / "runs" / name / f"{name}_refined.glb").exists()
    (tmp_path / "runs" / "cat-rgba" / "cat-rgba.obj").unlink()
    capfd.readouterr()
    assert main2_mesh.main(words) == 2
    again = capfd.readouterr()
    assert "skipped" in again.err and "cat" in again.err and "Traceback" not in again.err
    assert again.out.count("refined before") == 1


@pytest.mark.slow
def test_the_python_interface(prior: str, picture: str, tmp_path: Path) -> None:
    words = [_words(prior, picture, tmp_path / name, "steps=3", "turntable_frames=0") for name in "ab"]
    made: list[Asset] = []

    def make(config: Config) -> None:
        made.append(main_propeller.make_asset(config, quiet=True))

    threads = [threading.Thread(target=make, args=(load(each)[0],)) for each in words]
    for thread in threads:  # as a web server does, two at once
        thread.start()
    for thread in threads:
        thread.join()
    asset, other = made
    assert same(asset.state, other.state)
    assert asset.state.step == 3 + 3  # closing updates too
    image, alpha = asset.viewer.views(asset.viewer.cameras([0, 90], [0, 30]), 40)
    assert image.shape == (2, 3, 40, 40)
    assert alpha.shape == (2, 1, 40, 40)
    assert set(asset.files) == {"ply", "obj", "glb", "png"}
    assert all(path.exists() for path in asset.files.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["input=nowhere.png"], "no picture nowhere.png"),
        ([], "give input=PICTURE"),
        (["prompt=a cat", "text_prior=./nowhere"], "no prior folder"),
        (["input=README.md"], "not a picture"),
        (["input=configs"], "no picture in folder configs"),
        (["input=nowhere*.png"], "no picture in pattern"),
        (["input=data/cat.png", "ranks=3", "group=2"], "does not divide the 3 ranks"),
        (["imput=data/cat.png"], "did you mean input"),
        (["input=data/cat.png", "prior=./nowhere"], "no prior folder"),
        (["input=data/cat.png", "outdir=/proc/nowhere"], "cannot write"),
        (["input=data/cat.png", "ranks=2", "input=nowhere.png"], "no picture"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main_propeller.main(["--config", IMAGE, *words]) == 2
    lines = capsys.readouterr().err.splitlines(keepends=True)
    error = "".join(line for line in lines if not line.startswith("prior: "))  # which one auto took
    assert said in error
    assert len([line for line in error.splitlines() if not line.startswith("prior: ")]) == 1
    assert "Traceback" not in error


def test_an_option_of_the_command_line_that_nothing_reads_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_propeller.main(["--config", IMAGE, "input=nowhere.png", "lambda_sd=2", "mirror=0"]) == 2
    note, error = capsys.readouterr().err.splitlines()
    assert note == "note: lambda_sd: without effect, read with prompt=SENTENCE"
    assert error.startswith("error: ")


def test_cuda_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert main_propeller.main(["--config", IMAGE, f"input={ROOT}/data/cat.png", "device=cuda"]) == 2
    assert "device=auto" in capsys.readouterr().err


@pytest.mark.parametrize("program", [main_propeller, main2_mesh])
def test_help_and_dry_run(program: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--help"]) == 0  # type: ignore[attr-defined]
    shown = capsys.readouterr().out
    for name in SECTION_OF:
        assert name in shown
    assert program.main(["--config", IMAGE, "--dry-run", "seed=9"]) == 0  # type: ignore[attr-defined]
    assert "seed: 9" in capsys.readouterr().out
