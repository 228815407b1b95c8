"""Makes the data of the experiments with the project's own scripts: questions, tokenizer, rows. It is kept."""

import json
import os
import random
import time
from pathlib import Path

import numpy as np

from minigpt.common.errors import UserError
from minigpt.common.files import write_atomic, write_json
from minigpt.corpus.cleaning import Cleaner
from minigpt.corpus.questions import read_questions
from minigpt.corpus.records import Problems
from minigpt.corpus.row_files import META
from minigpt.corpus.sources import FEWEST_DOCUMENTS, cleaned_articles, find_articles
from minigpt.corpus.splits import hash_share, pretrain_part, sft_part, subjects_by_id
from minigpt.experiments.results import RESULT, hash_code, hash_files, make_spec, read_figures, run_logged, to_flags

HELDOUT_ONE_IN = 6  # pretrained subjects: no question about one of so many is trained on
UNSEEN_SUBJECTS = "unseen.txt"  # file of the subjects that nothing is pretrained on
QUESTION_SETS = ("trained", "never_asked", "never_seen")
QUESTIONS_PER_SET = 200  # at most
TUNING_SHARES = (0.25, 0.5, 1.0)  # of the questions
TUNING_VAL_SHARE = 0.03
# Of make_correction.py: short sentences, each with two mistakes, or right as it is.
CORRECTION_GIVEN = {"max_sentence_chars": 24, "variants": 2, "unchanged_share": 0.45}
ARTICLE_SETTINGS = ("input_dir", "text_field", "plain_text", "encoding")
CLEANING_SETTINGS = ("clean", "min_chars", "min_chinese_share")
THIS_FILE = "minigpt/experiments/data.py"


def chosen_settings(settings, names):
    """{name: value} of some settings, to be handed on to a script."""
    return {name: getattr(settings, name) for name in names}


def hash_sources(settings):
    """One sha256 of all files of articles and questions."""
    articles = find_articles(settings, [*settings.input_dir, *settings.articles], "articles")
    return hash_files([*articles, *filter(os.path.exists, settings.qa_files)])


def write_questions(plan):
    """Sort the questions by what a model will know of their subjects; returns {set: count}.

    never_seen: subjects of the validation part, on which nothing is pretrained; never_asked: one of HELDOUT_ONE_IN
    subjects, chosen by hash, which are pretrained on; trained: the rest, of which shares are trained on.
    """
    settings, folder = plan.settings, plan.folder / "questions"
    folder.mkdir(parents=True, exist_ok=True)
    subjects = subjects_by_id(settings.articles or settings.input_dir, settings)
    cleaner = Cleaner(settings)  # as the scripts clean subjects
    subjects = {key: cleaner.text(subject) for key, subject in subjects.items()}
    known, texts = set(), set()
    for _, article, text in cleaned_articles(settings, find_articles(settings), cleaner, Problems()):
        known.add(cleaner.text(article.subject))
        if len(texts) < FEWEST_DOCUMENTS:
            texts.add(text)
    if len(texts) < FEWEST_DOCUMENTS:
        raise UserError(
            f"{', '.join(settings.input_dir)} has {len(texts)} articles; the experiments need at least "
            f"{FEWEST_DOCUMENTS}, which are split by subject: give more with --input_dir=…"
        )
    heldout = {s for s in known if hash_share(f"asked:{s}") < 1 / HELDOUT_ONE_IN}
    unseen = {s for s in known if pretrain_part(s, settings.val_share, heldout) == "val"}
    for name, chosen in (("heldout.txt", heldout), (UNSEEN_SUBJECTS, unseen)):
        write_atomic(folder / name, lambda file, chosen=chosen: file.write("\n".join(sorted(chosen)).encode()))
    sets = {name: [] for name in QUESTION_SETS}
    for _, qa in read_questions(settings.qa_files, Problems(), form=settings):
        subject = subjects.get(str(qa.id))
        if subject in known:
            which = "never_seen" if subject in unseen else "never_asked" if subject in heldout else "trained"
            sets[which].append({"question": qa.question, "answer": qa.answer, "id": qa.id})
    for share in TUNING_SHARES:
        selected = [row for row in sets["trained"] if question_position(row) < share]
        write_json_lines(folder / f"trained_{share}.jsonl", selected + sets["never_asked"])
    # Every fine-tuning must have been trained on the questions of this set: those of the smallest share, without its
    # validation part.
    sets["trained"] = [
        row for row in sets["trained"]
        if question_position(row) < min(TUNING_SHARES)
        and sft_part(subjects[str(row["id"])], TUNING_VAL_SHARE, 0.0, heldout) == "train"
    ]  # fmt: skip
    for name, rows in sets.items():
        if not rows:
            raise UserError(f"no question in the set {name}; give more questions, or a larger --val_share")
        write_json_lines(folder / f"{name}.jsonl", rows)
    return {name: len(rows) for name, rows in sets.items()}


