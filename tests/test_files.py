"""Files appear whole or not at all, and outside readers understand them."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import gsply
import imageio.v2 as imageio
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from safetensors.torch import save_file

from gs_propeller.base.errors import UserError
from gs_propeller.base.files import atomic, load_tensors, save_tensors
from gs_propeller.base.media import contact_sheet, turntable
from gs_propeller.mesh.foreign import load_mesh
from gs_propeller.mesh.io import save_glb, save_obj
from gs_propeller.mesh.surface import from_trimesh
from gs_propeller.mesh.texture import Textured, unwrap
from gs_propeller.scenes.gaussians.compressed import check_installed, save_compressed
from gs_propeller.scenes.gaussians.ply import Y_DOWN, half_turn, load_ply, save_ply
from gs_propeller.scenes.gaussians.state import Gaussians, init_ball
from tests import raster_twin


def _random(degree: int) -> Gaussians:
    n, rest, generator = 37, (degree + 1) ** 2 - 1, torch.Generator().manual_seed(degree)
    shapes = [(n, 3), (n, 3), (n, 4), (n,), (n, 1, 3), (n, rest, 3)]
    return Gaussians(*(torch.randn(shape, generator=generator) for shape in shapes))


def _textured() -> Textured:
    mesh = from_trimesh(trimesh.creation.icosphere(2, 0.5))
    uvs, faces = unwrap(mesh, 64)
    texture = (torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    return Textured(mesh, uvs, faces, texture)


def test_an_exception_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with atomic(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_full_disk_and_a_locked_folder_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(UserError, match=r"cannot write .*a\.txt: No space left"), atomic(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "old"
    with pytest.raises(UserError, match="cannot write /proc"), atomic("/proc/nowhere/a.txt"):
        pass


def test_a_really_full_device(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No space left"), atomic(tmp_path / "x") as temporary:
        temporary.unlink()
        temporary.symlink_to("/dev/full")
        temporary.write_bytes(b"0" * 10_000)


def test_tensors_round_trip_and_may_share_memory(tmp_path: Path) -> None:
    a = torch.arange(6.0).reshape(2, 3)
    save_tensors(tmp_path / "t.safetensors", {"a": a, "b": a, "c": a.T}, {"x": [1, "y"]})
    tensors, meta = load_tensors(tmp_path / "t.safetensors")
    assert meta == {"x": [1, "y"]}
    assert torch.equal(tensors["b"], a)
    assert torch.equal(tensors["c"], a.T)


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("junk")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign")
    for name in ("bad", "foreign", "missing"):
        with pytest.raises(UserError, match="resume=false"):
            load_tensors(tmp_path / name)


@pytest.mark.parametrize("degree", range(4))
def test_splats_come_back_and_an_outside_reader_agrees(degree: int, tmp_path: Path) -> None:
    scene = _random(degree)
    save_ply(tmp_path / "a.ply", scene)
    again = load_ply(tmp_path / "a.ply")
    for (name, x), (_, y) in zip(scene.items(), again.items(), strict=True):
        assert torch.equal(x, y), name
    outside = gsply.plyread(str(tmp_path / "a.ply"))
    assert np.array_equal(outside.means, scene.means.numpy() * (-1, -1, 1))  # y down
    assert np.array_equal(outside.scales, scene.log_scales.numpy())
    assert np.array_equal(np.ravel(outside.opacities), scene.logit_opacities.numpy())
    assert np.array_equal(np.reshape(outside.sh0, (37, 3)), scene.sh_dc[:, 0].numpy())
    # turned as viewers turn it, each splat has its own axes and its own colour from every side again
    turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    found = turn @ raster_twin.rotations(torch.from_numpy(np.array(outside.quats)))
    assert torch.allclose(found, raster_twin.rotations(scene.quats), atol=1e-6)  # measured 1e-7
    if degree:
        rest = torch.from_numpy(np.reshape(outside.shN, (37, -1, 3)).copy())
        direction = torch.nn.functional.normalize(
            torch.randn(37, 3, generator=torch.Generator().manual_seed(9)), dim=1
        )
        basis, turned = (
            raster_twin.harmonics(d)[:, 1 : rest.shape[1] + 1, None] for d in (direction, direction @ turn)
        )
        ours, theirs = (basis * scene.sh_rest).sum(1), (turned * rest).sum(1)
        assert torch.allclose(ours, theirs, atol=1e-5)  # measured 1e-6


def test_older_splats_are_read_as_they_were_written(tmp_path: Path) -> None:
    scene = _random(1)
    save_ply(tmp_path / "a.ply", half_turn(scene, back=True))
    body = (tmp_path / "a.ply").read_bytes()
    assert body.count(Y_DOWN.encode() + b"\n") == 1
    (tmp_path / "old.ply").write_bytes(body.replace(Y_DOWN.encode() + b"\n", b""))
    for (name, x), (_, y) in zip(scene.items(), load_ply(tmp_path / "old.ply").items(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.slow
@pytest.mark.parametrize("degree", [0, 2])
def test_compressed_splats(degree: int, tmp_path: Path) -> None:
    scene = _random(degree)
    save_compressed(tmp_path / "a.spz", scene)
    outside = gsply.read_spz(str(tmp_path / "a.spz"))
    assert (
        np.abs(outside.means - scene.means.numpy()).max() < 1e-3
    )  # measured 2e-4; our own axes, which are SPZ's
    assert np.abs(outside.scales - scene.log_scales.numpy()).max() < 0.1  # measured 0.03
    if degree:
        assert np.abs(np.reshape(outside.shN, (37, -1, 3)) - scene.sh_rest.clamp(-1, 1).numpy()).max() < 0.15


def test_a_compressor_that_is_missing_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gsply", None)
    monkeypatch.setenv("PATH", "/nowhere")
    check_installed("none")
    for kind, remedy in (("spz", "pip install gsply"), ("sog", "npm install")):
        with pytest.raises(UserError, match=f"compressed={kind} needs .*{remedy}"):
            check_installed(kind)


def test_a_program_of_a_path_from_here_writes_sog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "splat-transform"
    program.parent.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"bin{os.pathsep}{os.environ['PATH']}")
    scene = init_ball(4, 0.5, 0, 0).params
    program.write_text("#!/no/such/shell\n")
    program.chmod(0o755)
    with pytest.raises(UserError, match=r"splat-transform cannot be started .*compressed=none"):
        save_compressed(tmp_path / "a.sog", scene)
    program.write_text('#!/bin/sh\nfor last; do :; done; echo written > "$last"\n')
    save_compressed(tmp_path / "a.sog", scene)
    assert (tmp_path / "a.sog").read_text() == "written\n"


def test_plys_that_are_no_splats(tmp_path: Path) -> None:
    trimesh.creation.box().export(tmp_path / "box.ply")
    (tmp_path / "junk.ply").write_text("junk")
    (tmp_path / "ascii.ply").write_text("ply\nformat ascii 1.0\nelement vertex 0\nend_header\n")
    for name in ("box.ply", "junk.ply", "ascii.ply", "none.ply"):
        with pytest.raises(UserError, match=r"not a Gaussian splat"):
            load_ply(tmp_path / name)
    save_ply(tmp_path / "ours.ply", init_ball(4, 0.5, 1, 0).params)
    ours = (tmp_path / "ours.ply").read_bytes()
    for what, said in (
        (b"property uchar red\nend_header", "'uchar red' is no float"),
        (b"property double a\nend_header", "'double a' is no float"),
        (b"property float f_rest_9\nend_header", "10 properties f_rest_"),
    ):
        head, body = ours.split(b"end_header\n")
        (tmp_path / "other.ply").write_bytes(head + what + b"\n" + body + bytes(32))
        with pytest.raises(UserError, match=said):
            load_ply(tmp_path / "other.ply")


@pytest.mark.parametrize("kind", ["obj", "glb"])
def test_meshes_come_back(kind: str, tmp_path: Path) -> None:
    textured, path = _textured(), tmp_path / f"thing.{kind}"
    (save_obj if kind == "obj" else save_glb)(path, textured)
    again = load_mesh(path)
    assert again.mesh.trimesh().is_watertight
    assert len(again.mesh.faces) == len(textured.mesh.faces)
    assert float((again.texture - textured.texture).abs().max()) < 1e-6
    a, b = (t.mesh.vertices[t.mesh.faces].mean(1) for t in (textured, again))
    nearest = torch.cdist(a, b).argmin(1)
    assert float((a - b[nearest]).abs().max()) < 2e-6
    one, two = (t.uvs[t.uv_faces].mean(1) for t in (textured, again))
    assert float((one - two[nearest]).abs().max()) < 2e-6


def test_obj_refers_to_its_neighbours_by_name(tmp_path: Path) -> None:
    save_obj(tmp_path / "thing.obj", _textured())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thing.mtl", "thing.obj", "thing.png"]
    assert "mtllib thing.mtl" in (tmp_path / "thing.obj").read_text()
    assert "map_Kd thing.png" in (tmp_path / "thing.mtl").read_text()
    moved = tmp_path.rename(tmp_path.parent / "moved elsewhere")
    assert load_mesh(moved / "thing.obj").texture.shape == (64, 64, 3)


def test_glb_says_how_light_behaves_and_normals_face_out(tmp_path: Path) -> None:
    save_glb(tmp_path / "a.glb", _textured())
    loaded = trimesh.load(tmp_path / "a.glb", force="mesh", process=False)
    material = loaded.visual.material
    assert (material.metallicFactor, material.roughnessFactor) == (0.0, 1.0)
    assert float((loaded.vertex_normals * loaded.vertices).sum(1).min()) > 0


def test_meshes_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run main_propeller"):
        load_mesh(tmp_path / "none.obj")
    save_ply(tmp_path / "splat.ply", _random(0))
    (tmp_path / "junk.glb").write_text("junk")
    (tmp_path / "mesh.usd").write_text("junk")
    for name, said in (
        ("splat.ply", "of a splat, give the .glb"),
        ("junk.glb", "not a mesh"),
        ("mesh.usd", "not a"),
    ):
        with pytest.raises(UserError, match=said):
            load_mesh(tmp_path / name)


def test_turntable_plays_and_pads_odd_sides(tmp_path: Path) -> None:
    frames = torch.zeros(5, 3, 31, 32)
    frames[:, 0] = torch.linspace(0, 1, 5)[:, None, None]
    turntable(tmp_path / "a.mp4", frames, 10)
    reader = imageio.get_reader(tmp_path / "a.mp4")
    assert reader.count_frames() == 5
    read = np.stack([reader.get_data(i) for i in range(5)])
    assert read.shape == (5, 32, 32, 3)
    assert np.all(np.diff(read[:, 10, 10, 0].astype(int)) > 30)
    with pytest.raises(ValueError, match="frames must be"):
        turntable(tmp_path / "b.mp4", torch.zeros(0, 3, 8, 8))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frames", "side"), [(3, 32), (150, 256)]
)  # ffmpeg finds out at its end, and on the way
def test_a_film_on_a_full_disk(frames: int, side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                               capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    before = tempfile.mkstemp

    def full(**named: str) -> tuple[int, str]:
        handle, name = before(**named)
        Path(name).unlink()
        Path(name).symlink_to("/dev/full")
        return handle, name

    monkeypatch.setattr(tempfile, "mkstemp", full)
    with pytest.raises(UserError) as caught:
        turntable(tmp_path / "a.mp4", torch.rand(frames, 3, side, side))
    assert str(caught.value).startswith(f"cannot write {tmp_path / 'a.mp4'}: No space left on device;")
    assert capfd.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*args: object, **named: object) -> None:
        raise RuntimeError("No ffmpeg exe could be found.\nMore.")

    monkeypatch.setattr("imageio_ffmpeg.write_frames", nothing)
    with pytest.raises(UserError, match=r"No ffmpeg exe.*turntable_frames=0"):
        turntable(tmp_path / "a.mp4", torch.rand(2, 3, 32, 32))


def test_a_film_without_the_package_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*args: object, **named: object) -> None:
        # Else imageio takes some other plugin, which fails by its own words.
        assert named["format"] == "FFMPEG"
        raise ImportError("The plugin is not installed. Use `pip install imageio[ffmpeg]`.")

    monkeypatch.setattr("imageio.v2.get_writer", nothing)
    with pytest.raises(UserError, match=r"imageio\[ffmpeg\].*turntable_frames=0"):
        turntable(tmp_path / "a.mp4", torch.rand(2, 3, 32, 32))
    assert list(tmp_path.iterdir()) == []


def test_contact_sheet_places_views(tmp_path: Path) -> None:
    images = torch.linspace(0, 1, 6)[:, None, None, None].expand(6, 3, 10, 10)
    contact_sheet(tmp_path / "a.png", images, columns=4, gap_px=2)
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    assert sheet.shape == (22, 46, 3)
    for i in range(6):
        assert abs(int(sheet[i // 4 * 12 + 5, i % 4 * 12 + 5, 0]) - round(255 * i / 5)) <= 1


def test_textures_are_rounded_not_cut(tmp_path: Path) -> None:
    textured = replace(_textured(), texture=torch.full((64, 64, 3), 254.6 / 255))
    save_obj(tmp_path / "a.obj", textured)
    assert np.asarray(Image.open(tmp_path / "a.png")).min() == 255
