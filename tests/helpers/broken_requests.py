"""Wrong requests, made from a seed: some reach the app, some are refused before."""

import json
import random

from minigpt.serving.schemas import request_models
from minigpt.settings.stages import ServerSettings

LIMITS = ServerSettings(max_prompt_chars=1000, max_tokens_limit=100, max_batch=4)
SCHEMAS = {path: model.model_json_schema() for path, model in request_models(LIMITS).items()}
VALID = {
    "/generate": {"prompt": "从", "max_new_tokens": 2, "stream": False},
    "/v1/completions": {"model": "fake", "prompt": "从", "max_tokens": 2},
    "/v1/chat/completions": {"model": "fake", "messages": [{"role": "user", "content": "从"}], "max_tokens": 2},
    "/v1/embeddings": {"model": "fake", "input": ["从", "b"], "dimensions": 3},
    "/tokenize": {"model": "fake", "prompt": "从", "return_token_strs": True},
    "/detokenize": {"model": "fake", "tokens": [65, 2]},
    "/classify": {"model": "classify", "text": "从"},
    "/tag": {"model": "tag", "text": "从"},
}
# Fields that a valid body needs though the schema does not say so: there are others in place of them.
NEEDED = {"/tokenize": ["prompt"], "/classify": ["text"], "/tag": ["text"]}
LIMIT_FLAGS = [
    f"--max_prompt_chars={LIMITS.max_prompt_chars}",
    f"--max_tokens_limit={LIMITS.max_tokens_limit}",
    f"--max_batch={LIMITS.max_batch}",
    "--max_body_bytes=50000",
]
TOO_LONG = "a" * 2000
HUGE = (10**30, 1e300)
WRONG = {
    "number": ["1", [], {}, True, -1e9, 1e9, "NaN", 10**40],
    "integer": ["1", [], {}, False, 1.5, -(10**30), *HUGE],
    "boolean": [0, 1, "true", [], {}],
    "string": [1, True, [], {}, "\ud800", TOO_LONG],
    "object": [1, "x", [], True],
    "array": [1, {}, True],
}
MISSPELT = "_-.$ 从\x00\ud83d"  # a name with one of these between its letters is taken for a misspelt one


def wrong_values(schema):
    """Values that do not fit a field's JSON schema."""
    if "enum" in schema:
        return [["x"], "no such value", -12345, {"a": [1]}, 1.5]
    choices = [choice for choice in schema.get("anyOf", [schema]) if choice.get("type") != "null"]
    if "oneOf" in choices[0]:  # text or a list
        return [1, True, {}, ["a"] * 3000, [{}], [None], "a" * 2000, "\udfff", [["\udfff"]]]
    (schema,) = choices
    values = [value for value in WRONG[schema.get("type", "object")] if value != TOO_LONG or "maxLength" in schema]
    return values if schema.get("type") != "integer" or "maximum" in schema else [v for v in values if v not in HUGE]


