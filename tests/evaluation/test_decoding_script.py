"""evaluations-decoding.py: each setting is varied alone, with a model whose answers are known."""

import csv
import json

import pytest
from evaluation_fakes import load_script, make_project, run_here

from minigpt.common.errors import UserError
from minigpt.evaluation.decoding_sweep import SWEPT_VALUES, draw_sweep, plan_sweep, run_sweep, sweep_size, sweep_table
from minigpt.evaluation.plots import save_plot
from minigpt.inference.params import SamplingParams

SCRIPT = load_script("evaluations-decoding.py")
PAIRS = [("甲", "天地玄黄"), ("乙", "宇宙洪荒"), ("丙", "日月")]


class Known:
    """A model that is right when greedy, and repeats itself otherwise; at top_p 0.5 it does not answer 丙."""

    def __init__(self):
        self.asked = []

    def answers(self, prompts, params, progress=None):
        self.asked.append(params)
        right = dict(PAIRS)
        progress(len(prompts))
        if params.temperature == 0:
            return [right[prompt] for prompt in prompts]
        return [None if params.top_p == 0.5 and prompt == "丙" else "天地玄黄天地玄黄" for prompt in prompts]


@pytest.fixture
def swept():
    model, counts = Known(), []
    rows = run_sweep(model, PAIRS, SamplingParams(seed=1), list(SWEPT_VALUES), counts.append, resamples=100)
    return model, rows, counts


def row(rows, setting, value):
    return next(found for found in rows if (found["setting"], found["value"]) == (setting, value))


def test_a_plan_varies_one_setting_and_leaves_the_rest():
    params = SamplingParams(temperature=0.3, top_k=7, repetition_penalty=1.3)
    steps = plan_sweep(params, list(SWEPT_VALUES))
    for name, value, own in steps:
        assert getattr(own, name) == value
        other = "temperature" if name in ("top_k", "top_p") else name
        rest = [n for n in SWEPT_VALUES if n not in (name, other)]
        assert [getattr(own, n) for n in rest] == [getattr(params, n) for n in rest]
        assert name == "temperature" or own.temperature == (1.0 if name in ("top_k", "top_p") else 0.3)
    assert [value for name, value, _ in steps if name == "top_k"] == [1, 5, 7, 20, 100, 0]  # the given one among them
    assert [value for name, value, _ in steps if name == "temperature"] == [0.0, 0.1, 0.3, 0.5, 1.0, 1.5]
    assert {name for name, _, _ in plan_sweep(params, ["top_p"])} == {"top_p"}


def test_parameters_shared_by_settings_are_run_once(swept):
    model, rows, counts = swept
    assert len(rows) == 25 and len(model.asked) == 21 == sweep_size(SamplingParams(seed=1), list(SWEPT_VALUES))
    assert sum(counts) == 21 * len(PAIRS)
    same = [
        {k: v for k, v in found.items() if k not in ("setting", "value", "given")} for found in rows if found["given"]
    ]
    assert same[0] == same[3] == same[4] and same[1] == same[2] == {
        k: v for k, v in row(rows, "temperature", 1.0).items() if k in same[1]
    }


def test_the_figures_of_a_row_worked_out_by_hand(swept):
    _, rows, _ = swept
    greedy, given = row(rows, "temperature", 0.0), row(rows, "temperature", 0.1)
    assert (greedy["rouge_l_f"], greedy["exact_match"], greedy["repetition"]) == (1.0, 1.0, 0.0)
    assert (greedy["rouge_l_f_low"], greedy["rouge_l_f_high"]) == (None, None)  # of three pairs
    more = run_sweep(Known(), PAIRS * 7, SamplingParams(), ["temperature"], lambda n: None, resamples=100)
    assert (more[0]["rouge_l_f_low"], more[0]["rouge_l_f_high"]) == (1.0, 1.0)
    assert (greedy["distinct_2"], greedy["distinct_3"]) == (1.0, 1.0)
    assert greedy["characters"] == pytest.approx(10 / 3)
    assert given["rouge_l_f"] == pytest.approx((2 * 4 / 12 + 0 + 0) / 3)
    assert (given["exact_match"], given["repetition"]) == (0.0, pytest.approx(1 / 5))
    assert given["distinct_2"] == pytest.approx(4 / 21)  # 天地 地玄 玄黄 黄天, of seven in each of three
    assert given["distinct_3"] == pytest.approx(4 / 18)
    assert greedy["failed"] == 0 and greedy["pairs"] == 3


