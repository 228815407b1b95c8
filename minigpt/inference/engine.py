"""Text generation with continuous batching: from prompts to streams of text.

All running requests share each step of the model. Requests may join and leave the batch between any two steps.
"""

import atexit
import threading
import time
from collections import deque
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from minigpt.adapters.lora import merge_lora
from minigpt.checkpoint import (
    check_generates,
    group_by_base,
    load_checkpoint,
    load_models,
    newest_checkpoint,
    stage_of,
)
from minigpt.common.errors import UserError, first_line
from minigpt.common.streams import TextStream
from minigpt.corpus.chat import chat_ids, forbidden_ids
from minigpt.device import pick_device, to_device
from minigpt.huggingface_tokenizer import HuggingFaceTokenizer
from minigpt.inference.logprobs import TokenLogprob, pick_logprobs, prompt_logprobs
from minigpt.inference.model_runner import ModelRunner
from minigpt.inference.quantize import choose_weight_type, has_torchao_layers
from minigpt.inference.sampling import Sampler, sample_tokens
from minigpt.inference.static_step import StaticStep
from minigpt.tokenizer import StreamDecoder

MAX_PREFILL_TOKENS = 1024  # prompt tokens, with padding, in one prefill pass; running requests wait for that pass
MAX_RESERVED_SHARE = 0.25  # share of the block that is reserved for the answer when a prompt is cut, at most
MIN_COMPILED_PARAMS = 10e6
MAX_LAST_STEP_SECONDS = 5.0  # how long closing waits for the step that is running


