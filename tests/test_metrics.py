"""Metrics compared with values worked out by hand, with plain loops, and with the reference implementations."""

import math
import random
import re

import numpy as np
import pytest
from rouge_chinese import Rouge

from minigpt import metrics as scores
from minigpt.metrics import (
    FEWEST_ROWS,
    char_f1,
    compare,
    confusion_table,
    count_edits,
    cut_words,
    distinct,
    edit_scores,
    entity_scores,
    exact_match,
    extract_numbers,
    find_entities,
    has_same_numbers,
    interval,
    label_accuracy,
    label_scores,
    macro_f1,
    mean_scores,
    repetition,
    rouge_l,
    score_each,
    score_pair,
    score_pairs,
    text_edits,
    too_few,
    too_few_notes,
)


def test_the_reports_pair_has_equal_recall_precision_and_f():
    assert rouge_l("羊侃的字是公祖。", "羊侃的字是祖忻。") == (0.875, 0.875, 0.875)


def plain_lcs(a, b):
    """Length of the longest common subsequence, by dynamic programming."""
    row = [0] * (len(b) + 1)
    for x in a:
        left_above = 0
        for j, y in enumerate(b, start=1):
            left_above, row[j] = row[j], left_above + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def random_pairs(alphabet, count=60, longest=25, seed=0):
    rng = random.Random(seed)
    return [["".join(rng.choices(alphabet, k=rng.randint(1, longest))) for _ in range(2)] for _ in range(count)]


@pytest.mark.parametrize("alphabet", ["天地", "天地玄黄宇宙", "天地。！？”’“….?,ab1"])
def test_rouge_l_is_the_longest_common_subsequence_of_characters(alphabet):
    for prediction, reference in random_pairs(alphabet):
        common = plain_lcs(prediction, reference)
        expected = (common / len(reference), common / len(prediction), 2 * common / len(prediction + reference))
        assert rouge_l(prediction, reference) == pytest.approx(expected, abs=1e-12)


def theirs(prediction, reference):
    """Rouge-L of rouge-chinese over characters, which needs spaces between them: (recall, precision, F)."""
    texts = [" ".join("".join(text.split())) for text in (prediction, reference)]
    found = Rouge(metrics=["rouge-l"]).get_scores(*texts)[0]["rouge-l"]
    return found["r"], found["p"], found["f"]


TRICKY = [
    ("羊侃的字是公祖。", "羊侃的字是祖忻。"),
    ("天天天天", "天"),
    ("天地天地天地", "地天地天"),
    (" 天 地\n玄", "天地\u3000玄"),
    ("他说：“好。”她走了。", "他说：“好！”她走了。"),
    ("……", "…"),
    ("1,234.5米", "1234.5 米"),
    ("😀𠮷", "𠮷😀"),
    ("a b", "ab"),
]


@pytest.mark.parametrize("pair", TRICKY, ids=range(len(TRICKY)))
def test_rouge_l_equals_rouge_chinese_on_tricky_texts(pair):
    assert rouge_l(*pair) == pytest.approx(theirs(*pair), abs=2e-8)  # theirs adds 1e-8 to the divisor of F


@pytest.mark.parametrize("alphabet", ["天地", "天地玄黄。！？", "天地玄黄宇宙洪荒a1 \n"])
def test_rouge_l_equals_rouge_chinese_on_random_texts(alphabet):
    for prediction, reference in random_pairs(alphabet):
        if prediction.strip() and reference.strip():
            assert rouge_l(prediction, reference) == pytest.approx(theirs(prediction, reference), abs=2e-8)


def test_an_empty_text_scores_zero_where_rouge_chinese_raises():
    for pair in (("", "天"), ("天", ""), ("", ""), (" \n", "天")):
        assert rouge_l(*pair) == (0.0, 0.0, 0.0)
        with pytest.raises(ValueError, match="at least 1 sentence"):
            theirs(*pair)
    assert rouge_l("地", "天") == (0.0, 0.0, 0.0) == pytest.approx(theirs("地", "天"))


def test_rouge_l_does_not_confuse_recall_and_precision():
    assert rouge_l("天地玄黄", "天地") == pytest.approx((1.0, 0.5, 2 / 3))
    assert rouge_l("天地。", "地。天地玄。") == pytest.approx((0.5, 1.0, 2 / 3))