def test_a_question_without_an_answer_is_left_out_of_a_row(swept):
    _, rows, _ = swept
    half = row(rows, "top_p", 0.5)
    assert (half["pairs"], half["failed"]) == (2, 1)
    assert half["rouge_l_f"] == pytest.approx((2 * 4 / 12 + 0) / 2)


def test_the_table_marks_given_values_and_has_the_temperature(swept):
    names, cells = sweep_table(swept[1])
    by_row = {tuple(cell[:2]): dict(zip(names[2:], cell[2:], strict=True)) for cell in cells}
    assert len(cells) == 25 and ("temperature", "0.1*") in by_row and ("top_k", "20*") in by_row
    assert by_row["top_p", "0.9"]["temperature"] == "1" and by_row["frequency_penalty", "2"]["temperature"] == "0.1"
    without = run_sweep(Known(), PAIRS, SamplingParams(), ["temperature"], lambda n: None, resamples=0)
    assert sweep_table(without)[1][0][4] is None


def test_the_plot_has_a_panel_for_each_setting(swept, tmp_path):
    rows = swept[1]
    panels = [panel for panel in draw_sweep(rows).axes if panel.lines]
    assert [panel.get_title() for panel in panels][:2] == ["temperature", "top_k (at temperature 1)"]
    assert len(panels) == 5
    assert [label.get_text() for label in panels[1].get_xticklabels()] == ["1", "5", "20", "100", "all"]
    curve = panels[0].lines[0].get_ydata()
    assert list(curve) == [found["rouge_l_f"] for found in rows if found["setting"] == "temperature"]
    one = run_sweep(Known(), PAIRS, SamplingParams(), ["top_p"], lambda n: None, resamples=0)
    png, svg = save_plot(draw_sweep(one), tmp_path / "plots" / "one.png")
    assert png.read_bytes().startswith(b"\x89PNG") and b"<svg" in svg.read_bytes()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("project"))


def test_the_script_writes_table_plot_csv_and_json(project, monkeypatch, capsys):
    flags = ["--ckpt=out/tuned/ckpt.pt", "--data_dir=data/tuned", "--max_samples=4", "--max_new_tokens=6"]
    flags += ["--sweep=temperature,top_k", "--csv=d.csv", "--json=d.json"]
    run_here(monkeypatch, project, SCRIPT, *flags)
    said = capsys.readouterr().out
    first = (project / "d.json").read_text(encoding="utf-8")
    figures = json.loads(first)
    assert (figures["name"], figures["step"], figures["pairs"], len(figures["rows"])) == ("tuned", 20, 4, 10)
    with open(project / "d.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(found["repetition"]) for found in rows] == [found["repetition"] for found in figures["rows"]]
    assert "note: answers: too few rows (4) for an interval; give at least 20" in said
    assert "contamination check" in said and "top_k and top_p at temperature 1" in said and "Rouge-L F" in said
    assert (project / "out/tuned/decoding.png").is_file() and (project / "out/tuned/decoding.svg").is_file()
    greedy, likeliest = (row(figures["rows"], *at) for at in (("temperature", 0.0), ("top_k", 1)))
    assert [greedy[n] for n in ("rouge_l_f", "distinct_2")] == [likeliest[n] for n in ("rouge_l_f", "distinct_2")]
    run_here(monkeypatch, project, SCRIPT, *flags, "--max_batch=2", "--plot=again.png")
    assert (project / "d.json").read_text(encoding="utf-8") == first and (project / "again.png").is_file()


def test_the_script_needs_exactly_one_model_and_a_setting(project, monkeypatch):
    with pytest.raises(UserError, match=r"looks at one model; name one of .*step_10\.pt, .*ckpt\.pt"):
        run_here(monkeypatch, project, SCRIPT, "--ckpt=out/tuned", "--data_dir=data/tuned")
    with pytest.raises(UserError, match="--sweep names nothing"):
        run_here(monkeypatch, project, SCRIPT, "--ckpt=out/tuned/ckpt.pt", "--sweep=[]")
