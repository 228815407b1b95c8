"""Prompts changed in one thing at a time, and what each change does to the answers.

    python docs/course/scripts/11_prompts.py show                             the prompts of one question
    python docs/course/scripts/11_prompts.py teach                            writes out/course/prompts.jsonl
    python docs/course/scripts/11_prompts.py measure out/demo_sft/ckpt.pt     exact match on held-out questions

The questions are those of sft/sample_qa.jsonl. Held-out ones are about the subjects of sft/sample_heldout.txt, which
no training question is about. `measure` takes --questions=50 for fewer of them, and draws the figure of the chapter.
"""

import json
import random
import re
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

import matplotlib.pyplot as plt

from minigpt.common.cli import run_script
from minigpt.evaluation.models import LocalModel
from minigpt.inference.params import SamplingParams
from minigpt.metrics import compare, exact_match, interval, rouge_l
from minigpt.settings.stages import RougeSettings

RESULTS, FIGURE = ROOT / "out/course/prompts", ROOT / "docs/course/figures/11-prompting.svg"
QUESTIONS = 200

# Wordings that `teach` teaches, and one of each kind that it does not.
ROLE, OTHER_ROLE = "你是一位老师。", "你是一位记者。"
HEAD, OTHER_HEAD = "答：", "结果："
FORMAT, OTHER_FORMAT = "请以“{}”开头。", "回答前先写“{}”。"
NO_STOP = "句末不要句号。"
SENTENCE_END = re.compile(r"(?<=。)")


def read_jsonl(path):
    return [json.loads(line) for line in (ROOT / path).read_text(encoding="utf-8").splitlines()]


class Corpus:
    """The questions, training and held-out, and the sentences of the articles."""

    def __init__(self):
        self.subjects, self.sentences = {}, {}
        for path in sorted((ROOT / "data/wiki_sample").glob("*.jsonl")):
            for article in read_jsonl(path):
                self.subjects[article["id"]] = article["title"]
                text = article["text"].split("\n")[-1]
                self.sentences.setdefault(article["title"], []).extend(filter(None, SENTENCE_END.split(text)))
        heldout = set((ROOT / "sft/sample_heldout.txt").read_text(encoding="utf-8").split("\n"))
        self.training, self.heldout = [], []
        for row in read_jsonl("sft/sample_qa.jsonl"):
            (self.heldout if self.subjects[row["id"]] in heldout else self.training).append(row)

    def context(self, row):
        """A sentence about the row's subject that is likest to the answer, but not the answer itself."""
        answer = row["answer"]
        others = (s for s in self.sentences[self.subjects[row["id"]]] if s != answer)
        return max(others, key=lambda sentence: rouge_l(sentence, answer)[2])

    def examples(self, row):
        """Two training questions about other subjects, which are always the same for a row."""
        return random.Random(row["question"]).sample(self.training, 2)


def with_format(head, wording=FORMAT):
    """A variant: the answer shall begin with `head`."""
    return lambda row, corpus: (wording.format(head) + "\n" + row["question"], head + row["answer"])


def with_line(line):
    """A variant: a line before the question, which shall change nothing."""
    return lambda row, corpus: (f"{line}\n{row['question']}", row["answer"])


def without_stop(row, corpus):
    """A variant: the answer shall not end with a full stop."""
    return f"{NO_STOP}\n{row['question']}", row["answer"].removesuffix("。")


def with_context(row, corpus):
    return f"资料：{corpus.context(row)}\n{row['question']}", row["answer"]


def with_examples(row, corpus, head=""):
    """A chat: two questions with their answers (each behind `head`), then the question."""
    messages = []
    for example in corpus.examples(row):
        messages.append({"role": "user", "content": example["question"]})
        messages.append({"role": "assistant", "content": head + example["answer"]})
    return [*messages, {"role": "user", "content": row["question"]}], head + row["answer"]


# name: (row, corpus) -> (prompt, right answer)
VARIANTS = {
    "plain": lambda row, corpus: (row["question"], row["answer"]),
    "role": with_line(ROLE),
    "role, other words": with_line(OTHER_ROLE),
    "instruction": with_line("请回答下面的问题。"),
    "context": with_context,
    "format: head": with_format(HEAD),
    "head, other words": with_format(HEAD, OTHER_FORMAT),
    "another head": with_format(OTHER_HEAD),
    "format: no full stop": without_stop,
    "examples": with_examples,
    "examples of the head": lambda row, corpus: with_examples(row, corpus, HEAD),
}

