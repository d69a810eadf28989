"""The pocket text prior's training and what ships of it; the judge of bench.text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from bench import retrieval, text
from guidance import POCKET_TEXT
from guidance.pocket import captions, stream, text_stream, train_text, training
from guidance.pocket.score_text import fixed_sample
from guidance.stable_diffusion import StableDiffusion


@pytest.mark.slow
def test_training_learns_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same few samples, noise and all, at every step: their loss falls at once."""
    small = text_stream.drawn(0, 6)
    monkeypatch.setattr(text_stream, "drawn", lambda number, models: small)
    monkeypatch.setattr(stream, "window", lambda step, first: range(1))
    monkeypatch.setattr(train_text, "keyed", lambda seed, step: training.keyed(seed, 0))
    monkeypatch.setattr(captions, "MEMBERS", 100)  # they say all the words, as the shipped weights want it
    monkeypatch.setattr(training, "LOG_EVERY", 5)
    clock = iter(range(10_000))
    monkeypatch.setattr(training.time, "time", lambda: float(next(clock)))
    log = training.Log(tmp_path / "log.jsonl")
    steps = []
    for _ in range(2):
        train_text.train(training.Options(tmp_path, minutes=0.4, batch=4, lr=4e-3), log)
        steps.append(int(train_text.load_file(tmp_path / training.CHECKPOINT)["run.step"]))
    assert steps[1] > steps[0] > 0
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["stage"] == "unet"]
    assert losses[-1] < 0.8 * losses[0]
    sums = train_text.export(training.Options(tmp_path, minutes=0.0), tmp_path / "prior")
    record = json.loads((tmp_path / "prior" / "training.json").read_text())
    assert record["sha256"] == sums and record["steps"] == steps[1]
    prior = StableDiffusion(tmp_path / "prior")
    assert prior.size_px == 64 and "cube" in prior.words
    onward = training.Options(
        tmp_path / "more", minutes=1.0, batch=4, start=tmp_path / "prior", until=steps[1] + 1
    )
    train_text.train(onward, log)  # another machine, which has the weights alone
    run = train_text.load_file(onward.out / training.CHECKPOINT)
    assert int(run["run.step"]) == steps[1] + 1


def test_no_shipped_file_is_a_link() -> None:
    """Links are lost in a zip and in some checkouts."""
    assert not [path for path in POCKET_TEXT.parent.rglob("*") if path.is_symlink()]


@pytest.mark.slow
def test_the_shipped_text_prior_is_the_recorded_one() -> None:
    record = json.loads((POCKET_TEXT / "training.json").read_text())
    for name, checksum in record["sha256"].items():
        assert hashlib.sha256((POCKET_TEXT / name).read_bytes()).hexdigest() == checksum
    assert sum(p.stat().st_size for p in POCKET_TEXT.rglob("*") if p.is_file()) < 20e6
    found = fixed_sample(StableDiffusion(POCKET_TEXT)).flatten()
    assert (
        found - torch.tensor(record["fixed_sample"])
    ).abs().max() < 0.02  # other processors round otherwise


def test_the_judge_learns_from_softer_and_shifted_views() -> None:
    """White stays white, what is there stays there to within the shift, and no edge is sharper than before."""
    white = torch.ones(4, 3, 64, 64)
    assert torch.equal(retrieval.softened(white, torch.Generator().manual_seed(0)), white)
    square = white.clone()
    square[:, :, 20:44, 20:44] = torch.tensor([0.8, 0.2, 0.1])[:, None, None]
    seen, again = (retrieval.softened(square, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(seen, again) and not torch.allclose(seen[0], seen[1], atol=0.1)
    assert torch.allclose(seen[:, :, 28:36, 28:36], square[:, :, 28:36, 28:36], atol=1e-5)
    area, was = (1 - seen[:, 1]).sum((1, 2)) / 0.8, 24**2
    assert ((0.79 * was < area) & (area < 1.3 * was)).all()  # 1 / 1.12^2 to 1 / 0.88^2
    steps = [(x[..., 1:] - x[..., :-1]).abs().amax((1, 2, 3)) for x in (seen, square)]
    assert (steps[0] <= steps[1] + 1e-6).all()


@pytest.mark.slow
def test_the_judge_learns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A few steps on a small pool: better than chance at the pool's own views."""
    monkeypatch.setattr(captions, "MEMBERS", 20)
    monkeypatch.setattr(retrieval, "OBJECTS", 24)
    monkeypatch.setattr(retrieval, "BATCH", 24)
    model, tokenizer, steps = retrieval.train(10.0, steps=60)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    judge = retrieval.load_judge(tmp_path)
    cases = [retrieval.trained_on(retrieval.SEED + k) for k in range(24)]
    images = torch.stack([views[0] for _, views in cases]).float() / 255
    right = judge.chosen(images, [caption for caption, _ in cases]) == torch.arange(24)
    assert steps == 60 and float(right.float().mean()) > 0.12  # chance is 0.04
    assert torch.allclose(judge.pictures(images).norm(dim=1), torch.ones(24), atol=1e-5)


@pytest.mark.slow
def test_the_shipped_judge_knows_its_captions() -> None:
    record = json.loads((retrieval.POCKET_JUDGE / "training.json").read_text())
    for name, checksum in record["sha256"].items():
        assert hashlib.sha256((retrieval.POCKET_JUDGE / name).read_bytes()).hexdigest() == checksum
    assert abs(retrieval.accuracy(retrieval.load_judge(), 2) - record["top1_of_30"]) < 0.15


def test_the_nouns_are_judged_among_all_sixty_and_kept_apart() -> None:
    """Today's kept runs stay valid: a job among the first thirty has the key it had."""
    assert len(set(text.PROMPTS + text.NOUN_PROMPTS)) == 60
    one = text.Job("a pink star", "sds")
    old = hashlib.sha256(json.dumps(["m", "a pink star", "sds", []]).encode()).hexdigest()[:24]
    assert one.key("m") == old
    wider = text.Job("a pink star", "sds", among=text.PROMPTS + text.NOUN_PROMPTS)
    assert wider.key("m") != old


def test_an_assets_views_are_kept_for_another_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is made once, and its views come back as they were judged; other settings are another run."""
    made: list[text.Job] = []

    def solved(one: text.Job) -> tuple[dict[str, float], torch.Tensor]:
        made.append(one)
        views = torch.rand(text.VIEWS, 3, 8, 8, generator=torch.Generator().manual_seed(len(made)))
        return {"steps": 300, "passes": 40, "seconds": 1.5}, views

    monkeypatch.setattr(text, "SHEETS", tmp_path)
    monkeypatch.setattr(text, "solved", solved)
    one = text.Job("a pink star", "sds")
    figures, views = text.shown(one)
    again, kept = text.shown(text.replace(one, among=text.PROMPTS + text.NOUN_PROMPTS))
    assert made == [one]
    assert again == figures
    assert torch.equal(views, kept)
    text.shown(text.Job("a pink star", "sds", (("steps", 100),)))
    assert len(made) == 2
