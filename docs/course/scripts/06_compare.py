"""Compares tokenizers, and models that were trained with them.

python docs/course/scripts/06_compare.py tokenizers              tokens a character; figures/06-tokenizer.svg
python docs/course/scripts/06_compare.py models 512 4096         loss a token and bits a character of two models
"""

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from data_utils import open_rows
from minigpt.checkpoint import load_checkpoint, load_model
from minigpt.inference.likelihood import likelihood
from minigpt.tokenizer import load_tokenizer

SIZES = (512, 2048, 4096, 8192)
WIDTH = 192  # of the demo's model: an id has so many parameters
SENTENCE = "清迈是泰国的城市，建于1296年。"  # neither articles nor questions have it
OTHER_TEXT = "README.zh-CN.md"  # Chinese of another kind, with English words and commands
FIGURE = Path(__file__).resolve().parent.parent / "figures" / "06-tokenizer.svg"


def tokenizer_of(size):
    """The tokenizer of this chapter with so many ids; of 4096 the demo's."""
    return load_tokenizer("out/demo.tiktoken" if size == 4096 else f"out/course/06_{size}.tiktoken")


def validation_text():
    """The demo's validation articles, about subjects of which no training article is, as one text."""
    rows, meta = open_rows("data/processed_demo", "val")
    specials = meta["special_ids"].values()
    demo = load_tokenizer("out/demo.tiktoken")
    return "\n".join(demo.decode([i for i in row.tolist() if i not in specials]) for row in rows)


def compare_tokenizers():
    """Print a line for each tokenizer, and draw the figure."""
    texts = validation_text(), Path(OTHER_TEXT).read_text(encoding="utf-8")
    print("             tokens a character                  parameters")
    print("tokenizer    articles  README.zh-CN.md  longest  of the ids")
    shares = []
    for size in ("gpt2", *SIZES):
        tokenizer = load_tokenizer() if size == "gpt2" else tokenizer_of(size)
        article_share, other_share = (len(tokenizer.encode(text)) / len(text) for text in texts)
        longest = max(len(token.decode(errors="ignore")) for token in tokenizer.ranks)
        shares.append((article_share, other_share))
        print(f"{size:<12} {article_share:8.3f} {other_share:16.3f} {longest:8} {tokenizer.n_vocab * WIDTH:11,}")
    print()
    for size in ("gpt2", 512, 4096):
        tokenizer = load_tokenizer() if size == "gpt2" else tokenizer_of(size)
        tokens = [tokenizer.token_bytes(i).decode(errors="replace") for i in tokenizer.encode(SENTENCE)]
        print(f"{size:<5} {len(tokens):3} tokens: {'|'.join(tokens)}")
    draw_figure(shares)


def draw_figure(shares):
    """Tokens a character over the number of ids. shares: (articles, other text) of GPT-2's tokenizer, then of SIZES."""
    import matplotlib.pyplot as plt

    warnings.filterwarnings("ignore", "Glyph")  # whoever looks at the figure has a font with Chinese characters
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "course", "font.size": 12})
    figure, axes = plt.subplots(figsize=(6, 4.5))
    for column, label, color in ((0, "articles 文章", "C0"), (1, OTHER_TEXT, "C1")):
        gpt2, *own = (share[column] for share in shares)
        axes.plot(SIZES, own, "o-", color=color, label=f"own tokenizer 自己的, {label}")
        axes.axhline(gpt2, color=color, linestyle="--", label=f"GPT-2, {label}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(SIZES, SIZES)
    axes.set(xlabel="ids 词表大小", ylabel="tokens a character 每字符 token 数", ylim=(0, 3.4))
    axes.legend(fontsize=10)
    figure.tight_layout()
    figure.savefig(FIGURE, metadata={"Date": None})


def compare_vocabularies(*sizes):
    """Print the figures of models with different tokenizers on the same validation articles."""
    print("ids    parameters  tokens  nats a token  perplexity  bits a character")
    for size in sizes:
        model, tokenizer = load_model(load_checkpoint(f"out/course/06_{size}/last.pt"))
        rows, meta = open_rows(f"data/processed_course_{size}", "val")
        found = likelihood(model, rows, meta, 0, tokenizer)
        print(
            f"{size:6} {model.num_params():10,} {found.tokens:7,} {found.loss:13.4f} {found.perplexity:11.2f}"
            f"{found.bits_per_char:18.3f}"
        )


if __name__ == "__main__":
    {"tokenizers": compare_tokenizers, "models": compare_vocabularies}[sys.argv[1]](*sys.argv[2:])
