"""Byte-pair encoding by hand: from the bytes of a text to its tokens, one merge a line.

python docs/course/scripts/01_merges.py 中国的河流
"""

import sys
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from minigpt.tokenizer import load_tokenizer


def show(part):
    """The characters of a part, or its bytes in hexadecimal where they are no whole characters."""
    try:
        return part.decode()
    except UnicodeDecodeError:
        return part.hex()


tokenizer = load_tokenizer("out/demo.tiktoken")
ranks = tokenizer.ranks  # {bytes of a token: its id}; the lower the id, the earlier the merge
text = sys.argv[1]
parts = [bytes([byte]) for byte in text.encode()]
print("      ", " ".join(map(show, parts)))

while True:
    # All pairs of neighbours that together are a token, with the place of each.
    pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
    if not pairs:
        break
    rank, i = min(pairs)  # the pair with the lowest id is merged, the leftmost of several
    parts[i : i + 2] = [parts[i] + parts[i + 1]]
    print(f"{rank:6}", " ".join(map(show, parts)))

ids = [ranks[part] for part in parts]
print("ids:", ids)
print("the project's tokenizer gives the same:", tokenizer.encode(text) == ids)
