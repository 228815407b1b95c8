"""Chats are written alike everywhere: what a model is asked is the beginning of a row that it was trained on."""

import itertools
import json

import pytest
from corpora import byte_tokenizer, write_jsonl
from tiny import tiny_model

from data_utils import open_rows, row_prompts, split_row
from minigpt.corpus.chat import chat_ids
from minigpt.inference.engine import TextGenerator
from minigpt.tokenizer import load_tokenizer

TOKENIZER = byte_tokenizer()
EOT, MARK = TOKENIZER.eot_id, TOKENIZER.answer_id
SYSTEM = {"role": "system", "content": "要短。"}


def said(*texts):
    """Messages of the user and the assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def read_ids(*parts):
    """Ids of texts and of special ids."""
    return [i for part in parts for i in (TOKENIZER.encode(part) if isinstance(part, str) else [part])]


def asked(messages, choice, system):
    """The chats whose prompts must stand in the rows of a talk: [(messages up to a question)]."""
    head = messages[:1] if system == "keep" else []
    turns = [messages[i : i + 2] for i in range(1, len(messages), 2)]
    if choice == "joined":
        return [[*head, *itertools.chain(*turns[:i]), turns[i][0]] for i in range(len(turns))]
    return [[*head, turn[0]] for turn in turns][: 1 if choice == "first" else None]


@pytest.mark.parametrize("system", ["keep", "drop"])
@pytest.mark.parametrize("choice", ["each", "first", "joined"])
def test_each_question_of_a_row_is_the_prompt_of_its_chat(tmp_path, script, choice, system):
    talks = [[SYSTEM, *said(f"问{i}？", f"答{i}。", " 还有？ ", "没有，\n真的。", "用##吗", "不。")] for i in range(6)]
    write_jsonl(tmp_path / "qa.jsonl", [{"messages": talk} for talk in talks])
    flags = ["--qa_files=qa.jsonl", f"--turns={choice}", f"--system={system}", "--val_share=0", "--test_share=0"]
    run = script("data/prepare_sft.py", *flags)
    assert run.returncode == 0, run.stderr
    assert ("rows whose system message is dropped: 6; --system=keep" in run.stdout) == (system == "drop")
    assert "talks of several turns: 6" in run.stdout
    rows, meta = open_rows(tmp_path / "data/processed_sft", "train")
    assert (meta["turns"], meta["system"]) == (choice, system)
    assert meta["chats"] == {"chats": 6, "trimmed": 0, "joined": 0, "systems": 6, "thoughts": 0}
    generator = TextGenerator(tiny_model(vocab_size=50304), load_tokenizer(), "sft")
    prompts = [prompt for row in rows for prompt, _ in row_prompts(row, meta["special_ids"])]
    expected = [generator.prompt_ids(chat) for talk in talks for chat in asked(talk, choice, system)]
    # Questions that every talk asks in the same words are one row, where each turn is a row.
    assert {tuple(ids) for ids in prompts} == {tuple(ids) for ids in expected}
    assert len(rows) == {"each": 8, "first": 6, "joined": 6}[choice]


def test_a_chat_that_is_longer_than_the_block_is_divided_and_its_rows_begin_with_the_system_message(tmp_path, script):
    talk = [SYSTEM, *itertools.chain(*(said(f"第{i}问", f"第{i}答") for i in range(5))), *said("长" * 90, "答")]
    write_jsonl(tmp_path / "qa.jsonl", [{"messages": [*talk, *said("末问", "末答")]}])
    flags = ["--turns=joined", "--system=keep", "--val_share=0", "--test_share=0", "--block_size=48"]
    run = script("data/prepare_sft.py", "--qa_files=qa.jsonl", *flags)
    assert run.returncode == 0, run.stderr
    rows, meta = open_rows(tmp_path / "data/processed_sft", "train")
    decode = load_tokenizer().decode
    turns = [tuple(map(decode, turn)) for row in rows for turn in split_row(row, meta["special_ids"])]
    assert [answer for _, answer in turns] == [*(f"第{i}答" for i in range(5)), "末答"]
    assert 2 < len(rows) < 6 and sum(question.startswith("要短。\n") for question, _ in turns) == len(rows)
    assert meta["dropped"] == {"longer than the block": 1} and meta["questions"] == 7


CHATS = {
    "a question": (said("甲？"), ["甲？", MARK]),
    "a mark at its end": (said("甲？ ##"), ["甲？", MARK]),
    "a system message": ([SYSTEM, *said(" 甲？\n")], ["要短。\n", "甲？", MARK]),
    "two system messages": (
        [SYSTEM, {"role": "developer", "content": "快"}, *said("甲")], ["要短。\n快\n", "甲", MARK],
    ),
    "earlier turns": (said("甲？", " 乙。\n", "丙？"), ["甲？", MARK, "乙。", EOT, "丙？", MARK]),
    "a system message in the middle": (
        [*said("甲", "乙"), SYSTEM, *said("丙")], ["甲", MARK, "乙", EOT, "要短。\n", "丙", MARK],
    ),
    "a greeting": ([SYSTEM, said("", "你好")[1], *said("甲")], ["要短。\n", "甲", MARK]),
    "doubled questions": ([*said("甲"), *said("乙")], ["甲\n乙", MARK]),
    "the assistant's last": (said("甲", "乙 "), ["甲", MARK, "乙 "]),
    "only the assistant's": (said("", "乙")[1:], [MARK, "乙"]),
    "the system's alone": ([SYSTEM], ["要短。", MARK]),
    "the system's last": ([*said("甲", "乙"), SYSTEM], ["甲", MARK, "乙", EOT, "要短。", MARK]),
    "the system's behind a question": ([*said("甲"), SYSTEM], ["甲\n要短。", MARK]),
    "the system's, then the assistant's": ([SYSTEM, said("", "乙")[1]], ["要短。", MARK, "乙"]),
    "a tool's result": (
        [*said("甲"), {"role": "assistant", "content": None, "tool_calls": [{}]}, {"role": "tool", "content": "晴"}],
        ["甲\n晴", MARK],
    ),
    "text parts": ([{"role": "user", "content": [{"type": "text", "text": "甲"}]}], ["甲", MARK]),
    "an empty question": (said(""), [MARK]),
    "an empty question behind an answer": (said("甲", "乙", " "), ["甲", MARK, "乙", EOT, MARK]),
    "no message": ([], [MARK]),
}  # fmt: skip


@pytest.mark.parametrize("name", CHATS)
def test_any_messages_give_a_prompt(name):
    messages, parts = CHATS[name]
    assert chat_ids(TOKENIZER, messages) == read_ids(*parts)


def test_every_order_of_roles_gives_a_prompt_that_ends_where_an_answer_goes_on():
    names = "system", "user", "assistant", "tool"
    for roles in itertools.chain(*(itertools.product(names, repeat=n) for n in (1, 2, 3, 4))):
        ids = chat_ids(TOKENIZER, [{"role": role, "content": f"文{i}"} for i, role in enumerate(roles)])
        after_mark = ids[len(ids) - 1 - ids[::-1].index(MARK) :]
        assert EOT not in after_mark and (len(after_mark) > 1) == (roles[-1] == "assistant")


def test_a_base_model_reads_messages_as_lines():
    chat = [SYSTEM, *said(" 甲？ ", "乙。", "丙 ")]
    assert chat_ids(TOKENIZER, chat, "pretrain") == read_ids("要短。\n甲？\n乙。\n丙 ")


def test_a_row_of_json_with_reasoning_is_written_without_it(tmp_path, script):
    talk = said("问？", "<think>想</think>答。")
    (tmp_path / "qa.jsonl").write_text(json.dumps({"messages": talk}, ensure_ascii=False) + "\n", encoding="utf-8")
    run = script("data/prepare_sft.py", "--qa_files=qa.jsonl", "--val_share=0", "--test_share=0")
    assert "answers whose thinking is left off: 1; --thinking=keep" in run.stdout
    rows, _ = open_rows(tmp_path / "data/processed_sft", "train")
    assert load_tokenizer().decode(rows[0].tolist()) == "问？##答。"
