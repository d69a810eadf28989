"""Input pictures: every format gives the same object; what cannot be used is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from gs_propeller.base.errors import UserError
from gs_propeller.base.picture import load_picture, picture_files

S = 128


def _rgba() -> NDArray[np.uint8]:
    """A 60 x 30 orange block, off centre, with a soft right edge; black under the transparent part."""
    rgba = np.zeros((90, 120, 4), dtype=np.uint8)
    rgba[10:70, 70:100, :3] = (240, 140, 40)
    rgba[10:70, 70:100, 3] = 255
    return rgba


def test_transparency_is_taken_centred_and_scaled(tmp_path: Path) -> None:
    Image.fromarray(_rgba()).save(tmp_path / "a.png")
    picture = load_picture(tmp_path / "a.png", S)
    rows, cols = np.nonzero(picture.mask[0].numpy() > 0.5)
    assert (rows.max() - rows.min() + 1, cols.max() - cols.min() + 1) == (
        102,
        51,
    )  # 0.8 * 128, and half of it
    assert abs(rows.min() + rows.max() - (S - 1)) <= 1
    assert abs(cols.min() + cols.max() - (S - 1)) <= 1
    assert picture.note == ""
    inside = picture.rgb[:, picture.mask[0] > 0.99]
    assert np.allclose(inside.mean(1).numpy() * 255, (240, 140, 40), atol=1.5)
    assert float(picture.rgb[:, picture.mask[0] < 0.01].min()) > 0.99


def test_no_dark_fringe(tmp_path: Path) -> None:
    """Black under the transparent part must not darken the edge: the colour stays between orange and white."""
    Image.fromarray(_rgba()).save(tmp_path / "a.png")
    rgb = load_picture(tmp_path / "a.png", 97).rgb
    assert float(rgb[0].min()) > 235 / 255
    assert float(rgb[2].min()) > 35 / 255


@pytest.mark.parametrize("kind", ["webp", "palette", "LA", "16 bit", "exif"])
def test_formats_agree(kind: str, tmp_path: Path) -> None:
    image, path = Image.fromarray(_rgba()), tmp_path / "a.png"
    image.save(path)
    expected = load_picture(path, S)
    if kind == "webp":
        path = tmp_path / "a.webp"
        image.save(path, lossless=True, exact=True)
    elif kind == "palette":
        indexed = np.where(_rgba()[..., 3] > 0, 1, 0).astype(np.uint8)
        flat = Image.fromarray(indexed, "P")
        flat.putpalette([0, 0, 0, 240, 140, 40])
        flat.save(path, transparency=0)
    elif kind == "LA":
        image.convert("LA").save(path)
        got = load_picture(path, S)
        assert np.array_equal(got.mask.numpy(), expected.mask.numpy())
        assert float((got.rgb[0] - got.rgb[1]).abs().max()) == 0
        return
    elif kind == "16 bit":
        grey = np.full((60, 60), 60000, dtype=np.uint16)
        grey[15:45, 20:40] = 9000
        Image.fromarray(grey).save(path)
        got = load_picture(path, S)
        assert abs(float(got.rgb[:, S // 2, S // 2].mean()) - 9000 / 65535) < 0.02
        assert "GrabCut" in got.note
        return
    else:
        path = tmp_path / "a.jpg"
        turned = Image.new("RGB", (90, 120), (255, 255, 255))
        turned.paste((200, 30, 30), (20, 30, 50, 100))
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90 degrees to the right when shown
        turned.save(path, exif=exif, quality=95)
        rows, cols = np.nonzero(load_picture(path, S).mask[0].numpy() > 0.5)
        assert cols.max() - cols.min() > 1.8 * (rows.max() - rows.min())
        return
    got = load_picture(path, S)
    assert float((got.rgb - expected.rgb).abs().max()) < 0.01
    assert np.array_equal(got.mask.numpy(), expected.mask.numpy())


def test_background_is_cut_away(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shade = np.linspace(150, 230, 200)[None, :, None]
    photo = np.clip(shade + rng.normal(0, 4, (160, 200, 3)), 0, 255)
    y, x = np.mgrid[:160, :200]
    disc = (y - 80) ** 2 + (x - 90) ** 2 < 45**2
    photo[disc] = (30, 60, 160)
    Image.fromarray(photo.astype(np.uint8)).save(tmp_path / "photo.jpg", quality=92)
    picture = load_picture(tmp_path / "photo.jpg", S)
    y, x = np.mgrid[:S, :S] + 0.5
    truth = (y - S / 2) ** 2 + (x - S / 2) ** 2 < (0.4 * S) ** 2
    found = picture.mask[0].numpy() > 0.5
    assert (truth & found).sum() / (truth | found).sum() > 0.95  # measured 0.985
    assert "GrabCut" in picture.note


def _bad(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / "bad.png"
    if kind == "text":
        path.write_text("not a picture")
    elif kind == "torn":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "empty alpha":
        Image.fromarray(np.zeros((50, 50, 4), dtype=np.uint8)).save(path)
    elif kind == "one pixel":
        Image.new("RGB", (1, 1)).save(path)
    elif kind == "one pixel of alpha":
        rgba = np.zeros((50, 50, 4), dtype=np.uint8)
        rgba[20, 20] = 255
        Image.fromarray(rgba).save(path)
    elif kind == "flat":
        Image.new("RGB", (64, 64), (90, 90, 90)).save(path)
    elif kind == "thin":
        Image.new("RGB", (64, 2), (90, 90, 90)).save(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "bomb":
        Image.new("1", (20_000, 20_000)).save(path)
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "no picture"),
        ("text", "not a picture that can be read"),
        ("torn", "not a picture that can be read"),
        ("empty alpha", "transparent everywhere"),
        ("one pixel", "1 x 1 px"),
        ("one pixel of alpha", "at least 8"),
        ("flat", "no object stands out|transparency"),
        ("thin", "too small|no object"),
        ("folder", "is a folder"),
        ("bomb", "at most 100 million|bomb"),
    ],
)
def test_unusable_pictures_are_named(kind: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        load_picture(_bad(tmp_path, kind), S)


def test_the_nearest_name_is_offered(tmp_path: Path) -> None:
    Image.fromarray(_rgba()).save(tmp_path / "teapot.png")
    with pytest.raises(UserError, match=r"did you mean .*teapot\.png"):
        load_picture(tmp_path / "teepot.png", S)


def test_a_folder_and_a_pattern_mean_their_pictures(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", "c[1].webp"):
        (tmp_path / name).touch()
    everything = [str(tmp_path / name) for name in ("a.JPG", "b.png", "c[1].webp")]
    assert picture_files(str(tmp_path)) == everything
    assert picture_files(str(tmp_path / "*.png")) == [str(tmp_path / "b.png")]
    assert picture_files(str(tmp_path / "c[1].webp")) == [
        str(tmp_path / "c[1].webp")
    ]  # a file, not a pattern
    assert picture_files("nowhere.png") == ["nowhere.png"]
    for nothing in (str(tmp_path / "*.gif"), str(tmp_path / "z*.png")):
        with pytest.raises(UserError, match="no picture in pattern"):
            picture_files(nothing)
