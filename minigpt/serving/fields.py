"""The fields of every request: one table that checks them, fills in defaults and describes them (/openapi.json)."""

from dataclasses import dataclass, fields

from minigpt.inference.params import SamplingParams
from minigpt.serving.errors import ApiError
from minigpt.serving.schema import check, check_object

DEFAULTS = {field.name: field.default for field in fields(SamplingParams)}
ROLES = ["system", "developer", "user", "assistant"]
LONGEST = {"messages": 256, "stop": 4, "user": 512}
SEED = 2**63  # SamplingParams takes 0 to SEED - 1


@dataclass(frozen=True)
class FieldLimits:
    """What one request may ask for: characters of prompt, tokens of answer, prompts."""

    prompt_chars: int
    new_tokens: int
    prompts: int


def number(low, high, help, **more):
    return {"type": "number", "minimum": low, "maximum": high, "description": help, **more}


def integer(low, high, help, **more):
    return {**number(low, high, help, **more), "type": "integer"}


def text(help, longest, **more):
    return {"type": "string", "maxLength": longest, "description": help, **more}


def refused(*neutral):
    """A field of OpenAI's that is not supported: only values by which it changes nothing are taken."""
    shown = " or ".join(map(repr, neutral)) or "null"
    return {"enum": list(neutral), "description": f"not supported here: leave it out, or give {shown}"}


def ignored(kind="string"):
    return {"type": kind, "description": "accepted, without effect"}


def sampling_fields(limits):
    """The fields that every way of asking has; they set SamplingParams of the same name."""
    stop = text("the answer ends before this text", 256)
    return {
        "temperature": number(0, 2, "sharpness of sampling; 0 takes the likeliest token"),
        "top_k": integer(0, 2**31 - 1, "sample among the k likeliest tokens; 0: all"),
        "top_p": number(0, 1, "sample among the likeliest tokens that have this much of the probability together"),
        "frequency_penalty": number(
            -2, 2, "taken off a token's logit for each time it stands in prompt or answer (OpenAI: answer only)"
        ),
        "repetition_penalty": number(0.01, 10, "divides the logits of tokens that stand in prompt or answer; 1: none"),
        "seed": integer(-SEED, SEED - 1, "the same request with the same seed gives the same text"),
        "stop": {
            "anyOf": [stop, {"type": "array", "items": stop, "maxItems": LONGEST["stop"]}],
            "description": f"text, or up to {LONGEST['stop']}, that the answer ends before",
        },
        "max_new_tokens": integer(1, limits.new_tokens, "longest answer, in tokens"),
    }


def openai_fields(limits):
    """The fields that completions and chats share."""
    sampling = sampling_fields(limits)
    longest = sampling.pop("max_new_tokens")
    return {
        "model": text("a model's id, as /v1/models lists them", 512),
        **sampling,
        "max_tokens": {**longest, "target": "max_new_tokens"},
        "stream": {"type": "boolean", "description": "answer piece by piece, as server-sent events"},
        "stream_options": {
            "type": "object",
            "description": "with stream only",
            "properties": {
                "include_usage": {"type": "boolean", "description": "token counts in a last event"},
                "include_obfuscation": ignored("boolean"),
            },
        },
        "user": text("accepted, without effect", LONGEST["user"]),
        "n": refused(1),
        "presence_penalty": refused(0),
        "logit_bias": refused({}),
    }


def generate_table(limits):
    """Fields of POST /generate."""
    return {
        "prompt": text("a question, or, for a base model, the start of a text", limits.prompt_chars),
        "model": text("a model's id, as /v1/models lists them; the first of them if left out", 512),
        "stream": {"type": "boolean", "description": "plain text as it is made, or (false) one JSON", "default": True},
        **sampling_fields(limits),
    }


