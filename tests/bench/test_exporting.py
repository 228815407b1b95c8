"""bench.py export: llama.cpp's answers beside ours, on the test part of the checkpoint's own rows."""

import json

import pytest
from llama_file import ask_llama_cpp
from tiny import MARK, confident_model, random_ids, tiny_tokenizer, write_rows

from minigpt.bench.exporting import NEAR_TIE_NATS, ask_here, bench_exporting, compare_answers
from minigpt.checkpoint import save_checkpoint
from minigpt.formats.gguf_file import write_gguf
from minigpt.inference.engine import TextGenerator
from minigpt.settings.stages import BenchSettings, TrainSettings

pytest.importorskip("xllamacpp")


@pytest.mark.numeric
def test_float32_answers_as_we_do(tmp_path, capfd):
    rows = [[*(33 + random_ids(6, below=90, seed=i)).tolist(), MARK, 65] for i in range(3)]
    write_rows(tmp_path / "rows", {"test": rows}, 64, "sft")
    model, path = confident_model("qwen3"), tmp_path / "run/ckpt.pt"
    settings = TrainSettings(data_dir=str(tmp_path / "rows"))
    save_checkpoint(path, model.state_dict(), model.config, settings, "sft", tiny_tokenizer(), {"step": 1})
    write_gguf(tmp_path / "a.gguf", model, tiny_tokenizer(), "sft", "float32", "a")
    ask_llama_cpp(tmp_path / "a.gguf", [])  # skips where it does not run
    figures = tmp_path / "figures.json"
    bench_exporting(BenchSettings(ckpt=[str(path)], json=str(figures), docs=str(tmp_path / "docs.md")))
    sides = json.loads(figures.read_text(encoding="utf-8"))
    assert sides["llama.cpp, float32"]["equal"] == 1 and sides["llama.cpp, q4_0"]["tokens_per_second"] > 0
    assert "3 questions of" in (tmp_path / "docs.md").read_text(encoding="utf-8")


def test_an_answer_is_a_near_tie_by_the_choice_at_its_first_other_character():
    generator = TextGenerator(confident_model("qwen3"), tiny_tokenizer(), "sft")
    ((text,), _, (stream,)) = ask_here(generator, ["a"], logprobs=2)
    margins = [token.top[0][1] - token.top[1][1] for token in stream.logprobs]
    assert min(margins) <= NEAR_TIE_NATS < max(margins) and len(text) == len(margins)  # a character is a token
    for margin, near in ((min(margins), 1.0), (max(margins), 0.0)):
        place = margins.index(margin)
        other = text[:place] + "~" + text[place + 1 :]
        figures = compare_answers(generator, ["a", "a"], [text, text], [text, other], 1.0)
        assert (figures["equal"], figures["near_ties"]) == (0.5, near)
    generator.close(0)
