"""Options of meshes: extraction, texture, and their refinement."""

from __future__ import annotations

from dataclasses import dataclass

from gs_propeller.base.options import Section, option


@dataclass(frozen=True)
class MeshSettings(Section):
    """Extraction and baking."""

    # fmt: off
    mesh_resolution: int = option(128, "of the density grid", "voxels", 16, 512)
    mesh_faces: int = option(10_000, "after decimation", "faces", 100, 10_000_000)
    texture_size: int = option(1024, "side of the texture", "px", 64, 8192)
    bake_views: int = option(32, "that the texture is baked from", "views", 4, 512)
    bake_size: int = option(256, "side of those views", "px", 64, 2048)
    # fmt: on


@dataclass(frozen=True)
class RefineSettings(Section):
    """The second stage (main2_mesh.py)."""

    # fmt: off
    mesh: str = option("", "mesh to refine; empty: the first stage's", path=True)
    refine_steps: int = option(60, "of texture refinement; DreamGaussian: 50", "steps", 1, 100_000)
    refine_batch: int = option(4, "views a refinement step", "views", 1, 256)
    texture_lr: float = option(0.005, "learning rate of the texture, at first; DreamGaussian: 0.2", "", 0)
    refine_guidance: float = option(1.0, "guidance scale of refinement; DreamGaussian: 5", "", 0, 1000)
    refine_text_guidance: float = option(3.0, "the same of the text prior", "", 0, 1000)
    refine_strength_max: float = option(0.95, "noise strength of the first refinement step", "", 0.01, 1)
    refine_strength_min: float = option(0.4, "noise strength of the last", "", 0.01, 1)
    refine_denoise: int = option(
        5, "denoising steps from noise alone; a strength takes its share. 20 gain nothing on the pocket prior", "steps",
        1, 1000)
    refine_texels: int = option(
        64, "side of the offset that all views learn: about what the prior resolves", "px", 16, 8192)
    refine_updates_per_evaluation: int = option(
        2, "Adam steps that one denoising of the views serves; DreamGaussian: 1, at twice the time", "", 1, 1000)
    train_geo: bool = option(True, "refinement moves the mesh's vertices too; DreamGaussian: false")
    geo_lr: float = option(5e-4, "of the vertices, at first; DreamGaussian: 0.0001", "world units", 0)
    lambda_known: float = option(4.0, "of the input view in refinement", "", 0)
    lambda_smooth: float = option(100.0, "weight of vertex offsets' differences along edges", "", 0)
    lambda_normal: float = option(0.01, "weight of folds between neighbouring faces", "", 0)
    refine_threshold: float = option(1e-5, "e, first fixed-point threshold of refinement, squared colour", "", 0)
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ordered("refine_strength_min", "refine_strength_max")
