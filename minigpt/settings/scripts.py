"""The scripts that have settings, and what a setting is made of. The settings themselves: record.py."""

from dataclasses import field

SCRIPTS = {
    "download": "data/download.py",
    "prepare": "data/prepare.py",
    "prepare_sft": "data/prepare_sft.py",
    "generate": "sft/sft_generate.py",
    "tokenizer": "data/train_tokenizer.py",
    "train": "train.py",
    "sample": "sample.py",
    "server": "server.py",
    "arena": "sample_gradio.py",
    "perplexity": "evaluations-perplexity.py",
    "rouge": "evaluations-RougeL.py",
    "correction_data": "sft/make_correction.py",
    "correction": "evaluations-correction.py",
    "decoding": "evaluations-decoding.py",
    "card": "evaluations-report.py",
    "visualize": "visualize.py",
    "experiments": "experiments/run.py",
    "bench": "bench.py",
}
ASKING = "rouge correction decoding card"
GENERATION = f"sample {ASKING}"
ANSWERS = f"sample {ASKING} generate"
ON_MODEL = f"sample {ASKING} server arena"
MEASURING = f"perplexity {ASKING}"
ON_DEVICE = f"train sample {MEASURING} bench server arena"
# Kinds of articles that the experiments take: about half of the embedded corpus, so that many runs fit into an hour.
EXPERIMENT_FILES = ("elements", "provinces", "rivers", "writers", "dynasties", "solar_terms")
# Defaults of one script that differ from the record's.
OWN_DEFAULTS = {
    "arena": {"port": 7860},
    "generate": {"temperature": 0.45, "max_new_tokens": 2048},
    "perplexity": {"batch_size": 0},
    "correction": {"temperature": 0.0},
    "card": {"max_samples": 500, "data_dir": ""},
    "experiments": {
        "input_dir": [f"data/wiki_sample/{name}.jsonl" for name in EXPERIMENT_FILES],
        "articles": ["data/wiki_sample"],
        "qa_files": ["sft/sample_qa.jsonl"],
        "val_share": 0.1,
        "tokenizer_vocab": 2048,
        "block_size": 128,
        "n_layer": 3,
        "n_head": 2,
        "n_embd": 128,
        "max_iters": 1300,
        "batch_size": 16,
        "muon_learning_rate": 0.04,
        "out_dir": "out/experiments",
        "docs": "docs/experiments.md",
    },
}


def setting(default, used_by, help, choices=None, low=None, replaces=None):
    """A field of `Settings`: default, the scripts (keys of SCRIPTS) that read it, meaning, choices, least value.

    replaces: the setting whose place this one takes where it is above 0.
    """
    metadata = {"used_by": used_by.split(), "help": help, "choices": choices, "low": low, "replaces": replaces}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)
