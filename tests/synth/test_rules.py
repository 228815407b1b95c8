"""The rules for replies, the prompt, and the rate limit."""

import json
from random import Random

import pytest
from corpora import made_up_articles
from factory_fakes import FAULTS, good_pairs

from minigpt.settings.stages import GenerateSettings
from minigpt.synth.numerals import arabic_numbers, chinese_numbers, value_of
from minigpt.synth.prompts import MAX_QUOTED_REPLY_CHARS, messages_for, wanted_pairs
from minigpt.synth.rate_limit import MAX_BACKOFF_SECONDS, RateLimit, backoff_seconds
from minigpt.synth.reply_parser import parse_reply
from minigpt.synth.rules import REPLY_RULES, RULES, ArticleIndex, check_pair, check_reply
from minigpt.synth.wording import names_subject, unexplained_pronoun

TITLE = "青石桥"
TEXT = (
    "青石桥是一座石拱桥，位于白水镇，由工匠李木生于1204年建成。桥长五十二米，有3个桥孔，造价约1,200两白银，至今已有八百年历史。"
    "作家周小山在小说《桥上》中写到它。桥的英文名是Green Bridge。"
)


def case(**settings):
    limits = GenerateSettings()
    for name, value in settings.items():
        setattr(limits, name, value)
    return ArticleIndex(TITLE, TEXT, limits)


def names_of(question, answer, **settings):
    """Names of the rules that a pair breaks."""
    return {name for name, _ in check_pair(case(**settings), question, answer)}


LEANING = """
他是谁？ 她何时出生？ 它位于哪里？ 它们有几个？ 其作者是谁？ 该桥有多长？ 此桥建于何时？ 这座桥有多长？
这部小说叫什么？ 这位作家是谁？ 那座桥有几个桥孔？ 本文讲了什么？ 文中写了谁？ 作者是谁？ 文章说了什么？
根据文章，谁建了桥？ 在该镇有什么？ 谁建了该桥？ 为什么它有名？ 哪位作家写到它？ 上述桥名是什么？
我们何时去？ 你知道吗？ 此人是谁？ 在这里有什么？ 何时建成此桥？ 主角叫什么？ 根据本文，桥多长？
牠吃什么？
"""
STANDING = """
其他石拱桥在哪里？ 其中哪座桥最长？ 该隐是谁的儿子？ 应该怎样修桥？ 吉他有几根弦？ 其实桥长多少？
此外还有什么桥？ 土耳其的首都是哪？ 马其顿在哪里？ 尤其著名的是谁？ 马耳他在哪里？ 维他命有什么用？
因此建成了什么？ 彼此是什么关系？ 日本文化起源于何时？ 剧本作者是谁？ 中文中桥叫什么？ 基本作用是什么？
人们该如何过桥？ 刹那是多久？ 他信是哪国人？ 桥本身有多长？ 青石桥有它的名字吗？ 李木生何时建成此桥？
青石桥及其桥孔有几个？ 《他和她》是谁写的？ “它”是什么？ 《桥上》的作者是谁？ 青石桥这座桥多长？
如此多的桥在哪？ 从此有了什么？ 我国有哪些石桥？ 极其长的桥是哪座？
"""


@pytest.mark.parametrize("question", LEANING.split())
def test_a_question_with_an_unexplained_pronoun_is_refused(question):
    assert unexplained_pronoun(question, TITLE, TEXT)


@pytest.mark.parametrize("question", STANDING.split())
def test_words_that_contain_a_pronoun_and_explained_pronouns_pass(question):
    assert not unexplained_pronoun(question, TITLE, TEXT)


def test_a_pronoun_in_the_title_is_a_name():
    assert not unexplained_pronoun("其乐公司在哪里？", "其乐公司", "其乐公司位于上海。")
    assert unexplained_pronoun("其公司在哪里？", "其乐公司", "其乐公司位于上海。")


@pytest.mark.parametrize(
    ("question", "named"),
    [
        ("青石桥有多长？", True),
        ("李木生建了什么？", True),
        ("白水镇有什么桥？", True),
        ("《桥上》是谁写的？", True),
        ("Green Bridge是什么？", True),
        ("石桥的长度是多少？", True),  # two characters of the title
        ("主要作用是什么？", False),
        ("位于哪里？", False),
        ("什么时候建成的呢？", False),  # 建成 is the article's word, but names nothing
        ("长城有多长？", False),
        ("是谁？", False),
    ],
)
def test_a_question_names_something_of_its_article(question, named):
    assert names_subject(question, TITLE, TEXT) == named


OTHERS = "鲁迅的母亲是鲁瑞。会长是李大明。线路全长12米，原产于美洲。"


