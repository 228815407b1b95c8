"""The request bodies of the API as pydantic models. They check a body, fill in defaults and describe the API."""

import difflib
import json
import reprlib
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    WithJsonSchema,
    create_model,
    model_validator,
)

from minigpt.inference.params import MAX_LOGPROBS, SamplingParams
from minigpt.serving.errors import ApiError

NOT_SUPPORTED = tomllib.loads(Path(__file__).with_name("not_supported.toml").read_text(encoding="utf-8"))
DEFAULTS = SamplingParams()
N_SEEDS = 2**63  # SamplingParams takes 0 to N_SEEDS - 1
MAX_MESSAGES = 256
MAX_STOP_STRINGS = 4
MAX_EMBEDDED_TEXTS = 2048  # of one request, as OpenAI's
MAX_SHOWN_CHARS = 64  # of a client's value or field name in an error message
# Pydantic's messages that are written for Python programmers, in the words of JSON.
PYDANTIC_MESSAGES = {
    "model_type": "Input should be an object",
    "dict_type": "Input should be an object",
    "string_unicode": "Input has half of a surrogate pair, which is not a character",
}


class UnknownField(ValueError):
    """A field name that is not in `known`."""

    def __init__(self, name, known):
        super().__init__("unknown field")
        self.name = name[:MAX_SHOWN_CHARS] or "''"
        near = difflib.get_close_matches(self.name, known, n=1)
        self.hint = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(known)}"


class RequestObject(BaseModel):
    """A JSON object of a request. Values are not converted ("1" is not a number); unknown fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def drop_nulls(cls, values):
        """Leave out fields that are null, because OpenAI's clients send null for a field that is not set."""
        if not isinstance(values, dict):
            return values
        for name in values:
            if name not in cls.model_fields:
                raise UnknownField(name, cls.model_fields)
        return {name: value for name, value in values.items() if value is not None}


def integer(low, high):
    """Type of an integer from low to high. A number without a fraction (3.0) is an integer, as in JSON Schema."""

    def to_int(value):
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return Annotated[int, Field(ge=low, le=high), BeforeValidator(to_int)]


def array(items, low, high):
    """Type of a list of low to high items. Validation stops at the first wrong item."""
    return Annotated[list[items], Field(min_length=low, max_length=high, fail_fast=True)]


def json_kind(value):
    """The kind of a JSON value, by the first item of a list: "text", "list", "ids", "lists"; None for other values."""
    if isinstance(value, list):
        first = value[0] if value else None
        if isinstance(first, (int, float)) and not isinstance(first, bool):
            return "ids"
        return "lists" if isinstance(first, list) else "list"
    return "text" if isinstance(value, str) else None


def one_of(wanted, **types):
    """Type of a value of several kinds. wanted: in words; types: the type of each of the kinds of `json_kind`."""

    def choose(value):
        kind = json_kind(value)
        return f"<{kind}>" if kind in types or not isinstance(value, list) else "<list>"

    members = tuple(Annotated[kind, Tag(f"<{name}>")] for name, kind in types.items())
    error = f"Input should be {wanted}"
    discriminator = Discriminator(choose, custom_error_type="wrong_kind", custom_error_message=error)
    return Annotated[Union[members], discriminator]  # noqa: UP007  (X | Y needs the members by name)


def not_supported(*neutral):
    """Type of an OpenAI field that is not supported: it takes only the values that change nothing."""
    message = " or ".join(["not supported here: leave it out", *(f"give {json.dumps(value)}" for value in neutral)])

    def check(value):
        # In Python, but not in JSON, True equals 1.
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral):
            raise ValueError(message)
        return value

    return Annotated[Any, AfterValidator(check), WithJsonSchema({"enum": [*neutral, None], "description": message})]


def add_unsupported_fields(cls):
    """Class decorator: adds the fields that not_supported.toml lists for the class."""
    fields = {name: (not_supported(*neutral), None) for name, neutral in NOT_SUPPORTED[cls.__name__].items()}
    return create_model(cls.__name__, __base__=cls, __doc__=cls.__doc__, **fields)