def wrong_field(chance, path):
    """(body, field) with one field of a valid body wrong, unknown or missing."""
    schema, body = SCHEMAS[path], dict(VALID[path])
    kind = chance.random()
    if kind < 0.15:
        known = chance.choice([name for name in schema["properties"] if len(name) > 3])
        at = chance.randint(1, len(known) - 1)
        name = known[:at] + chance.choice(MISSPELT) + known[at:]
        body[name] = chance.choice([1, "a", None, [], {}])
    elif kind < 0.25:
        name = chance.choice(NEEDED.get(path) or schema["required"])
        body.pop(name)
    elif kind < 0.35 and "messages" in body:
        name = "messages"
        body[name] = chance.choice(
            [
                [],
                [[]],
                [{}],
                [{"role": "user"}],
                [{"role": "robot", "content": "a"}],
                [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
                [{"role": "assistant", "content": 1}],
                [{"role": "system", "content": None}],
                [{"role": "user", "content": "a", "rolle": "b"}],
                [{"role": "user", "content": [{"type": "text"}]}],
                [{"role": "user", "content": "a" * 600}] * 2,
            ]
        )
    else:
        name = chance.choice(list(schema["properties"]))
        body[name] = chance.choice(wrong_values(schema["properties"][name]))
    return body, name


def broken_body(chance, valid):
    """(bytes, headers, field) of a body that is not a JSON object in UTF-8."""
    text = json.dumps(valid, ensure_ascii=False)
    kinds = [
        (chance.randbytes(chance.randint(1, 200)) + b"\xff", {}, "body"),
        (text.encode()[: chance.randint(0, len(text) - 1)], {}, "body"),
        (text.encode("gbk"), {}, "body"),
        (text.encode("utf-16"), {}, "body"),
        (text.encode("utf-32"), {}, "body"),
        (text.encode("utf-7") + b"\xa0", {}, "body"),
        (json.dumps(chance.choice([[], 1, "a", None, [valid]])).encode(), {}, "body"),
        (
            text.encode().replace(b": 2", b": " + chance.choice([b"NaN", b"Infinity", b"-Infinity", b"1e999"])),
            {},
            "body",
        ),
        (text.encode().replace(b": 2", b": " + b"9" * chance.choice([5000, 40000])), {}, "body"),
        (b"[" * chance.randint(2000, 40000), {}, "body"),
        (b'{"a":' * chance.randint(2000, 9000), {}, "body"),
        (text.encode() + b" " * 60000, {}, "body"),
        (
            text.encode(),
            {"Content-Type": chance.choice(["text/plain", "application/xml", "", "json", "\xff"])},
            "Content-Type",
        ),
        (
            text.encode(),
            {"Content-Type": "application/json; charset=" + chance.choice(["gbk", "latin-1", "utf-16"])},
            "Content-Type",
        ),
        (text.encode(), {"Content-Encoding": chance.choice(["gzip", "br", "x"])}, "Content-Encoding"),
    ]
    return chance.choice(kinds)


def reaching(seed, count):
    """Yields (method, path, body bytes, headers, the field that the error must name)."""
    chance = random.Random(seed)
    for _ in range(count):
        path = chance.choice(list(VALID))
        kind = chance.random()
        if kind < 0.6:
            body, field = wrong_field(chance, path)
            yield "POST", path, json.dumps(body).encode(), {}, field
        elif kind < 0.9:
            yield "POST", path, *broken_body(chance, VALID["/generate"])  # it is not read as far as its fields
        elif kind < 0.95:
            yield chance.choice(["GET", "PUT", "DELETE", "PATCH", "TRACE", "X"]), path, b"", {}, "method"
        else:
            wrong = "/" + "".join(chance.choices("abc/%.?=&", k=chance.randint(3, 12))).replace("%", "%25")
            yield "POST", "/no" + wrong, b"{}", {}, "path"


def below(seed, count):
    """Yields raw bytes that are refused before the app: start lines, headers, lengths, chunks."""
    chance = random.Random(seed)
    post = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for _ in range(count):
        junk = chance.randbytes(chance.randint(1, 60)).replace(b"\n", b"")
        yield chance.choice(
            [
                junk + b"\r\n\r\n",
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + junk + b"\r\n\r\n",  # TLS
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                b"POST /generate\r\n\r\n",
                b"post /generate HTTP/1.1\r\nHost: localhost\r\n\r\n",
                b"POST  /generate HTTP/1.1\r\nHost: localhost\r\n\r\n",
                b"POST /generate HTTP/1.1 \x00\r\n\r\n",
                b"POST http://[::1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
                b"POST /generate HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n",
                b"POST /generate HTTP/1.1\r\nHost: localhost\r\n: empty\r\n\r\n",
                b"POST /generate HTTP/1.1\r\nHost: localhost\r\nA: \x00\r\n\r\n",
                b"POST /generate HTTP/1.1\r\nHost: localhost\r\nA: b\nContent-Length: 5\r\n\r\n",
                b"POST /generate HTTP/1.1\r\nHost: localhost\r\n A: folded\r\n\r\n",
                b"POST /generate HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * 70000 + b"\r\n\r\n",
                post + b"Content-Length: -1\r\n\r\n{}",
                post + b"Content-Length: +2\r\n\r\n{}",
                post + b"Content-Length: 0x2\r\n\r\n{}",
                post + b"Content-Length: 2, 2\r\n\r\n{}",
                post + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
                post + b"Content-Length: " + b"9" * chance.choice([10, 30, 5000]) + b"\r\n\r\n{}",
                post + b"Content-Length: two\r\n\r\n{}",
                post + b"Content-Length: 500\r\n\r\n" + junk,
                post + b"Transfer-Encoding: gzip\r\n\r\n" + junk,
                post + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + junk,
                post + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
                post + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n{}\r\n0\r\n\r\n",
                post + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}no end",
                post + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",  # complete, but without a prompt
                post + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n" + junk,
                post[: chance.randint(1, len(post) - 1)],
            ]
        )
