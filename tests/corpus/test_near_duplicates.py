"""Near duplicates: estimates beside exact shares of common shingles, which pairs are found, and resuming."""

import itertools
import math
import random

import numpy as np
import pytest

from minigpt.bench.corpora import varied_articles
from minigpt.corpus import near_duplicates
from minigpt.corpus.near_duplicates import VALUES, NearDuplicates, insert_articles, minhash_signatures, values_per_band


def random_text(rng, length=200):
    return "".join(chr(0x4E00 + rng.randrange(500)) for _ in range(length))


def edited_pairs(rng, n, most):
    """n pairs of a text and the same with up to `most` of its characters replaced, removed or repeated."""
    for _ in range(n):
        text = random_text(rng, rng.randrange(50, 400))
        characters = list(text)
        for place in rng.choices(range(len(text)), k=rng.randrange(1 + most * len(text) // 200)):
            characters[place] = rng.choice(["改", "", text[place] * 2])
        yield text, "".join(characters)


def common_share(a, b):
    """The exact share of common shingles (Jaccard)."""
    a, b = ({text[i : i + 3] for i in range(max(1, len(text) - 2))} for text in (a, b))
    return len(a & b) / len(a | b)


def binomial_tail(n, least, share):
    """The probability of at least `least` of n."""
    return sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(least, n + 1))


def opened(folder, threshold=0.8, count=0):
    near = NearDuplicates(folder, threshold)
    near.resume(count)
    return near


def test_the_error_of_the_estimate_is_that_of_128_independent_values():
    pairs = list(edited_pairs(random.Random(0), 1000, most=60))
    shares = np.array([common_share(*pair) for pair in pairs])
    first, second = (minhash_signatures(texts) for texts in zip(*pairs, strict=True))
    error = (first == second).mean(axis=1) - shares
    variance = shares * (1 - shares) / VALUES
    assert abs(error.sum()) < 4 * math.sqrt(variance.sum())
    # The sum of squares has nearly a normal distribution too; its terms' variance is at most about twice their square.
    assert abs((error**2).sum() - variance.sum()) < 4 * math.sqrt(2 * (variance**2).sum())
    assert {share > 0.9 for share in shares} == {share < 0.5 for share in shares} == {True, False}


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9])
def test_as_many_pairs_are_found_as_128_independent_values_would_find(tmp_path, threshold):
    pairs = list(edited_pairs(random.Random(1), 1000, most=60))
    near = opened(tmp_path, threshold)
    is_new = near.add(minhash_signatures([text for pair in pairs for text in pair]))
    near.close()
    assert is_new[::2].all()
    for low, high in itertools.pairwise(
        [0, threshold - 0.1, threshold - 0.03, threshold + 0.03, threshold + 0.1, 1.01]
    ):
        shares, found = [], 0
        for pair, is_new_pair in zip(pairs, is_new[1::2], strict=True):
            share = common_share(*pair)
            if low <= share < high:
                shares.append(share)
                found += not is_new_pair
        # A pair is found if enough values are equal and it has a band in common, which `missed` say it has not.
        enough = np.array([binomial_tail(VALUES, math.ceil(threshold * VALUES), share) for share in shares])
        n_values = values_per_band(threshold)
        missed = (1 - np.array(shares) ** n_values) ** (VALUES // n_values)
        slack = 4 * math.sqrt((enough * (1 - enough)).sum() + missed.sum()) + 1
        assert np.maximum(0, enough - missed).sum() - slack < found < enough.sum() + slack, (low, high)
        assert len(shares) > 20


def test_texts_of_any_length_have_signatures_and_equal_ones_are_near(tmp_path):
    texts = ["", "甲", "甲乙", "甲乙丙", "\U0010ffff" * 3, "a" * 100_000]
    near = opened(tmp_path)
    assert near.add(minhash_signatures(texts)).tolist() == [True] * len(texts)
    assert near.add(minhash_signatures([*texts, "丁"])).tolist() == [False] * len(texts) + [True]
    assert near.add(minhash_signatures([])).tolist() == []
    near.close()


def test_a_run_that_resumes_finds_what_an_undisturbed_one_finds(tmp_path, monkeypatch):
    monkeypatch.setattr(near_duplicates, "MIN_TABLE_ROWS", 64)  # so that the table grows
    rng = random.Random(2)
    texts = [text for pair in edited_pairs(rng, 300, most=40) for text in pair]
    rng.shuffle(texts)
    signatures = minhash_signatures(texts)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    undisturbed = opened(tmp_path / "one")
    expected = undisturbed.add(signatures)
    undisturbed.close()
    assert 0.5 < expected.mean() < 0.9
    near, found, count = opened(tmp_path / "two"), [], 0
    for start in range(0, len(texts), 50):
        near.add(signatures[start : start + 30])  # not counted by a state that is saved, so forgotten
        near.close()
        near = NearDuplicates(tmp_path / "two", 0.8)
        assert near.has(count) and not near.has(count + 51)
        near.resume(count)
        found += near.add(signatures[start : start + 50]).tolist()
        near.flush()
        near.sync()
        count = near.count
    near.close()
    assert found == expected.tolist()
    one, two = ((tmp_path / name / "signatures.log").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_band_that_many_articles_have_is_in_the_table_a_limited_number_of_times():
    signatures = np.arange(500 * VALUES, dtype=np.uint16).reshape(500, VALUES)
    signatures[:, :7] = 1  # the first band
    table = np.zeros(1 << 16, dtype=np.int64)
    insert_articles(signatures, table, 7)
    assert (table > 0).sum() == near_duplicates.MAX_CANDIDATES + 17 * 500


def test_the_mixed_corpus_of_the_benchmark_has_hardly_any_near_duplicates(tmp_path):
    found = []
    for mixed in (False, True):
        articles = list(itertools.islice(varied_articles(mixed=mixed), 14_000))
        near = opened(tmp_path)
        found.append(sum(~near.add(minhash_signatures([article["text"] for article in articles]))))
        near.close()
    assert found[0] > 300 and found[1] < 5, found


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95])
def test_bands_bring_nearly_all_pairs_at_the_threshold_together(threshold):
    rows = values_per_band(threshold)
    assert 1 - (1 - threshold**rows) ** (128 // rows) >= 0.98
    assert rows == 16 or 1 - (1 - threshold ** (rows + 1)) ** (128 // (rows + 1)) < 0.98
