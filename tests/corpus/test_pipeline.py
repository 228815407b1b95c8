"""Preparing large corpora: the same bytes from any number of processes and after kills; mixing; duplicates; report."""

import gzip
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from corpora import ROOT, byte_tokenizer, made_up_articles, write_jsonl

from minigpt.bench.corpora import varied_articles, write_varied
from minigpt.bench.preparing import resident_mb
from minigpt.corpus import dedup
from minigpt.corpus.dedup import KeySet
from minigpt.corpus.pipeline import sigint_deferred
from minigpt.corpus.row_files import padded_rows

# Runs data/prepare.py in small blocks, saving after each; with a number, it is killed before it takes that block.
DRIVER = """
import os, signal, sys
sys.path[:0] = [{root!r}, {root!r} + "/data"]
import prepare
from minigpt.corpus.progress import PrepareProgress
from minigpt.corpus.readers import blocks, tables

blocks.BLOCK_BYTES, tables.PARQUET_BLOCK_ROWS, prepare.SAVE_SECONDS = 20_000, 100, 0.0
if __name__ == "__main__":
    last, sys.argv = int(sys.argv[1]), ["prepare.py", *sys.argv[2:]]
    add, count = PrepareProgress.add, 0

    def counted(self, *blocks):
        global count
        count += 1
        if count > last:
            self.wait()  # else a slow disk may have no state yet
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, *blocks)

    PrepareProgress.add = counted
    prepare.run_script(prepare.main)
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus in several forms, with repeated, broken and long articles; `plain` holds its rows, undisturbed."""
    tmp_path = tmp_path_factory.mktemp("corpus")
    rows = list(itertools.islice(varied_articles(), 1500))
    rows[700:700] = [rows[3], {"id": 1}, {"title": "长", "text": "".join(row["text"] for row in rows[:9])}]
    write_jsonl(tmp_path / "wiki/a.jsonl", [*rows[:800], "{", rows[5]])
    with gzip.open(write_jsonl(tmp_path / "wiki/b.jsonl.gz", []), "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows[800:1200])
    table = [{key: str(row[key]) for key in ("id", "title", "text")} for row in rows[1200:]]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "wiki/c.parquet")
    assert drive(tmp_path, 10**9, "--data_dir=plain").returncode == 0
    return tmp_path


def made(folder):
    """{name: bytes} of the files in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def drive(folder, last, *flags):
    driver = folder / "driver.py"
    driver.write_text(DRIVER.format(root=str(ROOT)), encoding="utf-8")
    command = [sys.executable, str(driver), str(last), "--input_dir=wiki", "--overflow=split", *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", timeout=240)


def test_two_processes_and_three_kills_give_the_bytes_of_one_undisturbed_process(corpus):
    steps = "--clean=controls,widths,simplify,templates,title,litter,short,foreign,boilerplate,near"
    flags = [steps, "--block_size=128", "--report", "--val_share=0.3", "--min_chars=20"]
    undisturbed = drive(corpus, 10**9, *flags, "--data_dir=one", "--workers=1")
    assert undisturbed.returncode == 0, undisturbed.stderr
    expected = made(corpus / "one")
    assert set(expected) == {"train.bin", "val.bin", "meta.json", "report.html"}
    meta = json.loads(expected["meta.json"])
    assert (
        meta["dropped"]["exact duplicate"] == 2 and meta["dropped"]["bad JSON"] == 1 and meta["inputs"]["wiki"]["rows"]
    )

    for last, workers in ((5, 1), (4, 2), (7, 1)):
        killed = drive(corpus, last, *flags, "--data_dir=two", f"--workers={workers}")
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert set(made_names(corpus / "two")) == {".unfinished"}
    finished = drive(corpus, 10**9, *flags, "--data_dir=two", "--workers=2")
    assert "resuming" in finished.stdout and finished.returncode == 0, finished.stderr
    assert made(corpus / "two") == expected


KILLED_AT_THE_END = """
import os, signal, sys
sys.path[:0] = [{root!r}, {root!r} + "/data"]
import prepare
from minigpt.corpus import row_files

