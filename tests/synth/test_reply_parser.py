"""Parsing of replies that are not quite JSON."""

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


@pytest.mark.parametrize("end", [3, 5, 10, 15, 20, 22])
def test_a_cut_reply_is_marked_as_cut_and_keeps_its_complete_pairs(end):
    found = parse_reply(f"[{ROW}, {SECOND}]"[:-end])
    assert found.all_pairs() == PAIR and found.cut


def test_pairs_of_several_articles_are_assigned_by_number():
    texts = [
        f'[{{"article": 1, "pairs": [{ROW}]}}, {{"article": "文章2", "pairs": [{SECOND}]}}]',
        f'{{"1": [{ROW}], "2": [{SECOND}]}}',
        f'[{{"article": 1, "pairs": [{ROW[:-1]}, "编号": 7}}]}}, {{"article": 2, "pairs": [{SECOND}]}}]',
    ]
    for text in [*texts, texts[0][:-1] + ",,]", texts[0].replace('"article"', "“article”").replace("]}", "]")]:
        assert (parse_reply(text).pairs_of(1), parse_reply(text).pairs_of(2), parse_reply(text).pairs_of(3)) == (
            PAIR,
            TWO[1:],
            [],
        )


@pytest.mark.parametrize(
    "piece", ["{", "[", '{"', '{"a":', '"question":"', '{"question": "a" b" ', "\\", " ", "“a”：“b”，", "```", '"a": ']
)
def test_a_malicious_reply_of_a_megabyte_is_parsed_in_linear_time(piece):
    started = time.process_time()
    assert parse_reply(piece * (10**6 // len(piece))).all_pairs() == []
    assert time.process_time() - started < 20  # it takes a tenth of a second; what is quadratic takes minutes
