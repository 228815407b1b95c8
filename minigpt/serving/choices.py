"""One choice of an answer as its text comes, with the log probabilities of its tokens in OpenAI's two forms."""

from minigpt.serving.errors import ApiError

LEAST_LOGPROB = -9999.0  # what OpenAI gives in place of minus infinity, which JSON does not have


class Choice:
    """Takes the text of one stream piece by piece, and adds to it what the request asked for.

    tokenizer: the model's; chat: whether log probabilities have the form of chats; echo: whether the text begins with
    the prompt.
    """

    def __init__(self, stream, tokenizer, chat, echo):
        self._stream, self._tokenizer, self._chat = stream, tokenizer, chat
        self._prompt = tokenizer.decode(stream.prompt) if echo else ""
        self._prompt_is_due = echo
        self._characters = self._tokens = 0  # how many of the answer were taken

    def take(self, text, ended):
        """(text, log probabilities or None) to send for the next piece of the answer. ended: whether it is the last.

        Raises ApiError if the request ended before the prompt's log probabilities were computed.
        """
        if self._stream.params.logprobs is None and not self._prompt_is_due:
            return text, None
        self._characters += len(text)
        prompt, answer = [], self._new_tokens(ended)
        if self._prompt_is_due:
            self._prompt_is_due = False
            text, prompt = self._prompt + text, self._stream.prompt_logprobs
            if self._stream.params.prompt_logprobs is not None and not prompt:
                raise ApiError(503, "the prompt was not computed in time", None, "too_slow", "server_error")
        if self._stream.params.logprobs is None:
            return text, None
        write = chat_logprobs if self._chat else completion_logprobs
        return text, write(self._tokenizer, prompt, answer, len(self._prompt))

    def _new_tokens(self, ended):
        """The log probabilities of the tokens that start in the text taken so far, and at its end of all others."""
        tokens = self._stream.logprobs  # the engine may replace this list by a shorter one
        first, n = self._tokens, len(tokens) if ended else self._tokens
        while n < len(tokens) and tokens[n].start < self._characters:
            n += 1
        self._tokens = n
        return tokens[first:n]


def completion_logprobs(tokenizer, prompt, answer, prompt_characters):
    """The form of completions. prompt, answer: lists of `TokenLogprob`.

    Bytes that are only a part of a character are written as `bytes:\\xe6\\xb2`.
    """

    def text(token_id):
        shown, data = show_token(tokenizer, token_id)
        return shown if data is None or data == shown.encode() else f"bytes:{shown}"

    def alternatives(token):
        """{text: log probability} of the token itself and the most likely ones."""
        pairs = [*token.top, (token.token_id, token.logprob)]
        return {text(token_id): finite(logprob) for token_id, logprob in pairs}

    tokens = [*prompt, *answer]
    return {
        "tokens": [text(token.token_id) for token in tokens],
        "token_logprobs": [finite(token.logprob) for token in tokens],
        "top_logprobs": [None if token.logprob is None else alternatives(token) for token in tokens],
        "text_offset": [token.start for token in prompt] + [prompt_characters + token.start for token in answer],
    }


def chat_logprobs(tokenizer, prompt, answer, prompt_characters):
    """The form of chats, of the answer's tokens; an EOT at its end is no part of a message."""

    def entry(token_id, logprob):
        shown, data = show_token(tokenizer, token_id)
        return {"token": shown, "logprob": finite(logprob), "bytes": None if data is None else list(data)}

    content = [
        {**entry(token.token_id, token.logprob), "top_logprobs": [entry(*pair) for pair in token.top]}
        for token in answer
        if tokenizer.token_bytes(token.token_id)
    ]
    return {"content": content, "refusal": None}


def show_token(tokenizer, token_id):
    """(text of a token, its bytes). Bytes that are no whole characters are escaped; EOT and PAD have None."""
    data = tokenizer.token_bytes(token_id)
    if not data:
        return tokenizer.special_texts.get(token_id, ""), None
    return data.decode("utf-8", errors="backslashreplace"), data


def finite(logprob):
    """A log probability as JSON can write it. None stays None."""
    return None if logprob is None else max(logprob, LEAST_LOGPROB)
