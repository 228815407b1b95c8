"""The report: its numbers are those that were measured, and it says what could not be measured."""

import csv
import json
import re

import pytest
import torch
from corpora import byte_tokenizer, write_jsonl
from evaluation_fakes import load_script, make_project, run_here, save_tiny
from tiny import tiny_model

from minigpt.checkpoint import load_checkpoint, save_checkpoint
from minigpt.common.errors import UserError
from minigpt.corpus.row_files import RowWriter
from minigpt.evaluation.contamination import Contamination
from minigpt.evaluation.report_figures import changed_settings, public_path
from minigpt.evaluation.report_page import escape_markdown
from minigpt.evaluation.report_words import summary_sentences
from minigpt.settings.stages import TrainSettings

QUICK = ["--max_new_tokens=4", "--sweep=temperature", "--resamples=50", "--max_samples=24"]


@pytest.fixture
def project(tmp_path):
    """Two tiny checkpoints, the second initialized from the first, with their rows and the second's log."""
    make_project(tmp_path)
    log = [
        {"step": step, "train_loss": 5 - step / 9, "val_loss": None if step % 5 else 4 + abs(step - 10) / 9, "lr": 1e-3,
         "epoch": step / 9, "tokens": 100 * step, "seconds": float(step)}
        for step in range(1, 21)
    ]  # fmt: skip
    write_jsonl(tmp_path / "out/tuned/log.jsonl", log)
    pairs = [{"good": f"第{i}桥在河上。", "bad": f"第{i}桥河在上。", "phenomenon": f"p{i % 2}"} for i in range(24)]
    write_jsonl(tmp_path / "data/grammar_sample/pairs.jsonl", pairs)
    change_settings(tmp_path / "out/tuned/ckpt.pt", init_from="out/base/ckpt.pt", learning_rate=0.5, auth="user:secret")
    return tmp_path


def change_settings(path, **settings):
    """Change settings in a checkpoint."""
    content = load_checkpoint(path)
    content["settings"].update(settings)
    torch.save(content, path)


def make_report(monkeypatch, folder, *flags):
    """(the page's text, its figures) of the fine-tuned checkpoint, or of the one that the flags name."""
    flags = [*QUICK, "--page=reports/my report.md", "--json=report.json", *flags]
    if not any(flag.startswith("--ckpt") for flag in flags):
        flags.append("--ckpt=out/tuned/ckpt.pt")
    run_here(monkeypatch, folder, load_script("evaluations-report.py"), *flags)
    page = (folder / "reports" / "my report.md").read_text(encoding="utf-8")
    return page, json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_the_report_has_every_section_and_its_plots_beside_it(project, monkeypatch, capsys):
    page, figures = make_report(monkeypatch, project, "--csv=pairs.csv")
    titles = (
        "模型 Model", "数据污染检查 Contamination check", "困惑度 Perplexity", "问答 Answers", "解码参数 Decoding",
        "语法 Grammar", "训练曲线 Training curves",
    )  # fmt: skip
    for title in titles:
        assert f"## {title}\n" in page
    assert "Not measured" not in page
    for name in re.findall(r"!\[\w+\]\(<(.+?)>\)", page):
        assert (project / "reports" / name).read_bytes().startswith(b"\x89PNG")
    assert len(re.findall(r"!\[", page)) == 3 and not list(project.rglob("*.partial"))
    with open(project / "pairs.csv", encoding="utf-8-sig", newline="") as file:
        assert len(list(csv.reader(file))) == 1 + figures["pairs"]
    # The sentences contain the figures.
    f, (low, high) = figures["rouge_l_f"], figures["intervals"]["rouge_l_f"]
    assert f"Rouge-L F is {f:.3f} [{low:.3f}, {high:.3f}]" in page
    assert f"its perplexity is {figures['perplexity']:.2f} " in page
    assert "It over-fits after step 10: validation loss rose from 4.000 to 5.111 (+27.8%)" in page
    assert "Its curves show no over-fitting" not in page
    before, after = (row for row in figures["card"]["perplexity"] if "chain" in row)
    assert f"from {before['perplexity']:.2f} to {after['perplexity']:.2f}" in page
    assert (before["model"], before["data_dir"], before["rows"]) == ("base", "data/base", after["rows"])
    assert "written: " in capsys.readouterr().out