class StopStringFilter:
    """Passes text on until a stop string is complete. Text that may be the beginning of one is held back.

    found: whether a stop string was complete; held: the text that is held back.
    """

    def __init__(self, stops):
        self.stops = [stop for stop in stops if stop]
        self.held = ""
        self.found = False

    def feed(self, text):
        """Take more text; returns the text that cannot be part of a stop string any more."""
        if not self.stops:
            return text
        text = self.held + text
        starts = [start for start in (text.find(stop) for stop in self.stops) if start >= 0]
        if starts:
            self.found = True
            self.held = ""
            return text[: min(starts)]

        # Hold back the longest end of the text that a stop string begins with.
        longest = max(len(stop) for stop in self.stops) - 1
        keep = next((n for n in range(min(longest, len(text)), 0, -1) if self.begins_stop(text[-n:])), 0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def begins_stop(self, text):
        """Whether a stop string begins with a text."""
        return any(stop.startswith(text) for stop in self.stops)


@dataclass
class EngineMember:
    """One of the models that an engine runs. number: its place among them; virtual_tokens: how many it has before each
    prompt; forbidden: ids that it never samples."""

    number: int
    virtual_tokens: int
    tokenizer: object
    forbidden: list

    def shares_prefill(self, other):
        """Whether prompts of this model and of another may be in one prefill pass."""
        return other is self or not (self.virtual_tokens or other.virtual_tokens)


class Stream(TextStream):
    """One request to a model in this process: its prompt, its state, and the text generated so far.

    member: the `EngineMember` that answers; prompt: token ids; prompt_cut: whether the beginning of the prompt was cut
    off, because it was too long.
    finish_reason: "stop" (EOT or a stop string), "length" (max_new_tokens or the end of the block), "cancelled" or
    "error"; None while the request waits or runs.
    ids: the sampled ids, an EOT that ends the answer included.
    prompt_logprobs, logprobs: lists of `TokenLogprob` where the parameters ask for them; embedding: list of floats.
    An EOT that ends the answer is the last of logprobs; a token that lies wholly behind a stop string is none of them.
    """

    def __init__(self, member, ids, prompt_cut, params, cancellations):
        super().__init__(len(ids))
        self.member = member
        self.prompt = ids
        self.prompt_cut = prompt_cut
        self.params = params
        self.sampler = Sampler(params, ids)
        self.last_id = None
        self.ids = []
        self.prompt_logprobs, self.logprobs, self.embedding = [], [], None
        self._decoded = self._passed_on = 0  # characters of the answer, and those of them before a stop string
        self._cancellations = cancellations
        self._decoder = StreamDecoder(member.tokenizer)
        self._stops = StopStringFilter(params.stop)

    def cancel(self):
        """Cancel the request: it is removed before the next step. A finished request is left as it is."""
        if self.finish_reason is None:
            self._cancellations.append(self)

    @property
    def position(self):
        """Position of the last token, counted from 0 over virtual tokens, prompt and answer."""
        return self.member.virtual_tokens + self.prompt_tokens + self.completion_tokens - 1

    def add_token(self, token_id, stop_ids, block_size):
        """Add the next token and pass its text to the reader. Finishes the stream where the token ends it."""
        self.first_token = self.first_token or time.perf_counter()
        self.ids.append(token_id)
        if token_id in stop_ids:
            return self.finish("stop")
        self.completion_tokens += 1
        self.last_id = token_id
        text = self._decoder.feed(token_id)
        passed_on = self._stops.feed(text)
        self._decoded += len(text)
        self._passed_on += len(passed_on)
        if self._stops.found:  # a new list, since the reader may be reading the old one
            self.logprobs = [token for token in self.logprobs if token.start < self._passed_on]
        self.put(passed_on)
        if self._stops.found:
            return self.finish("stop")
        if self.completion_tokens >= self.params.max_new_tokens or self.position + 1 >= block_size:
            return self.finish("length")

    def add_logprob(self, token_id, logprob, top):
        """Add the log probability of the token that `add_token` is about to add."""
        self.logprobs.append(TokenLogprob(token_id, logprob, top, self._decoded))

    def finish(self, reason, error=None):
        """End the stream with a finish_reason; error: the exception for reason "error"."""
        if self.finish_reason is None:
            self.put(self._stops.held)  # it did not become a stop string
        super().finish(reason, error)


class Engine:
    """Schedules requests into shared steps (continuous batching: Orca, Yu et al. 2022). To be used by one thread.

    models: as in `ModelRunner`; tokenizer: that of all of them. max_batch: the most requests that run at the same time.
    stop_ids: the tokens that end an answer. Sampled are ids below n_vocab.
    """

    def __init__(self, models, tokenizer, max_batch):
        self.runner = ModelRunner(models, max_batch)
        is_adopted = isinstance(tokenizer, HuggingFaceTokenizer)
        self.stop_ids = set(tokenizer.stop_ids) if is_adopted else {tokenizer.eot_id}
        self.block_size = self.runner.model.config.block_size
        self.max_batch = max_batch
        self.n_vocab = tokenizer.n_vocab
        self.waiting, self.cancellations = deque(), deque()  # other threads may append to them
        self.rows = []  # the running streams, in the order of the runner's rows
        self.choose = sample_tokens  # (logits, samplers) -> token ids

    @property
    def busy(self):
        """Whether there is anything left to do."""
        return bool(self.waiting or self.rows or self.cancellations)

    @torch.no_grad()
    def step(self):
        """Admit waiting requests, then generate one token for every running request."""
        self.remove_finished()
        self.admit_waiting()
        if self.rows:
            ids, positions = [s.last_id for s in self.rows], [s.position for s in self.rows]
            self.add_tokens(self.rows, self.runner.step(ids, positions))
            self.remove_finished()

    def admit_waiting(self):
        """Prefill waiting requests while the batch has room, and sample their first tokens.

        If requests run already, only one prefill pass is made, so that they do not wait for more than one.
        """
        others_run = bool(self.rows)
        while group := self.pop_waiting():
            self.rows += group
            generating, logits = self.prefill(group)
            if generating:
                self.add_tokens(generating, logits)
            self.remove_finished()
            if others_run:
                return

    def pop_waiting(self):
        """Remove from the queue the next streams that fit into one prefill pass; returns their list, [] for none.

        Streams of a model with virtual tokens have passes of their own; the others keep their places in the queue.
        """
        group, longest = [], 0
        for stream in list(self.waiting):
            if len(self.rows) + len(group) >= self.max_batch:
                break
            if group and not stream.member.shares_prefill(group[0].member):
                continue
            longest = max(longest, stream.prompt_tokens)
            if group and longest * (len(group) + 1) > MAX_PREFILL_TOKENS:
                break
            self.waiting.remove(stream)
            if stream.params.max_new_tokens < 1 and not stream.params.needs_whole_prompt:
                stream.finish("length")
            else:
                group.append(stream)
        return group

    def prefill(self, streams):
        """Prefill the prompts of streams, and give them what they ask about their prompts.

        Returns the n streams that generate text, and logits (n, V) after their prompts, None if n is 0.
        """
        prompts, numbers = zip(*((stream.prompt, stream.member.number) for stream in streams), strict=True)
        if not any(stream.params.needs_whole_prompt for stream in streams):
            return streams, self.runner.prefill(prompts, numbers)
        states = self.runner.prefill_states(prompts, numbers)
        for stream, row in zip(streams, states, strict=True):
            self.read_prompt(stream, row[: stream.prompt_tokens])
            if stream.params.max_new_tokens < 1:
                stream.finish("length")
        rows = [i for i, stream in enumerate(streams) if stream.finish_reason is None]
        if not rows:
            return [], None
        at = to_device([rows, [streams[i].prompt_tokens - 1 for i in rows]], states.device)
        return [streams[i] for i in rows], self.runner.model.lm_head(states[at[0], at[1]])

    def read_prompt(self, stream, states):
        """Compute what a stream asks about its prompt from the prompt's states (T, C)."""
        count = stream.params.prompt_logprobs
        if count is not None:
            found = prompt_logprobs(self.runner.model, states, stream.prompt, count, stream.member.tokenizer)
            stream.prompt_logprobs = found
        if stream.params.embedding:
            stream.embedding = F.normalize(states.float().mean(dim=0), dim=0).tolist()

    def add_tokens(self, streams, logits):
        """Sample the next token of each of n streams from logits (n, V), and add it to the stream."""
        wanted = [i for i, stream in enumerate(streams) if stream.params.logprobs is not None]
        unchanged = logits[to_device(wanted, logits.device)] if wanted else None  # a copy
        logits = logits[:, : self.n_vocab].float()
        places = [(row, token_id) for row, stream in enumerate(streams) for token_id in stream.member.forbidden]
        if places:
            rows, ids = to_device(list(zip(*places, strict=True)), logits.device)
            logits[rows, ids] = -torch.inf
        chosen = self.choose(logits, [s.sampler for s in streams])
        if wanted:
            ids, counts = [chosen[i] for i in wanted], [streams[i].params.logprobs for i in wanted]
            picked = pick_logprobs(unchanged, ids, counts, self.n_vocab)
            for i, token_id, pair in zip(wanted, ids, picked, strict=True):
                streams[i].add_logprob(token_id, *pair)
        for stream, token_id in zip(streams, chosen, strict=True):
            stream.add_token(token_id, self.stop_ids, self.block_size)

    def remove_finished(self):
        """Remove finished and cancelled streams from the batch, and cancelled ones from the queue."""
        while self.cancellations:
            stream = self.cancellations.popleft()
            if stream in self.waiting:
                self.waiting.remove(stream)
            stream.finish("cancelled")

        # The last row of the cache moves into a row that becomes free; self.rows follows.
        for row in reversed(range(len(self.rows))):
            stream = self.rows[row]
            if stream.finish_reason:
                last = self.rows.pop()
                self.runner.drop(row, last.position)
                if last is not stream:
                    self.rows[row] = last

    def finish_all(self, reason, error=None):
        """Finish all waiting and running requests, with a finish_reason."""
        while self.waiting:
            self.waiting.popleft().finish(reason, error)
        while self.rows:
            self.rows.pop().finish(reason, error)
        self.cancellations.clear()
        self.runner.clear()


class EngineWorker:
    """Runs an engine for its users, the text generators of its models.

    It runs in the caller's thread (`run`), until the first `submit` starts a thread of its own.
    """

    def __init__(self, engine):
        self.engine = engine
        self.users = []
        self.thread = None
        self._unfinished = []  # streams that were submitted to the thread; finished ones leave with the next `submit`
        self._changed = threading.Condition()  # notified of new requests, of closing, and after each step of the thread

    def run(self, user, streams, progress=None):
        """Generate for a user's streams until all are finished. progress(n): called when n more are done (not if a
        thread runs the engine already: the streams are then submitted to it)."""
        if self.thread:
            return self.submit(user, streams)
        engine = self.engine
        left = len(streams)
        engine.waiting.extend(streams)
        try:
            while engine.busy:
                engine.step()
                now = len(engine.waiting) + len(engine.rows)
                if progress and now < left:
                    progress(left - now)
                left = now
        except BaseException as error:
            engine.finish_all("error", error)
            raise

    def submit(self, user, streams):
        """Queue a user's streams for the thread. Raises RuntimeError if the user has been removed."""
        with self._changed:
            if user not in self.users:
                raise RuntimeError("this generator is closed")
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, name="generation", daemon=True)
                self.thread.start()
                atexit.register(self.stop)  # torch aborts if a thread that uses it outlives the interpreter
            self._unfinished = [s for s in self._unfinished if s.finish_reason is None] + streams
            self.engine.waiting.extend(streams)
            self._changed.notify_all()

    def _run(self):
        while True:
            with self._changed:
                self._changed.notify_all()
                while not self.engine.busy:
                    if not self.users:
                        return
                    self._changed.wait()
            try:
                self.engine.step()
            except Exception as error:  # report any error to the readers, and go on with later requests
                self.engine.finish_all("error", error)

    def remove_user(self, user, grace):
        """Refuse new requests of a user, let the present ones run for up to `grace` seconds, and cancel the rest.

        The thread ends with its last user.
        """

        def left():
            return [s for s in self._unfinished if s.finish_reason is None and s.member is user.member]

        with self._changed:
            self.users = [other for other in self.users if other is not user]
            self._changed.notify_all()
            if self.thread and not self._changed.wait_for(lambda: not left(), grace):
                for stream in left():
                    stream.cancel()
                self._changed.wait_for(lambda: not left(), MAX_LAST_STEP_SECONDS)
        if self.thread and not self.users:
            atexit.unregister(self.stop)
            self.thread.join(MAX_LAST_STEP_SECONDS)

    def stop(self):
        """Cancel all requests, and end the thread."""
        for user in list(self.users):
            self.remove_user(user, 0)


