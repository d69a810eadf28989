"""Projection kernels of the CPU rasteriser: Gaussians to splats, and the adjoint.

N Gaussians, V views, K = (degree + 1)^2 spherical-harmonics coefficients. A splat is one Gaussian in
one view: means2d [V, N, 2] px with pixel centres at +0.5; splats [V, N, 8] = conic (A, B, C), opacity,
red, green, blue, depth, where conic is the inverse of the 2D covariance [[a, b], [b, c]] in px^2;
radii [V, N] px as in 3DGS, 0 where not seen; reach [V, N, 2] px, half extents of the box outside
which alpha < 1/255.

As 3DGS (Kerbl et al. 2023; EWA splatting, Zwicker et al. 2002): covariance U U^T + LOW_PASS with
U = J W R(q) diag(s), J the perspective Jacobian at a point clamped to CLAMP times the half field of
view. Arithmetic inside is float64, for thin splats and for the sums over views; what is stored is
float32.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from gs_propeller.scenes.gaussians.raster.cpu_tiles import ALPHA_MIN

NEAR = 0.01  # world units; 3DGS has 0.2, too far for a camera that comes close to a small object
LOW_PASS = 0.3  # px^2 on the diagonal of the 2D covariance: no splat is thinner than about a pixel
CLAMP = 1.3  # the Jacobian is taken at most at this multiple of tan(fov / 2) off the axis
SIGMAS = 3.0  # radius of a splat
_SAFETY = 1.001  # on reach, for the float32 rounding of the blend
_ENDLESS = 1e9  # px: any longer is as long, and this one converts to an integer

_C0 = 0.28209479177387814
_C1 = 0.4886025119029199
_C2 = (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
_C3 = (0.5900435899266435, 2.890611442640554, 0.4570457994644658, 0.3731763325901154, 1.445305721320277)


def lens(focal, height, width):
    """focal length, width, height px, and the slopes at which the Jacobian is clamped"""
    return focal, width, height, CLAMP * 0.5 * width / focal, CLAMP * 0.5 * height / focal


@njit(cache=True, error_model="numpy")  # pragma: no cover - compiled
def _harmonics(direction, degree, basis):
    """basis[k] = Y_k(direction), in 3DGS's order and signs."""
    x, y, z = direction
    basis[0] = _C0
    if degree > 0:
        basis[1], basis[2], basis[3] = -_C1 * y, _C1 * z, -_C1 * x
    if degree > 1:
        xx, yy, zz = x * x, y * y, z * z
        basis[4], basis[5] = _C2[0] * x * y, -_C2[0] * y * z
        basis[6] = _C2[1] * (2.0 * zz - xx - yy)
        basis[7], basis[8] = -_C2[0] * x * z, _C2[2] * (xx - yy)
        if degree > 2:
            basis[9], basis[15] = -_C3[0] * y * (3.0 * xx - yy), -_C3[0] * x * (xx - 3.0 * yy)
            basis[10], basis[14] = _C3[1] * x * y * z, _C3[4] * z * (xx - yy)
            basis[11], basis[13] = -_C3[2] * y * (4.0 * zz - xx - yy), -_C3[2] * x * (4.0 * zz - xx - yy)
            basis[12] = _C3[3] * z * (2.0 * zz - 3.0 * xx - 3.0 * yy)