def ignored(kind):
    """Type of an OpenAI field that does not change the text that is generated."""
    return Annotated[kind | None, Field(description="accepted, without effect")]


Alternatives = integer(0, MAX_LOGPROBS) | None
ModelName = Annotated[str, Field(max_length=512)]
StopText = Annotated[str, Field(max_length=256)]
AnyText = Annotated[str, Field(min_length=0)]  # a constraint makes pydantic refuse halves of surrogate pairs


class SamplingFields(RequestObject):
    """The fields of every request; they set the SamplingParams of the same names."""

    temperature: float | None = Field(
        DEFAULTS.temperature, ge=0, le=2, description="sharpness of sampling; 0 takes the likeliest token"
    )
    top_k: integer(0, 2**31 - 1) | None = Field(
        DEFAULTS.top_k, description="sample among the k likeliest tokens; 0: all"
    )
    top_p: float | None = Field(
        DEFAULTS.top_p, ge=0, le=1, description="sample among the likeliest tokens that together have this probability"
    )
    frequency_penalty: float | None = Field(
        DEFAULTS.frequency_penalty,
        ge=-2,
        le=2,
        description="subtracted from a token's logit for each time it is in the prompt or answer (OpenAI: answer only)",
    )
    repetition_penalty: float | None = Field(
        DEFAULTS.repetition_penalty,
        ge=0.01,
        le=10,
        description="divides the logits of tokens that are in the prompt or answer; 1: none",
    )
    seed: integer(-N_SEEDS, N_SEEDS - 1) | None = Field(
        None, description="the same request with the same seed gives the same text"
    )
    stop: one_of("a string or a list of strings", text=StopText, list=array(StopText, 0, MAX_STOP_STRINGS)) | None = (
        Field(None, description=f"the answer ends before this text, or before any of up to {MAX_STOP_STRINGS} texts")
    )

    @property
    def sampling_params(self):
        """The SamplingParams of the request. `answer_tokens` is defined by each kind of request."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return SamplingParams(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            max_new_tokens=self.answer_tokens,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            stop=tuple(text for text in stop if text),
            seed=None if self.seed is None else self.seed % N_SEEDS,  # OpenAI's seeds may be negative
        )


class StreamOptions(RequestObject):
    include_usage: bool | None = Field(False, description="token counts in a last event")
    include_obfuscation: ignored(bool) = None


@add_unsupported_fields
class OpenAIFields(SamplingFields):
    """The fields that completions and chat completions share."""

    model: ModelName = Field(description="a model's id, as /v1/models lists them")
    stream: bool | None = Field(False, description="answer piece by piece, as server-sent events")
    stream_options: StreamOptions | None = Field(None, description="only together with stream: true")
    user: ignored(Annotated[str, Field(max_length=512)]) = None

    @model_validator(mode="after")
    def check_stream_options(self):
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options is allowed only together with stream: true", "stream_options")
        return self


def request_models(settings):
    """{path: class of the request body that is posted there}.

    settings: their max_prompt_chars (of all prompts together), max_tokens_limit and max_batch (prompts) are the limits.
    """
    Text = Annotated[str, Field(max_length=settings.max_prompt_chars)]
    TokenIds = array(integer(0, 2**31 - 1), 1, settings.max_prompt_chars)
    AnswerTokens = integer(0, settings.max_tokens_limit) | None
    token_help = "longest answer, in tokens"

    class GenerateRequest(SamplingFields):
        """Body of POST /generate."""

        prompt: Text = Field(description="a question, or, for a base model, the start of a text")
        model: ModelName | None = Field(
            None, description="a model's id, as /v1/models lists them; the first of them if left out"
        )
        stream: bool | None = Field(True, description="plain text as it is generated, or (false) one JSON object")
        max_new_tokens: AnswerTokens = Field(DEFAULTS.max_new_tokens, description=token_help)

        @property
        def answer_tokens(self):
            return self.max_new_tokens

    @add_unsupported_fields
    class CompletionRequest(OpenAIFields):
        """Body of POST /v1/completions."""

        prompt: one_of(
            "text, a list of token ids, or a list of either",
            text=Text,
            list=array(Text, 1, settings.max_batch),
            ids=TokenIds,
            lists=array(TokenIds, 1, settings.max_batch),
        ) = Field(description=f"text, token ids, or a list of up to {settings.max_batch} of either")
        max_tokens: AnswerTokens = Field(DEFAULTS.max_new_tokens, description=token_help)
        logprobs: Alternatives = Field(
            None, description="log probabilities of the tokens, and so many of the likeliest ones at each place"
        )
        echo: bool | None = Field(
            False, description="begin the answer with the prompt, and its log probabilities with the prompt's"
        )
        best_of: integer(1, settings.max_batch) | None = Field(None, description="as many as n: all are returned")

        @model_validator(mode="after")
        def check_best_of(self):
            if self.best_of is not None and self.best_of != (self.n or 1):
                raise ApiError(400, f"best_of other than n ({self.n or 1}) is not supported; leave it out", "best_of")
            return self

        @property
        def answer_tokens(self):
            return self.max_tokens

        @property
        def sampling_params(self):
            of_prompt = self.logprobs if self.echo else None
            return replace(super().sampling_params, logprobs=self.logprobs, prompt_logprobs=of_prompt)

        def prompts(self, n_vocab):
            """The prompts, each text or a list of ids. Raises ApiError where they are too long or an id is unknown."""
            prompts = one_or_several("prompt", self.prompt, n_vocab)
            check_length("prompt", sum(map(len, prompts)), settings)
            return prompts

    class TextPart(RequestObject):
        type: Literal["text"]
        text: Text
        prompt_cache_breakpoint: ignored(dict) = None

    @add_unsupported_fields
    class Message(RequestObject):
        role: Literal["system", "developer", "user", "assistant"]
        content: one_of("a string or a list of text parts", text=Text, list=array(TextPart, 1, MAX_MESSAGES))
        name: ignored(AnyText) = None

        @property
        def text(self):
            return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

    @add_unsupported_fields
    class ChatCompletionRequest(OpenAIFields):
        """Body of POST /v1/chat/completions. OpenAI's fields for tools, sound and the like are known, and refused."""

        messages: array(Message, 1, MAX_MESSAGES) = Field(
            description="the conversation so far; the last message is the user's"
        )
        max_tokens: AnswerTokens = Field(DEFAULTS.max_new_tokens, description=token_help)
        max_completion_tokens: AnswerTokens = Field(None, description=f"{token_help}; preferred to max_tokens")
        metadata: ignored(dict) = None
        parallel_tool_calls: ignored(bool) = None
        prompt_cache_key: ignored(AnyText) = None
        prompt_cache_retention: ignored(AnyText) = None
        safety_identifier: ignored(AnyText) = None
        prompt_cache_options: ignored(dict) = None

        logprobs: bool | None = Field(False, description="log probabilities of the tokens")
        top_logprobs: Alternatives = Field(
            None, description="so many of the likeliest tokens at each place; only together with logprobs: true"
        )

        @model_validator(mode="after")
        def check_top_logprobs(self):
            if self.top_logprobs and not self.logprobs:
                raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
            return self

        @property
        def answer_tokens(self):
            return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

        @property
        def sampling_params(self):
            return replace(super().sampling_params, logprobs=(self.top_logprobs or 0) if self.logprobs else None)

        @model_validator(mode="after")
        def check_messages(self):
            last = self.messages[-1].role
            if last != "user":
                where = f"messages[{len(self.messages) - 1}].role"
                raise ApiError(400, f"{where} is {last}; the last message must be the user's", where)
            check_length("messages", sum(len(message.text) for message in self.messages), settings)
            return self

        @property
        def conversation(self):
            """The messages as dicts of role and content (str)."""
            return [{"role": message.role, "content": message.text} for message in self.messages]

    class EmbeddingRequest(RequestObject):
        """Body of POST /v1/embeddings."""

        model: ModelName = Field(description="a model's id, as /v1/models lists them")
        input: one_of(
            "text, a list of token ids, or a list of either",
            text=Text,
            list=array(Text, 1, MAX_EMBEDDED_TEXTS),
            ids=TokenIds,
            lists=array(TokenIds, 1, MAX_EMBEDDED_TEXTS),
        ) = Field(description=f"text, token ids, or a list of up to {MAX_EMBEDDED_TEXTS} of either")
        encoding_format: Literal["float", "base64"] | None = Field("float", description="base64: float32 numbers")
        dimensions: integer(1, 2**31 - 1) | None = Field(None, description="only the model's own width")
        user: AnyText | None = Field(None, description="accepted, without effect")

        def prompts(self, n_vocab):
            """The inputs, each text or a list of ids. Raises ApiError where an id is unknown."""
            hint = "; send text, or ids of this model (LangChain: check_embedding_ctx_length=False)"
            return one_or_several("input", self.input, n_vocab, hint)

    class TokenizeRequest(RequestObject):
        """Body of POST /tokenize: a prompt or messages."""

        model: ModelName | None = Field(None, description="a model's id; the first model if left out")
        prompt: Text | None = Field(None, description="for a fine-tuned model, ## in it is the answer mark")
        messages: array(Message, 1, MAX_MESSAGES) | None = Field(None, description="in place of a prompt")
        add_special_tokens: bool | None = Field(True, description="without effect: no token is added to a text")
        return_token_strs: bool | None = Field(False, description="also the text of each token")
        conversation = ChatCompletionRequest.conversation

        @model_validator(mode="after")
        def check_kind(self):
            if (self.prompt is None) == (self.messages is None):
                raise ApiError(400, "give either prompt or messages", "prompt")
            check_length("messages", sum(len(message.text) for message in self.messages or ()), settings)
            return self

    class DetokenizeRequest(RequestObject):
        """Body of POST /detokenize."""

        model: ModelName | None = Field(None, description="a model's id; the first model if left out")
        tokens: array(integer(0, 2**31 - 1), 0, settings.max_prompt_chars) = Field(description="token ids")

        def known_tokens(self, n_vocab):
            """The ids. Raises ApiError where one is unknown."""
            return one_or_several("tokens", self.tokens, n_vocab)[0] if self.tokens else []

    return {
        "/generate": GenerateRequest,
        "/v1/completions": CompletionRequest,
        "/v1/chat/completions": ChatCompletionRequest,
        "/v1/embeddings": EmbeddingRequest,
        "/tokenize": TokenizeRequest,
        "/detokenize": DetokenizeRequest,
    }


