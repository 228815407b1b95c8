"""What a preparation asks before it replaces rows, and says of parts that are too small."""

import json
from pathlib import Path

from minigpt.common.errors import UserError
from minigpt.corpus.row_files import META
from minigpt.metrics import FEWEST_ROWS

MOST_SHARE = 0.5  # of the rows, that a warning advises for a part that is not trained on


def refuse_to_replace(settings, folder_name, name, files):
    """Raise UserError where rows of other sources would be replaced by those of the default, which nobody named.

    folder_name, name: the settings of the rows' folder and of their sources; files: what the sources come to.
    """
    folder = getattr(settings, folder_name)
    try:
        meta = json.loads((Path(folder) / META).read_text(encoding="utf-8"))
        there = list(meta.get("sources") or [])
    except (OSError, ValueError, AttributeError):  # no rows are there, or none that can be read
        return
    ours = {Path(file).resolve() for file in files}
    others = [source for source in there if Path(source).resolve() not in ours]
    if others and name not in settings.given:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise UserError(
            f"{folder} holds rows made of {others[0]}{more}, which would be replaced by the embedded "
            f"{', '.join(getattr(settings, name))}; name what to prepare with --{name}=…, or another folder "
            f"with --{folder_name}=…"
        )


def small_parts(meta, settings):
    """Lines that warn of parts without rows, or with few, each with what mends it."""
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
    told = {part: mending(part, count, sum(rows.values()), settings) for part, count in few.items()}
    return [f"warning: {part} has {few[part] or 'none'} {total}{text}" for part, text in told.items() if text]


def mending(part, count, total, settings):
    """What a part of so few rows means, and what mends it; "" where the settings want none."""
    if part == "train":
        return ", too few to learn more than these: give more"
    untold = f"; figures over fewer than {FEWEST_ROWS} have no interval"
    if part == "test" and settings.heldout:
        return f", those about the subjects of {settings.heldout}{untold}"
    share = getattr(settings, f"{part}_share")
    if not share:
        return ""
    if not count:
        need = "training needs" if part == "val" else "evaluations need"
        return f", and {need} some: give more" + f", or raise --{part}_share (now {share:g})" * (total > 1)
    enough = FEWEST_ROWS / total
    raised = f", or raise --{part}_share (now {share:g}; {enough:.2g} would give about {FEWEST_ROWS})"
    return f"{untold}: give more{raised if share < enough <= MOST_SHARE else ''}"
