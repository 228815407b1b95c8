"""Rebuilds the embedded corpus from its fact tables; the same tables give the same bytes.

    python data/make_sample.py

Reads data/sample_facts/<field>.csv (one subject per row, one fact per column) and <field>.toml (the field's source, and
for each fact several wordings, questions and one answer). Writes
  data/wiki_sample/<field>.jsonl   {"id", "title", "text"}: ARTICLES_PER_SUBJECT articles about each subject
  data/wiki_sample/SOURCES.md      the sources of each table's facts
  sft/sample_qa.jsonl              {"question", "answer", "id"}
  sft/sample_heldout.txt           the subjects whose questions are in the test part only
  data/task_sample/<task>_<part>.jsonl   labelled texts for data/prepare_task.py (minigpt/corpus/sample_tasks.py); the
                                   test part is about the subjects of sample_heldout.txt
  data/grammar_sample/<phenomenon>.jsonl   right and wrong sentences for evaluations-grammar.py (sample_grammar.py)

A subject has many articles because a model that has read a fact in only one wording can recite it, but not answer
questions about it (Allen-Zhu and Li 2023, "Physics of Language Models: Part 3.1"). To add a field, add its two files
and run this script.
"""

import csv
import itertools
import json
import random
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.common.files import write_atomic
from minigpt.corpus.sample_grammar import FRAMES, grammar_rows
from minigpt.corpus.sample_tasks import SampleTasks, shuffled
from minigpt.corpus.splits import hash_share

FACTS = ROOT / "data" / "sample_facts"
ARTICLES = ROOT / "data" / "wiki_sample"
QUESTIONS = ROOT / "sft" / "sample_qa.jsonl"
HELDOUT = ROOT / "sft" / "sample_heldout.txt"
TASKS = ROOT / "data" / "task_sample"
GRAMMAR = ROOT / "data" / "grammar_sample"

ARTICLES_PER_SUBJECT = 20
MIN_SENTENCES = 3  # of an article
QUESTIONS_PER_FACT = 2
HELDOUT_SHARE = 0.1  # of a field's subjects; as many are the dev part of the tasks
LITTER_SHARE = 0.1
CORPUS_LITTER = ["（）", "()", "「」", "（；）", "（，）", "《》", "“”", "-{}-", "<div>", "（《》）"]


class Subject:
    """A row of a fact table, and the wordings whose columns are filled in it."""

    def __init__(self, field, row, facts):
        self.field, self.name, self.row = field, row["name"], row
        self.facts = []
        for fact in facts:
            tell, ask = self.fill_in(fact["tell"]), self.fill_in(fact.get("ask", []))
            answer = self.fill_in([fact["answer"]]) if "answer" in fact else []
            if tell:
                filled = {"tell": tell, "ask": ask if answer else [], "answer": answer}
                self.facts.append({"key": fact["key"], "wordings": fact["tell"], **filled})

    def fill_in(self, wordings, **others):
        """The wordings with the subject's values, or `others`; those that need an empty column are left out."""
        known = {k: v for k, v in self.row.items() if v} | others
        filled = []
        for wording in wordings:
            try:
                filled.append(wording.format_map(known))
            except KeyError as missing:
                if missing.args[0] not in self.row:
                    raise UserError(f"{self.field}.toml: {{{missing.args[0]}}} is no column: {wording}") from None
        return filled

    def article(self, number):
        """Text of the article with this number: title, blank line, and sentences in an order of its own."""
        rng = random.Random(f"{self.field}/{self.name}/{number}")
        facts = shuffled(self.facts, rng)
        least = max(MIN_SENTENCES, len(facts) - 2)
        facts = facts[: least + int(rng.random() * (len(facts) - least + 1))]
        # Use all wordings in turn; the first one depends on subject and fact.
        sentences = [f["tell"][(number + int(hash_share(self.name + f["key"]) * 1000)) % len(f["tell"])] for f in facts]
        text = "".join(dict.fromkeys(sentences))
        if rng.random() < LITTER_SHARE:
            text = text.replace(self.name, self.name + CORPUS_LITTER[int(rng.random() * len(CORPUS_LITTER))], 1)
        return f"{self.name}\n\n{text}"

    def questions(self):
        """Yields (question, answer): QUESTIONS_PER_FACT questions about each fact."""
        for fact in self.facts:
            start = int(hash_share("ask" + self.name + fact["key"]) * 1000)
            asked = [fact["ask"][(start + i) % len(fact["ask"])] for i in range(QUESTIONS_PER_FACT) if fact["ask"]]
            for question in dict.fromkeys(asked):
                yield question, fact["answer"][0]