def test_rouge_l_over_words_counts_words():
    assert cut_words("我们 在北京大学") == ["我们", "在", "北京大学"]
    assert rouge_l("我们在北京大学", "他们在北京大学", words=True) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert rouge_l("我们在北京大学", "他们在北京大学") == pytest.approx((6 / 7, 6 / 7, 6 / 7))


def test_exact_match_ignores_space_around_and_nothing_else():
    assert exact_match(" 东河。\n", "东河。")
    for other in ("东河", "东 河。", "东河。。", "", "東河。"):
        assert not exact_match(other, "东河。")


# CMRC 2018's F1, by its published script but for NLTK, whose place words and single signs take.
CMRC_SIGNS = ["-", ":", "_", "*", "^", "/", "\\", "~", "`", "+", "=", "，", "。", "：", "？", "！", "“", "”", "；", "’"]
CMRC_SIGNS += ["《", "》", "……", "·", "、", "「", "」", "（", "）", "－", "～", "『", "』"]  # no character is "……"


def cmrc_segments(text):
    found, other = [], ""
    for char in text.lower().strip():
        if char in CMRC_SIGNS:
            continue
        if "\u4e00" <= char <= "\u9fa5":
            found, other = [*found, *re.findall(r"[a-z0-9]+|[^a-z0-9\s]", other), char], ""
        else:
            other += char
    return found + re.findall(r"[a-z0-9]+|[^a-z0-9\s]", other)


def cmrc_f1(prediction, reference):
    a, b = cmrc_segments(prediction), cmrc_segments(reference)
    runs = ((i, j, n) for i in range(len(a)) for j in range(len(b)) for n in range(1, min(len(a) - i, len(b) - j) + 1))
    longest = max((n for i, j, n in runs if a[i : i + n] == b[j : j + n]), default=0)
    if not longest:
        return 0.0
    precision, recall = longest / len(a), longest / len(b)
    return 2 * precision * recall / (precision + recall)


CMRC = {
    "a stretch in the middle": (("天地玄黄", "日地玄月"), 2 / 4),
    "the stretch and not the subsequence": (("天月地日玄", "天地玄"), 2 * 1 / 8),
    "punctuation is left out": (("《天地》，玄。", "天地玄"), 1.0),
    "a Latin word is one": (("卫星Triton。", "卫星triton"), 1.0),
    "part of a Latin word is nothing": (("Triton", "Trito"), 0.0),
    "a year is one": (("1801年", "1802年"), 2 * 1 / 4),
    "an ellipsis is a sign like others": (("天…地", "天地"), 2 * 1 / 5),
    "nothing": (("", "天"), 0.0),
    "only punctuation": (("，。", "。"), 0.0),
}


@pytest.mark.parametrize("case", CMRC)
def test_character_f1_of_cases_worked_out_by_hand(case):
    pair, expected = CMRC[case]
    assert char_f1(*pair) == pytest.approx(expected)
    assert cmrc_f1(*pair) == pytest.approx(expected)


@pytest.mark.parametrize("alphabet", ["天地", "天地玄黄，。", "天地ab1 ，。…!’‘（"])
def test_character_f1_equals_cmrc_2018(alphabet):
    for pair in random_pairs(alphabet, longest=14):
        assert char_f1(*pair) == pytest.approx(cmrc_f1(*pair)), pair


NUMBERS = {
    "公元1801年1月2日": {"1801", "1", "2"},
    "１８０１年，长３．５米": {"1801", "3.5"},
    "有1,234,567人和12,345人": {"1234567", "12345"},
    "1998,2002和1,23": {"1998", "2002", "1", "23"},
    "分别是100，200，300": {"100", "200", "300"},  # a Chinese comma parts them
    "3.14和0.5": {"3.14", "0.5"},
    "2020年01月05日08时": {"2020", "1", "5", "8"},  # a date is the same with the zero
    "区号010，邮编010000": {"010", "010000"},  # a code is not
    "010月": {"010"},
    "0": {"0"},
    "一百二十三、十": set(),
    "面积5㎡，第①章，x²": {"5"},
    "H2O与T34": {"2", "34"},
    "": set(),
}


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_of_a_text(text):
    assert extract_numbers(text) == NUMBERS[text]


def test_the_numbers_of_two_texts_have_to_be_equal():
    assert has_same_numbers("它发现于1801年。", "谷神星发现于１８０１年。") is True
    assert has_same_numbers("桥有1234座", "1,234座") is True
    assert has_same_numbers("电话区号是10。", "电话区号是010。") is False
    assert has_same_numbers("1801年1月", "1801年") is False
    assert has_same_numbers("", "1801年") is False
    assert has_same_numbers("1801年", "一八〇一年") is None


