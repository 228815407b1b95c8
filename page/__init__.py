"""The arena's page, in Gradio: what is seen and pressed. What it shows is made in `arena`."""

import page.before_gradio  # noqa: F401 (the first of all)
from page.build import create_page
from page.serving import PageServer

__all__ = ["PageServer", "create_page"]
