"""Propeller in Blender: a picture or a sentence in the sidebar, a textured mesh in the scene.

Install this one file (Edit > Preferences > Add-ons > Install from Disk), start `propeller serve` beside Blender, and
look for the tab "Propeller" in the 3D view's sidebar (N). In a script:
bpy.ops.propeller.make(picture="cat.png", height=0.3).

It speaks to the server with Python's standard library alone. Lengths are Blender's units, metres unless the scene says
otherwise.
"""

from __future__ import annotations

import json
import tempfile
import threading
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import bpy
from bpy.props import FloatProperty, IntProperty, StringProperty
from mathutils import Vector

bl_info = {
    "name": "Propeller",
    "author": "Propeller contributors",
    "version": (0, 1, 0),
    "blender": (4, 2, 0),
    "location": "View3D > Sidebar > Propeller",
    "description": "A picture or a sentence to a textured mesh, by a Propeller server",
    "category": "Import-Export",
}
SERVER = "http://127.0.0.1:8017"
LOOK_S = 0.5  # between two questions how far it is


class Refused(Exception):
    """The server's answer, or that there is none, in a line."""


def ask(url: str, method: str = "GET", body: bytes | None = None, kind: str = "") -> bytes:
    """Raises Refused."""
    request = urllib.request.Request(url, body, {"Content-Type": kind} if kind else {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())
    except HTTPError as error:
        said = error.read()
        try:
            raise Refused(json.loads(said)["detail"]) from error
        except (ValueError, KeyError, TypeError):
            raise Refused(f"the server answers {error.code} {error.reason}") from error
    except (URLError, OSError) as error:
        raise Refused(
            f"no server at {url.rsplit('/', 1)[0]} ({error}); start one: propeller serve"
        ) from error


def form(picture: str, options: dict[str, Any]) -> tuple[bytes, str]:
    """(body, content type) of an order. Raises Refused for a picture that cannot be read."""
    edge = uuid.uuid4().hex
    parts = [
        f'--{edge}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in options.items()
    ]
    if picture:
        try:
            data = Path(picture).read_bytes()
        except OSError as error:
            raise Refused(f"{picture}: {error.strerror}") from error
        head = f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="picture"\r\n\r\n'
        parts.append(head.encode() + data + b"\r\n")
    return b"".join(parts) + f"--{edge}--\r\n".encode(), f"multipart/form-data; boundary={edge}"


def made(
    server: str, picture: str, options: dict[str, Any], told: Callable[[str], None], stop: threading.Event
) -> tuple[bytes, list[str]]:
    """The asset's .glb, and what the server has to say of it, in lines; told is given a line now and then. Raises
    Refused, also where stop is set meanwhile."""
    body, kind = form(picture, options)
    order = json.loads(ask(f"{server}/send", "POST", body, kind))["id"]
    try:
        while True:
            status = json.loads(ask(f"{server}/status/{order}"))
            if status["state"] not in ("waiting", "working"):
                return ask(f"{server}/result/{order}"), status.get("notes", [])
            told(
                f"{status['ahead']} before it"
                if status["ahead"]
                else f"step {status['step']} of {status['steps'] or '?'}"
            )
            if stop.wait(LOOK_S):
                raise Refused("given up")
    finally:
        ask(f"{server}/result/{order}", "DELETE")


def brought_in(glb: bytes, name: str, height: float) -> bpy.types.Object:
    """The asset as one object that stands on the 3D cursor, so high, its front towards -Y."""
    before = set(bpy.data.objects)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "asset.glb"
        file.write_bytes(glb)
        bpy.ops.import_scene.gltf(filepath=str(file))
    new = [thing for thing in bpy.data.objects if thing not in before]
    meshes = [thing for thing in new if thing.type == "MESH"]
    if not meshes:
        raise Refused("the server's .glb holds no mesh")
    asset = meshes[0]
    world = asset.matrix_world.copy()
    asset.parent = None
    asset.matrix_world = world
    for thing in new:
        if thing is not asset:
            bpy.data.objects.remove(thing)
    asset.name = asset.data.name = name
    asset.scale *= height / max(asset.dimensions.z, 1e-9)
    bpy.context.view_layer.update()
    corners = [asset.matrix_world @ Vector(corner) for corner in asset.bound_box]
    middle = [(min(c[k] for c in corners) + max(c[k] for c in corners)) / 2 for k in range(2)]
    asset.location += bpy.context.scene.cursor.location - Vector((*middle, min(c.z for c in corners)))
    bpy.context.view_layer.update()
    return asset


class PROPELLER_OT_make(bpy.types.Operator):
    """Have the server make an asset of the picture or the sentence"""

    bl_idname = "propeller.make"
    bl_label = "Make"
    bl_options = {"REGISTER", "UNDO"}  # noqa: RUF012 - Blender's way

    picture: StringProperty(name="Picture", subtype="FILE_PATH")
    sentence: StringProperty(name="Sentence")
    height: FloatProperty(name="Height", default=1.0, min=1e-4, subtype="DISTANCE")
    steps: IntProperty(name="Steps", default=0, min=0, max=2000)
    seed: IntProperty(name="Seed", default=0, min=0)
    server: StringProperty(name="Server", default=SERVER)

    def execute(self, context: bpy.types.Context) -> set[str]:
        """In a script: waits for it."""
        return self._finish(self._ordered(lambda line: None, threading.Event()))

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        """From the panel: Blender goes on meanwhile, Esc gives up."""
        wish = context.scene.propeller
        for name in ("picture", "sentence", "height", "steps", "seed", "server"):
            setattr(self, name, getattr(wish, name))
        self.said, self.answer, self.stop = "", [], threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()
        self.timer = context.window_manager.event_timer_add(LOOK_S, window=context.window)
        context.window_manager.modal_handler_add(self)
        return {"RUNNING_MODAL"}

    def modal(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        if event.type == "ESC":
            self.stop.set()
        if event.type != "TIMER":
            return {"PASS_THROUGH"}
        context.workspace.status_text_set(f"Propeller: {self.said} (Esc gives up)")
        if self.thread.is_alive():
            return {"RUNNING_MODAL"}
        context.window_manager.event_timer_remove(self.timer)
        context.workspace.status_text_set(None)
        return self._finish(self.answer[0])

    def _work(self) -> None:
        def told(line: str) -> None:
            self.said = line

        self.answer.append(self._ordered(told, self.stop))

    def _ordered(
        self, told: Callable[[str], None], stop: threading.Event
    ) -> tuple[bytes, list[str]] | Refused:
        options: dict[str, Any] = {"seed": self.seed}
        if self.sentence:
            options["prompt"] = self.sentence
        if self.steps:
            options["steps"] = self.steps
        picture = bpy.path.abspath(self.picture) if self.picture else ""
        try:
            return made(self.server.rstrip("/"), picture, options, told, stop)
        except Refused as refused:
            return refused
        except (ValueError, KeyError, TypeError):  # no JSON, or none of ours
            return Refused(f"{self.server} is no server of Propeller")

    def _finish(self, answer: tuple[bytes, list[str]] | Refused) -> set[str]:
        name = Path(self.picture).stem if self.picture else self.sentence[:40] or "asset"
        try:
            if isinstance(answer, Refused):
                raise answer
            glb, notes = answer
            asset = brought_in(glb, name, self.height)
        except Refused as refused:
            self.report({"ERROR"}, str(refused))
            return {"CANCELLED"}
        for line in notes:
            self.report({"INFO"}, line)
        for thing in bpy.context.selected_objects:
            thing.select_set(False)
        asset.select_set(True)
        bpy.context.view_layer.objects.active = asset
        return {"FINISHED"}


class PropellerWish(bpy.types.PropertyGroup):
    """What the panel asks for."""

    picture: StringProperty(name="Picture", subtype="FILE_PATH")
    sentence: StringProperty(name="Sentence", description="Beside a picture, or alone")
    height: FloatProperty(name="Height", default=1.0, min=1e-4, subtype="DISTANCE")
    steps: IntProperty(name="Steps", default=0, min=0, max=2000, description="0: the server's own")
    seed: IntProperty(name="Seed", default=0, min=0)
    server: StringProperty(name="Server", default=SERVER)


class PROPELLER_PT_panel(bpy.types.Panel):
    bl_label = "Propeller"
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "Propeller"

    def draw(self, context: bpy.types.Context) -> None:
        for name in ("picture", "sentence", "height", "steps", "seed", "server"):
            self.layout.prop(context.scene.propeller, name)
        self.layout.operator_context = "INVOKE_DEFAULT"
        self.layout.operator("propeller.make", icon="MESH_MONKEY")


CLASSES = (PropellerWish, PROPELLER_OT_make, PROPELLER_PT_panel)


def register() -> None:
    for one in CLASSES:
        bpy.utils.register_class(one)
    bpy.types.Scene.propeller = bpy.props.PointerProperty(type=PropellerWish)


def unregister() -> None:
    del bpy.types.Scene.propeller
    for one in reversed(CLASSES):
        bpy.utils.unregister_class(one)


if __name__ == "__main__":
    register()
