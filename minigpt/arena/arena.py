"""The models that can be asked, near and far, as one list, and answers by them."""

import random
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from minigpt.arena.answers import Answer, Running
from minigpt.arena.examples import read_examples
from minigpt.arena.models import Shelf
from minigpt.arena.peers import SEPARATOR, Peers
from minigpt.arena.problems import Problem, checked_number
from minigpt.arena.votes import Battles, Votes
from minigpt.checkpoint import BEST
from minigpt.common.files import PROJECT
from minigpt.common.net import MINIGPT_OWNER
from minigpt.inference.engine import open_generator
from minigpt.inference.params import SamplingParams
from minigpt.openai_client import Limits, clean_text

EXAMPLES = PROJECT / "examples.csv"
WAIT_FOR_PEERS = 3.5  # seconds, when models are drawn and no peer has been asked yet
# What a request may set, with its limits; settings limit the rest.
RANGES = {"temperature": (0.0, 2.0), "top_k": (0, 100_000), "top_p": (0.0, 1.0), "frequency_penalty": (-2.0, 2.0)}
MOST_SEED = 2**53 - 1  # a page's numbers are exact so far


@dataclass(frozen=True)
class Choice:
    """A model that can be asked. name: what it is chosen by; checkpoint: None for a remote one; peer, seconds: the
    remote one's, and what its last check took."""

    name: str
    checkpoint: object = None
    peer: str = ""
    seconds: float = 0.0


class Arena:
    """Everything that the page shows. settings: a Settings; open: as generation.open_generator."""

    def __init__(self, settings, open=open_generator):
        self.settings = settings
        self.shelf = Shelf(settings, open)
        limits = Limits(seconds=settings.request_seconds, chars=settings.answer_chars)
        self.peers = Peers(settings.peers, limits)
        self.votes = Votes(Path(settings.arena_dir) / "votes.jsonl")
        self.flagged = Path(settings.arena_dir) / "flagged.csv"
        self.battles, self.running = Battles(self.votes), Running()
        self.downloads = tempfile.TemporaryDirectory(prefix="minigpt-arena-", ignore_cleanup_errors=True)
        self.examples, self._example_problems = read_examples(EXAMPLES)

    def choices(self):
        """[Choice]: checkpoints, then the models of the peers that answered when they were asked last."""
        found = [Choice(checkpoint.name, checkpoint) for checkpoint in self.shelf.checkpoints()[0]]
        for peer in self.peers.all():
            status = self.peers.status(peer.name)
            for model in status.models if status else ():
                found.append(Choice(f"{model['id']}{SEPARATOR}{peer.name}", None, peer.name, status.seconds))
        return found

    def problems(self):
        """[UserError]: what is no checkpoint under out_root, no peer in the peers' file, no example in examples.csv."""
        return [*self.shelf.checkpoints()[1], *self.peers.problems, *self._example_problems]

    def draw(self, rng=random):
        """Two names, drawn at random. Of a run only its best checkpoint takes part, where there are others to meet.

        Raises Problem where there are not two models.
        """
        choices = self.choices()
        self.peers.check(0.0 if len(choices) > 1 else WAIT_FOR_PEERS, fresh=60.0)
        choices = self.choices()
        best = [c.name for c in choices if c.peer or c.checkpoint.path.name == BEST]
        names = best if len(best) > 1 else [choice.name for choice in choices]
        if len(names) < 2:
            raise Problem("too_few_models")
        return rng.sample(names, 2)

    def is_ready(self, name):
        """Whether asking it needs no loading first."""
        return SEPARATOR in name or self.shelf.is_loaded(name)

    def warm(self, name):
        """Load a checkpoint, so that its first answer need not wait; does nothing for a remote model."""
        if SEPARATOR not in name:
            self.shelf.borrow(name)
            self.shelf.give_back(name)

    def ask(self, name, prompt, params):
        """The Answer of a model to a prompt, on its way. Raises Problem, UserError or ApiFailure."""
        if SEPARATOR in name:
            stream = self._ask_peer(name, prompt, params)
            return Answer(name, name, stream, lambda: self.peers.learn(name.rpartition(SEPARATOR)[2], stream.error))
        generator, checkpoint = self.shelf.borrow(name)
        try:
            stream = generator.submit(prompt, params)
        except BaseException:
            self.shelf.give_back(name)
            raise
        timer = threading.Timer(self.settings.request_seconds, stream.cancel)
        timer.daemon = True
        timer.start()

        def release():
            timer.cancel()
            self.shelf.give_back(name)

        return Answer(name, checkpoint.key, stream, release)

    def ask_all(self, asked, params):
        """[Answer] of (name, prompt) each, all on their way. Raises as `ask` does, and then none is."""
        answers = []
        try:
            for name, prompt in asked:
                answers.append(self.ask(name, prompt, params))
        except BaseException:
            for answer in answers:
                answer.close()
            raise
        return answers

    def _ask_peer(self, name, prompt, params):
        model, _, peer = name.rpartition(SEPARATOR)
        client, status = self.peers.client(peer), self.peers.status(peer)
        fields = {
            "temperature": params.temperature, "top_k": params.top_k, "top_p": params.top_p,
            "frequency_penalty": params.frequency_penalty, "max_tokens": params.max_new_tokens,
        }  # fmt: skip
        if params.seed is not None:
            fields["seed"] = params.seed
        owners = {entry["id"]: entry["owned_by"] for entry in status.models} if status else {}
        if owners.get(model) == MINIGPT_OWNER:  # whose completions put the answer mark where a model was fine-tuned
            return client.complete(model, prompt, **fields)
        return client.chat(model, [{"role": "user", "content": prompt}], **fields)

    def checked_prompt(self, prompt):
        """The prompt as models are asked it. Raises Problem where it is empty or too long."""
        prompt = clean_text(prompt or "").replace("\0", "")
        if not prompt.strip():
            raise Problem("no_prompt")
        most = self.settings.max_prompt_chars
        if len(prompt) > most:
            raise Problem("long_prompt", length=len(prompt), most=most)
        return prompt

    def checked_params(self, max_new_tokens, temperature, top_k, top_p, frequency_penalty, seed):
        """SamplingParams of what a page sends; seed: None or "" for none. Raises Problem naming the field."""
        ranges = {**RANGES, "max_new_tokens": (1, self.settings.max_tokens_limit), "seed": (0, MOST_SEED)}
        given = {
            "max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p,
            "frequency_penalty": frequency_penalty, **({} if seed in (None, "") else {"seed": whole_number(seed)}),
        }  # fmt: skip
        return SamplingParams(**{name: checked_number(name, value, *ranges[name]) for name, value in given.items()})

    def close(self):
        """Let go of models, peers and downloads."""
        self.downloads.cleanup()
        self.peers.close()
        self.shelf.close()


def whole_number(text):
    """The number that a text of digits is; anything else as it came."""
    return int(text) if isinstance(text, str) and text.strip().isascii() and text.strip().isdigit() else text
