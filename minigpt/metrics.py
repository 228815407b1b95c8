"""How near a text comes to its reference, and how sure such figures are. No model is needed here.

Rouge-L, exact match, CMRC 2018's F1, the numbers told, repetition; bootstrap intervals and comparisons of two models.
"""

import functools
import logging
import math
import re

import numpy as np
from rapidfuzz.distance import LCSseq

NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
THOUSANDS = re.compile(r"(?<![0-9,.])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")
PADDED = re.compile(r"(?<![0-9.])0(?=[0-9][月日时時点點分秒])")  # of a date or a time
PLAIN_DIGITS = str.maketrans("０１２３４５６７８９．", "0123456789.")
HAN = re.compile(r"[\u4e00-\u9fa5]")  # the range that CMRC 2018's script has
WORD = re.compile(r"\w+(?:[.,]\w+)*|[^\w\s]")
# What CMRC 2018's script takes for punctuation.
PUNCTUATION = set("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
RESAMPLES_AT_ONCE = 1 << 22  # numbers drawn together, so that many rows take no more memory
LEVEL = 0.95
# Rows from which an interval or a comparison is given. The bootstrap draws again from the rows that there are: of a few
# it knows too little of how rows differ, and its intervals are too narrow (of one row, no wider than a point).
FEWEST_ROWS = 20


def rouge_l(prediction, reference, words=False):
    """(recall, precision, F) of the longest common subsequence, 0 to 1: Lin 2004.

    Of characters, spaces left out, or, with `words`, of the words that jieba cuts.
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
    """Whether both are the same text but for space around them."""
    return prediction.strip() == reference.strip()


def segments(text):
    """What CMRC 2018's F1 counts: each Han character, and each word of anything else; no punctuation, no case."""
    found, rest = [], ""
    for char in text.lower().strip():
        if char in PUNCTUATION:
            continue
        if HAN.match(char):
            found += [*WORD.findall(rest), char]
            rest = ""
        else:
            rest += char
    return found + WORD.findall(rest)


def longest_run(a, b):
    """Length of the longest stretch that stands in both lists."""
    codes = {}  # as strings, in which Python looks for another quickly
    a, b = sorted(("".join(chr(codes.setdefault(x, len(codes))) for x in items) for items in (a, b)), key=len)
    longest = 0
    for start in range(len(a)):
        while start + longest < len(a) and a[start : start + longest + 1] in b:
            longest += 1
    return longest


def char_f1(prediction, reference):
    """F1 of CMRC 2018 (Cui et al. 2019): of the longest common stretch of `segments`, 0 to 1.

    Its script cuts what is not Chinese by NLTK; here a run of letters and digits is a word, and any other sign one.
    """
    a, b = segments(prediction), segments(reference)
    common = longest_run(a, b) if a and b else 0
    return 2 * common / (len(a) + len(b)) if common else 0.0


def numbers(text):
    """The set of numbers in a text as digits write them: "1,234" is 1234, "０５月" is 5, but a code 010 is not 10.

    Chinese numerals are not counted, and a full-width comma parts two numbers.
    """
    plain = PADDED.sub("", text.translate(PLAIN_DIGITS))
    return set(NUMBER.findall(THOUSANDS.sub(lambda found: found[0].replace(",", ""), plain)))


def numbers_right(prediction, reference):
    """Whether a text has its reference's numbers and no others; None where the reference has none."""
    wanted = numbers(reference)
    return numbers(prediction) == wanted if wanted else None


def ngrams(text, n):
    return [text[i : i + n] for i in range(len(text) - n + 1)]


def repetition(text, n=4):
    """Share of a text's n-grams of characters that stood in it before, 0 to 1 (seq-rep-n, Welleck et al. 2020)."""
    found = ngrams("".join(text.split()), n)
    return 1 - len(set(found)) / len(found) if found else 0.0


def distinct(texts, n):
    """Share of unlike ones among all n-grams of characters of some texts, 0 to 1 (distinct-n, Li et al. 2016)."""
    found, count = set(), 0
    for text in texts:
        grams = ngrams("".join(text.split()), n)
        found.update(grams)
        count += len(grams)
    return len(found) / count if count else 0.0


def score_pair(prediction, reference, words=False):
    """{name: float} of a pair: rouge_l_recall, rouge_l_precision, rouge_l_f, char_f1, exact_match, numbers (nan where
    the reference has no number), and, with `words`, rouge_l_words_recall, …. All are nan for a prediction None."""
    names = ["rouge_l_recall", "rouge_l_precision", "rouge_l_f", "char_f1", "exact_match", "numbers"]
    names += ["rouge_l_words_recall", "rouge_l_words_precision", "rouge_l_words_f"] if words else []
    if prediction is None:
        return dict.fromkeys(names, math.nan)
    right = numbers_right(prediction, reference)
    values = [*rouge_l(prediction, reference), char_f1(prediction, reference), exact_match(prediction, reference)]
    values += [math.nan if right is None else right, *(rouge_l(prediction, reference, words=True) if words else ())]
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def score_each(predictions, references, words=False):
    """{name: (n,) float64} of n pairs, as `score_pair` has them."""
    rows = [score_pair(*pair, words) for pair in zip(predictions, references, strict=True)]
    names = score_pair(None, None, words)
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in names}