def test_repetition_by_hand():
    assert repetition("天地玄黄天地玄黄") == pytest.approx(1 / 5)  # of five 4-grams, the last stood there before
    assert repetition("天天天天天天") == pytest.approx(2 / 3)
    assert repetition("天地玄黄") == repetition("天地") == repetition("") == 0.0
    assert repetition("天 地天地", n=2) == pytest.approx(1 / 3)


def test_distinct_by_hand():
    assert distinct(["天地天地", "天地"], 2) == pytest.approx(2 / 4)
    assert distinct(["天地", "地天"], 1) == pytest.approx(2 / 4)
    assert distinct(["天"], 2) == distinct([], 2) == 0.0


def test_scores_are_means_over_the_pairs():
    found = score_pairs(["天地", "天地玄黄", "宇"], ["天地", "天地", "天"])
    expected = {"rouge_l_recall": 2 / 3, "rouge_l_precision": 0.5, "rouge_l_f": 5 / 9, "exact_match": 1 / 3}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert (found["pairs"], found["pairs_with_numbers"], found["numbers"]) == (3, 0, None)


def test_a_missing_prediction_is_not_averaged():
    each = score_each(["1年", None, "天"], ["1年", "2年", "地"], words=True)
    assert all(math.isnan(values[1]) for values in each.values())
    found = mean_scores(each)
    assert (found["pairs"], found["exact_match"], found["numbers"], found["pairs_with_numbers"]) == (2, 0.5, 1.0, 1)
    assert found["rouge_l_words_recall"] == 0.5


def test_a_long_answer_is_scored_as_a_short_one():
    rng = random.Random(0)
    reference = "".join(rng.sample([chr(0x4E00 + i) for i in range(800)], k=300))
    for answer in (reference * 100, "天" * 15_000 + reference + "地" * 14_700):  # plain tables take ten seconds
        found = score_pair(answer, reference)
        assert (found["rouge_l_recall"], found["rouge_l_precision"]) == pytest.approx((1.0, 0.01))
        assert found["char_f1"] == found["rouge_l_f"] == pytest.approx(2 / 101)


# Edits of corrections


@pytest.mark.parametrize(
    ("target", "edits"),
    [
        ("他在河边走。", []),
        ("他在河边走路。", [(5, 5, "路")]),
        ("在河边走。", [(0, 1, "")]),
        ("她在河边跑。", [(0, 1, "她"), (4, 5, "跑")]),
        ("他在河边上跑。", [(4, 5, "上跑")]),  # a replaced and an inserted character side by side
        ("", [(0, 6, "")]),
    ],
)
def test_neighbouring_changes_are_one_edit(target, edits):
    assert text_edits("他在河边走。", target) == set(edits)


def test_edits_turn_the_source_into_the_target():
    rng = random.Random(0)
    for _ in range(200):
        source, target = ("".join(rng.choices("甲乙丙", k=rng.randrange(8))) for _ in range(2))
        text = source
        for start, end, new in sorted(text_edits(source, target), reverse=True):
            text = text[:start] + new + text[end:]
        assert text == target


@pytest.mark.parametrize(
    ("prediction", "references", "counts"),
    [
        ("她在河边跑。", ["她在河边走。"], (1, 2, 1)),
        ("她在河边走。", ["他在河边跑。", "她在河边跑。"], (1, 1, 2)),  # the reference with the highest F0.5
        ("他在河边走。", ["她在河边跑。", "他在河边跑。"], (0, 0, 1)),  # none is right: that with the fewest edits
        ("他在河边走。", ["他在河边跑。", "他在河边走。"], (0, 0, 0)),
        ("他在河边走路。", ["他在河边走。"], (0, 1, 0)),
    ],
)
def test_edits_are_counted_against_the_best_reference(prediction, references, counts):
    assert count_edits("他在河边走。", prediction, references) == counts


