"""Visitors of the arena's page with gradio_client, and readers of its components' values."""

import html

import gradio_client

FIELDS = [30, 0.1, 20, 1, 0, ""]  # values of the sampling fields
ELSEWHERE = {"X-Forwarded-For": "203.0.113.7"}  # header of a visitor behind a proxy


def visitor(arena, **headers):
    """A new session; in Chinese unless the headers say otherwise."""
    headers = {"Accept-Language": "zh-CN", **headers}
    return gradio_client.Client(arena.url, headers=headers, verbose=False)


def texts(chat):
    """[(role, text)] of a chatbot's value, with HTML escapes resolved."""
    return [(message["role"], html.unescape("".join(part["text"] for part in message["content"]))) for message in chat]


def table(value):
    """Rows of a Dataframe's value or update."""
    return value.get("value", value)["data"]
