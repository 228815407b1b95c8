"""Questions and answers to rows: `question + answer mark + answer + EOT`, in train, val and test parts.

    python data/prepare_sft.py                                    # the embedded questions, GPT-2's table
    python data/prepare_sft.py --qa_files=sft/sft_saves.jsonl --articles=my_wiki

A row of the input is {"question", "answer", "id"}, `id` being its article's; `--help` lists the settings.
"""

import os
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from configurator import load_settings
from corpus import Problems, dropped_text, read_heldout, read_questions, sft_part, subjects_by_id
from data_utils import RowWriter
from errors import UserError, run_script
from tokenizer import load_tokenizer

TOO_LONG, DUPLICATE = "longer than the block", "exact duplicate"


def articles_of(settings):
    """{file of questions: {article id: subject}}; {} for each file when no articles are named."""
    files, articles = settings.qa_files, settings.articles
    if len(articles) > 1 and len(articles) != len(files):
        raise UserError(f"{len(articles)} articles for {len(files)} qa_files: name one for all, or one for each")
    if not articles:
        return {file: {} for file in files}
    if len(articles) == 1:
        return dict.fromkeys(files, subjects_by_id(articles))
    return {file: subjects_by_id([folder]) for file, folder in zip(files, articles, strict=True)}


def prepare_sft(settings):
    """Write the rows of all questions; returns the meta."""
    tokenizer, heldout = load_tokenizer(settings.tokenizer), read_heldout(settings.heldout)
    for file in settings.qa_files:
        if not os.path.isfile(file):
            raise UserError(f"{file} is not there; name your questions with --qa_files=…")
    subjects, problems, seen, found, notes = articles_of(settings), Problems(), set(), set(), Counter()
    with RowWriter(settings.sft_data_dir, ["train", "val", "test"], settings.block_size, tokenizer) as writer:
        with tqdm(
            total=sum(map(os.path.getsize, settings.qa_files)), unit="B", unit_scale=True, desc="prepare_sft"
        ) as bar:
            for line, qa in read_questions(settings.qa_files, problems, bar.update):
                notes["questions"] += 1
                known = subjects[qa.source]
                # A question whose article is not known is split by its id alone.
                key = f"{Path(qa.source).name}:{line if qa.id is None else qa.id}"
                subject = known.get(str(qa.id), key)
                found |= {subject} & heldout
                notes["without_article"] += str(qa.id) not in known
                ids = [*tokenizer.encode(qa.question), tokenizer.answer_id, *tokenizer.encode(qa.answer)]
                if len(ids) + 1 > settings.block_size:
                    problems.add(TOO_LONG, qa.source, line)
                elif (qa.question, qa.answer) in seen:
                    problems.add(DUPLICATE, qa.source, line)
                else:
                    seen.add((qa.question, qa.answer))
                    part = sft_part(subject, settings.val_share, settings.test_share, heldout)
                    writer.add(part, ids, len(qa.question) + len(qa.answer))
        if not seen:
            raise UserError(
                f"no question in {', '.join(settings.qa_files)} could be used: " + "; ".join(problems.places[:3])
            )
        if heldout and not found:
            raise UserError(
                f"no question is about a held-out subject of {settings.heldout}; name the articles with --articles=…"
            )
        return writer.finish(
            {
                "stage": "sft",
                **notes,
                **problems.about(),
                "sources": settings.qa_files,
            }
        )


def main():
    settings = load_settings("prepare_sft")
    meta = prepare_sft(settings)
    print(dropped_text(meta))
    print(f"questions {meta['questions']}; whose article is not known: {meta['without_article']}")
    for part, counts in meta["parts"].items():
        print(f"{part}: {counts['rows']} rows of {meta['block_size']}, {counts['tokens']} tokens")
    print(f"written to {settings.sft_data_dir}")


if __name__ == "__main__":
    run_script(main)