def one_or_several(field, value, n_vocab, hint=""):
    """The texts and lists of ids of a field that has one or several. Raises ApiError for an id that is unknown."""
    values = value if json_kind(value) in ("list", "lists") else [value]
    for i, ids in enumerate(values):
        for j, token in enumerate(ids if isinstance(ids, list) else ()):
            if token >= n_vocab:
                where = f"{field}[{j}]" if values[0] is value else f"{field}[{i}][{j}]"
                raise ApiError(400, f"{where} is {token}; the vocabulary has {n_vocab} tokens{hint}", where)
    return values


def check_length(where, length, settings):
    """Raise ApiError if the field `where` has more than settings.max_prompt_chars characters in all."""
    if length > settings.max_prompt_chars:
        raise ApiError(400, f"{where} has {length} characters; {settings.max_prompt_chars} are the most", where)


def parse_request(model, values):
    """The `model` (a class of `request_models`) that a body gives. Raises ApiError (400), which names one wrong field.

    values: dict, the parsed JSON.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise to_api_error(error.errors(include_url=False)[0]) from None


def to_api_error(error):
    """The ApiError of one of pydantic's errors (dict): which field, what is right, what was given."""
    # Pydantic's location has the tags of union members among the names of fields.
    steps = [step for step in error["loc"] if not str(step).startswith("<")]
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, UnknownField):
        unknown = f"{where}.{cause.name}" if where else cause.name
        return ApiError(400, f"unknown field {unknown}; {cause.hint}", unknown, "unknown_field")
    if error["type"] == "missing":
        return ApiError(400, f"{where} is missing", where, "missing_field")
    wanted = str(cause) if cause else PYDANTIC_MESSAGES.get(error["type"], error["msg"])
    given = reprlib.repr(error["input"])[:MAX_SHOWN_CHARS]
    return ApiError(400, f"{where}: {wanted} (given: {given})", where)
