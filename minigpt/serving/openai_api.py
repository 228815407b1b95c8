"""The answers of OpenAI's API: completions and chat completions, whole and as events, and the list of models."""

import secrets
import time

from minigpt.common.net import MINIGPT_OWNER
from minigpt.serving.choices import Choice
from minigpt.serving.errors import DONE, to_event, to_json

PLACEHOLDER = "\0"  # for the text in the template of an event


class OpenAIAnswer:
    """Formats the answer to one request.

    chat: chat completion or completion; model: the id that the request named; tokenizer: the model's; echo: whether
    each text begins with its prompt.
    """

    def __init__(self, model, chat, tokenizer, echo):
        self.chat, self.tokenizer, self.echo = chat, tokenizer, echo
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }
        self._object = "chat.completion" if chat else "text_completion"

    def wait_for_whole(self, running):
        """The answer as one dict; waits until `running` (RunningRequest) has ended."""
        texts, reasons = running.wait_for_texts()
        choices = [
            self._choice(i, *choice.take(text, True), reason)
            for i, (choice, text, reason) in enumerate(zip(self._choices(running), texts, reasons, strict=True))
        ]
        return {**self._head, "object": self._object, "choices": choices, "usage": count_usage(running)}

    def events(self, running, include_usage):
        """Yields server-sent events: pieces of text, the end of each choice, token counts if asked for, [DONE]."""
        name = self._object + (".chunk" if self.chat else "")
        head = {**self._head, "object": name, **({"usage": None} if include_usage else {})}
        started, choices = set(), self._choices(running)
        templates = [self._text_template(head, i) for i in range(len(choices))]
        for update in running.updates():
            events = []
            for i, text, reason in update:
                if self.chat and i not in started:
                    started.add(i)
                    role = chat_chunk(i, {"role": "assistant", "content": ""})
                    events.append(to_event({**head, "choices": [role]}))
                text, logprobs = choices[i].take(text, bool(reason))
                if text and logprobs is None:
                    before, after = templates[i]
                    events.append(before + to_json(text) + after)
                elif text or any((logprobs or {}).values()):
                    events.append(to_event({**head, "choices": [self._chunk(i, text, logprobs, None)]}))
                if reason:
                    events.append(to_event({**head, "choices": [self._chunk(i, "", None, reason)]}))
            if events:
                yield b"".join(events)
        usage = to_event({**head, "choices": [], "usage": count_usage(running)}) if include_usage else b""
        yield usage + DONE

    def _text_template(self, head, i):
        """What stands before and after the text in an event of choice i that has text only."""
        event = to_event({**head, "choices": [self._chunk(i, PLACEHOLDER, None, None)]})
        before, _, after = event.rpartition(to_json(PLACEHOLDER))
        return before, after

    def _choices(self, running):
        return [Choice(stream, self.tokenizer, self.chat, self.echo) for stream in running.streams]

    def _choice(self, i, text, logprobs, reason):
        if not self.chat:
            return self._chunk(i, text, logprobs, reason)
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": i, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def _chunk(self, i, text, logprobs, reason):
        if self.chat:
            return chat_chunk(i, {"content": text} if text else {}, logprobs, reason)
        return {"index": i, "text": text, "logprobs": logprobs, "finish_reason": reason}


def chat_chunk(i, delta, logprobs=None, reason=None):
    """A piece of choice i of a chat completion."""
    return {"index": i, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def count_usage(running):
    """OpenAI's `usage`: the token counts of a RunningRequest."""
    prompt = running.prompt_tokens
    completion = running.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def list_models(models, created):
    """The answer of /v1/models. models: {name: generator}; created: Unix seconds."""
    return {"object": "list", "data": [model_entry(*each, created) for each in models.items()]}


def model_entry(name, generator, created):
    """The answer of /v1/models/<name>. "task" tells clients that the model generates no text."""
    entry = {"id": name, "object": "model", "created": created, "owned_by": MINIGPT_OWNER}
    return entry | ({"task": generator.kind} if generator.stage == "task" else {})
