"""The rules that a reply is held against, each by its name.

A rule about one pair is a function below that is marked `@rule("name")`: it takes the `ShownArticle` and the pair, and
returns what is wrong, in Chinese, as the model is told it, or "". Whatever is registered is asked, counted and
reported. Rules about a whole reply are in `judge`.
"""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field

from minigpt.synth.numerals import known_numbers, unknown_numbers, without_numbers
from minigpt.synth.wording import bigrams, names_subject, plain, pronoun_of

RULES = {}
REPLY_RULES = ("no_json", "cut_off", "pair_count")
NEAR = 0.8  # share of common pairs of characters from which two questions are one
KNOWN_CHARACTERS = 0.75  # least share of an answer's characters that its article (or question) has
KNOWN_BIGRAMS = 0.4  # the same of its pairs of characters
FOREIGN_SHARE = 0.1  # of a pair's letters, in scripts that the article has not
CHOICE = re.compile("还是|還是|或|哪个|哪一|谁")  # what lets one choose among things that it names
PLAIN_ANSWERS = {"是", "否", "是的", "不是", "有", "没有", "会", "不会", "能", "不能", "可以", "不可以"}


def rule(name):
    """Registers a rule about a pair."""

    def register(check):
        RULES[name] = check
        return check

    return register


@dataclass
class ShownArticle:
    """An article as the model saw it, with what the rules ask of it again and again."""

    title: str
    text: str
    settings: object
    earlier: list = field(default_factory=list)  # pairs of this reply that have passed

    def __post_init__(self):
        self.body = f"{self.title}\n{self.text}"
        self.plain = plain(self.body)
        self.characters, self.bigrams = set(self.plain), bigrams(self.plain)
        self.numbers = known_numbers(self.body)
        self.scripts = set(map(script_of, self.body))


@dataclass
class ReplyVerdict:
    """What is to be thought of a reply: pairs that are good, and (rule, reason) of what is not."""

    pairs: list
    faults: list

    @property
    def good(self):
        return not self.faults


def judge(case, pairs, cut=False):
    """The `ReplyVerdict` on a reply's pairs [(question, answer)]; cut: whether the reply broke off."""
    low, high = case.settings.min_pairs, case.settings.max_pairs
    faults, good, case.earlier = [], [], []
    if cut:
        faults.append(("cut_off", "回复没有写完就中断了，请写得短一些"))
    elif not pairs:
        faults.append(("no_json", "回复中没有可以读取的JSON问答对"))
    elif len(pairs) < low:
        faults.append(("pair_count", f"共有{len(pairs)}对问答，应为{low}到{high}对"))
    for pair in pairs[: 2 * high]:
        wrong = faults_of(case, *pair)
        faults += wrong
        if not wrong:
            good.append(pair)
            case.earlier.append(pair)
    # Of more than enough the first ones do, whatever is wrong with the others.
    return ReplyVerdict(good[:high], [] if len(good) >= high < len(pairs) else faults)


def union(case, kept, pairs):
    """Good pairs of earlier replies, and of one more those that ask something else; max_pairs of them at most."""
    case.earlier = list(kept)
    for pair in pairs:
        if not duplicate(case, *pair):
            case.earlier.append(pair)
    return case.earlier[: case.settings.max_pairs]


def faults_of(case, question, answer):
    """[(rule, reason)] of one pair."""
    found = [(name, check(case, question, answer)) for name, check in RULES.items()]
    return [(name, f"“{question[:40]}”：{reason}") for name, reason in found if reason]


@rule("question_length")
def question_length(case, question, answer):
    most = case.settings.longest_question
    return "" if 1 <= len(question) <= most else f"问题有{len(question)}个字符，应为1到{most}个"


@rule("answer_length")
def answer_length(case, question, answer):
    most = case.settings.longest_answer
    return "" if 1 <= len(answer) <= most else f"回答有{len(answer)}个字符，应为1到{most}个"


ASKING = re.compile("[？?吗呢谁哪几何怎]|什么|多少|多[大长高久远重深宽]|是否|能否|有没有|有无|是不是|請問|什麼|嗎")
REPEATED = re.compile(r"(.{1,12}?)\1{2,}")  # a text of nothing but one and the same


@rule("not_a_question")
def not_a_question(case, question, answer):
    if not ASKING.search(question) or REPEATED.fullmatch(plain(question)):
        return "这不是问句"
    return ""


@rule("pronoun")
def pronoun(case, question, answer):
    found = pronoun_of(question, case.title, case.text)
    return f"问题用“{found}”指代，离开文章就看不懂，请写出名称" if found else ""


