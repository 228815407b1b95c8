"""What a loss means: the surprise of a model at each token of a text, and its mean over many texts.

python docs/course/scripts/05_loss.py text 铁的元素符号是Fe。     surprise at each token, by the demo's base model
python docs/course/scripts/05_loss.py models                     mean loss of an untrained and of the trained model
python docs/course/scripts/05_loss.py figure                     figures/05-training.svg, from the logs of runs
"""

import math
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import torch

from data_utils import open_rows
from minigpt.checkpoint import load_checkpoint, load_model
from minigpt.inference.likelihood import likelihood
from minigpt.run_log import RunLog
from model import GPT

CHECKPOINT = "out/demo/last.pt"
DATA = "data/processed_demo"
ROWS = 200  # articles that a mean is taken over
FIGURE = Path(__file__).resolve().parent.parent / "figures" / "05-training.svg"


def show_text(text):
    """Print the probability that the model gives to each token of a text, given the tokens before it."""
    model, tokenizer = load_model(load_checkpoint(CHECKPOINT))
    ids = torch.tensor([tokenizer.encode(text)])
    with torch.no_grad():
        logits = model(ids)[0]  # (T, vocabulary): at each position a score for every token that may come next
    probabilities = logits.softmax(dim=-1)

    print("token          probability      nats      bits")
    surprises = []
    for i in range(1, ids.shape[1]):
        p = probabilities[i - 1, ids[0, i]].item()
        surprises.append(-math.log(p))
        token = tokenizer.decode([ids[0, i]])
        padding = " " * (12 - len(token) - sum(c > "\u2e7f" for c in token))  # a Han character is two columns wide
        print(f"{token}{padding} {p:13.3g} {-math.log(p):9.4f} {-math.log2(p):9.4f}")
    mean = sum(surprises) / len(surprises)
    print(f"mean: the loss is {mean:.4f} nats a token; perplexity {math.exp(mean):.2f}")

    # What training computes: the same by torch, from the logits.
    loss = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:])
    print(f"torch's cross_entropy says {loss.item():.4f}")


def show_models():
    """Print the mean loss of a model that knows nothing, and of the trained one, on seen and unseen articles."""
    content = load_checkpoint(CHECKPOINT)
    trained, tokenizer = load_model(content)
    torch.manual_seed(0)
    untrained = GPT(trained.config)
    print(f"a guess at random: ln({tokenizer.n_vocab}) = {math.log(tokenizer.n_vocab):.4f} nats a token")
    print("model      articles     nats a token  perplexity  bits a character")
    for name, model in (("untrained", untrained), ("trained", trained)):
        for part, articles in (("train", "trained on"), ("val", "never seen")):
            rows, meta = open_rows(DATA, part)
            found = likelihood(model, rows[:ROWS], meta, 0, tokenizer)
            figures = f"{found.loss:12.4f} {found.perplexity:11.2f} {found.bits_per_char:17.2f}"
            print(f"{name:10} {articles:12} {figures}")


def draw_figure():
    """Draw the loss of the demo's run, and of the runs of this chapter."""
    import matplotlib.pyplot as plt

    warnings.filterwarnings("ignore", "Glyph")  # whoever looks at the figure has a font with Chinese characters
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "course", "font.size": 12})
    figure, (demo, few, rates) = plt.subplots(3, 1, figsize=(6, 10.5))

    # Training and validation: many articles, and few of them.
    for axes, folder, title in (
        (demo, "out/demo", "13,120 articles 篇"),
        (few, "out/course/05_few", "420 articles 篇"),
    ):
        run = open_log(folder)
        axes.plot(run["step"], run["train_loss"], label="training 训练")
        checked = np.isfinite(run["val_loss"])
        axes.plot(run["step"][checked], run["val_loss"][checked], "o-", label="validation 验证")
        axes.axhline(math.log(4096), color="gray", linestyle="--", label="random guess 随机猜测")
        axes.set(title=title)

    # Three learning rates.
    for name, label in (("low", "× 0.02"), ("right", "× 1"), ("high", "× 50")):
        run = open_log(f"out/course/05_{name}")
        rates.plot(run["step"], run["train_loss"], label=f"learning rate 学习率 {label}")

    for axes in (demo, few, rates):
        axes.set(xlabel="step 步", ylabel="nats a token 奈特/token", ylim=(0, 8.8))
    for axes in (demo, few):
        axes.legend(loc="upper right", bbox_to_anchor=(1, 0.93))  # below the line of the random guess
    rates.legend()
    figure.tight_layout()
    figure.savefig(FIGURE, metadata={"Date": None})
    print(f"{FIGURE.name} is drawn")


def open_log(folder):
    """{field: array with a value for each line} of a run's log.jsonl."""
    run = RunLog(Path(folder) / "log.jsonl")
    run.read()
    return run.columns


if __name__ == "__main__":
    {"text": show_text, "models": show_models, "figure": draw_figure}[sys.argv[1]](*sys.argv[2:])