def completions_table(limits):
    """Fields of POST /v1/completions: prompt is text, a list of token ids, or a list of either."""
    prompt, token = text("", limits.prompt_chars), {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
    ids = {"type": "array", "items": token, "minItems": 1, "maxItems": limits.prompt_chars}
    kinds = {"anyOf": [prompt, token, ids]}
    several = {"type": "array", "items": kinds, "minItems": 1, "maxItems": limits.prompt_chars}
    return {
        "prompt": {
            "anyOf": [prompt, several],
            "description": f"text, token ids, or a list of up to {limits.prompts} of either",
        },
        **openai_fields(limits),
        "best_of": refused(1),
        "echo": refused(False),
        "logprobs": refused(),
        "suffix": refused(""),
    }


def chat_table(limits):
    """Fields of POST /v1/chat/completions. OpenAI's for tools, sound and the like are known, and refused."""
    part = {"type": {"enum": ["text"]}, "text": text("", limits.prompt_chars)}
    part["prompt_cache_breakpoint"] = ignored("object")
    parts = {"type": "object", "properties": part, "required": ["type", "text"]}
    message = {
        "role": {"enum": ROLES},
        "content": {
            "anyOf": [
                text("", limits.prompt_chars),
                {"type": "array", "items": parts, "minItems": 1, "maxItems": LONGEST["messages"]},
            ]
        },
        "name": ignored(),
        **{name: refused() for name in ("refusal", "audio", "function_call")},
        **{name: refused([]) for name in ("tool_calls", "annotations")},
    }
    shared = openai_fields(limits)
    return {
        "messages": {
            "type": "array",
            "items": {"type": "object", "properties": message, "required": ["role", "content"]},
            "minItems": 1,
            "maxItems": LONGEST["messages"],
            "description": "the talk so far; the last message is the user's",
        },
        **shared,
        "max_completion_tokens": shared["max_tokens"],
        "metadata": ignored("object"),
        "parallel_tool_calls": ignored("boolean"),
        **{name: ignored() for name in ("prompt_cache_key", "prompt_cache_retention", "safety_identifier")},
        "prompt_cache_options": ignored("object"),
        "store": refused(False),
        "logprobs": refused(False),
        "top_logprobs": refused(0),
        "modalities": refused(["text"]),
        "response_format": refused({"type": "text"}),
        "service_tier": refused("auto", "default"),
        "function_call": refused("none"),
        "functions": refused([]),
        "tool_choice": refused("none", "auto"),
        "tools": refused([]),
        "reasoning_effort": refused("none"),
        "verbosity": refused("medium"),
        **{name: refused() for name in ("audio", "moderation", "prediction", "web_search_options")},
    }


TABLES = {
    "/generate": (generate_table, ["prompt"]),
    "/v1/completions": (completions_table, ["model", "prompt"]),
    "/v1/chat/completions": (chat_table, ["model", "messages"]),
}


def schemas(limits):
    """{path: the schema, an object, of the body that is posted there}"""
    return {
        path: {"type": "object", "properties": table(limits), "required": required}
        for path, (table, required) in TABLES.items()
    }


def checked_fields(body, schema):
    """The fields of a body, checked. Raises ApiError naming the first that is unknown, missing or wrong."""
    values = check_object(body, schema)
    if "stream_options" in values and not values.get("stream"):
        raise ApiError(400, "stream_options goes with stream: true only", "stream_options")
    return values


def sampling_of(values, properties):
    """SamplingParams that checked fields give; what is left out has SamplingParams' default."""
    given = {properties[name].get("target", name): value for name, value in values.items()}
    given = {name: value for name, value in given.items() if name in DEFAULTS}
    if "seed" in given:
        given["seed"] %= SEED  # OpenAI's seeds may be negative
    if "stop" in given:
        stop = given["stop"]
        given["stop"] = tuple(text for text in ([stop] if isinstance(stop, str) else stop) if text)
    return SamplingParams(**given)


def prompts_of(values, limits, n_vocab):
    """A completion's prompts, each text or a list of ids below n_vocab. Raises ApiError naming the one that is not."""
    prompt = values["prompt"]
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        prompt = [prompt]
    if len(prompt) > limits.prompts:
        raise ApiError(400, f"prompt has {len(prompt)} prompts; {limits.prompts} are the most", "prompt")
    ids = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": n_vocab - 1}}
    for i, one in enumerate(prompt):
        where = f"prompt[{i}]" if len(prompt) > 1 else "prompt"
        if type(one) is not type(prompt[0]):
            raise ApiError(400, f"{where} is of another kind than prompt[0]", where)
        if isinstance(one, list):
            check(one, ids, where)
    within(sum(map(len, prompt)), limits, "prompt")
    return prompt


def messages_of(values, limits):
    """A chat's messages as {"role", "content": text} each. Raises ApiError where the last is not the user's."""
    messages = []
    for message in values["messages"]:
        content = message["content"]
        if isinstance(content, list):
            content = "".join(part["text"] for part in content)
        messages.append({"role": message["role"], "content": content})
    if messages[-1]["role"] != "user":
        where = f"messages[{len(messages) - 1}].role"
        raise ApiError(400, f"{where} is {messages[-1]['role']}; the last message must be the user's", where)
    within(sum(len(message["content"]) for message in messages), limits, "messages")
    return messages


def within(length, limits, where):
    if length > limits.prompt_chars:
        raise ApiError(400, f"{where} has {length} characters; {limits.prompt_chars} are the most", where)
