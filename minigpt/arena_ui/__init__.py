"""The arena's page, in Gradio: what is seen and pressed. What it shows is made in `minigpt.arena`."""

import minigpt.arena_ui.bootstrap  # noqa: F401 (the first of all)
from minigpt.arena_ui.build import create_page
from minigpt.arena_ui.server import PageServer

__all__ = ["PageServer", "create_page"]
