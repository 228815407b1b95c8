"""Parsing of replies that are not quite JSON."""

import json
import time

import pytest

from minigpt.synth.reply_parser import parse_reply

PAIR = [("甲桥多长？", "“52”米。")]
ROW = '{"question": "甲桥多长？", "answer": "“52”米。"}'
TWO = [*PAIR, ("乙在哪？", "在丙。")]
SECOND = '{"question": "乙在哪？", "answer": "在丙。"}'


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        (f"[{ROW}]", PAIR),
        (f"```json\n[{ROW}]\n```", PAIR),
        (f"好的，结果[1]如下：\n[{ROW}]\n希望{{对你}}有帮助！", PAIR),
        (f'<think>先想想：{{"question": "丁？", "answer": "戊"}}</think>\n[{ROW}]', PAIR),
        (f'先想想：{{"question": "丁？", "answer": "戊"}}</think>[{ROW}]', PAIR),
        (f"<think>想不完 [{ROW}]", []),
        (f"[{ROW[:-1]},}},]", PAIR),
        (f"[{ROW} {SECOND}]", TWO),
        ('[{"question": "甲桥多长？" "answer": "“52”米。"}]', PAIR),
        ("［｛“question”：“甲桥多长？”，“answer”：“52米”｝］", [("甲桥多长？", "52米")]),
        ("{＂问题＂：＂甲桥多长？＂，＂答案＂：＂52米＂}", [("甲桥多长？", "52米")]),
        ("[{'question': '甲桥多长？', 'answer': '“52”米。'}]", PAIR),
        (f'{{"pairs": [{ROW}]}}', PAIR),
        (f'{{"qa": [{ROW}, {SECOND}], "n": 2}}', TWO),
        (f"{ROW}\n{SECOND}\n", TWO),
        (f"1. {ROW}\n2. {SECOND}", TWO),
        ('[{"问": "甲桥多长？", "答": "“52”米。"}]', PAIR),
        ('[{"Question": "甲桥多长？", "Answer": "“52”米。"}]', PAIR),
        ('[{"q": "甲桥多长？", "a": "“52”米。", "note": ["x"]}]', PAIR),
        ('{"question1": "甲桥多长？", "answer1": "“52”米。", "question2": "乙在哪？", "answer2": "在丙。"}', TWO),
        (
            '[{"question": "甲叫"乙"吗？", "answer": "甲叫"乙"，也叫"丙"。"}]',
            [('甲叫"乙"吗？', '甲叫"乙"，也叫"丙"。')],
        ),
        ('[{"question": "甲\n桥？", "answer": "\\u7532\\"桥\\"，"}}]', [("甲 桥？", '甲"桥"，')]),
        ('[{question: "甲桥多长？", answer: "“52”米。"}]', PAIR),
        ('[{"answer": "“52”米。", "question": "甲桥多长？"}]', PAIR),
        ('[{"answer": "“52”米。" "question": "甲桥多长？"}]', PAIR),
        ('[{"question": "甲桥多长？", "answer": 52}]', [("甲桥多长？", "52")]),
        ('[{"question": "甲桥多长？" "answer": 5.2}]', [("甲桥多长？", "5.2")]),
        ('[{"question": "问：甲桥多长？", "answer": "答：52米"}]', [("甲桥多长？", "52米")]),
        ('[{"question": "Q1. 甲桥多长？", "answer": "A1: 52米"}]', [("甲桥多长？", "52米")]),
        ("甲桥多长？52米。", []),
        ("问：甲桥多长？答：52米。", []),
        ('{"甲桥多长？": "52米"}', []),
        ('[{"question": "甲桥多长？"}, {"answer": "52米"}]', []),
        ('[{"question": "甲桥多长？", "answer": null}]', []),
        ("", []),
        ("[" * 5000, []),
    ],
)
def test_nearly_valid_json_is_parsed_and_no_pair_is_invented(text, pairs):
    assert parse_reply(text).all_pairs() == pairs


QUESTIONS = [("甲桥有多长？", "甲桥长52米。"), ("乙在哪？", "乙在丙县。")]


def rows_with(ask, tell, **more):
    """QUESTIONS as JSON objects with other keys."""
    return json.dumps([{ask: question, **more, tell: answer} for question, answer in QUESTIONS], ensure_ascii=False)


def messages_with(role, content, user, assistant):
    """QUESTIONS as chats, of which the first begins with a system message, after a greeting by the model."""
    talks = [[(assistant, "您好。"), (user, question), (assistant, answer)] for question, answer in QUESTIONS]
    talks[0].insert(0, ("system", "回答问题。"))
    return [{"messages": [{role: name, content: text} for name, text in talk]} for talk in talks]


def lines_with(form):
    """QUESTIONS as plain text, with the numbers 1 and 2, between explanations."""
    lines = [form.format(n=n, q=q, a=a) for n, (q, a) in enumerate(QUESTIONS, start=1)]
    return "好的，问答如下：\n\n" + "\n\n".join(lines) + "\n\n希望对你有帮助！"