def question_position(row):
    """A question's position from 0 to 1, by hash: a share of the questions has those below it."""
    return hash_share(row["question"] + row["answer"])


def write_json_lines(path, rows):
    """Write rows as JSON, a line each, atomically."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(path, lambda file: file.write(text.encode()))


def questions_of_set(plan, name):
    """[(question, answer)] of a set, at most QUESTIONS_PER_SET, the same at each call."""
    rows = [qa for _, qa in read_questions([plan.folder / "questions" / f"{name}.jsonl"], Problems())]
    drawn = random.Random(0).sample(rows, min(QUESTIONS_PER_SET, len(rows)))
    return [(qa.question, qa.answer) for qa in drawn]


def make_tokenizer(plan, sources):
    """Train the tokenizer, unless it is kept; returns its spec. The seconds it took are kept beside it.

    sources: what `hash_sources` gives.
    """
    settings, result = plan.settings, plan.folder / "tokenizer.json"
    given = chosen_settings(settings, [*ARTICLE_SETTINGS, *CLEANING_SETTINGS, "tokenizer_vocab"])
    script, questions = "data/train_tokenizer.py", str(plan.folder / "questions" / "trained_1.0.jsonl")
    spec = make_spec(given, settings.val_share, settings.articles, sources, hash_code(script, THIS_FILE))
    if not read_figures(result, spec) or not Path(plan.tokenizer).exists():
        started = time.perf_counter()
        files = [f"--tokenizer_path={plan.tokenizer}", f"--tokenizer_qa={questions}"]
        run_logged(script, *files, *to_flags(given), log=plan.folder / "tokenizer.log")
        write_json(result, {"spec": spec, "figures": {"seconds": time.perf_counter() - started}})
    return spec


def prepare_rows(plan, rows, tokenizer_spec):
    """Prepare a folder of rows, unless it is kept. tokenizer_spec: what `make_tokenizer` gives."""
    settings, folder = plan.settings, plan.folder / "rows" / rows.name
    common = {
        "clean": settings.clean, "tokenizer": plan.tokenizer, "block_size": settings.block_size,
        "val_share": settings.val_share, "heldout": str(plan.folder / "questions" / "heldout.txt"), **rows.given,
    }  # fmt: skip
    if rows.questions is None and not rows.corrections:
        script = "data/prepare.py"
        given = {**chosen_settings(settings, [*ARTICLE_SETTINGS, *CLEANING_SETTINGS]), "data_dir": str(folder)} | common
    else:
        name = "corrections" if rows.corrections else f"trained_{rows.questions}"
        file = str(plan.folder / "questions" / f"{name}.jsonl")
        # One file, since prepare_sft.py takes one for each file of questions, and in the default form.
        articles = write_subjects(plan, settings.articles or settings.input_dir)
        given = {"qa_files": [file], "articles": [str(articles)], "sft_data_dir": str(folder), **common}
        given["val_share"] = TUNING_VAL_SHARE
        script = "data/prepare_sft.py"
    scripts = [script, THIS_FILE, *(["sft/make_correction.py"] if rows.corrections else [])]
    spec = make_spec(given, rows.concatenated, tokenizer_spec, hash_code(*scripts))
    if read_figures(folder / RESULT, spec) is None:
        if rows.corrections:
            write_corrections(plan, file)
        run_logged(script, *to_flags(given), log=folder.with_suffix(".log"))
        if rows.concatenated:
            concatenate_rows(folder)
        write_json(folder / RESULT, {"spec": spec, "figures": {}})


def write_corrections(plan, file):
    """Write wrong and right sentences of the articles to a file, with make_correction.py."""
    given = chosen_settings(plan.settings, [*ARTICLE_SETTINGS, *CLEANING_SETTINGS]) | CORRECTION_GIVEN
    log = plan.folder / "corrections.log"
    run_logged("sft/make_correction.py", *to_flags({**given, "corrections": file}), log=log)


def write_subjects(plan, folders):
    """Write one jsonl with the ids and titles of the articles of several folders; returns its path."""
    path = plan.folder / "questions" / "articles.jsonl"
    found = subjects_by_id(folders, plan.settings)
    rows = [{"id": key, "title": subject, "text": subject} for key, subject in found.items()]
    write_json_lines(path, rows)
    return path


def concatenate_rows(folder):
    """Join the articles of a folder's training rows, with EOT between them, and cut them anew into full rows.

    The validation part stays as it is, so that both layouts are measured on the same rows. Tokens that do not fill the
    last row are left out.
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