# Of variants with a format: whether an answer has the form that was asked for, be it right or wrong.
FORMS = {
    "format: head": lambda answer: answer.startswith(HEAD),
    "head, other words": lambda answer: answer.startswith(HEAD),
    "another head": lambda answer: answer.startswith(OTHER_HEAD),
    "format: no full stop": lambda answer: not answer.endswith("。"),
    "examples of the head": lambda answer: answer.startswith(HEAD),
}


def prompt_line(prompt):
    """A prompt, a text or a chat, in one line. | stands for a new line, ## for the answer mark."""
    if isinstance(prompt, str):
        return prompt.replace("\n", " | ")
    return " ".join(m["content"] + (" ##" if m["role"] == "user" else " ‖") for m in prompt).removesuffix(" ##")


def show(corpus):
    row = corpus.heldout[len(corpus.heldout) // 2]
    for name, variant in VARIANTS.items():
        prompt, answer = variant(row, corpus)
        print(f"{name}\n  {prompt_line(prompt)}\n  → {answer}")


def teach(corpus):
    """Write the questions, each in one of five ways: a third of them plain, the others with one change.

    The held-out ones are written, too: data/prepare_sft.py keeps them out of the training part.
    """
    rng = random.Random(1)
    taught = [VARIANTS["plain"], VARIANTS["plain"], with_line(ROLE), with_context, with_format(HEAD)]
    taught.append(without_stop)
    with open(ROOT / "out/course/prompts.jsonl", "w", encoding="utf-8") as file:
        for row in corpus.training + corpus.heldout:
            question, answer = rng.choice(taught)(row, corpus)
            file.write(json.dumps({"question": question, "answer": answer, "id": row["id"]}, ensure_ascii=False) + "\n")
    print(f"{len(corpus.training) + len(corpus.heldout)} questions written to out/course/prompts.jsonl")


def measure(corpus, ckpt, count):
    """Print exact match of every variant, with its interval, and an answer; keep the figures for the plot."""
    model = LocalModel(ckpt, RougeSettings(dtype="float32"))
    params = SamplingParams(temperature=0.0, max_new_tokens=60)
    asked = random.Random(0).sample(corpus.heldout, min(count, len(corpus.heldout)))
    results, plain = {}, None
    print(f"{ckpt}, {len(asked)} held-out questions")
    print("prompt                exact match  95% interval  less plain's     in form  the first answer")
    for name, variant in VARIANTS.items():
        prompts, wanted = zip(*(variant(row, corpus) for row in asked), strict=True)
        answers = model.answers(prompts, params)
        right = [float(exact_match(*pair)) for pair in zip(answers, wanted, strict=True)]
        low, high = interval(right)
        results[name] = [sum(right) / len(right), low, high]

        # The same questions were asked with the plain prompt: the paired bootstrap of chapter 10.
        plain = plain or right
        change = compare(right, plain)
        less = f"{change['low']:+.3f}…{change['high']:+.3f}" if right is not plain else " " * 13
        form = f"{sum(map(FORMS[name], answers)) / len(answers):7.3f}" if name in FORMS else " " * 7
        print(f"{name:21} {results[name][0]:11.3f}  {low:.3f}–{high:.3f}   {less}  {form}  {answers[0][:30]}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{Path(ckpt).parent.name}.json").write_text(json.dumps(results), encoding="utf-8")
    draw_prompts()


def draw_prompts():
    """Draw exact match of all variants, for all models that were measured."""
    warnings.filterwarnings("ignore", "Glyph")  # the browser that shows the figure has a Chinese font
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "course", "font.size": 11})
    figure, axes = plt.subplots(figsize=(5, 5.5), layout="constrained")
    places = range(len(VARIANTS))
    for number, path in enumerate(sorted(RESULTS.glob("*.json"))):
        results = json.loads(path.read_text(encoding="utf-8"))
        means, lows, highs = zip(*(results[name] for name in VARIANTS), strict=True)
        errors = [[m - low for m, low in zip(means, lows, strict=True)],
                  [high - m for m, high in zip(means, highs, strict=True)]]  # fmt: skip
        axes.errorbar(means, [p + 0.2 * number for p in places], xerr=errors, fmt="o", label=path.stem, capsize=3)
    axes.set_yticks(places, VARIANTS)
    axes.invert_yaxis()
    axes.set(xlabel="exact match", xlim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=9)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})


def main():
    corpus, flags = Corpus(), [arg for arg in sys.argv[2:] if arg.startswith("--questions=")]
    if sys.argv[1] == "show":
        show(corpus)
    elif sys.argv[1] == "teach":
        teach(corpus)
    else:
        measure(corpus, sys.argv[2], int(flags[0].split("=")[1]) if flags else QUESTIONS)


if __name__ == "__main__":
    run_script(main)
