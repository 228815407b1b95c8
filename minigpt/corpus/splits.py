"""Which part a subject belongs to: train, val or test, decided by hashes; and the subjects of questions."""

import hashlib
from pathlib import Path

from minigpt.common.errors import UserError
from minigpt.corpus.readers.files import find_files
from minigpt.corpus.records import Problems, read_articles
from minigpt.metrics import FEWEST_ROWS

MAX_ADVISED_SHARE = 0.5  # largest share of the rows that a warning advises for val or test


def hash_share(text):
    """A number in [0, 1) that depends on the text alone, so that adding files moves no subject to another part."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", errors="replace")).digest()[:8], "big") / 2**64


def pretrain_part(subject, val_share, heldout=()):
    """ "train" or "val" of an article, by its subject; held-out subjects are always pretrained on."""
    return "val" if subject not in heldout and hash_share(subject) < val_share else "train"


def sft_part(subject, val_share, test_share, heldout=()):
    """ "train", "val" or "test" of a question, by its article's subject.

    With held-out subjects they, and they alone, are the test part. The hash is not that of `pretrain_part`: questions
    of the validation part are about subjects that were pretrained on.
    """
    if heldout:
        test_share = 0.0
        if subject in heldout:
            return "test"
    share = hash_share("sft:" + subject)
    return "test" if share < test_share else "val" if share < test_share + val_share else "train"


def read_heldout(path):
    """The set of subjects in a file, one per line; empty for "". Raises UserError when the file cannot be read."""
    if not path:
        return frozenset()
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"heldout file {path} is not there, or not UTF-8 text; it has one subject per line") from None
    return frozenset(line.strip() for line in lines if line.strip())


def subjects_by_id(folders):
    """{id: subject} of the articles in `folders`. Raises UserError where one id names two subjects."""
    subjects, sources = {}, {}
    for _, article in read_articles(find_files(folders, "articles"), Problems()):
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


def small_part_warnings(meta, settings):
    """Lines that warn of parts with no or few rows, each with the setting to change. meta: of a data folder."""
    rows = {part: counts["rows"] for part, counts in meta["parts"].items()}
    total = f"of the {sum(rows.values()):,} rows"
    if not rows["train"]:
        others = " and ".join(part for part in rows if rows[part])
        shares = (f"{part}_share" for part in rows if part != "train")
        now = " and ".join(f"--{share} (now {getattr(settings, share):g})" for share in shares)
        return [
            f"warning: train has none {total}: a subject goes into one part whole, and every subject went to {others}; "
            f"give more, or lower {now}"
        ]
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
        return ""
    if not count:
        need = "training needs" if part == "val" else "evaluations need"
        return f", and {need} some: give more" + f", or raise --{part}_share (now {share:g})" * (total > 1)
    enough = FEWEST_ROWS / total
    raised = f", or raise --{part}_share (now {share:g}; {enough:.2g} would give about {FEWEST_ROWS})"
    return f"{consequence}: give more{raised if share < enough <= MAX_ADVISED_SHARE else ''}"
