"""Heads as train.py trains them: learned, loaded, shown while they train, asked by sample.py; refused elsewhere."""

import runpy
import sys
from types import SimpleNamespace

import pytest
from corpora import ROOT
from runs import TINY, byte_tokenizer, finish_run, write_stages

from minigpt.common.errors import UserError
from minigpt.corpus.row_files import RowWriter
from minigpt.corpus.task_rows import make_task_row
from minigpt.corpus.tasks import LabelledExample
from minigpt.evaluation.asking import EvaluatedModel
from minigpt.evaluation.tasks import head_predictor, right_labels
from minigpt.inference.classify import Classifier, open_classifier, open_served
from minigpt.training.validation import sample_line

BLOCK = TINY["block_size"]
SETTINGS = SimpleNamespace(out_root="out", device="cpu", dtype="float32", base="", max_batch=4)
LABELS = {"classify": ["水", "桥"], "pair": ["同", "异"], "tag": ["B-河", "I-河", "O"]}
METHODS = {"full": {}, "head": {}, "lora": {"rank": 4}, "adapter": {}, "prefix": {"virtual_tokens": 3}}
CASES = [
    *(("classify", {"method": name, **more}) for name, more in METHODS.items()),
    *((kind, {"both_ways": both_ways}) for kind in ("pair", "tag") for both_ways in (False, True)),
]


def make_example(kind, i):
    """A text whose label or tags follow from its characters."""
    name = "东西南北"[i % 4]
    if kind == "classify":
        return LabelledExample("", i, f"{name}{'河' if i % 3 else '桥'}", label=LABELS[kind][i % 3 == 0])
    if kind == "pair":
        return LabelledExample("", i, name, "河" if i % 3 else "桥", LABELS[kind][i % 3 == 0])
    return LabelledExample("", i, f"{i}{name}河", tags=["O"] * len(str(i)) + ["B-河", "I-河"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows of each kind of task, a pretrained base and a model of masked tokens."""
    folder, tokenizer = tmp_path_factory.mktemp("tasks"), byte_tokenizer()
    shape = {**TINY, "data_dir": write_stages(folder)["pretrain"]}
    finish_run(**shape, out_dir=str(folder / "base"))
    for kind, labels in LABELS.items():
        indices = {label: i for i, label in enumerate(labels)}
        with RowWriter(folder / kind, ["train", "val"], BLOCK, tokenizer) as writer:
            for i in range(48):
                row, n_chars = make_task_row(tokenizer, BLOCK, make_example(kind, i), indices)
                writer.add_rows("train" if i % 8 else "val", row[None], (row[0] != tokenizer.pad_id).sum(), n_chars)
            writer.finish({"stage": "task", "task": {"kind": kind, "labels": labels}})
    return folder


def train_head(folder, kind, out, **changes):
    """A finished `TrainingRun` of a task on the base."""
    return finish_run(**{
        **TINY, "dropout": 0.0, "max_iters": 60, "eval_interval": 60, "learning_rate": 1e-2, "batch_size": 16,
        "data_dir": str(folder / kind), "out_dir": str(out), "init_from": str(folder / "base/last.pt"), **changes,
    })  # fmt: skip


@pytest.mark.parametrize(("kind", "changes"), CASES)
def test_a_head_learns_its_task_and_a_loaded_one_says_the_same(folder, tmp_path, kind, changes):
    run = train_head(folder, kind, tmp_path / "run", **changes)
    line = sample_line(run)
    shown = [label.removeprefix("B-") for label in LABELS[kind]]
    assert any(label in line.split("→")[1] for label in shown) and run.model.training
    run.model.eval()
    ((_, content, loaded),) = open_served([str(tmp_path / "run/last.pt")], SETTINGS)
    assert content["stage"] == "task" and content["task"] == {"kind": kind, "labels": LABELS[kind]}
    assert loaded.model.config.causal == (not changes.get("both_ways"))
    examples = [make_example(kind, i) for i in range(24)]
    trained = Classifier(run.model, run.data.tokenizer, content["task"])
    found, expected = (head_predictor(each)(examples) for each in (loaded, trained))
    assert [each.label for each in found] == [each.label for each in expected]
    assert [each.probability for each in found] == pytest.approx([each.probability for each in expected], abs=1e-4)
    right, counts = right_labels(SimpleNamespace(examples=examples), [each.label for each in found])
    if changes.get("method", "full") == "full":
        assert right.sum() > 0.9 * counts.sum()


@pytest.fixture
def sample(monkeypatch, capsys):
    """Run sample.py, or another script, with flags; returns (its output, its error output)."""

    def run(*flags, script="sample.py"):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [script, "--dtype=float32", *flags])
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stopped:
            assert stopped.code == 1
        said = capsys.readouterr()
        return said.out.strip(), said.err.strip()

    return run


def test_sample_prints_the_label_of_a_text_or_a_pair_and_the_entities_of_a_tagged_one(folder, tmp_path, sample):
    runs = {kind: train_head(folder, kind, tmp_path / kind) for kind in LABELS}
    ckpt = {kind: f"--ckpt={run.out / 'last.pt'}" for kind, run in runs.items()}
    assert sample(ckpt["classify"], "--prompt=西桥")[0].startswith("桥 (0.")
    assert sample(ckpt["pair"], "--prompt=南##河")[0].startswith("同 (0.")
    assert "text##text" in sample(ckpt["pair"], "--prompt=南河")[1]
    assert sample(ckpt["tag"], "--prompt=7南河")[0] == "河: 南河"
    long = sample(ckpt["classify"], "--prompt=" + "长" * 200)[0]
    assert long.endswith("was cut)")

    # A server takes it beside a language model. What generates, measures or exports text refuses it in one line.
    opened = open_served([str(runs["tag"].out / "last.pt"), str(folder / "base/last.pt")], SETTINGS)
    assert [model.stage for _, _, model in opened] == ["task", "pretrain"]
    assert "generates no text" in sample(ckpt["tag"], script="export.py")[1]
    path = runs["classify"].out / "last.pt"
    refusals = [lambda: EvaluatedModel("x", path), lambda: open_classifier(folder / "base/last.pt", SETTINGS)]
    for refused, message in zip(refusals, ("generates no text", "has no task's head"), strict=True):
        with pytest.raises(UserError, match=message):
            refused()


def test_a_model_of_masked_tokens_shows_and_fills_masks_and_continues_no_text(folder, tmp_path, sample):
    run = finish_run(**TINY, data_dir=str(folder / "pretrain"), out_dir=str(tmp_path / "mlm"), objective="mlm")
    assert sample_line(run).count("[MASK]") == 4
    run.settings.sample_prompt = "第[MASK]"
    assert sample_line(run).startswith("第[MASK] → 第")
    ckpt = f"--ckpt={run.out / 'last.pt'}"
    out, _ = sample(ckpt, "--prompt=第[MASK]镇")
    assert out.startswith("第") and "镇" in out and out.endswith(")")
    assert "write [MASK]" in sample(ckpt, "--prompt=第1镇")[1]
    with pytest.raises(UserError, match=r"of stage mlm and generates no text.*sample.py"):
        open_served([str(run.out / "last.pt")], SETTINGS)
