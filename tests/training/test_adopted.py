"""A model of a Hugging Face folder is fine-tuned and evaluated, with its tokenizer and its chat template."""

import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from corpora import ROOT, made_up_articles, made_up_questions, write_jsonl
from hugging_folders import widen_tokenizer, write_model, write_tokenizer
from processes import done, error_of, run_in_process
from runs import run_here, write_stages

from data_utils import load_row_tokenizer, loss_mask, make_batch, open_rows, row_prompts, split_row
from minigpt.checkpoint import load_checkpoint, load_model
from minigpt.common.errors import UserError
from minigpt.corpus.chat import ChatTurn, chat_ids, turn_ids
from minigpt.corpus.row_files import RowWriter
from minigpt.evaluation.contamination import check_contamination
from minigpt.evaluation.prompts import pairs_of_rows
from minigpt.inference.engine import TextGenerator
from minigpt.inference.params import SamplingParams
from minigpt.tokenizer import load_tokenizer

QUESTIONS = made_up_questions(12)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with the model "qwen" and its rows "rows"."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("adopted")
    write_model(folder / "qwen", max_position_embeddings=512)
    write_jsonl(folder / "qa.jsonl", QUESTIONS)
    flags = ["--tokenizer=qwen", "--qa_files=qa.jsonl", "--sft_data_dir=rows", "--block_size=96"]
    done(run_in_process(folder, "data/prepare_sft.py", *flags))
    return folder


def test_rows_are_written_by_the_chat_template_and_trained_behind_the_mark(prepared):
    rows, meta = open_rows(prepared / "rows", "train")
    tokenizer = load_row_tokenizer(prepared / "rows", meta)
    assert meta["dtype"] == "uint16" and tokenizer.sha256 == load_tokenizer(prepared / "qwen").sha256
    asked = {qa["question"]: qa["answer"] for qa in QUESTIONS}
    for row in rows:
        ((question, answer),) = split_row(row, meta["special_ids"])
        ((prompt, again),) = row_prompts(row, meta["special_ids"])
        question, answer_text = tokenizer.decode(question), tokenizer.decode(answer)
        assert asked[question] == answer_text and again == answer
        assert prompt == chat_ids(tokenizer, [{"role": "user", "content": question}])
        expected = [*turn_ids(tokenizer, [ChatTurn("", question, answer_text)]), tokenizer.eot_id]
        assert row[: len(expected)].tolist() == expected and set(row[len(expected) :].tolist()) <= {tokenizer.pad_id}
        x, y, mask = make_batch(row[None], meta)
        assert y[mask].tolist() == [*answer, tokenizer.eot_id]
        assert x[0, : len(prompt)].tolist() == prompt


def test_a_fine_tuned_model_runs_alone_and_is_evaluated(prepared, tmp_path, capsys):
    """The folder is not needed any more; prompts of the evaluations are those of the rows."""
    out = tmp_path / "run"
    run_here(
        data_dir=str(prepared / "rows"), out_dir=str(out), init_from=str(prepared / "qwen"), max_iters=40,
        eval_interval=40, learning_rate=3e-3, dropout=0.0,
    )  # fmt: skip
    assert re.search(r"\| 第\d+镇(位于哪里|有几座桥)？ → ", capsys.readouterr().out)  # the sample
    content = load_checkpoint(out / "last.pt")
    model, tokenizer = load_model(content)
    assert content["model_args"]["architecture"] == "qwen3" and content["stage"] == "sft"
    assert tokenizer.sha256 == load_tokenizer(prepared / "qwen").sha256
    rows, meta = open_rows(prepared / "rows", "train")
    generator = TextGenerator(model, tokenizer, content["stage"])
    pairs = pairs_of_rows(rows, meta, tokenizer)
    assert all(prompt.ids == generator.prompt_ids(str(prompt)) for prompt, _ in pairs)
    found = check_contamination(content, pairs)
    assert found.leaked_rows == len(rows) and found.share == 1.0
    invented = [("第99镇有几座桥？", "第99镇没有桥，但有一个很大的湖泊。")]
    assert check_contamination(content, invented).leaked_rows == 0
    prompts = [prompt.ids for prompt, _ in pairs]
    answers = generator.generate(prompts, SamplingParams(temperature=0.0, max_new_tokens=40))
    assert {answer[:1] for answer in answers} == {"第"}  # as all answers of the rows begin


