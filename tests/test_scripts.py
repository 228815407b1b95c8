"""The scripts as a user runs them, one after the other in a fresh folder, and the mistakes that a new user makes."""

import json
import runpy
import subprocess
import sys

import pytest
from corpora import ROOT, made_up_articles, made_up_questions, write_jsonl

SHAPE = ["--architecture=qwen3", "--tied=False", "--n_layer=1", "--n_head=2", "--n_kv_head=1", "--n_embd=32"]
MODEL = [*SHAPE, "--block_size=64", "--warmup_iters=2", "--dtype=float32"]
TRAIN = ["train.py", "config.py", *MODEL, "--batch_size=8", "--eval_interval=10"]
CONFIG = 'max_iters = 2 * 10\nlog_interval = 5\nlearning_rate = 3e-3\ndevice = "cpu"\n'


def run(folder, *arguments, stdin=""):
    command = [sys.executable, str(ROOT / arguments[0]), *map(str, arguments[1:])]
    return subprocess.run(command, cwd=folder, input=stdin, capture_output=True, encoding="utf-8", timeout=240)


def done(folder, *arguments, **more):
    process = run(folder, *arguments, **more)
    assert process.returncode == 0, process.stderr
    return process


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which table, rows, a pretrained and a fine-tuned checkpoint were made by the scripts."""
    folder = tmp_path_factory.mktemp("project")
    write_jsonl(folder / "wiki" / "towns.jsonl", made_up_articles())
    write_jsonl(folder / "qa.jsonl", made_up_questions())
    (folder / "config.py").write_text(CONFIG, encoding="utf-8")
    done(folder, "data/train_tokenizer.py", "--input_dir=wiki", "--tokenizer_vocab=400")
    table = "--tokenizer=data/tokenizer.tiktoken"
    done(folder, "data/prepare.py", "--input_dir=wiki", table, "--block_size=64", "--val_share=0.2")
    questions = ["--qa_files=qa.jsonl", "--articles=wiki", "--block_size=64", "--val_share=0.2", "--test_share=0.2"]
    done(folder, "data/prepare_sft.py", *questions, table)
    done(folder, "data/prepare_sft.py", *questions, "--sft_data_dir=data/gpt2_sft")
    done(folder, *TRAIN)
    done(folder, *TRAIN, "--data_dir=data/processed_sft", "--init_from=out/pretrain/ckpt.pt", "--out_dir=out/sft")
    return folder


def test_sample_takes_the_newest_run_and_answers_from_prompt_or_standard_input(trained):
    asked = done(trained, "sample.py", "--prompt=第1镇位于哪里？", "--max_new_tokens=20")
    piped = done(trained, "sample.py", "--max_new_tokens=20", stdin="第1镇位于哪里？\n\n第2镇有几座桥？\n")
    assert "out/sft/ckpt.pt: sft" in asked.stderr.replace("\\", "/")
    assert len(piped.stdout.splitlines()) == 2
    assert piped.stdout.splitlines()[0] == asked.stdout.splitlines()[0]
    assert "##" not in asked.stdout and "�" not in asked.stdout + piped.stdout


def test_sample_continues_a_text_with_a_pretrained_checkpoint(trained):
    said = done(trained, "sample.py", "--ckpt=out/pretrain/ckpt.pt", "--prompt=第1镇位于", "--max_new_tokens=5")
    assert said.stdout.startswith("第1镇位于")


def test_a_prompt_longer_than_the_block_keeps_its_end_and_says_so(trained):
    said = done(trained, "sample.py", "--prompt=" + "很长的问题" * 100, "--max_new_tokens=5")
    assert "leaves no room for an answer" in said.stderr


def test_evaluations_print_and_write_the_same_figures(trained):
    data = "--data_dir=data/processed_sft"
    rouge = done(trained, "evaluations-RougeL.py", data, "--show=3", "--max_new_tokens=20", "--json=rouge.json")
    figures = json.loads((trained / "rouge.json").read_text(encoding="utf-8"))
    meta = json.loads((trained / "data/processed_sft/meta.json").read_text(encoding="utf-8"))
    assert figures["pairs"] == meta["parts"]["test"]["rows"]
    assert rouge.stdout.count("预测 prediction:") == 3
    assert f"exact match {figures['exact_match']:.4f}" in rouge.stdout
    said = done(trained, "evaluations-perplexity.py", data, "--split=test", "--json=ppl.json")
    figures = json.loads((trained / "ppl.json").read_text(encoding="utf-8"))
    assert f"perplexity {figures['perplexity']:.3f}" in said.stdout
    assert 1 < figures["perplexity"] < 400 and figures["bits_per_char"] > 0


def test_a_pretrained_checkpoint_is_measured_on_continuations(trained):
    base = "--ckpt=out/pretrain/ckpt.pt"
    said = done(trained, "evaluations-RougeL.py", base, "--data_dir=data/processed", "--show=1", "--max_new_tokens=9")
    assert "Rouge-L recall" in said.stdout and "问题 question:   第" in said.stdout
    assert "bits per character" in done(trained, "evaluations-perplexity.py", base).stdout


def test_questions_of_a_file_are_asked_and_its_bad_rows_shown(trained):
    write_jsonl(trained / "mine.jsonl", [{"question": "第3镇有几座桥？", "answer": "六座。"}, "{broken"])
    said = done(trained, "evaluations-RougeL.py", "--questions=mine.jsonl", "--max_new_tokens=9").stdout
    assert "1 pairs" in said and "mine.jsonl, line 2: bad JSON" in said


def test_the_plot_is_a_png_of_both_runs(trained):
    done(trained, "visualize.py", "--runs=out/pretrain,out/sft", "--plot=plots/loss.png")
    image = (trained / "plots" / "loss.png").read_bytes()
    assert image.startswith(b"\x89PNG") and len(image) > 10_000
    assert "loss.png" in done(trained, "visualize.py").stdout
    done(trained, "visualize.py", "--runs=out/pretrain,out/sft", "--together", "--plot=plots/together.png")
    assert (trained / "plots" / "together.png").stat().st_size > 1000


def test_help_lists_the_settings_of_the_script_alone(trained):
    said = done(trained, "sample.py", "--help").stdout
    assert "--temperature=0.1" in said and "--learning_rate" not in said


def cut_in_half(folder):
    whole = (folder / "out" / "sft" / "ckpt.pt").read_bytes()
    (folder / "half.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "text.pt").write_text("no checkpoint", encoding="utf-8")


MISTAKES = {
    "training before preparing": ([*TRAIN, "--data_dir=data/none"], ["data/none", "python data/prepare.py"]),
    "fine-tuning before preparing": ([*TRAIN, "--data_dir=data/none_sft"], ["python data/prepare_sft.py"]),
    "a misspelt setting": (["train.py", "--learning_rat=1"], ["learning_rat", "did you mean learning_rate"]),
    "a misspelt setting in a file": (["train.py", "misspelt.py"], ["misspelt.py, line 2", "n_layer"]),
    "a wrong type": (["train.py", "--batch_size=many"], ["batch_size wants int", "'many' (str)"]),
    "a setting of another script": (["sample.py", "--n_layer=3"], ["--n_layer", "train.py", "sample.py"]),
    "a value below the least": (["train.py", "--batch_size=0"], ["batch_size is 0", "at least 1"]),
    "a settings file that is not there": (["train.py", "config/no.py"], ["config/no.py", "not there"]),
    "another block_size": ([*TRAIN, "--block_size=128"], ["128", "64"]),
    "no checkpoint there": (["sample.py", "--ckpt=out/no.pt"], ["out/no.pt", "not there"]),
    "no run at all": (["sample.py", "--out_root=empty"], ["no checkpoint under empty", "train.py"]),
    "a truncated checkpoint": (["sample.py", "--ckpt=half.pt", "--prompt=a"], ["half.pt", "truncated"]),
    "text for a checkpoint": (["sample.py", "--ckpt=text.pt", "--prompt=a"], ["text.pt", "no checkpoint"]),
    "fine-tuning from a truncated checkpoint": ([*TRAIN, "--init_from=half.pt"], ["half.pt", "truncated"]),
    "fine-tuning data of another tokenizer": (
        [*TRAIN, "--data_dir=data/gpt2_sft", "--init_from=out/pretrain/ckpt.pt"],
        ["gpt2", "tokenizer.tiktoken", "prepare"],
    ),
    "measuring on data of another tokenizer": (
        ["evaluations-RougeL.py", "--data_dir=data/gpt2_sft"],
        ["gpt2", "tokenizer.tiktoken"],
    ),
    "Rouge-L on rows of another stage": (
        ["evaluations-RougeL.py"],
        ["pretrain", "sft", "--data_dir=data/processed_sft"],
    ),
    "perplexity on rows of another stage": (["evaluations-perplexity.py"], ["--data_dir=data/processed_sft"]),
    "no questions there": (["evaluations-RougeL.py", "--questions=no.jsonl"], ["no.jsonl", "not there"]),
    "no log to draw": (["visualize.py", "--out_root=empty"], ["no log.jsonl", "train"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_in_one_clear_line(trained, mistake, monkeypatch, capsys):
    """In this process, since twenty others would take a minute to load torch."""
    cut_in_half(trained)
    (trained / "misspelt.py").write_text("batch_size = 8\nn_layers = 4\n", encoding="utf-8")
    (script, *arguments), said = MISTAKES[mistake]
    monkeypatch.chdir(trained)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    error = capsys.readouterr().err
    lines = error.strip().splitlines()
    assert stopped.value.code == 1
    assert len(lines) == 1 and lines[0].startswith("error: "), error
    for words in said:
        assert words in lines[0]
