"""evaluations-tasks.py: its figures held against a plain loop over texts, its files, and what it refuses."""

import csv
import json

import numpy as np
import pytest
from evaluation_fakes import load_script, run_here
from peer_fakes import peer
from tiny import TAGS, tiny_model, tiny_tokenizer

from minigpt.checkpoint import load_checkpoint, load_model, save_checkpoint
from minigpt.common.errors import UserError
from minigpt.corpus.row_files import RowWriter
from minigpt.corpus.task_rows import make_task_row
from minigpt.corpus.tasks import LabelledExample
from minigpt.evaluation.tasks import TaskData, TaskPrediction, load_task, task_figures
from minigpt.inference.classify import Classifier
from minigpt.metrics import macro_f1_interval
from minigpt.settings.stages import TrainSettings

SCRIPT = load_script("evaluations-tasks.py")
BLOCK = 48
LABELS = ["正", "反", "无"]
TEXTS = [f"{'河的' * (i % 4)}{i}" for i in range(30)]
EXAMPLES = {
    "classify": [LabelledExample("", i, text, label=LABELS[i % 5 % 3]) for i, text in enumerate(TEXTS)],
    "pair": [LabelledExample("", i, text, text[::-1], LABELS[i % 3]) for i, text in enumerate(TEXTS)],
    "tag": [
        LabelledExample("", i, text, tags=["B-地" if character == "河" else "O" for character in text])
        for i, text in enumerate(TEXTS)
    ],
}


def write_task(folder, kind, labels):
    """Rows of EXAMPLES of a kind as data/prepare_task.py writes them: the first 12 train, all test."""
    tokenizer, indices = tiny_tokenizer(), {label: i for i, label in enumerate(labels)}
    with RowWriter(folder, ["train", "test"], BLOCK, tokenizer) as writer:
        for part, examples in (("train", EXAMPLES[kind][:12]), ("test", EXAMPLES[kind])):
            for example in examples:
                row, n_chars = make_task_row(tokenizer, BLOCK, example, indices)
                writer.add_rows(part, row[None], (row[0] != tokenizer.pad_id).sum(), n_chars)
        writer.finish({"stage": "task", "task": {"kind": kind, "labels": labels}})


def save_head(path, kind, labels, seed=0):
    """A checkpoint of an untrained model with a head."""
    model = tiny_model(seed, block_size=BLOCK, n_labels=len(labels))
    path.parent.mkdir(parents=True)
    settings, progress = TrainSettings(data_dir=f"data/{kind}"), {"step": 3}
    task = {"kind": kind, "labels": labels}
    save_checkpoint(path, model.state_dict(), model.config, settings, "task", tiny_tokenizer(), progress, task=task)


def save_language_model(path, stage):
    """A checkpoint of an untrained language model whose block has room for a task told in words."""
    model = tiny_model(block_size=512)
    model.config.causal = stage != "mlm"
    path.parent.mkdir(parents=True)
    settings, progress = TrainSettings(data_dir="data/none"), {"step": 3}
    save_checkpoint(path, model.state_dict(), model.config, settings, stage, tiny_tokenizer(), progress)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    for kind in EXAMPLES:
        labels = TAGS if kind == "tag" else LABELS
        write_task(folder / "data" / kind, kind, labels)
        for seed in (0, 1):
            save_head(folder / f"out/{kind}{seed}/ckpt.pt", kind, labels, seed)
    for stage in ("pretrain", "sft", "mlm"):
        save_language_model(folder / f"out/{stage}/ckpt.pt", stage)
    return folder


