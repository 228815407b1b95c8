"""What goes wrong in the arena, in a form that the page can say in the reader's language."""

from minigpt.common.errors import UserError
from minigpt.openai_client import ApiFailure


class Problem(UserError):
    """Something that a person can mend. key: of arena_ui/i18n.toml; values: what its text is filled with."""

    def __init__(self, key, **values):
        super().__init__(f"{key} {values}" if values else key)
        self.key, self.values = key, values


def in_words(error, say):
    """An error as a sentence; say(key, **values): the text in the reader's language."""
    if isinstance(error, Problem):
        values = error.values
        if "field" in values:  # a field is known by its label
            values = {**values, "field": say(values["field"])}
        return say(error.key, **values)
    if isinstance(error, ApiFailure):
        return say(f"api_{error.code}", **error.values)
    return str(error)


def printable(text, most=80):
    """A name as it is safe to show: no line breaks, no controls (of direction, colour, width), `most` characters."""
    return "".join(c for c in text if c.isprintable()).strip()[:most]


def checked_number(name, value, low, high):
    """A number from low to high, whole where low is. Raises Problem naming the field."""
    whole = isinstance(low, int)
    right = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    if not right or (whole and value != int(value)):
        raise Problem(
            "bad_whole_number" if whole else "bad_number",
            field=name,
            value=printable(str(value), 20),
            low=low,
            high=high,
        )
    return int(value) if whole else float(value)
