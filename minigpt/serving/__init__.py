"""The HTTP side of MiniGPT: a Flask app over text generators, and the server that it runs in."""

from minigpt.serving.app import create_app
from minigpt.serving.listener import Listener

__all__ = ["Listener", "create_app"]
