"""bench.py generate: all ways compute the same, and the figures become ratios and tables."""

import contextlib
import json
from types import SimpleNamespace

import pytest
import serving_fakes
import torch
from tiny import padded_rows, random_ids, tiny_meta, tiny_model, tiny_tokenizer, write_rows

from minigpt.bench import generating, load
from minigpt.checkpoint import save_checkpoint
from minigpt.common.errors import UserError
from minigpt.inference.likelihood import likelihood
from minigpt.settings.stages import BenchSettings


def speed(rates):
    return {case: {"tokens_per_second": rate, "first_token": 0.01} for case, rate in rates.items()}


SPEED = speed(
    {
        ("plain loop, float32", 1): 10.0, ("Hugging Face, float32", 1): 40.0, ("ours, float32", 1): 44.0,
        ("ours, int8", 1): 50.0, ("ours, int8, compiled", 1): 200.0, ("Hugging Face, float32", 8): 100.0,
        ("ours, int8", 8): 400.0, ("ours, int8, compiled", 8): 900.0, (generating.adapters_way("int8"), 8): 360.0,
    }
)  # fmt: skip
LOADS = {
    clients: {"tokens_per_second": 150.0 * clients**0.5, "first_50": 0.1, "first_99": 0.2, "between_50": 0.01,
              "between_99": 0.02}
    for clients in generating.REQUESTS_OF_EACH
}  # fmt: skip


@pytest.fixture(scope="module")
def ways(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "last.pt"
    model = tiny_model()
    save_checkpoint(path, model.state_dict(), model.config, BenchSettings(), "pretrain", tiny_tokenizer(), {"step": 1})
    return generating.GenerationWays(path, torch.device("cpu"), compiled=())


@pytest.mark.numeric
def test_hugging_faces_model_computes_what_ours_does():
    model, ids = tiny_model(), random_ids(3, 32)
    with torch.no_grad():
        torch.testing.assert_close(generating.to_hugging_face(model)(ids).logits, model(ids), atol=1e-5, rtol=0)


@pytest.mark.numeric
def test_every_way_makes_the_same_greedy_text(ways):
    compared = 0
    for prompt in random_ids(40, 8).tolist():
        ids = ways.ways["plain loop, float32"]([prompt], 4)[0, 8:].tolist()
        if max(ids) >= 256:  # ids without text, which ours never samples
            continue
        compared += 1
        assert ways.ways["Hugging Face, float32"]([prompt], 4)[0, 8:].tolist() == ids
        assert ways.ways["ours, float32"]([prompt], 4) == [tiny_tokenizer().decode(ids)]
    assert compared > 5
    for name in ("ours, bfloat16", "ours, int8", *map(generating.adapters_way, generating.COMPARED_TYPES)):
        assert len(ways.ways[name](random_ids(3, 8).tolist(), 4)) == 3
        assert ways.time(name, [[1, 2]], 3) > 0


def test_ratios_are_ours_over_the_others():
    prices = {"float32": 20.0, "bfloat16": 20.1, "int8": 20.2}
    ratios = generating.generation_ratios(SPEED, LOADS, prices, {})
    assert ratios["one_stream_vs_hf"] == 5.0
    assert ratios["one_stream_vs_plain"] == 20.0
    assert ratios["float32_vs_hf"] == 1.1
    assert ratios["eight_streams_vs_hf8"] == pytest.approx(150 * 8**0.5 / 100)
    assert ratios["eight_streams_vs_one"] == pytest.approx(150 * 8**0.5 / 200)
    assert ratios["int8_perplexity_ratio"] == pytest.approx(1.01)
    assert ratios["bf16_perplexity_ratio"] == pytest.approx(1.005)
    assert ratios["demo_int8_perplexity_ratio"] is None
    assert ratios["mixed_adapters_int8_vs_base"] == pytest.approx(0.9)
    assert ratios["mixed_adapters_float32_vs_base"] is None
    table = generating.generation_table(SPEED, LOADS, ratios, 1.5)
    assert "| ours, int8, compiled | 8 | 900.0 | 1350.0 | 10 |" in table
    assert "| demo_int8_perplexity_ratio | not measured |" in table


@pytest.mark.numeric
def test_perplexity_by_steps_is_that_of_whole_rows():
    rows = padded_rows([random_ids(n, seed=n).tolist() for n in (32, 5, 17, 9)], 32)
    expected = likelihood(tiny_model(), rows, tiny_meta("pretrain"), 4, train_on_eot=False).perplexity
    assert generating.perplexity(tiny_model(), rows, tiny_meta("pretrain")) == pytest.approx(expected, rel=1e-4)


@pytest.mark.numeric
def test_the_whole_comparison_prints_and_writes_its_figures(ways, tmp_path, monkeypatch, capsys):
    """All of it without training, the server and timing."""
    folder = tmp_path / "bench"
    rows = [random_ids(n, seed=n).tolist() for n in (20, 12, 31)]
    write_rows(folder / "rows", {"train": rows, "val": rows}, 32)
    monkeypatch.setattr(generating, "PROMPT_TOKENS", 8)
    monkeypatch.setattr(generating.tempfile, "TemporaryDirectory", lambda **_: contextlib.nullcontext(folder))
    monkeypatch.setattr(generating, "make_checkpoint", lambda *_: None)
    monkeypatch.setattr(generating, "GenerationWays", lambda *_: ways)
    server = SimpleNamespace(wait_until_compiled=lambda: None)
    monkeypatch.setattr(generating, "ServedModel", lambda *_: contextlib.nullcontext(server))
    monkeypatch.setattr(generating, "measure_generation", lambda *_: (SPEED, LOADS))
    monkeypatch.setattr(generating, "demo_perplexities", dict)
    settings = BenchSettings(json=str(tmp_path / "figures.json"), docs=str(tmp_path / "docs.md"), device="cpu")
    generating.bench_generation(settings)
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures["one_stream_vs_hf"] == 5.0 and figures["int8_perplexity_ratio"] == pytest.approx(1, rel=0.01)
    assert "| one_stream_vs_hf | 5.0000 |" in capsys.readouterr().out
    assert "| one_stream_vs_hf | 5.0000 |" in (tmp_path / "docs.md").read_text(encoding="utf-8")


def test_the_median_of_the_rounds_counts():
    assert generating.medians([{"a": 3, "b": 1}, {"a": 1, "b": 5}, {"a": 2, "b": 2}]) == {"a": 2, "b": 2}


def test_clients_count_every_token_and_the_time_of_each_piece(monkeypatch):
    monkeypatch.setattr(load, "MODEL", "fake")
    with serving_fakes.serving(serving_fakes.__file__) as server:
        figures = load.load_server(server.url, [[1, 2, 3]], clients=3, requests=2, n_new=20)
        assert figures["tokens_per_second"] > 0
        assert 0 < figures["first_50"] <= figures["first_99"]
        assert 0 < figures["between_50"] <= figures["between_99"]
        monkeypatch.setattr(load, "MODEL", "another")
        with pytest.raises(UserError, match="404"):
            load.load_server(server.url, [[1]], clients=1, requests=1, n_new=3)


def test_a_server_that_ends_is_said():
    with pytest.raises(UserError, match="nowhere"), load.ServedModel("nowhere.pt"):
        pass
