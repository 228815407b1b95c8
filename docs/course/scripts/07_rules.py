"""What is sent, what comes back, and what the rules make of it.

python docs/course/scripts/07_rules.py prompt 铁     the messages that are sent about an article
python docs/course/scripts/07_rules.py reply 铁 5    the stand-in's reply by seed 5, and what the rules say about it
python docs/course/scripts/07_rules.py count         what became of the pairs of all articles, by their faults
"""

import importlib.util
import json
import random
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from minigpt.common.cli import run_script
from minigpt.settings.stages import GenerateSettings
from minigpt.synth.articles import ArticleSource
from minigpt.synth.client import LargeModelClient
from minigpt.synth.prompts import messages_for, wanted_pairs
from minigpt.synth.reply_parser import parse_reply
from minigpt.synth.rules import ArticleIndex, check_pair, check_reply

ARTICLES = "out/course/07_articles.jsonl"
SAVES = "out/course/07_saves.jsonl"  # that sft_generate.py has written
SHARE = 0.3  # of the stand-in's pairs that are spoiled
SETTINGS = GenerateSettings(input_dir=[ARTICLES], api_base="http://127.0.0.1:5017/v1", min_pairs=2)
FIGURE = "docs/course/figures/07-questions.svg"


def load_stand_in():
    """The stand-in's file as a module: its name begins with a digit, so that `import` cannot name it."""
    spec = importlib.util.spec_from_file_location("stand_in", Path(__file__).with_name("07_stand_in.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_articles():
    """[(title, text)] of ARTICLES, cleaned as sft_generate.py cleans them."""
    return [(article.title, article.text) for article in ArticleSource(SETTINGS) if article]


def show_reply(title, text, seed):
    """Ask the server about an article; print its reply and the fate of each pair."""
    client = LargeModelClient(SETTINGS, key="")
    stream = client.ask("stand-in", messages_for([(title, text)], SETTINGS), SETTINGS.temperature, seed)
    reply, failure = client.read_all(stream)
    if failure:
        raise failure
    print("".join(f"| {line}\n" for line in reply.replace("}, {", "},\n {").splitlines()))
    index = ArticleIndex(title, text, SETTINGS)
    pairs = parse_reply(reply).all_pairs()
    for question, answer in pairs:
        print(f"{question} → {answer}")
        for rule, reason in check_pair(index, question, answer):
            print(f"   {rule}: {reason}")
    check = check_reply(index, pairs, cut=stream.finish_reason == "length")
    outcome = "refused" if check.faults else "accepted"
    print(f"\nthe reply is {outcome}; good pairs: {len(check.good_pairs)} of {len(pairs)}")


def fates(articles, share):
    """{(kind of fault, rule that refused the pair, or ""): number of pairs} of a reply of the stand-in to each."""
    stand_in, draw, counts = load_stand_in(), random.Random(7), Counter()
    for title, text in articles:
        index = ArticleIndex(title, text, SETTINGS)
        for question, answer, kind in stand_in.make_pairs(title, text, wanted_pairs(text, SETTINGS), draw, share):
            faults = check_pair(index, question, answer)
            counts[kind or "good", faults[0][0] if faults else ""] += 1
    return counts


def count_saved():
    """(pairs in SAVES, how many of them are bad): bad are those that the stand-in would not write without faults."""
    stand_in, texts = load_stand_in(), dict(read_articles())
    pairs = bad = 0
    for row in map(json.loads, Path(SAVES).read_text(encoding="utf-8").splitlines()):
        right = stand_in.statements_of(row["subject"], texts[row["subject"]])
        pairs += len(row["pairs"])
        bad += sum(right.get(pair["question"]) != pair["answer"] for pair in row["pairs"])
    return pairs, bad


def draw_figure(kinds, counts):
    """A bar for each kind of pair: how many passed, how many were refused."""
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "07"})
    figure, axes = plt.subplots(figsize=(6.4, 3.0))
    made = {kind: sum(n for (done, _), n in counts.items() if done == kind) for kind in kinds}
    for row, kind in enumerate(kinds):
        passed = counts[kind, ""]
        axes.barh(row, passed, color="#0072B2", label="" if row else "passed")
        axes.barh(row, made[kind] - passed, left=passed, color="#E69F00", label="" if row else "refused")
        axes.text(made[kind] + 2, row, f"{passed} of {made[kind]} passed", va="center")
    axes.set(xlabel="pairs", yticks=range(len(kinds)), yticklabels=kinds, xlim=(0, 1.4 * max(made.values())))
    axes.invert_yaxis()
    axes.legend(loc="lower right")
    figure.tight_layout()
    Path(FIGURE).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})


def main():
    what, *words = sys.argv[1:] or ["--help"]
    if what == "count":
        counts = fates(read_articles(), SHARE)
        kinds = ["good", *load_stand_in().PAIR_FAULTS]
        print("            pairs  passed  refused by")
        for kind in kinds:
            by_rule = {rule: n for (made, rule), n in counts.items() if made == kind}
            passed = by_rule.pop("", 0)
            rules = ", ".join(f"{rule} {n}" for rule, n in sorted(by_rule.items()))
            print(f"{kind:10s} {passed + sum(by_rule.values()):6d} {passed:7d}  {rules}".rstrip())
        passed = sum(n for (_, rule), n in counts.items() if not rule)
        print(f"of {passed} pairs that passed, {passed - counts['good', '']} are bad")
        pairs, bad = count_saved()
        print(f"of {pairs} pairs in {SAVES}, {bad} are bad")
        draw_figure(kinds, counts)
        return
    article = next((article for article in read_articles() if article[:1] == tuple(words[:1])), None)
    if not article or what not in ("prompt", "reply"):
        print(__doc__)
    elif what == "prompt":
        for message in messages_for([article], SETTINGS):
            print(f"--- {message['role']}\n{message['content'].strip()}")
    else:
        show_reply(*article, seed=int(words[1]))


if __name__ == "__main__":
    run_script(main)
