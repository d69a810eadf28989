"""Image- and text-to-3D by score distillation on 3D Gaussians, solved in parallel in time."""
