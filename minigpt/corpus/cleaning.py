"""Cleaning: named steps, each on or off, that count what they did. What each does is told in `settings.CLEANING`.

The report's list is `title` and `litter`; the rest is for dumps as they come.
"""

import functools
import html
import re
import sys
import unicodedata
from collections import Counter

from minigpt.common.text import HAN_RUN
from minigpt.settings.stages import CLEANING
from minigpt.tokenizer import bounded_spaces

# The report's list of what a wiki dump leaves behind where a link or template was taken out.
LITTER = re.compile(r"（[；，\s]*）|\([;,\s]*\)|「」|《》|“”|-\{\}-|</?div\b[^<>]*>|[\r\n]+")
MOST_ROUNDS = 100  # of taking out what is innermost; who nests deeper wants to take up time
SHORT_TITLE = 40  # characters; a first paragraph without a sentence end below this is a title line
SENTENCE_END = re.compile(r"[。！？]+[”’」』\"']*")
BLANK_LINE = re.compile(r"\n[ \t\r]*\n")


def drop_title(text, title=""):
    """The text without its title line: the part before the first blank line, if that is the title.

    It is one when it equals `title`, or is short and has no sentence end (Hugging Face's Wikipedia
    texts have no title line; their first paragraph must stay).
    """
    text = text.lstrip()
    if title and text.startswith(f"{title}\n\n"):  # as most have it
        return text[len(title) + 2 :] if "\n" not in title else text
    match = BLANK_LINE.search(text)
    if not match:
        return text
    head = text[: match.start()].strip()
    is_title = head == title.strip() or (
        len(head) <= SHORT_TITLE and "\n" not in head and not SENTENCE_END.search(head)
    )
    return text[match.end() :] if is_title else text


def may_have_litter(text):
    """Whether to look for litter is worth it; the expression takes ten times as long."""
    return (
        "\n" in text or "（" in text or "(" in text or "《》" in text or "“”" in text or "「」" in text or "<" in text
        or "-{" in text or "\r" in text
    )  # fmt: skip


def clean(text):
    """The text without the dump's litter and line breaks, again and again: `（《》）` goes whole."""
    if may_have_litter(text):
        for _ in range(MOST_ROUNDS):
            text, found = LITTER.subn("", text)
            if not found:
                break
    return text.strip()