@pytest.mark.numeric
def test_f_of_edits_weighs_precision_twice():
    found = edit_scores([(1, 2, 1), (1, 1, 2), (0, 0, 1)])
    precision, recall = 2 / 3, 2 / 4
    assert found["precision"] == pytest.approx(precision) and found["recall"] == recall
    assert found["f0_5"] == pytest.approx(1.25 * precision * recall / (0.25 * precision + recall))
    assert (found["correct"], found["proposed"], found["wanted"], found["interval"]) == (2, 3, 4, None)
    low, high = edit_scores([(1, 1, 1), (0, 1, 1)] * 30)["interval"]
    assert 0.3 < low < 0.5 < high < 0.7
    assert [edit_scores([(0, 0, 0)])[name] for name in ("precision", "recall", "f0_5")] == [None] * 3
    assert edit_scores([])["f0_5"] is None and edit_scores([(0, 0, 3)])["f0_5"] == 0


# How sure a figure is


def test_the_interval_of_a_mean_is_the_normal_one_on_a_large_sample():
    rows = np.random.default_rng(1).normal(0.6, 0.2, 4000)
    low, high = interval(rows, resamples=2000)
    half = 1.96 * rows.std() / math.sqrt(len(rows))
    assert (low, high) == pytest.approx((rows.mean() - half, rows.mean() + half), abs=0.1 * half)


def test_the_interval_of_a_share_is_the_binomial_one():
    low, high = interval([1.0] * 300 + [0.0] * 700, resamples=2000)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.1 * half)


def test_the_interval_of_a_ratio_is_of_sums():
    rng = np.random.default_rng(2)
    tokens = rng.integers(1, 100, 3000).astype(float)
    nats = 2.5 * tokens + rng.normal(0, 5, 3000)
    ratio = nats.sum() / tokens.sum()
    half = 1.96 * (nats - ratio * tokens).std() / tokens.mean() / math.sqrt(3000)  # by the delta method
    assert interval(nats, tokens, resamples=2000) == pytest.approx((ratio - half, ratio + half), abs=0.1 * half)


MANY = FEWEST_ROWS  # just enough rows


def test_intervals_of_edge_cases():
    assert interval([0.25] * MANY) == (0.25, 0.25)
    assert interval([]) is interval([math.nan]) is interval([0.5] * MANY, resamples=0) is None
    assert interval([0.1, math.nan, 0.7, math.nan] * MANY) == interval([0.1, 0.7] * MANY)
    below = [0.0, *[4.0] * (MANY - 1)]
    low, high = interval([1.0, *[2.0] * (MANY - 1)], below, resamples=4000)
    assert low == 0.5 < high < 0.75  # the row with nothing below the line only adds
    assert interval([0.1, 0.9, 0.4] * MANY, seed=3) == interval([0.1, 0.9, 0.4] * MANY, seed=3)


def test_a_few_rows_have_no_interval_and_no_comparison_but_a_reason():
    few = [0.1, 0.9] * MANY
    assert interval(few[: MANY - 1]) is None and interval(few[:MANY])
    assert interval([*few[: MANY - 1], math.nan]) is None  # nan is no row
    found = compare([1.0] * (MANY - 1), [0.5] * (MANY - 1))
    assert found == {"difference": 0.5, "low": None, "high": None, "a_better": None, "rows": MANY - 1}
    assert too_few(MANY) == "" and too_few(1) == "too few rows (1) for an interval; give at least 20"
    notes = too_few_notes({"a": 3, "b": MANY, "c": 3, "d": 0})
    assert notes == [f"note: a, c: {too_few(3)}"]  # of no rows there is no figure either


def test_a_comparison_worked_out_by_hand():
    always = compare([1.0, 0.9, 0.8] * MANY, [0.5, 0.4, 0.3] * MANY)
    assert always == pytest.approx({"difference": 0.5, "low": 0.5, "high": 0.5, "a_better": 1.0, "rows": 3 * MANY})
    same = compare([0.3, 0.7] * MANY, [0.3, 0.7] * MANY)
    assert same == {"difference": 0.0, "low": 0.0, "high": 0.0, "a_better": 0.5, "rows": 2 * MANY}
    assert compare([], []) is compare([math.nan], [1.0]) is None
    assert compare([1.0, math.nan, 1.0], [0.0, 1.0, math.nan])["rows"] == 1
    with pytest.raises(ValueError, match="shapes"):
        compare([1.0, 2.0], [1.0, 2.0, 3.0])


