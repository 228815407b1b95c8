"""Articles to rows: reads wiki jsonl, cleans, cuts at sentences, and writes train.bin, val.bin and meta.json.

    python data/prepare.py                                        # the embedded corpus, GPT-2's table
    python data/prepare.py --input_dir=my_wiki --overflow=split
    python data/prepare.py config/demo.py                         # the demo's table and block

A row of the input is {"id", "title", "text"}; `--help` lists the settings.
"""

import hashlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from configurator import load_settings
from corpus import (
    CUTS,
    SENTENCE_END,
    Problems,
    clean,
    drop_title,
    dropped_text,
    find_files,
    pretrain_part,
    read_articles,
    read_heldout,
)
from data_utils import RowWriter
from errors import UserError, run_script
from tokenizer import load_tokenizer

NO_END, TOO_LONG, DUPLICATE = "no sentence end", "first sentence longer than the block", "exact duplicate"


class Preparer:
    """Turns articles into rows one at a time, counting what it sees."""

    def __init__(self, settings, tokenizer, writer, problems):
        self.settings, self.writer, self.problems = settings, writer, problems
        self.encode = tokenizer.encode
        self.cut = CUTS[settings.overflow]
        self.heldout = read_heldout(settings.heldout)
        self.heldout_seen, self.digests = set(), set()
        self.articles = self.cut_characters = 0

    def add(self, line, article):
        """Clean, cut and write one article, or count why it was dropped."""
        self.articles += 1
        text = clean(drop_title(article.text, article.title))
        if not SENTENCE_END.search(text):
            return self.problems.add(NO_END, article.source, line)
        digest = hashlib.sha256(text.encode()).digest()
        if digest in self.digests:
            return self.problems.add(DUPLICATE, article.source, line)
        self.digests.add(digest)
        rows, lost = self.cut(text, self.encode, self.settings.block_size - 1)
        if not rows:
            return self.problems.add(TOO_LONG, article.source, line)
        if article.subject in self.heldout:
            self.heldout_seen.add(article.subject)
        self.cut_characters += lost
        part = pretrain_part(article.subject, self.settings.val_share, self.heldout)
        for ids, n_chars in rows:
            self.writer.add(part, ids, n_chars)


def prepare(settings):
    """Write the rows of all articles under settings.input_dir; returns the meta."""
    tokenizer = load_tokenizer(settings.tokenizer)
    files = find_files(settings.input_dir)
    problems = Problems()
    with RowWriter(settings.data_dir, ["train", "val"], settings.block_size, tokenizer) as writer:
        preparer = Preparer(settings, tokenizer, writer, problems)
        with tqdm(total=sum(map(os.path.getsize, files)), unit="B", unit_scale=True, desc="prepare") as bar:
            for line, article in read_articles(files, problems, bar.update):
                preparer.add(line, article)
        if not any(part["rows"] for part in writer.counts.values()):
            raise UserError(
                f"no article in {', '.join(settings.input_dir)} could be used: " + "; ".join(problems.places[:3])
            )
        missing = sorted(preparer.heldout - preparer.heldout_seen)
        if missing:
            print(f"warning: {len(missing)} held-out subjects have no article: {', '.join(missing[:5])}")
        return writer.finish(
            {
                "stage": "pretrain",
                "overflow": settings.overflow,
                "articles": preparer.articles,
                **problems.about(),
                "characters_cut": preparer.cut_characters,
                "sources": files,
            }
        )


def main():
    settings = load_settings("prepare")
    meta = prepare(settings)
    print(dropped_text(meta))
    print(f"articles {meta['articles']}; characters cut: {meta['characters_cut']}")
    for part, counts in meta["parts"].items():
        print(
            f"{part}: {counts['rows']} rows of {meta['block_size']}, {counts['tokens']} tokens, "
            f"{counts['characters']} characters, "
            f"{counts['tokens_per_character']:.2f} tokens a character"
        )
    print(f"written to {settings.data_dir}")


if __name__ == "__main__":
    run_script(main)
