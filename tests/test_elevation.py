"""The elevation of a picture: found out from views that agree, kept by a run, told to other ranks."""

from __future__ import annotations

import math
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trimesh
from PIL import Image
from torch import Tensor

from gs_propeller.app import elevation as app
from gs_propeller.app.config import Config, load, to_yaml, updated
from gs_propeller.app.first_stage import checked
from gs_propeller.app.plan import phases_of, stages_of
from gs_propeller.app.refining import started
from gs_propeller.base.camera import orbit, relative_cameras
from gs_propeller.base.errors import UserError
from gs_propeller.base.files import save_tensors
from gs_propeller.distil.settings import ViewSettings
from gs_propeller.pictures.elevation import AROUND, CANDIDATES_DEG, estimated_deg, least, lost, standing
from gs_propeller.pictures.picture import Picture
from guidance.pocket.families import make
from guidance.pocket.render import FOV_Y_RAD, RADIUS, framed, on_white, views


def seen_from(elevation_deg: float, family: str = "furniture") -> tuple[Tensor, Any]:
    """(silhouette [1, 64, 64], the true views by camera codes) of an object from there."""
    at = math.radians(elevation_deg)
    thing = framed(make(family, 4), 0.4, at)

    def shown(codes: Tensor) -> Tensor:
        turns = torch.atan2(codes[:, 1], codes[:, 2])
        return views(thing, orbit(turns + 0.4, at - codes[:, 0], RADIUS, FOV_Y_RAD), 64)

    return shown(torch.tensor([[0.0, 0.0, 1.0, 0.0]]))[0, 3:], lambda codes: on_white(shown(codes))


@pytest.mark.parametrize("truth", [-7, 0, 12, 28])
@pytest.mark.parametrize("family", ["furniture", "quadruped"])
def test_true_views_tell_the_elevation(truth: int, family: str) -> None:
    silhouette, shown = seen_from(truth, family=family)
    assert abs(estimated_deg(silhouette, shown, RADIUS, FOV_Y_RAD) - truth) <= 3


def test_the_hull_of_true_silhouettes_loses_least_where_they_were_taken() -> None:
    silhouette, shown = seen_from(20)
    azimuths, lifts = standing()
    seen = shown(relative_cameras(0.0, azimuths, lifts))
    masks = torch.cat([silhouette[None], ((1 - seen).amax(1, keepdim=True) / 0.12).clamp(0, 1)])
    losses = [lost(masks, math.radians(e), RADIUS, FOV_Y_RAD) for e in (0, 20, 40)]
    assert losses[1] < 0.5 * min(losses[0], losses[2])
    nearer = [lost(masks, math.radians(20), RADIUS * k, FOV_Y_RAD) for k in (1.0, 2.0)]
    assert nearer[0] == pytest.approx(nearer[1], abs=0.02)  # the object is measured by the distance


def test_between_candidates_by_a_parabola_and_where_nothing_tells_the_usual_one() -> None:
    candidates = torch.tensor(CANDIDATES_DEG, dtype=torch.float64)
    assert least(1.0 + (candidates - 17.0).square()) == pytest.approx(17.0, abs=0.05)
    assert least(torch.ones(len(candidates))) == pytest.approx(5.0)
    assert least(torch.zeros(len(candidates))) == pytest.approx(5.0)
    assert -20.0 <= least(candidates + 100.0) <= -5.0  # at the end of what is looked at
    assert 40.0 <= least(50.0 - candidates) <= 50.0


def test_auto_is_a_word_that_elevation_alone_takes(tmp_path: Path) -> None:
    config = updated(Config(), {"elevation": "Auto"})
    assert config.elevation == "auto"
    file = tmp_path / "kept.yaml"
    file.write_text(to_yaml(config))
    assert load(["--config", str(file)])[0].elevation == "auto"
    assert updated(config, {"elevation": "12"}).elevation == 12.0
    with pytest.raises(UserError, match="elevation=high: a number or auto is wanted"):
        updated(Config(), {"elevation": "high"})
    with pytest.raises(UserError, match="elevation=high: a number or auto is wanted"):
        Config(elevation="high")
    with pytest.raises(UserError, match="radius=auto: a number is wanted"):
        updated(Config(), {"radius": "auto"})
    with pytest.raises(UserError, match=r"elevation=81\.0 is above"):
        Config(elevation=81.0)
    with pytest.raises(UserError, match="found out by a run of a picture"):
        _ = ViewSettings(elevation="auto").elevation_rad


def test_a_stage_has_no_elevation_of_its_own() -> None:
    with pytest.raises(UserError, match=r"elevation=auto.*whole run"):
        stages_of(Config(prompt="x", stages="[{elevation: auto}, {steps: 3}]"))
    with pytest.raises(UserError, match=r"elevation=3.*whole run"):
        phases_of(Config(prompt="x", changes="{3: {elevation: 3}}"))


class Asked:
    """Stands for a view prior that sees an object from 20 degrees; asked: how often."""

    def __init__(self, kind: str = "v_prediction") -> None:
        self.silhouette, self.shown = seen_from(20)
        self.device, self.latent_shape, self.size_px = torch.device("cpu"), (4, 8, 8), 64
        self.asked: list[int] = []
        self.scheduler = SimpleNamespace(config=SimpleNamespace(prediction_type=kind))

    def embed(self, image: Tensor) -> Tensor:
        return image

    def refine(
        self, images: Tensor, told: Tensor, codes: Tensor, noise: Tensor, strength: float, steps: int, scale: float
    ) -> Tensor:  # fmt: skip
        assert strength == 1.0 and len(images) == len(noise) == len(codes) == AROUND
        self.asked.append(steps)
        return self.shown(codes)  # type: ignore[no-any-return]


