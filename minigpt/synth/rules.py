"""The rules that a reply must pass, each with a name.

A rule about one pair is a function below decorated with `@rule`. It takes the `ArticleIndex`, the question and
the answer, and returns what is wrong, in Chinese, as the prompt of the retry says it, or "". Every registered rule is
checked, counted and reported. The rules about a whole reply are in `check_reply`.
"""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field

from minigpt.synth.numerals import known_numbers, unknown_numbers, without_numbers
from minigpt.synth.wording import bigrams, letters_and_digits, names_subject, unexplained_pronoun

RULES = {}
REPLY_RULES = ("no_json", "cut_off", "pair_count")
MIN_DUPLICATE_OVERLAP = 0.8  # Dice coefficient of the bigrams of two questions that may be duplicates
MIN_KNOWN_CHARACTER_SHARE = 0.75  # of an answer's characters that occur in its article or question
MIN_KNOWN_BIGRAM_SHARE = 0.4  # the same of its bigrams
MAX_FOREIGN_LETTER_SHARE = 0.1  # of a pair's letters in scripts that the article does not have
QUOTED_QUESTION_CHARS = 40  # of a question in a reason
CHOICE = re.compile("还是|還是|或|哪个|哪一|谁")  # in questions whose answer may be a part of them
PLAIN_ANSWERS = {"是", "否", "是的", "不是", "有", "没有", "会", "不会", "能", "不能", "可以", "不可以"}


def rule(check):
    """Decorator that registers a rule about a pair under the function's name."""
    RULES[check.__name__] = check
    return check


@dataclass
class ArticleIndex:
    """An article's title and text with the sets that the rules compare pairs with, computed once."""

    title: str
    text: str
    settings: object
    earlier: list = field(default_factory=list)  # good pairs of the reply that is being checked

    def __post_init__(self):
        self.body = f"{self.title}\n{self.text}"
        plain = letters_and_digits(self.body)
        self.characters = set(plain)
        self.bigrams = bigrams(plain)
        self.numbers = known_numbers(self.body)
        self.scripts = set(map(script_of, self.body))


@dataclass
class ReplyCheck:
    """The result for a reply: its good pairs, and faults, (rule, reason) each. A reply without faults is accepted."""

    good_pairs: list
    faults: list


def check_reply(article, pairs, cut=False):
    """The `ReplyCheck` of a reply's pairs [(question, answer)]. cut: whether the reply ended before it was complete."""
    low, high = article.settings.min_pairs, article.settings.max_pairs
    faults, good_pairs = [], []
    article.earlier = good_pairs
    if cut:
        faults.append(("cut_off", "回复没有写完就中断了，请写得短一些"))
    elif not pairs:
        faults.append(("no_json", "回复中没有可以读取的JSON问答对"))
    elif len(pairs) < low:
        faults.append(("pair_count", f"共有{len(pairs)}对问答，应为{low}到{high}对"))
    for pair in pairs[: 2 * high]:
        pair_faults = check_pair(article, *pair)
        faults += pair_faults
        if not pair_faults:
            good_pairs.append(pair)
    # If there are more pairs than wanted and enough good ones, the faults of the others do not matter.
    return ReplyCheck(good_pairs[:high], [] if len(good_pairs) >= high < len(pairs) else faults)


def merge_pairs(article, kept, pairs):
    """`kept` and those of `pairs` that duplicate none of them, max_pairs at most."""
    article.earlier = list(kept)
    for pair in pairs:
        if not duplicate(article, *pair):
            article.earlier.append(pair)
    return article.earlier[: article.settings.max_pairs]


def check_pair(article, question, answer):
    """The faults [(rule, reason)] of one pair."""
    results = [(name, check(article, question, answer)) for name, check in RULES.items()]
    return [(name, f"“{question[:QUOTED_QUESTION_CHARS]}”：{reason}") for name, reason in results if reason]


@rule
def question_length(article, question, answer):
    limit = article.settings.longest_question
    return "" if 1 <= len(question) <= limit else f"问题有{len(question)}个字符，应为1到{limit}个"


@rule
def answer_length(article, question, answer):
    limit = article.settings.longest_answer
    return "" if 1 <= len(answer) <= limit else f"回答有{len(answer)}个字符，应为1到{limit}个"


IS_QUESTION = re.compile("[？?吗呢谁哪几何怎]|什么|多少|多[大长高久远重深宽]|是否|能否|有没有|有无|是不是|請問|什麼|嗎")
REPETITION = re.compile(r"(.{1,12}?)\1{2,}")  # one short text three or more times


@rule
def not_a_question(article, question, answer):
    if not IS_QUESTION.search(question) or REPETITION.fullmatch(letters_and_digits(question)):
        return "这不是问句"
    return ""


@rule
def pronoun(article, question, answer):
    word = unexplained_pronoun(question, article.title, article.text)
    return f"问题用“{word}”指代，离开文章就看不懂，请写出名称" if word else ""


@rule
def no_subject(article, question, answer):
    return "" if names_subject(question, article.title, article.text) else "问题没有写明问的是谁或什么"


