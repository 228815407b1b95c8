"""Texts in the fields of a row, checked."""

from minigpt.tokenizer import bounded_spaces


def text_field(row, name):
    """(text, None), or (None, reason) where the field is missing, empty, of a wrong type, or no text for a model."""
    text = row.get(name)
    if not isinstance(text, str):
        missing = name not in row
        nested = isinstance(text, (dict, list))
        return None, f'no "{name}"' if missing else f'"{name}" is nested' if nested else f'"{name}" is not a text'
    if "\0" in text:
        return None, "NUL character"
    text = bounded_spaces(text)
    try:
        text.encode()
    except UnicodeEncodeError:
        return None, "half of a surrogate pair"
    return (text, None) if text and not text.isspace() else (None, f'"{name}" is empty')


def name_field(row, name):
    """A row's title or subject, "" where it has none; half of a surrogate pair is left out."""
    text = row.get(name)
    if not isinstance(text, str):
        return ""
    return text.encode("utf-8", errors="ignore").decode().strip()
