"""Tells tasks in words: questions and answers of several tasks, mixed, for fine-tuning one model on all of them.

    python sft/make_instructions.py --tasks=data/processed_field,data/processed_same_subject,data/processed_names
    python sft/make_instructions.py --tasks=… --leave_out=names        # to ask about a task that it was not tuned on
    python data/prepare_sft.py --qa_files=sft/instructions.jsonl       # next step, as for any questions

The tasks are folders of data/prepare_task.py, of which the train part is used, so that the other parts can be asked. A
row is {"question": an instruction and the text, "answer": the label's word or the entities, "subject": the text,
"task"}.
Each instruction has several wordings (minigpt/evaluation/task_prompts.toml), which take turns. After Wei et al. 2021,
"Finetuned Language Models Are Zero-Shot Learners". `--help` lists the settings.
"""

import json
import random
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.evaluation.tables import write_text
from minigpt.evaluation.task_prompts import check_label_words, parse_label_words, task_name, word_task
from minigpt.evaluation.tasks import load_task
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import InstructionDataSettings


def choose_tasks(settings):
    """{name: folder} of the tasks that are told. Raises UserError for a name to leave out that no task has."""
    if not settings.tasks:
        raise UserError("no task is named: name the folders of data/prepare_task.py with --tasks=…")
    folders = {task_name(folder): folder for folder in settings.tasks}
    if len(folders) < len(settings.tasks):
        raise UserError(f"two of the tasks have one name; the names are {', '.join(map(task_name, settings.tasks))}")
    if unknown := set(settings.leave_out) - set(folders):
        raise UserError(f"leave_out: {', '.join(sorted(unknown))} is none of the tasks, which are {', '.join(folders)}")
    told = {name: folder for name, folder in folders.items() if name not in settings.leave_out}
    if not told:
        raise UserError("every task is left out; give more --tasks, or a shorter --leave_out")
    return told


def instruction_rows(name, task, examples):
    """The rows (dicts) of a `WordedTask`'s examples."""
    rows = []
    for number, example in enumerate(examples):
        instruction = task.instructions[number % len(task.instructions)]
        question = f"{instruction}\n{task.ask(example)}"
        rows.append({"question": question, "answer": task.answer(example), "subject": example.text, "task": name})
    return rows


def make_instructions(settings):
    """Write the rows of all tasks, mixed, to settings.instructions. Returns the Counter of rows by task."""
    label_words, tasks, rows = parse_label_words(settings.label_words), [], []
    for name, folder in choose_tasks(settings).items():
        data = load_task(folder, "train", settings.max_examples, settings.seed)
        tasks.append(word_task(name, data.kind, data.labels, label_words))
        rows += instruction_rows(name, tasks[-1], data.examples)
    check_label_words(label_words, tasks)
    random.Random(settings.seed).shuffle(rows)
    write_text(settings.instructions, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return Counter(row["task"] for row in rows)


def main():
    settings = load_settings(InstructionDataSettings)
    counts = make_instructions(settings)
    print(f"{counts.total()} rows: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    if settings.leave_out:
        print(f"left out: {', '.join(settings.leave_out)}")
    path = settings.instructions
    print(f"written to {path}; go on with: python data/prepare_sft.py --qa_files={path}")


if __name__ == "__main__":
    run_script(main)