def read_fields():
    """{field: (its name, its source, [Subject])} of all fact tables."""
    fields = {}
    for path in sorted(FACTS.glob("*.toml")):
        about = tomllib.loads(path.read_text(encoding="utf-8"))
        with open(path.with_suffix(".csv"), encoding="utf-8", newline="") as file:
            subjects = [Subject(path.stem, row, about["fact"]) for row in csv.DictReader(file)]
        for subject in subjects:
            if len(subject.facts) < MIN_SENTENCES:
                raise UserError(f"{path.stem}.csv: {subject.name} has fewer than {MIN_SENTENCES} facts")
        fields[path.stem] = about["field"], about["source"], subjects
    return fields


def split_subjects(subjects):
    """{part: names of a field's subjects}. Those with the lowest hashes are the part "test", the next ones "dev"."""
    ranked = sorted(subjects, key=lambda s: hash_share("heldout:" + s.name))
    n = max(1, round(HELDOUT_SHARE * len(subjects)))
    parts = {"test": ranked[:n], "dev": ranked[n : 2 * n], "train": ranked[2 * n :]}
    return {part: {s.name for s in some} for part, some in parts.items()}


def write_lines(path, lines):
    """Writes lines of text, with LF on every system."""
    write_atomic(path, lambda file: file.write("".join(line + "\n" for line in lines).encode()))


def main():
    fields = read_fields()
    next_id, qa = 0, []
    everyone = [s for _, _, subjects in fields.values() for s in subjects]
    titles = [s.name for s in everyone]
    if repeated := {t for t in titles if titles.count(t) > 1}:
        raise UserError(f"subjects named twice: {', '.join(sorted(repeated))}")
    for field, (_, _, subjects) in fields.items():
        rows = []
        for subject in subjects:
            # Ids are unique over all files. A subject's questions have the id of its first article.
            pairs = [{"question": q, "answer": a, "id": next_id} for q, a in subject.questions()]
            qa += pairs
            for number in range(ARTICLES_PER_SUBJECT):
                rows.append({"id": next_id, "title": subject.name, "text": subject.article(number)})
                next_id += 1
        write_lines(ARTICLES / f"{field}.jsonl", (json.dumps(row, ensure_ascii=False) for row in rows))
        print(f"{field}: {len(subjects)} subjects, {len(rows)} articles")
    sources = [f"- {name}: {source}" for name, source, _ in fields.values()]
    write_lines(ARTICLES / "SOURCES.md", ["# Where the facts are from", "", *sources])
    write_lines(QUESTIONS, (json.dumps(row, ensure_ascii=False) for row in qa))
    splits = [split_subjects(subjects) for _, _, subjects in fields.values()]
    parts = {part: set().union(*(split[part] for split in splits)) for part in ("train", "dev", "test")}
    write_lines(HELDOUT, sorted(parts["test"]))
    print(f"{len(titles)} subjects, {next_id} articles, {len(qa)} questions, {len(parts['test'])} subjects held out")

    tasks = SampleTasks({name: subjects for name, _, subjects in fields.values()})
    for task, part in itertools.product(("field", "same_subject", "names"), parts):
        rows = list(tasks.rows(task, [s for s in everyone if s.name in parts[part]]))
        write_lines(TASKS / f"{task}_{part}.jsonl", (json.dumps(row, ensure_ascii=False) for row in rows))
        print(f"task {task}, {part}: {len(rows)} rows")

    by_field = {name: subjects for name, (_, _, subjects) in fields.items()}
    for phenomenon in FRAMES:
        rows = list(grammar_rows(phenomenon, by_field))
        write_lines(GRAMMAR / f"{phenomenon}.jsonl", (json.dumps(row, ensure_ascii=False) for row in rows))
        print(f"grammar, {phenomenon}: {len(rows)} pairs")


if __name__ == "__main__":
    run_script(main)
