"""The request bodies of the API as pydantic models. They check a body, fill in defaults and describe the API."""

import json
import reprlib
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union

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
from rapidfuzz.distance import OSA

from minigpt.inference.params import MAX_LOGPROBS, SamplingParams
from minigpt.serving.errors import ApiError

NOT_SUPPORTED = tomllib.loads(Path(__file__).with_name("not_supported.toml").read_text(encoding="utf-8"))
DEFAULTS = SamplingParams()
N_SEEDS = 2**63  # SamplingParams takes 0 to N_SEEDS - 1
MAX_MESSAGES = 4096
MAX_STOP_STRINGS = 16
MAX_TEXTS = 2048  # of one request for embeddings, labels or tags; as OpenAI's
MAX_SHOWN_CHARS = 64  # of a client's value or field name in an error message
MAX_IGNORED_FIELDS = 100  # of a body; beyond these, unknown fields are neither named nor compared with known ones
# A name of at least so many letters and digits may have so many mistakes to be taken for a misspelt one.
MAX_MISTAKES = ((8, 2), (3, 1))
# The types of a message's parts: those with text, those of an assistant that are left out, and those that are refused.
TEXT_PARTS = ("text", "input_text", "output_text")
SILENT_PARTS = ("refusal", "reasoning", "thinking", "redacted_thinking")
MEDIA_PARTS = {
    **dict.fromkeys(("image", "image_url", "input_image"), "image"),
    **dict.fromkeys(("audio", "audio_url", "input_audio"), "recording"),
    **dict.fromkeys(("video", "video_url", "input_video"), "video"),
    **dict.fromkeys(("file", "input_file", "document"), "file"),
}
# Pydantic's messages that are written for Python programmers, in the words of JSON.
PYDANTIC_MESSAGES = {
    "model_type": "Input should be an object",
    "dict_type": "Input should be an object",
    "string_unicode": "Input has half of a surrogate pair, which is not a character",
}


class UnknownField(ValueError):
    """A field that is refused because its name is not known.

    hint: what the client can do.
    """

    def __init__(self, name, hint):
        super().__init__("unknown field")
        self.name = name[:MAX_SHOWN_CHARS] or "''"
        self.hint = hint


@dataclass
class BodyReading:
    """What the validators of one body share.

    strict: refuse unknown fields; ignored: the names of those that were accepted, as the keys of a dict, in order.
    """

    strict: bool = False
    ignored: dict = field(default_factory=dict)


def nearest_name(name, known):
    """The one of `known` names that `name` misspells, in a letter or two, in case or in punctuation; else None."""
    plain = letters_of(name)
    distances = {}
    for other in known:
        wanted = letters_of(other)
        limit = next((mistakes for length, mistakes in MAX_MISTAKES if len(wanted) >= length), 0)
        if abs(len(plain) - len(wanted)) <= limit:
            distance = OSA.distance(plain, wanted)
            if distance <= limit:
                distances[other] = distance
    return min(distances, key=distances.get, default=None)


def letters_of(name):
    """A name's letters and digits, lower case."""
    return "".join(c for c in name.lower() if c.isalnum())


class RequestObject(BaseModel):
    """A JSON object of a request. Values are not converted ("1" is not a number).

    KIND: the group of not_supported.toml for its other fields; WHERE: its place in the body, before a field's name.
    """

    model_config = ConfigDict(strict=True)
    KIND: ClassVar[str] = "request"
    WHERE: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def take_known_fields(cls, values, info):
        """Leave out fields that are null, because OpenAI's clients send null for a field that is not set, and fields
        that are not known. Raises UnknownField for one that is misspelt, and for every unknown one if strict.
        """
        if not isinstance(values, dict):
            return values
        reading = info.context or BodyReading()
        taken = {}
        for name, value in values.items():
            if name in cls.model_fields:
                if value is not None:
                    taken[name] = value
            elif name not in NOT_SUPPORTED["accepted"][cls.KIND] and len(reading.ignored) < MAX_IGNORED_FIELDS:
                near = None if name in NOT_SUPPORTED["ignored"][cls.KIND] else nearest_name(name, cls.model_fields)
                if near:
                    raise UnknownField(name, f"did you mean {near}?")
                if reading.strict:
                    raise UnknownField(name, f"the fields are {', '.join(cls.model_fields)}")
                reading.ignored[cls.WHERE + name] = None
        return taken


def integer(low, high=None):
    """Type of an integer from low to high (None: any). A number without a fraction (3.0) is one, as in JSON Schema."""

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