def test_the_report_lists_changed_settings_and_no_secret(project, monkeypatch):
    page, figures = make_report(monkeypatch, project)
    assert figures["card"]["settings"] == {"learning_rate": 0.5}
    assert r"| learning\_rate | 0.5 |" in page and "secret" not in page + json.dumps(figures)
    assert str(project) not in page
    content = load_checkpoint(project / "out/base/ckpt.pt")
    assert changed_settings(content) == {}


def test_minimal_pairs_are_measured_over_the_checkpoints_that_the_run_kept(project, monkeypatch):
    page, figures = make_report(monkeypatch, project)
    found = figures["card"]["grammar"]
    assert [step for step, _ in found["curve"]] == [10, 20] and found["pairs"] == 24
    run_here(
        monkeypatch, project, load_script("evaluations-grammar.py"), "--ckpt=out/tuned", "--json=grammar.json",
        "--resamples=50",
    )  # fmt: skip
    alone = json.loads((project / "grammar.json").read_text(encoding="utf-8"))["models"]
    assert [entry["grammar"] for entry in alone] == [right for _, right in found["curve"]]
    assert found["phenomena"] == alone[1]["phenomena"] and found["name"] == "tuned"
    section = page[page.index("## 语法 Grammar") :].partition("\n## ")[0]
    assert "my report_files/grammar.png" in section and f"| **全部 all** | 24 | {found['grammar']:.4f} |" in section
    assert f"in {found['grammar']:.1%} " in page


def test_without_data_the_report_says_what_is_missing_and_why(project, monkeypatch, capsys):
    change_settings(project / "out/base/ckpt.pt", data_dir="elsewhere/articles")
    change_settings(project / "out/tuned/ckpt.pt", data_dir="elsewhere/questions")
    (project / "out/tuned/log.jsonl").unlink()
    page, figures = make_report(monkeypatch, project)
    missing = dict(figures["card"]["missing"])
    assert len(missing) == 5
    assert all(
        "no prepared data in elsewhere/questions" in missing[part] for part in ("困惑度 perplexity", "问答 answers")
    )
    assert (
        "no prepared data in elsewhere/articles" in missing["微调前后的困惑度 perplexity before and after fine-tuning"]
    )
    assert "## 模型 Model" in page and "## 没有测的 Not measured" in page and "## 问答 Answers" not in page
    assert "log.jsonl is not there" in page
    assert "not measured (no prepared data" in capsys.readouterr().out


def test_a_pretrained_checkpoint_continues_articles(project, monkeypatch, architecture):
    save_tiny(project / "out/base/ckpt.pt", "pretrain", data_dir="data/base", architecture=architecture)
    page, figures = make_report(monkeypatch, project, "--ckpt=out/base/ckpt.pt", "--max_samples=0")
    assert f"| 架构 architecture | {architecture} |" in page
    assert "articles from their first clause" in page and "exactly as the reference" not in page
    assert [row["part"] for row in figures["card"]["perplexity"]] == ["val"]
    assert figures["pairs"] == 5 and "所有的回答 All answers" in page  # too few for a best and a worst ten


def test_questions_that_are_corrections_are_measured_as_such(project, monkeypatch):
    rows = [
        ("东河边有三座桥。", "东河边有三座桥。"),
        ("第二座桥最最长。", "第二座桥最长。"),
        ("它在北边。", "它在北边。"),
    ]
    write_jsonl(
        project / "wrong.jsonl", [{"question": q, "answer": a, "kind": "doubled" if q != a else ""} for q, a in rows]
    )
    page, figures = make_report(monkeypatch, project, "--questions=wrong.jsonl")
    found = figures["card"]["corrections"]
    assert (found["pairs_to_change"], found["pairs_to_keep"]) == (1, 2)
    assert "## 句子纠错 Sentence correction" in page and "doubled" in page
    assert "of the sentences to change, and leaves" in page
    _, figures = make_report(monkeypatch, project)
    assert not figures["card"]["corrections"]


