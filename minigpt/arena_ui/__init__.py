"""The arena's page, made with Gradio. What it shows comes from `minigpt.arena`."""

import minigpt.arena_ui.bootstrap  # noqa: F401 (must be the first import)
from minigpt.arena_ui.build import create_page
from minigpt.arena_ui.server import PageServer

__all__ = ["PageServer", "create_page"]
