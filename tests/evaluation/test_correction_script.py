"""Sentence correction: figures of hand-made answers, prompts, and the script."""

import csv
import json

import pytest
from corpora import byte_tokenizer, write_jsonl
from evaluation_fakes import load_script, run_here
from peer_fakes import peer
from tiny import tiny_model

from minigpt.checkpoint import save_checkpoint
from minigpt.common.errors import UserError
from minigpt.corpus.row_files import RowWriter
from minigpt.evaluation.checkpoint_plots import draw_curves, read_curves
from minigpt.evaluation.correction import (
    SYSTEM_PROMPT,
    CorrectionPair,
    ExampleSampler,
    build_chat,
    compare_corrections,
    correction_figures,
    failures_first,
    judge_correction,
    load_cases,
    parse_system_prompts,
    read_details,
)
from minigpt.settings.stages import CorrectionSettings

SCRIPT = load_script("evaluations-correction.py")
CASES = [
    CorrectionPair("桥在河河上。", "桥在河上。", "doubled"),
    CorrectionPair("桥河上。", "桥在河上。", "dropped"),
    CorrectionPair("河在桥下。", "河在桥下。", "unchanged"),
    CorrectionPair("山很大。", "山很高。", "wrong"),
    CorrectionPair("山很小。", "山很小。", "unchanged"),
]
ROWS = [{"question": case.question, "answer": case.answer, "kind": case.kind} for case in CASES]
MANY = [CorrectionPair(f"第{i}桥在河河上。", f"第{i}桥在河上。") for i in range(9)] + [
    CorrectionPair(f"第{i}山。", f"第{i}山。") for i in range(9)
]


def test_accuracy_over_all_sentences_to_change_to_keep_and_by_kind():
    answers = [" 桥在河上。\n", "桥河上。", "河在桥上。", None, "山很小。"]
    verdicts = ["right", "missed", "overcorrected", "no answer", "right"]
    assert [judge_correction(*pair) for pair in zip(CASES, answers, strict=True)] == verdicts
    assert judge_correction(CASES[3], "山高。") == "wrongly corrected"
    found = correction_figures(CASES * 6, answers * 6, resamples=200)
    assert (found["accuracy"], found["to_change"], found["to_keep"]) == (2 / 4, 1 / 2, 1 / 2)
    assert (found["pairs"], found["pairs_to_change"], found["pairs_to_keep"]) == (24, 12, 12)
    assert found["verdicts"] == {"right": 12, "missed": 6, "overcorrected": 6, "no answer": 6}
    assert found["kinds"]["doubled"]["accuracy"] == 1 and found["kinds"]["unchanged"]["pairs"] == 12
    assert found["kinds"]["wrong"]["accuracy"] is None and found["kinds"]["wrong"]["interval"] is None
    low, high = found["intervals"]["accuracy"]
    assert 0 <= low < 0.5 < high <= 1
    assert found["intervals"]["to_change"] is None  # of twelve sentences


def test_any_of_several_corrections_is_right():
    case = CorrectionPair("山很大。", "山很高。", others=("山高大。", "高山。"))
    found = {text: judge_correction(case, text) for text in ("山很高。", "高山。", "山很大。", "山。")}
    assert list(found.values()) == ["right", "right", "missed", "wrongly corrected"]
    # A sentence that is one of its corrections is to be kept; another correction is right, too.
    kept = CorrectionPair("山很大。", "山很高。", others=("山很大。",))
    assert not kept.changes and judge_correction(kept, "山很大。") == judge_correction(kept, "山很高。") == "right"
    assert judge_correction(kept, "山。") == "overcorrected"
    assert "应为 reference:  山很高。 | 山高大。 | 高山。" in failures_first([case], ["山。"], 1)[0]
    pool = [*MANY, CorrectionPair("高山。", "山。")]
    assert all(example in MANY for example in ExampleSampler(pool, 1).draw(case, len(MANY)))


def test_edits_and_unchanged_answers_are_counted():
    answers = ["桥在河上。", "桥河上。", "河在桥上。", None, " 山很小。"]
    found = correction_figures(CASES, answers, resamples=0)
    assert found["unchanged"] == 2 / 4
    edits = {name: found["edits"][name] for name in ("correct", "proposed", "wanted")}
    assert edits == {"correct": 1, "proposed": 2, "wanted": 2}
    assert correction_figures(CASES[:1], [None], resamples=0)["unchanged"] is None


