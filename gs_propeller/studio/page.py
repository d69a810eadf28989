"""The page: what is asked for on the left, what becomes of it on the right. Its buttons are the endpoints of its API.

One run at a time: whoever comes meanwhile is told their place in the queue.
"""

from __future__ import annotations

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read on import: nothing is sent anywhere

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

import main2_mesh
import main_propeller
from gs_propeller.app.config import HERE, Config, load, updated
from gs_propeller.app.events import CutOut, FilesWritten, Listener, Note, PriorFound, StageEnded
from gs_propeller.app.guides import picture_of
from gs_propeller.base.errors import UserError
from gs_propeller.base.options import AUTO
from gs_propeller.command import FULL
from gs_propeller.studio import look
from gs_propeller.studio.address import address
from gs_propeller.studio.runs import Shown, followed, fresh_folder, latest_mesh, zipped

PICTURES = (str(HERE / "data" / "cat.png"),)
SENTENCES = (
    "a red cube on a blue cylinder",
    "a yellow house with a red roof",
    "a teal chair with brown legs",
    "a green cone on a yellow cube",
    "a blue car with a white cabin",
)
FAILED = "That did not work"
STAGES = {"distil": "Optimising", "refine": "Refining"}
WHITE = (1.0, 1.0, 1.0, 1.0)
LONGEST = 500  # letters of a sentence
WAITING = 64  # requests; who comes later is told so

Work = Callable[[Listener, threading.Event], Any]
Updates = Generator[dict[Any, Any], None, None]


def serve(words: Sequence[str]) -> None:
    """Serves the page until Ctrl-C. words: host=, port=, outdir=, and options of the runs. Raises UserError."""
    host, port, rest = address(words, 7860)
    Page(rest).launch(host, port)


@contextmanager
def in_a_line(*paths: str | None) -> Iterator[None]:
    """What a user can mend is said on the page, files by the names that they came with."""
    try:
        yield
    except (UserError, FloatingPointError) as error:
        line = str(error)
        for path in paths:
            line = line.replace(path, Path(path).name) if path else line
        raise gr.Error(line, duration=None, title=FAILED, print_exception=False) from error
    except torch.OutOfMemoryError as error:
        raise gr.Error(FULL, duration=None, title=FAILED, print_exception=False) from error


