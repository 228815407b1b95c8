"""`data/prepare.py` on a corpus of a gigabyte, beside the rate at which tiktoken alone encodes the same text.

The corpus is the embedded one, varied (`minigpt.bench.corpora`). tiktoken's rate is that of one process that has the
cleaned texts in memory, before and after our runs. Ours begin with starting the script and end with the files in place.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch

from minigpt.bench.common import in_process, machine, write_docs
from minigpt.bench.corpora import varied_articles, write_varied
from minigpt.common.errors import UserError
from minigpt.common.files import PROJECT, write_json
from minigpt.corpus.cleaning import drop_litter, drop_title
from minigpt.tokenizer import load_tokenizer

BYTES, QUICK_BYTES = 10**9, 2 * 10**8
STEP_BYTES, NEAR_BYTES = 2 * 10**8, 10**7  # what the further steps are measured on; MinHash takes its time
SAMPLE = 150_000  # articles that tiktoken encodes
REPORT_STEPS = ["title", "litter"]
FURTHER = [["controls"], ["widths"], ["simplify"], ["templates"], ["short", "foreign"], ["boilerplate"], ["near"]]


def tiktoken_rate(encoding_name, sample):
    """Bytes of jsonl whose texts tiktoken encodes a second, one by one, in this process."""
    encode, texts, n_bytes = load_tokenizer(encoding_name)._encoding.encode_ordinary, [], 0
    for row in islice(varied_articles(), sample):
        n_bytes += len(json.dumps(row, ensure_ascii=False).encode()) + 1
        texts.append(drop_litter(drop_title(row["text"], row["title"])))
    started = time.perf_counter()
    for text in texts:
        encode(text)
    return n_bytes / (time.perf_counter() - started)


def resident_mb(pid):
    """MB of memory that a process and its children have, from Linux's /proc; None elsewhere."""
    total, waiting = 0, [pid]
    while waiting:
        each = waiting.pop()
        try:
            status = Path(f"/proc/{each}/status").read_text(encoding="utf-8")
            total += int(status.partition("VmRSS:")[2].split()[0])
            waiting += map(int, Path(f"/proc/{each}/task/{each}/children").read_text(encoding="utf-8").split())
        except (OSError, IndexError, ValueError):  # it has ended
            continue
    return total * 1024 / 1e6 or None


def run_prepare(folder, corpus, workers, steps):
    """{"bytes_per_second", "peak_memory_mb"} of data/prepare.py on a file. Raises UserError with its message."""
    flags = [f"--input_dir={corpus}", f"--data_dir={folder}/rows", f"--workers={workers}", f"--clean={','.join(steps)}"]
    started, most = time.perf_counter(), None
    with tempfile.TemporaryFile() as said:
        run = subprocess.Popen([sys.executable, str(PROJECT / "data/prepare.py"), *flags], stdout=said, stderr=said)
        while run.poll() is None:
            most = max(filter(None, (most, resident_mb(run.pid))), default=None)
            time.sleep(0.1)
        seconds = time.perf_counter() - started
        said.seek(0)
        lines = said.read().decode("utf-8", errors="replace").splitlines()
    if run.returncode:
        raise UserError(f"prepare.py: {lines[-1]}")
    return {"bytes_per_second": os.path.getsize(corpus) / seconds, "peak_memory_mb": most}


def compare(folder, n_bytes, workers, step_bytes, near_bytes):
    """{"tiktoken": bytes a second, "runs": [{"workers", "steps", "bytes", …}]}, all of the same articles."""
    corpora = {size: f"{folder}/{size}.jsonl" for size in {n_bytes, step_bytes, near_bytes}}
    for size, path in corpora.items():
        write_varied(path, size)
    cases = [(count, REPORT_STEPS, n_bytes) for count in dict.fromkeys([1, workers])]
    cases.append((workers, REPORT_STEPS, step_bytes))
    cases += [(workers, REPORT_STEPS + more, near_bytes if "near" in more else step_bytes) for more in FURTHER]
    before, runs = in_process(tiktoken_rate, "gpt2", SAMPLE), []
    for count, steps, size in cases:
        runs.append(
            {"workers": count, "steps": steps, "bytes": size, **run_prepare(folder, corpora[size], count, steps)}
        )
        print(f"{count} workers, {', '.join(steps)}: {runs[-1]['bytes_per_second'] / 1e6:.1f} MB/s", flush=True)
    return {"tiktoken": (before + in_process(tiktoken_rate, "gpt2", SAMPLE)) / 2, "runs": runs}


def share_of(figures, run):
    """A run's rate as a share of its processes times tiktoken's."""
    return run["bytes_per_second"] / (run["workers"] * figures["tiktoken"])


def as_table(figures):
    """The figures as Markdown."""
    lines = [
        f"tiktoken alone, in one process: {figures['tiktoken'] / 1e6:.1f} MB of jsonl a second.",
        "",
        "| processes | cleaning steps | corpus, MB | MB/s | of processes × tiktoken | peak memory, MB |",
        "|---" * 6 + "|",
    ]
    for run in figures["runs"]:
        memory = f"{run['peak_memory_mb']:,.0f}" if run["peak_memory_mb"] else "–"
        lines.append(
            f"| {run['workers']} | {', '.join(run['steps'])} | {run['bytes'] / 1e6:,.0f} "
            f"| {run['bytes_per_second'] / 1e6:.1f} | {share_of(figures, run):.0%} | {memory} |"
        )
    return "\n".join(lines)


def bench(settings):
    """Measure preparing: table, JSON and docs by the settings of bench.py."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    name, size = machine(torch.device("cpu")), QUICK_BYTES if settings.quick else BYTES
    print(f"{name}\nwriting {size / 1e9:g} GB of articles …", flush=True)
    with tempfile.TemporaryDirectory(prefix="minigpt-bench-") as folder:
        figures = compare(folder, size, cores, STEP_BYTES // 4 if settings.quick else STEP_BYTES, NEAR_BYTES)
    table = as_table(figures)
    print(f"\n{table}")
    if settings.json:
        shares = {
            f"{run['workers']} {','.join(run['steps'])} {run['bytes']}": share_of(figures, run)
            for run in figures["runs"]
        }
        write_json(settings.json, {"machine": name, **figures, "shares": shares})
    if not settings.quick:
        write_docs(settings.docs, f"Preparing: {name}", table)
