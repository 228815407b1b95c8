"""Shows the tokens of a text, under GPT-2's tokenizer and under the demo's own.

python docs/course/scripts/01_tokens.py 中国的河流
python docs/course/scripts/01_tokens.py --file=data/wiki_sample/rivers.jsonl     counts the tokens of its articles
python docs/course/scripts/01_tokens.py 中国的河流 --figure                      also draws the chapter's figure
"""

import argparse
import itertools
import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from minigpt.tokenizer import load_tokenizer

FIGURE = "docs/course/figures/01-tokens.svg"
TOKENIZERS = {"GPT-2": load_tokenizer("gpt2"), "the demo": load_tokenizer("out/demo.tiktoken")}


def shown(token):
    """The characters of a token's bytes; "-" where they are no whole characters."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "-"


def print_tokens(text):
    for name, tokenizer in TOKENIZERS.items():
        ids = tokenizer.encode(text)
        print(f"{name}, a vocabulary of {tokenizer.n_vocab} ids: {len(text)} characters, {len(ids)} tokens")
        for token_id in ids:
            token = tokenizer.token_bytes(token_id)
            print(f"{token_id:7}  {token.hex(' '):30} {shown(token)}")


def print_counts(path):
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    characters = sum(map(len, texts))
    print(f"{len(texts)} articles, {characters} characters, {sum(len(text.encode()) for text in texts)} bytes")
    for name, tokenizer in TOKENIZERS.items():
        tokens = sum(len(tokenizer.encode(text)) for text in texts)
        print(f"{name}: {tokens} tokens, {tokens / characters:.2f} a character")


def draw_figure(text):
    """Four rows of boxes over the same bytes: characters, bytes, the tokens of both tokenizers."""
    rows = [("characters 字符", [character.encode() for character in text])]
    rows.append(("bytes 字节", [bytes([byte]) for byte in text.encode()]))
    for label, tokenizer in zip(("GPT-2 tokens", "demo tokens"), TOKENIZERS.values(), strict=True):
        rows.append((label, [tokenizer.token_bytes(token_id) for token_id in tokenizer.encode(text)]))
    warnings.filterwarnings("ignore", "Glyph")  # the browser that shows the figure has a Chinese font
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "course", "font.family": "sans-serif"})
    figure, axes = plt.subplots(figsize=(5.2, 3.6))
    for y, (label, parts) in enumerate(rows):
        axes.text(0, y - 0.1, f"{label}: {len(parts)}", fontsize=11, va="bottom")
        ends = list(itertools.accumulate(map(len, parts), initial=0))
        for number, (part, x) in enumerate(zip(parts, ends, strict=False)):
            colour = ("#cfe3f3", "#fbe0c8")[number % 2]
            axes.add_patch(plt.Rectangle((x, y), len(part), 0.55, facecolor=colour, edgecolor="white", linewidth=2))
            is_text = shown(part) != "-"
            label_of_part = shown(part) if is_text else part.hex(" ")
            axes.text(
                x + len(part) / 2, y + 0.28, label_of_part, fontsize=13 if is_text else 9, ha="center", va="center"
            )
    axes.set(xlim=(0, len(text.encode())), ylim=(len(rows) - 0.3, -0.5))
    axes.axis("off")
    figure.subplots_adjust(0.02, 0.02, 0.98, 0.98)
    figure.savefig(FIGURE, metadata={"Date": None})
    print(f"figure: {FIGURE}")


parser = argparse.ArgumentParser()
parser.add_argument("text", nargs="?", default="")
parser.add_argument("--file")
parser.add_argument("--figure", action="store_true")
arguments = parser.parse_args()
if not arguments.text and not arguments.file:
    parser.error("name a text: 中国的河流")
if arguments.text and not arguments.figure:
    print_tokens(arguments.text)
if arguments.file:
    print_counts(arguments.file)
if arguments.figure:
    draw_figure(arguments.text)