@pytest.fixture
def measure(project, monkeypatch, capsys):
    """Run the script on a task with flags; returns (what it printed, its JSON, the rows of its CSV)."""

    def run(kind, *flags):
        flags = f"--data_dir=data/{kind}", "--json=figures.json", "--csv=rows.csv", *flags
        run_here(monkeypatch, project, SCRIPT, *flags)
        with open(project / "rows.csv", encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        return capsys.readouterr().out, json.loads((project / "figures.json").read_text(encoding="utf-8")), rows

    return run


def labels_one_by_one(project, kind, seed=0):
    """What a checkpoint's head says of each text alone."""
    content = load_checkpoint(project / f"out/{kind}{seed}/ckpt.pt")
    classifier = Classifier(*load_model(content), content["task"])
    if kind == "tag":
        return [classifier.tag([example.text])[0].tags for example in EXAMPLES[kind]]
    texts = [example.text if kind == "classify" else (example.text, example.text_b) for example in EXAMPLES[kind]]
    return [classifier.classify([text])[0].label for text in texts]


@pytest.mark.parametrize("kind", EXAMPLES)
def test_rows_give_back_the_examples(project, monkeypatch, kind):
    monkeypatch.chdir(project)
    task = load_task(f"data/{kind}", "test")
    fields = [(e.text, e.text_b, e.label, e.tags) for e in task.examples]
    assert fields == [(e.text, e.text_b, e.label, e.tags) for e in EXAMPLES[kind]]
    assert len(task.training) == 12 and len(load_task(f"data/{kind}", "test", 7, 1).examples) == 7


@pytest.mark.parametrize("kind", ["classify", "pair"])
def test_labels_are_counted_and_stand_beside_the_majority_class(project, measure, kind):
    out, found, rows = measure(kind, f"--ckpt=out/{kind}0/ckpt.pt,out/{kind}1/ckpt.pt")
    actual = [example.label for example in EXAMPLES[kind]]
    for seed, entry in enumerate(found["models"]):
        predicted = labels_one_by_one(project, kind, seed)
        assert [row["predicted"] for row in rows if row["model"] == f"{kind}{seed}"] == predicted
        assert entry["accuracy"] == pytest.approx(np.mean([a == b for a, b in zip(predicted, actual, strict=True)]))
        low, high = entry["intervals"]["accuracy"]
        assert low <= entry["accuracy"] <= high
        counts = np.array(entry["confusion"]["counts"])
        assert counts.sum() == len(actual) and counts.trace() == round(entry["accuracy"] * len(actual))
        assert entry["leak"]["leaked_rows"] == 12  # the train part is a part of the test part here
    most = max(LABELS, key=[example.label for example in EXAMPLES[kind][:12]].count)
    assert found["majority"]["accuracy"] == pytest.approx(actual.count(most) / len(actual))
    for shown in ("majority class", "is ↓ predicted →", "12 of 30 texts are among its training texts"):
        assert shown in out
    assert {"text", "label", "probability"} <= set(rows[0]) and 0 < float(rows[0]["probability"]) <= 1
    assert len(found["comparisons"]) == 2


def test_tags_are_measured_by_entities_and_by_characters(project, measure):
    out, found, rows = measure("tag", "--ckpt=out/tag0")
    predicted = labels_one_by_one(project, "tag")
    assert [row["predicted"].split() for row in rows if row["model"] == "tag0"] == predicted
    texts = zip(predicted, EXAMPLES["tag"], strict=True)
    right = [a == b for tags, example in texts for a, b in zip(tags, example.tags, strict=True)]
    assert found["tag_accuracy"] == pytest.approx(np.mean(right))
    assert set(found["by_type"]) <= {"人", "地"} and found["by_type"]["地"]["count"] == sum(
        t.count("河") for t in TEXTS
    )
    assert found["majority"]["f1"] == 0.0 and "entity precision" in out and "tag accuracy" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ckpt=out/classify0/ckpt.pt", "--data_dir=data/tag"], "has the task classify with the labels 正"),
        (["--ckpt=out/sft/ckpt.pt", "--data_dir=data/tag", "--ways=likelihood"], "see --ways"),
        (["--ckpt=out/tag0/ckpt.pt", "--data_dir=data/none"], "no prepared data"),
    ],
)
def test_what_does_not_fit_is_refused(project, monkeypatch, flags, message):
    with pytest.raises(UserError, match=message):
        run_here(monkeypatch, project, SCRIPT, *flags)


