"""Cleaning: named steps, each on or off, that count the articles they change or drop.

`CLEANING` of the settings describes them. The course report used `title` and `litter`; the others are for raw dumps.
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

# What a wiki dump leaves where a link or template was removed (the course report's list).
LITTER = re.compile(r"（[；，\s]*）|\([;,\s]*\)|「」|《》|“”|-\{\}-|</?div\b[^<>]*>|[\r\n]+")
NOTHING_LEFT = "nothing left after cleaning"
MAX_ROUNDS = 100  # of removing the innermost matches; deeper nesting is hostile input
MAX_TITLE_CHARS = 40  # of a first paragraph without a sentence end that counts as a title line
SENTENCE_END = re.compile(r"[。！？]+[”’」』\"']*")
BLANK_LINE = re.compile(r"\n[ \t\r]*\n")


def drop_title(text, title=""):
    """The text without its title line: the part before the first blank line, if that is the title.

    It is a title if it equals `title`, or if it is short and has no sentence end. Other first paragraphs stay: the
    texts of Hugging Face's Wikipedia have no title line.
    """
    text = text.lstrip()
    if title and text.startswith(f"{title}\n\n"):  # the common case, without a regular expression
        return text[len(title) + 2 :] if "\n" not in title else text
    match = BLANK_LINE.search(text)
    if not match:
        return text
    head = text[: match.start()].strip()
    is_title = head == title.strip() or (
        len(head) <= MAX_TITLE_CHARS and "\n" not in head and not SENTENCE_END.search(head)
    )
    return text[match.end() :] if is_title else text


def may_have_litter(text):
    """Whether a text can contain litter; a quick test, as the regular expression takes ten times as long."""
    return (
        "\n" in text or "（" in text or "(" in text or "《》" in text or "“”" in text or "「」" in text or "<" in text
        or "-{" in text or "\r" in text
    )  # fmt: skip


LATIN_LINE = re.compile(r"\n[ \t\r\n]*(?=[A-Za-z])")


def join_latin_lines(text):
    """The text with a space for the line break between two lines of Latin words, which have none between them."""

    def join(match):
        before = text[max(0, match.start() - 2) : match.start()].rstrip()[-1:]
        return " " if re.match(r"[A-Za-z0-9,;:.!?]", before) else match[0]

    return LATIN_LINE.sub(join, text)


def drop_litter(text):
    """The text without the dump's litter and line breaks, repeatedly, so that the nested `（《》）` is removed too."""
    if may_have_litter(text):
        text = join_latin_lines(text)
        for _ in range(MAX_ROUNDS):
            text, found = LITTER.subn("", text)
            if not found:
                break
    return text.strip()