@njit(cache=True, error_model="numpy")  # pragma: no cover - compiled
def _harmonics_adjoint(direction, degree, g):
    """Gradient of sum_k g[k] Y_k with respect to the direction."""
    x, y, z = direction
    gx, gy, gz = -_C1 * g[3], -_C1 * g[1], _C1 * g[2]
    if degree > 1:
        xx, yy, zz = x * x, y * y, z * z
        gx += _C2[0] * (y * g[4] - z * g[7]) - 2.0 * x * (_C2[1] * g[6] - _C2[2] * g[8])
        gy += _C2[0] * (x * g[4] - z * g[5]) - 2.0 * y * (_C2[1] * g[6] + _C2[2] * g[8])
        gz += _C2[0] * (-y * g[5] - x * g[7]) + 4.0 * _C2[1] * z * g[6]
        if degree > 2:
            d11, d13 = -_C3[2] * g[11], -_C3[2] * g[13]
            d9, d15 = -_C3[0] * g[9], -_C3[0] * g[15]
            d10, d12, d14 = _C3[1] * g[10], _C3[3] * g[12], _C3[4] * g[14]
            gx += 6.0 * x * y * d9 + y * z * d10 - 2.0 * x * y * d11 - 6.0 * x * z * d12
            gx += (4.0 * zz - 3.0 * xx - yy) * d13 + 2.0 * x * z * d14 + 3.0 * (xx - yy) * d15
            gy += 3.0 * (xx - yy) * d9 + x * z * d10 + (4.0 * zz - xx - 3.0 * yy) * d11 - 6.0 * y * z * d12
            gy += -2.0 * x * y * d13 - 2.0 * y * z * d14 - 6.0 * x * y * d15
            gz += x * y * d10 + 8.0 * y * z * d11 + (6.0 * zz - 3.0 * xx - 3.0 * yy) * d12
            gz += 8.0 * x * z * d13 + (xx - yy) * d14
    return gx, gy, gz


@njit(cache=True, error_model="numpy")  # pragma: no cover - compiled
def _shape(quat, log_scale, unit, scale, rotation):
    """Fills unit quaternion, scales and rotation; returns the norm. A zero quaternion turns nothing."""
    norm = math.sqrt(quat[0] ** 2.0 + quat[1] ** 2.0 + quat[2] ** 2.0 + quat[3] ** 2.0)
    for k in range(4):
        unit[k] = quat[k] / norm if norm > 0.0 else 0.0
    w, x, y, z = unit[0], unit[1], unit[2], unit[3]
    rotation[0, 0], rotation[1, 1] = 1.0 - 2.0 * (y * y + z * z), 1.0 - 2.0 * (x * x + z * z)
    rotation[2, 2] = 1.0 - 2.0 * (x * x + y * y)
    rotation[0, 1], rotation[1, 0] = 2.0 * (x * y - w * z), 2.0 * (x * y + w * z)
    rotation[0, 2], rotation[2, 0] = 2.0 * (x * z + w * y), 2.0 * (x * z - w * y)
    rotation[1, 2], rotation[2, 1] = 2.0 * (y * z - w * x), 2.0 * (y * z + w * x)
    for k in range(3):
        scale[k] = math.exp(float(log_scale[k]))
    return norm


@njit(cache=True, error_model="numpy")  # pragma: no cover - compiled
def _to_camera(mean, w2c):
    x, y, z = float(mean[0]), float(mean[1]), float(mean[2])
    return (
        w2c[0, 0] * x + w2c[0, 1] * y + w2c[0, 2] * z + w2c[0, 3],
        w2c[1, 0] * x + w2c[1, 1] * y + w2c[1, 2] * z + w2c[1, 3],
        w2c[2, 0] * x + w2c[2, 1] * y + w2c[2, 2] * z + w2c[2, 3],
    )


@njit(cache=True, error_model="numpy")  # pragma: no cover - compiled
def _spread(point, w2c, rotation, scale, focal, limit_x, limit_y, jw, u):
    """Fills jw = J W and u = J W R S, [2, 3] each, J at slopes x / z and y / z within the limits."""
    x, y, z = point
    slope_x = min(max(x / z, -limit_x), limit_x)
    slope_y = min(max(y / z, -limit_y), limit_y)
    for k in range(3):
        jw[0, k] = focal / z * (w2c[0, k] - slope_x * w2c[2, k])
        jw[1, k] = focal / z * (w2c[1, k] - slope_y * w2c[2, k])
    for r in range(2):
        for k in range(3):
            u[r, k] = (
                jw[r, 0] * rotation[0, k] + jw[r, 1] * rotation[1, k] + jw[r, 2] * rotation[2, k]
            ) * scale[k]