def test_without_sentences_to_keep_their_figure_is_none():
    found = correction_figures(CASES[:2], ["桥在河上。", ""], resamples=0)
    assert found["to_keep"] is None and found["to_change"] == 0.5
    assert found["intervals"] == {"accuracy": None, "to_change": None, "to_keep": None}


def test_two_models_are_compared_on_the_same_sentences():
    right, kept = [case.answer for case in CASES], [case.question for case in CASES]
    found = compare_corrections(CASES * 4, right * 4, kept * 4, 200, 0)
    assert found["to_change"]["difference"] == 1 and found["to_keep"]["difference"] == 0
    assert found["accuracy"]["a_better"] > 0.9


def test_failures_are_listed_first_each_kind_in_turn():
    answers = ["桥在河河上。", "河上。", "河。", "山很大。", "山很小。"]
    lines = failures_first(CASES, answers, 4)
    assert [line.split(" (")[0] for line in lines] == ["missed", "wrongly corrected", "overcorrected", "missed"]
    assert "应为 reference:  桥在河上。" in lines[0] and "(doubled)" in lines[0]
    assert len(failures_first(CASES, answers, 9)) == 5 and failures_first(CASES, answers, 0) == []


def test_a_chat_is_the_system_prompt_examples_as_turns_and_the_sentence():
    assert build_chat(CASES[0]) == [{"role": "user", "content": "桥在河河上。"}]
    messages = build_chat(CASES[0], "改", [CASES[3]])
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert [message["content"] for message in messages] == ["改", "山很大。", "山很高。", "桥在河河上。"]


def test_examples_are_drawn_by_seed_half_of_them_to_keep_and_never_contain_the_answer():
    # The last is another mistake in a sentence under evaluation.
    pool = [*MANY, *MANY, CorrectionPair("第3桥河上。", "第3桥在河上。")]
    for case in MANY:
        found = ExampleSampler(pool, 1).draw(case, 5)
        assert found == ExampleSampler(pool, 1).draw(case, 5) and len(set(found)) == 5
        assert sum(not example.changes for example in found) == 2
        texts = {text for example in found for text in (example.question, example.answer)}
        assert not texts & {case.question, case.answer}
        assert len({example.answer for example in found}) == 5
    assert any(ExampleSampler(pool, 1).draw(case, 5) != ExampleSampler(pool, 2).draw(case, 5) for case in MANY)
    assert ExampleSampler(pool, 1).draw(MANY[0], 0) == []


def test_if_one_kind_of_example_is_scarce_the_other_fills_up_and_too_few_are_an_error():
    pool = [*MANY[:9], MANY[10]]
    assert sum(not example.changes for example in ExampleSampler(pool, 1).draw(CorrectionPair("甲。", "乙。"), 8)) == 1
    with pytest.raises(UserError, match="11 examples are wanted, but there are only 10"):
        ExampleSampler(pool, 1).draw(CorrectionPair("甲。", "乙。"), 11)


def test_system_prompts_are_texts_or_lines_of_files(tmp_path):
    path = tmp_path / "systems.txt"
    path.write_text("\ufeff改错。\n\n none \n改错。\n", encoding="utf-8")
    assert parse_system_prompts([]) == ["", SYSTEM_PROMPT] and parse_system_prompts(["none", "请" * 300]) == [
        "",
        "请" * 300,
    ]
    assert parse_system_prompts([str(path), "另一个"]) == ["改错。", "", "另一个"]


# The script


@pytest.fixture
def questions(tmp_path):
    return write_jsonl(tmp_path / "q.jsonl", [*ROWS, "{broken"])