def test_a_run_keeps_the_elevation_that_it_began_with(tmp_path: Path) -> None:
    prior, said = Asked(), list[str]()
    priors: Any = SimpleNamespace(zero123=prior)
    picture = Picture(torch.ones(3, 64, 64), prior.silhouette)
    asked = Config(input="a.png", elevation="auto", outdir=str(tmp_path))
    assert app.placed(asked.but(elevation=3.0), picture, priors, said.append).elevation == 3.0
    assert app.placed(asked, None, priors, said.append).elevation == 0.0
    assert not prior.asked and not said

    found = app.placed(asked, picture, priors, said.append)
    assert abs(found.elevation - 20) <= 3 and said[0].startswith(f"elevation={found.elevation:g} by estimate")
    assert found == asked.but(elevation=found.elevation)
    assert app.placed(asked.but(seed=7), picture, priors, said.append).elevation == found.elevation

    asked.run_folder.mkdir()
    kept = asked.run_folder / "config.yaml"
    for there, goes_on in ((0.5, True), (4.0, False)):
        kept.write_text(to_yaml(found.but(elevation=found.elevation + there)))
        went = app.placed(asked, picture, priors, said.append).elevation - found.elevation
        assert went == (there if goes_on else 0.0)
        asked_before = len(prior.asked)
        own = app.placed(asked, picture, priors, said.append, own=True).elevation - found.elevation
        assert own == there and len(prior.asked) == asked_before
    elsewhere = app.placed(asked.but(mesh="thing.obj"), picture, priors, said.append, own=True)
    assert elsewhere.elevation == found.elevation  # the folder's run is not that mesh's
    kept.write_text("no_such_option: 3\n")
    assert app.placed(asked, picture, priors, said.append).elevation == found.elevation


def test_a_prior_of_noise_is_asked_in_many_steps() -> None:
    for kind, steps in (("v_prediction", 1), ("epsilon", app.STEPS)):
        prior: Any = Asked(kind)
        app.estimated(Config(input="a.png"), Picture(torch.ones(3, 64, 64), prior.silhouette), prior)
        assert prior.asked == [steps]


def test_other_ranks_are_told_the_elevation() -> None:
    asked = Config(input="a.png", elevation="auto")
    for found in (12.0, -7.0, 12.345):
        config = asked.but(elevation=found)
        assert app.noted(asked, app.note_of(config)) == config
    given = asked.but(elevation=1 / 3)
    assert app.noted(given, app.note_of(given)) == given  # as all ranks were given it
    assert app.assumed(asked).elevation == 0.0 and app.assumed(given) is given
    assert replace(asked.sections.views, elevation=2.0).elevation_rad == pytest.approx(math.radians(2))


def test_the_second_stage_sees_the_picture_as_the_first_did(tmp_path: Path) -> None:
    """A mesh would be bent, without a word, to a picture seen from elsewhere or cut out otherwise."""
    file = tmp_path / "thing.png"
    picture = Image.new("RGBA", (64, 64))
    picture.paste((200, 0, 0, 255), (10, 20, 50, 50))
    picture.save(file)
    made = Config(input=str(file), outdir=str(tmp_path), elevation=20.12345, radius=3.0)
    made.run_folder.mkdir()
    (made.run_folder / "config.yaml").write_text(to_yaml(made))
    trimesh.creation.box().export(made.run_folder / "thing.obj")
    for same in (made, app.assumed(made.but(elevation="auto")), made.but(turntable_size=64)):
        started(same)
    started(made.but(radius=2.0, mesh=str(made.run_folder / "thing.obj")))  # finds its place by itself
    for other in ({"radius": 2.0}, {"elevation": 0.0}, {"fov_y_deg": 30.0}, {"cutout_box": "0,0,1,0.5"}):
        (name,) = other
        with pytest.raises(UserError, match=f"was made with {name}="):
            started(made.but(**other))


def test_a_mesh_of_before_is_not_refined_for_a_run_that_was_broken_off(tmp_path: Path) -> None:
    made = Config(prompt="a box", outdir=str(tmp_path), name="box", steps=100)
    made.run_folder.mkdir()
    (made.run_folder / "config.yaml").write_text(to_yaml(made))
    mesh, kept = made.run_folder / "box.obj", made.run_folder / "checkpoint.safetensors"
    trimesh.creation.box().export(mesh)
    for start, age_s, refused in ((100, 60, False), (40, -60, False), (40, 60, True)):
        save_tensors(kept, {"a": torch.zeros(1)}, {"start": start})
        os.utime(kept, (mesh.stat().st_mtime + age_s,) * 2)
        with pytest.raises(UserError, match="broken off at step 40") if refused else nullcontext():
            started(made)


def test_normals_are_shown_of_tetrahedra_alone() -> None:
    """Else colours were, without a word."""
    with pytest.raises(UserError, match="shows=normals is of tetrahedra, and scene=gaussians shows colours"):
        checked(Config(prompt="a car", shows="normals"))


def test_a_mesh_is_for_the_second_stage() -> None:
    with pytest.raises(UserError, match=r"mesh=a.glb is for main2_mesh.py"):
        checked(Config(prompt="a car", mesh="a.glb"))