def test_qlora_on_it_is_a_small_file_that_is_merged_and_taken_along(prepared, tmp_path, monkeypatch, script):
    pytest.importorskip("bitsandbytes")
    peft = pytest.importorskip("peft")
    monkeypatch.chdir(prepared)
    said = run_here(
        data_dir="rows", out_dir=str(tmp_path / "run"), init_from="qwen", max_iters=8, learning_rate=3e-3, dropout=0.0,
        method="lora", rank=2, quantize="nf4",
    )  # fmt: skip
    assert re.search(r"2,624 train; weights take 0.1 MB, in float32 0.2;", said)
    ckpt = tmp_path / "run/ckpt.pt"
    assert ckpt.stat().st_size < (prepared / "qwen/model.safetensors").stat().st_size / 4
    for form in ("hf", "peft"):
        done(script("export.py", f"--ckpt={ckpt}", f"--format={form}", f"--out={tmp_path / form}", cwd=prepared))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = load_model(load_checkpoint(ckpt))[0](ids)
        merged, tokenizer = load_model(load_checkpoint(tmp_path / "hf"))
        torch.testing.assert_close(merged(ids), expected, rtol=1e-4, atol=1e-4)
        # peft adds the same update to the base in 32 bits.
        content = load_checkpoint(ckpt)
        content["adapter"]["quantize"] = "none"
        theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "peft")(ids).logits
        torch.testing.assert_close(theirs, load_model(content)[0](ids), rtol=1e-4, atol=1e-4)
    text = QUESTIONS[0]["question"]
    assert tokenizer.encode(text) == load_tokenizer("qwen").encode(text) and tokenizer.chat_template


def test_rows_of_another_tokenizer_are_refused(prepared, tmp_path):
    with pytest.raises(UserError, match="made with tokenizer bytes"):
        run_here(
            data_dir=write_stages(tmp_path)["sft"], out_dir=str(tmp_path / "run"), init_from=str(prepared / "qwen")
        )


def test_several_turns_are_trained_on_as_far_as_the_template_marks_them(tmp_path):
    turns = [ChatTurn("", "a?", "one."), ChatTurn("", "b?", "two.")]
    for kind, trained in (("chatml", ["one.", "two."]), ("thinking", ["two."])):
        tokenizer = load_tokenizer(write_tokenizer(tmp_path / kind, kind))
        special = tokenizer.special_ids()
        row = np.array([[*turn_ids(tokenizer, turns), tokenizer.eot_id]])
        targets = row[:, 1:][loss_mask(row, special, "sft")].tolist()
        expected = [i for text in trained for i in [*tokenizer.encode(text), tokenizer.eot_id]]
        assert targets == expected
        assert [tokenizer.decode(answer) for _, answer in split_row(row[0], special)] == trained
        assert tokenizer.decode(split_row(row[0], special)[-1][0]) == "b?"


def test_a_large_vocabulary_is_stored_in_32_bits(tmp_path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path / "large", text=widen_tokenizer("thinking", 70_000)))
    ids = turn_ids(tokenizer, [ChatTurn("", "江？", "江。")])
    assert max(ids) == tokenizer.n_vocab - 1 == 69_999
    with RowWriter(tmp_path / "rows", ["train"], 64, tokenizer) as writer:
        writer.add("train", ids, 10)
        meta = writer.finish({"stage": "sft"})
    rows, _ = open_rows(tmp_path / "rows", "train")
    assert (meta["dtype"], rows.dtype) == ("uint32", np.uint32) and rows[0, : len(ids)].tolist() == ids
    assert (tmp_path / "rows" / "train.bin").stat().st_size == 64 * 4
    ((question, answer),) = split_row(rows[0], meta["special_ids"])
    assert [load_row_tokenizer(tmp_path / "rows", meta).decode(part) for part in (question, answer)] == ["江？", "江。"]
    y, mask = make_batch(rows, meta)[1:]
    assert y[mask].tolist() == [*tokenizer.encode("江。"), tokenizer.eot_id]