def test_a_model_behind_an_api_fills_every_cell_of_the_table(tmp_path, questions, monkeypatch, capsys):
    with peer(models=("echo",)) as server:
        model = f"--ckpt=echo@http://{server.address}/v1"
        flags = ["--systems=none,改错", "--shots=0,2", "--json=c.json", "--csv=c.csv", "--resamples=50"]
        run_here(monkeypatch, tmp_path, SCRIPT, model, "--questions=q.jsonl", *flags)
        asked = [body["messages"] for path, _, body in server.seen if body]
    said = capsys.readouterr().out
    figures = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    # An echo changes nothing: it is right on the sentences to keep.
    assert (figures["accuracy"], figures["to_change"], figures["to_keep"]) == (2 / 5, 0, 1)
    assert figures["models"][0]["verdicts"] == {"right": 2, "missed": 3} and figures["models"][0]["step"] is None
    assert figures["kinds"]["dropped"]["pairs"] == 1
    cells = [(cell["system"], cell["shots"]) for cell in figures["table"]]
    assert cells == [("", 0), ("", 2), ("改错", 0), ("改错", 2)]
    assert all((cell["to_change"], cell["to_keep"]) == (0, 1) for cell in figures["table"])
    lengths = sorted(len(messages) for messages in asked)
    assert lengths == sorted([1] * 5 + [5] * 5 + [2] * 5 + [6] * 5)
    for messages in asked:
        *before, last = messages
        answer = next(case.answer for case in CASES if case.question == last["content"])
        assert not {last["content"], answer} & {message["content"] for message in before}
        assert (before[:1] == [{"role": "system", "content": "改错"}]) == (len(messages) % 2 == 0)
    assert "5 sentences: 3 to change, 2 to keep" in said and "missed (doubled)" in said and "q.jsonl, line 6" in said
    assert "system prompt 1: 改错" in said and not (tmp_path / "c.png").exists()
    rows = list(csv.DictReader((tmp_path / "c.csv").open(encoding="utf-8-sig")))
    assert len(rows) == 20 and rows[0]["prediction"] == rows[0]["question"] and rows[0]["verdict"] == "missed"


def test_a_file_of_sentences_with_several_corrections_is_measured(tmp_path, monkeypatch, capsys):
    rows = [
        {"source": "山很大。", "corrections": ["山很高。", "山高大。"]},
        {"source": "河很长。", "corrections": ["河长。", "河很长。"]},
        {"source": "桥。", "references": ["桥在河上。"]},
    ]
    write_jsonl(tmp_path / "real.jsonl", rows)
    with peer(models=("echo",)) as server:
        flags = [f"--ckpt=echo@http://{server.address}/v1", "--questions=real.jsonl", "--json=c.json", "--csv=c.csv"]
        run_here(monkeypatch, tmp_path, SCRIPT, *flags)
    figures = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert (figures["pairs_to_change"], figures["to_change"], figures["to_keep"], figures["unchanged"]) == (2, 0, 1, 1)
    assert figures["edits"]["wanted"] == 2 and figures["edits"]["f0_5"] == 0 and figures["edits"]["precision"] is None
    said = capsys.readouterr().out
    assert "edit precision –, edit recall 0.0000, edit F0.5 0.0000, unchanged 原样 1.0000" in said
    rows = list(csv.DictReader((tmp_path / "c.csv").open(encoding="utf-8-sig")))
    assert rows[0]["reference"] == "山很高。 | 山高大。" and rows[1]["verdict"] == "right"


def save(path, step, stage="sft", seed=0):
    settings = CorrectionSettings(data_dir="rows")
    model = tiny_model(seed, block_size=96)
    path.parent.mkdir(parents=True, exist_ok=True)
    progress = {"step": step, "epoch": 0, "batch": 0, "tokens": 0, "best_val_loss": 1.0}
    save_checkpoint(path, model.state_dict(), model.config, settings, stage, byte_tokenizer(), progress)


@pytest.fixture
def runs(tmp_path, questions):
    """Two runs of untrained checkpoints, a pretrained one, and rows: all of CASES in each part."""
    for run, steps in (("short", (10, 20)), ("long", (10, 20, 40))):
        for step in steps:
            save(tmp_path / run / f"step_{step:06d}.pt", step, seed=step)
    save(tmp_path / "base/last.pt", 7, "pretrain")
    tokenizer = byte_tokenizer()
    with RowWriter(tmp_path / "rows", ["train", "val", "test"], 96, tokenizer) as writer:
        for part in ("train", "test"):
            for case in CASES:
                ids = [*tokenizer.encode(case.question), tokenizer.answer_id, *tokenizer.encode(case.answer)]
                writer.add(part, ids, len(ids))
        writer.finish({"stage": "sft", "sources": ["q.jsonl", "gone.jsonl"]})
    return tmp_path


