"""The package: what its wheel holds, the installed commands, and an asset made where there is no checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import trimesh
from packaging.requirements import Requirement

from gs_propeller.base.errors import UserError
from gs_propeller.places import shipped
from gs_propeller.studio import console, doctor

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BIN = "Scripts" if os.name == "nt" else "bin"
SMALL = [
    "steps=3", "num_points=100", "batch_size=1", "reference_size=32", "mesh_resolution=24", "mesh_faces=200",
    "texture_size=64", "bake_views=4", "bake_size=64", "turntable_frames=0", "turntable_size=32", "threads=1",
    "device=cpu",
]  # fmt: skip


# --- the commands


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["data/cat.png", "steps=3"], ["--config", "configs/image.yaml", "input=data/cat.png", "steps=3"]),
        (["nowhere.JPG"], ["--config", "configs/image.yaml", "input=nowhere.JPG"]),
        (["photos/*"], ["--config", "configs/image.yaml", "input=photos/*"]),
        (
            ["what does a red cube look like?"],
            ["--config", "configs/text.yaml", "prompt=what does a red cube look like?"],
        ),
        (
            ["a " + 300 * "red " + "cube"],
            ["--config", "configs/text.yaml", "prompt=a " + 300 * "red " + "cube"],
        ),
        (["a red cube"], ["--config", "configs/text.yaml", "prompt=a red cube"]),
        (["prompt=cube"], ["--config", "configs/text.yaml", "prompt=cube"]),
        (["a.png", "--config", "my.yaml"], ["input=a.png", "--config", "my.yaml"]),
        (["a.png", "--config=my.yaml"], ["input=a.png", "--config=my.yaml"]),
        (["--config", "my.yaml", "input=a.png"], ["--config", "my.yaml", "input=a.png"]),
        (["steps=3", "input=a.png"], ["--config", "configs/image.yaml", "steps=3", "input=a.png"]),
        (["--help"], ["--help"]),
    ],
)
def test_a_picture_or_a_sentence_stands_for_its_options(given: list[str], meant: list[str]) -> None:
    assert console.spelt_out(given) == meant


@pytest.mark.parametrize(
    ("word", "hint"),
    [("docter", "did you mean `propeller doctor`?"), ("cube", "a sentence of one word is prompt=cube")],
)
def test_a_word_that_is_neither_is_named(word: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main([word]) == 2
    assert capsys.readouterr().err == f"error: '{word}' is no picture here and no command; {hint}\n"
    with pytest.raises(UserError, match="is no picture here"):
        console.spelt_out([word])


def test_a_bare_command_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main([]) == 0
    said = capsys.readouterr().out
    assert [f"propeller {door}" in said for door in console.DOORS] == [True] * 4


@pytest.mark.parametrize(
    ("door", "package"), [("view", "viser"), ("app", "gradio"), ("serve", "fastapi"), ("doctor", "torch")]
)
def test_every_door_leads_somewhere(door: str, package: str) -> None:
    pytest.importorskip(package)
    assert callable(console._door(door))


def test_the_viewers_door_says_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("viser")
    assert console.main(["view", str(tmp_path / "nowhere")]) == 2
    assert str(tmp_path / "nowhere") in capsys.readouterr().err


def test_a_door_whose_package_is_missing_says_which(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(console.DOORS, "app", "no_such_package.page:main")
    assert console.main(["app"]) == 2
    assert (
        capsys.readouterr().err == f"error: propeller app needs no_such_package: pip install '{ROOT}[app]'\n"
    )


def test_the_commands_are_the_scripts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["data/cat.png", "steps=7", "--dry-run"]) == 0
    first = capsys.readouterr().out
    assert "steps: 7" in first and "updates_per_evaluation: 3" in first and "input: data/cat.png" in first
    assert console.mesh(["data/cat.png", "steps=7", "--dry-run"]) == 0
    assert capsys.readouterr().out == first


# --- the doctor


def test_the_doctor_finds_this_machine_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main() == 0
    said = capsys.readouterr().out
    assert f"torch {version('torch')}" in said and f"pocket weights in {ROOT / 'data/zero123-pocket'}" in said
    assert "!!" not in said


def test_the_doctor_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = doctor.find_spec
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name in ("rembg", "xatlas") else here(name))
    monkeypatch.setattr("guidance.folder.POCKET", tmp_path)
    assert doctor.main() == 1
    said = capsys.readouterr().out
    assert f"!!  xatlas is missing\n      pip install '{ROOT}'" in said
    assert (
        f"--  rembg is not installed: cuts photographs out better than GrabCut does\n      pip install '{ROOT}[rembg]'"
        in said
    )
    assert f"!!  {tmp_path} lacks unet, vae" in said
    monkeypatch.setattr(doctor, "find_spec", lambda name: name == "rembg" or here(name))
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    assert doctor.main() == 1
    assert f"--  rembg lacks its model, {tmp_path / 'u2net.onnx'}" in capsys.readouterr().out
    assert doctor.main(["now"]) == 2


# --- the package


def test_the_pins_lie_inside_the_ranges() -> None:
    """So that what is installed may be what was tested."""
    wanted = {r.name: r for r in map(Requirement, PROJECT["dependencies"])}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert sorted(pins) == sorted(wanted)
    assert [name for name in pins if not wanted[name].specifier.contains(pins[name])] == []


@pytest.mark.slow
def test_an_asset_is_made_where_only_the_wheel_is(tmp_path: Path) -> None:
    """An environment of its own, which sees the packages of this one but not the checkout; no network."""
    wheel = _built(tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
    assert f"gs_propeller-{PROJECT['version']}" in wheel.name
    for name in ("configs/image.yaml", "data/zero123-pocket/unet/config.json", "data/text-pocket/words.txt"):
        assert f"gs_propeller/shipped/{name}" in names
    assert [name for name in names if re.search(r"^(tests|bench|data|configs)/", name)] == []

    bin_folder = _installed(wheel, tmp_path / "venv")
    work = tmp_path / "elsewhere"
    (work / "data").mkdir(parents=True)
    shutil.copy(ROOT / "data" / "cat.png", work / "data" / "cat.png")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV"))}

    def ran(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(bin_folder / words[0]), *words[1:]],
            cwd=work, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    made = ran("propeller", "data/cat.png", *SMALL)
    assert made.returncode == 0, made.stderr
    mesh = trimesh.load(work / "runs" / "cat" / "cat.glb", force="mesh")
    assert mesh.visual.material.baseColorTexture is not None and len(mesh.faces) > 50
    found = ran("propeller", "doctor")
    assert found.returncode == 0, found.stdout
    assert f"propeller {PROJECT['version']}, installed in {tmp_path}" in found.stdout
    assert str(ROOT) not in found.stdout
    assert (bin_folder / "propeller-mesh").exists()


def _built(folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-q",
        "-w",
        folder,
    ]
    done = subprocess.run([*command, "."], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def _installed(wheel: Path, folder: Path) -> Path:
    """The bin folder of a new environment with it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
    python = folder / BIN / Path(sys.executable).name
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-index",
        "-q",
        wheel,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(
        subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    )
    (packages / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # Kernels that this checkout has compiled already serve the same sources there, stamped alike: a minute saved.
    for source in (packages / "gs_propeller").rglob("*.py"):
        ours = ROOT / source.relative_to(packages)
        os.utime(source, ns=(ours.stat().st_atime_ns, ours.stat().st_mtime_ns))
        for compiled in ours.parent.glob(f"__pycache__/{source.stem}.*.nb?"):
            (source.parent / "__pycache__").mkdir(exist_ok=True)
            shutil.copy(compiled, source.parent / "__pycache__")
    return python.parent


def test_shipped_files_are_the_checkouts_here() -> None:
    assert shipped("configs/image.yaml") == ROOT / "configs" / "image.yaml"
