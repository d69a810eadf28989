"""Cameras: where they stand, what they see, what they refuse."""

import math

import pytest
import torch

from gs_propeller.base.camera import Cameras, orbit

FOV = math.radians(49.1)


def _pixel(cameras: Cameras, point: list[float], size: tuple[int, int]) -> torch.Tensor:
    """[V, 2] pixel of a world point, by the pinhole formula."""
    homogeneous = torch.tensor([*point, 1.0])
    x, y, z, _ = (cameras.w2c @ homogeneous).unbind(-1)
    focal = cameras.focal_px(size[0])
    return torch.stack([focal * x / z + size[1] / 2, focal * y / z + size[0] / 2], -1)


def test_centre_maps_to_zero_and_rotation_is_orthonormal() -> None:
    cameras = orbit([0.0, 0.7, -2.4, 3.0], [0.0, 0.5, -1.2, 1.5], [2.0, 1.5, 2.5, 4.0], FOV)
    homogeneous = torch.cat([cameras.centres, torch.ones(4, 1)], 1)
    mapped = (cameras.w2c @ homogeneous[:, :, None])[:, :3, 0]
    assert mapped.abs().max() < 3e-7  # measured 1.2e-7
    rotation = cameras.w2c[:, :3, :3]
    assert (rotation @ rotation.transpose(1, 2) - torch.eye(3)).abs().max() < 1.5e-7  # measured 6e-8
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(4))
    assert torch.allclose(cameras.centres.norm(dim=1), torch.tensor([2.0, 1.5, 2.5, 4.0]))


def test_front_view_is_plain() -> None:
    cameras = orbit([0.0], [0.0], 2.0, FOV)
    expected = torch.tensor([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 2], [0, 0, 0, 1]])
    assert torch.equal(cameras.w2c[0], expected)
    assert torch.equal(cameras.centres, torch.tensor([[0.0, 0.0, 2.0]]))


def test_signs_of_azimuth_and_elevation() -> None:
    side, above = orbit([math.pi / 2, 0.0], [0.0, 0.4], 2.0, FOV).centres
    assert torch.allclose(side, torch.tensor([2.0, 0.0, 0.0]), atol=1e-6)
    assert torch.allclose(above, torch.tensor([0.0, 2 * math.sin(0.4), 2 * math.cos(0.4)]))


def test_known_points_and_their_pixels() -> None:
    cameras = orbit([0.0, math.pi / 2], [0.0, 0.0], 2.0, FOV)
    size = (100, 160)
    assert torch.equal(_pixel(cameras, [0.0, 0.0, 0.0], size), torch.tensor([[80.0, 50.0]] * 2))
    # At the origin's distance the image is 2 * 2 tan(fov / 2) high: its top edge is row 0.
    top = 2.0 * math.tan(FOV / 2)
    assert torch.allclose(_pixel(cameras, [0.0, top, 0.0], size)[:, 1], torch.zeros(2), atol=1e-4)
    right_of_front = _pixel(cameras, [0.3, 0.0, 0.0], size)[0]
    assert right_of_front[0] > 80.0 and right_of_front[1] == 50.0
    # Seen from +x the front, +z, lies to the left.
    assert _pixel(cameras, [0.0, 0.0, 0.3], size)[1, 0] < 80.0


def test_looking_straight_down_keeps_a_finite_pose() -> None:
    cameras = orbit([0.3], [math.pi / 2], 2.0, FOV)
    assert torch.isfinite(cameras.w2c).all()
    assert torch.allclose(cameras.centres, torch.tensor([[0.0, 2.0, 0.0]]), atol=1e-6)


def test_slices_and_devices() -> None:
    cameras = orbit([0.0, 1.0, 2.0], [0.0, 0.1, 0.2], 2.0, FOV)
    assert len(cameras) == 3 and len(cameras[1:]) == 2
    assert torch.equal(cameras[1:].w2c, cameras.w2c[1:])
    assert torch.equal(cameras.to("cpu").w2c, cameras.w2c)
    assert cameras.focal_px(128) == pytest.approx(64 / math.tan(FOV / 2))


def test_bad_cameras_are_refused() -> None:
    with pytest.raises(ValueError, match=r"w2c must be \[V, 4, 4\], got \[4, 4\]"):
        Cameras(torch.eye(4), FOV)
    with pytest.raises(ValueError, match="fov_y_rad"):
        Cameras(torch.eye(4)[None], 0.0)
    with pytest.raises(ValueError, match="2 azimuths but 1 elevations"):
        orbit([0.0, 1.0], [0.0], 2.0, FOV)
