"""Byte-pair encoding by hand: which tokens do merges make, with and without a splitting at marks and digits?

python docs/course/scripts/06_merges.py
"""

import itertools
import json
import re
from collections import Counter

ARTICLES = "data/wiki_sample/countries.jsonl"
MERGES = 300
SHOWN = 12
# Pieces that no token may cross: runs of Han characters, runs of Latin letters, and every other character alone.
PIECES = re.compile(r"[\u4e00-\u9fff]+|[A-Za-z]+|.", re.DOTALL)


def learn_merges(pieces, n):
    """The n tokens that byte-pair encoding merges, in order. pieces: {piece: how often it occurs}."""
    words = {tuple(piece): count for piece, count in pieces.items()}
    merged = []
    for _ in range(n):
        pairs = Counter()
        for word, count in words.items():
            for left, right in itertools.pairwise(word):
                pairs[left, right] += count
        pair = max(pairs, key=lambda pair: (pairs[pair], pair))  # of equally frequent ones always the same
        merged.append("".join(pair))
        words = {merge(word, pair): count for word, count in words.items()}
    return merged


def merge(word, pair):
    """A tuple of tokens with every occurrence of a pair as one token."""
    tokens = []
    for token in word:
        if tokens and (tokens[-1], token) == pair:
            tokens[-1] += token
        else:
            tokens.append(token)
    return tuple(tokens)


def main():
    with open(ARTICLES, encoding="utf-8") as file:
        texts = [json.loads(line)["text"].split("\n\n")[1] for line in file][::20]
    print(f"{len(texts)} articles, {sum(map(len, texts))} characters, {MERGES} merges")
    splittings = {"whole texts": Counter(texts), "split": Counter(piece for t in texts for piece in PIECES.findall(t))}
    for name, pieces in splittings.items():
        merged = learn_merges(pieces, MERGES)
        # Tokens in which a mark, such as a full stop, is glued to something else.
        glued = [token for token in merged if re.search(r"[，。、]", token) and len(token) > 1]
        print(f"{name}: the first merges: {' '.join(merged[:SHOWN])}")
        print(f"  with a mark glued to a word: {len(glued)} {' '.join(glued[:SHOWN])}")


if __name__ == "__main__":
    main()
