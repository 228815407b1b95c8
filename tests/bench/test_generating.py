"""bench.py generate: all ways compute the same, and the figures become ratios and tables."""

import contextlib
import json
import sys
from types import SimpleNamespace

import gguf
import pytest
import serving_fakes
import torch
from tiny import confident_model, padded_rows, random_ids, tiny_meta, tiny_model, tiny_tokenizer, write_rows

from minigpt.bench import generating, load
from minigpt.bench.common import medians
from minigpt.bench.llama_cpp import GREEDY_REQUEST, LlamaCpp, check_same_text, open_llama_cpps, round_as_gguf
from minigpt.checkpoint import save_checkpoint
from minigpt.common.errors import UserError
from minigpt.formats.gguf_file import gguf_weights, write_gguf
from minigpt.inference.engine import TextGenerator
from minigpt.inference.likelihood import likelihood
from minigpt.inference.params import SamplingParams
from minigpt.settings.stages import BenchSettings


def speed(rates):
    return {case: {"tokens_per_second": rate, "first_token": 0.01} for case, rate in rates.items()}


SPEED = speed(
    {
        ("plain loop, float32", 1): 10.0, ("Hugging Face, float32", 1): 40.0, ("ours, float32", 1): 44.0,
        ("ours, int8", 1): 200.0, ("Hugging Face, float32", 8): 100.0,
        ("ours, int8", 8): 900.0, (generating.adapters_way("int8"), 8): 810.0,
        ("llama.cpp, float32", 1): 55.0, ("llama.cpp, q8_0", 1): 100.0, ("llama.cpp, q8_0", 8): 500.0,
    }
)  # fmt: skip
LOADS = {
    (server, clients): {"tokens_per_second": rate * clients**0.5, "first_50": 0.1, "first_99": 0.2, "between_50": 0.01,
                        "between_99": 0.02}
    for server, rate in (("ours, int8", 150.0), ("llama.cpp, q8_0", 100.0))
    for clients in generating.REQUESTS_OF_EACH
}  # fmt: skip
STARTS = {"first": {1: 20.5, 8: None}, "later": {1: 9.0, 8: 10.0}}


