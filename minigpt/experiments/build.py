"""Makes rows and runs by the project's own scripts, and measures the runs. Each is done once: a result stays."""

import json
import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from minigpt.common.errors import UserError
from minigpt.common.files import PROJECT, write_atomic, write_json
from minigpt.corpus.readers.files import find_files
from minigpt.corpus.records import Problems, read_articles, read_questions
from minigpt.corpus.row_files import META
from minigpt.corpus.splits import hash_share, pretrain_part, sft_part, subjects_by_id
from minigpt.experiments.plan import arguments, spec_of

RESULT = "result.json"
NEVER_ASKED = 6  # of so many subjects one is pretrained on and never asked about
SETS = ("trained", "never_asked", "never_seen")
ASKED = 200  # questions of each set
TUNING_SHARES = (0.25, 0.5, 1.0)  # of the questions
TUNING_VAL_SHARE = 0.03
LAST_LINES = 5


def command(*parts, log, threads=0):
    """Run one of the project's scripts; its output goes to a file. Raises UserError with its last lines."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    with open(log, "w", encoding="utf-8") as file:
        file.write(f"$ python {' '.join(parts)}\n")
        file.flush()
        script = [sys.executable, str(PROJECT / parts[0]), *parts[1:]]
        status = subprocess.run(script, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
    if status:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LAST_LINES:]
        raise UserError(f"{parts[0]} ended with status {status}: {' / '.join(lines)} (all of it: {log})")


def known_result(path, spec):
    """The figures that a spec gave before, or None."""
    with suppress(OSError, ValueError, KeyError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["spec"] == spec:
            return content["figures"]
    return None


def sources(plan):
    """What everything is made from: files with their sizes, and the settings by which they are sorted. A result of
    other sources is none of these."""
    settings = plan.settings
    files = [*find_files(settings.input_dir, "articles"), *settings.qa_files]
    sizes = [(str(path), os.path.getsize(path)) for path in files if os.path.exists(path)]
    return sizes, settings.articles, settings.val_share, settings.tokenizer_vocab


# Questions


def write_questions(plan):
    """Sort the questions by what a model will know of their subjects; returns {set: count}.

    never_seen: subjects of the validation part, which nothing is pretrained on; never_asked: those of one subject in
    NEVER_ASKED, by hash, pretrained on; the rest is trained on, by shares of it.
    """
    settings, folder = plan.settings, plan.folder / "questions"
    folder.mkdir(parents=True, exist_ok=True)
    subjects = subjects_by_id(settings.articles or settings.input_dir)
    files = find_files(settings.input_dir, "articles")
    known = {article.subject for _, article in read_articles(files, Problems())}
    heldout = {s for s in known if hash_share(f"asked:{s}") < 1 / NEVER_ASKED}
    write_atomic(folder / "heldout.txt", lambda file: file.write("\n".join(sorted(heldout)).encode()))
    sets = {name: [] for name in SETS}
    for _, qa in read_questions(settings.qa_files, Problems()):
        subject = subjects.get(str(qa.id))
        if subject in known:
            unseen = pretrain_part(subject, settings.val_share, heldout) == "val"
            which = "never_seen" if unseen else "never_asked" if subject in heldout else "trained"
            sets[which].append({"question": qa.question, "answer": qa.answer, "id": qa.id})
    for share in TUNING_SHARES:
        some = [row for row in sets["trained"] if share_of(row) < share]
        write_rows(folder / f"trained_{share}.jsonl", some + sets["never_asked"])
    # Asked are those that every fine-tuning is trained on: none of its validation part, in the smallest share.
    sets["trained"] = [
        row for row in sets["trained"]
        if share_of(row) < min(TUNING_SHARES)
        and sft_part(subjects[str(row["id"])], TUNING_VAL_SHARE, 0.0, heldout) == "train"
    ]  # fmt: skip
    for name, rows in sets.items():
        if not rows:
            raise UserError(f"no question of the set {name}; give more questions, or a larger --val_share")
        write_rows(folder / f"{name}.jsonl", rows)
    return {name: len(rows) for name, rows in sets.items()}


def share_of(row):
    """A question's place between 0 and 1: the trained ones of a share are those below it."""
    return hash_share(row["question"] + row["answer"])


def write_rows(path, rows):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(path, lambda file: file.write(text.encode()))


def questions_of(plan, name):
    """[(question, answer)] of a set, at most ASKED, always the same."""
    rows = [qa for _, qa in read_questions([plan.folder / "questions" / f"{name}.jsonl"], Problems())]
    drawn = random.Random(0).sample(rows, min(ASKED, len(rows)))
    return [(qa.question, qa.answer) for qa in drawn]


# Rows


def make_table(plan):
    """Train the table, unless that was done; the seconds it took are kept beside it."""
    settings, place = plan.settings, plan.folder / "table.json"
    given = {"input_dir": settings.input_dir, "tokenizer_vocab": settings.tokenizer_vocab}
    questions = str(plan.folder / "questions" / "trained_1.0.jsonl")
    parts = ["data/train_tokenizer.py", f"--tokenizer_path={plan.table}", f"--tokenizer_qa={questions}"]
    spec = spec_of(given, "table", sources(plan))
    if not known_result(place, spec) or not Path(plan.table).exists():
        started = time.perf_counter()
        command(*parts, *arguments(given), log=plan.folder / "table.log")
        write_json(place, {"spec": spec, "figures": {"seconds": time.perf_counter() - started}})


