"""Corpora of any size, made from the embedded one: sentences in new orders, so that no two articles are equal."""

import json
import random
from pathlib import Path

from minigpt.common.files import PROJECT
from minigpt.corpus.cleaning import SENTENCE_END, drop_title
from minigpt.corpus.readers.files import find_files
from minigpt.corpus.records import Problems, read_articles

SAMPLE = PROJECT / "data" / "wiki_sample"


def varied_articles(seed=0, mixed=False):
    """Yield articles, as dicts, without end: those of the embedded corpus in turn, with a number in each.

    The sentences of each are in a new random order every time. mixed: there are as many, but drawn from all articles,
    so that hardly any two articles are near duplicates.
    """
    rng = random.Random(seed)
    number, articles = 0, []
    for _, article in read_articles(find_files([SAMPLE]), Problems()):
        body = drop_title(article.text, article.title)
        ends = [match.end() for match in SENTENCE_END.finditer(body)]
        articles.append((article.title, [body[a:b] for a, b in zip([0, *ends], ends, strict=False)]))
    all_sentences = [sentence for _, sentences in articles for sentence in sentences]
    while True:
        for title, sentences in articles:
            order = rng.sample(all_sentences if mixed else sentences, len(sentences))
            order.insert(rng.randrange(len(order) + 1), f"这一篇的编号是{number}。")
            yield {"id": number, "title": title, "text": f"{title}\n\n{''.join(order)}"}
            number += 1


def write_varied(path, n_bytes, seed=0, mixed=False):
    """Write a jsonl file of at least `n_bytes` of `varied_articles`; returns its number of articles."""
    written = count = 0
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for row in varied_articles(seed, mixed):
            line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
            file.write(line)
            written, count = written + len(line), count + 1
            if written >= n_bytes:
                return count
