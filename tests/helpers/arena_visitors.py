"""Visitors of the arena's page by gradio_client, and what they read there."""

import html

import gradio_client

FIELDS = [30, 0.1, 20, 1, 0, ""]  # of sampling, as the page sends them
ELSEWHERE = {"X-Forwarded-For": "203.0.113.7"}  # what a proxy says of where a visitor comes from


def visitor(arena, **headers):
    """A new session, in Chinese unless told otherwise."""
    headers = {"Accept-Language": "zh-CN", **headers}
    return gradio_client.Client(arena.url, headers=headers, verbose=False)


def texts(chat):
    """[(role, text)] of a chatbot's value, whose text is HTML."""
    return [(message["role"], html.unescape("".join(part["text"] for part in message["content"]))) for message in chat]


def table(value):
    """Rows of a Dataframe's value, or of an update of one."""
    return value.get("value", value)["data"]