def make_rows(plan, rows):
    """Prepare a folder of rows; returns its path."""
    settings, folder = plan.settings, plan.folder / "rows" / rows.name
    common = {
        "tokenizer": plan.table, "block_size": settings.block_size, "val_share": settings.val_share,
        "heldout": str(plan.folder / "questions" / "heldout.txt"), **rows.given,
    }  # fmt: skip
    if rows.questions is None:
        script, given = "data/prepare.py", {"input_dir": settings.input_dir, "data_dir": str(folder), **common}
    else:
        file = str(plan.folder / "questions" / f"trained_{rows.questions}.jsonl")
        articles = settings.articles or settings.input_dir
        if len(articles) > 1:  # ids are of one file each; the subjects of all are needed
            articles = [str(write_articles(plan, articles))]
        given = {"qa_files": [file], "articles": articles, "sft_data_dir": str(folder), **common}
        given["val_share"] = TUNING_VAL_SHARE
        script = "data/prepare_sft.py"
    spec = spec_of(script, given, rows.concatenated, sources(plan))
    if known_result(folder / RESULT, spec) is None:
        command(script, *arguments(given), log=folder.with_suffix(".log"))
        if rows.concatenated:
            concatenate(folder)
        write_json(folder / RESULT, {"spec": spec, "figures": {}})
    return folder


def write_articles(plan, folders):
    """A jsonl of the ids and titles of several files' articles, as one."""
    path = plan.folder / "questions" / "articles.jsonl"
    rows = [{"id": key, "title": subject, "text": subject} for key, subject in subjects_by_id(folders).items()]
    write_rows(path, rows)
    return path


def concatenate(folder):
    """Join the training rows of a folder: articles one behind the other, EOT between them, cut at every block's end.

    The validation part stays as it is, so that both ways are measured on the same rows. What does not fill the last
    block is left out.
    """
    meta = json.loads((folder / META).read_text(encoding="utf-8"))
    path, width = folder / "train.bin", meta["block_size"]
    rows = np.fromfile(path, dtype=np.uint16).reshape(-1, width)
    ids = rows[rows != meta["special_ids"]["pad"]]
    joined = ids[: len(ids) // width * width].reshape(-1, width)
    write_atomic(path, lambda file: file.write(joined.tobytes()))
    meta["parts"]["train"] |= {"rows": len(joined), "tokens": joined.size}
    meta["train_layout"] = "concatenated"
    write_json(folder / META, meta)


def tokens_a_batch(plan, batch_size):
    """Real tokens of a batch of rows with one article each."""
    meta = json.loads((plan.folder / "rows" / "plain" / META).read_text(encoding="utf-8"))
    part = meta["parts"]["train"]
    return max(meta["block_size"], round(part["tokens"] / part["rows"] * batch_size))


# Runs


def make_run(plan, run, seed, threads):
    """Train a run with a seed, unless that was done, and measure it; returns its figures."""
    from minigpt.experiments import measuring  # torch, where it is needed first

    place = plan.place(run.name, seed)
    given = training_settings(plan, run, seed)
    base = known_spec(plan, run.base, seed)
    spec = spec_of(given, base, measuring.VERSION, ASKED, sources(plan))
    if (figures := known_result(place / RESULT, spec)) is not None:
        return figures
    command("train.py", *arguments(given), log=place / "train.log", threads=threads)
    figures = measuring.measure(plan, run, place, threads)
    write_json(place / RESULT, {"spec": spec, "figures": figures})
    return figures


def known_spec(plan, name, seed):
    """What a base run was made by: a run that starts from another one is another."""
    if not name:
        return None
    return json.loads((plan.place(name, seed) / RESULT).read_text(encoding="utf-8"))["spec"]


def training_settings(plan, run, seed):
    """train.py's settings of a run with a seed."""
    settings, place = plan.settings, plan.place(run.name, seed)
    steps = settings.tune_iters if run.tunes else settings.max_iters
    rates = (3e-4, 3e-3, 20) if run.tunes else (settings.learning_rate, settings.muon_learning_rate, 50)
    given = {
        "data_dir": str(plan.folder / "rows" / run.rows), "out_dir": str(place), "seed": seed, "max_iters": steps,
        "block_size": settings.block_size, "batch_size": settings.batch_size, "learning_rate": rates[0],
        "muon_learning_rate": rates[1], "warmup_iters": rates[2], "min_lr_ratio": 0.0, "compile": "off",
        "eval_interval": max(1, steps // 4), "n_layer": settings.n_layer, "n_head": settings.n_head,
        "n_embd": settings.n_embd, "dtype": settings.dtype,
    }  # fmt: skip
    if run.base:
        given["init_from"] = str(plan.place(run.base, seed) / "last.pt")
    given |= run.given
    if "batch_tokens" in given:
        given["batch_tokens"] = tokens_a_batch(plan, settings.batch_size)
    if run.each_epoch:
        meta = json.loads((plan.folder / "rows" / run.rows / META).read_text(encoding="utf-8"))
        steps = -(-meta["parts"]["train"]["rows"] // given["batch_size"])
        given |= {"eval_interval": steps, "keep_every": steps if run.tunes else 0}
    if run.as_long_as:
        other = plan.place(run.as_long_as, seed) / RESULT
        given["max_seconds"] = json.loads(other.read_text(encoding="utf-8"))["figures"]["seconds"]
        if not run.tunes:  # training the other's table counts
            table = json.loads((plan.folder / "table.json").read_text(encoding="utf-8"))
            given["max_seconds"] += table["figures"]["seconds"]
        given["max_iters"] = steps * 10
    return given