class TextGenerator:
    """Generates text from text with a model and its tokenizer.

    Stage "sft": a prompt is a question; the answer mark is appended, and the answer is generated. (A tokenizer with a
    chat template writes the question by it.)
    Stage "pretrain": a prompt is continued. Other stages generate no text: a UserError.
    `generate` runs the model in the caller's thread. The first `submit` starts a thread, which runs it from then on.
    worker: that of several generators, whose models it runs together; `model` is one of them. None: one of its own.
    about: a line that says where the model comes from and what it computes in.
    block_size: positions that prompt and answer may take, which are those that virtual tokens leave.
    """

    about = ""

    def __init__(self, model, tokenizer, stage, max_batch=32, worker=None):
        check_generates(stage, "this model")
        self.model = model
        self.tokenizer = tokenizer
        self.stage = stage
        self.worker = worker or EngineWorker(Engine(model, tokenizer, max_batch))
        self.engine = self.worker.engine
        forbidden = [token_id for token_id in forbidden_ids(tokenizer, stage) if token_id < tokenizer.n_vocab]
        self.member = EngineMember(self.engine.runner.models.index(model), model.n_virtual, tokenizer, forbidden)
        self.block_size = model.row_positions
        self.kernels = None  # a `KernelStep` or `StaticStep`, which the engine's runner has once it is compiled
        self.worker.users.append(self)

    def prompt_ids(self, prompt):
        """Token ids of a prompt, which is a text or a list of chat messages {"role", "content"}."""
        if isinstance(prompt, str):
            ids = self.tokenizer.encode_prompt(prompt, answer=self.stage == "sft")
        else:
            ids = chat_ids(self.tokenizer, prompt, self.stage)
        return ids or [self.tokenizer.eot_id]

    def new_stream(self, prompt, params):
        """The `Stream` of a prompt (text, or a list of ids), not yet queued. Raises UserError for unknown ids.

        A prompt that is too long loses its beginning. The rest leaves room for an answer of max_new_tokens, or of
        MAX_RESERVED_SHARE of the block if that is less. Parameters that need the whole prompt reserve nothing, and a
        prompt longer than the block is a UserError.
        """
        ids = self.prompt_ids(prompt) if isinstance(prompt, str) else list(prompt) or [self.tokenizer.eot_id]
        block_size = self.block_size
        if not all(0 <= token_id < self.tokenizer.n_vocab for token_id in ids):
            raise UserError(f"a prompt has ids that are not in the vocabulary (0 to {self.tokenizer.n_vocab - 1})")
        longest = block_size - min(params.max_new_tokens, max(1, int(block_size * MAX_RESERVED_SHARE)))
        if params.needs_whole_prompt:
            longest = block_size
            if len(ids) > longest:
                raise UserError(f"a prompt of {len(ids)} tokens does not fit into the model's {longest}; shorten it")
        return Stream(self.member, ids[-longest:], len(ids) > longest, params, self.engine.cancellations)

    def generate(self, prompts, params, progress=None):
        """Generate a text for each prompt; returns the list of texts. Arguments: as in `generate_streams`."""
        return ["".join(stream) for stream in self.generate_streams(prompts, params, progress)]

    def generate_streams(self, prompts, params, progress=None):
        """The `Stream`s of prompts (texts, or lists of ids), in their order, finished unless a thread runs them.

        params: `SamplingParams` for all prompts, or a list with one for each. progress(n): called when n more are done
        (not if a thread runs the model already). Must not be called while another thread calls `submit`.
        """
        each = params if isinstance(params, list) else [params] * len(prompts)
        streams = [self.new_stream(*request) for request in zip(prompts, each, strict=True)]
        by_length = sorted(streams, key=lambda stream: stream.prompt_tokens)  # less padding in a prefill pass
        self.worker.run(self, by_length, progress)
        return streams

    def submit(self, prompt, params):
        """Queue a prompt for the generator's thread; returns its `Stream`. Raises RuntimeError after `close`."""
        stream = self.new_stream(prompt, params)
        self.worker.submit(self, [stream])
        return stream

    @property
    def running(self):
        """Number of requests in the batch."""
        return sum(stream.member is self.member for stream in list(self.engine.rows))

    @property
    def waiting(self):
        """Number of requests that wait for a place in the batch."""
        return sum(stream.member is self.member for stream in list(self.engine.waiting))

    def close(self, grace=0.0):
        """Refuse new requests, let the present ones run for up to `grace` seconds, and cancel the rest."""
        self.worker.remove_user(self, grace)

    @property
    def compiled(self):
        """Whether the steps run by compiled kernels."""
        return self.engine.runner.kernels is not None

    def should_compile(self, setting):
        """Whether to compile the steps. setting: "on", "off", or "auto": on a GPU, and on a CPU if the model is large.
        A small one's take torch less than a millisecond there."""
        auto = self.engine.runner.device.type == "cuda" or self.model.num_params() >= MIN_COMPILED_PARAMS
        return setting == "on" or (setting == "auto" and auto)

    def make_kernels(self, say=None):
        """Get the model ready for `compile`; returns whether its steps can be compiled.

        Moves the model's weights, so no thread may run it meanwhile. say(line): prints why they cannot.
        """
        runner, reason = self.engine.runner, None
        if runner.mix:
            reason = "they mix adapters"
        elif runner.device.type == "cuda":
            compiles = has_torchao_layers(runner.model)
            self.kernels = self.kernels or StaticStep(runner.model, compiles=compiles, max_batch=runner.max_batch)
        elif self.kernels is None:
            try:
                # The import takes a part of a second, and fails where numba finds no folder for its compiled code.
                from minigpt.inference.kernels import KernelStep, can_run

                self.kernels = KernelStep(runner.model) if can_run(runner.model) else None
                reason = None if self.kernels else "the model is not on a CPU, or has adapters in its layers"
            except Exception as error:
                print(f"note: steps are not compiled ({first_line(error)})")
                return False
        if reason and say:
            say(f"steps are not compiled: {reason}")
        return reason is None

    def compile(self, say=None):
        """Compile the steps, which takes seconds the first time on a machine, and use the compiled ones from then on.

        Until then, and where compiling fails, torch runs them. say(line): prints the result.
        """
        started = time.perf_counter()
        if not self.make_kernels(say):
            return
        try:
            self.kernels.compile()
        except Exception as error:  # compilers fail in many ways
            return print(f"note: steps are not compiled ({first_line(error)})")
        self.engine.runner.kernels = self.kernels
        if say:
            say(f"steps are compiled, after {time.perf_counter() - started:.1f} s")


