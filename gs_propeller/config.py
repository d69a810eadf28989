"""The configuration by its short name: `from gs_propeller.config import Config`."""

from gs_propeller.app.config import Config, load, updated

__all__ = ["Config", "load", "updated"]
