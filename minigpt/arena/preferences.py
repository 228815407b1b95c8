"""From votes to a model: pairs of a better and a worse answer, their file, and the command that trains with them."""

import itertools
import json
import re
import shlex
from collections import Counter
from pathlib import Path

from minigpt.arena.problems import Problem
from minigpt.common.files import write_atomic

TUNED_SUFFIX = "_votes"  # of the folder of a run that is tuned by votes
CONFIG = "config/dpo.py"


def preference_pairs(votes):
    """[{"prompt", "chosen", "rejected"}] of the votes with a winner, the form that DPO trainers read."""
    pairs = []
    for vote in votes:
        answers = {side: vote.get(f"{side}_answer") for side in ("left", "right")}
        if vote["result"] in answers and all(isinstance(text, str) for text in (vote.get("prompt"), *answers.values())):
            chosen = answers.pop(vote["result"])
            (rejected,) = answers.values()
            if chosen != rejected:
                pairs.append({"prompt": vote["prompt"], "chosen": chosen, "rejected": rejected})
    return pairs


def pairs_text(pairs):
    """Preference pairs as JSON lines."""
    return "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)


def write_pairs(path, pairs):
    """Write preference pairs to a file of JSON lines; an earlier one is replaced. Raises Problem."""
    try:
        write_atomic(path, lambda file: file.write(pairs_text(pairs).encode(errors="replace")))
    except OSError as error:
        raise Problem("not_written", path=str(path), detail=error.strerror) from None


def chosen_or_most_voted(choices, name, votes):
    """The ModelChoice of a name; where none has it, the one with the most votes; None without any choice."""
    counts = Counter(key for vote in votes for key in (vote["left"], vote["right"]))
    return max(choices, key=lambda choice: (choice.name == name, counts[choice.checkpoint.key]), default=None)


def training_command(preferences, checkpoint, out_root):
    """The command, as for a shell, that tunes a checkpoint by a file of pairs, in a run's folder of its own."""
    flags = {"preferences": preferences, "init_from": checkpoint, "out_dir": free_run_folder(out_root, checkpoint)}
    given = [f"--{key}={Path(path).as_posix()}" for key, path in flags.items()]
    return shlex.join(["python", "train.py", CONFIG, *given])


def free_run_folder(root, checkpoint):
    """A folder under `root` that does not exist yet, named after the checkpoint's run: demo_sft_votes, demo_sft_votes2,
    … The run may itself be one that was tuned by votes."""
    run = checkpoint.name if checkpoint.is_dir() else checkpoint.parent.name
    name = re.sub(rf"{TUNED_SUFFIX}\d*$", "", run) + TUNED_SUFFIX
    numbered = (Path(root) / f"{name}{number}" for number in itertools.count(2))
    return next(path for path in itertools.chain([Path(root) / name], numbered) if not path.exists())