def compile_in_background(generators, say=None):
    """Compile the steps of `TextGenerator`s that run nothing yet, in a thread, which is returned.

    The interpreter waits for it before it ends: a compiler that is cut off may crash, and later starts need its result.
    """
    ready = [generator for generator in generators if generator.make_kernels(say)]

    def run():
        for generator in ready:
            generator.compile(say)

    thread = threading.Thread(target=run, name="compile")
    thread.start()
    return thread


def open_generators(ckpts, settings, exact=False):
    """[(path, checkpoint's dict, `TextGenerator`)] of checkpoints; a ckpt "": the newest under the setting out_root.

    Adapters on the same base share it, also with the base itself where it is named, and their requests share steps.
    exact: take dtype "auto" as float32, for evaluation. Raises UserError where there is no such checkpoint, or where
    one generates no text.
    """
    paths = [ckpt or newest_checkpoint(settings.out_root) for ckpt in ckpts]
    contents = [load_checkpoint(path) for path in paths]
    for path, content in zip(paths, contents, strict=True):
        check_generates(stage_of(content), path)
    opened = {}
    for places in group_by_base(contents):
        own = [contents[place] for place in places]
        models, tokenizer, about = convert_models([paths[place] for place in places], own, settings, exact)
        worker = EngineWorker(Engine(models, tokenizer, settings.max_batch))
        for place, model, line in zip(places, models, about, strict=True):
            opened[place] = TextGenerator(model, tokenizer, contents[place]["stage"], worker=worker)
            opened[place].about = line
    return [(path, contents[place], opened[place]) for place, path in enumerate(paths)]


