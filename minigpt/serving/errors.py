"""What the server answers with: JSON, errors in OpenAI's form, events of a stream."""

import json
import math


class ApiError(Exception):
    """A request that is answered with an error.

    status: HTTP's; param: the field (or header) that is wrong; code: a word for programs;
    kind: OpenAI's error type; headers: dict of headers of the answer.
    """

    def __init__(self, status, message, param=None, code=None, kind="invalid_request_error", headers=None):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.kind = status, message, param, code, kind
        self.headers = headers or {}

    @property
    def body(self):
        """The error as OpenAI writes it."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def to_json(values):
    """Values as UTF-8 JSON. Half of a surrogate pair (an error may quote one) stays the escape that it came as."""
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", errors="backslashreplace")


def event(values):
    """One server-sent event."""
    return b"data: " + to_json(values) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def read_json(body):
    """The dict that a request's body (bytes) is. Raises ApiError where it is no JSON object in UTF-8."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ApiError(
            400,
            f"the body is not UTF-8 (byte {error.start}); on Windows write it to a file saved as UTF-8 and send that "
            "with curl --data-binary @file, or write characters as \\uXXXX",
            "body",
        ) from None
    try:
        values = json.loads(text, parse_constant=no_constant, parse_float=finite)
    except json.JSONDecodeError as error:
        raise ApiError(
            400, f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}", "body"
        ) from None
    except ValueError:  # more digits than Python turns into an integer
        raise ApiError(400, "the body has a number that is too long", "body") from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply", "body") from None
    if not isinstance(values, dict):
        raise ApiError(400, 'the body must be a JSON object, such as {"prompt": "…"}', "body")
    return values


def no_constant(name):
    raise ApiError(400, f"the body has {name}, which is not JSON", "body")


def finite(text):
    number = float(text)
    if not math.isfinite(number):
        raise ApiError(400, f"the body has a number that is too large ({text[:20]})", "body")
    return number