BARE = "母亲是谁？ 会长是谁？ 全长多少米？ 原产于哪里？ 人口有多少？ 面积多大？"


@pytest.mark.parametrize("question", BARE.split())
def test_a_single_bigram_of_an_article_is_no_name(question):
    assert not names_subject(question, "青石桥", TEXT + OTHERS + "人口有三百，面积多大不知。")


@pytest.mark.parametrize(
    ("title", "questions"),
    [
        ("上海市", "上海的简称是什么？ 上海人口有多少？"),
        ("中山市", "中山的面积是多少？"),
        ("中华人民共和国", "中国的面积有多大？"),
        ("和田地区", "和田位于哪里？"),
    ],
)
def test_short_forms_of_a_title_are_names(title, questions):
    assert all(names_subject(question, title, f"{title}的事。") for question in questions.split())
    assert not names_subject("这个地区人口有多少？", title, f"{title}的事。")


@pytest.mark.parametrize(
    ("question", "body"),
    [
        ("犹他州首府是哪座城市？", "盐湖城是犹他州首府。"),
        ("陈其美与谁合作？", "陈其美与蒋介石合作。"),
        ("与薛其坤合作的是谁？", "薛其坤和他的学生。"),
        ("材料工程研究什么？", "材料工程研究材料。"),
        ("文章学研究什么？", "文章学研究文章。"),
    ],
)
def test_pronouns_inside_names_of_the_article_pass(question, body):
    assert not unexplained_pronoun(question, "某事", body)
    if "材料" not in question and "文章" not in question:
        assert unexplained_pronoun(question, "某事", "别的。")


@pytest.mark.parametrize("title", ["氢", "水星 (行星)", "C++"])
def test_short_titles_and_titles_with_a_note_are_names(title):
    assert names_subject(f"{title.partition(' ')[0]}是什么？", title, "是一种东西。")


def test_a_good_pair_breaks_no_rule():
    assert names_of("青石桥有几个桥孔？", "青石桥有三个桥孔。") == set()
    assert names_of("青石桥建于何时？", "青石桥由工匠李木生于1204年建成。") == set()
    assert names_of("青石桥是石拱桥吗？", "是") == set()


@pytest.mark.parametrize(
    ("question", "answer", "broken"),
    [
        ("", "青石桥", "question_length"),
        ("青石桥究竟是由哪一位工匠建成的？", "李木生", "question_length"),
        ("青石桥是谁建的？", "", "answer_length"),
        ("青石桥是谁建的？", "李木生" * 101, "answer_length"),
        ("青石桥是谁建的？", "李木生##", "characters"),
        ("青石桥是谁建的？", "**李木生**", "characters"),
        ("青石桥是谁建的？", "<b>李木生</b>", "characters"),
        ("青石桥是谁建的？", "- 李木生", "characters"),
        ("青石桥是谁建的？", "李木生&nbsp;", "characters"),
        ("青石桥是谁建的？", "李木生\\n", "characters"),
        ("青石桥是谁建的？", "李木生\ufffd", "characters"),
        ("青石桥是谁建的？", "李木生\ud83d", "characters"),
        ("青石桥是谁建的？", "李木生\x07", "characters"),
        ("青石桥是谁建的？", "李木生\ue000", "characters"),
        ("青石桥是谁建的？", "李木生\u200b", "characters"),
        ("青石桥是谁建的？", "Мастер李木生", "characters"),
        ("青石桥是谁建的？", "由明代著名建筑师王大海设计。", "unsupported"),
        ("青石桥建于何时？", "青石桥于1205年建成。", "unsupported"),
        ("青石桥建于何时？", "青石桥于１２０５年建成。", "unsupported"),
        ("青石桥建于何时？", "青石桥于一二〇五年建成。", "unsupported"),
        ("青石桥多长？", "桥长五十三米", "unsupported"),
        ("青石桥是谁建的？", "……", "unsupported"),
        ("1999年青石桥怎样？", "青石桥有3个桥孔", "unsupported"),
        ("它有几个桥孔？", "有3个桥孔", "pronoun"),
        ("位于哪里？", "位于白水镇", "no_subject"),
        ("青石桥的长度", "五十二米", "not_a_question"),
        ("青石桥有多长？", "青石桥有多长？五十二米", "unsupported"),
        ("青石桥位于白水镇吗？", "青石桥位于白水镇", "unsupported"),
        ("青石桥是谁建的？", "李木生李木生李木生", "unsupported"),
        ("青石桥是谁建的？", "李木生😀", "characters"),
    ],
)
def test_each_rule_refuses_a_pair_that_breaks_it(question, answer, broken):
    assert broken in names_of(question, answer)