@rule("no_subject")
def no_subject(case, question, answer):
    return "" if names_subject(question, case.title, case.text) else "问题没有写明问的是谁或什么"


# 是什么 and the like asked in other words.
SAME_WORDS = (
    (re.compile("哪里|哪儿|何处|何地|什么地方|哪个地方"), "哪"),
    (re.compile("什么时候|什么时间|何时|哪一年|哪年|何年"), "时"),
    (re.compile("怎么样|怎样|怎么|如何"), "何"),
    (re.compile("为什么|为何"), "因"),
    (re.compile("[的了是]"), ""),
)


def gist(question):
    """A question with what may be said in other words made one."""
    for pattern, word in SAME_WORDS:
        question = pattern.sub(word, question)
    return plain(question)


@rule("duplicate")
def duplicate(case, question, answer):
    """Equal answers alone are no fault: two facts may share one. Nor are questions alike in all but a word, 英文 and
    法文, of which each has its answer."""
    mine, replied = gist(question), plain(answer)
    for other, other_answer in case.earlier:
        theirs = gist(other)
        a, b = bigrams(mine), bigrams(theirs)
        alike = 2 * len(a & b) / (len(a) + len(b) or 1) >= NEAR
        swapped = Counter(mine) - Counter(theirs) and Counter(theirs) - Counter(mine)
        if mine == theirs or (alike and (not swapped or replied == plain(other_answer))):
            return f"与问题“{other[:40]}”重复"
    return ""


# What was written for a page or a parser, and the mark between question and answer in a row.
REMNANTS = re.compile(
    r"##|\*\*|__|```|^\s*(?:#|[-*+]\s|>\s)|</?[A-Za-z][^<>]{0,80}>|&(?:[a-z]{2,8}|#\d+);|\]\(|\{\{|\}\}|\[\[|\]\]|\|\s?-{3}"
    r"|\\[nrtu\"]|[\"“](?:question|answer|问题|答案|回答)[\"”]|https?://|[{}]|<\|"
)


@rule("characters")
def characters(case, question, answer):
    text = question + answer
    for c in text:
        category = unicodedata.category(c)
        if category == "So" and c not in case.body:
            return f"含有文章所没有的符号“{c}”"
        if c == "\ufffd" or category in ("Cc", "Cf", "Co", "Cs", "Cn"):
            return f"含有不可用的字符U+{ord(c):04X}"
    for part in (question, answer):
        if found := REMNANTS.search(part):
            return f"含有标记“{found[0].strip()[:20]}”，请只写普通文字"
    letters = [script_of(c) for c in text if c.isalpha()]
    foreign = [script for script in letters if script not in case.scripts]
    return "含有文章所没有的文字" if len(foreign) > FOREIGN_SHARE * len(letters) else ""


def script_of(character):
    """The script of a letter, by the first word of its name: CJK, LATIN, HIRAGANA …; "" of what is none."""
    if not character.isalpha():
        return ""
    if "\u4e00" <= character <= "\u9fff":
        return "CJK"
    return unicodedata.name(character, "").partition(" ")[0]


@rule("unsupported")
def unsupported(case, question, answer):
    if missing := unknown_numbers(f"{question}\n{answer}", case.numbers, case.body):
        return f"文章中没有数字{'、'.join(missing[:5])}"
    text = plain(answer)
    if not text:
        return "回答没有文字"
    if is_echo(question, text):
        return "回答只是重复问题或自己，没有说出内容"
    words = without_numbers(answer)  # these have been looked up by value
    text, pairs = plain(words), {pair for part in words.split() for pair in bigrams(plain(part)) if len(pair) > 1}
    if not text or text in PLAIN_ANSWERS:
        return ""
    asked = plain(question)
    known = case.characters | set(asked)
    met = sum(c in known for c in text) / len(text)
    met_pairs = len(pairs & (case.bigrams | bigrams(asked))) / len(pairs) if pairs else met
    if met < KNOWN_CHARACTERS or met_pairs < KNOWN_BIGRAMS:
        return "回答在文章中找不到依据，请用文章的原话"
    return ""


def is_echo(question, text):
    """Whether a plain answer says nothing but the question, a part of it, or one thing again and again.

    是 is an answer, and so is what a question lets one choose.
    """
    asked = plain(question)
    part = text in asked and len(text) > 1 and text not in PLAIN_ANSWERS and not CHOICE.search(question)
    return part or (len(asked) > 1 and asked in text) or (len(text) > 3 and bool(REPEATED.fullmatch(text)))
