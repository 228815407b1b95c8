"""Whether a question can be understood alone: it names something of its article, and its pronouns have a referent."""

import re
import unicodedata
from pathlib import Path

from minigpt.common.text import HAN_RUN

# Question words, and words so general that a question with no other word of its article does not name a subject.
GENERAL_WORDS = Path(__file__).with_name("general_words.txt").read_text(encoding="utf-8").split()
GENERAL_WORD = re.compile("|".join(sorted(GENERAL_WORDS, key=len, reverse=True)))
NAME_LIKE = re.compile(r"[A-Za-zÀ-ɏͰ-ϿЀ-ӿぁ-ヿ가-힣]{2,}|[A-Za-z]+\d+|\d{2,}")
QUOTED = re.compile(r"《[^《》]+》|“[^“”]+”|「[^「」]+」|『[^『』]+』|\"[^\"]+\"|〈[^〈〉]+〉")
TITLE_NOTE = re.compile(r"\s*[（(][^（）()]*[）)]$")  # as in 水星 (行星)
MIN_NAME_CHARS = 3  # consecutive characters of the article that count as a name
MIN_SHARED_BIGRAMS = 3  # bigrams of the article that together count as a name
PRONOUNS_IN_NAMES = "他她它其"  # pronouns that also occur inside names
NAME_PLACEHOLDER = "〇"  # replaces a title or a quoted name

# Pronouns, unless the characters before or after them form another word with them.
PRONOUNS = re.compile(
    r"(?<![其吉维利排耳尼斯无])他(?![汀信国乡杀律克命拉卡林加])|她|牠|祂|(?<!其)它"
    r"|(?<![耳尤极与何名如突米索阿巴])其(?![他它中实余次顿])"
    r"|(?<![应活理本不只合早])该(?![隐亚如怎去当有是由不吃用拉])"
    r"|(?<![因如从彼由至就为对据在])此(?![外刻起])|(?<=[对在由为])此(?=[人书片剧文物地事部种次])"
    r"|这(?=[部位个种些座条本首篇款支场次名家类片届里是时样项处段张件只套架台辆对组批间幅枚颗群国])"
    r"|(?<!刹)那(?=[部位个种些座条本首篇款支场里是时样项段张件])"
    r"|(?:^|(?<=[，。、：根据在从按照于对由]))(?:本(?=[文书片剧作篇曲校市县站段])|文中|(?:文章|短文|材料|段落)(?=[中里内说提讲，,])|原文|上文|下文|上述|前述)"
    r"|^(?:我们|你们|咱们|我(?!国)|你|您|作者|笔者|主角|主人公|男主角|女主角)"
)


def letters_and_digits(text):
    """The letters and digits of a text, in NFKC and lower case."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


def bigrams(text):
    """Set of the character bigrams of a text; for a single character, the character itself."""
    return {text[i : i + 2] for i in range(max(1, len(text) - 1))} if text else set()


def mask_names(question, title):
    """The question with each quoted name and each occurrence of the article's title as a NAME_PLACEHOLDER."""
    question = QUOTED.sub(NAME_PLACEHOLDER, question)
    for name in {title, TITLE_NOTE.sub("", title)}:
        if name:
            question = question.replace(name, NAME_PLACEHOLDER)
    return question


def general_word_mask(text):
    """A bool for each character of a text: whether it belongs to a word of GENERAL_WORDS."""
    marks = [False] * len(text)
    for match in GENERAL_WORD.finditer(text):
        marks[match.start() : match.end()] = [True] * len(match[0])
    return marks


def title_bigrams(title):
    """Bigrams by which short forms of a title are recognized: its own, and its first and last character (中国 of
    中华人民共和国). Bigrams that are a general word are left out."""
    found = set()
    for part in HAN_RUN.findall(title):
        found |= bigrams(part) | ({part[0] + part[-1]} if len(part) > 2 else set())
    return {bigram for bigram in found if GENERAL_WORD.sub("", bigram)}


def shares_name(text, title, body):
    """Whether a text names something of its article.

    Enough is a bigram of the title, MIN_NAME_CHARS consecutive characters of the body, a Latin name or number of it,
    or MIN_SHARED_BIGRAMS bigrams of the body. A single bigram of the body is not: 母亲 occurs in many articles.
    """
    if NAME_PLACEHOLDER in text or any(bigram in text for bigram in title_bigrams(title)):
        return True
    is_general, own_bigrams = general_word_mask(text), set()
    for part in HAN_RUN.finditer(text):
        places = [i for i in range(part.start(), part.end()) if not is_general[i]]
        if any(j - i >= MIN_NAME_CHARS - 1 and text[i : j + 1] in body for i in places for j in places):
            return True
        own_bigrams |= {text[i : i + 2] for i in places if i + 1 in places}
    known = f"{title}\n{body}".casefold()
    has_name = any(name.casefold() in known for name in NAME_LIKE.findall(GENERAL_WORD.sub(" ", text)))
    return has_name or sum(bigram in body for bigram in own_bigrams) >= MIN_SHARED_BIGRAMS


def is_inside_name(text, at, body):
    """Whether the pronoun at an index is the middle of a name of three characters of the body: 陈其美, 犹他州."""
    name = text[at - 1 : at + 2] if at else ""
    if len(name) < 3 or not HAN_RUN.fullmatch(name) or name not in body:
        return False
    is_general = general_word_mask(text)
    starts_word = at < 2 or is_general[at - 2] or not HAN_RUN.match(text[at - 2])
    return starts_word and not is_general[at - 1]


def unexplained_pronoun(question, title, body):
    """The first pronoun of a question that refers to something outside it, or "". A name before it is its referent."""
    text = mask_names(question, title)
    for match in PRONOUNS.finditer(text):
        is_name = match[0] in PRONOUNS_IN_NAMES and is_inside_name(text, match.start(), body)
        if not is_name and not shares_name(text[: match.start()], title, body):
            return text[match.start() : match.end() + 1]
    return ""


def names_subject(question, title, body):
    """Whether a question names its subject in words of its article."""
    return shares_name(mask_names(question, title), title, body)