# Different ways to ask the same, and what replaces them before questions are compared.
SYNONYMS = (
    (re.compile("哪里|哪儿|何处|何地|什么地方|哪个地方"), "哪"),
    (re.compile("什么时候|什么时间|何时|哪一年|哪年|何年"), "时"),
    (re.compile("怎么样|怎样|怎么|如何"), "何"),
    (re.compile("为什么|为何"), "因"),
    (re.compile("[的了是]"), ""),
)


def canonical_question(question):
    """A question's letters and digits, with synonyms replaced, to compare questions."""
    for pattern, word in SYNONYMS:
        question = pattern.sub(word, question)
    return letters_and_digits(question)


@rule
def duplicate(article, question, answer):
    """Equal answers alone are no fault, since two facts may share one. Similar questions are none either if each has a
    word that the other lacks (英文, 法文) and their answers differ."""
    canonical, plain_answer = canonical_question(question), letters_and_digits(answer)
    for other, other_answer in article.earlier:
        other_canonical = canonical_question(other)
        a, b = bigrams(canonical), bigrams(other_canonical)
        similar = 2 * len(a & b) / (len(a) + len(b) or 1) >= MIN_DUPLICATE_OVERLAP
        counts, other_counts = Counter(canonical), Counter(other_canonical)
        each_has_a_word = counts - other_counts and other_counts - counts
        same_answer = plain_answer == letters_and_digits(other_answer)
        if canonical == other_canonical or (similar and (not each_has_a_word or same_answer)):
            return f"与问题“{other[:QUOTED_QUESTION_CHARS]}”重复"
    return ""


# Markup, JSON syntax, addresses, and "##", which separates question and answer in a row.
MARKUP = re.compile(
    r"##|\*\*|__|```|^\s*(?:#|[-*+]\s|>\s)|</?[A-Za-z][^<>]{0,80}>|&(?:[a-z]{2,8}|#\d+);|\]\(|\{\{|\}\}|\[\[|\]\]|\|\s?-{3}"
    r"|\\[nrtu\"]|[\"“](?:question|answer|问题|答案|回答)[\"”]|https?://|[{}]|<\|"
)


@rule
def characters(article, question, answer):
    text = question + answer
    for c in text:
        category = unicodedata.category(c)
        if category == "So" and c not in article.body:
            return f"含有文章所没有的符号“{c}”"
        if c == "\ufffd" or category in ("Cc", "Cf", "Co", "Cs", "Cn"):
            return f"含有不可用的字符U+{ord(c):04X}"
    for part in (question, answer):
        if found := MARKUP.search(part):
            return f"含有标记“{found[0].strip()[:20]}”，请只写普通文字"
    letters = [script_of(c) for c in text if c.isalpha()]
    foreign = [script for script in letters if script not in article.scripts]
    return "含有文章所没有的文字" if len(foreign) > MAX_FOREIGN_LETTER_SHARE * len(letters) else ""


def script_of(character):
    """The script of a letter: the first word of its Unicode name (CJK, LATIN, HIRAGANA …); "" if it is no letter."""
    if not character.isalpha():
        return ""
    if "\u4e00" <= character <= "\u9fff":
        return "CJK"
    return unicodedata.name(character, "").partition(" ")[0]


@rule
def unsupported(article, question, answer):
    if missing := unknown_numbers(f"{question}\n{answer}", article.numbers, article.body):
        return f"文章中没有数字{'、'.join(missing[:5])}"
    plain_answer = letters_and_digits(answer)
    if not plain_answer:
        return "回答没有文字"
    if is_echo(question, plain_answer):
        return "回答只是重复问题或自己，没有说出内容"
    # Numbers have been compared by value above; the rest is compared by characters and bigrams.
    words = [letters_and_digits(part) for part in without_numbers(answer).split()]
    text = "".join(words)
    if not text or text in PLAIN_ANSWERS:
        return ""
    plain_question = letters_and_digits(question)
    known = article.characters | set(plain_question)
    character_share = bigram_share = sum(c in known for c in text) / len(text)
    if own_bigrams := {bigram for word in words for bigram in bigrams(word) if len(bigram) > 1}:
        known_bigrams = article.bigrams | bigrams(plain_question)
        bigram_share = len(own_bigrams & known_bigrams) / len(own_bigrams)
    if character_share < MIN_KNOWN_CHARACTER_SHARE or bigram_share < MIN_KNOWN_BIGRAM_SHARE:
        return "回答在文章中找不到依据，请用文章的原话"
    return ""


def is_echo(question, text):
    """Whether an answer (its letters and digits) is a part of the question, contains it, or repeats itself.

    是 is no echo, nor is one of the alternatives that a question offers.
    """
    asked = letters_and_digits(question)
    is_part = text in asked and len(text) > 1 and text not in PLAIN_ANSWERS and not CHOICE.search(question)
    return is_part or (len(asked) > 1 and asked in text) or (len(text) > 3 and bool(REPETITION.fullmatch(text)))
