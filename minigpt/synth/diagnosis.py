"""What keeps a server or model from answering articles well, as opposed to faults of single articles.

A trouble is a refusal, or a reply that shows a wrong set-up: the prompt cut by the server, only thoughts, no end. Each
has a message with the server's words and an advice that names the setting. Troubles alike in a row end the run.
"""

import re
from collections import Counter
from dataclasses import dataclass

from minigpt.openai_client import names_field
from minigpt.synth.prompts import system_message
from minigpt.synth.reply_parser import strip_thoughts

# What a refusal is about, found in its words. The first that matches counts: refusals for the context's length often
# name max_tokens as well.
CONTEXT, EXTRA, TEMPERATURE, LENGTH, WRONG_MODEL, KEY, FILTER, OTHER = (
    "context", "extra", "temperature", "length", "model", "key", "filter", "other",
)  # fmt: skip
TOPIC_WORDS = {
    CONTEXT: r"context|上下文|maximum model length|max_model_len|token count|inputs?`? tokens|input length|"
    r"tokens to keep|longer than the (?:model|maximum)|too many tokens|too long|过长|太长|超长",
    TEMPERATURE: r"temperature|温度",
    LENGTH: r"max_?(?:completion_?|new_?|output_?)?tokens|(?:output|completion) tokens",
    WRONG_MODEL: r"model.{0,80}(?:not (?:found|exist|loaded|available)|does not exist|unloaded)|"
    r"models? (?:is |are )?loaded|"
    r"(?:not found the|unknown|no such|invalid|load a) model|not support chat|not a chat model|"
    r"模型.{0,40}(?:不存在|未找到|没有)",
    KEY: r"api.?key|unauthori[sz]ed|authenticat|密钥",
    FILTER: r"inappropriate|moderat|content.?(?:filter|polic|management)|safety|sensitive|unsafe|risk|prohibited|"
    r"violat|inspection|审核|敏感|违规|合规|安全|风险",
}
FILTER_STATUSES = (403, 451)
# Numbers in a server's words, the surest pattern first.
CONTEXT_SIZE = (
    r"context (?:length|size|window)\D{0,40}(\d[\d,]*)",
    r"maximum model length\D{0,10}(\d[\d,]*)",
    r"上下文\D{0,20}(\d[\d,]*)",
    r"\[\d+\s?,\s?(\d+)\]",
    r">\s?(\d[\d,]*) maximum",
    r"<=\s?(\d[\d,]*)",
    r"allowed \((\d[\d,]*)",
    r"(?:maximum|limit)\D{0,30}(\d[\d,]*)",
)
PROMPT_SIZE = (
    r"(\d[\d,]*) (?:tokens )?(?:in|from) the (?:input )?(?:messages|prompt)",
    r"has (\d[\d,]*) input tokens",
    r"(?:request|prompt|input) \((\d[\d,]*) tokens",
    r"(\d[\d,]*) `inputs` tokens",
    r"resulted in (\d[\d,]*)",
    r"(?:token count|first|prompt is too long:?)\D{0,3}(\d[\d,]*)",
)
OUTPUT_SIZE = (
    r"\[\s?\d+\s?[,~-]\s?(\d+)\s?\]",
    r"(?:at most|maximum|up to|<=|or equal to|不超过|最大)\D{0,30}(\d[\d,]*)",
    r">\s?(\d[\d,]*)",
)
ONLY_VALUE = (r"(?:only|must be)\D{0,24}(\d+(?:\.\d+)?)", r"只\D{0,12}(\d+(?:\.\d+)?)")

PROMPT_CHARS = 100  # of a user's message besides the article
SPARE_TOKENS = 64  # of a chat template
MIN_REPLY_TOKENS = 512  # enough for most replies
MANY_IN_A_ROW = 50  # troubles alike after which a run ends that had sound replies before
FEW_IN_A_ROW = 3  # the same of a run that had none
MIN_CUT_TOKENS = 256  # a smaller constant number of prompt tokens is taken for a fake one
CUT_UNIT = 256  # context lengths are multiples of it
LENGTH_SPREAD = 1.25  # longest by shortest of prompts that cannot have the same number of tokens by chance
MAX_LENGTHS = 64  # of prompts that are kept
THINKING_OFF = (
    """--api_extra='{"reasoning_effort": "none"}', """
    """--api_extra='{"chat_template_kwargs": {"enable_thinking": false}}' """
    "or /no_think in its system prompt"
)


