"""Questions in the forms that other projects use: every turn is found, and no row that cannot be used is trained on."""

import json

import pytest
from corpora import write_jsonl

from data_utils import open_rows, split_row
from minigpt.corpus.questions import QuestionCounts, RowParser, expand_parts, read_questions, select_turns
from minigpt.corpus.records import Problems
from minigpt.settings.stages import QuestionForm
from minigpt.tokenizer import load_tokenizer


def sharegpt(*turns):
    return {"conversations": [{"from": who, "value": text} for who, text in turns]}


def openai(*turns):
    return {"messages": [{"role": who, "content": text} for who, text in turns]}


def parse(row, required=True, keep=False, counts=None, **fields):
    """([(question, answer) or (system, question, answer)], [reason]) of a row, in all its parts."""
    parser = RowParser(QuestionForm(**fields), counts or QuestionCounts(), required, keep)
    turns, reasons = [], []
    for part in expand_parts(row):
        found, why = parser.parse(part)
        turns += [(t.system, t.question, t.answer) if keep else (t.question, t.answer) for t in found]
        reasons += why
    return turns, reasons


ONE = [("问一", "答一")]
TWO = [("问一", "答一"), ("问二", "答二")]
TALK = [("user", "问一"), ("assistant", "答一"), ("user", "问二"), ("assistant", "答二")]
PARTS = [{"type": "text", "text": "问"}, {"type": "text", "text": "一"}]
MOSS_TURN = {
    "Human": "<|Human|>: 问一<eoh>\n", "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
    "Commands": "<|Commands|>: None<eoc>\n", "Tool Responses": "<|Results|>: None<eor>\n",
    "MOSS": "<|MOSS|>: 答一<eom>\n",
}  # fmt: skip
SECOND_TURN = {"Human": "<|Human|>: 问二<eoh>\n", "MOSS": "<|MOSS|>: 答二<eom>\n"}
FORMS = {
    "pair": ({"question": "问一", "answer": "答一", "id": 3}, ONE),
    "capital letters": ({"Question": "问一", "Complex_CoT": "想", "Response": "答一"}, ONE),
    "问题": ({"问题": "问一", "答案": "答一"}, ONE),
    "问": ({"问": "问一", "答": "答一"}, ONE),
    "提问": ({"提问": "问一", "回答": "答一"}, ONE),
    "指令": ({"指令": "翻译", "输入": "桥", "输出": "bridge"}, [("翻译\n桥", "bridge")]),
    "alpaca": ({"instruction": "问一", "output": "答一"}, ONE),
    "alpaca, empty fields": ({"instruction": "问一", "input": " ", "output": "答一", "history": []}, ONE),
    "alpaca, nulls": ({"instruction": "问一", "input": None, "output": "答一", "history": None}, ONE),
    "alpaca, input": ({"instruction": "翻译", "input": "桥", "output": "bridge"}, [("翻译\n桥", "bridge")]),
    "alpaca, history": ({"instruction": "问二", "output": "答二", "history": [["问一", "答一"]]}, TWO),
    "query, history": ({"query": "问二", "response": "答二", "history": [["问一", "答一"]]}, TWO),
    "a bad history item": ({"instruction": "问一", "output": "答一", "history": [["单"]]}, ONE),
    "sharegpt": (sharegpt(("human", "问一"), ("gpt", "答一"), ("human", "问二"), ("gpt", "答二")), TWO),
    "other keys message by message": (
        {"conversations": [{"from": "human", "value": "问一"}, {"role": "assistant", "content": "答一"},
                           {"speaker": "User", "text": "问二"}, {"from": "chatgpt", "value": "答二"}]}, TWO,
    ),
    "messages": (openai(*TALK), TWO),
    "messages, system": (openai(("system", "你是助手"), *TALK), TWO),
    "text parts": (openai(("user", PARTS), ("assistant", "答一")), ONE),
    "a system message in the middle": (openai(*TALK[:2], ("system", "要短"), *TALK[2:]), TWO),
    "dialogue of texts": ({"dialogue": ["问一", "答一", "问二", "答二"]}, TWO),
    "turns": ({"turns": ["问一", "答一", "问二", "答二"]}, TWO),
    "messages without roles": ({"messages": [{"message": "问一"}, {"message": "答一"}]}, ONE),
    "two speakers": ({"dialog": [{"speaker": "A", "text": "问一"}, {"speaker": "B", "text": "答一"}]}, ONE),
    "firefly": ({"kind": "NLI", "input": "问一", "target": "答一"}, ONE),
    "firefly, several turns": (
        {"conversation": [{"human": "问一", "assistant": "答一"}, {"human": "问二", "assistant": "答二"}]}, TWO,
    ),
    "lists of two": ({"conversation": [["问一", "答一"], ["问二", "答二"]]}, TWO),
    "belle": (
        {"instruction": "Human:问一\nAssistant:答一\nHuman:问二\nAssistant:\n", "input": "", "output": "答二"}, TWO,
    ),
    "coig": ({"instruction": "你是律师", "conversations": [{"question": "问一", "answer": "答一"}]}, ONE),
    "moss": ({"meta_instruction": "你是 MOSS", "chat": {"turn_10": SECOND_TURN, "turn_1": MOSS_TURN}}, TWO),
    "chatlm": ({"prompt": "问一", "response": "答一"}, ONE),
    "old openai": ({"prompt": "问一\n\n###\n\n", "completion": " 答一 END"}, ONE),
    "query": ({"query": "问一", "answer": "答一"}, ONE),
    "webtext": ({"qid": 1, "title": "问一", "desc": "细节", "star": 3, "content": "答一"}, [("问一\n细节", "答一")]),
    "baike": ({"qid": "q", "category": "地理", "title": "问一", "desc": "", "answer": "答一"}, ONE),
    "cmrc, flat": ({"id": "T", "context": "文章", "question": "问一", "answers": {"text": ["答一"], "s": [0]}}, ONE),
    "squad": (
        {"title": "桥", "paragraphs": [
            {"context": "文章", "qas": [{"id": "a", "question": "问一", "answers": [{"text": "答一"}, {"text": "x"}]}]},
            {"context": "文章", "qas": [{"id": "b", "question": "问二", "answers": [{"text": "答二"}]}]},
        ]}, TWO,
    ),
    "cmrc, old": ({"context_text": "文", "qas": [{"query_text": "问一", "answers": ["答一", "x"]}]}, ONE),
    "several answers": ({"question": "问一", "human_answers": ["答一", "x"], "chatgpt_answers": ["y"]}, ONE),
    "preference": ({"prompt": "问一", "chosen": "答一", "rejected": "错"}, ONE),
    "preference, messages": ({"prompt": "问一", "chosen": openai(*TALK[:2])["messages"], "rejected": []}, ONE),
    "preference, a message": (
        {**sharegpt(*TALK[:3]), "chosen": {"from": "gpt", "value": "答二"}, "rejected": {"from": "gpt", "value": "x"}},
        TWO,
    ),
    "preference, marks": ({"chosen": "\n\nHuman: 问一\n\nAssistant: 答一", "rejected": "x"}, ONE),
    "prompt of messages": ({"prompt": openai(*TALK[:3])["messages"], "completion": openai(TALK[3])["messages"]}, TWO),
    "lcsts": ({"text": "文章", "summary": "摘要"}, [("文章", "摘要")]),
    "label": ({"label": 1, "review": "很好"}, [("很好", "1")]),
    "columns": ({"columns": ["问一", "答一"]}, ONE),
    "chatml": ({"text": "<|im_start|>user\n问一<|im_end|>\n<|im_start|>assistant\n答一<|im_end|>\n"}, ONE),
    "llama marks": ({"text": "<s>[INST] 问一 [/INST] 答一 </s><s>[INST] 问二 [/INST] 答二 </s>"}, TWO),
    "a talk as JSON in a cell": ({"messages": json.dumps(openai(*TALK[:2])["messages"])}, ONE),
    "a title that is asked": ({"department": "内科", "title": "头疼", "ask": "问一", "answer": "答一"}, ONE),
    # Talks with a turn too many
    "the model begins": (sharegpt(("gpt", "你好"), *TALK[:2]), ONE),
    "the user ends": (openai(*TALK[:3]), ONE),
    "a doubled question": (openai(("user", "问"), ("user", "一"), TALK[1]), [("问\n一", "答一")]),
    "an answer sent twice": (openai(*TALK[:2], TALK[1], *TALK[2:]), TWO),
    "an answer in two parts": (openai(TALK[0], ("assistant", "答"), ("assistant", "一")), [("问一", "答\n一")]),
    # Thinking
    "think": (openai(("user", "问一"), ("assistant", "<think>\n想\n\n想</think>\n\n答一")), ONE),
    "think, cut": (openai(("user", "问一"), ("assistant", "想</think>\n\n答一")), ONE),
    "reasoning_content": (
        {"conversations": [{"role": "user", "content": "问一"},
                           {"role": "assistant", "content": "答一", "reasoning_content": "想"}]}, ONE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_each_form_is_recognized_and_its_turns_are_found(name):
    row, turns = FORMS[name]
    found, reasons = parse(row)
    assert found == turns and len(reasons) == (name == "a bad history item")


CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
TOOL_TALK = [{"role": "user", "content": "天气？"}, CALL, {"role": "tool", "content": "晴"},
             {"role": "assistant", "content": "晴。"}]  # fmt: skip
GOOD_PARTS = {
    "an empty answer": (openai(("user", "问"), ("assistant", " "), *TALK), TWO, '"content" is empty'),
    "not a text": (openai(("user", "问"), ("assistant", 5), *TALK), TWO, '"content" is not a text'),
    "an image": (openai(("user", [{"type": "image_url"}]), ("assistant", "答"), *TALK), TWO, '"content" is nested'),
    "a surrogate": (openai(*TALK, ("user", "前\ud83d后"), ("assistant", "答")), TWO, "half of a surrogate pair"),
    "a tool's turn": ({"messages": [*openai(*TALK)["messages"], *TOOL_TALK]}, TWO, "calls a tool"),
    "a tool's turn first": ({"messages": [*TOOL_TALK, *openai(*TALK)["messages"]]}, TWO, "calls a tool"),
    "sharegpt's tools": (
        sharegpt(*TALK, ("human", "天气？"), ("function_call", "{}"), ("observation", "晴"), ("gpt", "晴。")), TWO,
        "calls a tool",
    ),
    "moss's tools": (
        {"chat": {"turn_1": MOSS_TURN, "turn_2": {**SECOND_TURN, "Commands": "<|Commands|>: Search(\"桥\")<eoc>\n"}}},
        ONE, "calls a tool",
    ),
    "an unknown role": (openai(*TALK, ("user", "问"), ("narrator", "夜里"), ("assistant", "答")), TWO, "has a role"),
    "nothing but thinking": (openai(("user", "问"), ("assistant", "<think>想"), *TALK), TWO, "nothing but thinking"),
    "an unanswerable question": (
        {"qas": [{"question": "问一", "answers": [{"text": "答一"}]}, {"question": "问", "answers": []}]}, ONE,
        '"answers" is empty',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD_PARTS)
def test_a_bad_turn_costs_its_own_pair_only(name):
    row, turns, reason = GOOD_PARTS[name]
    found, reasons = parse(row)
    assert found == turns and len(reasons) == 1 and reason in reasons[0]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "问"}, 'no "answer" (fields of the first such row: text; name yours with --question_field=…'),
        ({"id": 3, "title": "桥", "text": "桥"}, 'no "question" (fields of the first such row: id, title, text;'),
        ({}, 'no "question" (fields of the first such row: none;'),
        ({"prompt": "问"}, 'no "answer" (fields'),
        ({"instruction": "问"}, 'no "answer" (fields'),
        ({"question": "问", "answer": None}, 'no "answer" (fields'),
        ({"question": "问", "answer": 3}, '"answer" is not a text'),
        ({"question": "问", "answer": {"x": 1}}, '"answer": no "content"'),
        ({"instruction": "问", "input": 3, "output": "答"}, '"input" is not a text'),
        ({"instruction": "问", "input": "前\ud83d后", "output": "答"}, "half of a surrogate pair"),
        (sharegpt(("human", "问")), '"conversations" has no question with an answer'),
        (sharegpt(("gpt", "答"), ("human", "问")), '"conversations" has no question with an answer'),
        ({"messages": "问"}, '"messages" is no list of messages'),
        ({"messages": []}, '"messages" is no list of messages'),
        ({"sentence1": "甲", "sentence2": "乙", "label": "0"}, "two sentences are no question and answer"),
        ({"columns": ["甲", "乙", "丙"]}, "3 columns without names are no question and answer"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_gives_the_reason(row, reason):
    turns, (got,) = parse(row)
    assert turns == [] and got.startswith(reason)


def test_alike_rows_have_one_reason_which_lists_the_fields_of_the_first(tmp_path):
    path = write_jsonl(tmp_path / "q.jsonl", [{"q1": "问", "a1": "答", "n": i, str(i): 1} for i in range(9)])
    problems = Problems()
    assert list(read_questions([str(path)], problems)) == []
    ((reason, count),) = problems.counts.items()
    assert count == 9 and "q1, a1, n, 0;" in reason and "--question_field=… and --answer_field=…" in reason


@pytest.mark.parametrize(
    ("row", "fields", "turns"),
    [
        ({"q1": "问一", "a1": "答一"}, {"question_field": "q1", "answer_field": "a1"}, ONE),
        ({"qa": {"Q1": "问一", "b": {"c": "答一"}}}, {"question_field": "qa.q1", "answer_field": "qa.b.c"}, ONE),
        ({"a.b": "问一", "answer": "答一"}, {"question_field": "a.b"}, ONE),
        ({"question": "问一", "answer": "x", "other": "答一"}, {"answer_field": "other"}, ONE),
        ({"log": openai(*TALK)["messages"]}, {"question_field": "log"}, TWO),
        ({"question": "问一", "answer": "答一"}, {"question_field": "missing"}, []),
    ],
)
def test_the_settings_name_the_fields_of_other_forms(row, fields, turns):
    found, reasons = parse(row, **fields)
    assert found == turns and bool(reasons) == (not turns)


def test_thinking_is_kept_where_the_setting_says_so():
    inline = openai(("user", "问一"), ("assistant", "<think>想</think>\n\n答一"))
    beside = {"prompt": "问一", "response": "答一", "reasoning_content": "想"}
    for row in (inline, beside):
        counts = QuestionCounts()
        ((_, answer),), _ = parse(row, counts=counts, thinking="keep")
        assert "".join(answer.split()) == "<think>想</think>答一" and counts.thoughts == 1


def test_system_messages_are_kept_with_the_turns_that_they_hold_for():
    row = {**openai(*TALK[:2], ("system", "要长"), *TALK[2:], *TALK[:2]), "system": "要短"}
    turns = [("要短", "问一", "答一"), ("要长", "问二", "答二"), ("", "问一", "答一")]
    assert parse(row, keep=True)[0] == turns
    # A turn that cannot be used leaves its system message to the next one.
    bad = openai(("system", "要短"), ("user", " "), ("assistant", "答"), *TALK[:2])
    assert parse(bad, keep=True)[0] == [("要短", "问一", "答一")]
    assert parse({"system": "要短", "prompt": "问一", "response": "答一"}, keep=True)[0] == [("要短", "问一", "答一")]


def test_a_talk_is_used_turn_by_turn_or_the_first_or_as_a_whole():
    row = openai(("system", "要短"), *TALK)
    turns, _ = RowParser(QuestionForm(), QuestionCounts(), keep_system=True).parse(row)

    def selected(choice):
        return [[(turn.system, turn.question) for turn in chat] for chat in select_turns(turns, choice)]

    assert selected("each") == [[("要短", "问一")], [("要短", "问二")]]
    assert selected("first") == [[("要短", "问一")]]
    assert selected("joined") == [[("要短", "问一"), ("", "问二")]]


def test_what_is_found_in_talks_is_counted():
    counts = QuestionCounts()
    for row in (
        openai(("system", "要短"), ("assistant", "你好"), *TALK[:2], TALK[1], *TALK[2:], ("user", "还有？")),
        {"question": "问", "answer": "答"},
    ):
        parse(row, counts=counts)
    assert counts.about_chats() == {"chats": 1, "trimmed": 2, "joined": 1, "systems": 1, "thoughts": 0}
    assert counts.forms == {"openai": 1, "pair": 1}


def test_questions_without_answers_are_asked_where_none_is_required():
    for row in ({"prompt": "问一"}, {"question": "问一", "answer": 7}, {"text": "问一"}, openai(("user", "问一"))):
        assert parse(row, required=False) == ([("问一", "")], [])
    assert parse(openai(*TALK[:3]), required=False)[0] == [("问一", "答一"), ("问二", "")]


def test_the_other_texts_of_a_list_of_answers_are_kept_beside_the_first():
    rows = [
        {"source": "问", "corrections": ["答一", " 答二 ", "", 7]},
        {"source": "问", "references": ["答一"]},
        {"question": "问", "answers": [{"text": "答一"}, {"text": "答二"}]},
        {"question": "问", "answers": {"text": ["答一", "答二"]}},
        {"question": "问", "answer": "答一", "corrections": ["答三"]},
    ]
    turns = [RowParser(QuestionForm(), QuestionCounts()).parse(row)[0] for row in rows]
    assert [(turn.question, turn.answer) for (turn,) in turns] == [("问", "答一")] * 5
    assert [turn.others for (turn,) in turns] == [("答二",), (), ("答二",), ("答二",), ()]


def test_questions_of_one_article_keep_its_id_and_subject(tmp_path):
    squad = {"title": "桥", "id": "T", "paragraphs": [{"qas": [{"id": "T_1", "question": "问", "answers": ["答"]}]}]}
    made = {"id": 4, "subject": "河", "pairs": [{"question": "问", "answer": "答"}, 5]}
    problems = Problems()
    found = [qa for _, qa in read_questions([str(write_jsonl(tmp_path / "q.jsonl", [squad, made]))], problems)]
    assert [(qa.id, qa.subject) for qa in found] == [("T", "桥"), (4, "河")] and sum(problems.counts.values()) == 1


@pytest.mark.parametrize(("turns", "rows"), [("each", 4), ("first", 3), ("joined", 3)])
def test_a_file_of_all_forms_becomes_rows_and_the_forms_are_counted(tmp_path, script, turns, rows):
    write_jsonl(
        tmp_path / "qa.jsonl",
        [
            {"question": "甲？", "answer": "甲。"},
            {"instruction": "乙？", "input": "", "output": "乙。"},
            openai(*TALK),
            openai(("user", "没有答案")),
            {"id": 1, "text": "桥在河上。"},
        ],
    )
    flags = ["--qa_files=qa.jsonl", f"--turns={turns}", "--val_share=0", "--test_share=0"]
    run = script("data/prepare_sft.py", *flags)
    assert run.returncode == 0, run.stderr
    assert "rows by form: pair 1, alpaca 1, openai 1" in run.stdout
    meta = json.loads((tmp_path / "data/processed_sft/meta.json").read_text(encoding="utf-8"))
    no_question, no_answer = sorted(meta["dropped"], reverse=True)
    assert no_question.startswith('no "question" (fields of the first such row: id, text;')
    assert no_answer == '"messages" has no question with an answer' and set(meta["dropped"].values()) == {1}
    assert meta["parts"]["train"]["rows"] == rows
    tokenizer, (data, _) = load_tokenizer(), open_rows(tmp_path / "data/processed_sft", "train")
    texts = [[tuple(map(tokenizer.decode, turn)) for turn in split_row(row, tokenizer.special_ids())] for row in data]
    talk = {"each": [[TWO[0]], [TWO[1]]], "first": [[TWO[0]]], "joined": [TWO]}[turns]
    assert texts == [[("甲？", "甲。")], [("乙？", "乙。")], *talk]


def test_a_row_with_a_subject_needs_no_articles(tmp_path, script):
    rows = [{"question": f"第{i}？", "answer": f"{i}。", "id": i % 3, "subject": f"第{i % 5}镇"} for i in range(30)]
    write_jsonl(tmp_path / "qa.jsonl", rows)
    (tmp_path / "held.txt").write_text("第2镇\n", encoding="utf-8")
    run = script("data/prepare_sft.py", "--qa_files=qa.jsonl", "--heldout=held.txt", "--val_share=0")
    assert run.returncode == 0 and "whose article is not known: 0" in run.stdout
    meta = json.loads((tmp_path / "data/processed_sft/meta.json").read_text(encoding="utf-8"))
    assert meta["parts"]["test"]["rows"] == 6