@pytest.mark.parametrize(
    "text",
    [
        *(rows_with(*keys) for keys in (("input", "output"), ("prompt", "response"), ("prompt", "completion"))),
        *(
            rows_with(*keys)
            for keys in (("user", "assistant"), ("指令", "输出"), ("问题", "回答"), ("query", "response"))
        ),
        rows_with("instruction", "output", input=""),
        rows_with("instruction", "output")[:-1] + ",]",
        json.dumps(messages_with("role", "content", "user", "assistant"), ensure_ascii=False),
        json.dumps(messages_with("from", "value", "human", "gpt"), ensure_ascii=False, indent=1),
        str(messages_with("from", "value", "human", "gpt")),
        json.dumps(QUESTIONS, ensure_ascii=False),
        json.dumps([["question", "answer"], *QUESTIONS], ensure_ascii=False),
        json.dumps({"qa": dict(QUESTIONS)}, ensure_ascii=False),
        lines_with("问题{n}：{q}\n答案{n}：{a}"),
        lines_with("**Q{n}: {q}**\n\nA{n}: {a}"),
        lines_with("**问题 {n}：** {q}\n**回答 {n}：** {a}"),
        lines_with("### 问题{n}\n{q}\n### 答案{n}\n{a}"),
        lines_with("{n}. **问题**：{q}\n   **答案**：{a}"),
        lines_with("{n}. 问：{q} 答：{a}"),
        lines_with("{n}、{q}\n答：{a}"),
        lines_with("Q{n}. {q}\nA{n}. {a}"),
        lines_with("【问题{n}】{q}\n【答案{n}】\n{a}"),
        lines_with("- 问：{q}\n- 答：{a}"),
        "问题1：甲桥有多长？\n问题2：乙在哪？\n答案2：乙在丙县。\n答案1：甲桥长52米。",
    ],
)
def test_pairs_in_other_forms_are_parsed(text):
    assert sorted(parse_reply(text).all_pairs()) == sorted(QUESTIONS)


@pytest.mark.parametrize(
    "text",
    [
        "小王问：甲桥有多长？\n老师答：52米。\n问：乙在哪？\n他想了想，没有回答。",
        "问：甲桥有多长？\n答：52米。",
        "文章讲了甲桥。\n1. 甲桥有多长？\n2. 乙在哪？\nA4纸有多大？",
        '[["甲桥有多长？"], ["乙在哪？", "丙", "丁"]]',
        '{"甲桥": "52米", "乙": "丙县"}',
        '[{"role": "assistant", "content": "甲"}, {"role": "user", "content": "乙？"}]',
        '[{"messages": [{"role": "user", "content": "乙？"}]}, {"messages": [{"role": "assistant", "content": "甲"}]}]',
    ],
)
def test_other_texts_are_no_pairs(text):
    assert parse_reply(text).all_pairs() == []


def test_the_last_pair_of_a_plain_text_that_a_limit_cut_is_left_out():
    text = "问题1：甲桥有多长？\n答案1：甲桥长52米。\n问题2：乙在哪？\n答案2：乙在"
    assert parse_reply(text, is_cut=True).all_pairs() == QUESTIONS[:1]


@pytest.mark.parametrize("end", [3, 5, 10, 15, 20, 22])
def test_a_cut_reply_is_marked_as_cut_and_keeps_its_complete_pairs(end):
    found = parse_reply(f"[{ROW}, {SECOND}]"[:-end])
    assert found.all_pairs() == PAIR and found.cut


def test_pairs_of_several_articles_are_assigned_by_number():
    texts = [
        f'[{{"article": 1, "pairs": [{ROW}]}}, {{"article": "文章2", "pairs": [{SECOND}]}}]',
        f'{{"1": [{ROW}], "2": [{SECOND}]}}',
        '[{"article": 1, "pairs": [["甲桥多长？", "“52”米。"]]}, {"article": 2, "pairs": [["乙在哪？", "在丙。"]]}]',
        "文章1：\n问题1：甲桥多长？\n答案1：“52”米。\n\n**文章2**\n问题1：乙在哪？\n答案1：在丙。",
        f'[{{"article": 1, "pairs": [{ROW[:-1]}, "编号": 7}}]}}, {{"article": 2, "pairs": [{SECOND}]}}]',
    ]
    for text in [*texts, texts[0][:-1] + ",,]", texts[0].replace('"article"', "“article”").replace("]}", "]")]:
        assert (parse_reply(text).pairs_of(1), parse_reply(text).pairs_of(2), parse_reply(text).pairs_of(3)) == (
            PAIR,
            TWO[1:],
            [],
        )


@pytest.mark.parametrize(
    "piece",
    [
        "{",
        "[",
        '{"',
        '{"a":',
        '"question":"',
        '{"question": "a" b" ',
        "\\",
        " ",
        "“a”：“b”，",
        "```",
        '"a": ',
        '{"role":',
        "问题1：",
        "答1：甲\n",
        "1. ？\n",
        "*",
        "1. 问：？ 答",
        "问",
    ],
)
def test_a_malicious_reply_of_a_megabyte_is_parsed_in_linear_time(piece):
    started = time.process_time()
    assert parse_reply(piece * (10**6 // len(piece))).all_pairs() == []
    assert time.process_time() - started < 20  # it takes a tenth of a second; what is quadratic takes minutes