def test_every_checkpoint_of_runs_is_measured_and_the_curves_are_drawn(runs, monkeypatch, capsys):
    flags = ["--data_dir=rows", "--json=out/c.json", "--shots=1,3", "--systems=none", "--resamples=20", "--show=1"]
    run_here(monkeypatch, runs, SCRIPT, "--ckpt=short,long,base/last.pt", *flags)
    said = capsys.readouterr().out
    content = read_curves(runs / "out/c.json")
    entries = content["models"]
    assert [(entry["run"], entry["step"]) for entry in entries] == [
        ("short", 10), ("short", 20), ("long", 10), ("long", 20), ("long", 40), ("base", 7)
    ]  # fmt: skip
    assert all(entry["pairs"] == 5 and entry["kinds"]["doubled"]["pairs"] == 1 for entry in entries)
    assert [(pair["a"], pair["b"]) for pair in content["comparisons"]] == [
        ("short/step_000020", "long/step_000040"), ("short/step_000020", "base/last"), ("long/step_000040", "base/last")
    ]  # fmt: skip
    # A run's folder has its last checkpoint in the table; three examples do not fit into 96 tokens.
    cells = [(cell["name"], cell["shots"], cell["cut_prompts"]) for cell in content["table"]]
    names = ["short/step_000020", "long/step_000040", "base/last"]
    assert cells == [(name, shots, 5 * (shots == 3)) for name in names for shots in (1, 3)]
    assert "5 of 5 prompts do not fit" in said and "contamination check" in said
    assert (runs / "out/c.png").read_bytes().startswith(b"\x89PNG") and (runs / "out/c.svg").exists()
    assert [panel.get_title() for panel in draw_curves(content).axes] == ["short", "long", "base"]


def test_cases_have_their_kinds_and_the_pool_is_the_train_part(runs, monkeypatch):
    monkeypatch.chdir(runs)
    asked, pool = load_cases(CorrectionSettings(data_dir="rows"))
    assert asked == CASES == pool
    assert len(load_cases(CorrectionSettings(data_dir="rows", max_samples=2))[0]) == 2
    assert read_details(["gone.jsonl"]) == {}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ckpt=gone.pt", "--questions=q.jsonl"], "gone.pt is not there"),
        (["--ckpt=short", "--questions=gone.jsonl"], "gone.jsonl is not there"),
        (["--ckpt=short", "--data_dir=articles"], "articles holds articles, no sentences to correct"),
        (["--ckpt=short", "--data_dir=rows", "--split=val"], "the val part of rows has no rows"),
        (["--ckpt=short", "--data_dir=rows", "--shots=many"], "shots wants a list of int"),
        (["--ckpt=short", "--data_dir=rows", "--shots=0,9"], "9 examples are wanted, but there are only 3 others"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_user_error_comes_before_any_model_is_asked(runs, monkeypatch, flags, message):
    monkeypatch.chdir(runs)
    with RowWriter(runs / "articles", ["train"], 16, byte_tokenizer()) as writer:
        writer.finish({"stage": "pretrain"})
    monkeypatch.setattr(SCRIPT, "measure_model", None)
    with pytest.raises(UserError, match=message):
        run_here(monkeypatch, runs, SCRIPT, *flags)


def test_figures_without_a_step_or_of_other_shapes_draw_no_curves(tmp_path):
    for number, content in enumerate(({}, [], {"models": 3}, {"models": [{"step": None, "accuracy": 1}, {"step": 3}]})):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(UserError, match="no figures by training step"):
            read_curves(path)
        with pytest.raises(UserError, match="no figures by training step"):
            draw_curves(content)
    (tmp_path / "a.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="is no JSON"):
        read_curves(tmp_path / "a.json")


def test_other_figures_have_their_own_panels_and_missing_values_are_left_out():
    models = [{"checkpoint": f"out/甲/step_{s}.pt", "step": s, "perplexity": 90.0 / s} for s in (3, 1, 2)]
    models += [{"checkpoint": "out/乙/ckpt.pt", "step": 5, "rouge_l_f": 0.5, "intervals": {"rouge_l_f": [0.4, 0.6]}}]
    models += [{"checkpoint": "out/乙/last.pt", "step": 6, "rouge_l_f": None}]
    figure = draw_curves({"models": models}, say=lambda line: None)
    shown = [panel for panel in figure.axes if panel.get_visible() and panel.lines]
    assert sorted(len(panel.lines[0].get_xdata()) for panel in shown) == [1, 3]
    (by_step,) = [panel for panel in shown if len(panel.lines[0].get_xdata()) == 3]
    assert list(by_step.lines[0].get_xdata()) == [1, 2, 3] and by_step.get_ylim()[1] > 90