def test_articles_begin_with_bos_where_the_tokenizer_s_texts_do(tmp_path, script):
    write_tokenizer(tmp_path / "headers", "headers")
    write_jsonl(tmp_path / "wiki" / "a.jsonl", made_up_articles(24))
    done(script("data/prepare.py", "--tokenizer=headers", "--input_dir=wiki", "--data_dir=rows", "--block_size=64"))
    rows, meta = open_rows(tmp_path / "rows", "train")
    tokenizer = load_row_tokenizer(tmp_path / "rows", meta)
    bos = tokenizer.prefix_ids
    assert len(bos) == 1 and (rows[:, 0] == bos[0]).all() and not (rows[:, 1:] == bos[0]).any()
    texts = {article["text"].split("\n\n")[1] for article in made_up_articles(24)}
    assert {tokenizer.decode(row) for row in rows} <= texts
    assert meta["parts"]["train"]["tokens"] == (rows != tokenizer.pad_id).sum()


def test_a_base_model_without_a_free_id_trains_on_articles(tmp_path, script, monkeypatch):
    """PAD is then an id that the model does not have."""
    pytest.importorskip("transformers")
    tokenizer = load_tokenizer(write_tokenizer(tmp_path / "base", "base"))
    write_model(tmp_path / "base", "gpt2", "base", vocab_size=tokenizer.n_vocab)
    write_jsonl(tmp_path / "wiki" / "a.jsonl", made_up_articles(24))
    done(script("data/prepare.py", "--tokenizer=base", "--input_dir=wiki", "--data_dir=rows", "--block_size=64"))
    monkeypatch.chdir(tmp_path)
    run_here(data_dir="rows", init_from="base", out_dir="run", max_iters=4, block_size=64)
    said = script("sample.py", "--ckpt=run/ckpt.pt", "--prompt=第1镇", "--max_new_tokens=5", "--dtype=float32")
    assert done(said).startswith("第1镇")


def test_prepare_sft_says_what_a_tokenizer_cannot_do(tmp_path, script):
    write_jsonl(tmp_path / "qa.jsonl", QUESTIONS)
    write_tokenizer(tmp_path / "base", "base")
    write_tokenizer(tmp_path / "thinking", "thinking")
    for flags, message in (
        (["--tokenizer=base"], "has no chat template"),
        (["--tokenizer=thinking", "--thinking=keep"], "empty thoughts"),
        (["--tokenizer=nowhere"], "nowhere is not there"),
    ):
        assert message in error_of(script("data/prepare_sft.py", "--qa_files=qa.jsonl", "--sft_data_dir=rows", *flags))
    assert not (tmp_path / "rows" / "meta.json").exists()


MAX_BYTES = 12 * 2**30


@pytest.mark.soak_only
@pytest.mark.skipif(sys.platform == "win32", reason="the peak memory of a process is not known there")
def test_a_model_of_600m_is_adopted_served_and_trained_in_12_gib(tmp_path):
    """Qwen3-0.6B's shape: 28 layers of width 1,024, 151,936 ids, 40,960 positions."""
    if os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < 1.2 * MAX_BYTES:
        pytest.skip("this machine has less than 14 GiB of memory")
    # In a process of its own: the peak of a child begins at that of its parent.
    program = "import sys; from hugging_folders import write_qwen3_of_600m; write_qwen3_of_600m(sys.argv[1])"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
    environment = {**os.environ, "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", program, tmp_path / "qwen"], env=environment, check=True)
    write_jsonl(tmp_path / "qa.jsonl", QUESTIONS)
    prepare = ["data/prepare_sft.py", "--tokenizer=qwen", "--qa_files=qa.jsonl", "--sft_data_dir=rows"]
    step = ["train.py", "--init_from=qwen", "--data_dir=rows", "--block_size=128", "--batch_size=1", "--max_iters=1"]
    for command in (
        [*prepare, "--block_size=128"],
        ["sample.py", "--ckpt=qwen", "--prompt=第1镇有几座桥？", "--max_new_tokens=5"],
        [*step, "--optimizer=adamw", "--out_dir=run"],
        [*step, "--optimizer=muon", "--out_dir=run"],
        ["sample.py", "--ckpt=run/ckpt.pt", "--prompt=第1镇有几座桥？", "--max_new_tokens=5"],
    ):
        script, *flags = command
        if script == "train.py":  # a run takes 12 GB of the disk
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
        started = time.monotonic()
        process = subprocess.Popen([sys.executable, ROOT / script, *flags], cwd=tmp_path)
        _, status, usage = os.wait4(process.pid, 0)
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(f"{script}: {time.monotonic() - started:.0f} s, {peak / 2**30:.2f} GiB")
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0 and peak <= MAX_BYTES
