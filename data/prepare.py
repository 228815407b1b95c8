"""Articles to rows: reads a corpus of any size, cleans, cuts at sentences, writes train.bin, val.bin and meta.json.

    python data/prepare.py                                        # the embedded corpus, GPT-2's table
    python data/prepare.py --input_dir=my_wiki --overflow=split
    python data/prepare.py config/wiki_config.py --report         # a whole Wikipedia, as data/download.py fetches it

A row of the input is {"id", "title", "text"}; `--help` lists the settings. A run that was stopped or killed goes on
with the same command; the bytes that it writes are the same with any number of processes.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from minigpt.common.cli import Signals, run_script
from minigpt.common.errors import UserError
from minigpt.corpus.checks import refuse_to_replace, small_parts
from minigpt.corpus.mixing import file_weights
from minigpt.corpus.pipeline import prepared_blocks
from minigpt.corpus.progress import Tally, fingerprint
from minigpt.corpus.readers import read_blocks
from minigpt.corpus.records import dropped_text, find_files
from minigpt.corpus.row_files import RowWriter
from minigpt.settings.parse import load_settings
from minigpt.tokenizer import load_tokenizer

SAVE_SECONDS = 10.0  # of work that a kill costs at most
BYTES_A_WORKER = 8 << 20  # so little work is done before a process has started


def remaining(files, place):
    """Yields the blocks of files behind a place (file, blocks of it that are done)."""
    for index, path in enumerate(files[place[0] :], start=place[0]):
        for count, block in enumerate(read_blocks(path), start=1):
            if index > place[0] or count > place[1]:
                yield block


def workers_for(settings, n_bytes):
    """Processes that are worth it: as many as asked for, or one a core, but none for next to nothing."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return settings.workers or max(1, min(cores, n_bytes // BYTES_A_WORKER))


def input_files(settings):
    """Sorted paths of the files of articles. Raises UserError where there is none."""
    return find_files(settings.input_dir, plain_text=settings.plain_text, leave_out=settings.data_dir)


def prepare(settings):
    """Write the rows of all articles under settings.input_dir; returns the meta."""
    tokenizer = load_tokenizer(settings.tokenizer)
    files = input_files(settings)
    weights = file_weights(settings, files)
    signals, saved = Signals(), time.monotonic()
    told, size = fingerprint(settings, files, tokenizer), sum(map(os.path.getsize, files))
    with (
        RowWriter(settings.data_dir, ["train", "val"], settings.block_size, tokenizer, resumable=True) as writer,
        Tally(settings, writer, told) as tally,
    ):
        if tally.read:
            print(f"going on with a preparation that was broken off: {tally.read / max(1, size):.0%} is done")
        workers = workers_for(settings, size - tally.read)
        bar = tqdm(total=size, initial=tally.read, unit="B", unit_scale=True, desc="prepare", smoothing=0.05)
        with bar:
            for block in prepared_blocks(remaining(files, tally.place), settings, weights, workers):
                tally.add(block, files)
                bar.set_postfix_str(f"articles={tally.kept}", refresh=False)
                bar.update(block.read)
                if signals.asked:
                    break
                if time.monotonic() - saved > SAVE_SECONDS:
                    tally.save()
                    saved = time.monotonic()
        if signals.asked:
            tally.wait()  # for a save that is under way, which lacks the last blocks
            tally.save()
            tally.wait()
            print("stopped; the same command goes on from here", file=sys.stderr)
            raise KeyboardInterrupt
        if not tally.kept:
            writer.discard()
            places = "; ".join(tally.problems.places[:3])
            raise UserError(f"no article in {', '.join(settings.input_dir)} could be used: {places}")
        return tally.finish(files)


def main():
    settings = load_settings("prepare")
    files = input_files(settings)
    refuse_to_replace(settings, "data_dir", "input_dir", files)
    meta = prepare(settings)
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
            f"{counts['characters']} characters, "
            f"{counts['tokens_per_character']:.2f} tokens a character"
        )
    for line in small_parts(meta, settings):
        print(line)
    print(f"written to {settings.data_dir}" + (f"; look at {settings.data_dir}/report.html" if settings.report else ""))


if __name__ == "__main__":
    run_script(main)