def not_supported(name, neutral):
    """Type of a field that is not supported: it takes only the values that change nothing."""
    reason = NOT_SUPPORTED["reasons"].get(name, "not supported here")
    instead = next((f" or give {json.dumps(value)}" for value in neutral if value), "")
    message = f"{reason}; leave it out{instead}"

    def check(value):
        # In Python, but not in JSON, True equals 1.
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral):
            raise ValueError(message)
        return value

    return Annotated[Any, AfterValidator(check), WithJsonSchema({"enum": [*neutral, None], "description": message})]


def add_unsupported_fields(cls):
    """Class decorator: adds the fields that not_supported.toml refuses for the class."""
    refused = NOT_SUPPORTED["refused"][cls.__name__]
    fields = {name: (not_supported(name, neutral), None) for name, neutral in refused.items()}
    return create_model(cls.__name__, __base__=cls, __doc__=cls.__doc__, **fields)


def refuse_media(kind):
    """Raise ValueError if the type of a message's part is not text."""
    if isinstance(kind, str) and kind in MEDIA_PARTS:
        raise ValueError(f"these models read text only; leave the {MEDIA_PARTS[kind]} out")
    return kind


Alternatives = integer(0, MAX_LOGPROBS) | None
ModelName = Annotated[str, Field(max_length=512)]
StopText = Annotated[str, Field(max_length=256)]


class SamplingFields(RequestObject):
    """The fields of every request; they set the SamplingParams of the same names."""

    temperature: float | None = Field(
        DEFAULTS.temperature, ge=0, le=2, description="sharpness of sampling; 0 takes the likeliest token"
    )
    top_k: integer(-1, 2**31 - 1) | None = Field(
        DEFAULTS.top_k, description="sample among the k likeliest tokens; 0 or -1: all"
    )
    top_p: float | None = Field(
        DEFAULTS.top_p, ge=0, le=1, description="sample among the likeliest tokens that together have this probability"
    )
    min_p: float | None = Field(
        DEFAULTS.min_p,
        ge=0,
        le=1,
        description="drop tokens that are less likely than this share of the likeliest token's probability",
    )
    presence_penalty: float | None = Field(
        DEFAULTS.presence_penalty,
        ge=-2,
        le=2,
        description="subtracted once from the logit of a token that is in the prompt or answer (OpenAI: answer only)",
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
    repeat_penalty: float | None = Field(None, ge=0.01, le=10, description="another name of repetition_penalty")
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
            top_k=max(0, self.top_k),
            top_p=self.top_p,
            min_p=self.min_p,
            max_new_tokens=self.answer_tokens,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repeat_penalty or self.repetition_penalty,
            stop=tuple(text for text in stop if text),
            seed=None if self.seed is None else self.seed % N_SEEDS,  # OpenAI's seeds may be negative
        )


class StreamOptions(RequestObject):
    KIND = "stream_options"
    WHERE = "stream_options."
    include_usage: bool | None = Field(False, description="token counts in a last event")


@add_unsupported_fields
class OpenAIFields(SamplingFields):
    """The fields that completions and chat completions share."""

    model: ModelName = Field(description="a model's id, as /v1/models lists them")
    stream: bool | None = Field(False, description="answer piece by piece, as server-sent events")
    stream_options: StreamOptions | None = Field(None, description="of a stream; without effect on a whole answer")

    @property
    def choices_params(self):
        """The SamplingParams of each of the `n` choices. With a seed, each choice has its own."""
        params = self.sampling_params
        if params.seed is None:
            return [params] * self.n
        return [replace(params, seed=(params.seed + i) % N_SEEDS) for i in range(self.n)]


