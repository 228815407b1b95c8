"""What a script dropped of its rows and characters: a warning from a tenth on, an error where it is nearly all."""

import re
from dataclasses import dataclass

from minigpt.common.errors import UserError

LARGE_SHARE = 0.1  # of rows or characters lost, from which on a warning is given
NEARLY_ALL_SHARE = 0.95  # beyond which the work ends with an error
SHOWN_PLACES = 3  # in an error
LARGE_REQUESTED_SHARE = 0.9  # of articles that the cleaning steps of the user's choice drop

NO_LOSS = re.compile("empty line")
DUPLICATED = re.compile("exact duplicate")
REQUESTED = re.compile(r"boilerplate|fewer than \d+ characters|less than .* Chinese|near duplicate")
# Each of these may be a large part of a file, though it is counted as one row.
UNMEASURED = re.compile(r"the file is|longer than \d+ MiB")
# What to do about a reason: the first pattern that matches it.
REMEDIES = [
    (r'no "(question|answer)"', "name the fields with --question_field=… and --answer_field=…"),
    (r"two sentences", "give rows of a question and an answer"),
    (r'"[^"]*"(: | has | is no list)|"(question|answer|output|input)" is', "look at the places that are shown"),
    (r'"[^"]*" is nested', "make one text of it, or name another field with --text_field=…"),
    (r'no "|"[^"]*" (is|cannot)', "name the field of the text with --text_field=…"),
    (r"bad UTF-8", "name the encoding of the files with --encoding=…, such as --encoding=gb18030"),
    (r"no sentence end", "keep such texts whole with --overflow=split"),
    (r"first sentence longer", "keep them with --overflow=split, or a larger --block_size"),
    (r"longer than the block", "raise --block_size, or train a tokenizer of your own, which takes fewer tokens"),
    (r"longer than \d+ MiB", "cut these records into shorter ones"),
    (r"the file is damaged", "download or copy the file again"),
    (r"nothing left after cleaning", "name fewer steps with --clean=…"),
    (r"boilerplate|Chinese|near duplicate", "name fewer steps with --clean=…"),
    (r"fewer than \d+ characters", "lower --min_chars, or leave out the step short of --clean"),
    (r"same id", "give each row of a file an id of its own, or leave the field id out"),
    (r"bad JSON|not a |duplicate key|NUL", "the files are cut or of another format; look at the places that are shown"),
]  # fmt: skip


@dataclass
class Losses:
    """What was used and what was lost.

    problems: the `Problems` of the rows that were dropped; used: the other rows. Of articles: characters of all that
    cleaning has not dropped, those of them that are in no row, and whether the user asked for truncating.
    """

    problems: object
    used: int
    characters: int = 0
    characters_lost: int = 0
    is_truncated: bool = False

    @property
    def dropped(self):
        """{reason: rows}"""
        return self.problems.counts

    def count(self, pattern):
        """Rows that were dropped for a reason that a pattern matches."""
        return sum(count for reason, count in self.dropped.items() if pattern.match(reason))

    def shown_places(self):
        """The first places, for an error's text."""
        places = self.problems.places[:SHOWN_PLACES]
        return f" ({'; '.join(places)})" if places else ""


def remedy_for(reason):
    """What the user can do about rows that are dropped for a reason."""
    return next((text for pattern, text in REMEDIES if re.match(pattern, reason)), "look at the places that are shown")


def describe_reason(dropped):
    """The most common of the reasons {reason: count}, and its remedy, unless the reason names a setting itself."""
    reason = max(dropped, key=dropped.get)
    remedy = "" if "--" in reason else f"; {remedy_for(reason)}"
    return f"{'' if len(dropped) == 1 else 'most '}for the reason: {reason}{remedy}"


def check_losses(losses):
    """Lines that warn of what was lost, each with the likely cause and the setting that mends it.

    Rows that were dropped by cleaning steps that drop articles are warned of only where they are nearly all; those
    that repeat others, and empty lines, are no loss. Raises UserError where all, or nearly all, rows or characters were
    lost.
    """
    total = losses.used + sum(losses.dropped.values()) - losses.count(NO_LOSS)
    faults = {
        reason: count
        for reason, count in losses.dropped.items()
        if not any(pattern.match(reason) for pattern in (NO_LOSS, DUPLICATED, REQUESTED))
    }
    if not losses.used:
        reason = f", {describe_reason(losses.dropped)}" if losses.dropped else ""
        raise UserError(f"none of {total:,} rows could be used{reason}{losses.shown_places()}")
    requested = {reason: count for reason, count in losses.dropped.items() if REQUESTED.match(reason)}
    lines = [
        f"warning: {count:,} times {reason}, which may be much of the text; {remedy_for(reason)}"
        for reason, count in faults.items()
        if UNMEASURED.match(reason)
    ]
    for some, large in ((faults, LARGE_SHARE), (requested, LARGE_REQUESTED_SHARE)):
        count = sum(some.values())
        if count > large * total:
            text = f"{count:,} of {total:,} rows ({count / total:.1%}) were dropped, {describe_reason(some)}"
            if some is faults and count > NEARLY_ALL_SHARE * total:
                raise UserError(text + losses.shown_places())
            lines.append(f"warning: {text}")
    if (count := losses.count(DUPLICATED)) > LARGE_SHARE * total:
        lines.append(f"note: {count:,} of {total:,} rows ({count / total:.1%}) repeat earlier ones and were left out")
    if losses.characters_lost > LARGE_SHARE * losses.characters:
        share = losses.characters_lost / losses.characters
        text = (
            f"{share:.1%} of the characters are in no row: what is longer than a row was cut off; keep it with "
            "--overflow=split, or raise --block_size"
        )
        if share > NEARLY_ALL_SHARE and not losses.is_truncated:
            raise UserError(text)
        lines.append(f"warning: {text}")
    return lines
