"""Figures of a run's losses at its validations, and of what is learned early and late. They are plain arithmetic."""

import unicodedata

import numpy as np

REBOUND_CHECKS = (2, 3, 4)  # the validations, from 1, at which the report saw the loss rise
TARGET_LOSS = 0.5  # nats a token of answers: the steps to it are counted
LEARNED_SHARE = 0.9  # of the fall of a figure, after which it counts as learned
CHARACTER_CLASSES = ("digits", "han", "punctuation", "other")


def curve_figures(curve):
    """Figures of a run's validations [{"step", "train_loss", "val_loss"}, …], in their order.

    rebound: `loss_rebound`; steps_to_loss: `steps_to`; best_val, last_val: the lowest and the last validation loss, and
    best_train, last_train: the training loss there, all in nats a token.
    """
    steps, train, val = (np.array([line[key] for line in curve], float) for key in ("step", "train_loss", "val_loss"))
    best = int(val.argmin())
    return {
        "rebound": loss_rebound(val),
        "steps_to_loss": steps_to(steps, val, TARGET_LOSS),
        "best_val": float(val[best]),
        "best_train": float(train[best]),
        "last_val": float(val[-1]),
        "last_train": float(train[-1]),
    }


def loss_rebound(losses):
    """The largest rise of a loss above its lowest value so far, at the checks REBOUND_CHECKS; negative where it only
    falls. None where there are fewer checks."""
    if len(losses) < max(REBOUND_CHECKS):
        return None
    return float(max(losses[check - 1] - min(losses[: check - 1]) for check in REBOUND_CHECKS))


def steps_to(steps, losses, target):
    """The first of the steps at which the loss is at most `target`; the last step where it never is."""
    reached = np.flatnonzero(np.asarray(losses) <= target)
    return float(steps[reached[0]] if len(reached) else steps[-1])


def learned_at(steps, values, share=LEARNED_SHARE):
    """The step after which a share of a figure's whole fall, from its first to its lowest value, is behind it.

    Between two steps the figure is taken for a straight line. 0.0 where it never falls.
    """
    wanted = values[0] - share * (values[0] - min(values))
    if wanted >= values[0]:
        return 0.0
    after = next(i for i, value in enumerate(values) if value <= wanted)
    part = (values[after - 1] - wanted) / (values[after - 1] - values[after])
    return float(steps[after - 1] + part * (steps[after] - steps[after - 1]))


def character_class(character):
    """One of CHARACTER_CLASSES. Digits are those of any script (Chinese numerals are Han); symbols are punctuation."""
    if character.isdecimal():
        return "digits"
    if "CJK UNIFIED" in unicodedata.name(character, ""):
        return "han"
    return "punctuation" if unicodedata.category(character)[0] in "PS" else "other"


def classes_of_tokens(pieces):
    """[(class, characters)] of the tokens of a text, given by their bytes.

    A token has the class of its first character, or of the character that its bytes are part of. A character counts for
    the token in which it begins. A token without bytes (EOT) is None.
    """
    # A byte that belongs to no character, such as the rest of one that began before the text, becomes a surrogate,
    # which is not counted.
    text = b"".join(pieces).decode("utf-8", errors="surrogateescape")
    starts = np.cumsum([0] + [len(character.encode("utf-8", errors="surrogateescape")) for character in text])
    classes, place = [], 0
    for piece in pieces:
        end = place + len(piece)
        first = int(np.searchsorted(starts, place, side="right")) - 1
        began = text[np.searchsorted(starts, place) : np.searchsorted(starts, end)]
        count = sum(not "\ud800" <= character <= "\udfff" for character in began)
        classes.append((character_class(text[first]), count) if piece else None)
        place = end
    return classes


def bits_by_class(classes, nats):
    """{class: bits a character} of tokens with those losses; without tokens of a class, it is left out.

    classes: [(class, characters) or None] of the tokens; nats: their losses.
    """
    sums = {name: np.zeros(2) for name in CHARACTER_CLASSES}
    for known, loss in zip(classes, nats, strict=True):
        if known:
            sums[known[0]] += (loss / np.log(2), known[1])
    return {name: float(bits / count) for name, (bits, count) in sums.items() if count}
