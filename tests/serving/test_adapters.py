"""server.py with adapters: each is a model of its own name, on one loaded base."""

import json
from concurrent.futures import ThreadPoolExecutor

from adapter_files import write_adapter, write_base
from corpora import ROOT
from serving_fakes import serving
from tiny import tiny_model, tiny_tokenizer

from minigpt.checkpoint import load_checkpoint, load_model
from minigpt.inference.engine import TextGenerator
from minigpt.inference.params import SamplingParams


def test_adapters_are_models_and_answer_in_parallel(tmp_path):
    base = write_base(tmp_path / "base" / "ckpt.pt", tiny_model(block_size=64))
    lora = write_adapter(tmp_path / "lora" / "ckpt.pt", base, method="lora", rank=4)
    prefix = write_adapter(tmp_path / "prefix" / "last.pt", base, method="prefix", virtual_tokens=9, stage="pretrain")
    paths = {"base": base, "lora": lora, "prefix/last": prefix}
    asked = {"prompt": "河的？", "temperature": 0, "max_new_tokens": 30, "stream": False}
    expected = {}
    for name, path in paths.items():
        content = load_checkpoint(path)
        alone = TextGenerator(*load_model(content), content["stage"])
        expected[name] = alone.generate(["河的？"], SamplingParams(temperature=0, max_new_tokens=30))[0]
    assert len(set(expected.values())) == 3
    flags = [f"--ckpt={base},{lora},{prefix}", "--device=cpu", "--dtype=float32"]
    with serving(ROOT / "server.py", *flags) as server:
        listed = json.loads(server.ask("GET", "/v1/models")[2])
        assert [entry["id"] for entry in listed["data"]] == list(paths)
        said = "".join(server.lines)
        assert f"lora with 4,096 parameters on {base}" in said and "9 virtual tokens of 64 positions" in said

        # Many at once, of all names.
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda name: server.post("/generate", model=name, **asked), [*paths] * 4))
        assert [answer["text"] for _, answer in answers] == list(expected.values()) * 4

        # What fits is what the virtual tokens leave.
        assert server.post("/tokenize", model="prefix/last", prompt="河")[1]["max_model_len"] == 55
        ids = tiny_tokenizer().encode("河" * 56)
        status, answer = server.post("/v1/embeddings", model="prefix/last", input=[ids])
        assert status == 400 and "55" in answer["error"]["message"]
        assert server.post("/v1/embeddings", model="lora", input=[ids])[0] == 200
        assert server.stop()[0] == 0
