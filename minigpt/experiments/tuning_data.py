"""Makes the tokenizer and the rows of the comparison of tuning methods with the project's own scripts. Kept."""

import json
import os
import shutil

import numpy as np

from data_utils import open_rows
from minigpt.common.files import write_atomic, write_json
from minigpt.corpus.row_files import META
from minigpt.corpus.sources import find_articles
from minigpt.experiments.results import RESULT, hash_code, hash_files, make_spec, read_figures, run_logged, to_flags
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import PrepareSettings, PrepareSftSettings, PrepareTaskSettings

SCRIPTS = (
    "data/train_tokenizer.py", "data/prepare.py", "data/prepare_sft.py", "data/prepare_task.py",
    "sft/make_correction.py", "minigpt/experiments/tuning_data.py",
)  # fmt: skip


def hash_tuning_sources(settings):
    """One sha256 of the settings files and of all files of articles, questions and labelled texts that they name."""
    configs = [settings.base_config, settings.questions_config, settings.field_config, settings.correction_config]
    articles = [find_articles(load_settings(PrepareSettings, [path])) for path in (configs[0], configs[3])]
    questions = load_settings(PrepareSftSettings, [settings.questions_config])
    field = load_settings(PrepareTaskSettings, [settings.field_config])
    named = [
        *questions.qa_files, questions.heldout, *find_articles(questions, questions.articles, "articles"),
        *field.task_files, *field.dev_files, *field.test_files,
    ]  # fmt: skip
    return hash_files([*configs, *articles[0], *articles[1], *filter(os.path.isfile, named)])


def make_tuning_data(plan):
    """Make the tokenizer and the rows of all tasks, unless they are kept. Returns {rows: {part: number of rows}}."""
    settings, result = plan.settings, plan.folder / "rows" / RESULT
    spec = make_spec(hash_tuning_sources(settings), plan.question_rows, hash_code(*SCRIPTS))
    if (figures := read_figures(result, spec)) is not None:
        return figures
    corrections, own = str(plan.folder / "corrections.jsonl"), {"tokenizer": plan.tokenizer}
    of_block = own | {"block_size": plan.base_settings.block_size}
    rows = {name: str(plan.rows_folder(name)) for name in ("articles", "questions", "field", "correction")}
    for script, config, given in (
        ("data/train_tokenizer.py", settings.base_config, {"tokenizer_path": plan.tokenizer}),
        ("data/prepare.py", settings.base_config, own | {"data_dir": rows["articles"]}),
        ("data/prepare_sft.py", settings.questions_config, of_block | {"sft_data_dir": rows["questions"]}),
        ("data/prepare_task.py", settings.field_config, of_block | {"task_data_dir": rows["field"]}),
        ("sft/make_correction.py", settings.correction_config, {"corrections": corrections}),
        # Sentences about the subjects that no question is about are the test part here, too.
        ("data/prepare_sft.py", settings.questions_config,
         of_block | {"qa_files": [corrections], "sft_data_dir": rows["correction"]}),
    ):  # fmt: skip
        log = plan.folder / f"{script.rpartition('/')[2]}.log"
        run_logged(script, config, *to_flags(given), log=log)
    for name, share in plan.question_rows.items():
        copy_share_of_rows(plan.rows_folder("questions"), plan.rows_folder(name), share)
    figures = {name: count_rows(folder) for name, folder in rows.items()}
    write_json(result, {"spec": spec, "figures": figures})
    return figures


def count_rows(folder):
    """{part: number of rows} of a folder of rows."""
    with open(os.path.join(folder, META), encoding="utf-8") as file:
        return {part: about["rows"] for part, about in json.load(file)["parts"].items()}


def copy_share_of_rows(folder, copy, share):
    """Copy a folder of rows, with a share of its training rows (at least one), always the same ones."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    rows, meta = open_rows(folder, "train")
    kept = np.random.default_rng(0).permutation(len(rows))[: max(1, round(share * len(rows)))]
    few = rows[np.sort(kept)]
    write_atomic(copy / "train.bin", lambda file: file.write(few.tobytes()))
    tokens = int((few != meta["special_ids"]["pad"]).sum())
    meta["parts"]["train"] |= {"rows": len(few), "tokens": tokens}
    write_json(copy / META, meta)
