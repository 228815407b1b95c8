"""export.py as a user runs it: what is written where, what is replaced, and the mistakes that a user makes."""

import errno
import json
import runpy
import sys

import gguf
import pytest
import torch
from adapter_files import write_adapter
from corpora import ROOT
from safetensors import SafetensorError
from tiny import confident_model, random_ids, tiny_tokenizer

from minigpt.checkpoint import load_checkpoint, load_model, save_checkpoint
from minigpt.formats import huggingface
from minigpt.settings.stages import TrainSettings

PROGRESS = {"step": 120, "tokens": 54_321, "seconds": 90.0, "best_val_loss": 1.25}
HF_FILES = {
    "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json",
}  # fmt: skip


@pytest.fixture
def export(tmp_path, monkeypatch, capsys):
    """Run export.py in a folder with the fine-tuned run out/sft; returns (exit code, standard output, its error)."""
    settings = TrainSettings(data_dir="/home/someone/rows_sft", init_from="/home/someone/out/base/last.pt")
    for name, architecture, stage in (("base", "gpt2", "pretrain"), ("sft", "qwen3", "sft")):
        model = confident_model(architecture, n_embd=80)
        path = tmp_path / "out" / name / "ckpt.pt"
        save_checkpoint(path, model.state_dict(), model.config, settings, stage, tiny_tokenizer(), PROGRESS)
    monkeypatch.chdir(tmp_path)

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["export.py", *flags])
        code = 0
        try:
            runpy.run_path(str(ROOT / "export.py"), run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code
        said = capsys.readouterr()
        return code, said.out, said.err.strip()

    return run


def contents(folder):
    """{path: bytes} of all files under a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_written_beside_the_newest_checkpoint(export, tmp_path):
    code, said, _ = export()
    assert code == 0 and "sft-float32" in said
    files = contents(tmp_path / "out/sft/sft-float32")
    assert set(files) == HF_FILES
    card = files["README.md"].decode()
    for figure in ("qwen3", "120 steps", "54,321 tokens", "1.2500 nats", "perplexity 3.49", "rows_sft"):
        assert figure in card
    assert "someone" not in b"".join(files.values()).decode(errors="ignore")


def test_a_gguf_file_comes_with_a_modelfile_that_names_it(export, tmp_path):
    code, said, _ = export("--format=gguf", "--dtype=q8_0")
    assert code == 0 and "blk.0.attn_q.weight" in said  # 80 is no multiple of 32
    reader = gguf.GGUFReader(tmp_path / "out/sft/sft-q8_0.gguf")
    assert reader.fields["tokenizer.chat_template"] and reader.fields["general.name"].contents() == "sft-q8_0"
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert (types["blk.0.attn_q.weight"], types["blk.0.ffn_down.weight"]) == ("F16", "Q8_0")
    assert types["output_norm.weight"] == "F32"
    lines = (tmp_path / "out/sft/Modelfile").read_text(encoding="utf-8").splitlines()
    assert "FROM ./sft-q8_0.gguf" in lines and "PARAMETER temperature 0.1" in lines
    assert any("<|answer|>" in line for line in lines if line.startswith("TEMPLATE"))


def test_a_base_model_has_no_chat_template(export, tmp_path):
    assert export("--ckpt=out/base/ckpt.pt", "--out=mine")[0] == 0
    assert export("--ckpt=out/base/ckpt.pt", "--format=gguf", "--out=mine.gguf")[0] == 0
    assert "chat_template.jinja" not in contents(tmp_path / "mine")
    assert "tokenizer.chat_template" not in gguf.GGUFReader(tmp_path / "mine.gguf").fields
    assert "<|answer|>" not in (tmp_path / "Modelfile").read_text(encoding="utf-8")


def test_only_an_earlier_export_is_replaced(export, tmp_path):
    for flags in (["--out=mine"], ["--format=gguf", "--out=mine.gguf"]):
        assert export(*flags)[0] == export("--ckpt=out/base/ckpt.pt", *flags)[0] == 0
    assert json.loads((tmp_path / "mine/config.json").read_text(encoding="utf-8"))["model_type"] == "gpt2"
    assert gguf.GGUFReader(tmp_path / "mine.gguf").fields["general.architecture"].contents() == "gpt2"
    (tmp_path / "mine/notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/README.md").write_text("a model of others", encoding="utf-8")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "theirs/model.gguf").write_bytes(b"GGUF of others")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/Modelfile").write_text("FROM ./other.gguf", encoding="utf-8")
    before = contents(tmp_path)
    for flags, named in (
        (["--out=mine"], "notes.txt"), (["--out=theirs"], "theirs"), (["--out=plain"], "plain"),
        (["--out=mine.gguf/x"], "mine.gguf"),
        (["--format=gguf", "--out=theirs/model.gguf"], "theirs/model.gguf"),
        (["--format=gguf", "--out=other"], "other/Modelfile"),
    ):  # fmt: skip
        code, _, error = export(*flags)
        assert code == 1 and named in error.replace("\\", "/") and len(error.splitlines()) == 1
    assert contents(tmp_path) == before


# Adapters


ADAPTERS = {
    "lora": {},
    "lora with DoRA": {"dora": True},
    "lora in 4 bits": {"quantize": "nf4"},
    "prefix": {},
    "adapter": {},
}
IDS = random_ids(2, 9)


def logits_at(path):
    """Logits of the model at a path, which is loaded as every script loads it, for IDS."""
    with torch.no_grad():
        return load_model(load_checkpoint(path))[0](IDS)


def export_base_and_adapter(export, name, base="sft"):
    """Write an adapter out/mine/ckpt.pt on a base, and the base as a Hugging Face folder."""
    if "4 bits" in name:
        pytest.importorskip("bitsandbytes")
    write_adapter("out/mine/ckpt.pt", f"out/{base}/ckpt.pt", method=name.split()[0], **ADAPTERS[name])
    assert export(f"--ckpt=out/{base}/ckpt.pt")[0] == 0
    return "--ckpt=out/mine/ckpt.pt"


@pytest.mark.numeric
@pytest.mark.parametrize("name", [name for name in ADAPTERS if name.startswith("lora")])
@pytest.mark.parametrize("base", ["base", "sft"])
def test_a_merged_adapter_is_a_model_that_needs_no_other_file(export, name, base, tmp_path):
    ckpt = export_base_and_adapter(export, name, base)
    expected, before = logits_at("out/mine/ckpt.pt"), logits_at(f"out/{base}/ckpt.pt")
    for flags in (["--format=ckpt", "--out=merged"], ["--format=hf", "--out=hf"], ["--format=gguf", "--out=m.gguf"]):
        assert export(ckpt, *flags)[0] == 0
    (tmp_path / "out" / base / "ckpt.pt").unlink()
    for path in ("merged/ckpt.pt", "hf"):
        torch.testing.assert_close(logits_at(path), expected, rtol=1e-4, atol=1e-4)
    assert (expected - before).abs().max() > 0.1
    assert load_checkpoint("merged/ckpt.pt").keys().isdisjoint({"adapter", "base", "optimizers"})
    assert gguf.GGUFReader(tmp_path / "m.gguf").tensors


@pytest.mark.numeric
@pytest.mark.parametrize("name", ["lora", "lora with DoRA", "prefix"])
def test_peft_loads_an_adapter_that_is_written_alone(export, name, tmp_path):
    """On the base that adapter_config.json names; and a folder of peft's is a model of every script."""
    peft = pytest.importorskip("peft")
    ckpt = export_base_and_adapter(export, name)
    code, said, _ = export(ckpt, "--format=peft")
    folder = tmp_path / "out/mine/mine-peft"
    assert code == 0 and "--ckpt=out/sft/ckpt.pt" in said
    assert set(contents(folder)) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert "base_model: out/sft/sft-float32" in (folder / "README.md").read_text(encoding="utf-8")
    expected = logits_at("out/mine/ckpt.pt")
    with torch.no_grad():
        found = peft.AutoPeftModelForCausalLM.from_pretrained(folder)(IDS).logits[:, -IDS.shape[1] :]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(logits_at(folder), expected, rtol=0, atol=2e-5)
    assert export(ckpt, "--format=peft")[0] == 0  # an earlier export is replaced


def test_what_cannot_be_merged_or_written_is_answered_in_one_line(export, tmp_path):
    for name, flags, said in (
        ("prefix", ["--format=gguf"], "--format=peft"), ("prefix", ["--format=ckpt"], "--format=peft"),
        ("adapter", ["--format=hf"], "bottlenecks"), ("adapter", ["--format=peft"], "no form for method adapter"),
        ("lora", ["--format=ckpt", "--dtype=bfloat16"], "bfloat16"), ("lora", ["--format=peft", "--out=a.pt"], "a.pt"),
        ("lora", ["--format=ckpt", "--out=out/sft/ckpt.pt"], "another --out"),
    ):  # fmt: skip
        ckpt = export_base_and_adapter(export, name)
        before = contents(tmp_path)
        code, _, error = export(ckpt, *flags)
        assert code == 1 and said in error and len(error.splitlines()) == 1
        assert contents(tmp_path) == before
    code, _, error = export("--ckpt=out/sft/ckpt.pt", "--format=peft")
    assert code == 1 and "no adapter" in error
    assert export("--ckpt=out/mine/ckpt.pt", "--format=peft", "--out=alone")[0] == 0
    path = tmp_path / "alone/adapter_config.json"
    path.write_text(path.read_text(encoding="utf-8").replace("out/sft/sft-float32", "Qwen/Qwen3"), encoding="utf-8")
    code, _, error = export("--ckpt=alone", "--format=ckpt")
    assert code == 1 and "base_model_name_or_path" in error and len(error.splitlines()) == 1


FAILURES = {
    "a full disk": (OSError(errno.ENOSPC, "No space left on device"), 1),
    "a full disk of safetensors": (SafetensorError("IoError: No space left on device"), 1),
    "Ctrl-C": (KeyboardInterrupt(), 130),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_an_interrupted_export_leaves_the_earlier_one(export, failure, form, tmp_path, monkeypatch):
    flags = [f"--format={form}", "--out=mine"]
    assert export(*flags)[0] == 0
    before, (error, exit_code) = contents(tmp_path), FAILURES[failure]

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface, "save_file", fail)
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", fail)
    code, _, said = export(*flags)
    assert code == exit_code and len(said.splitlines()) == 1
    assert contents(tmp_path) == before and {path.name for path in tmp_path.iterdir()} == {"out", "mine"}


MISTAKES = {
    "blocks of integers in a folder": (["--dtype=q8_0"], ["q8_0", "--format=gguf"]),
    "a file for a folder": (["--out=mine.gguf"], ["mine.gguf", "--format=gguf"]),
    "an unknown format": (["--format=onnx"], ["onnx", "'hf', 'gguf', 'ckpt', 'peft'"]),
    "two models": (["--ckpt=out/sft/ckpt.pt,out/base/ckpt.pt"], ["export.py", "one model"]),
    "no checkpoint there": (["--ckpt=out/no.pt"], ["out/no.pt", "not there"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_in_one_line(export, mistake):
    flags, said = MISTAKES[mistake]
    code, _, error = export(*flags)
    assert code == 1 and error.startswith("error: ") and len(error.splitlines()) == 1
    assert all(words in error for words in said)
