"""Files that commit b58f9b1 wrote still work: tests/fixtures/b58f9b1 has them, and what that commit computed from them.

A change of a saved key, of the arithmetic or of a file's format shows here. The README there says how they were made.
"""

import json
import shutil

import pytest
from corpora import ROOT
from evaluation_fakes import load_script, run_here
from runs import finish_run, log_of
from serving_fakes import serving

from minigpt.settings.parse import load_settings
from minigpt.settings.stages import TrainSettings

OLD = ROOT / "tests/fixtures/b58f9b1"
EXPECTED = json.loads((OLD / "expected.json").read_text(encoding="utf-8"))
EXACT = ["--device=cpu", "--dtype=float32"]
MODEL = ["--n_layer=2", "--n_head=2", "--n_embd=16", "--block_size=64", "--batch_size=8", "--min_lr_ratio=0.01"]
TRAIN = [*MODEL, "--dtype=float32", "--device=cpu", "--compile=off", "--warmup_iters=10"]
RUNS = {
    "resumed": ["--init_from=resume", f"--data_dir={OLD / 'rows'}", "--max_iters=306"],
    "fine-tuned": [
        f"--init_from={OLD / 'pretrained/ckpt.pt'}", f"--data_dir={OLD / 'rows_sft'}", "--max_iters=6",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", ["pretrained", "tuned"])
def test_an_old_checkpoint_gives_the_old_greedy_text(name, monkeypatch, capsys, tmp_path):
    old = EXPECTED["texts"][name]
    flags = [f"--ckpt={OLD / name / 'ckpt.pt'}", f"--prompt={old['prompt']}"]
    run_here(monkeypatch, tmp_path, load_script("sample.py"), *flags, *EXACT, "--temperature=0", "--max_new_tokens=40")
    assert capsys.readouterr().out == old["printed"]


@pytest.mark.numeric
@pytest.mark.parametrize(("name", "rows", "part"), [("pretrained", "rows", "val"), ("tuned", "rows_sft", "test")])
def test_an_old_checkpoint_has_the_old_loss_on_old_rows(name, rows, part, monkeypatch, tmp_path):
    script = load_script("evaluations-perplexity.py")
    flags = [f"--ckpt={OLD / name / 'ckpt.pt'}", f"--data_dir={OLD / rows}", f"--split={part}", "--json=figures.json"]
    run_here(monkeypatch, tmp_path, script, *flags)
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    for key, old in EXPECTED["figures"][name].items():
        assert figures[key] == pytest.approx(old, abs=1e-4)


def test_the_server_answers_with_old_checkpoints():
    texts = EXPECTED["texts"]
    checkpoints = ",".join(str(OLD / name / "ckpt.pt") for name in texts)
    with serving(ROOT / "server.py", f"--ckpt={checkpoints}", *EXACT) as server:
        for name, old in texts.items():
            fields = {"model": name, "prompt": old["prompt"], "stream": False, "temperature": 0, "max_new_tokens": 40}
            status, answer = server.post("/generate", **fields)
            shown = old["prompt"] if name == "pretrained" else ""  # sample.py prints the beginning of a text too
            assert (status, shown + answer["text"]) == (200, old["printed"].rstrip("\n"))


@pytest.mark.numeric
def test_training_goes_on_from_old_checkpoints_with_the_old_losses(tmp_path):
    """Resuming last.pt restores the optimizers too: its losses hold them, the schedule and the order of rows."""
    shutil.copytree(OLD / "pretrained", tmp_path / "resumed")
    steps = ["--log_interval=1", "--eval_interval=3"]
    for name, flags in RUNS.items():
        settings = load_settings(TrainSettings, [*TRAIN, *flags, f"--out_dir={tmp_path / name}", *steps])
        finish_run(**settings.to_dict())
        for line, old in zip(log_of(tmp_path / name)[-6:], EXPECTED["logs"][name], strict=True):
            assert {key: line[key] for key in old} == pytest.approx(old, abs=1e-4)