class Page:
    """The page and the runs that it starts. words: options of the runs, as on the command line; outdir= is the folder
    that they go into. Raises UserError."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        config = self.config(PICTURES[0], "")
        self.outdir = Path(
            config.outdir if any(w.startswith("outdir=") for w in words) else "runs/page"
        ).absolute()
        self.stops: dict[str | None, threading.Event] = {}
        self.blocks = gr.Blocks(title="Propeller", analytics_enabled=False, delete_cache=(3600, 24 * 3600))
        with self.blocks:
            self._lay_out(config)

    def config(self, picture: str | None, prompt: str | None, **options: Any) -> Config:
        """What a run of this picture, sentence or both is made with. Raises UserError."""
        name, said = "image" if picture else "text", (prompt or "").strip()
        if len(said) > LONGEST:
            raise UserError(f"the sentence has {len(said)} letters; {LONGEST} at most")
        config, _ = load(["--config", str(HERE / "configs" / f"{name}.yaml"), *self.words])
        return updated(config, {"input": picture or "", "prompt": said, **options})

    def launch(self, host: str, port: int, block: bool = True) -> str:
        """Serves the page until Ctrl-C, or in the background; its address. Raises UserError."""
        try:
            _, address, _ = self.blocks.queue(max_size=WAITING).launch(
                server_name=host, server_port=port, allowed_paths=[str(self.outdir)], theme=look.theme(), css=look.CSS,
                max_file_size="50mb", footer_links=["api"], ssr_mode=False, prevent_thread_lock=not block,
                quiet=not block,
            )  # fmt: skip
        except OSError as error:
            raise UserError(f"{error}; port=... takes another") from error
        return str(address)

    # ---- what the buttons do; their documentation is the API's

    def cut(
        self, picture: str | None, cutout: str, box: str, threshold: float
    ) -> tuple[NDArray[Any] | None, str]:
        """The picture as the program sees it, cut out and centred, and what is doubtful about it."""
        if not picture:
            return None, ""
        with in_a_line(picture):
            seen = picture_of(
                self.config(picture, "", cutout=cutout, cutout_box=box, cutout_threshold=threshold)
            )
        assert seen is not None
        return seen.rgba, look.notes([note.replace(picture, Path(picture).name) for note in seen.notes])

    def corner(self, picture: str, first: tuple[float, float] | None, at: gr.SelectData) -> tuple[Any, str]:
        """Two clicks make a box: (the first corner of a box to come, the box)."""
        with Image.open(picture) as opened:
            width, height = ImageOps.exif_transpose(opened).size
        here = at.index[0] / width, at.index[1] / height
        if first is None:
            gr.Info("Now click the opposite corner.", duration=4)
            return here, ""
        (left, right), (top, bottom) = sorted((first[0], here[0])), sorted((first[1], here[1]))
        return None, ",".join(
            f"{x:.3f}" for x in (left, top, max(right, left + 0.01), max(bottom, top + 0.01))
        )

    def make(
        self, picture: str | None, prompt: str, estimate: bool, elevation: float, seed: float, steps: float,
        faces: float, texture: float, cutout: str, box: str, threshold: float, request: gr.Request,
    ) -> Updates:  # fmt: skip
        """Makes the asset of a picture, a sentence or both; the same call's stream tells how far it is. estimate: the
        elevation is found out, whatever is said of it."""
        with in_a_line(picture):
            if not picture and not (prompt or "").strip():
                raise UserError("nothing to make an asset of: drop a picture or type a sentence")
            config = self.config(
                picture, prompt, elevation=AUTO if estimate else elevation, seed=seed, steps=steps, mesh_faces=faces,
                texture_size=texture, cutout=cutout, cutout_box=box, cutout_threshold=threshold,
            )  # fmt: skip
            picture_of(config)
            config = config.but(outdir=str(fresh_folder(self.outdir)))
            yield from self._following(
                config,
                request.session_hash,
                lambda listener, stop: main_propeller.make_asset(config, True, listener, stop),
            )

    def refine(self, config: Config | None, request: gr.Request) -> Updates:
        """Refines the texture and shape of what this session made last."""
        with in_a_line(config.input if config else None):
            if config is None:
                raise UserError("nothing to refine yet: make an asset first")
            anew = config.but(resume=False)
            yield from self._following(
                anew,
                request.session_hash,
                lambda listener, stop: main2_mesh.refine_asset(anew, True, listener, stop),
            )

    def stop(self, request: gr.Request) -> None:
        """Ends this session's run after the pass that is under way; the asset is made of what there is."""
        if (stop := self.stops.get(request.session_hash)) is not None:
            stop.set()

    def _following(self, config: Config, session: str | None, work: Work) -> Updates:
        stop = self.stops[session] = threading.Event()
        lines: list[str] = []
        yield {self.live: look.waiting("Loading"), self.notes: ""}
        try:
            with closing(followed(lambda listener: work(listener, stop))) as events:
                for event in events:
                    match event:
                        case Note(line) | PriorFound(line):
                            name = Path(config.input).name
                            lines.append(line.replace(config.input, name) if config.input else line)
                            yield {self.notes: look.notes(lines)}
                        case CutOut(picture):
                            yield {self.cutout_shown: picture.rgba}
                        case Shown(done, picture):
                            pace = done.seconds / max(done.step, 1) * (done.steps - done.step)
                            facts = [
                                f"{done.passes} passes", f"{done.accepted} of {done.slots} steps accepted in the last",
                                f"{done.seconds:.0f} s", f"about {pace:.0f} s to go",
                            ]  # fmt: skip
                            title = f"{STAGES[done.stage]}: step {done.step} of {done.steps}"
                            yield {self.live: look.live(picture, title, done.step / done.steps, facts)}
                        case StageEnded():
                            yield {self.live: look.waiting("Mesh, texture, film")}
                        case FilesWritten(_, files, facts):
                            yield {self.live: look.done(files.get("mp4"), facts), self.state: config}
        finally:
            self.stops.pop(session, None)

    def result(self, config: Config | None) -> tuple[str, Any, Any, Any]:
        """The mesh, the splat and the .zip of all files of what this session made or refined last."""
        with in_a_line():
            mesh = latest_mesh(config.run_folder, config.run_name) if config else None
            if config is None or mesh is None:
                raise UserError("nothing is made yet")
            folder, splat = config.run_folder, config.run_folder / f"{config.run_name}.ply"
            return (
                str(mesh),
                gr.DownloadButton(value=str(splat) if splat.exists() else None, interactive=splat.exists()),
                gr.DownloadButton(value=str(zipped(folder)), interactive=True),
                gr.Button(interactive=True),
            )

    # ---- where things are

    def _lay_out(self, config: Config) -> None:
        gr.HTML(look.HEAD)
        self.state, first_corner = gr.State(None), gr.State(None)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                with gr.Row():
                    picture = gr.Image(
                        label="Picture", type="filepath", image_mode=None, sources=["upload", "clipboard"],
                        height=230, min_width=140, buttons=[], elem_id="picture",
                    )  # fmt: skip
                    self.cutout_shown = gr.Image(
                        label="Cut-out", image_mode="RGBA", format="png", interactive=False, height=230, min_width=140,
                        buttons=[], elem_classes="cut", elem_id="cutout",
                    )  # fmt: skip
                with gr.Accordion("Correct the cut-out", open=False):
                    cutout = gr.Radio(
                        [("Find the object", "auto"), ("Find it anew", "search"), ("Keep as it is", "keep")],
                        value=config.cutout, show_label=False, container=False,
                    )  # fmt: skip
                    threshold = gr.Slider(
                        0.1, 4.0, config.cutout_threshold, step=0.1, label="Strictness",
                        info="less keeps more of what is like the background",
                    )  # fmt: skip
                    box = gr.Textbox(
                        config.cutout_box, label="Box", placeholder="click two corners on the picture",
                        info="left,top,right,bottom, each from 0 to 1; empty: the whole picture",
                    )  # fmt: skip
                prompt = gr.Textbox(
                    label="Sentence", placeholder="a red cube on a blue cylinder", lines=1, max_lines=3,
                    max_length=LONGEST, info="alone, or beside the picture", elem_id="sentence",
                )  # fmt: skip
                steps = gr.Slider(10, 1000, config.steps, step=10, label="Steps", elem_id="steps")
                auto = config.elevation == AUTO
                estimate = gr.Checkbox(auto, label="Estimate the camera's elevation", elem_id="estimate")
                elevation = gr.Slider(
                    -60, 60, 0 if auto else config.elevation, step=1, label="Elevation of the camera, degrees",
                    visible=not auto, elem_id="elevation",
                )  # fmt: skip
                with gr.Accordion("More", open=False), gr.Row():
                    seed = gr.Number(config.seed, label="Seed", precision=0, minimum=0, min_width=90)
                    faces = gr.Number(
                        config.mesh_faces, label="Faces", precision=0, minimum=100, min_width=90
                    )
                    texture = gr.Dropdown(
                        sorted({256, 512, 1024, 2048, 4096, config.texture_size}), value=config.texture_size,
                        label="Texture, px", min_width=90,
                    )  # fmt: skip
                with gr.Row():
                    make = gr.Button("Make", variant="primary", size="lg", min_width=120, elem_id="make")
                    stop = gr.Button(
                        "Stop and keep", variant="secondary", size="lg", min_width=120, elem_id="stop"
                    )
            with gr.Column(scale=3, min_width=320):
                self.live = gr.HTML(look.IDLE, elem_id="live")
                mesh = gr.Model3D(label="Textured mesh", clear_color=WHITE, height=400, elem_id="mesh")
                with gr.Row():
                    archive = gr.DownloadButton(
                        "Download .zip", interactive=False, min_width=110, elem_id="zip"
                    )
                    # gradio 6.31's Model3D draws these Gaussians half as large as they are; the film shows them right
                    splat = gr.DownloadButton("Splat .ply", interactive=False, min_width=110, elem_id="splat")
                    refine = gr.Button("Refine", interactive=False, min_width=110, elem_id="refine")
                self.notes = gr.HTML("", elem_id="notes")
        with gr.Row():
            with gr.Column(scale=1, min_width=140):
                shown = gr.Dataset(
                    components=[gr.Image(visible=False)], samples=[[path] for path in PICTURES], label="Picture to try",
                    type="values", elem_id="pictures",
                )  # fmt: skip
            with gr.Column(scale=4, min_width=320):
                said = gr.Dataset(
                    components=[gr.Textbox(visible=False)], samples=[[line] for line in SENTENCES],
                    label="Sentences to try", type="values", elem_id="sentences",
                )  # fmt: skip

        options = [cutout, box, threshold]
        told: list[Any] = [self.live, self.notes, self.cutout_shown, self.state]
        results: list[Any] = [mesh, splat, archive, refine]
        gr.on(
            [picture.change, cutout.change, threshold.release, box.change], self.cut, [picture, *options],
            [self.cutout_shown, self.notes], api_name="cut_out", show_progress="hidden", trigger_mode="always_last",
        )  # fmt: skip
        estimate.change(lambda on: gr.Slider(visible=not on), estimate, elevation, api_visibility="private")
        picture.select(self.corner, [picture, first_corner], [first_corner, box], api_visibility="private")
        picture.change(lambda: (None, ""), None, [first_corner, box], api_visibility="private")
        shown.click(lambda row: (row[0], ""), shown, [picture, prompt], api_visibility="private")
        said.click(lambda row: (None, row[0]), said, [picture, prompt], api_visibility="private")
        common: dict[str, Any] = {
            "concurrency_limit": 1,
            "concurrency_id": "run",
            "show_progress_on": self.live,
        }
        inputs = [picture, prompt, estimate, elevation, seed, steps, faces, texture, *options]
        # models in a step of their own: gradio 6.31 draws none that a stream brings
        for button, work, given, name in (
            (make, self.make, inputs, "make"), (refine, self.refine, [self.state], "refine"),
        ):  # fmt: skip
            seen = "public" if name == "make" else "private"
            button.click(work, given, told, api_name=name, **common).success(
                self.result,
                self.state,
                results,
                api_name="result",
                api_visibility=seen,
                show_progress="hidden",
            )
        stop.click(self.stop, None, None, api_name="stop", queue=False, show_progress="hidden")