@pytest.mark.parametrize(
    "answer",
    [
        "青石桥建于１２０４年。",
        "青石桥建于一二〇四年。",
        "桥长52米。",
        "造价约1200两白银。",
        "至今已有800年历史。",
        "有3个桥孔",
    ],
)
def test_numbers_are_compared_by_value(answer):
    assert "unsupported" not in names_of("青石桥怎样？", answer)


def test_values_of_numbers_in_digits_and_in_characters():
    assert arabic_numbers("1,200、１２.5和3万，4 亿") == {1200, 12.5, 30000, 4e8}
    numerals = {
        "十": 10,
        "二十三": 23,
        "一百零五": 105,
        "两千": 2000,
        "三万五千": 35000,
        "一亿": 1e8,
        "二〇〇八": 2008,
        "三": 3,
    }
    for numeral, value in numerals.items():
        assert chinese_numbers(f"共{numeral}座") == {numeral: value}
    assert chinese_numbers("三三两两，万") == {}


@pytest.mark.parametrize(
    ("numeral", "value"),
    [
        ("一亿二千万", 120_000_000),
        ("十三亿七千万", 1_370_000_000),
        ("两千零五万", 20_050_000),
        ("三亿零四十", 300_000_040),
        ("三亿零十", 300_000_010),
        ("一亿五千万零七", 150_000_007),
        ("一亿零三万", 100_030_000),
        ("一万二千亿", 1_200_000_000_000),
        ("一万亿", 10**12),
        ("十二万亿三千亿零五万", 12_300_000_050_000),
        ("四万万", 400_000_000),
        ("四万五千万", 450_000_000),
        ("百万", 1_000_000),
        ("一百五", 150),
        ("三千五", 3500),
        ("三千零五", 3005),
        ("一万二", 12_000),
        ("一亿二", 120_000_000),
        ("二十五", 25),
        ("一百二十五", 125),
        ("万", None),
        ("亿万", None),
        ("零万", None),
        ("一亿零万", None),
        ("零十", None),
        ("十百", None),
    ],
)
def test_value_of_a_numeral(numeral, value):
    assert value_of(numeral) == value


