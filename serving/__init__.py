"""The HTTP side of MiniGPT: a Flask app over text generators, and the server that it runs in."""

from serving.app import create_app
from serving.listening import Listener, addresses, listening_socket

__all__ = ["Listener", "addresses", "create_app", "listening_socket"]