prepare.SAVE_SECONDS = 0.0
moved = row_files.replace_file

def move_and_die(*names):
    moved(*names)
    os.kill(os.getpid(), signal.SIGKILL)

row_files.replace_file = move_and_die
sys.argv = ["prepare.py", "--input_dir=wiki", "--workers=1", "--overflow=split", "--data_dir=moved"]
prepare.run_script(prepare.main)
"""


def test_a_kill_while_the_rows_are_put_in_place_leaves_nothing_that_the_next_run_resumes(corpus):
    driver = corpus / "killed_at_the_end.py"
    driver.write_text(KILLED_AT_THE_END.format(root=str(ROOT)), encoding="utf-8")
    killed = subprocess.run([sys.executable, str(driver)], cwd=corpus, capture_output=True, timeout=240)
    assert killed.returncode == -signal.SIGKILL and not (corpus / "moved/meta.json").exists()
    assert drive(corpus, 10**9, "--data_dir=moved").returncode == 0
    assert made(corpus / "moved") == made(corpus / "plain")


def test_a_state_whose_rows_are_missing_is_not_resumed(corpus):
    assert drive(corpus, 8, "--data_dir=cut").returncode == -signal.SIGKILL
    (corpus / "cut/.unfinished/train.bin").write_bytes(b"")
    again = drive(corpus, 9, "--data_dir=cut")
    assert "not complete" in again.stdout and again.returncode == -signal.SIGKILL
    assert "resuming" in drive(corpus, 10**9, "--data_dir=cut").stdout
    assert made(corpus / "cut") == made(corpus / "plain")


HOSTILE = {
    "spaces": "桥" + " \u200b" * 100_000 + "河。",
    "no whole tokens": "恶" * 400 + "。",
    "links": "桥" + "[http://a" + " \u200b" * 50_000 + "。",
    "ends": "。" * 5000,
    "apostrophes": "'s，" * 400 + "。",
}


@pytest.mark.parametrize("overflow", ["truncate", "split"])
def test_hostile_texts_stop_no_run(tmp_path, script, overflow):
    write_jsonl(tmp_path / "wiki/a.jsonl", [{"text": text} for text in [*HOSTILE.values(), "好。"]])
    run = script("data/prepare.py", "--input_dir=wiki", f"--overflow={overflow}", "--clean=controls,templates,litter")
    assert run.returncode == 0 and "articles 6" in run.stdout, run.stderr


def test_held_out_subjects_are_found_in_traditional_and_simplified_characters(tmp_path, script):
    write_jsonl(
        tmp_path / "wiki/a.jsonl", [{"title": "鐵橋", "text": "鐵橋在河上。"}, {"title": "河", "text": "河在橋下。"}]
    )
    (tmp_path / "held.txt").write_text("鐵橋\n", encoding="utf-8")
    run = script("data/prepare.py", "--input_dir=wiki", "--heldout=held.txt", "--clean=simplify", "--val_share=0.99")
    assert run.returncode == 0 and "no article" not in run.stdout
    meta = json.loads((tmp_path / "data/processed/meta.json").read_text(encoding="utf-8"))
    assert meta["parts"]["train"]["rows"] == 1


def made_names(folder):
    return [path.name for path in folder.iterdir()]


def test_an_interrupted_preparation_with_other_settings_or_files_starts_again(corpus):
    assert drive(corpus, 5, "--data_dir=other", "--block_size=256").returncode == -signal.SIGKILL
    other = drive(corpus, 10**9, "--data_dir=other")
    assert "starting again" in other.stdout and made(corpus / "other") == made(corpus / "plain")
    assert drive(corpus, 5, "--data_dir=touched").returncode == -signal.SIGKILL
    os.utime(corpus / "wiki/a.jsonl", (1, 1))
    assert "starting again" in drive(corpus, 10**9, "--data_dir=touched").stdout
    assert drive(corpus, 5, "--data_dir=older").returncode == -signal.SIGKILL
    state = corpus / "older/.unfinished/state.json"
    state.write_text(
        state.read_text(encoding="utf-8").replace('\\"version\\": 4', '\\"version\\": 3'), encoding="utf-8"
    )
    assert "another version of MiniGPT: starting again" in drive(corpus, 10**9, "--data_dir=older").stdout


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot defer Ctrl-C")
def test_a_process_that_starts_while_ctrl_c_is_deferred_outlives_it():
    with sigint_deferred():
        process = get_context("spawn").Process(target=sys.exit, args=(7,))
        process.start()
    os.kill(process.pid, signal.SIGINT)  # while its interpreter starts
    process.join()
    assert process.exitcode == 7 and signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def interrupt_when(folder, words):
    """(exit status, further lines) of a preparation with two workers that gets Ctrl-C once it has printed the words."""
    command = [sys.executable, str(ROOT / "data/prepare.py"), "--input_dir=wiki", "--workers=2"]
    new_group = (
        {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
    )
    run = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, encoding="utf-8", **new_group)
    said = ""
    while words not in said:
        said += run.stderr.read(1)
    os.killpg(run.pid, signal.SIGINT) if os.name != "nt" else run.send_signal(signal.CTRL_BREAK_EVENT)
    _, said = run.communicate(timeout=600)  # for a hang
    return run.returncode, said


def test_ctrl_c_keeps_what_is_done_and_the_same_command_resumes(tmp_path, script):
    count = write_varied(tmp_path / "wiki/a.jsonl", 24_000_000)
    # While the workers start, and once the first block has been taken.
    for words in ("prepare:", "articles="):
        status, said = interrupt_when(tmp_path, words)
        assert status == 130 and "resumes" in said and "Traceback" not in said, said
    done = script("data/prepare.py", "--input_dir=wiki", "--workers=2")
    assert "resuming" in done.stdout and done.returncode == 0, done.stderr
    meta = json.loads((tmp_path / "data/processed/meta.json").read_text(encoding="utf-8"))
    assert sum(part["rows"] for part in meta["parts"].values()) == count == meta["articles"]


def test_two_preparations_of_one_folder_do_not_mix(tmp_path, script):
    from filelock import FileLock

    write_jsonl(tmp_path / "wiki/a.jsonl", made_up_articles(2))
    (tmp_path / "out/.unfinished").mkdir(parents=True)
    with FileLock(tmp_path / "out/.unfinished/lock"):
        run = script("data/prepare.py", "--input_dir=wiki", "--data_dir=out")
    assert run.returncode == 1 and "another run is writing to out" in run.stderr


def test_weights_repeat_articles_of_the_training_part(tmp_path, script):
    articles = made_up_articles(120)
    for name, rows in (("a", articles[:180]), ("b", articles[180:])):
        write_jsonl(tmp_path / name / "x.jsonl", rows)
    flags = ["data/prepare.py", "--input_dir=a,b", "--val_share=0.2"]
    plain, mixed = (json.loads(finished(tmp_path, script(*flags, *more))) for more in ([], ["--weights=2.5,0.5"]))
    assert mixed["parts"]["val"] == plain["parts"]["val"]  # each is used once
    in_val = {name: plain["inputs"][name]["rows"] for name in "ab"}
    rows = {name: mixed["inputs"][name]["rows"] for name in "ab"}
    assert 2.2 * 180 * 0.8 < rows["a"] < 2.5 * in_val["a"] and 0.45 * 180 < rows["b"] < 0.75 * in_val["b"]
    assert sum(rows.values()) == sum(part["rows"] for part in mixed["parts"].values())


def finished(folder, run):
    assert run.returncode == 0, run.stderr
    return (folder / "data/processed/meta.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--weights=1"], "1 weights for 2 input_dir"),
        (["--weights=1,x"], "weights wants a list of float"),
        (["--weights=1,-2"], "at least 0"),
        (["--clean=title,sort"], "clean is one of"),
        (["--near_share=1.5"], "near_share"),
    ],
)
def test_wrong_weights_and_steps_are_explained_in_one_line(tmp_path, script, flags, message):
    for name in "ab":
        write_jsonl(tmp_path / name / "x.jsonl", made_up_articles(1))
    run = script("data/prepare.py", "--input_dir=a,b", *flags)
    assert run.returncode == 1 and message in run.stderr and "Traceback" not in run.stderr


# The pieces


def test_a_key_set_agrees_with_a_python_set_also_when_it_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(dedup, "MERGE_KEYS", 300)
    monkeypatch.setattr(dedup, "READ_KEYS", 1000)
    rng, seen = np.random.default_rng(0), set()
    keys = KeySet(tmp_path)
    for step in range(60):
        batch = rng.integers(0, 4000, size=100, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        expected = [not (key in seen or seen.add(key)) for key in batch.tolist()]
        assert keys.add(batch).tolist() == expected
        if step % 20 == 10:  # what was added since the last flush is forgotten
            keys.flush()
            count, kept = keys.count, set(seen)
            keys.add(rng.integers(0, 2**63, size=50, dtype=np.uint64))
            keys.close()
            keys, seen = KeySet(tmp_path), kept
            keys.resume(count)
    keys.close()
    assert (tmp_path / "keys.log").stat().st_size == 8 * len(seen) > 8 * 1000


def test_rows_padded_together_are_those_padded_one_by_one():
    tokenizer = byte_tokenizer()
    lists = [[1, 2, 3], [], list(range(15)), [9]]
    ids = np.array([i for each in lists for i in each], dtype=np.uint16)
    rows = padded_rows(ids, np.array(list(map(len, lists))), 16, tokenizer)
    for row, ids in zip(rows.tolist(), lists, strict=True):
        assert row == [*ids, tokenizer.eot_id, *[tokenizer.pad_id] * (15 - len(ids))]


def test_the_report_shows_counts_and_escaped_examples(tmp_path, script):
    write_jsonl(tmp_path / "wiki/a.jsonl", [*made_up_articles(20), {"title": "<b>坏</b>", "text": "没有句末<script>"}])
    assert script("data/prepare.py", "--input_dir=wiki", "--report").returncode == 0
    page = (tmp_path / "data/processed/report.html").read_text(encoding="utf-8")
    assert (
        "<svg" in page and "no sentence end: 1" in page and "没有句末&lt;script&gt;" in page and "<script" not in page
    )
    assert "wiki/a.jsonl, line 61" in page and '<td class="n">61</td><td class="n">60</td>' in page


# Long runs


@pytest.mark.soak_only
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_a_gigabyte_in_a_gigabyte_of_memory_with_the_same_bytes_from_one_process_two_and_three_kills(tmp_path):
    count = write_varied(tmp_path / "wiki/a.jsonl", 10**9)
    for name, workers, kills in (("one", 1, 0), ("two", 2, 0), ("killed", 2, 3)):
        most, seconds = 0.0, random.Random(name)
        command = [sys.executable, str(ROOT / "data/prepare.py"), "--input_dir=wiki", f"--data_dir={name}"]
        while True:
            run = subprocess.Popen([*command, f"--workers={workers}"], cwd=tmp_path, stderr=subprocess.DEVNULL)
            until = time.monotonic() + seconds.uniform(12, 16) if kills else float("inf")
            while run.poll() is None and time.monotonic() < until:
                most = max(most, resident_mb(run.pid) or 0)
                time.sleep(0.2)
            if run.poll() is not None:
                break
            run.kill()
            run.wait()
            kills -= 1
        assert run.returncode == 0 and kills <= 0 and most < 1000, (name, most)
        print(f"{name}: {most:.0f} MB")
    meta = json.loads((tmp_path / "one/meta.json").read_text(encoding="utf-8"))
    assert meta["articles"] == count and not meta["dropped"]
    for name in ("two", "killed"):
        for file in ("train.bin", "val.bin", "meta.json"):
            assert subprocess.run(["cmp", tmp_path / "one" / file, tmp_path / name / file]).returncode == 0
