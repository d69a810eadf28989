"""Input pictures: every format gives the same object; what cannot be used is named."""

from __future__ import annotations

import os
import struct
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from gs_propeller.base.errors import UserError
from gs_propeller.pictures.photo import WORK_PX, read_rgba
from gs_propeller.pictures.picture import load_picture, passed_over, picture_files, save_picture

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
    assert picture.notes == ()
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
        assert "GrabCut" in got.notes[0]
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
    assert "GrabCut" in picture.notes[0]


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
        ("text", "not a picture that can be read: PNG, JPEG, WebP, BMP and TIFF are"),
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


def _photo(
    height: int = 120, width: int = 160, box: tuple[int, int, int, int] = (30, 90, 50, 110)
) -> NDArray:
    """A blue block on a noisy grey wall, uint8 RGB."""
    rng = np.random.default_rng(0)
    photo = np.clip(190 + rng.normal(0, 4, (height, width, 3)), 0, 255).astype(np.uint8)
    top, bottom, left, right = box
    photo[top:bottom, left:right] = (30, 60, 160)
    return photo


def _overlap(mask: NDArray, height: int, width: int) -> float:
    """IoU of a mask [S, S] with the centred rectangle that an object of that shape fills."""
    scale = 0.8 * len(mask) / max(height, width)
    y, x = np.abs(np.mgrid[: len(mask), : len(mask)] + 0.5 - len(mask) / 2)
    truth, found = (y < scale * height / 2) & (x < scale * width / 2), mask > 0.5
    return float((truth & found).sum() / (truth | found).sum())


