"""Errors of the arena that the page can show in the visitor's language, and checks of names and numbers."""

from minigpt.common.errors import UserError
from minigpt.openai_client import ApiFailure


class Problem(UserError):
    """A mistake that the visitor can correct. key: of a text in arena_ui/i18n.toml; values: fill that text."""

    def __init__(self, key, **values):
        super().__init__(f"{key} {values}" if values else key)
        self.key, self.values = key, values


def describe_error(error, translate):
    """An error as a sentence. translate(key, **values): returns the text of a key in the visitor's language."""
    if isinstance(error, Problem):
        values = error.values
        if "field" in values:  # the page shows a field by its label
            values = {**values, "field": translate(values["field"])}
        return translate(error.key, **values)
    if isinstance(error, ApiFailure):
        return translate(f"api_{error.code}", **error.values)
    return str(error)


def clean_name(text, max_chars=80):
    """A name that is safe to show: without line breaks and control characters (direction, colour, zero width), and
    of at most `max_chars` characters."""
    return "".join(c for c in text if c.isprintable()).strip()[:max_chars]


def validate_number(field, value, low, high):
    """The value as a number from low to high; an int if low is one. Raises Problem, which names the field."""
    whole = isinstance(low, int)
    valid = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    if not valid or (whole and value != int(value)):
        key = "bad_whole_number" if whole else "bad_number"
        raise Problem(key, field=field, value=clean_name(str(value), 20), low=low, high=high)
    return int(value) if whole else float(value)