@dataclass(frozen=True)
class Trouble:
    """kind: of the summary's lines; alike: troubles with the same text are alike; message, advice: for the user."""

    kind: str
    alike: str
    message: str
    advice: str

    @property
    def text(self):
        """Message and advice in a line."""
        return f"{self.message.rstrip('.')}; {self.advice}"


class TroubleLog:
    """Counts troubles, and those alike in a row. Not thread-safe: the caller locks."""

    def __init__(self, concurrency):
        self.few = max(FEW_IN_A_ROW, concurrency)
        self.counts = Counter()  # by kind and alike
        self.examples = {}  # the first Trouble of each
        self.sound_replies = 0
        self.last = None
        self.in_a_row = 0

    def add_sound_reply(self):
        """A reply that is no trouble: what is wrong with it is the article's or the model's."""
        self.sound_replies += 1
        self.in_a_row = 0

    def add(self, trouble):
        """Count a trouble. Returns whether the run should end: so many alike in a row are not the articles' fault.

        An article that a filter refuses may stand beside others like it, so that a few of these say nothing.
        """
        key = trouble.kind, trouble.alike
        self.in_a_row = self.in_a_row + 1 if self.last and (self.last.kind, self.last.alike) == key else 1
        self.last = trouble
        self.counts[key] += 1
        self.examples.setdefault(key, trouble)
        return self.in_a_row >= (MANY_IN_A_ROW if self.sound_replies or trouble.kind == FILTER else self.few)

    def lines(self):
        """The summary's lines: each trouble with its count and what mends it, the most common first."""
        found = [(self.examples[key], count) for key, count in self.counts.most_common()]
        return [f"{count} × {trouble.text}" for trouble, count in found]


# Refusals


def refusal_topic(failure, extra=()):
    """What a refusal (ApiFailure) is about. extra: names of the fields of --api_extra."""
    words = f"{failure.values.get('detail', '')} {failure.values.get('param', '')}"
    topics = [topic for topic, pattern in TOPIC_WORDS.items() if re.search(pattern, words, re.IGNORECASE)]
    if topics[:1] != [CONTEXT] and any(names_field(words, re.escape(name)) for name in extra):
        return EXTRA
    if topics:
        return topics[0]
    return FILTER if failure.values.get("status") in FILTER_STATUSES else OTHER


def refusal_trouble(failure, settings, chars, extra=()):
    """The `Trouble` of an article that the server refuses. chars: length of the request's prompt."""
    status, detail = failure.values["status"], failure.values["detail"]
    # Without numbers and quoted parts, which differ from article to article.
    alike = re.sub(r"[\"'`“‘][^\"'`”’]*[\"'`”’]|[\d.,]+", "", detail)
    topic = refusal_topic(failure, extra)
    message = f"an article was refused with status {status}: {detail}"
    return Trouble(topic, f"{status} {alike}", message, refusal_advice(topic, detail, settings, chars))


def refusal_advice(topic, detail, settings, chars):
    """What the user can do about a refusal, with the number that the server's words give."""
    if topic == CONTEXT:
        return context_advice(detail, settings, chars)
    if topic == TEMPERATURE:
        value = number_in(ONLY_VALUE, detail) or 1.0
        return f"give --temperature={value:g} (now {settings.temperature:g})"
    if topic == LENGTH:
        most = number_in(OUTPUT_SIZE, detail)
        most = int(most) if 0 < most < settings.max_new_tokens else settings.max_new_tokens // 2 or 1
        return f"give --max_new_tokens={most} (now {settings.max_new_tokens})"
    return {
        WRONG_MODEL: "name a model that the server offers with --api_model=…",
        EXTRA: f"correct --api_extra (now {settings.api_extra}), or leave it out",
        KEY: "set the key in the environment's OPENAI_API_KEY",
        FILTER: "the service's filter refuses it; ask another model with --api_model and --api_base",
        OTHER: "check --api_model, what --api_extra could add, what --max_new_tokens and --article_chars could "
        "shorten, and the server's log",
    }[topic]


