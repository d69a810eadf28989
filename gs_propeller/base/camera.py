"""Cameras: poses on an orbit, pinhole projection.

V views. World: right-handed, y up, the object's front faces +z (as glTF). Camera: OpenCV axes,
x right, y down, z forward. Azimuth 0 stands on +z and grows towards +x (counter-clockwise seen
from above); elevation is positive above the horizon. Angles are radians, positions world units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cameras:
    """V pinhole cameras that share one vertical field of view; pixels are square.

    w2c: [V, 4, 4] world to camera. fov_y_rad: vertical field of view, in (0, pi).
    """

    w2c: Tensor
    fov_y_rad: float

    def __post_init__(self) -> None:
        if self.w2c.ndim != 3 or tuple(self.w2c.shape[1:]) != (4, 4):
            raise ValueError(f"w2c must be [V, 4, 4], got {list(self.w2c.shape)}")
        if not 0.0 < self.fov_y_rad < math.pi:
            raise ValueError(f"fov_y_rad must be in (0, pi), got {self.fov_y_rad}")

    def __len__(self) -> int:
        return self.w2c.shape[0]

    def __getitem__(self, views: slice) -> Cameras:
        return Cameras(self.w2c[views], self.fov_y_rad)

    def to(self, device: torch.device | str) -> Cameras:
        return Cameras(self.w2c.to(device), self.fov_y_rad)

    @property
    def centres(self) -> Tensor:
        """[V, 3] camera positions in the world: -R^T t."""
        rotation, translation = self.w2c[:, :3, :3], self.w2c[:, :3, 3]
        return -(rotation.transpose(1, 2) @ translation[:, :, None])[:, :, 0]

    def focal_px(self, height_px: int) -> float:
        """Focal length in pixels for images of that height."""
        return 0.5 * height_px / math.tan(0.5 * self.fov_y_rad)


def orbit(
    azimuths_rad: Tensor | list[float],
    elevations_rad: Tensor | list[float],
    radius: Tensor | list[float] | float,
    fov_y_rad: float,
) -> Cameras:
    """Cameras on a sphere around the origin, looking at it, with y up.

    azimuths_rad, elevations_rad: [V]; radius: [V] or one number, world units.
    """
    azimuths, elevations = _numbers(azimuths_rad), _numbers(elevations_rad)
    if len(azimuths) != len(elevations):
        raise ValueError(f"{len(azimuths)} azimuths but {len(elevations)} elevations")
    radii = _numbers(radius)
    if len(radii) == 1:
        radii = radii * len(azimuths)
    if len(radii) != len(azimuths):
        raise ValueError(f"{len(azimuths)} azimuths but {len(radii)} radii")
    poses = []
    for azimuth, elevation, distance in zip(azimuths, elevations, radii, strict=True):
        sin_a, cos_a, sin_e, cos_e = (
            *(math.sin(azimuth), math.cos(azimuth)),
            *(math.sin(elevation), math.cos(elevation)),
        )
        right, down = (cos_a, 0.0, -sin_a), (sin_e * sin_a, -cos_e, sin_e * cos_a)
        forward = (-cos_e * sin_a, -sin_e, -cos_e * cos_a)
        # The origin lies straight ahead; exact, where -R @ centre would round.
        poses.append([[*right, 0.0], [*down, 0.0], [*forward, distance], [0.0, 0.0, 0.0, 1.0]])
    return Cameras(torch.tensor(poses, dtype=torch.float64).reshape(-1, 4, 4).float(), fov_y_rad)


def _numbers(values: Tensor | list[float] | float) -> list[float]:
    """As float64, without a tensor operation for each of the few sines and cosines of a step's views."""
    return torch.as_tensor(values, dtype=torch.float64).reshape(-1).tolist()  # type: ignore[no-any-return]


def relative_cameras(
    elevation_rad: float, azimuths_rad: Tensor, elevations_rad: Tensor, radius_delta: float = 0.0
) -> Tensor:
    """[V, 4] Zero-1-to-3's camera codes (Liu et al. 2023).

    A code is (polar angle, sin and cos of the azimuth, radius), each the view's minus the input's; the
    polar angle grows downwards, so a view from above has a negative one.
    elevation_rad: the input view's own; azimuths_rad [V]: from it; elevations_rad [V]: absolute.
    """
    polar = elevation_rad - elevations_rad
    radius = torch.full_like(polar, radius_delta)
    return torch.stack([polar, azimuths_rad.sin(), azimuths_rad.cos(), radius], 1).float()


def mirrored_codes(codes: Tensor, which: Tensor) -> Tensor:
    """relative_cameras' codes [..., 4] of the same views of the mirror image, where `which` [...] says so: the azimuth
    has the other sign."""
    sign = torch.ones_like(codes)
    sign[..., 1] = 1 - 2 * which.to(codes)
    return codes * sign
