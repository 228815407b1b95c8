"""Metrics of predicted texts and labels against references, and how certain they are. No model is needed here.

Texts: Rouge-L, exact match, CMRC 2018's F1, number accuracy, repetition; F0.5 of corrections' edits. Labels: accuracy,
macro F1, confusion table, entity F1. Bootstrap intervals and paired comparisons.
"""

import difflib
import functools
import logging
import math
import re
from collections import Counter

import numpy as np
from rapidfuzz.distance import LCSseq, Levenshtein

NUMBER_PATTERN = re.compile(r"[0-9]+(?:\.[0-9]+)?")
THOUSANDS = re.compile(r"(?<![0-9,.])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")
PADDED_DATE_PART = re.compile(r"(?<![0-9.])0(?=[0-9][月日时時点點分秒])")
PLAIN_DIGITS = str.maketrans("０１２３４５６７８９．", "0123456789.")
# As in CMRC 2018's script: the range of Chinese characters, words, and what counts as punctuation.
CMRC_HAN = re.compile(r"[\u4e00-\u9fa5]")
CMRC_WORD = re.compile(r"\w+(?:[.,]\w+)*|[^\w\s]")
CMRC_PUNCTUATION = set("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
MAX_RESAMPLED_NUMBERS = 1 << 22  # drawn at a time, which bounds the memory
INTERVAL_LEVEL = 0.95
# The bootstrap resamples the rows that exist. A few rows do not show how much rows vary, so that intervals over them
# would be too narrow (over a single row, a point). With fewer rows, no interval and no comparison is given.
FEWEST_ROWS = 20
EDIT_BETA = 0.5  # of the edits' F: a wrong edit costs more than one that is missing


def rouge_l(prediction, reference, words=False):
    """(recall, precision, F) of the longest common subsequence, 0 to 1 (Lin 2004).

    Over characters without spaces or, with `words`, over the words that jieba cuts.
    """
    a, b = (cut_words(text) if words else "".join(text.split()) for text in (prediction, reference))
    if not a or not b:
        return 0.0, 0.0, 0.0
    common = LCSseq.similarity(a, b)
    return common / len(b), common / len(a), 2 * common / (len(a) + len(b))


def cut_words(text):
    """The words of a text as jieba cuts them, without spaces."""
    return [word for word in jieba_cutter()(text) if word.strip()]


@functools.cache
def jieba_cutter():
    import jieba

    jieba.setLogLevel(logging.WARNING)
    return jieba.lcut


def exact_match(prediction, reference):
    """Whether both texts are equal, ignoring leading and trailing whitespace."""
    return prediction.strip() == reference.strip()


def cmrc_segments(text):
    """The units of CMRC 2018's F1: Chinese characters, and words of anything else; lower case, no punctuation."""
    segments, rest = [], ""
    for char in text.lower().strip():
        if char in CMRC_PUNCTUATION:
            continue
        if CMRC_HAN.match(char):
            segments += [*CMRC_WORD.findall(rest), char]
            rest = ""
        else:
            rest += char
    return segments + CMRC_WORD.findall(rest)


def char_f1(prediction, reference):
    """F1 of CMRC 2018 (Cui et al. 2019), 0 to 1: of the longest common contiguous run of `cmrc_segments`.

    CMRC's script splits text that is not Chinese by NLTK. Here a run of letters and digits is a word, and any other
    symbol is one.
    """
    a, b = cmrc_segments(prediction), cmrc_segments(reference)
    common = difflib.SequenceMatcher(None, a, b, autojunk=False).find_longest_match().size
    return 2 * common / (len(a) + len(b)) if common else 0.0


def extract_numbers(text):
    """The set of numbers in a text that are written in digits. "1,234" is 1234, "０５月" is 5, but a code 010 is 010.

    Chinese numerals are not included. A full-width comma separates two numbers.
    """
    plain = PADDED_DATE_PART.sub("", text.translate(PLAIN_DIGITS))
    return set(NUMBER_PATTERN.findall(THOUSANDS.sub(lambda match: match[0].replace(",", ""), plain)))


def has_same_numbers(prediction, reference):
    """Whether a text has exactly the numbers of its reference; None if the reference has none."""
    wanted = extract_numbers(reference)
    return extract_numbers(prediction) == wanted if wanted else None


def char_ngrams(text, n):
    """All n-grams of characters of a text, without spaces."""
    text = "".join(text.split())
    return [text[i : i + n] for i in range(len(text) - n + 1)]


def repetition(text, n=4):
    """Share of a text's n-grams of characters that occurred in it before, 0 to 1 (seq-rep-n, Welleck et al. 2020)."""
    grams = char_ngrams(text, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(texts, n):
    """Share of different n-grams among all n-grams of characters of some texts, 0 to 1 (distinct-n, Li et al. 2016)."""
    grams = [gram for text in texts for gram in char_ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def score_pair(prediction, reference, words=False):
    """{score: float}: rouge_l_recall, rouge_l_precision, rouge_l_f, char_f1, exact_match, numbers (number accuracy).

    With `words` also rouge_l_words_recall, …. "numbers" is nan if the reference has no number. All scores are nan for
    a prediction of None.
    """
    names = ["rouge_l_recall", "rouge_l_precision", "rouge_l_f", "char_f1", "exact_match", "numbers"]
    names += ["rouge_l_words_recall", "rouge_l_words_precision", "rouge_l_words_f"] if words else []
    if prediction is None:
        return dict.fromkeys(names, math.nan)
    same_numbers = has_same_numbers(prediction, reference)
    values = [*rouge_l(prediction, reference), char_f1(prediction, reference), exact_match(prediction, reference)]
    values.append(math.nan if same_numbers is None else same_numbers)
    values += rouge_l(prediction, reference, words=True) if words else ()
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def score_each(predictions, references, words=False):
    """{score: (n,) float64} of n pairs, as `score_pair` has them."""
    rows = [score_pair(*pair, words) for pair in zip(predictions, references, strict=True)]
    names = score_pair(None, None, words)
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in names}


def mean_scores(scores):
    """{score: mean} of what `score_each` returns, and the counts "pairs" and "pairs_with_numbers".

    nan is left out; the mean of no value is None.
    """
    counts = {name: int((~np.isnan(values)).sum()) for name, values in scores.items()}
    found = {name: float(np.nanmean(values)) if counts[name] else None for name, values in scores.items()}
    return {**found, "pairs": counts["exact_match"], "pairs_with_numbers": counts["numbers"]}


def score_pairs(predictions, references, words=False):
    """`mean_scores` of `score_each`."""
    return mean_scores(score_each(predictions, references, words))


# Edits of corrections


def text_edits(source, target):
    """{(start, end, text)}: the edits that turn a text into another; `text` replaces source[start:end].

    They are those of a shortest alignment of the characters (Levenshtein). Edits without a character between them are
    one edit.
    """
    edits = []
    for step in Levenshtein.opcodes(source, target):
        if step.tag == "equal":
            continue
        start, text = step.src_start, target[step.dest_start : step.dest_end]
        if edits and edits[-1][1] == start:
            start, _, before = edits.pop()
            text = before + text
        edits.append((start, step.src_end, text))
    return set(edits)


def edit_f(correct, proposed, wanted):
    """F0.5 of counts of edits, 0 to 1; None where no edit is proposed or wanted."""
    weight = EDIT_BETA**2
    return (1 + weight) * correct / (proposed + weight * wanted) if proposed or wanted else None


def count_edits(source, prediction, references):
    """(correct, proposed, wanted) counts of a prediction's edits of a source, as ERRANT has them (Bryant et al. 2017).

    An edit is correct if the reference has the same one. Of several references, the one counts that gives the highest
    F0.5, and of equal ones that with the fewest edits. Unlike ERRANT and ChERRANT (Zhang et al. 2022), edits are not
    split or joined by linguistic rules: see `text_edits`.
    """
    proposed = text_edits(source, prediction)
    counts = []
    for reference in references:
        wanted = text_edits(source, reference)
        counts.append((len(proposed & wanted), len(proposed), len(wanted)))
    # A reference without edits is matched by a prediction without edits.
    return max(counts, key=lambda count: (1.0 if not any(count) else edit_f(*count), -count[2]))


def edit_scores(counts, resamples=1000, seed=0):
    """Scores over sentences from `count_edits` of each: {"precision", "recall", "f0_5", "interval" (of F0.5), and the
    sums "correct", "proposed", "wanted"}. A share of nothing is None.
    """
    correct, proposed, wanted = np.array(counts, dtype=np.int64).reshape(-1, 3).T
    sums = {"correct": int(correct.sum()), "proposed": int(proposed.sum()), "wanted": int(wanted.sum())}
    # F0.5 is a ratio of sums over sentences.
    weight = EDIT_BETA**2
    edges = interval((1 + weight) * correct, proposed + weight * wanted, resamples, seed)
    return {
        "precision": sums["correct"] / sums["proposed"] if sums["proposed"] else None,
        "recall": sums["correct"] / sums["wanted"] if sums["wanted"] else None,
        "f0_5": edit_f(**sums), "interval": edges and list(edges), **sums,
    }  # fmt: skip


# Labels


def label_accuracy(predictions, references):
    """Share of labels that are predicted right, 0 to 1; nan without labels."""
    pairs = list(zip(predictions, references, strict=True))
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else math.nan


def confusion_table(predictions, references, labels):
    """int64 (n, n) counts for n labels: row i, column j holds how often labels[i] was predicted as labels[j]."""
    places = {label: i for i, label in enumerate(labels)}
    table = np.zeros((len(labels), len(labels)), dtype=np.int64)
    for predicted, actual in zip(predictions, references, strict=True):
        table[places[actual], places[predicted]] += 1
    return table


def count_scores(correct, predicted, actual):
    """{"precision", "recall", "f1", "count" (of the references)} from counts; a share of nothing is 0."""
    return {
        "precision": correct / predicted if predicted else 0.0,
        "recall": correct / actual if actual else 0.0,
        "f1": 2 * correct / (predicted + actual) if predicted + actual else 0.0,
        "count": actual,
    }


def label_scores(predictions, references):
    """{label: scores as `count_scores` gives them} of the labels that are predicted or occur, sorted."""
    correct = Counter(a for a, b in zip(predictions, references, strict=True) if a == b)
    predicted, actual = Counter(predictions), Counter(references)
    return {
        label: count_scores(correct[label], predicted[label], actual[label]) for label in sorted(predicted | actual)
    }


def macro_f1(predictions, references):
    """Mean of the labels' F1, 0 to 1; nan without labels. Labels that neither occur nor are predicted do not count."""
    scores = label_scores(predictions, references)
    return sum(score["f1"] for score in scores.values()) / len(scores) if scores else math.nan


def find_entities(tags):
    """[(type, start, end)] of the entities in a sequence of BIO tags; `end` is the place behind the last tag.

    An entity begins at B-type, and also at I-type where no entity of that type goes on, as in conlleval and by default
    in seqeval. The type of a plain B or I is "".
    """
    entities, start, kind = [], None, None
    for place, tag in enumerate([*tags, "O"]):
        goes_on = tag[0] == "I" and start is not None and tag[2:] == kind
        if start is not None and not goes_on:
            entities.append((kind, start, place))
            start = None
        if tag[0] != "O" and not goes_on:
            start, kind = place, tag[2:]
    return entities


def entity_scores(predictions, references):
    """Scores of tagged texts, as `count_scores` gives them, over all entities (micro), and "by_type": {type: scores}.

    predictions, references: lists of sequences of BIO tags, one per text. An entity is right if its type, start and
    end are.
    """
    correct, predicted, actual = Counter(), Counter(), Counter()
    for found, wanted in zip(predictions, references, strict=True):
        if len(found) != len(wanted):
            raise ValueError(f"{len(found)} tags are predicted for {len(wanted)} characters")
        found, wanted = set(find_entities(found)), set(find_entities(wanted))
        for counter, entities in ((correct, found & wanted), (predicted, found), (actual, wanted)):
            counter.update(kind for kind, _, _ in entities)
    by_type = {kind: count_scores(correct[kind], predicted[kind], actual[kind]) for kind in sorted(predicted | actual)}
    return {**count_scores(correct.total(), predicted.total(), actual.total()), "by_type": by_type}


# Bootstrap


def too_few(rows):
    """Why so many rows get no interval, as text; "" if they are enough."""
    return "" if rows >= FEWEST_ROWS else f"too few rows ({rows:,}) for an interval; give at least {FEWEST_ROWS}"


def too_few_notes(counts):
    """Lines to print, from {what: rows}, about intervals that are not given. Equal counts share a line."""
    whats = {}
    for what, rows in counts.items():
        if rows and too_few(rows):  # over no rows there is no figure either
            whats.setdefault(too_few(rows), []).append(what)
    return [f"note: {', '.join(named)}: {text}" for text, named in whats.items()]


def resample_ratios(numerators, denominators, resamples, seed):
    """(resamples,) values of sum(numerators) / sum(denominators) over rows drawn with replacement."""
    rng, n = np.random.default_rng(seed), len(numerators)
    at_once = max(1, MAX_RESAMPLED_NUMBERS // n)
    values = []
    for start in range(0, resamples, at_once):
        drawn = rng.integers(n, size=(min(at_once, resamples - start), n))
        below = denominators[drawn].sum(axis=1)
        values.append(numerators[drawn].sum(axis=1) / np.where(below, below, np.nan))
    return np.concatenate(values)


def interval(numerators, denominators=None, resamples=1000, seed=0):
    """(low, high): the 95% bootstrap interval (Efron 1979) of a mean over rows, or of a ratio of sums over rows.

    numerators: (n,), rows with nan are left out. denominators: (n,), None for ones. Returns None for fewer than
    FEWEST_ROWS rows or resamples=0.
    """
    numerators = np.asarray(numerators, dtype=np.float64)
    denominators = np.ones(len(numerators)) if denominators is None else np.asarray(denominators, dtype=np.float64)
    known = ~np.isnan(numerators)
    if too_few(known.sum()) or not resamples:
        return None
    values = resample_ratios(numerators[known], denominators[known], resamples, seed)
    tail = (1 - INTERVAL_LEVEL) / 2
    return tuple(float(v) for v in np.nanquantile(values, [tail, 1 - tail]))


def macro_f1_interval(predictions, references, labels, resamples=1000, seed=0):
    """(low, high): the 95% bootstrap interval of `macro_f1` over rows, of which each has one label.

    labels: those that occur, over which F1 is averaged; other predictions count as misses only. Returns None for fewer
    than FEWEST_ROWS rows or resamples=0.
    """
    if too_few(len(references)) or not resamples:
        return None
    places, n = {label: i for i, label in enumerate(labels)}, len(labels) + 1  # the last place: other predictions
    pairs = zip(predictions, references, strict=True)
    cells = np.array([places[actual] * n + places.get(found, n - 1) for found, actual in pairs])
    rng, values = np.random.default_rng(seed), []
    for _ in range(resamples):
        drawn = cells[rng.integers(len(cells), size=len(cells))]
        table = np.bincount(drawn, minlength=n * n).reshape(n, n)
        counts = (table.sum(axis=0) + table.sum(axis=1))[:-1]
        values.append((2 * table.diagonal()[:-1][counts > 0] / counts[counts > 0]).mean())
    tail = (1 - INTERVAL_LEVEL) / 2
    return tuple(float(v) for v in np.quantile(values, [tail, 1 - tail]))


def compare(a, b, resamples=1000, seed=0, denominators=None):
    """Paired bootstrap (Koehn 2004): is model A better than model B on the same rows?

    a, b: (n,) scores of the rows, higher is better; rows with nan in either are left out. denominators: (n,), if the
    figures are ratios of sums over rows and a, b are their numerators.

    Returns {"difference": mean (or ratio of sums) of a - b, "low", "high": its 95% interval, "a_better": share of
    resamples with A above B (a tie counts half), "rows"}. "low", "high" and "a_better" are None for fewer than
    FEWEST_ROWS rows. Returns None without rows or for resamples=0.
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    below = np.ones(len(difference)) if denominators is None else np.asarray(denominators, dtype=np.float64)
    known = ~np.isnan(difference)
    difference, below = difference[known], below[known]
    if not len(difference) or not resamples:
        return None
    result = {"difference": float(difference.sum() / below.sum()), "low": None, "high": None, "a_better": None}
    result["rows"] = len(difference)
    if too_few(len(difference)):
        return result
    values = resample_ratios(difference, below, resamples, seed)
    tail = (1 - INTERVAL_LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    a_better = (values > 0).mean() + (values == 0).mean() / 2
    return {**result, "low": float(low), "high": float(high), "a_better": float(a_better)}
