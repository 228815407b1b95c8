"""From prompts to streams of text. Requests share each step of the model, and join and leave it at any token."""

import atexit
import sys
import threading
import time
from collections import deque

import torch

from minigpt.checkpoint import open_model
from minigpt.common.errors import UserError, first_line
from minigpt.common.streams import TextStream
from minigpt.device import pick_device
from minigpt.inference.model_runner import KINDS, ModelRunner
from minigpt.inference.quantize import choose_weight_type
from minigpt.inference.sampling import Sampler, sample_tokens
from minigpt.tokenizer import StreamDecoder

PROMPT_TOKENS = 1024  # of padded prompts in one pass; what runs waits for it
ROOM = 4  # a prompt that is too long leaves at least this part of the block (a quarter) for the answer
LAST_ROUND = 5.0  # seconds that closing waits for the round that is under way


class StopText:
    """Passes text on until a stop string is complete; what may become one is held back."""

    def __init__(self, stops):
        self.stops, self.held, self.found = [s for s in stops if s], "", False

    def feed(self, text):
        """The text that is certain now, without any stop string."""
        text = self.held + text
        found = [at for at in (text.find(stop) for stop in self.stops) if at >= 0]
        if found:
            self.found, self.held = True, ""
            return text[: min(found)]
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        keep = next((n for n in range(min(longest, len(text)), 0, -1) if self.begins(text[-n:])), 0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def begins(self, text):
        return any(stop.startswith(text) for stop in self.stops)


class Stream(TextStream):
    """One request to a model in this process.

    prompt_cut: its start was cut off to leave room. finish_reason: "stop" (EOT or a stop string), "length"
    (max_new_tokens or the block's end), "cancelled" or "error".
    """

    def __init__(self, ids, prompt_cut, params, tokenizer, cancellations):
        super().__init__(len(ids))
        self.prompt, self.prompt_cut, self.params = ids, prompt_cut, params
        self._cancellations = cancellations
        self.sampler, self.last_id = Sampler(params, ids), None
        self._decoder, self._stops = StreamDecoder(tokenizer), StopText(params.stop)

    def cancel(self):
        """Give up: the request leaves at the next step. Nothing happens to one that has ended."""
        if self.finish_reason is None:
            self._cancellations.append(self)

    @property
    def position(self):
        """Of the token made last, counted from 0 through prompt and answer."""
        return self.prompt_tokens + self.completion_tokens - 1

    def accept(self, token_id, eot_id, block_size):
        """Take the next token; its text goes to the reader."""
        self.first_token = self.first_token or time.perf_counter()
        if token_id == eot_id:
            return self.finish("stop")
        self.completion_tokens += 1
        self.last_id = token_id
        self.put(self._stops.feed(self._decoder.feed(token_id)))
        if self._stops.found:
            return self.finish("stop")
        if self.completion_tokens >= self.params.max_new_tokens or self.position + 1 >= block_size:
            return self.finish("length")

    def finish(self, reason, error=None):
        """End the stream."""
        if self.finish_reason is None:
            self.put(self._stops.held)
        super().finish(reason, error)


class Engine:
    """The requests that share each step (continuous batching: Orca, Yu et al. 2022). For one thread.

    Drawn are ids below n_vocab, but none of `forbidden`.
    """

    def __init__(self, model, eot_id, n_vocab, forbidden, max_batch):
        self.runner, self.eot_id = ModelRunner(model, max_batch), eot_id
        self.block_size, self.max_batch = model.config.block_size, max_batch
        self.n_vocab, self.forbidden = n_vocab, [token_id for token_id in forbidden if token_id < n_vocab]
        self.waiting, self.cancellations = deque(), deque()  # other threads may append to them
        self.rows = []  # the running streams, in the order of the runner's rows
        self.choose = sample_tokens

    @property
    def busy(self):
        return bool(self.waiting or self.rows or self.cancellations)

    @torch.no_grad()
    def round(self):
        """One token for every running request, after places have been given to those that wait: where some run
        already, to as many as one pass takes, so that these need not wait for more."""
        self.drop_ended()
        self.admit()
        if self.rows:
            ids, positions = [s.last_id for s in self.rows], [s.position for s in self.rows]
            self.accept(self.rows, self.runner.step(ids, positions))
            self.drop_ended()

    def admit(self):
        """Run the prompts of those that wait, and draw their first tokens."""
        run_already = bool(self.rows)
        while group := self.next_group():
            self.rows += group
            self.accept(group, self.runner.prefill([stream.prompt for stream in group]))
            self.drop_ended()
            if run_already:
                return

    def next_group(self):
        """The streams that wait longest and whose prompts one pass takes, taken out of the queue; [] for none."""
        group, longest = [], 0
        while self.waiting and len(self.rows) + len(group) < self.max_batch:
            longest = max(longest, self.waiting[0].prompt_tokens)
            if group and longest * (len(group) + 1) > PROMPT_TOKENS:
                break
            stream = self.waiting.popleft()
            if stream.params.max_new_tokens < 1:
                stream.finish("length")
            else:
                group.append(stream)
        return group

    def accept(self, streams, logits):
        """Draw a token for each stream from logits (n, V)."""
        logits = logits[:, : self.n_vocab].float()
        for token_id in self.forbidden:
            logits[:, token_id] = -torch.inf
        chosen = self.choose(logits, [s.sampler for s in streams])
        for stream, token_id in zip(streams, chosen, strict=True):
            stream.accept(token_id, self.eot_id, self.block_size)

    def drop_ended(self):
        """Free the places of streams that have ended or were cancelled."""
        while self.cancellations:
            stream = self.cancellations.popleft()
            if stream in self.waiting:
                self.waiting.remove(stream)
            stream.finish("cancelled")
        for row in reversed(range(len(self.rows))):
            stream = self.rows[row]
            if stream.finish_reason:
                last = self.rows.pop()
                self.runner.drop(row, last.position)
                if last is not stream:
                    self.rows[row] = last

    def end_all(self, reason, error=None):
        """End every request."""
        while self.waiting:
            self.waiting.popleft().finish(reason, error)
        while self.rows:
            self.rows.pop().finish(reason, error)
        self.cancellations.clear()
        self.runner.n = 0


class TextGenerator:
    """A model and its tokenizer, from text to text.

    stage "sft": a prompt is a question, the answer mark is put behind it, and the answer comes back.
    stage "pretrain": a prompt is continued.
    `generate` runs in the caller's thread; `submit` starts a thread, which then has the model for itself.
    about: a line that tells where the model is from and how it is run.
    """

    about = ""

    def __init__(self, model, tokenizer, stage, max_batch=32):
        self.model, self.tokenizer, self.stage = model, tokenizer, stage
        forbidden = [tokenizer.pad_id]
        if stage == "sft":  # an answer has no second mark
            forbidden.append(tokenizer.answer_id)
        self.engine = Engine(model, tokenizer.eot_id, tokenizer.n_vocab, forbidden, max_batch)
        self._thread, self._changed = None, threading.Condition()
        self._closing = self._giving_up = False

    def prompt_ids(self, prompt):
        """Ids of a prompt: a text, or a chat's messages as {"role", "content"}."""
        answer = self.stage == "sft"
        if isinstance(prompt, str):
            return self.tokenizer.encode_prompt(prompt, answer) or [self.tokenizer.eot_id]
        return self.chat_ids(prompt) or [self.tokenizer.eot_id]

    def chat_ids(self, messages):
        """Ids of a chat: what is said to the system a line, earlier turns as lines of question##answer (examples
        to go by), then the last question and the mark. A question alone is as the model was trained on it."""
        ids, encode = [], self.tokenizer.encode
        roles = [*(message["role"] for message in messages), None]
        for message, following in zip(messages, roles[1:], strict=True):
            text = message["content"]
            if self.stage == "sft" and message["role"] == "user" and following in ("assistant", None):
                ids += self.tokenizer.encode_prompt(text, answer=True)
            else:  # an answer that stands last is gone on with
                ids += encode(text.strip() + "\n" if following else text)
        return ids

    def new_stream(self, prompt, params):
        """The `Stream` of a prompt (text, or ids). One too long for the block keeps its end, with room for as many
        tokens as are asked for, or as a quarter of the block."""
        ids = self.prompt_ids(prompt) if isinstance(prompt, str) else list(prompt) or [self.tokenizer.eot_id]
        block_size = self.model.config.block_size
        if not all(0 <= token_id < self.tokenizer.n_vocab for token_id in ids):
            raise UserError(f"a prompt has ids that are not in the table (0 to {self.tokenizer.n_vocab - 1})")
        longest = block_size - max(1, min(params.max_new_tokens, block_size // ROOM))
        return Stream(ids[-longest:], len(ids) > longest, params, self.tokenizer, self.engine.cancellations)

    def generate(self, prompts, params, progress=None):
        """List of texts, one a prompt (texts, or ids), in their order. params: for all, or a list of one for each.
        progress(n): called when n more are done.

        Not while another thread submits.
        """
        each = params if isinstance(params, list) else [params] * len(prompts)
        streams = [self.new_stream(*request) for request in zip(prompts, each, strict=True)]
        by_length = sorted(streams, key=lambda stream: stream.prompt_tokens)  # less padding in a pass
        if self._thread:
            self._enqueue(by_length)
            return ["".join(stream) for stream in streams]
        engine, left = self.engine, len(streams)
        engine.waiting.extend(by_length)
        try:
            while engine.busy:
                engine.round()
                now = len(engine.waiting) + len(engine.rows)
                if progress and now < left:
                    progress(left - now)
                left = now
        except BaseException as error:
            engine.end_all("error", error)
            raise
        return ["".join(stream) for stream in streams]

    def submit(self, prompt, params):
        """The `Stream` of a prompt, made by the generator's thread. Raises RuntimeError once it is closed."""
        stream = self.new_stream(prompt, params)
        self._enqueue([stream])
        return stream

    def _enqueue(self, streams):
        with self._changed:
            if self._closing:
                raise RuntimeError("this generator is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
                self._thread.start()
                atexit.register(self.close)  # torch aborts where a thread of its own outlives the interpreter
            self.engine.waiting.extend(streams)
            self._changed.notify()

    def _run(self):
        while True:
            with self._changed:
                while not self.engine.busy:
                    if self._closing:
                        return
                    self._changed.wait()
            if self._giving_up:
                self.engine.end_all("cancelled")
                continue
            try:
                self.engine.round()
            except Exception as error:  # whatever it was, the requests must hear of it, and the next ones be served
                self.engine.end_all("error", error)

    @property
    def running(self):
        """Requests in the batch."""
        return len(self.engine.rows)

    @property
    def waiting(self):
        """Requests that wait for a place in it."""
        return len(self.engine.waiting)

    def close(self, grace=0.0):
        """Take no more requests, finish what is there within so many seconds, cancel the rest."""
        atexit.unregister(self.close)
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread:
            self._thread.join(grace)
            self._giving_up = True
            self._thread.join(LAST_ROUND)

    @property
    def compiled(self):
        """Whether all that can be is compiled code."""
        return set(self.engine.runner.compiled) == set(KINDS)

    def compile(self, say=print):
        """Compile the model's passes; until that is done, and where it fails, they run as they are.

        say(line) is told how it went.
        """
        started = time.perf_counter()
        for kind in KINDS:
            try:
                self.engine.runner.compile(kind)
            except Exception as error:  # compilers fail in many ways, and generation goes on without
                return say(f"note: not compiled ({first_line(error)})")
        say(f"compiled in {time.perf_counter() - started:.0f} s")


def compile_in_background(generators):
    """Compile the models of generators, one after the other: torch.compile is not safe in two threads at once.

    Returns the thread, which can be joined.
    """

    def run():
        for generator in generators:
            generator.compile()

    thread = threading.Thread(target=run, name="compile", daemon=True)
    thread.start()
    return thread


def open_generator(ckpt, settings, exact=False):
    """(path, checkpoint's dict, `TextGenerator`) of a checkpoint ("": the newest under the settings' out_root).

    exact: for measuring, dtype "auto" means float32.
    """
    path, content, model, tokenizer = open_model(ckpt, settings.out_root, pick_device(settings.device))
    size = model.num_params()
    name = "float32" if exact and settings.dtype == "auto" else settings.dtype
    model, name, why = choose_weight_type(model, name, say=lambda line: print(line, file=sys.stderr, flush=True))
    generator = TextGenerator(model, tokenizer, content["stage"], settings.max_batch)
    generator.about = (
        f"{path}: {content['stage']}, step {content['progress']['step']}, {size / 1e6:.2f}M parameters, "
        f"{name} ({why}) on {generator.engine.runner.device}"
    )
    return path, content, generator