@pytest.fixture(scope="module")
def ways(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "last.pt"
    model = tiny_model()
    save_checkpoint(path, model.state_dict(), model.config, BenchSettings(), "pretrain", tiny_tokenizer(), {"step": 1})
    return generating.GenerationWays(path, torch.device("cpu"))


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
    prices = {"float32": 20.0, "bfloat16": 20.1, "int8": 20.2, "llama.cpp, q8_0": 20.4}
    ratios = generating.generation_ratios(SPEED, LOADS, prices, {}, "int8")
    assert ratios["one_stream_vs_hf"] == 5.0
    assert ratios["one_stream_vs_plain"] == 20.0
    assert ratios["float32_vs_hf"] == 1.1
    assert ratios["eight_streams_vs_hf8"] == pytest.approx(150 * 8**0.5 / 100)
    assert ratios["eight_streams_vs_one"] == pytest.approx(150 * 8**0.5 / 200)
    assert ratios["server_vs_engine_8"] == pytest.approx(150 * 8**0.5 / 900)
    assert ratios["int8_vs_llama_cpp_1"] == 2.0 and ratios["int8_vs_llama_cpp_8"] == 1.8
    assert ratios["float32_vs_llama_cpp_1"] == 0.8 and ratios["float32_vs_llama_cpp_8"] is None
    assert ratios["int8_server_vs_llama_cpp_8"] == pytest.approx(1.5)
    assert ratios["float32_server_vs_llama_cpp_1"] is None
    assert ratios["int8_perplexity_ratio"] == pytest.approx(1.01)
    assert ratios["bf16_perplexity_ratio"] == pytest.approx(1.005)
    assert ratios["llama_cpp_q8_0_perplexity_ratio"] == pytest.approx(1.02)
    assert ratios["demo_int8_perplexity_ratio"] is None
    assert ratios["mixed_adapters_int8_vs_base"] == pytest.approx(0.9)
    assert ratios["mixed_adapters_float32_vs_base"] is None
    table = generating.generation_table(SPEED, LOADS, STARTS, ratios, 1.5)
    assert "| ours, int8 | 8 | 900.0 | 1350.0 | 10 |" in table
    assert "| llama.cpp, q8_0 | 1 | 100.0 | 100.0 | 200.0 | 10.0 | 20.0 |" in table
    assert "| first | 8 | not reached |" in table and "| later | 1 | 9.0 |" in table
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
    path = folder / "last.pt"
    model = tiny_model()
    save_checkpoint(path, model.state_dict(), model.config, BenchSettings(), "pretrain", tiny_tokenizer(), {"step": 1})
    monkeypatch.setattr(generating, "PROMPT_TOKENS", 8)
    monkeypatch.setattr(generating.tempfile, "TemporaryDirectory", lambda **_: contextlib.nullcontext(folder))
    monkeypatch.setattr(generating, "make_checkpoint", lambda *_: path)
    monkeypatch.setattr(generating, "GenerationWays", lambda *_: ways)
    monkeypatch.setattr(generating, "open_llama_cpps", lambda *_: {})
    server = SimpleNamespace(wait_until_compiled=lambda: None, address="http://127.0.0.1:1")
    monkeypatch.setattr(generating, "ServedModel", lambda *_: contextlib.nullcontext(server))
    monkeypatch.setattr(generating, "measure_generation", lambda *_: (SPEED, LOADS))
    monkeypatch.setattr(generating, "measure_starts", lambda *_: STARTS)
    monkeypatch.setattr(generating, "demo_perplexities", lambda _: {})
    settings = BenchSettings(json=str(tmp_path / "figures.json"), docs=str(tmp_path / "docs.md"), device="cpu")
    generating.bench_generation(settings)
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures["one_stream_vs_hf"] == 5.0 and figures["int8_perplexity_ratio"] == pytest.approx(1, rel=0.01)
    assert "| one_stream_vs_hf | 5.0000 |" in capsys.readouterr().out
    assert "| one_stream_vs_hf | 5.0000 |" in (tmp_path / "docs.md").read_text(encoding="utf-8")


def test_a_round_has_every_way_and_every_server(monkeypatch):
    asked = []

    def load_server(address, prompts, clients, requests, n_new, fields):
        asked.append((address, clients, requests, n_new, fields))
        return {"tokens_per_second": len(asked)}

    monkeypatch.setattr(generating, "load_server", load_server)
    direct = contextlib.nullcontext(lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(generating, "fresh_process", lambda: direct)
    names = ("plain loop, float32", "ours, int8", generating.adapters_way("int8"))
    ways = SimpleNamespace(ways=dict.fromkeys(names), time=lambda name, prompts, n_new: n_new / 10)
    servers = {"ours, int8": ("a", {}, [1]), "llama.cpp, q8_0": ("b", {"ignore_eos": True}, [8])}
    speed, loads = generating.measure_generation(ways, servers, [[1]] * 8, 2)
    assert speed["ours, int8", 8] == {"tokens_per_second": 80.0, "first_token": 0.1}
    assert set(speed) == {(names[0], 1), (names[1], 1), (names[1], 8), (names[2], 8)}
    assert asked[:2] == [("a", 1, 1, 8, {}), ("b", 8, 1, 8, {"ignore_eos": True})]
    assert asked[2:4] == [("a", 1, 3, 100, {}), ("b", 8, 2, 100, {"ignore_eos": True})]
    assert loads["ours, int8", 1] == {"tokens_per_second": 4}  # the median of rounds 1 and 2: of requests 3 and 5


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """(`TextGenerator` of a model, a `LlamaCpp` with its GGUF file)."""
    pytest.importorskip("xllamacpp")
    model, file = confident_model("gpt2"), tmp_path_factory.mktemp("gguf") / "a.gguf"
    write_gguf(file, model, tiny_tokenizer(), "pretrain", "float32", "a")
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(LlamaCpp(file, 64, 8))
        except UserError as error:
            pytest.skip(f"xllamacpp does not run on this processor: {error}")
        yield TextGenerator(model, tiny_tokenizer(), "pretrain"), opened


@pytest.mark.numeric
def test_llama_cpp_makes_our_greedy_text_with_and_without_http(llama):
    generator, opened = llama
    prompts = (33 + random_ids(8, 6, below=90)).tolist()
    assert check_same_text(generator, {"float32": opened}, prompts) == {"float32": 1.0}
    params = SamplingParams(temperature=0, max_new_tokens=9)
    assert opened.generate(prompts, 9) == generator.generate(prompts, params)
    assert load.load_server(opened.address, prompts, 3, 2, 9, GREEDY_REQUEST)["tokens_per_second"] > 0
    assert opened.about.startswith("llama.cpp: xllamacpp 20") and "CPU" not in opened.about


@pytest.mark.numeric
def test_llama_cpp_with_another_model_is_not_measured(llama):
    _, opened = llama
    other = TextGenerator(tiny_model(), tiny_tokenizer(), "pretrain")
    with pytest.raises(UserError, match="something else"):
        check_same_text(other, {"float32": opened}, random_ids(4, 6).tolist())


def test_without_llama_cpp_the_others_are_measured(monkeypatch, tmp_path, capsys):
    path, model = tmp_path / "last.pt", tiny_model()
    save_checkpoint(path, model.state_dict(), model.config, BenchSettings(), "pretrain", tiny_tokenizer(), {"step": 1})
    direct = contextlib.nullcontext(lambda function, *arguments: function(*arguments))
    monkeypatch.setattr("minigpt.bench.llama_cpp.fresh_process", lambda: direct)
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    assert open_llama_cpps(contextlib.ExitStack(), path, tmp_path, ["float32"], 8) == {}
    assert "llama.cpp is not measured: pip install -r requirements-dev.txt" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", generating.ROUNDED_GGUF_TYPES)
def test_rounded_weights_are_those_of_the_gguf_file(tmp_path, dtype):
    write_gguf(tmp_path / "a.gguf", confident_model("gpt2"), tiny_tokenizer(), "pretrain", dtype, "a")
    rounded = gguf_weights(round_as_gguf(confident_model("gpt2"), dtype))
    tensors = gguf.GGUFReader(tmp_path / "a.gguf").tensors
    assert {tensor.name for tensor in tensors} == set(rounded)
    for tensor in tensors:
        stored = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert torch.equal(rounded[tensor.name].flatten(), torch.from_numpy(stored.copy()).flatten().float())


def test_a_start_is_over_when_the_rate_is_that_of_a_warm_server(monkeypatch):
    """A server that is asked for the third time is fast with one client, and never with eight."""
    asked = []

    def load_server(address, prompts, clients, requests, n_new):
        asked.append(clients)
        slow = address == "new" and (clients == 8 or asked.count(1) < 9)  # 6 times the warm one
        return {"tokens_per_second": 10.0 if slow else 100.0}

    now = iter(range(1000))
    monkeypatch.setattr(load, "load_server", load_server)
    monkeypatch.setattr(load, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    server = SimpleNamespace(address="new", started=0)
    monkeypatch.setattr(load, "ServedModel", lambda *_, environment: contextlib.nullcontext(server))
    found = load.seconds_to_full_speed("last.pt", [], [[1]], "warm", {})
    assert found[1] < load.FULL_SPEED_SECONDS and found[8] is None


def test_the_median_of_the_rounds_counts():
    assert medians([{"a": 3, "b": 1}, {"a": 1, "b": 5}, {"a": 2, "b": 2}]) == {"a": 2, "b": 2}


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
