"""Measures `data/prepare.py` on a gigabyte, beside the rate at which tiktoken alone encodes the same text.

The corpora are made by `minigpt.bench.corpora`. That for the step `near` has hardly any near duplicates, so that nearly
all of its articles are kept and later ones are compared with them. tiktoken runs in one process with the cleaned texts
in memory, before and after our runs. Our time is that of the whole script, with its compiled code on the disk.
"""

import json
import os
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch

from minigpt.bench.common import call_in_process, count_cores, machine_name, publish_results, run_quietly
from minigpt.bench.corpora import varied_articles, write_varied
from minigpt.corpus.cleaning import drop_litter, drop_title
from minigpt.evaluation.tables import markdown_table
from minigpt.tokenizer import load_tokenizer

CORPUS_BYTES, QUICK_CORPUS_BYTES = 10**9, 2 * 10**8
STEP_BYTES = 2 * 10**8  # of the corpus on which further cleaning steps are measured
TIKTOKEN_ARTICLES = 150_000
REPORT_STEPS = ["title", "litter"]
FURTHER_STEPS = [["controls"], ["widths"], ["simplify"], ["templates"], ["short", "foreign"], ["boilerplate"], ["near"]]


def tiktoken_rate(encoding_name, sample):
    """Bytes of jsonl per second whose texts tiktoken encodes, one by one, in this process."""
    encode, texts, n_bytes = load_tokenizer(encoding_name)._encoding.encode_ordinary, [], 0
    for row in islice(varied_articles(), sample):
        n_bytes += len(json.dumps(row, ensure_ascii=False).encode()) + 1
        texts.append(drop_litter(drop_title(row["text"], row["title"])))
    started = time.perf_counter()
    for text in texts:
        encode(text)
    return n_bytes / (time.perf_counter() - started)


def resident_mb(pid):
    """Resident memory of a process and its children, in MB, from Linux's /proc; None elsewhere."""
    total, waiting = 0, [pid]
    while waiting:
        current = waiting.pop()
        try:
            status = Path(f"/proc/{current}/status").read_text(encoding="utf-8")
            total += int(status.partition("VmRSS:")[2].split()[0])
            waiting += map(int, Path(f"/proc/{current}/task/{current}/children").read_text(encoding="utf-8").split())
        except (OSError, IndexError, ValueError):  # the process has ended
            continue
    return total * 1024 / 1e6 or None


def run_prepare(folder, corpus, workers, steps):
    """Run data/prepare.py on a file; returns {"bytes_per_second", "peak_memory_mb"}.

    Raises UserError with the message of a run that failed.
    """
    flags = [f"--input_dir={corpus}", f"--data_dir={folder}/rows", f"--workers={workers}", f"--clean={','.join(steps)}"]
    megabytes = []
    seconds = run_quietly("data/prepare.py", *flags, watch=lambda pid: megabytes.append(resident_mb(pid)))
    peak = max(filter(None, megabytes), default=None)
    return {"bytes_per_second": os.path.getsize(corpus) / seconds, "peak_memory_mb": peak}


def compare_preparing(folder, n_bytes, workers, step_bytes):
    """{"tiktoken": bytes per second, "runs": [{"workers", "steps", "bytes", …}]}, on corpora of two sizes."""
    large, small, mixed = (f"{folder}/{name}.jsonl" for name in ("large", "small", "mixed"))
    write_varied(large, n_bytes)
    write_varied(small, step_bytes)
    write_varied(mixed, step_bytes, mixed=True)
    cases = [(count, REPORT_STEPS, large) for count in dict.fromkeys([1, workers])]
    cases += [(workers, REPORT_STEPS + more, mixed if "near" in more else small) for more in [[], *FURTHER_STEPS]]
    run_prepare(folder, mixed, workers, [*REPORT_STEPS, "near"])  # a machine's first run compiles, which takes seconds
    before, runs = call_in_process(tiktoken_rate, "gpt2", TIKTOKEN_ARTICLES), []
    for count, steps, corpus in cases:
        figures = run_prepare(folder, corpus, count, steps)
        size = n_bytes if corpus == large else step_bytes
        runs.append({"workers": count, "steps": steps, "bytes": size, **figures})
        print(f"{count} workers, {', '.join(steps)}: {runs[-1]['bytes_per_second'] / 1e6:.1f} MB/s", flush=True)
    return {"tiktoken": (before + call_in_process(tiktoken_rate, "gpt2", TIKTOKEN_ARTICLES)) / 2, "runs": runs}


def tiktoken_share(figures, run):
    """The rate of a run, over tiktoken's rate times the processes of the run."""
    return run["bytes_per_second"] / (run["workers"] * figures["tiktoken"])


def preparing_table(figures):
    """Markdown table of the figures that `compare_preparing` gives."""
    names = ["processes", "cleaning steps", "corpus, MB", "MB/s", "of processes × tiktoken", "peak memory, MB"]
    rows = [
        [
            run["workers"], ", ".join(run["steps"]), f"{run['bytes'] / 1e6:,.0f}",
            f"{run['bytes_per_second'] / 1e6:.1f}", f"{tiktoken_share(figures, run):.0%}",
            f"{run['peak_memory_mb']:,.0f}" if run["peak_memory_mb"] else None,
        ]
        for run in figures["runs"]
    ]  # fmt: skip
    speed = f"tiktoken alone, in one process: {figures['tiktoken'] / 1e6:.1f} MB of jsonl a second."
    return f"{speed}\n\n{markdown_table(names, rows, left=2)}"


def bench_preparing(settings):
    """Measure data/prepare.py; print the table, and write JSON and docs by the settings of bench.py."""
    name = machine_name(torch.device("cpu"))
    size, step_bytes = (QUICK_CORPUS_BYTES, STEP_BYTES // 4) if settings.quick else (CORPUS_BYTES, STEP_BYTES)
    print(f"{name}\nwriting {size / 1e9:g} GB of articles …", flush=True)
    with tempfile.TemporaryDirectory(prefix="minigpt-bench-") as folder:
        figures = compare_preparing(folder, size, count_cores(), step_bytes)
    shares = {
        f"{run['workers']} {','.join(run['steps'])} {run['bytes']}": tiktoken_share(figures, run)
        for run in figures["runs"]
    }
    values = {"machine": name, **figures, "shares": shares}
    publish_results(settings, f"Preparing: {name}", preparing_table(figures), values)
