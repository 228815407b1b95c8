"""Completions and chats as OpenAI's API writes them, whole and in events."""

import secrets
import time

from minigpt.serving.errors import DONE, event


class AnswerForm:
    """The form of one answer.

    chat: whether it is a chat's; model: the id that was asked for.
    """

    def __init__(self, model, chat):
        self.chat = chat
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }
        self._name = "chat.completion" if chat else "text_completion"

    def whole(self, work):
        """The dict of an answer that is sent at once; waits for the end of `work`."""
        texts, reasons = work.texts()
        choices = [self._choice(i, *end) for i, end in enumerate(zip(texts, reasons, strict=True))]
        return {**self._head, "object": self._name, "choices": choices, "usage": usage(work)}

    def events(self, work, include_usage):
        """Yields server-sent events: pieces, each choice's end, token counts if asked for, [DONE]."""
        name = self._name + (".chunk" if self.chat else "")
        head = {**self._head, "object": name, **({"usage": None} if include_usage else {})}
        started = set()
        for turn in work.turns():
            events = []
            for i, text, reason in turn:
                if self.chat and i not in started:
                    started.add(i)
                    events.append(event({**head, "choices": [part(i, {"role": "assistant", "content": ""})]}))
                if text:
                    events.append(event({**head, "choices": [self._part(i, text, None)]}))
                if reason:
                    events.append(event({**head, "choices": [self._part(i, "", reason)]}))
            if events:
                yield b"".join(events)
        if include_usage:
            yield event({**head, "choices": [], "usage": usage(work)})
        yield DONE

    def _choice(self, i, text, reason):
        if not self.chat:
            return self._part(i, text, reason)
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": i, "message": message, "logprobs": None, "finish_reason": reason}

    def _part(self, i, text, reason):
        if self.chat:
            return part(i, {"content": text} if text else {}, reason)
        return {"index": i, "text": text, "logprobs": None, "finish_reason": reason}


def part(i, delta, reason=None):
    """A piece of a chat's choice."""
    return {"index": i, "delta": delta, "logprobs": None, "finish_reason": reason}


def usage(work):
    """Token counts of a request."""
    prompt, completion = work.prompt_tokens, work.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def model_list(names, created):
    """/v1/models of the names; created: Unix seconds."""
    return {"object": "list", "data": [model_entry(name, created) for name in names]}


def model_entry(name, created):
    """/v1/models/<name>"""
    return {"id": name, "object": "model", "created": created, "owned_by": "minigpt"}
