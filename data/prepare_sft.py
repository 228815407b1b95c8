"""Questions and answers to rows: `question + answer mark + answer + EOT`, in train, val and test parts.

A row of a whole chat (--turns=joined) has these for each of its turns, one behind another. With the tokenizer of a
Hugging Face folder, rows are written by its chat template.

    python data/prepare_sft.py                                    # the embedded questions, GPT-2's tokenizer
    python data/prepare_sft.py --qa_files=sft/sft_saves.jsonl     # what sft/sft_generate.py made
    python data/prepare_sft.py --qa_files=my_qa.jsonl --articles=my_wiki
    python data/prepare_sft.py --tokenizer=models/Qwen3-0.6B      # to fine-tune that model

A row of the input is {"question", "answer", "id"}, where `id` is its article's, or has one of the forms that
docs/data.md lists; --question_field and --answer_field name the fields of any other. `--help` lists the settings.
"""

import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.corpus.chat import ChatTurn, turn_ids
from minigpt.corpus.cleaning import CharacterCleaner
from minigpt.corpus.losses import Losses, check_losses
from minigpt.corpus.questions import QuestionCounts, check_question_files, read_questions
from minigpt.corpus.records import Problems, dropped_text
from minigpt.corpus.row_files import RowWriter, refuse_to_replace
from minigpt.corpus.splits import (
    EmptyPart,
    check_parts,
    read_heldout,
    sft_part,
    sft_share,
    small_part_warnings,
    subjects_by_id,
)
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import PrepareSftSettings
from minigpt.tokenizer import load_tokenizer

TOO_LONG, REPEATED, CLEANED_AWAY = "longer than the block", "exact duplicate", "nothing left after cleaning"
TEMPLATE_REFUSED = "refused by the tokenizer's chat template"


def read_subjects(settings):
    """{file of questions: {article id: subject}}; {} for each file where no articles are named."""
    files, articles = settings.qa_files, settings.articles
    if len(articles) > 1 and len(articles) != len(files):
        raise UserError(f"{len(articles)} articles for {len(files)} qa_files: name one for all, or one for each")
    if not articles:
        return {file: {} for file in files}
    if len(articles) == 1:
        return dict.fromkeys(files, subjects_by_id(articles, settings))
    return {file: subjects_by_id([folder], settings) for file, folder in zip(files, articles, strict=True)}


class SftPreparer:
    """Turns questions into rows, one at a time, and counts them."""

    def __init__(self, settings, tokenizer, writer):
        self.settings = settings
        self.tokenizer = tokenizer
        self.writer = writer
        self.cleaner = CharacterCleaner(settings.clean)
        self.heldout = {self.cleaner.text(subject) for subject in read_heldout(settings.heldout)}
        self.subjects = read_subjects(settings)
        self.problems = Problems()
        self.keys = set()  # hashes of the rows that were written
        self.heldout_found = set()
        self.counts = QuestionCounts()
        self.questions, self.used, self.without_article = 0, 0, 0
        self.shares = set()  # of the subjects that are not held out, as `check_parts` takes them

    def add(self, line, qa):
        """Cleans a `Question` with the turns before it and writes their rows, or counts why they are dropped."""
        self.questions += len(qa.turns)
        subject = self.subject_of(line, qa)
        self.heldout_found |= {subject} & self.heldout
        part = sft_part(subject, self.settings.val_share, self.settings.test_share, self.heldout)
        self.shares |= set() if subject in self.heldout else {sft_share(subject)}
        turns = [self.clean_turn(turn) for turn in qa.turns]
        usable = [turn for turn in turns if turn.question and turn.answer]
        for _ in range(len(turns) - len(usable)):
            self.problems.add(CLEANED_AWAY, qa.source, line)
        try:
            rows = list(self.divide_turns(usable, qa.source, line))
        except UserError:  # a chat template of others raised it
            self.problems.add(TEMPLATE_REFUSED, qa.source, line)
            rows = []
        for row in rows:
            texts = [text for turn in row for text in (turn.system, turn.question, turn.answer)]
            key = hashlib.blake2b("\0".join(texts).encode(), digest_size=8).digest()
            if key in self.keys:
                self.problems.add(REPEATED, qa.source, line)
            else:
                self.keys.add(key)
                self.used += len(row)
                self.writer.add(part, turn_ids(self.tokenizer, row), sum(map(len, texts)))

    def clean_turn(self, turn):
        """A `ChatTurn` with its texts cleaned."""
        system, question, answer = (
            self.cleaner.text(text).strip() for text in (turn.system, turn.question, turn.answer)
        )
        return replace(turn, system=system, question=question, answer=answer)

    def divide_turns(self, turns, source, line):
        """Yields the turns of each row: as many as fit into the block. Each row begins with the system message."""
        row, system = [], ""
        for turn in turns:
            system = turn.system or system
            if row and self.fits([*row, turn]):
                row.append(turn)
                continue
            if row:
                yield row
            row = [replace(turn, system=system)]
            if not self.fits(row):
                self.problems.add(TOO_LONG, source, line)
                row = []
        if row:
            yield row

    def fits(self, row):
        """Whether the turns of a row fit into the block, together with the EOT."""
        return len(turn_ids(self.tokenizer, row)) < self.settings.block_size

    def subject_of(self, line, qa):
        """The subject of a question's article; where it is unknown, a text that all questions of the article share."""
        subject = qa.subject or self.subjects[qa.source].get(str(qa.id), "")
        if subject:
            return self.cleaner.text(subject)
        self.without_article += len(qa.turns)
        return f"{Path(qa.source).name}:{line if qa.id is None else qa.id}"