def test_contamination_comes_before_any_figure(project, monkeypatch):
    found = Contamination(["data/tuned"], 0.5, leaked_rows=7, rows=12, verdict="leaked")
    monkeypatch.setattr("minigpt.evaluation.contamination.check_contamination", lambda *_, **__: found)
    page, _ = make_report(monkeypatch, project)
    first = page.index(
        "**The figures on data/tuned test do not show how it does on new text**: 7 of the 12 rows were trained on, "
        "and 50.0% of their n-grams of 16 characters occur in training rows."
    )
    assert first < page.index("questions, it answers")
    assert "contamination check: WARNING: contaminated: 7 of 12 rows" in page


def town(number, repeats=False):
    """An article that shares no n-gram with another; with `repeats`, its second half is from the first one."""
    own = "".join(chr(0x4E00 + number * 100 + i) for i in range(80))
    return f"{own[:40]}{town(0)[:40]}。" if repeats else f"{own}。"


def test_report_and_perplexity_script_find_the_same_contamination(tmp_path, monkeypatch):
    make_project(tmp_path)
    tokenizer, block = byte_tokenizer(), 300
    with RowWriter(tmp_path / "data/base", ["train", "val"], block, tokenizer) as writer:
        for part, text in [("train", town(i)) for i in range(39)] + [("val", town(39, repeats=True))]:
            writer.add(part, tokenizer.encode(text), len(text))
        writer.finish({"stage": "pretrain"})
    with RowWriter(tmp_path / "data/tuned", ["train", "val", "test"], block, tokenizer) as writer:
        for i in range(30):
            question, answer = f"问{chr(0x5000 + i)}？", f"答{chr(0x6000 + i)}。"
            ids = [*tokenizer.encode(question), tokenizer.answer_id, *tokenizer.encode(answer)]
            writer.add(("train", "val", "test")[i // 10], ids, len(question + answer))
        writer.finish({"stage": "sft"})
    for name, stage, began in (("base", "pretrain", "scratch"), ("tuned", "sft", "out/base/ckpt.pt")):
        model = tiny_model(vocab_size=tokenizer.n_vocab, block_size=block)
        settings = TrainSettings(data_dir=f"data/{name}", init_from=began)
        save_checkpoint(
            tmp_path / f"out/{name}/ckpt.pt", model.state_dict(), model.config, settings, stage, tokenizer, {"step": 1}
        )
    flags = "--ckpt=out/base/ckpt.pt", "--data_dir=data/base", "--json=perplexity.json"
    run_here(monkeypatch, tmp_path, load_script("evaluations-perplexity.py"), *flags)
    found = json.loads((tmp_path / "perplexity.json").read_text(encoding="utf-8"))["leak"]
    assert found["verdict"] == "leaked" and found["leaked_rows"] == 0 and found["share"] == pytest.approx(0.4, abs=0.05)
    page, figures = make_report(monkeypatch, tmp_path)
    by_rows = {leak["of"]: leak for leak in figures["card"]["leaks"]}
    assert list(by_rows) == ["data/tuned test", "data/tuned val", "data/base val"]
    for key in ("share", "leaked_rows", "rows", "verdict"):
        assert by_rows["data/base val"][key] == figures["card"]["leak"][key] == found[key]
    assert by_rows["data/tuned test"]["verdict"] == by_rows["data/tuned val"]["verdict"] == "clean"
    assert "The figures on data/base val do not show" in page and "was not found" not in page
    page, figures = make_report(monkeypatch, tmp_path, "--ckpt=out/base/ckpt.pt")
    assert {key: figures["card"]["leak"][key] for key in found} == found and "was not found" not in page


@pytest.mark.parametrize(
    "flag, said",
    [
        ("--ckpt=http://127.0.0.1:9/v1", "a report is of a checkpoint"),
        ("--ckpt=out/tuned", "looks at one model"),
        ("--ckpt=out/none.pt", "out/none.pt is not there"),
    ],
)
def test_a_report_is_of_one_checkpoint(project, monkeypatch, flag, said):
    with pytest.raises(UserError, match=re.escape(said)):
        make_report(monkeypatch, project, flag)
    assert not (project / "reports").exists()


def test_ctrl_c_leaves_an_older_report_unchanged(project, monkeypatch, capsys):
    older, _ = make_report(monkeypatch, project)
    plots = {path: path.read_bytes() for path in (project / "reports/my report_files").iterdir()}

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("minigpt.evaluation.report_figures.run_sweep", stopped)
    with pytest.raises(KeyboardInterrupt):
        make_report(monkeypatch, project, "--seed=5")
    assert (project / "reports/my report.md").read_text(encoding="utf-8") == older
    assert all(path.read_bytes() == before for path, before in plots.items())
    assert "no report is written" in capsys.readouterr().out


def test_the_report_is_reproducible(project, monkeypatch):
    first, figures = make_report(monkeypatch, project)
    second, again = make_report(monkeypatch, project)
    assert first == second and figures == again


def test_a_run_without_a_known_base_is_noted(project, monkeypatch):
    change_settings(project / "out/tuned/ckpt.pt", init_from="out/tuned/ckpt.pt")
    _, figures = make_report(monkeypatch, project)
    assert "recorded as its own starting point" in figures["card"]["missing"][0][1]
    change_settings(project / "out/tuned/ckpt.pt", init_from="resume")
    _, figures = make_report(monkeypatch, project)
    assert "does not record what it started from" in figures["card"]["missing"][0][1]


@pytest.mark.parametrize(
    "text, shown",
    [
        ("a|b *c* _d_ `e` [f](g)", r"a|b \*c\* \_d\_ \`e\` \[f\](g)"),
        ("<script>&", "&lt;script&gt;&amp;"),
        ("# 题\n- 二", r"\# 题 - 二"),
        ("http://x.cn @you", "http&#58;//x.cn &#64;you"),
        ("back\\slash\x1b[2J", r"back\\slash�\[2J"),
    ],
)
def test_text_of_a_model_is_escaped(text, shown):
    assert escape_markdown(text) == shown


def test_public_paths_do_not_reveal_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert public_path(tmp_path / "out" / "a.pt") == "out/a.pt" and public_path("out/a.pt") == "out/a.pt"
    assert public_path("/home/somebody/models/out/a.pt") == "out/a.pt"


def decoding(best, given, low, high):
    """Two rows of a sweep with their Rouge-L F; the interval of the given one is [low, high], of the other ±0.05."""
    rows = [("temperature", 0.1, given, low, high, True), ("temperature", 1.0, best, best - 0.05, best + 0.05, False)]
    names = ("setting", "value", "rouge_l_f", "rouge_l_f_low", "rouge_l_f_high", "as_given")
    return [{**dict(zip(names, row, strict=True)), "temperature": row[1], "pairs": 100} for row in rows]


@pytest.mark.parametrize(
    "best, given, low, high, said",
    [
        (
            0.8,
            0.5,
            0.4,
            0.6,
            "temperature=1 has the highest Rouge-L F: 0.800, against 0.500 as given, and the intervals do not overlap.",
        ),
        (0.6, 0.5, 0.4, 0.6, "against 0.500 as given, but the intervals overlap."),
        (0.6, 0.5, None, None, "against 0.500 as given."),
        (0.5, 0.6, 0.5, 0.7, "none has a higher Rouge-L F than the given ones (0.600)"),
    ],
)
def test_the_sentence_about_decoding_depends_on_the_intervals(best, given, low, high, said):
    ((_, english),) = summary_sentences({"decoding": decoding(best, given, low, high)})
    assert said in english


def test_a_report_on_few_questions_has_no_interval_and_no_comparison(project, monkeypatch):
    page, figures = make_report(monkeypatch, project, "--max_samples=19")
    assert figures["intervals"]["rouge_l_f"] is None and figures["card"]["change"] is None
    few = "(too few rows (19) for an interval; give at least 20)"
    assert f"Rouge-L F is {figures['rouge_l_f']:.3f} {few}." in page
    assert "(too few rows (5) for an interval; give at least 20)." in page
    rows = [{**row, "pairs": 19} for row in decoding(0.8, 0.5, 0.4, 0.6)]
    ((chinese, english),) = summary_sentences({"decoding": rows, "resamples": 50})
    assert english == f"The decoding settings tried are not compared {few}." and "只有 19 行" in chinese


def test_without_intervals_and_contamination_check_the_report_mentions_none(project, monkeypatch):
    page, figures = make_report(monkeypatch, project, "--check_leak=False", "--resamples=0")
    top = page.split("## ")[0]
    assert "bootstrap" not in top and "interval" not in top and "trained on" not in top and "nan" not in top
    assert (
        "Contamination check" not in page and "its perplexity is" in top and figures["intervals"]["rouge_l_f"] is None
    )
