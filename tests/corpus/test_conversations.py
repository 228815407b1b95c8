"""Fine-tuning data in the usual forms: every turn is found, and no row that cannot be used is trained on."""

import json

import pytest
from corpora import write_jsonl

from data_utils import open_rows
from minigpt.corpus.questions import parse_question_row, select_turns
from minigpt.tokenizer import load_tokenizer


def sharegpt(*turns):
    return {"conversations": [{"from": who, "value": text} for who, text in turns]}


def openai(*turns):
    return {"messages": [{"role": who, "content": text} for who, text in turns]}


TWO = [("问一", "答一"), ("问二", "答二")]
TALK = [("user", "问一"), ("assistant", "答一"), ("user", "问二"), ("assistant", "答二")]
PARTS = [{"type": "text", "text": "问"}, {"type": "text", "text": "一"}]


@pytest.mark.parametrize(
    ("row", "form", "turns"),
    [
        ({"question": "问一", "answer": "答一", "id": 3}, "pair", TWO[:1]),
        ({"instruction": "问一", "output": "答一"}, "alpaca", TWO[:1]),
        ({"instruction": "问一", "input": "", "output": "答一", "history": []}, "alpaca", TWO[:1]),
        ({"instruction": "翻译", "input": "桥", "output": "bridge"}, "alpaca", [("翻译\n桥", "bridge")]),
        ({"instruction": "问二", "output": "答二", "history": [["问一", "答一"]]}, "alpaca", TWO),
        (sharegpt(("human", "问一"), ("gpt", "答一"), ("human", "问二"), ("gpt", "答二")), "sharegpt", TWO),
        (sharegpt(("system", "你是助手"), ("user", "问一"), ("assistant", "答一")), "sharegpt", TWO[:1]),
        (openai(*TALK), "openai", TWO),
        (openai(("system", "你是助手"), *TALK), "openai", TWO),
        (openai(("user", PARTS), ("assistant", "答一")), "openai", TWO[:1]),
    ],
)
def test_each_form_is_recognized_and_its_turns_are_found(row, form, turns):
    assert parse_question_row(row) == (form, turns, None)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "问"}, 'no "question"'),
        ({"prompt": "问"}, 'no "answer"'),
        ({"question": "问"}, 'no "answer"'),
        ({"question": "问", "answer": ["答"]}, '"answer" is nested'),
        ({"instruction": "问"}, 'no "output"'),
        ({"instruction": "问", "input": 3, "output": "答"}, '"input" is not a text'),
        ({"instruction": "问", "output": "答", "history": [["问"]]}, '"history"'),
        (sharegpt(("human", "问")), "not question and answer in turn"),
        (sharegpt(("gpt", "答"), ("human", "问")), "not question and answer in turn"),
        (openai(("user", "问"), ("user", "问"), ("assistant", "答")), "not question and answer in turn"),
        (openai(("user", "问"), ("assistant", " ")), '"content" is empty'),
        (openai(("user", "问"), ("assistant", None)), '"content" is not a text'),
        (openai(("user", [{"type": "image_url"}]), ("assistant", "答")), '"content" is nested'),
        (openai(("user", "问"), ("tool", "答")), "not user, assistant or system"),
        (openai(("user", "问"), ("assistant", "答"), ("system", "停")), "system message in the middle"),
        ({"messages": "问"}, "no list of messages"),
        ({"messages": []}, "not question and answer in turn"),
        ({"conversations": ["问", "答"]}, "no list of messages"),
        ({"instruction": "问", "input": "前\ud83d后", "output": "答"}, "half of a surrogate pair"),
        ({"instruction": "问", "output": "答", "history": [["\ud83d", "x"]]}, '"history"'),
        (openai(("user", "前\ud83d后"), ("assistant", "答")), "half of a surrogate pair"),
    ],
)
def test_a_row_that_cannot_be_used_gives_the_reason(row, reason):
    _, turns, got = parse_question_row(row)
    assert turns == [] and reason in got


def test_turns_are_selected_each_or_the_first_or_joined():
    assert select_turns(TWO, "each") == TWO and select_turns(TWO, "first") == TWO[:1]
    assert select_turns(TWO, "joined") == [TWO[0], ("问一\n答一\n问二", "答二")]


@pytest.mark.parametrize(("turns", "rows"), [("each", 4), ("first", 3), ("joined", 4)])
def test_a_file_of_all_forms_becomes_rows_and_the_forms_are_counted(tmp_path, script, turns, rows):
    write_jsonl(
        tmp_path / "qa.jsonl",
        [
            {"question": "甲？", "answer": "甲。"},
            {"instruction": "乙？", "input": "", "output": "乙。"},
            openai(("user", "问一"), ("assistant", "答一"), ("user", "问二"), ("assistant", "答二")),
            openai(("user", "没有答案")),
            {"text": "桥在河上。"},
        ],
    )
    flags = ["--qa_files=qa.jsonl", f"--turns={turns}", "--val_share=0", "--test_share=0"]
    run = script("data/prepare_sft.py", *flags)
    assert run.returncode == 0, run.stderr
    assert "rows by form: pair 1, alpaca 1, openai 1" in run.stdout
    meta = json.loads((tmp_path / "data/processed_sft/meta.json").read_text(encoding="utf-8"))
    assert meta["dropped"] == {'"messages" is not question and answer in turn': 1, 'no "question"': 1}
    assert meta["parts"]["train"]["rows"] == rows
    texts = [load_tokenizer().decode(row.tolist()) for row in open_rows(tmp_path / "data/processed_sft", "train")[0]]
    assert texts[:3] == ["甲？##甲。", "乙？##乙。", "问一##答一"]
    assert texts[3:] == {"each": ["问二##答二"], "first": [], "joined": ["问一\n答一\n问二##答二"]}[turns]


def test_a_row_with_a_subject_needs_no_articles(tmp_path, script):
    rows = [{"question": f"第{i}？", "answer": f"{i}。", "id": i % 3, "subject": f"第{i % 5}镇"} for i in range(30)]
    write_jsonl(tmp_path / "qa.jsonl", rows)
    (tmp_path / "held.txt").write_text("第2镇\n", encoding="utf-8")
    run = script("data/prepare_sft.py", "--qa_files=qa.jsonl", "--heldout=held.txt")
    assert run.returncode == 0 and "whose article is not known: 0" in run.stdout
    meta = json.loads((tmp_path / "data/processed_sft/meta.json").read_text(encoding="utf-8"))
    assert meta["parts"]["test"]["rows"] == 6