def means(scores):
    """{name: mean} of what `score_each` gives, and "pairs" (that were answered) and "pairs_with_numbers" among them;
    None where there is nothing to take the mean of."""
    counts = {name: int((~np.isnan(values)).sum()) for name, values in scores.items()}
    found = {name: float(np.nanmean(values)) if counts[name] else None for name, values in scores.items()}
    return {**found, "pairs": counts["exact_match"], "pairs_with_numbers": counts["numbers"]}


def score_pairs(predictions, references, words=False):
    """`means` of `score_each`."""
    return means(score_each(predictions, references, words))


# How sure a figure is


def too_few(rows):
    """Why so many rows have no interval, as text; "" where they are enough."""
    return "" if rows >= FEWEST_ROWS else f"too few rows ({rows:,}) for an interval; give at least {FEWEST_ROWS}"


def too_few_notes(counts):
    """Lines to print of {what: rows} instead of the intervals that are not given; what is alike stands in one line."""
    whats = {}
    for what, rows in counts.items():
        if rows and too_few(rows):  # of none there is no figure either
            whats.setdefault(too_few(rows), []).append(what)
    return [f"note: {', '.join(named)}: {text}" for text, named in whats.items()]


def resampled(numerators, denominators, resamples, seed):
    """(resamples,) values of sum(numerators) / sum(denominators) over rows drawn with replacement."""
    rng, n = np.random.default_rng(seed), len(numerators)
    at_once = max(1, RESAMPLES_AT_ONCE // n)
    values = []
    for start in range(0, resamples, at_once):
        drawn = rng.integers(n, size=(min(at_once, resamples - start), n))
        below = denominators[drawn].sum(axis=1)
        values.append(numerators[drawn].sum(axis=1) / np.where(below, below, np.nan))
    return np.concatenate(values)


def interval(numerators, denominators=None, resamples=1000, seed=0):
    """(low, high): the 95% bootstrap interval of a mean over rows (Efron 1979), or of a ratio of sums over rows.

    numerators, denominators: (n,); denominators None: ones. nan among the numerators: the row is left out. None where
    fewer than FEWEST_ROWS are left, or nothing is to be resampled.
    """
    numerators = np.asarray(numerators, dtype=np.float64)
    denominators = np.ones(len(numerators)) if denominators is None else np.asarray(denominators, dtype=np.float64)
    kept = ~np.isnan(numerators)
    if too_few(kept.sum()) or not resamples:
        return None
    values = resampled(numerators[kept], denominators[kept], resamples, seed)
    edges = (1 - LEVEL) / 2
    return tuple(float(v) for v in np.nanquantile(values, [edges, 1 - edges]))


def compare(a, b, resamples=1000, seed=0, denominators=None):
    """Whether model A is better than B on the same rows, by the paired bootstrap (Koehn 2004).

    a, b: (n,) figures of each row, higher is better; rows with nan in either are left out. Of ratios of sums over rows
    they are the numerators, and `denominators` (n,) the same for both. Returns {"difference": mean (or ratio) of
    a - b, "low", "high": its 95% interval, "a_better": share of resamples in which A is above B (a tie is half),
    "rows"}, the middle three None where there are fewer than FEWEST_ROWS; or None without rows, or where nothing is to
    be resampled.
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    below = np.ones(len(difference)) if denominators is None else np.asarray(denominators, dtype=np.float64)
    kept = ~np.isnan(difference)
    difference, below = difference[kept], below[kept]
    if not len(difference) or not resamples:
        return None
    found = {"difference": float(difference.sum() / below.sum()), "low": None, "high": None, "a_better": None}
    found["rows"] = len(difference)
    if too_few(len(difference)):
        return found
    values = resampled(difference, below, resamples, seed)
    edges = (1 - LEVEL) / 2
    low, high = np.quantile(values, [edges, 1 - edges])
    better = (values > 0).mean() + (values == 0).mean() / 2
    return {**found, "low": float(low), "high": float(high), "a_better": float(better)}