# Control characters but tab and line ends; soft hyphens; zero-width and direction marks; byte order marks.
CONTROLS = re.compile(
    "[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)


@functools.cache
def plain_forms():
    """{character: its NFKC form} of compatibility letters, digits and spaces.

    Punctuation keeps its full width, and what is small, raised, circled or a fraction its meaning: ² is not 2.
    """
    forms = {}
    for code in range(0xA0, sys.maxunicode + 1):
        character = chr(code)
        plain = unicodedata.normalize("NFKC", character)
        kind = unicodedata.decomposition(character).partition(">")[0]
        if plain == character or kind in ("<super", "<sub", "<circle", "<fraction", "<square"):
            continue
        # Arabic and Hangul compose by rules of their own; only what stands for Latin, kana or Han is meant.
        category = unicodedata.category(character)
        if category == "Zs":
            forms[character] = " "
        elif category[0] in "LN" and all(unicodedata.category(c)[0] in "LNM" for c in plain):
            forms[character] = plain
    return forms


@functools.cache
def compatibility_pattern():
    codes = sorted(map(ord, plain_forms()))
    ranges, first = [], codes[0]
    for code, following in zip(codes, [*codes[1:], -1], strict=True):
        if following != code + 1:
            ranges.append(f"\\U{first:08x}-\\U{code:08x}")
            first = following
    return re.compile(f"[{''.join(ranges)}]")


def drop_controls(text):
    """The text without control and zero-width characters."""
    return CONTROLS.sub("", text)


def plain_widths(text):
    """The text with full-width letters and digits, and other compatibility forms, made plain."""
    forms = plain_forms()
    return compatibility_pattern().sub(lambda match: forms[match[0]], text)


@functools.cache
def converter():
    import opencc  # only who asks for the step needs it loaded

    return opencc.OpenCC("t2s")


def simplify(text):
    """The text in simplified characters."""
    return converter().convert(text)


TEMPLATE_SIGNS = ("{{", "{|", "|}", "}}", "[", "<", "&", "__", "thumb|", "缩略图|", "縮圖|")
# Innermost first, so that nested ones go whole; none looks past the start of the next, so that time stays linear.
TEMPLATES = re.compile(
    r"<!--(?:(?!<!--).)*?-->|<ref\b[^<>]*/>|<ref\b[^<>]*>[^<]*(?:<(?!/?ref\b)[^<]*)*</ref>|"
    r"\{\{[^{}]*\}\}|\{\|(?:(?!\{\||\{\{).)*?\|\}|"
    r"\[\[(?:File|Image|Category|文件|档案|檔案|图像|圖像|分类|分類):[^\[\]]*\]\]|\[https?://[^\s\[\]]+\]",
    re.DOTALL,
)
LINKS = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]|\[https?://[^\s\[\]]++\s++([^\[\]]*)\]")
STRAY = re.compile(
    r"</?(?:br|p|span|small|sub|sup|i|b|center|gallery|nowiki|table|tr|td|th|font|u|ref|references|blockquote|code|math|poem|"
    r"li|ul|ol)\b[^<>]*>|\{\{|\}\}|\{\||\|\}|__[A-Z]{3,}__|\[(?:编辑|編輯)\]|\[\d{1,3}\]|"
    r"^[ \t]*(?:thumb|缩略图|縮圖|right|left)\|.*$",
    re.MULTILINE,
)


def drop_templates(text):
    """The text without remnants of templates, tables, references and tags; of a link its words stay."""
    if not any(sign in text for sign in TEMPLATE_SIGNS):
        return text
    for _ in range(MOST_ROUNDS):
        text, templates = TEMPLATES.subn("", text)
        text, links = LINKS.subn(lambda match: match[1] or match[2] or "", text)
        if not templates + links:
            break
    return html.unescape(STRAY.sub("", text))


LETTER_RUN = re.compile(r"[^\W\d_]+")


def chinese_share(text):
    """Share of Han characters among a text's letters, 0 to 1; 0 where it has none."""
    letters = sum(map(len, LETTER_RUN.findall(text)))
    return sum(map(len, HAN_RUN.findall(text))) / letters if letters else 0.0


REDIRECT = re.compile(r"\s*(?:#\s*(?:redirect|重定向)|(?:redirect|重定向)\s*(?:[:：]|\[\[))", re.IGNORECASE)
AMBIGUOUS_TITLE = re.compile(r"[（(](?:消歧义|消歧義|disambiguation)[）)]\s*$")
AMBIGUOUS = re.compile(r"(?:可以|可能|可)(?:是)?[指为為]{1,2}(?:下列|以下|：|:)|消歧[义義]页|消歧[义義]頁")
LIST_TITLE = re.compile(r"列表$|^[^。]{0,20}(?:列表|年表|名单|名單)$")
LIST_LINES = 5  # lines from which a page may be a list
LIST_SHARE = 0.7  # of its lines that have no sentence end


def is_boilerplate(text, title=""):
    """Whether a page, its line breaks still in it, is a disambiguation page, a redirect or a list of links."""
    if REDIRECT.match(drop_title(text, title)) or AMBIGUOUS_TITLE.search(title) or AMBIGUOUS.search(text[:200]):
        return True
    lines = [line for line in drop_title(text, title).splitlines() if line.strip()]
    bare = sum(not SENTENCE_END.search(line) for line in lines)
    return len(lines) >= LIST_LINES and bare >= len(lines) * (0.5 if LIST_TITLE.search(title) else LIST_SHARE)


# What a text goes through, be it an article's or a question's, by step.
CHARACTER_STEPS = {"controls": drop_controls, "widths": plain_widths, "simplify": simplify}
# What an article's text goes through besides, by step: `step(text, title)`.
ARTICLE_STEPS = {
    "templates": lambda text, title: drop_templates(text),
    "title": drop_title,
    "litter": lambda text, title: clean(text),
}


class CharacterCleaner:
    """The steps among `names` that change characters. They apply to any text: a question, an answer, a title."""

    def __init__(self, names):
        self.steps = [name for name in CLEANING if name in names]
        self.characters = [(name, CHARACTER_STEPS[name]) for name in self.steps if name in CHARACTER_STEPS]

    def text(self, text):
        """The text after those steps."""
        for _, step in self.characters:
            text = step(text)
        return bounded_spaces(text)


class Cleaner(CharacterCleaner):
    """The steps that `settings.clean` names, in the order of CLEANING, for articles.

    changed, dropped: Counter of the articles that each step changed or dropped.
    """

    def __init__(self, settings):
        super().__init__(settings.clean)
        self.min_chars, self.min_chinese_share = settings.min_chars, settings.min_chinese_share
        self.article_steps = [(name, ARTICLE_STEPS[name]) for name in self.steps if name in ARTICLE_STEPS]
        self.drops = [name for name in ("boilerplate", "short", "foreign") if name in self.steps]
        self.changed, self.dropped = Counter(), Counter()

    def clean(self, article):
        """(text, None) of an article, or ("", reason) where a step drops it."""
        text, title = article.text, article.title
        for name, step in self.characters:
            after, title = step(text), step(title)
            if after != text:
                text = after
                self.changed[name] += 1
        is_page = "boilerplate" not in self.drops or not is_boilerplate(text, title)  # its line breaks still in it
        for name, step in self.article_steps:
            after = step(text, title)
            if after != text:
                text = after
                self.changed[name] += 1
        text = bounded_spaces(text)  # what stood between them may have gone
        reason = self._reason(text, is_page) if self.drops else None
        return ("", reason) if reason else (text, None)

    def _reason(self, text, is_page):
        """Why a step drops an article of this cleaned text, or None."""
        reasons = {
            "boilerplate": not is_page and "boilerplate",
            "short": len(text) < self.min_chars and f"fewer than {self.min_chars} characters",
            "foreign": chinese_share(text) < self.min_chinese_share and f"less than {self.min_chinese_share:g} Chinese",
        }
        for name in self.drops:
            if reasons[name]:
                self.dropped[name] += 1
                return reasons[name]
        return None