@pytest.mark.parametrize("kind", ["rounded corners", "one stray pixel", "ragged frame"])
def test_transparency_that_is_no_cut_out_is_cut_out(kind: str, tmp_path: Path) -> None:
    rgba = np.dstack([_photo(), np.full((120, 160), 255, np.uint8)])
    if kind == "rounded corners":
        y, x = np.mgrid[:120, :160]
        off_y, off_x = np.maximum(8 - np.minimum(y, 119 - y), 0), np.maximum(8 - np.minimum(x, 159 - x), 0)
        rgba[off_y**2 + off_x**2 > 64] = 0
    elif kind == "one stray pixel":
        rgba[3, 5, 3] = 0
    else:  # more transparent than that, but what is opaque is the picture's own rectangle
        rgba[:4, ::2, 3] = 0
        rgba[40:60, 120:140, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    picture = load_picture(tmp_path / "a.png", S)
    assert _overlap(picture.mask[0].numpy(), 60, 60) > 0.95  # measured 0.98 and more
    assert "GrabCut" in picture.notes[0]


def test_a_tight_crop_is_a_cut_out(tmp_path: Path) -> None:
    y, x = np.mgrid[:90, :120]
    inside = ((y - 44.5) / 45) ** 2 + ((x - 59.5) / 60) ** 2 < 1
    rgba = np.dstack([np.full((90, 120, 3), 90, np.uint8), np.where(inside, 255, 0).astype(np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert load_picture(tmp_path / "a.png", S).notes == ()


def test_a_stray_pixel_does_not_frame_the_object(tmp_path: Path) -> None:
    Image.fromarray(_rgba()).save(tmp_path / "a.png")
    rgba = _rgba()
    rgba[88, 2] = 255
    Image.fromarray(rgba).save(tmp_path / "b.png")
    plain, stray = load_picture(tmp_path / "a.png", S), load_picture(tmp_path / "b.png", S)
    assert plain.mask.equal(stray.mask) and plain.rgb.equal(stray.rgb)
    assert "1 specks off the object" in stray.notes[0]


def test_two_shoes_are_both_kept(tmp_path: Path) -> None:
    rgba = _rgba()
    rgba[50:70, 10:20] = 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    picture = load_picture(tmp_path / "a.png", S)
    assert _overlap(np.ones((S, S)) * (picture.mask[0].numpy().any(1)[:, None]), 60, 90) > 0.5
    assert picture.notes == ()


def test_a_faint_object_is_an_object(tmp_path: Path) -> None:
    rgba = _rgba()
    Image.fromarray(rgba).save(tmp_path / "a.png")
    rgba[..., 3] = np.where(rgba[..., 3] > 0, 102, 0)
    Image.fromarray(rgba).save(tmp_path / "b.png")
    solid, faint = load_picture(tmp_path / "a.png", S), load_picture(tmp_path / "b.png", S)
    assert solid.mask.equal(faint.mask)
    assert float((solid.rgb - faint.rgb).abs().max()) < 1e-6
    assert "alpha about 0.40" in faint.notes[0]
    rgba[..., 3] = np.where(rgba[..., 3] > 0, 255, 77)  # a soft shadow beside it is none
    rgba[:, :40, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "c.png")
    assert load_picture(tmp_path / "c.png", S).mask.gt(0.5).equal(solid.mask.gt(0.5))


def _display_p3() -> bytes:
    """A matrix profile as phones embed it: P3's primaries adapted to D50, sRGB's curve."""

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(*values: float) -> bytes:
        return b"XYZ " + bytes(4) + b"".join(number(v) for v in values)

    name = b"Display P3"
    curve = b"para" + bytes(4) + struct.pack(">HH", 3, 0)
    curve += b"".join(number(v) for v in (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(name) + 1) + name + bytes(1 + 4 + 4 + 2 + 1 + 67),
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.515102, 0.241182, -0.001050),
        b"gXYZ": xyz(0.291965, 0.692236, 0.041885),
        b"bXYZ": xyz(0.157153, 0.066582, 0.784378),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
    }
    table, data, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for key, body in tags.items():
        body += bytes(-len(body) % 4)
        table += key + struct.pack(">II", at + len(data), len(body))
        data += body
    header = struct.pack(">I4sI", at + len(data), b"lcms", 0x02400000) + b"mntrRGB XYZ " + bytes(12) + b"acsp"
    header = header.ljust(68, bytes(1)) + number(0.9642) + number(1.0) + number(0.8249)
    return header.ljust(128, bytes(1)) + table + data


@pytest.mark.parametrize("kind", ["png", "rgba.png", "palette.png", "jpg"])
def test_colour_profiles_are_followed(kind: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 32), (230, 60, 40))
    image = (
        image.quantize(2) if kind == "palette.png" else image.convert("RGBA" if kind == "rgba.png" else "RGB")
    )
    path = tmp_path / f"a.{kind}"
    image.save(path, icc_profile=_display_p3(), **({"quality": 100} if kind == "jpg" else {}))
    rgba, notes = read_rgba(path)
    slack = 2 if kind == "jpg" else 0.01
    assert np.allclose(rgba[16, 16, :3] * 255, (250, 31, 14), atol=slack)
    assert notes == ()
    image.save(path, icc_profile=b"torn")
    assert "taken for sRGB" in read_rgba(path)[1][0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jpg", "png", "16 bit"])
def test_large_photographs_are_read_small_and_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ("a.jpg" if kind == "jpg" else "a.png")
    image = Image.fromarray(_photo()).resize((4800, 1200), Image.Resampling.BICUBIC)
    if kind == "16 bit":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    image.save(path, **({} if kind == "jpg" else {"compress_level": 1}))
    largest: list[int] = []
    before = np.asarray

    def watched(*args: object, **kwargs: object) -> NDArray:
        array = before(*args, **kwargs)
        if kwargs.get("dtype") is np.float32 and kind != "16 bit":
            largest.append(array.shape[0] * array.shape[1])
        return array

    monkeypatch.setattr(np, "asarray", watched)
    rgba, _ = read_rgba(path)
    assert max(rgba.shape) == WORK_PX
    assert max(largest, default=0) <= WORK_PX**2
    monkeypatch.undo()
    if kind != "16 bit":
        first = load_picture(path, S)
        assert _overlap(first.mask[0].numpy(), 60, 180) > 0.95
        assert load_picture(path, S) is first
        Image.fromarray(_rgba()).save(path.with_suffix(".png"))
        path.with_suffix(".png").replace(path)
        assert load_picture(path, S) is not first  # another file under the name


def test_heic_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for name in ("a.heic", "a.jpg"):  # some programs rename them
        (tmp_path / name).write_bytes(struct.pack(">I", 24) + b"ftypheic" + bytes(100))
        with pytest.raises(UserError, match="pip install pillow-heif"):
            load_picture(tmp_path / name)


def test_what_a_folder_holds_besides_is_named(tmp_path: Path) -> None:
    for name in ("a.jfif", "b.bmp", "c.tif", "d.TIFF", "e.heic", "notes.txt", "raw.dng", ".DS_Store"):
        (tmp_path / name).touch()
    assert [Path(file).name for file in picture_files(str(tmp_path))] == [
        "a.jfif", "b.bmp", "c.tif", "d.TIFF", "e.heic",
    ]  # fmt: skip
    assert passed_over(str(tmp_path)) == ["notes.txt", "raw.dng"]
    assert passed_over(str(tmp_path / "*.tif")) == []


def test_doubtful_cut_outs_are_warned_of(tmp_path: Path) -> None:
    for name, box, said in (
        ("border", (30, 120, 50, 110), "touches the border"),
        ("small", (50, 70, 70, 90), "% of the picture"),
        ("good", (30, 90, 50, 110), ""),
    ):
        Image.fromarray(_photo(box=box)).save(tmp_path / f"{name}.png")
        warned = load_picture(tmp_path / f"{name}.png").notes[1:]  # the first: that it was searched for
        assert [said in note for note in warned] == ([True] if said else []), warned


def test_what_the_program_sees_is_written(tmp_path: Path) -> None:
    Image.fromarray(_photo()).save(tmp_path / "a.png")
    picture = load_picture(tmp_path / "a.png", S)
    save_picture(tmp_path / "a_input.png", picture)
    seen = np.asarray(Image.open(tmp_path / "a_input.png"), dtype=np.float32) / 255
    assert np.allclose(seen[..., 3], picture.mask[0].numpy(), atol=0.5 / 255)
    over_white = seen[..., :3] * seen[..., 3:] + 1 - seen[..., 3:]
    assert np.allclose(over_white, picture.rgb.permute(1, 2, 0).numpy(), atol=1.01 / 255)


def test_a_cut_out_can_be_corrected(tmp_path: Path) -> None:
    """Two discs, a strong one and a faint one, on grey: a box chooses, a threshold keeps more, keep keeps all."""
    y, x = np.mgrid[:120, :160]
    rgb = np.random.default_rng(0).integers(118, 122, (120, 160, 3))
    strong, faint = (x - 50) ** 2 + (y - 60) ** 2 < 30**2, (x - 125) ** 2 + (y - 60) ** 2 < 20**2
    rgb[strong], rgb[faint] = (200, 40, 40), (130, 150, 120)
    path = tmp_path / "two.png"
    Image.fromarray(rgb.astype(np.uint8)).save(path)

    def share(**how: Any) -> tuple[float, float]:
        """Of the mask's box in the picture: how wide it is against its height, and how red what it shows."""
        picture = load_picture(path, 96, **how)
        front = picture.mask[0] > 0.5
        rows, cols = np.nonzero(front.numpy())
        red, green = (picture.rgb[k][front].mean() for k in (0, 1))
        return float(np.ptp(cols) / np.ptp(rows)), float(red - green)

    assert share() == pytest.approx((1, 0.62), abs=0.1)  # the largest part
    wide, red = share(box=(0.6, 0, 1, 1))
    assert wide == pytest.approx(1, abs=0.1) and red < 0.0  # the other one
    assert share(cutout="keep")[0] == pytest.approx(160 / 120, abs=0.03)  # the whole picture
    assert share(cutout="keep", box=(0, 0, 0.5, 1))[0] == pytest.approx(80 / 120, abs=0.03)
    rgba = np.dstack([rgb, np.where(x < 90, 255, 0)]).astype(np.uint8)
    Image.fromarray(rgba).save(path)
    assert share()[0] == pytest.approx(90 / 120, abs=0.03)  # its transparency is taken for a cut-out
    assert share(cutout="search")[0] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("faint", "more", "less"), [(12, 0.5, 1.0), (20, 1.0, 2.0)])
def test_a_threshold_keeps_more_or_less(tmp_path: Path, faint: int, more: float, less: float) -> None:
    """A red disc with a faint ring around it, which is part of the object or not."""
    y, x = np.mgrid[:120, :120]
    far = np.hypot(x - 60, y - 60)
    rgb = np.random.default_rng(0).integers(115, 125, (120, 120, 3))
    rgb[far < 45] += np.array([faint, -faint, 0])
    rgb[far < 25] = (220, 40, 40)
    Image.fromarray(rgb.astype(np.uint8)).save(tmp_path / "ring.png")

    def red(threshold: float) -> float:
        picture = load_picture(tmp_path / "ring.png", 96, threshold=threshold)
        return float((picture.rgb[0] - picture.rgb[1])[picture.mask[0] > 0.5].mean())

    assert red(more) < 0.45 < 0.6 < red(less)  # measured 0.28 and 0.32, 0.69


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_turned_tiff_is_upright(mode: str, orientation: int, tmp_path: Path) -> None:
    """Uncompressed, which Pillow would map into memory as it lies."""
    table = np.zeros((40, 60, 3), np.uint8)
    table[:20, :30], table[20:, :30], table[:20, 30:] = (250, 20, 20), (20, 250, 20), (20, 20, 250)
    image = Image.fromarray(table).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.tiff", exif=exif)
    image.save(tmp_path / "b.tiff", exif=exif, compression="tiff_lzw")
    plain, packed = (read_rgba(tmp_path / name)[0] for name in ("a.tiff", "b.tiff"))
    assert np.array_equal(plain, packed)


def test_floats_are_grey(tmp_path: Path) -> None:
    for scale in (1.0, 255.0):
        Image.fromarray(np.full((30, 40), 0.5 * scale, np.float32)).save(tmp_path / "a.tiff")
        assert np.allclose(
            read_rgba(tmp_path / "a.tiff")[0][..., :3], 0.5 if scale == 1 else 127.5 / 255, atol=1e-3
        )


def test_what_is_no_number_is_black(tmp_path: Path) -> None:
    grey = np.full((40, 40), 0.5, dtype=np.float32)
    grey[0, :4] = np.nan, np.inf, -np.inf, 0.8
    Image.fromarray(grey).save(tmp_path / "a.tiff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rgba, _ = read_rgba(tmp_path / "a.tiff")
    assert rgba[0, :5, 0].tolist() == pytest.approx([0, 0, 0, 0.8, 0.5])


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_of_a_film_the_first_picture_is_taken(kind: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue", "lime")]
    frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:])
    rgba, notes = read_rgba(tmp_path / f"a.{kind}")
    assert notes == (f"{tmp_path / 'a'}.{kind} has 3 pictures; the first is taken",)
    assert rgba[..., 0].min() > 0.95 and rgba[..., 2].max() < 0.05


def test_what_would_start_a_program_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 20\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(UserError, match="not a picture that can be read"):
        read_rgba(tmp_path / "a.png")


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    for name in ("a" * 300, str(tmp_path / ("b" * 300 + ".png"))):
        assert picture_files(name) == [name]
        with pytest.raises(UserError, match="no picture"):
            read_rgba(Path(name))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may look everywhere")
def test_a_folder_that_may_not_be_entered(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(UserError, match="may not be entered"):
        read_rgba(tmp_path / "closed" / "a.png")


def test_a_photograph_of_many_pixels_is_read_smaller(tmp_path: Path) -> None:
    Image.new("RGB", (12000, 9000), (200, 30, 30)).save(tmp_path / "a.jpg")
    assert max(read_rgba(tmp_path / "a.jpg")[0].shape) == WORK_PX
