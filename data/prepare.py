"""Articles to rows: reads a corpus of any size, cleans, cuts at sentences, writes train.bin, val.bin and meta.json.

    python data/prepare.py                                        # the embedded corpus, GPT-2's tokenizer
    python data/prepare.py --input_dir=my_wiki --overflow=split
    python data/prepare.py --input_dir=novel.txt                  # plain text: cut into rows whole
    python data/prepare.py config/wiki_config.py --report         # a whole Wikipedia, as data/download.py fetches it

A row of the input is {"id", "title", "text"}, or a text itself; `--help` lists the settings. The same command
resumes a run that was stopped or killed. The bytes that are written do not depend on the number of processes.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from minigpt.common.cli import Signals, run_script
from minigpt.common.errors import UserError
from minigpt.corpus.losses import check_losses
from minigpt.corpus.pipeline import plan_corpus, prepare_blocks, subject_shares
from minigpt.corpus.progress import PrepareProgress, fingerprint
from minigpt.corpus.records import dropped_text
from minigpt.corpus.row_files import RowWriter, refuse_to_replace
from minigpt.corpus.sources import article_blocks, find_articles
from minigpt.corpus.splits import check_parts, small_part_warnings
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import PrepareSettings
from minigpt.tokenizer import load_tokenizer

SAVE_SECONDS = 10.0  # most work that a kill costs
MIN_BYTES_PER_WORKER = 8 << 20  # less work than that is done before a process has started


def remaining_blocks(settings, files, place):
    """Yields the blocks of files behind a place: (index of a file, blocks of it that are done)."""
    for index, path in enumerate(files[place[0] :], start=place[0]):
        for count, block in enumerate(article_blocks(path, settings), start=1):
            if index > place[0] or count > place[1]:
                yield block


def choose_workers(settings, n_bytes):
    """Number of processes: the setting, or one for each core but no more than n_bytes are worth."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return settings.workers or max(1, min(cores, n_bytes // MIN_BYTES_PER_WORKER))


def prepare(settings, files):
    """Writes the rows of all articles of files; returns the meta, and lines that warn of losses.

    Raises UserError where nearly everything was dropped, or there is nothing to train or to validate on.
    """
    tokenizer = load_tokenizer(settings.tokenizer)
    plan = plan_corpus(settings, files)
    signals, last_save = Signals(), time.monotonic()
    total_bytes = sum(map(os.path.getsize, files))
    with (
        RowWriter(settings.data_dir, ["train", "val"], settings.block_size, tokenizer, resumable=True) as writer,
        PrepareProgress(settings, plan, writer, fingerprint(settings, files, tokenizer)) as progress,
    ):
        if progress.n_bytes:
            print(f"resuming an interrupted preparation: {progress.n_bytes / max(1, total_bytes):.0%} is done")
        workers = choose_workers(settings, total_bytes - progress.n_bytes)
        done = progress.n_bytes
        with tqdm(total=total_bytes, initial=done, unit="B", unit_scale=True, desc="prepare", smoothing=0.05) as bar:
            try:
                for block in prepare_blocks(remaining_blocks(settings, files, progress.place), settings, plan, workers):
                    progress.add(block, files)
                    bar.set_postfix_str(f"articles={progress.kept}", refresh=False)
                    bar.update(block.n_bytes)
                    if signals.asked:
                        break
                    if time.monotonic() - last_save > SAVE_SECONDS:
                        progress.save()
                        last_save = time.monotonic()
            except UserError:
                if not signals.asked:  # else the signal has ended the workers, too
                    raise
        if signals.asked:
            progress.wait()  # a save that is under way lacks the last blocks
            progress.save()
            progress.wait()
            print("stopped; the same command resumes from here", file=sys.stderr)
            raise KeyboardInterrupt
        try:
            warnings = check_losses(progress.losses())
            rows = {part: counts["rows"] for part, counts in writer.counts.items()}
            if not all(rows.values()):
                check_parts(rows, settings, subject_shares(settings, files), progress.hint_for_more_rows())
        except UserError:
            writer.discard()  # there is nothing to resume
            raise
        return progress.finish(files), warnings


def main():
    settings = load_settings(PrepareSettings)
    files = find_articles(settings, leave_out=settings.data_dir)
    refuse_to_replace(settings, "data_dir", "input_dir", files)
    meta, warnings = prepare(settings, files)
    print(dropped_text(meta))
    cleaning = meta["cleaning"]
    changed = ", ".join(f"{name} {cleaning['changed'].get(name, 0)}" for name in cleaning["steps"])
    print(f"articles {meta['articles']}; changed by step: {changed or 'none'}")
    print(f"characters cut: {meta['characters_cut']}")
    if len(meta["inputs"]) > 1:
        total = max(1, sum(counts["tokens"] for counts in meta["inputs"].values()))
        for name, counts in meta["inputs"].items():
            print(f"{name}: {counts['rows']} rows, {counts['tokens']} tokens, {counts['tokens'] / total:.1%} of all")
    for part, counts in meta["parts"].items():
        print(
            f"{part}: {counts['rows']} rows of {meta['block_size']}, {counts['tokens']} tokens, "
            f"{counts['characters']} characters, {counts['tokens_per_character']:.2f} tokens a character"
        )
    print(f"parts: {meta['split']}")
    for line in [*warnings, *small_part_warnings(meta, settings)]:
        print(line)
    print(f"written to {settings.data_dir}" + (f"; look at {settings.data_dir}/report.html" if settings.report else ""))


if __name__ == "__main__":
    run_script(main)
