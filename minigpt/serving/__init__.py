"""The HTTP API: a Flask app that serves text generators, and the HTTP server that runs it."""

from minigpt.serving.app import create_app
from minigpt.serving.listener import Listener

__all__ = ["Listener", "create_app"]