# Control characters except tab and line ends; soft hyphens; zero-width and direction marks; byte order marks.
CONTROL_CHARACTERS = re.compile(
    "[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)


@functools.cache
def plain_forms():
    """{character: its NFKC form} of compatibility letters, digits and spaces.

    Excluded are punctuation, which stays full-width, and forms with a meaning of their own: superscripts, subscripts,
    circled characters and fractions (² is not 2).
    """
    forms = {}
    for code in range(0xA0, sys.maxunicode + 1):
        character = chr(code)
        plain = unicodedata.normalize("NFKC", character)
        kind = unicodedata.decomposition(character).partition(">")[0]
        if plain == character or kind in ("<super", "<sub", "<circle", "<fraction", "<square"):
            continue
        # Forms that contain other categories (composed Arabic, Hangul) are left as they are.
        category = unicodedata.category(character)
        if category == "Zs":
            forms[character] = " "
        elif category[0] in "LN" and all(unicodedata.category(c)[0] in "LNM" for c in plain):
            forms[character] = plain
    return forms


@functools.cache
def compatibility_pattern():
    """A regular expression of the characters of `plain_forms`, and of all from U+10000 on.

    Each range of these that it named would be compared with each character of a text, which takes twenty times as long.
    """
    codes = sorted(code for code in map(ord, plain_forms()) if code < 0x10000)
    ranges, first = ["\\U00010000-\\U0010ffff"], codes[0]
    for code, following in zip(codes, [*codes[1:], -1], strict=True):
        if following != code + 1:
            ranges.append(f"\\U{first:08x}-\\U{code:08x}")
            first = following
    return re.compile(f"[{''.join(ranges)}]")


def drop_controls(text):
    """The text without control and zero-width characters."""
    return CONTROL_CHARACTERS.sub("", text)


def normalize_widths(text):
    """The text with full-width letters and digits, and other compatibility forms, replaced by their NFKC form."""
    forms = plain_forms()
    return compatibility_pattern().sub(lambda match: forms.get(match[0], match[0]), text)


@functools.cache
def opencc_converter():
    """OpenCC's converter from traditional to simplified characters."""
    import opencc  # imported only where the step is on

    return opencc.OpenCC("t2s")


def simplify(text):
    """The text in simplified characters."""
    return opencc_converter().convert(text)


# The marks of chat templates: ChatML, GLM, Phi, Llama 2 and 3, Gemma, DeepSeek, MOSS, InternLM, Baichuan. Some are
# followed by the name of who speaks.
CHAT_MARK = (
    r"(?:<\|(?:im_start|start)\|>|<\|start_header_id\|>|<start_of_turn>)\s{0,8}"
    r"(?:(?:system|user|assistant|tool|human|bot|gpt|model|observation|function)(?![A-Za-z0-9_])[ \t:：]{0,8})?|"
    r"<\|[A-Za-z][A-Za-z0-9_ ]{0,40}\|>[:：]?|<｜[^<>｜]{1,40}｜>|<(?:eoh|eom|eoa|eot|eos|bos|sop|eop|end_of_turn)>|"
    r"\[/?INST\]|<</?SYS>>|\[gMASK\]|\[UNUSED_TOKEN_\d{1,4}\]|<reserved_\d{1,4}>"
)
# Between two texts they are replaced by a line break, with a few of the spaces around them, so that time stays linear.
CHAT_MARKS = re.compile(rf"\s{{0,8}}(?:(?:{CHAT_MARK})\s{{0,8}})+")
# HTML's strike-through has the same tag: it is a mark only where it begins or ends the whole text.
CHAT_MARKS_AND_ENDS = re.compile(rf"\s{{0,8}}(?:(?:{CHAT_MARK}|</?s>)\s{{0,8}})+")


def drop_chat_marks(text):
    """The text without the marks of chat templates; between two turns a line break remains."""
    if "<" not in text and "[" not in text:  # nearly all texts
        return text
    outside = text.strip()
    pattern = CHAT_MARKS_AND_ENDS if outside.startswith("<s>") or outside.endswith("</s>") else CHAT_MARKS
    after, found = pattern.subn("\n", text)
    return after.strip() if found else text


TEMPLATE_SIGNS = ("{{", "{|", "|}", "}}", "[", "<", "&", "__", "thumb|", "缩略图|", "縮圖|")
# Only innermost ones match, so that nested ones are removed from the inside out. No pattern looks past the start of
# the next match, so that time stays linear.
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
    """The text without remnants of templates, tables, references and tags; the words of a link stay."""
    if not any(sign in text for sign in TEMPLATE_SIGNS):
        return text
    for _ in range(MAX_ROUNDS):
        text, templates = TEMPLATES.subn("", text)
        text, links = LINKS.subn(lambda match: match[1] or match[2] or "", text)
        if not templates + links:
            break
    return html.unescape(STRAY.sub("", text))


LETTER_RUN = re.compile(r"[^\W\d_]+")


def chinese_share(text):
    """Share of Han characters among a text's letters, 0 to 1; 0 where it has no letters."""
    letters = sum(map(len, LETTER_RUN.findall(text)))
    return sum(map(len, HAN_RUN.findall(text))) / letters if letters else 0.0


REDIRECT = re.compile(r"\s*(?:#\s*(?:redirect|重定向)|(?:redirect|重定向)\s*(?:[:：]|\[\[))", re.IGNORECASE)
AMBIGUOUS_TITLE = re.compile(r"[（(](?:消歧义|消歧義|disambiguation)[）)]\s*$")
AMBIGUOUS = re.compile(r"(?:可以|可能|可)(?:是)?[指为為]{1,2}(?:下列|以下|：|:)|消歧[义義]页|消歧[义義]頁")
LIST_TITLE = re.compile(r"列表$|^[^。]{0,20}(?:列表|年表|名单|名單)$")
MIN_LIST_LINES = 5  # of a page that may be a list
LIST_LINE_SHARE = 0.7  # of its lines without a sentence end, from which it is a list
TITLED_LIST_LINE_SHARE = 0.5  # the same where its title says that it is a list


def is_boilerplate(text, title=""):
    """Whether a page, with its line breaks, is a disambiguation page, a redirect or a list of links."""
    body = drop_title(text, title)
    if REDIRECT.match(body) or AMBIGUOUS_TITLE.search(title) or AMBIGUOUS.search(text[:200]):
        return True
    lines = [line for line in body.splitlines() if line.strip()]
    without_end = sum(not SENTENCE_END.search(line) for line in lines)
    least_share = TITLED_LIST_LINE_SHARE if LIST_TITLE.search(title) else LIST_LINE_SHARE
    return len(lines) >= MIN_LIST_LINES and without_end >= len(lines) * least_share


# Steps that change the characters of any text, an article's or a question's: `step(text)`.
CHARACTER_STEPS = {"controls": drop_controls, "widths": normalize_widths, "simplify": simplify}
# Further steps that change an article's text: `step(text, title)`.
ARTICLE_STEPS = {
    "chat_marks": lambda text, title: drop_chat_marks(text),
    "templates": lambda text, title: drop_templates(text),
    "title": drop_title,
    "litter": lambda text, title: drop_litter(text),
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
    """All steps that `settings.clean` names, in the order of `CLEANING`, for articles.

    changed, dropped: Counters of the articles that each step changed or dropped.
    """

    def __init__(self, settings):
        super().__init__(settings.clean)
        self.min_chars, self.min_chinese_share = settings.min_chars, settings.min_chinese_share
        self.article_steps = [(name, ARTICLE_STEPS[name]) for name in self.steps if name in ARTICLE_STEPS]
        self.drops = [name for name in ("boilerplate", "short", "foreign") if name in self.steps]
        self.changed, self.dropped = Counter(), Counter()

    def clean(self, article):
        """(cleaned text, None) of an `Article`, or ("", reason) where a step drops it."""
        text, title = article.text, article.title
        for name, step in self.characters:
            after, title = step(text), step(title)
            if after != text:
                text = after
                self.changed[name] += 1
        # Boilerplate is recognized before the line breaks are removed.
        boilerplate = "boilerplate" in self.drops and is_boilerplate(text, title)
        for name, step in self.article_steps:
            after = step(text, title)
            if after != text:
                text = after
                self.changed[name] += 1
        text = bounded_spaces(text)  # the steps may have joined runs of spaces
        if not text or text.isspace():
            return "", NOTHING_LEFT
        reason = self._drop_reason(text, boilerplate) if self.drops else None
        return ("", reason) if reason else (text, None)

    def _drop_reason(self, text, boilerplate):
        """Why a step drops an article of this cleaned text, or None."""
        reasons = {
            "boilerplate": boilerplate and "boilerplate",
            "short": len(text) < self.min_chars and f"fewer than {self.min_chars} characters",
            "foreign": chinese_share(text) < self.min_chinese_share and f"less than {self.min_chinese_share:g} Chinese",
        }
        for name in self.drops:
            if reasons[name]:
                self.dropped[name] += 1
                return reasons[name]
        return None
