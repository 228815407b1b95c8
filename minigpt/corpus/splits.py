"""Which part a subject belongs to: train, val or test, decided by hashes; and the subjects of questions."""

import hashlib
import math
from pathlib import Path

from minigpt.common.errors import UserError
from minigpt.corpus.records import Problems
from minigpt.corpus.sources import articles_of, find_articles
from minigpt.metrics import FEWEST_ROWS
from minigpt.settings.stages import ArticleFiles

MAX_ADVISED_SHARE = 0.5  # largest share of the rows that a warning advises for val or test


def hash_share(text):
    """A number in [0, 1) that depends on the text alone, so that adding files moves no subject to another part."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", errors="replace")).digest()[:8], "big") / 2**64


def pretrain_part(subject, val_share, heldout=()):
    """ "train" or "val" of an article, by its subject; held-out subjects are always pretrained on."""
    return "val" if subject not in heldout and hash_share(subject) < val_share else "train"


def sft_part(subject, val_share, test_share, heldout=()):
    """ "train", "val" or "test" of a question, by its article's subject.

    With held-out subjects they, and they alone, are the test part.
    """
    if heldout:
        test_share = 0.0
        if subject in heldout:
            return "test"
    share = sft_share(subject)
    return "test" if share < test_share else "val" if share < test_share + val_share else "train"


def sft_share(subject):
    """A subject's share for `sft_part`. It is not that of `pretrain_part`: questions of the validation part are about
    subjects that were pretrained on."""
    return hash_share("sft:" + subject)


def read_heldout(path):
    """The set of subjects in a file, one per line; empty for "". Raises UserError when the file cannot be read."""
    if not path:
        return frozenset()
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"heldout file {path} is not there, or not UTF-8 text; it has one subject per line") from None
    return frozenset(line.strip() for line in lines if line.strip())


def subjects_by_id(folders, settings=None):
    """{id: subject} of the articles in `folders`. Raises UserError where one id names two subjects.

    settings: how the files are read (see sources.py), by default as `ArticleFiles` has it.
    """
    settings, subjects, sources = settings or ArticleFiles(), {}, {}
    for _, article in articles_of(settings, find_articles(settings, folders, "articles"), Problems()):
        if article.id is None:
            continue  # no question can name it
        key = str(article.id)
        if subjects.setdefault(key, article.subject) != article.subject:
            raise UserError(
                f"id {key} is {subjects[key]!r} in {sources[key]} and {article.subject!r} in {article.source}: ids "
                "start anew in each file, so name one file of articles for each file of questions: "
                "--articles=a.jsonl,b.jsonl"
            )
        sources.setdefault(key, article.source)
    return subjects


# Parts that are too small


class EmptyPart(UserError):
    """A part that training needs has no rows. advised: {setting: value} that gives it some."""

    def __init__(self, message, advised):
        super().__init__(message)
        self.advised = advised


def check_parts(rows, settings, shares, hint=""):
    """Raises UserError where train or val, which training needs, has no rows: `EmptyPart` where other shares help.

    rows: {part: rows}; shares: the hash shares (`hash_share`, `sft_share`) of all subjects that may be in either part;
    hint: what else helps where there is one subject only.
    """
    empty = next((part for part in ("train", "val") if not rows[part]), None)
    if not empty or (empty == "val" and not settings.val_share):  # the user wants no validation
        return
    total = f"{empty} has none of the {sum(rows.values()):,} rows, and training needs some"
    shares = sorted(set(shares))
    if not shares and settings.heldout:
        raise UserError(f"{total}: all are about the subjects of {settings.heldout}; give more, or name fewer there")
    if len(shares) < 2:
        raise UserError(
            f"{total}: a subject goes into one part, and all rows are of one subject (field subject, title or id): "
            f"give more{hint}"
        )
    # The boundary between val and train must lie between two subjects.
    test_share = 0.0 if settings.heldout or "test" not in rows else settings.test_share
    free, advice = [share - test_share for share in shares if share >= test_share], ""
    if len(free) < 2:
        free, advice = shares, "--test_share=0 and "
    low, high = free[:2] if empty == "val" or advice else free[-2:]
    val_share = between(low, high)
    raise EmptyPart(
        f"{total}: the rows of a subject go into one part, by its hash; give more, or {advice}"
        f"--val_share={val_share} (now {settings.val_share:g})",
        {"val_share": float(val_share), **({"test_share": 0.0} if advice else {})},
    )


def between(low, high):
    """The shortest decimal number that is above `low` and at most `high`, as text."""
    for digits in range(1, 18):
        share = math.floor(high * 10**digits) / 10**digits
        if share > low:
            return f"{share:.{digits}f}"
    return repr(high)


def small_part_warnings(meta, settings):
    """Lines that warn of parts with no or few rows, each with the setting to change. meta: of a data folder."""
    rows = {part: counts["rows"] for part, counts in meta["parts"].items()}
    total = f"of the {sum(rows.values()):,} rows"
    few = {part: count for part, count in rows.items() if count < FEWEST_ROWS}
    advice = {part: advise_on_part(part, count, sum(rows.values()), settings) for part, count in few.items()}
    return [f"warning: {part} has {few[part] or 'none'} {total}{text}" for part, text in advice.items() if text]


def advise_on_part(part, count, total, settings):
    """What follows from a part of `count` rows, and what to change; "" where the settings ask for no such part."""
    if part == "train":
        return ", too few to learn more than these: give more"
    consequence = f"; figures over fewer than {FEWEST_ROWS} have no interval"
    if part == "test" and settings.heldout:
        return f", those about the subjects of {settings.heldout}{consequence}"
    share = getattr(settings, f"{part}_share")
    if not share:
        return ", as --val_share=0 asks; train.py needs some" if part == "val" else ""
    if not count:
        return f", and evaluations need some: give more, or raise --{part}_share (now {share:g})"
    enough = FEWEST_ROWS / total
    raised = f", or raise --{part}_share (now {share:g}; {enough:.2g} would give about {FEWEST_ROWS})"
    return f"{consequence}: give more{raised if share < enough <= MAX_ADVISED_SHARE else ''}"
