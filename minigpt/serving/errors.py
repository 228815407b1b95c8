"""Errors in OpenAI's form, JSON, and server-sent events."""

import json
import math
from contextlib import contextmanager

from minigpt.common.errors import UserError


class ApiError(Exception):
    """An error that the client receives. Its message is one line, which begins with `param` if there is one.

    status: HTTP status; message: what is wrong; param: the field (or header) that is wrong; code: a word for programs;
    kind: OpenAI's error type; headers: dict of response headers.
    """

    def __init__(self, status, message, param=None, code=None, kind="invalid_request_error", headers=None):
        text = f"{param}: {message}" if param else message
        self.message = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        super().__init__(self.message)
        self.status = status
        self.param = param
        self.code = code
        self.kind = kind
        self.headers = headers or {}

    @property
    def body(self):
        """The error as OpenAI writes it."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


@contextmanager
def blamed_on(field):
    """Turn a UserError within the block into an ApiError (400) about this field."""
    try:
        yield
    except UserError as error:
        raise ApiError(400, str(error), field) from None


WRITER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def to_json(values):
    """`values` as JSON in UTF-8. Half of a surrogate pair, which an error may quote, is written as an escape."""
    return WRITER.encode(values).encode("utf-8", errors="backslashreplace")


def to_event(values):
    """`values` as one server-sent event."""
    return b"data: " + to_json(values) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def read_json(body):
    """The dict in a request's body (bytes). Raises ApiError (400) if it is not a JSON object in UTF-8."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        advice = "on Windows write it to a file saved as UTF-8 and send that with curl --data-binary @file"
        message = f"not UTF-8 (byte {error.start}); {advice}, or write characters as \\uXXXX"
        raise ApiError(400, message, "body") from None
    try:
        values = json.loads(text, parse_constant=refuse_constant, parse_float=parse_finite)
    except json.JSONDecodeError as error:
        message = f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        raise ApiError(400, message, "body") from None
    except ValueError:  # Python limits the digits of an integer
        raise ApiError(400, "it has a number that is too long", "body") from None
    except RecursionError:
        raise ApiError(400, "nested too deeply", "body") from None
    if not isinstance(values, dict):
        raise ApiError(400, 'it must be a JSON object, such as {"prompt": "…"}', "body")
    return values


def refuse_constant(name):
    """Raise ApiError for NaN and Infinity, which Python's json reads although JSON does not have them."""
    raise ApiError(400, f"it has {name}, which is not JSON", "body")


def parse_finite(text):
    """A JSON number as float. Raises ApiError if it is too large for a float."""
    number = float(text)
    if not math.isfinite(number):
        raise ApiError(400, f"it has a number that is too large ({text[:20]})", "body")
    return number
