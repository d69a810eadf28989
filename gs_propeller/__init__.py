"""Image- and text-to-3D by score distillation on 3D Gaussians, solved in parallel in time."""

from gs_propeller.base.kernels import find_place

find_place()  # before anything imports numba