def test_answers_that_name_no_label_are_wrong():
    task = TaskData("classify", LABELS, EXAMPLES["classify"], [])
    answers = [TaskPrediction(None if example.label == "无" else example.label) for example in task.examples]
    figures = task_figures(task, answers, resamples=50)
    share = sum(example.label != "无" for example in task.examples) / len(answers)
    assert figures["accuracy"] == pytest.approx(share) and figures["macro_f1"] == pytest.approx(2 / 3)
    assert figures["no_answer"] == 6 and figures["intervals"]["macro_f1"] == pytest.approx([2 / 3, 2 / 3])
    assert figures["confusion"]["predicted"] == [*LABELS, ""]


@pytest.mark.numeric
def test_the_interval_of_macro_f1_is_that_of_resampled_rows():
    rng = np.random.default_rng(0)
    actual = rng.choice(LABELS, 200, p=[0.5, 0.3, 0.2]).tolist()
    predicted = [label if rng.random() < 0.7 else "正" for label in actual]
    low, high = macro_f1_interval(predicted, actual, LABELS, 400, 3)
    values = []
    for _ in range(400):
        drawn = rng.integers(200, size=200)
        pairs = [(predicted[i], actual[i]) for i in drawn]
        f1 = [2 * pairs.count((x, x)) / sum((a == x) + (b == x) for a, b in pairs) for x in LABELS]
        values.append(sum(f1) / 3)
    assert (low, high) == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.03)
    assert macro_f1_interval(predicted[:10], actual[:10], LABELS) is None


BY_LIKELIHOOD = [("likelihood", system, shots) for system in ("none", "1") for shots in ("0", "2")]
WORDED_CELLS = {
    "pretrain": BY_LIKELIHOOD,
    "mlm": BY_LIKELIHOOD,
    "sft": BY_LIKELIHOOD + [("answer", *more) for _, *more in BY_LIKELIHOOD],
}


@pytest.mark.parametrize("stage", WORDED_CELLS)
def test_a_language_model_is_told_the_task_in_words(project, measure, monkeypatch, stage):
    monkeypatch.setattr("minigpt.evaluation.task_predictors.MARGIN_TOKENS_OF_ANSWER", 0)
    out, figures, rows = measure("classify", f"--ckpt=out/{stage}/ckpt.pt", "--shots=0,2", "--page=table.md")
    page = (project / "table.md").read_text(encoding="utf-8")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    assert [tuple(row[2:5]) for row in cells[3:]] == WORDED_CELLS[stage] and cells[2][0] == "majority class"
    assert "可选的类别：正、反、无" in page and "可选的类别：正、反、无" in out
    assert [(m["way"], m["shots"]) for m in figures["models"]] == [(way, int(n)) for way, _, n in WORDED_CELLS[stage]]
    for model in figures["models"]:
        mine = [row for row in rows if row["model"] == model["name"]]
        right = [row["label"] == row["predicted"] for row in mine]
        assert len(mine) == 30 and model["accuracy"] == pytest.approx(np.mean(right))
        assert (model["no_answer"] == 0) == all(row["predicted"] for row in mine)


def test_a_model_behind_an_api_answers(measure):
    with peer(models=("echo",)) as server:
        flags = f"--ckpt=echo@http://{server.address}/v1", "--shots=0,1", "--max_samples=4"
        _, figures, rows = measure("classify", *flags)
        asked = [body["messages"] for _, _, body in server.seen if body]
    assert [(m["way"], m["shots"], m["no_answer"]) for m in figures["models"]] == [
        ("answer", n, 4) for n in (0, 1, 0, 1)
    ]
    assert sorted(map(len, asked)) == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4  # without and with system prompt, example
    assert all(row["answer"] == f"文本：{row['text']}" for row in rows[:16])


def test_heads_and_language_models_stand_in_one_table(measure):
    flags = "--ckpt=out/tag0/ckpt.pt,out/sft/ckpt.pt", "--systems=none", "--max_samples=3"
    out, figures, rows = measure("tag", *flags)
    assert [model["way"] for model in figures["models"]] == ["head", "answer"]
    assert "head" in out and "answer" in out and len(rows) == 9  # with the majority class
