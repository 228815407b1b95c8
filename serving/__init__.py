"""The HTTP side of MiniGPT: a Flask app over text generators, and the server that it runs in."""

from serving.app import create_app
from serving.listening import Listener

__all__ = ["Listener", "create_app"]