@njit(cache=True, error_model="numpy")  # pragma: no cover - compiled
def _covariance(u):
    """a, b, c and the determinant, by Cauchy-Binet: no cancellation however thin the splat."""
    a = u[0, 0] * u[0, 0] + u[0, 1] * u[0, 1] + u[0, 2] * u[0, 2]
    b = u[0, 0] * u[1, 0] + u[0, 1] * u[1, 1] + u[0, 2] * u[1, 2]
    c = u[1, 0] * u[1, 0] + u[1, 1] * u[1, 1] + u[1, 2] * u[1, 2]
    cross_0 = u[0, 1] * u[1, 2] - u[0, 2] * u[1, 1]
    cross_1 = u[0, 2] * u[1, 0] - u[0, 0] * u[1, 2]
    cross_2 = u[0, 0] * u[1, 1] - u[0, 1] * u[1, 0]
    det = cross_0 * cross_0 + cross_1 * cross_1 + cross_2 * cross_2 + LOW_PASS * (a + c) + LOW_PASS * LOW_PASS
    return a + LOW_PASS, b, c + LOW_PASS, det


@njit(cache=True, error_model="numpy")  # pragma: no cover - compiled
def _colour(mean, centre, dc, rest, degree, basis, rgb):
    """Fills basis and the unclamped rgb; returns the unit direction and the distance, which degree 0 leaves out."""
    if degree == 0:
        basis[0] = _C0
        for c in range(3):
            rgb[c] = 0.5 + _C0 * dc[0, c]
        return (0.0, 0.0, 0.0), 1.0
    dx, dy, dz = mean[0] - centre[0], mean[1] - centre[1], mean[2] - centre[2]
    distance = max(math.sqrt(dx * dx + dy * dy + dz * dz), 1e-12)
    direction = (dx / distance, dy / distance, dz / distance)
    _harmonics(direction, degree, basis)
    for c in range(3):
        rgb[c] = 0.5 + _C0 * dc[0, c]
        for k in range(rest.shape[0]):
            rgb[c] += basis[k + 1] * rest[k, c]
    return direction, distance


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def project(gaussians, degree, cameras, means2d, splats, radii, reach, part, parts):
    """Fills means2d, splats, radii and reach for this part of the Gaussians, in every view."""
    means, log_scales, quats, logits, sh_dc, sh_rest = gaussians
    w2c, centres, lenses = cameras
    unit, scale, rotation, rgb = np.empty(4), np.empty(3), np.empty((3, 3)), np.empty(3)
    jw, u, basis = np.empty((2, 3)), np.empty((2, 3)), np.empty(16)
    total = means.shape[0]
    for n in range(total * part // parts, total * (part + 1) // parts):
        _shape(quats[n], log_scales[n], unit, scale, rotation)
        opacity = 1.0 / (1.0 + math.exp(-float(logits[n])))
        for v in range(w2c.shape[0]):
            means2d[v, n], splats[v, n], radii[v, n], reach[v, n] = 0.0, 0.0, 0.0, 0.0
            focal, width, height, limit_x, limit_y = lenses[v]
            point = _to_camera(means[n], w2c[v])
            x, y, z = point
            if not (z > NEAR and math.isfinite(x + y + z)):
                continue
            _spread(point, w2c[v], rotation, scale, focal, limit_x, limit_y, jw, u)
            a, b, c, det = _covariance(u)
            if not math.isfinite(det):
                continue
            mean_x, mean_y = focal * x / z + 0.5 * width, focal * y / z + 0.5 * height
            half = 0.5 * (a - c)
            radius = SIGMAS * math.sqrt(0.5 * (a + c) + math.sqrt(max(0.1, half * half + b * b)))
            radius = math.ceil(min(radius, _ENDLESS))
            if mean_x + radius <= 0.0 or mean_x - radius >= width:
                continue
            if mean_y + radius <= 0.0 or mean_y - radius >= height:
                continue
            _colour(means[n], centres[v], sh_dc[n], sh_rest[n], degree, basis, rgb)
            means2d[v, n, 0], means2d[v, n, 1] = mean_x, mean_y
            splats[v, n, 0], splats[v, n, 1], splats[v, n, 2] = c / det, -b / det, a / det
            splats[v, n, 3], splats[v, n, 7] = opacity, z
            for k in range(3):
                splats[v, n, 4 + k] = max(rgb[k], 0.0)
            radii[v, n] = radius
            if opacity > ALPHA_MIN:
                spread = _SAFETY * math.sqrt(2.0 * math.log(opacity / ALPHA_MIN))
                reach[v, n, 0] = min(spread * math.sqrt(a) + 0.01, _ENDLESS)
                reach[v, n, 1] = min(spread * math.sqrt(c) + 0.01, _ENDLESS)


@njit(cache=True, error_model="numpy")  # pragma: no cover - compiled
def _spread_adjoint(u, conic, g_conic, g_u):
    """Gradient at U of the conic Q = (U U^T + low pass)^-1: dU = 2 H U with H = -Q G Q."""
    a, b, c = conic
    g_a, g_b, g_c = g_conic[0], 0.5 * g_conic[1], g_conic[2]
    p00, p01 = a * g_a + b * g_b, a * g_b + b * g_c
    p10, p11 = b * g_a + c * g_b, b * g_b + c * g_c
    h00, h01, h11 = -(p00 * a + p01 * b), -(p00 * b + p01 * c), -(p10 * b + p11 * c)
    for k in range(3):
        g_u[0, k] = 2.0 * (h00 * u[0, k] + h01 * u[1, k])
        g_u[1, k] = 2.0 * (h01 * u[0, k] + h11 * u[1, k])


@njit(cache=True, error_model="numpy")  # pragma: no cover - compiled
def _rotation_adjoint(unit, g, out):
    """out = gradient at the unit quaternion of sum_ij g[i, j] R_ij."""
    w, x, y, z = unit
    out[0] = 2.0 * (z * (g[1, 0] - g[0, 1]) + y * (g[0, 2] - g[2, 0]) + x * (g[2, 1] - g[1, 2]))
    out[1] = 2.0 * (y * (g[0, 1] + g[1, 0]) + z * (g[0, 2] + g[2, 0]) + w * (g[2, 1] - g[1, 2]))
    out[1] -= 4.0 * x * (g[1, 1] + g[2, 2])
    out[2] = 2.0 * (x * (g[0, 1] + g[1, 0]) + w * (g[0, 2] - g[2, 0]) + z * (g[1, 2] + g[2, 1]))
    out[2] -= 4.0 * y * (g[0, 0] + g[2, 2])
    out[3] = 2.0 * (w * (g[1, 0] - g[0, 1]) + x * (g[0, 2] + g[2, 0]) + y * (g[1, 2] + g[2, 1]))
    out[3] -= 4.0 * z * (g[0, 0] + g[1, 1])


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def project_adjoint(gaussians, degree, cameras, radii, g_means2d, g_splats, grads, part, parts):
    """Gradient of project for this part of the Gaussians, summed over the views in their order."""
    means, log_scales, quats, logits, sh_dc, sh_rest = gaussians
    g_means, g_log_scales, g_quats, g_logits, g_dc, g_rest = grads
    w2c, centres, lenses = cameras
    unit, scale, rotation, rgb = np.empty(4), np.empty(3), np.empty((3, 3)), np.empty(3)
    jw, u, basis = np.empty((2, 3)), np.empty((2, 3)), np.empty(16)
    g_u, g_jw, g_rotation, g_unit = np.empty((2, 3)), np.empty((2, 3)), np.empty((3, 3)), np.empty(4)
    g_mean, g_scale, g_sh, g_y, g_rgb = np.empty(3), np.empty(3), np.empty((16, 3)), np.empty(16), np.empty(3)
    total, used = means.shape[0], (degree + 1) ** 2
    for n in range(total * part // parts, total * (part + 1) // parts):
        norm = _shape(quats[n], log_scales[n], unit, scale, rotation)
        opacity = 1.0 / (1.0 + math.exp(-float(logits[n])))
        g_mean[:], g_scale[:], g_rotation[:], g_sh[:used], g_opacity = 0.0, 0.0, 0.0, 0.0, 0.0
        seen = False
        for v in range(w2c.shape[0]):
            if radii[v, n] == 0.0:
                continue
            seen = True
            g, camera = g_splats[v, n], w2c[v]
            focal, _, _, limit_x, limit_y = lenses[v]
            point = _to_camera(means[n], camera)
            x, y, z = point
            _spread(point, camera, rotation, scale, focal, limit_x, limit_y, jw, u)
            a, b, c, det = _covariance(u)
            _spread_adjoint(u, (c / det, -b / det, a / det), g, g_u)
            # U = jw R S: into R S here, into jw and from it into the point below.
            for r in range(2):
                for i in range(3):
                    g_jw[r, i] = 0.0
                    for k in range(3):
                        g_jw[r, i] += g_u[r, k] * rotation[i, k] * scale[k]
            for i in range(3):
                for k in range(3):
                    g_rotation[i, k] += jw[0, i] * g_u[0, k] + jw[1, i] * g_u[1, k]
            # jw[0] = f / z (W[0] - slope_x W[2]), so d/dz = -jw / z, d/dslope_x = -f / z W[2].
            g_slope_x, g_slope_y, g_z = 0.0, 0.0, float(g[7])
            for i in range(3):
                g_slope_x -= focal / z * camera[2, i] * g_jw[0, i]
                g_slope_y -= focal / z * camera[2, i] * g_jw[1, i]
                g_z -= (jw[0, i] * g_jw[0, i] + jw[1, i] * g_jw[1, i]) / z
            if abs(x / z) > limit_x:
                g_slope_x = 0.0  # exact, where 3DGS also leaves a part of it in z
            if abs(y / z) > limit_y:
                g_slope_y = 0.0
            g_x = (g_slope_x + focal * g_means2d[v, n, 0]) / z
            g_y_cam = (g_slope_y + focal * g_means2d[v, n, 1]) / z
            g_z -= (g_x * x + g_y_cam * y) / z
            for i in range(3):
                g_mean[i] += camera[0, i] * g_x + camera[1, i] * g_y_cam + camera[2, i] * g_z
            g_opacity += g[3]

            direction, distance = _colour(means[n], centres[v], sh_dc[n], sh_rest[n], degree, basis, rgb)
            for k in range(3):
                g_rgb[k] = g[4 + k] if rgb[k] >= 0.0 else 0.0
            for k in range(used):
                for i in range(3):
                    g_sh[k, i] += basis[k] * g_rgb[i]
            if degree > 0:
                for k in range(1, used):
                    g_y[k] = 0.0
                    for i in range(3):
                        g_y[k] += sh_rest[n, k - 1, i] * g_rgb[i]
                g_direction = _harmonics_adjoint(direction, degree, g_y)
                along = 0.0
                for i in range(3):
                    along += direction[i] * g_direction[i]
                for i in range(3):
                    g_mean[i] += (g_direction[i] - along * direction[i]) / distance
        if not seen:  # leave the zeros: a scale that overflows is never seen, and inf times 0 is no zero
            g_means[n], g_log_scales[n], g_quats[n], g_dc[n], g_rest[n] = 0.0, 0.0, 0.0, 0.0, 0.0
            g_logits[n] = 0.0
            continue
        for k in range(3):
            for i in range(3):
                g_scale[k] += g_rotation[i, k] * rotation[i, k] * scale[k]
                g_rotation[i, k] *= scale[k]
        _rotation_adjoint(unit, g_rotation, g_unit)
        along = 0.0
        for k in range(4):
            along += unit[k] * g_unit[k]
        for k in range(4):
            g_quats[n, k] = (g_unit[k] - along * unit[k]) / norm if norm > 0.0 else 0.0
        for k in range(3):
            g_means[n, k], g_log_scales[n, k], g_dc[n, 0, k] = g_mean[k], g_scale[k], g_sh[0, k]
            for j in range(used - 1):
                g_rest[n, j, k] = g_sh[j + 1, k]
        g_logits[n] = g_opacity * opacity * (1.0 - opacity)
