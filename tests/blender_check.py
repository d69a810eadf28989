"""Run by a Python that has bpy: python blender_check.py ADDON SERVER PICTURE. Registers the add-on in an empty
scene, has two assets made, and prints what arrived as JSON."""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import Any

import bpy


def about(thing: bpy.types.Object) -> dict[str, Any]:
    """Of an asset: its place, its corners in the world, and what its material's base colour comes from."""
    (material,) = thing.data.materials
    shader = next(node for node in material.node_tree.nodes if node.type == "BSDF_PRINCIPLED")
    image = shader.inputs["Base Color"].links[0].from_node.image
    corners = [list(thing.matrix_world @ vertex.co) for vertex in thing.data.vertices]
    return {
        "name": thing.name,
        "image": list(image.size),
        "pixel": [round(value, 3) for value in image.pixels[:3]],
        "uvs": len(thing.data.uv_layers),
        "corners": [[round(value, 4) for value in corner] for corner in corners],
        "height": round(thing.dimensions.z, 4),
        "roughness": shader.inputs["Roughness"].default_value,
        "metallic": shader.inputs["Metallic"].default_value,
    }


def main() -> None:
    addon, server, picture = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("propeller_addon", addon)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    bpy.ops.wm.read_factory_settings(use_empty=True)
    module.register()
    bpy.context.scene.cursor.location = (1.0, 2.0, 3.0)
    found = {"ended": [], "said": ""}
    found["ended"] += bpy.ops.propeller.make(picture=picture, height=0.5, server=server)
    found["ended"] += bpy.ops.propeller.make(sentence="a red cube", steps=7, server=server)
    found["assets"] = [about(thing) for thing in bpy.data.objects]
    try:
        bpy.ops.propeller.make(server=server)
    except RuntimeError as error:
        found["said"] = str(error)
    module.unregister()
    print("FOUND", json.dumps(found))


main()
