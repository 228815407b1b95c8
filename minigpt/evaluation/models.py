"""Models under evaluation: checkpoints in this process, and models behind an OpenAI-compatible API."""

import os
import re
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from pathlib import Path

from minigpt.checkpoint import BEST, LAST, PREVIOUS, load_checkpoint, model_names, newest_checkpoint
from minigpt.common.errors import UserError
from minigpt.common.net import MINIGPT_OWNER
from minigpt.evaluation.prompts import RowQuestion
from minigpt.formats.adoption import is_model_folder
from minigpt.inference.engine import open_generator
from minigpt.openai_client import ApiClient, ApiFailure

MAX_CONCURRENT_REQUESTS = 8
MAX_FAILURES = 3 * MAX_CONCURRENT_REQUESTS  # a server that has failed so often and never answered is given up
INTERRUPT_POLL_SECONDS = 0.5  # how often a waiting main thread can react to Ctrl-C
ADDRESS = re.compile(r"(?:(?P<model>[^@]*)@)?(?P<url>https?://.+)")
STEP = re.compile(r"step_(\d+)")


def params_of_prompt(params, number):
    """The sampling parameters of prompt `number`. Each has its own seed, so that the samples are independent."""
    return params if params.seed is None else replace(params, seed=params.seed + number)


class LocalModel:
    """A loaded checkpoint."""

    def __init__(self, path, settings):
        _, _, self.generator = open_generator(str(path), settings, exact=True)

    def _ids(self, prompt):
        return prompt.ids if isinstance(prompt, RowQuestion) else self.generator.prompt_ids(prompt)

    def _stream(self, prompt, params):
        return self.generator.new_stream(self._ids(prompt), params)

    def answers(self, prompts, params, progress=None):
        """[text] for prompts, each a text or a chat [{"role", "content"}]. progress(n): n more are answered.

        With a seed, the answers are reproducible and do not depend on max_batch.
        """
        ids = [self._ids(prompt) for prompt in prompts]
        return self.generator.generate(ids, [params_of_prompt(params, i) for i in range(len(prompts))], progress)

    def cut_prompts(self, prompts, params):
        """Number of prompts that do not fit into the model's block together with an answer."""
        return sum(self._stream(prompt, params).prompt_cut for prompt in prompts)


class RemoteModel:
    """A model behind an API. The key is the environment's OPENAI_API_KEY."""

    def __init__(self, address, name):
        """Raises UserError if the server does not answer, or does not offer the model."""
        model, url = ADDRESS.fullmatch(address).group("model", "url")
        try:
            self.client = ApiClient(url, os.environ.get("OPENAI_API_KEY", ""))
            offered, _ = self.client.models()
        except ApiFailure as failure:
            raise UserError(f"{name}: {failure}") from None
        owners = {entry["id"]: entry["owned_by"] for entry in offered}
        if not owners or (model and model not in owners):
            raise UserError(f"{url} offers {', '.join(owners) or 'no model'}; name one as model@{url}")
        self.name = name
        self.model = model or next(iter(owners))
        self.is_minigpt = owners[self.model] == MINIGPT_OWNER
        self.streams, self.stopping = set(), False
        self.failure = None  # the last one

    def answers(self, prompts, params, progress=None):
        """As `LocalModel.answers`, with None for a prompt that failed after the client's retries.

        Raises UserError if none is answered; after MAX_FAILURES the rest is not sent.
        """
        self.stopping = False
        with ThreadPoolExecutor(MAX_CONCURRENT_REQUESTS) as pool:
            own = [params_of_prompt(params, i) for i in range(len(prompts))]
            pending = [pool.submit(self._answer, *task) for task in zip(prompts, own, strict=True)]
            try:
                self._wait_for(pending, progress)
            except BaseException:  # Ctrl-C included: cancel the requests that are running
                self.stopping = True
                pool.shutdown(wait=False, cancel_futures=True)
                for stream in list(self.streams):
                    stream.cancel()
                raise
        return [task.result() for task in pending]

    def _wait_for(self, pending, progress):
        left, answered, failed = set(pending), 0, 0
        while left:
            done, left = wait(left, INTERRUPT_POLL_SECONDS, FIRST_COMPLETED)
            good = sum(task.result() is not None for task in done)
            answered += good
            failed += len(done) - good
            if failed and not answered and (failed >= MAX_FAILURES or not left):
                raise UserError(f"{self.name} answered none of {failed} prompts ({self.failure})")
            if progress and done:
                progress(len(done))

    def _answer(self, prompt, params):
        if self.stopping:
            return None
        fields = asdict(params)
        # Not every server knows these, which are off by default.
        for name in ("stop", "min_p", "presence_penalty", "logprobs", "prompt_logprobs", "embedding"):
            if not fields[name]:
                del fields[name]
        fields["max_tokens"] = fields.pop("max_new_tokens")
        # Our own server's completions add the answer mark, or continue an article, as `LocalModel` does.
        if isinstance(prompt, str) and self.is_minigpt:
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
        return 0  # unknown


def checkpoints_of(run):
    """Paths of the checkpoints that a run's folder keeps, by training step, one for each step. Raises UserError."""
    paths = [path for path in Path(run).glob("*.pt") if path.name != PREVIOUS]
    order = {BEST: 2, LAST: 1}
    by_step = {}
    for path in sorted(paths, key=lambda path: (order.get(path.name, 0), path.name)):
        named = STEP.fullmatch(path.stem)
        step = int(named[1]) if named else load_checkpoint(path)["progress"]["step"]
        by_step.setdefault(step, path)
    if not by_step:
        raise UserError(f"no checkpoint in {run}; name a run's folder, or a checkpoint")
    return [by_step[step] for step in sorted(by_step)]


def is_address(name):
    """Whether a name is an API's address (model@http://… or http://…)."""
    return ADDRESS.fullmatch(name) is not None


def find_models(ckpt, out_root):
    """[(name, Path or address)] of the setting `ckpt`: checkpoints, runs' folders, Hugging Face folders and addresses.

    [] means the newest checkpoint under out_root. Raises UserError if one does not exist.
    """
    names = ckpt or [str(newest_checkpoint(out_root))]
    paths = []
    for name in names:
        is_run = Path(name).is_dir() and not is_model_folder(name)
        paths += [name] if is_address(name) else checkpoints_of(name) if is_run else [Path(name)]
    for path in paths:
        if isinstance(path, Path) and not (path.is_file() or is_model_folder(path)):
            raise UserError(f"checkpoint {path} is not there; train one first, or name another")
    short_names = iter(model_names([path for path in paths if isinstance(path, Path)]))
    return [(next(short_names) if isinstance(path, Path) else path, path) for path in paths]
