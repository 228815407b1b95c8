"""Pairs of answers for tests, as files and as a run's data."""

from corpora import write_jsonl
from evaluation_fakes import save_tiny

from minigpt.settings.stages import TrainSettings
from minigpt.tuning.pairs import PreferenceData


def pair_row(prompt, chosen="好", rejected="坏"):
    """A row of a file of pairs."""
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def preference_data(folder, rows, rank=0, count=1, **given):
    """`PreferenceData` of rows (dicts), for the tiny tokenizer, with some settings."""
    settings = {
        "objective": "dpo", "init_from": str(save_tiny(folder / "tuned.pt")), "block_size": 32, "batch_size": 2,
        "preferences": [str(write_jsonl(folder / "pairs.jsonl", rows))], "out_dir": str(folder / "out"),
    }  # fmt: skip
    return PreferenceData(TrainSettings(**{**settings, **given}), rank, count)
