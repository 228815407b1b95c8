"""All models that can be asked, local and remote, in one list, and requests to them."""

import csv
import random
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from minigpt.arena.answers import ModelAnswer, RunningRequests
from minigpt.arena.cards import ModelCards
from minigpt.arena.inspecting import Inspector
from minigpt.arena.jobs import Jobs
from minigpt.arena.links import read_link
from minigpt.arena.models import CheckpointInfo, ModelCache
from minigpt.arena.peers import CHECK_WAIT_SECONDS, SEPARATOR, Peers
from minigpt.arena.problems import Problem, clean_name, validate_number
from minigpt.arena.votes import SAMPLING_KEYS, Battles, Votes
from minigpt.checkpoint import BEST
from minigpt.common.files import PROJECT
from minigpt.common.net import MINIGPT_OWNER
from minigpt.inference.classify import open_labeller_or_generator
from minigpt.inference.params import SamplingParams
from minigpt.openai_client import Limits, clean_text

EXAMPLES_FILE = PROJECT / "examples.csv"
EXAMPLE_COLUMNS = ("prompt", "kind", "note")
EXAMPLE_KINDS = ("pretrain", "sft")
# Ranges of the sampling parameters; the settings give the rest.
PARAM_RANGES = {"temperature": (0.0, 2.0), "top_k": (0, 100_000), "top_p": (0.0, 1.0), "frequency_penalty": (-2.0, 2.0)}
MAX_SEED = 2**53 - 1  # JavaScript's numbers are exact up to here
DRAW_CHECK_SECONDS = 60.0  # before models are drawn, peers whose last check is older than this are checked again


@dataclass(frozen=True)
class ModelChoice:
    """A model that can be asked. name: unique, shown in the lists; checkpoint: None for a remote model; peer, seconds:
    of a remote model, its peer's name and the response time of the last check."""

    name: str
    checkpoint: CheckpointInfo | None = None
    peer: str = ""
    seconds: float = 0.0