def request_models(settings):
    """{path: class of the request body that is posted there}.

    settings: their max_prompt_chars (of all prompts together), max_tokens_limit and max_batch (prompts) are the limits.
    """
    Text = Annotated[str, Field(max_length=settings.max_prompt_chars)]
    TokenIds = array(integer(0, 2**31 - 1), 1, settings.max_prompt_chars)
    AnswerTokens = integer(-1) | None
    Choices = integer(1, settings.max_batch) | None
    choices_help = f"answers to each prompt; prompts times n are at most {settings.max_batch}"

    class AnswerLength(SamplingFields):
        """The longest answer's fields: every route takes all three names."""

        max_tokens: AnswerTokens = Field(
            None,
            description=f"longest answer, in tokens; {DEFAULTS.max_new_tokens} if left out; -1: no limit; more than "
            f"{settings.max_tokens_limit} is taken as {settings.max_tokens_limit}",
        )
        max_completion_tokens: AnswerTokens = Field(None, description="preferred to max_tokens")
        max_new_tokens: AnswerTokens = Field(None, description="another name of max_tokens")

        @property
        def answer_tokens(self):
            names = (self.max_completion_tokens, self.max_tokens, self.max_new_tokens, DEFAULTS.max_new_tokens)
            tokens = next(number for number in names if number is not None)
            return settings.max_tokens_limit if tokens < 0 else min(tokens, settings.max_tokens_limit)

    class GenerateRequest(AnswerLength):
        """Body of POST /generate."""

        prompt: Text = Field(description="a question, or, for a base model, the start of a text")
        model: ModelName | None = Field(
            None, description="a model's id, as /v1/models lists them; the first of them if left out"
        )
        stream: bool | None = Field(True, description="plain text as it is generated, or (false) one JSON object")

    @add_unsupported_fields
    class CompletionRequest(OpenAIFields, AnswerLength):
        """Body of POST /v1/completions."""

        prompt: one_of(
            "text, a list of token ids, or a list of either",
            text=Text,
            list=array(Text, 1, settings.max_batch),
            ids=TokenIds,
            lists=array(TokenIds, 1, settings.max_batch),
        ) = Field(description=f"text, token ids, or a list of up to {settings.max_batch} of either")
        n: Choices = Field(1, description=choices_help)
        logprobs: Alternatives = Field(
            None, description="log probabilities of the tokens, and so many of the likeliest ones at each place"
        )
        echo: bool | None = Field(
            False, description="begin the answer with the prompt, and its log probabilities with the prompt's"
        )
        best_of: integer(1, settings.max_batch) | None = Field(None, description="as many as n: all are returned")

        @model_validator(mode="after")
        def check_best_of(self):
            if self.best_of is not None and self.best_of != self.n:
                raise ApiError(400, f"only n ({self.n}) is supported; leave it out", "best_of")
            return self

        @property
        def sampling_params(self):
            of_prompt = self.logprobs if self.echo else None
            return replace(super().sampling_params, logprobs=self.logprobs, prompt_logprobs=of_prompt)

        def prompts(self, n_vocab):
            """The prompts, each text or a list of ids. Raises ApiError where they are too long or an id is unknown."""
            prompts = one_or_several("prompt", self.prompt, n_vocab)
            check_length("prompt", sum(map(len, prompts)), settings)
            if len(prompts) * self.n > settings.max_batch:
                message = f"{self.n} answers to each of {len(prompts)} prompts are more than {settings.max_batch}"
                raise ApiError(400, message, "n")
            return prompts

    class MessagePart(RequestObject):
        KIND = "part"
        WHERE = "messages[].content[]."
        type: Annotated[Literal[*TEXT_PARTS, *SILENT_PARTS], BeforeValidator(refuse_media)]
        text: Text | None = None

    @add_unsupported_fields
    class Message(RequestObject):
        KIND = "message"
        WHERE = "messages[]."
        role: Literal["system", "developer", "user", "assistant", "tool", "function"]
        content: (
            one_of("a string or a list of text parts", text=Text, list=array(MessagePart, 0, MAX_MESSAGES)) | None
        ) = Field(None, description="null or left out only for an assistant or a tool")

        @property
        def text(self):
            if isinstance(self.content, list):
                return "".join(part.text or "" for part in self.content if part.type in TEXT_PARTS)
            return self.content or ""

    @add_unsupported_fields
    class ChatCompletionRequest(OpenAIFields, AnswerLength):
        """Body of POST /v1/chat/completions. OpenAI's fields for tools, sound and the like are known, and refused."""

        messages: array(Message, 1, MAX_MESSAGES) = Field(
            description="the conversation so far; an assistant's message at its end is continued"
        )
        n: Choices = Field(1, description=choices_help)
        logprobs: bool | None = Field(False, description="log probabilities of the tokens")
        top_logprobs: Alternatives = Field(
            None, description="so many of the likeliest tokens at each place; only together with logprobs: true"
        )

        @model_validator(mode="after")
        def check_top_logprobs(self):
            if self.top_logprobs and not self.logprobs:
                raise ApiError(400, "only together with logprobs: true", "top_logprobs")
            return self

        @property
        def sampling_params(self):
            return replace(super().sampling_params, logprobs=(self.top_logprobs or 0) if self.logprobs else None)

        @model_validator(mode="after")
        def check_messages(self):
            for i, message in enumerate(self.messages):
                where = f"messages[{i}].content"
                if message.content is None and message.role not in ("assistant", "tool", "function"):
                    raise ApiError(400, f"missing; a message of the {message.role} has text", where, "missing_field")
                for j, part in enumerate(message.content if isinstance(message.content, list) else ()):
                    if part.text is None and part.type in TEXT_PARTS:
                        raise ApiError(400, "missing", f"{where}[{j}].text", "missing_field")
            check_length("messages", sum(len(message.text) for message in self.messages), settings)
            return self

        @property
        def conversation(self):
            """The messages as dicts of role (system, developer, user, assistant or tool) and content (str)."""
            roles = {"function": "tool"}  # the older name
            return [{"role": roles.get(m.role, m.role), "content": m.text} for m in self.messages]

    class EmbeddingRequest(RequestObject):
        """Body of POST /v1/embeddings."""

        model: ModelName = Field(description="a model's id, as /v1/models lists them")
        input: one_of(
            "text, a list of token ids, or a list of either",
            text=Text,
            list=array(Text, 1, MAX_TEXTS),
            ids=TokenIds,
            lists=array(TokenIds, 1, MAX_TEXTS),
        ) = Field(description=f"text, token ids, or a list of up to {MAX_TEXTS} of either")
        encoding_format: Literal["float", "base64"] | None = Field("float", description="base64: float32 numbers")
        dimensions: integer(1, 2**31 - 1) | None = Field(None, description="only the model's own width")

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

    class TagRequest(RequestObject):
        """Body of POST /tag: a text or several."""

        FORMS: ClassVar[tuple] = (("text",), ("texts",))
        model: ModelName | None = Field(None, description="a model's id; the first model of this kind if left out")
        text: Text | None = None
        texts: array(Text, 1, MAX_TEXTS) | None = Field(None, description=f"up to {MAX_TEXTS} texts")

        @model_validator(mode="after")
        def check_form(self):
            forms = [form for form in self.FORMS if any(getattr(self, name) is not None for name in form)]
            if len(forms) != 1:
                names = ", or ".join(" and ".join(form) for form in self.FORMS)
                raise ApiError(400, f"give one of these: {names}", "text", "missing_field" if not forms else None)
            for name in forms[0]:
                if getattr(self, name) is None:
                    raise ApiError(400, "missing", name, "missing_field")
            return self

        @property
        def inputs(self):
            """What is labelled: a list of texts."""
            return [self.text] if self.texts is None else self.texts

    class ClassifyRequest(TagRequest):
        """Body of POST /classify: a text, two texts together, or several texts."""

        FORMS: ClassVar[tuple] = (("text",), ("text_a", "text_b"), ("texts",))
        text_a: Text | None = Field(None, description="the first of two texts that have a label together")
        text_b: Text | None = Field(None, description="the second of them")

        @property
        def inputs(self):
            """What is labelled: a list of texts, or of one pair of texts."""
            return super().inputs if self.text_a is None else [(self.text_a, self.text_b)]

    return {
        "/generate": GenerateRequest,
        "/v1/completions": CompletionRequest,
        "/v1/chat/completions": ChatCompletionRequest,
        "/v1/embeddings": EmbeddingRequest,
        "/tokenize": TokenizeRequest,
        "/detokenize": DetokenizeRequest,
        "/classify": ClassifyRequest,
        "/tag": TagRequest,
    }