def check_chat_template(tokenizer, settings):
    """Raise UserError where a tokenizer of others cannot write the rows: it has no chat template, or no answer mark."""
    turn_ids(tokenizer, [ChatTurn(question="?", answer="!")])
    mark = tokenizer.special_ids()["answer"]
    if settings.thinking == "keep" and isinstance(mark, list) and "<think>" in tokenizer.decode(mark):
        raise UserError(
            f"the chat template of {tokenizer.name} begins an answer by empty thoughts, behind which --thinking=keep "
            "would write other thoughts; leave it out"
        )


def prepare_sft(settings):
    """Writes the rows of all questions; returns (the meta, lines that warn of what was lost).

    Raises UserError where nearly everything was dropped, or there is nothing to train or to validate on.
    """
    tokenizer, files = load_tokenizer(settings.tokenizer), settings.qa_files
    check_question_files(files, "qa_files")
    check_chat_template(tokenizer, settings)
    with RowWriter(settings.sft_data_dir, ["train", "val", "test"], settings.block_size, tokenizer) as writer:
        preparer = SftPreparer(settings, tokenizer, writer)
        problems = preparer.problems
        with tqdm(total=sum(map(os.path.getsize, files)), unit="B", unit_scale=True, desc="prepare_sft") as bar:
            found = read_questions(
                files, problems, bar.update, settings.turns, preparer.counts, form=settings, system=settings.system
            )
            for line, qa in found:
                preparer.add(line, qa)
        if not preparer.questions and not problems.counts:
            raise UserError(f"no question in {', '.join(files)}: nothing is there; name yours with --qa_files=…")
        warnings = check_losses(Losses(problems, preparer.used))
        if preparer.heldout and not preparer.heldout_found:
            raise UserError(
                f"no question is about a held-out subject of {settings.heldout}; name the articles with --articles=…"
            )
        check_parts({part: counts["rows"] for part, counts in writer.counts.items()}, settings, preparer.shares)
        meta = writer.finish(
            {
                "stage": "sft",
                "questions": preparer.questions,
                "without_article": preparer.without_article,
                "forms": dict(preparer.counts.forms),
                "turns": settings.turns,
                "system": settings.system,
                "thinking": settings.thinking,
                "chats": preparer.counts.about_chats(),
                **problems.about(),
                "sources": files,
            }
        )
    return meta, warnings


def chat_lines(meta):
    """Lines to print about the talks among the questions. meta: of the rows."""
    counts, lines = meta["chats"], []
    if counts["chats"]:
        used = {"each": "each turn is a row", "first": "the first turn is used", "joined": "a row has all turns"}
        lines.append(f"talks of several turns: {counts['chats']} ({used[meta['turns']]}; --turns={meta['turns']})")
    if counts["trimmed"] or counts["joined"]:
        lines.append(
            f"messages before the first question or behind the last answer, left off: {counts['trimmed']}; doubled "
            f"messages, joined: {counts['joined']}"
        )
    if counts["systems"] and meta["system"] == "drop":
        lines.append(f"rows whose system message is dropped: {counts['systems']}; --system=keep trains with it")
    if counts["thoughts"] and meta["thinking"] == "drop":
        lines.append(f"answers whose thinking is left off: {counts['thoughts']}; --thinking=keep trains with it")
    return lines


def main():
    settings = load_settings(PrepareSftSettings)
    refuse_to_replace(settings, "sft_data_dir", "qa_files", settings.qa_files)
    try:
        meta, warnings = prepare_sft(settings)
    except EmptyPart as error:
        # The default shares may leave a small file without a validation row. Shares that the user gave are kept.
        if settings.given & {"val_share", "test_share"}:
            raise
        taken = ", ".join(f"--{name}={share:g}" for name, share in error.advised.items())
        print(f"note: {error}; taken: {taken}")
        for name, share in error.advised.items():
            setattr(settings, name, share)
        meta, warnings = prepare_sft(settings)
    print(dropped_text(meta))
    print("rows by form: " + ", ".join(f"{form} {count}" for form, count in meta["forms"].items()))
    for line in chat_lines(meta):
        print(line)
    print(f"questions {meta['questions']}; whose article is not known: {meta['without_article']}")
    for part, counts in meta["parts"].items():
        print(f"{part}: {counts['rows']} rows of {meta['block_size']}, {counts['tokens']} tokens")
    for line in [*warnings, *small_part_warnings(meta, settings)]:
        print(line)
    print(f"written to {settings.sft_data_dir}")


if __name__ == "__main__":
    run_script(main)