class Arena:
    """Everything that the page shows. settings: a Settings; open: as inference.classify.open_labeller_or_generator."""

    def __init__(self, settings, open=open_labeller_or_generator):
        self.settings = settings
        self.models = ModelCache(settings, open)
        self.inspector = Inspector(self.models, self.check_prompt)
        self.cards = ModelCards(self.models)
        limits = Limits(seconds=settings.request_seconds, chars=settings.answer_chars)
        self.peers = Peers(settings.peers, limits)
        self.votes = Votes(Path(settings.arena_dir) / "votes.jsonl")
        self.preferences = Path(settings.arena_dir) / "preferences.jsonl"
        self.flagged = Path(settings.arena_dir) / "flagged.csv"
        self.battles = Battles(self.votes)
        self.running = RunningRequests()
        self.jobs = Jobs(settings.out_root)
        self.downloads = tempfile.TemporaryDirectory(prefix="minigpt-arena-", ignore_cleanup_errors=True)
        self.examples, self._example_problems = read_examples(EXAMPLES_FILE)

    def choices(self):
        """[ModelChoice]: all checkpoints that generate text, then the models of the peers that answered their last
        check."""
        found = self.local_choices()
        for peer in self.peers.all():
            status = self.peers.status(peer.name)
            for model in status.models if status else ():
                found.append(ModelChoice(f"{model['id']}{SEPARATOR}{peer.name}", None, peer.name, status.seconds))
        return found

    def task_choices(self):
        """[ModelChoice]: the checkpoints with a task's head, but for reward models, which label no text."""
        return [each for each in self._checkpoints_of_stages("task") if each.checkpoint.task != "reward"]

    def local_choices(self):
        """[ModelChoice]: the checkpoints that generate text, without the peers' models."""
        return self._checkpoints_of_stages("pretrain", "sft")

    def tunable_choices(self):
        """[ModelChoice]: the fine-tuned checkpoints that train.py can go on from with --init_from."""
        return [choice for choice in self._checkpoints_of_stages("sft") if not choice.checkpoint.is_adapter]

    def trainable_choices(self):
        """[ModelChoice]: the checkpoints that a fine-tuning can start from: language models in a file, whole."""
        found = self._checkpoints_of_stages("pretrain", "sft")
        return [each for each in found if not each.checkpoint.is_adapter and each.checkpoint.path.is_file()]

    def trainable_checkpoint(self, name):
        """The `CheckpointInfo` of that name among `trainable_choices`. Raises Problem if there is none."""
        found = [choice.checkpoint for choice in self.trainable_choices() if choice.name == name]
        if not found:
            raise Problem("no_model", name=clean_name(str(name))) if name else Problem("no_model_chosen")
        return found[0]

    def _checkpoints_of_stages(self, *stages):
        return [ModelChoice(each.name, each) for each in self.models.checkpoints()[0] if each.stage in stages]

    def problems(self):
        """[UserError]: broken checkpoints under out_root, entries of the peers' file and rows of examples.csv."""
        return [*self.models.checkpoints()[1], *self.peers.problems, *self._example_problems]

    def draw_models(self, rng=random):
        """Names of two models, drawn at random. Only the best checkpoint of each run takes part, unless fewer than two
        models have one.

        Raises Problem if there are not two models.
        """
        choices = self.choices()
        self.peers.check(0.0 if len(choices) > 1 else CHECK_WAIT_SECONDS, fresh=DRAW_CHECK_SECONDS)
        choices = self.choices()
        best = [c.name for c in choices if c.peer or c.checkpoint.path.name == BEST]
        names = best if len(best) > 1 else [choice.name for choice in choices]
        if len(names) < 2:
            raise Problem("too_few_models")
        return rng.sample(names, 2)

    def is_ready(self, name):
        """Whether the model can answer without being loaded first."""
        return SEPARATOR in name or self.models.is_loaded(name)

    def preload(self, name):
        """Load a checkpoint before it is asked. Does nothing for a remote model."""
        if SEPARATOR not in name:
            self.models.acquire(name)
            self.models.release(name)

    def ask(self, name, prompt, params):
        """The ModelAnswer of a model to a prompt, being generated. Raises Problem, UserError or ApiFailure."""
        if SEPARATOR in name:
            stream = self._ask_peer(name, prompt, params)
            peer = name.rpartition(SEPARATOR)[2]
            return ModelAnswer(name, name, stream, lambda: self.peers.record_error(peer, stream.error))
        generator, checkpoint = self.models.acquire(name)
        try:
            if checkpoint.stage == "task":
                raise Problem("labels_only", name=name)
            stream = generator.submit(prompt, params)
        except BaseException:
            self.models.release(name)
            raise
        timer = threading.Timer(self.settings.request_seconds, stream.cancel)
        timer.daemon = True
        timer.start()

        def release():
            timer.cancel()
            self.models.release(name)

        return ModelAnswer(name, checkpoint.key, stream, release)

    def label(self, name, text, text_b=""):
        """What a model with a task's head says of a text, or of two for a model of pairs: `Classified` or `Tagged`.

        Raises Problem or UserError.
        """
        if not name:
            raise Problem("no_task_model")
        classifier, checkpoint = self.models.acquire(name)
        try:
            if checkpoint.stage != "task":
                raise Problem("no_labels", name=name)
            text = self.check_prompt(text)
            if checkpoint.task == "tag":
                return classifier.tag([text])[0]
            return classifier.classify([(text, self.check_prompt(text_b)) if checkpoint.task == "pair" else text])[0]
        finally:
            self.models.release(name)

    def ask_all(self, requests, params):
        """[ModelAnswer] of the requests [(name, prompt)], all being generated. If one raises (as `ask` does), the
        others are closed."""
        answers = []
        try:
            for name, prompt in requests:
                answers.append(self.ask(name, prompt, params))
        except BaseException:
            for answer in answers:
                answer.close()
            raise
        return answers

    def _ask_peer(self, name, prompt, params):
        model, _, peer = name.rpartition(SEPARATOR)
        client, status = self.peers.client(peer), self.peers.status(peer)
        fields = {"max_tokens": params.max_new_tokens, **{key: getattr(params, key) for key in PARAM_RANGES}}
        if params.seed is not None:
            fields["seed"] = params.seed
        # A MiniGPT server's completions add the answer mark themselves if the model is fine-tuned; a pretrained one
        # continues the text. Other servers have a chat template.
        owners = {entry["id"]: entry["owned_by"] for entry in status.models} if status else {}
        if owners.get(model) == MINIGPT_OWNER:
            return client.complete(model, prompt, **fields)
        return client.chat(model, [{"role": "user", "content": prompt}], **fields)

    def check_prompt(self, prompt):
        """The prompt without NUL characters and invalid Unicode. Raises Problem if it is empty or too long."""
        prompt = clean_text(prompt or "").replace("\0", "")
        if not prompt.strip():
            raise Problem("no_prompt")
        most = self.settings.max_prompt_chars
        if len(prompt) > most:
            raise Problem("long_prompt", length=len(prompt), most=most)
        return prompt

    def check_params(self, *values):
        """SamplingParams of the values that a page sent, in the order of SAMPLING_KEYS; the last, the seed, is None or
        "" for none. Raises Problem, which names the field."""
        ranges = {**PARAM_RANGES, "max_new_tokens": (1, self.settings.max_tokens_limit), "seed": (0, MAX_SEED)}
        values = dict(zip(SAMPLING_KEYS, values, strict=True))
        seed = values.pop("seed")
        if seed not in (None, ""):
            is_text_of_digits = isinstance(seed, str) and seed.strip().isascii() and seed.strip().isdigit()
            values["seed"] = int(seed) if is_text_of_digits else seed
        return SamplingParams(**{name: validate_number(name, value, *ranges[name]) for name, value in values.items()})

    def read_link(self, query, ranges):
        """What the query string of the page's address says: links.LinkedPrompt. ranges: {key of SAMPLING_KEYS but the
        seed: (low, high)} of the page's fields."""
        names = {choice.name for choice in self.choices()}
        return read_link(query, self.check_prompt, names, {**ranges, "seed": (0, MAX_SEED)})

    def close(self):
        """Unload the models, close the connections and delete the downloads."""
        self.downloads.cleanup()
        self.peers.close()
        self.models.close()


def read_examples(path):
    """([[prompt, kind, note]], [Problem]) of a CSV file; each unusable row is a Problem and is left out."""
    examples, problems = [], []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                cells = [row[column] or "" for column in EXAMPLE_COLUMNS]
                if cells[0].strip() and cells[1] in EXAMPLE_KINDS:
                    examples.append(cells)
                    continue
                kinds = ", ".join(EXAMPLE_KINDS)
                problems.append(Problem("examples_row", path=str(path), line=reader.line_num, kinds=kinds))
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        detail = getattr(error, "strerror", None) or repr(error)
        problems.append(Problem("examples_file", path=str(path), detail=detail, columns=", ".join(EXAMPLE_COLUMNS)))
    return examples, problems