def in_characters(number):
    """An int below 10**16 as a Chinese numeral, written digit by digit."""
    text, zero = "", False
    for place in reversed(range(16)):
        digit = number // 10**place % 10
        if digit:
            text += "零" * (zero and bool(text)) + "零一二三四五六七八九"[digit] + ("", "十", "百", "千")[place % 4]
        zero = not digit
        if place % 4 == 0 and (number // 10**place % 10**4 or (place == 8 and number >= 10**12)):
            text += ("", "万", "亿", "万")[place // 4]
    return text


def test_values_of_numerals_agree_with_a_simple_writer():
    assert in_characters(10**8 + 2000 * 10**4) == "一亿二千万"
    assert in_characters(30_000_000_500_040) == "三十万亿零五十万零四十"
    random = Random(0)
    numbers = [*range(1, 3000)]
    for digits in range(4, 16):  # a float holds 15 digits
        for _ in range(500):
            kept = "".join(d if random.random() < 0.5 else "0" for d in str(random.randrange(10 ** (digits - 1))))
            numbers.append(int(random.choice("123456789") + kept))
    for number in numbers:
        if len(in_characters(number)) > 1:
            assert value_of(in_characters(number)) == number, in_characters(number)


def test_a_numeral_with_two_units_equals_the_number_in_digits():
    article = ArticleIndex(TITLE, TEXT + "全县人口一亿二千万。", GenerateSettings())
    for number, right in (("1.2亿", True), ("12000万", True), ("1.3亿", False)):
        broken = {name for name, _ in check_pair(article, "青石桥全县有多少人口？", f"全县人口{number}。")}
        assert ("unsupported" not in broken) == right


@pytest.mark.parametrize(
    ("questions", "same"),
    [
        (["青石桥在哪里？", "青石桥在何处"], True),
        (["青石桥有多长？", "青石桥有多长呢？"], True),
        (["青石桥的桥孔有几个？", "青石桥桥孔有几个？"], True),
        (["青石桥有多长？", "青石桥有几孔？"], False),
        (["谁建了青石桥？", "谁写了《桥上》？"], False),
        (["青石桥英文名是什么？", "青石桥法文名是什么？"], False),
    ],
)
def test_duplicate_questions_are_found_and_similar_ones_are_kept(questions, same):
    mine, answers = case(), ["3个", "李木生"]
    mine.earlier.append((questions[0], answers[0]))
    assert ("duplicate" in {name for name, _ in check_pair(mine, questions[1], answers[1])}) == same


def test_equal_answers_to_different_questions_are_kept():
    pairs = [("谁建了青石桥？", "李木生"), ("白水镇的工匠是谁？", "李木生"), ("青石桥有几个桥孔？", "3个")]
    assert not check_reply(case(), pairs).faults


def test_every_rule_finds_its_fault_and_gives_a_reason_in_chinese():
    assert set(FAULTS) == {*RULES, *REPLY_RULES}
    article = made_up_articles(1)[0]
    of_town = ArticleIndex(article["title"], article["text"], GenerateSettings())
    pairs = good_pairs("第0镇", "东河", 3)
    assert not check_reply(of_town, parse_reply(json.dumps(pairs)).all_pairs()).faults
    for name, spoil in FAULTS.items():
        reply = spoil(pairs)
        found = parse_reply(reply if isinstance(reply, str) else json.dumps(reply, ensure_ascii=False))
        check = check_reply(of_town, found.all_pairs(), found.cut)
        assert name in {rule for rule, _ in check.faults}, name
        assert all(
            "\u4e00" <= reason[-1] <= "\u9fff" or reason[-1] in "”" or reason[-1].isdigit()
            for _, reason in check.faults
        )


def test_the_number_of_pairs_is_limited_and_the_good_pairs_of_a_bad_reply_are_kept():
    pairs = [
        ("青石桥多长？", "五十二米"),
        ("谁建了青石桥？", "李木生"),
        ("青石桥在哪里？", "白水镇"),
        ("它在哪里？", "白水镇"),
    ]
    check = check_reply(case(), pairs)
    assert check.good_pairs == pairs[:3] and check.faults
    many = check_reply(case(max_pairs=3, min_pairs=1), pairs)  # more than enough are enough, if so many are good
    assert not many.faults and many.good_pairs == pairs[:3]
    assert check_reply(case(max_pairs=3, min_pairs=1), [*pairs[2:], *pairs[2:]]).faults
    assert {name for name, _ in check_reply(case(min_pairs=4), pairs[:3]).faults} == {"pair_count"}
    assert check_reply(case(), [], cut=True).faults[0][0] == "cut_off"


# The prompt


def test_the_prompt_has_the_article_and_its_example_passes_the_rules():
    settings = GenerateSettings()
    chat = messages_for([(TITLE, TEXT)], settings)
    assert [message["role"] for message in chat] == ["system", "user"] and TEXT in chat[1]["content"]
    example = parse_reply(chat[0]["content"]).all_pairs()
    assert len(example) == 2 and all(len(question) <= settings.longest_question for question, _ in example)
    again = messages_for([(TITLE, TEXT)], settings, "答" * 10**6, ["甲"] * 5 + [str(n) for n in range(100)])
    assert len(again) == 4 and len(again[2]["content"]) == MAX_QUOTED_REPLY_CHARS and len(again[3]["content"]) < 400
    assert again[3]["content"].count("甲") == 1
    assert "【文章2】" in messages_for([(TITLE, TEXT)] * 2, settings)[1]["content"]


def test_longer_articles_are_asked_for_more_pairs_within_the_limits():
    settings = GenerateSettings()
    counts = [wanted_pairs("长" * n, settings) for n in range(0, 3000, 50)]
    assert counts == sorted(counts) and (counts[0], counts[-1]) == (4, 6) and set(counts) == {4, 5, 6}


# The pace


def test_the_rate_limit_spaces_requests_and_obeys_retry_after():
    pace = RateLimit(requests_per_minute=30, wait_minutes=1)
    pace.record_start(100)
    assert pace.seconds_until_ready(100) == 2 and pace.seconds_until_ready(103) < 0
    assert pace.record_failure(103, 104, retry_after=7.5, busy=True)
    assert pace.seconds_until_ready(104) == 7.5
    pace.record_success()  # of a request that was under way: the server's wish holds
    assert pace.seconds_until_ready(104) == 7.5 and pace.seconds_paused(110) == 1.5
    assert (
        pace.record_failure(112, 113, retry_after=3600) and pace.seconds_until_ready(113) == 60
    )  # no longer than the user waits


def test_backoff_grows_until_a_success_or_until_wait_minutes_have_passed():
    pace, now, pauses = RateLimit(0, wait_minutes=2), 1000.0, []
    assert pace.record_failure(now, now) and pace.seconds_until_ready(now) <= 0  # a single failure may be its article's
    while pace.record_failure(now, now):
        assert pace.record_failure(now - 1, now)  # others that were under way make no longer pause
        pauses.append(pace.seconds_until_ready(now))
        now += pauses[-1] + 0.01
    assert (
        pauses[:4] == pytest.approx([backoff_seconds(n) for n in (1, 2, 3, 4)]) and max(pauses) == MAX_BACKOFF_SECONDS
    )
    assert 115 < now - 1000 < 125
    pace.record_success()
    assert pace.record_failure(now, now) and pace.seconds_until_ready(now) <= 0