def one_or_several(field, value, n_vocab, hint=""):
    """The texts and lists of ids of a field that has one or several. Raises ApiError for an id that is unknown."""
    values = value if json_kind(value) in ("list", "lists") else [value]
    for i, ids in enumerate(values):
        for j, token in enumerate(ids if isinstance(ids, list) else ()):
            if token >= n_vocab:
                where = f"{field}[{j}]" if values[0] is value else f"{field}[{i}][{j}]"
                raise ApiError(400, f"there is no token {token}; the vocabulary has {n_vocab}{hint}", where)
    return values


def check_length(where, length, settings):
    """Raise ApiError if the field `where` has more than settings.max_prompt_chars characters in all."""
    if length > settings.max_prompt_chars:
        message = f"{length} characters are more than {settings.max_prompt_chars} (the server's --max_prompt_chars)"
        raise ApiError(400, message, where)


def parse_request(model, values, strict=False):
    """(the `model` that a body gives, names of the fields that were ignored).

    model: a class of `request_models`; values: dict, the parsed JSON; strict: refuse unknown fields. Raises ApiError
    (400), which names one wrong field.
    """
    reading = BodyReading(strict)
    try:
        return model.model_validate(values, context=reading), list(reading.ignored)
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
        return ApiError(400, f"unknown field; {cause.hint}", unknown, "unknown_field")
    if error["type"] == "missing":
        return ApiError(400, "missing", where, "missing_field")
    wanted = str(cause) if cause else PYDANTIC_MESSAGES.get(error["type"], error["msg"])
    given = reprlib.repr(error["input"])[:MAX_SHOWN_CHARS]
    return ApiError(400, f"{wanted} (given: {given})", where)