def context_advice(detail, settings, chars):
    """What makes the request fit into the model's context: the longest article's prompt and the reply together."""
    limit, prompt = int(number_in(CONTEXT_SIZE, detail)), number_in(PROMPT_SIZE, detail)
    longer = "or give the model a longer context where it is loaded"
    if not limit:
        now = f"--max_new_tokens (now {settings.max_new_tokens}) or --article_chars (now {settings.article_chars})"
        return f"lower {now}, {longer}"
    tokens_per_char = prompt / chars if prompt and chars else 1.0
    fixed_chars = len(system_message(settings, settings.articles_per_request > 1)) + PROMPT_CHARS
    left = limit - SPARE_TOKENS
    room = int(left - (fixed_chars + settings.article_chars) * tokens_per_char) // 64 * 64
    if MIN_REPLY_TOKENS <= room < settings.max_new_tokens:
        return f"give --max_new_tokens={room} (now {settings.max_new_tokens}), or lower --article_chars; {longer}"
    reply = min(settings.max_new_tokens, MIN_REPLY_TOKENS, limit // 4)
    article_chars = min(int((left - reply) / tokens_per_char - fixed_chars) // 50 * 50, settings.article_chars)
    if article_chars < 50:
        return f"give the model a longer context than {limit} tokens where it is loaded"
    return f"give --max_new_tokens={reply} --article_chars={article_chars}, {longer}"


def number_in(patterns, words):
    """The first number that one of the patterns finds in words, or 0."""
    found = (re.search(pattern, words, re.IGNORECASE) for pattern in patterns)
    return next((float(match[1].replace(",", "") or 0) for match in found if match), 0.0)


# Replies


def reply_trouble(stream, text, has_pairs, settings):
    """The `Trouble` that a reply shows, or None. stream: the ended RemoteStream; text: of its reply; has_pairs: whether
    a pair could be read from it."""
    is_cut, answer = stream.finish_reason == "length", strip_thoughts(text).strip()
    thought_chars = stream.thought_chars + len(text.strip()) - len(answer)
    if has_pairs:
        return None
    if thought_chars and (not answer or (is_cut and thought_chars > len(answer))):
        message = f"the model's thinking filled the reply ({thought_chars} characters, no whole answer after it)"
        advice = f"turn it off with {THINKING_OFF}, or raise --max_new_tokens (now {settings.max_new_tokens})"
        return Trouble("thoughts", "", message, advice)
    if not is_cut:
        return None
    limit = f"{settings.max_new_tokens} tokens"
    if stream.cut == "time":
        limit = f"{settings.request_seconds:g} s (--request_seconds)"
    message = f"this model does not end its answers: {len(answer)} characters and no end within {limit}"
    advice = (
        f"lower --max_new_tokens to {max(1, settings.max_new_tokens // 4)} and choose an instruct model with "
        "--api_model (a base model only continues texts); if its answers are good but long or slow, raise "
        "--max_new_tokens and --request_seconds, or lower --concurrency"
    )
    return Trouble("endless", stream.cut, message, advice)


class PromptSizes:
    """Finds the length at which a server cuts prompts: the largest prompt_tokens comes again for different prompts."""

    def __init__(self):
        self.largest = 0  # prompt_tokens
        self.lengths = []  # characters of the prompts that had so many

    def add(self, tokens, chars):
        """Add a request that was answered: its prompt_tokens, 0 if the server reports none, and its characters."""
        if tokens > self.largest:
            self.largest, self.lengths = tokens, []
        if tokens == self.largest and len(self.lengths) < MAX_LENGTHS:
            self.lengths.append(chars)

    def limit(self):
        """The number of tokens at which prompts are cut, or 0 if nothing shows that they are."""
        is_round = (self.largest + 1) % CUT_UNIT <= 2  # servers may count one token more or less
        if self.largest < MIN_CUT_TOKENS or len(self.lengths) < FEW_IN_A_ROW:
            return 0
        differ = max(self.lengths) >= LENGTH_SPREAD * min(self.lengths) and len(set(self.lengths)) >= FEW_IN_A_ROW
        return self.largest if is_round or differ else 0


def cut_trouble(limit, settings):
    """The `Trouble` of a prompt that the server cut to `limit` tokens."""
    needed = settings.article_chars + settings.max_new_tokens + len(system_message(settings, False)) + PROMPT_CHARS
    size = 1 << (max(2 * limit, needed) - 1).bit_length()
    shorter = min(settings.article_chars // 2, limit // 2)
    message = f"the server cuts prompts at {limit} tokens, so the model does not see the whole request"
    advice = (
        f"give the model a longer context (Ollama: OLLAMA_CONTEXT_LENGTH={size} ollama serve, or /set parameter "
        f"num_ctx {size}), or lower --article_chars to {max(50, shorter)} (now {settings.article_chars})"
    )
    return Trouble("cut", str(limit), message, advice)