def open_generator(ckpt, settings, exact=False):
    """(path, checkpoint's dict, `TextGenerator`) of one checkpoint, as in `open_generators`.

    The steps of a large model are compiled: in the background, or before it is returned if `exact`, so that all answers
    are computed in one way.
    """
    (opened,) = open_generators([ckpt], settings, exact)
    if opened[2].should_compile(settings.compile):
        thread = compile_in_background([opened[2]])
        if exact:
            thread.join()
    return opened


def open_converted(ckpt, settings, exact=False):
    """(path, checkpoint's dict, GPT, tokenizer, a line about them) of a checkpoint of any stage, in the type that dtype
    names. Arguments and errors: as in `open_generators`."""
    path = ckpt or newest_checkpoint(settings.out_root)
    content = load_checkpoint(path)
    (model,), tokenizer, (about,) = convert_models([path], [content], settings, exact)
    return path, content, model, tokenizer, about


def convert_models(paths, contents, settings, exact):
    """([GPT], tokenizer, [a line about each]) of checkpoints of one base, in the type that the setting dtype names.

    contents: their dicts, as in `load_models`; exact: as in `open_generators`.
    """
    models, tokenizer = load_models(contents, pick_device(settings.device), settings.base)
    sizes = [describe_parameters(*pair) for pair in zip(contents, models, strict=True)]  # before int8 weights
    if len(models) == 1:
        merge_lora(models[0])  # then a step takes the time of the base's
    name = "float32" if exact and settings.dtype == "auto" else settings.dtype
    _, name, why = choose_weight_type(models[0], name, sharing=models[1:])
    about = [
        f"{path}: {content['stage']}, step {content['progress']['step']}, {size}, {name} ({why}) on "
        f"{models[0].wte.weight.device}"
        for path, content, size in zip(paths, contents, sizes, strict=True)
    ]
    return models, tokenizer, about


def describe_parameters(content, model):
    """What a GPT consists of, in words; content: its checkpoint's dict."""
    if "adapter" not in content:
        return f"{model.num_params() / 1e6:.2f}M parameters"
    trained = sum(tensor.numel() for tensor in content["model"].values())
    text = f"{content['adapter']['method']} with {trained:,} parameters on {content['base']['path']}"
    if model.n_virtual:
        text += f", {model.n_virtual} virtual tokens of {model.config.block_size} positions"
    return text
