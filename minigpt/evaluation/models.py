"""Whom an evaluation asks: checkpoints in this process, and models behind an OpenAI-compatible API."""

import os
import re
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

from minigpt.checkpoint import BEST, LAST, PREVIOUS, load_checkpoint, model_names, newest_checkpoint
from minigpt.common.errors import UserError
from minigpt.inference.engine import open_generator
from minigpt.openai_client import ApiClient, ApiFailure

OURS = "minigpt"  # the owner that server.py tells of its models
AT_ONCE = 8  # requests to a server
HOPELESS = 3 * AT_ONCE  # failures, without an answer, after which no more is asked
POLL_SECONDS = 0.5  # between looks for Ctrl-C
ADDRESS = re.compile(r"(?:(?P<model>[^@]*)@)?(?P<url>https?://.+)")
STEP = re.compile(r"step_(\d+)")


def own_params(params, number):
    """The parameters of prompt `number`: with a seed of its own, so that prompts do not share their luck."""
    return params if params.seed is None else replace(params, seed=params.seed + number)


def without_weights(content):
    """A checkpoint's dict without what is large."""
    return {key: value for key, value in content.items() if key not in ("model", "optimizers")}


class LocalModel:
    """A checkpoint. name: for tables; stage: "pretrain" or "sft"; content: the checkpoint's dict, without weights."""

    def __init__(self, path, name, settings):
        self.path, content, self.generator = open_generator(str(path), settings, exact=True)
        self.name, self.stage, self.tokenizer = name, content["stage"], self.generator.tokenizer
        self.content = without_weights(content)
        self.step = content["progress"]["step"]

    def _stream(self, prompt, params):
        return self.generator.new_stream(self.generator.prompt_ids(prompt), params)

    def answers(self, prompts, params, progress=None):
        """[text] of each prompt: a text, or a chat as [{"role", "content"}]. progress(n): n more are done.

        With a seed the same again, whatever max_batch is.
        """
        ids = [self.generator.prompt_ids(prompt) for prompt in prompts]
        return self.generator.generate(ids, [own_params(params, i) for i in range(len(prompts))], progress)

    def cut_prompts(self, prompts, params):
        """How many of the prompts do not fit into the model's block beside an answer."""
        return sum(self._stream(prompt, params).prompt_cut for prompt in prompts)


class RemoteModel:
    """A model behind an API. A key comes from the environment's OPENAI_API_KEY."""

    stage, step, content, path = "sft", None, None, None  # what it is, is not known: it is asked questions

    def __init__(self, address, name):
        model, url = ADDRESS.fullmatch(address).group("model", "url")
        try:
            self.client = ApiClient(url, os.environ.get("OPENAI_API_KEY", ""))
            offered, _ = self.client.models()
        except ApiFailure as failure:
            raise UserError(f"{name}: {failure}") from None
        owners = {entry["id"]: entry["owned_by"] for entry in offered}
        if not owners or (model and model not in owners):
            raise UserError(f"{url} offers {', '.join(owners) or 'no model'}; name one as model@{url}")
        self.model, self.name = model or next(iter(owners)), name
        self.ours = owners[self.model] == OURS
        self.streams, self.stopping, self.failure = set(), False, None  # failure: the last one

    def answers(self, prompts, params, progress=None):
        """As `LocalModel.answers`; None for a prompt that got no answer, after the client's own tries.

        Raises UserError where none gets one, without asking all.
        """
        self.stopping = False
        with ThreadPoolExecutor(AT_ONCE) as pool:
            pending = [pool.submit(self._answer, prompt, own_params(params, i)) for i, prompt in enumerate(prompts)]
            try:
                self._wait_for(pending, progress)
            except BaseException:  # Ctrl-C too: what is under way is given up
                self.stopping = True
                pool.shutdown(wait=False, cancel_futures=True)
                for stream in list(self.streams):
                    stream.cancel()
                raise
        return [task.result() for task in pending]

    def _wait_for(self, pending, progress):
        left, answered, failed = set(pending), 0, 0
        while left:
            done, left = wait(left, POLL_SECONDS, FIRST_COMPLETED)
            good = sum(task.result() is not None for task in done)
            answered, failed = answered + good, failed + len(done) - good
            if failed and not answered and (failed >= HOPELESS or not left):
                raise UserError(f"{self.name} answered none of {failed} prompts ({self.failure})")
            if progress and done:
                progress(len(done))

    def _answer(self, prompt, params):
        fields = {
            "temperature": params.temperature, "top_k": params.top_k, "top_p": params.top_p, "seed": params.seed,
            "frequency_penalty": params.frequency_penalty, "repetition_penalty": params.repetition_penalty,
            "max_tokens": params.max_new_tokens,
        }  # fmt: skip
        if params.stop:
            fields["stop"] = list(params.stop)
        if self.stopping:
            return None
        if isinstance(prompt, str) and self.ours:  # whose completions put the answer mark, or continue an article
            stream = self.client.complete(self.model, prompt, **fields)
        else:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            stream = self.client.chat(self.model, messages, **fields)
        self.streams.add(stream)
        try:
            if self.stopping:
                stream.cancel()
            return "".join(stream)
        except RuntimeError as error:
            self.failure = stream.error or error
            return None
        finally:
            self.streams.discard(stream)

    def cut_prompts(self, prompts, params):
        return 0  # a server does not tell


def checkpoints_of(run):
    """Paths of every checkpoint that is kept in a run's folder, by training step; of those of one step, one."""
    paths = [path for path in Path(run).glob("*.pt") if path.name != PREVIOUS]
    order = {BEST: 2, LAST: 1}
    found = {}
    for path in sorted(paths, key=lambda path: (order.get(path.name, 0), path.name)):
        named = STEP.fullmatch(path.stem)
        step = int(named[1]) if named else load_checkpoint(path)["progress"]["step"]
        found.setdefault(step, path)
    if not found:
        raise UserError(f"no checkpoint in {run}; name a run's folder, or a checkpoint")
    return [found[step] for step in sorted(found)]


def is_address(name):
    """Whether a name is an API's address (model@http://… or http://…)."""
    return ADDRESS.fullmatch(name) is not None


def find_models(ckpt, out_root):
    """[(name, path or address)] of the setting `ckpt`: checkpoints, runs' folders and addresses; []: the
    newest under out_root. Raises UserError where one is not there."""
    asked = ckpt or [str(newest_checkpoint(out_root))]
    paths = []
    for part in asked:
        paths += [part] if is_address(part) else checkpoints_of(part) if Path(part).is_dir() else [Path(part)]
    for path in paths:
        if isinstance(path, Path) and not path.is_file():
            raise UserError(f"checkpoint {path} is not there; train one first, or name another")
    names = iter(model_names([path for path in paths if isinstance(path, Path)]))
    return [(next(names) if isinstance(path, Path) else path, path) for path in paths]


def open_answerer(name, path, settings):
    """The `LocalModel` or `RemoteModel` of what `find_models` found. Raises UserError."""
    return LocalModel(path, name, settings) if isinstance(path, Path) else RemoteModel(path, name)