def test_equal_models_are_better_in_half_of_the_resamples():
    found = compare([1.0, 0.0] * (MANY // 2), [0.0, 1.0] * (MANY // 2), resamples=4000)
    assert found["difference"] == 0.0 and found["low"] == pytest.approx(-found["high"], abs=0.11)
    assert found["a_better"] == pytest.approx(0.5, abs=0.03)


def test_swapping_the_models_mirrors_a_comparison():
    rng = np.random.default_rng(5)
    a, b = rng.random(200), rng.random(200)
    ab, ba = compare(a, b, seed=7), compare(b, a, seed=7)
    assert ab["a_better"] == pytest.approx(1 - ba["a_better"])
    assert (ab["difference"], ab["low"], ab["high"]) == pytest.approx((-ba["difference"], -ba["high"], -ba["low"]))


def test_a_comparison_is_paired():
    rng = np.random.default_rng(6)
    hard = rng.random(300)  # rows differ far more than models do
    found = compare(hard + 0.01, hard + rng.normal(0, 0.01, 300))
    assert found["a_better"] > 0.999 and found["high"] - found["low"] < 0.005


def test_resampling_in_chunks_gives_the_same_interval(monkeypatch):
    rows = np.random.default_rng(0).random(1000)
    whole, drawn = interval(rows, resamples=100, seed=1), []
    monkeypatch.setattr(scores, "MAX_RESAMPLED_NUMBERS", 3000)

    class Watched:
        """Like numpy's generator; records how many numbers are drawn at a time."""

        def __init__(self, seed):
            self.rng = original(seed)

        def integers(self, n, size):
            drawn.append(size)
            return self.rng.integers(n, size=size)

    original = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", Watched)
    assert interval(rows, resamples=100, seed=1) == whole
    assert {size[0] for size in drawn} == {1, 3} and sum(size[0] for size in drawn) == 100


def test_accuracy_macro_f1_and_confusions_are_those_counted_by_hand():
    wanted, found = list("aaaabbc"), list("aaabbcb")
    assert label_accuracy(found, wanted) == 4 / 7
    assert confusion_table(found, wanted, list("abcd")).tolist() == [[3, 1, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0], [0] * 4]
    expected = {"a": (1.0, 3 / 4, 6 / 7, 4), "b": (1 / 3, 1 / 2, 2 / 5, 2), "c": (0.0, 0.0, 0.0, 1)}
    assert {label: tuple(score.values()) for label, score in label_scores(found, wanted).items()} == expected
    assert macro_f1(found, wanted) == pytest.approx((6 / 7 + 2 / 5 + 0) / 3)
    assert macro_f1(["a"], ["a"]) == 1.0  # labels that are in neither do not count
    assert macro_f1(["a", "b"], ["a", "a"]) == pytest.approx((2 / 3 + 0) / 2)  # one that is predicted only does
    assert math.isnan(macro_f1([], [])) and math.isnan(label_accuracy([], []))


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        ("O O", []),
        ("B-P I-P O B-Q", [("P", 0, 2), ("Q", 3, 4)]),
        ("B-P B-P I-P", [("P", 0, 1), ("P", 1, 3)]),
        ("O I-P I-P", [("P", 1, 3)]),
        ("B-P I-Q I-Q", [("P", 0, 1), ("Q", 1, 3)]),
        ("I-P O I-P", [("P", 0, 1), ("P", 2, 3)]),
        ("B I O I B", [("", 0, 2), ("", 3, 4), ("", 4, 5)]),
        ("B-a-b I-a-b", [("a-b", 0, 2)]),
    ],
)
def test_entities_are_found_also_where_they_begin_with_i(tags, entities):
    assert find_entities(tags.split()) == entities


def test_an_entity_is_right_if_its_type_and_both_ends_are():
    wanted = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    found = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    scores = entity_scores(found, wanted)  # the example of seqeval's documentation
    assert (scores["precision"], scores["recall"], scores["f1"], scores["count"]) == (0.5, 0.5, 0.5, 2)
    assert {kind: score["f1"] for kind, score in scores["by_type"].items()} == {"MISC": 0.0, "PER": 1.0}
    scores = entity_scores([["B-Q", "O", "B-P"]], [["B-P", "O", "O"]])
    assert (scores["precision"], scores["recall"], scores["f1"], scores["count"]) == (0.0, 0.0, 0.0, 1)
    scores = entity_scores([["B-P", "O", "B-P"]], [["B-P", "O", "O"]])
    assert (scores["precision"], scores["recall"], scores["f1"]) == (0.5, 1.0, pytest.approx(2 / 3))
    assert entity_scores([["O"]], [["O"]])["f1"] == 0.0
    with pytest.raises(ValueError, match="1 tags are predicted for 2"):
        entity_scores([["O"]], [["O", "O"]])
