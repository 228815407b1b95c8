"""The error that users see. Every other module may raise it, so this one imports none of them."""

MAX_REASON_CHARS = 200  # of another library's exception


class UserError(Exception):
    """A mistake that the user can correct. Its one line says what is wrong, where, and what to do."""


def first_line(error):
    """One line about another library's exception: its class and the first line of its text."""
    text = str(error).strip().splitlines() or ["no reason given"]
    return f"{type(error).__name__}: {text[0][:MAX_REASON_CHARS]}"
