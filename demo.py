"""The whole way on the embedded corpus, from articles to answers, in minutes on a CPU.

    python demo.py          (or: make demo)

Runs the project's own scripts one after the other, as you would, shows what came of it, and writes
out/demo_sft/metrics.json.
"""

import time

STARTED = time.perf_counter()

import json
import subprocess
import sys
from pathlib import Path

from data_utils import open_rows, split_row
from errors import UserError, run_script
from files import write_json
from generation import open_generator
from sampling import SamplingParams
from settings import Settings

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None

BASE, TUNED = "out/demo/last.pt", "out/demo_sft/ckpt.pt"
PLOT, METRICS = "out/demo_sft/loss.png", Path("out/demo_sft/metrics.json")
TRAINED_SAMPLE = 400  # trained questions that are asked
SHOWN = 5
GREEDY = ["--temperature=0", "--max_new_tokens=60", "--show=0"]


def run(*arguments):
    """Run one of the project's scripts and print how long it took. Raises UserError when it fails."""
    print(f"\n$ python {' '.join(arguments)}", flush=True)
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments])
    try:
        status = process.wait()
    except KeyboardInterrupt:  # Ctrl-C reaches the script too; let it save
        process.wait()
        raise
    if status:
        raise UserError(f"`python {' '.join(arguments)}` ended with status {status}; its own message stands above")
    print(f"  ({time.perf_counter() - started:.0f} s)", flush=True)


def measured(name, *arguments):
    """The figures that an evaluation script writes."""
    path = METRICS.with_name(f"{name}.json")
    run(*arguments, f"--json={path}")
    return json.loads(path.read_text(encoding="utf-8"))


def peak_memory_mb():
    """Largest resident memory of any process of the demo, in MB; None on Windows, which does not tell it afterwards."""
    if resource is None:
        return None
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(peak / (1024**2 if sys.platform == "darwin" else 1024))


def show_answers():
    """Print five held-out questions with the model's answers."""
    _, _, generator = open_generator(TUNED, Settings())
    rows, meta = open_rows("data/processed_demo_sft", "test")
    print(f"\n{SHOWN} questions about subjects that no training question was about:")
    for row in rows[:: max(1, len(rows) // SHOWN)][:SHOWN]:
        question, reference = map(generator.tokenizer.decode, split_row(row, meta["special_ids"]))
        answer = "".join(generator.submit(question, SamplingParams(temperature=0.0)))
        print(f"  问 {question}\n  答 {answer}\n  应 {reference}\n")


def main():
    run("data/train_tokenizer.py", "config/demo.py")
    run("data/prepare.py", "config/demo.py")
    run("data/prepare_sft.py", "config/demo_sft.py")
    run("train.py", "config/demo.py")
    run("train.py", "config/demo_sft.py")
    data, tuned = "--data_dir=data/processed_demo_sft", f"--ckpt={TUNED}"
    base = measured(
        "base_perplexity",
        "evaluations-perplexity.py",
        f"--ckpt={BASE}",
        "--data_dir=data/processed_demo",
        "--batch_size=64",
    )
    perplexity = measured("perplexity", "evaluations-perplexity.py", tuned, data, "--split=test", "--batch_size=64")
    trained = measured(
        "trained", "evaluations-RougeL.py", tuned, data, "--split=train", f"--max_samples={TRAINED_SAMPLE}", *GREEDY
    )
    heldout = measured("heldout", "evaluations-RougeL.py", tuned, data, *GREEDY)
    run("visualize.py", "--runs=out/demo,out/demo_sft", f"--plot={PLOT}")
    show_answers()
    metrics = {
        "seconds": round(time.perf_counter() - STARTED, 1),
        "peak_memory_mb": peak_memory_mb(),
        "trained_exact_match": trained["exact_match"],
        "heldout_exact_match": heldout["exact_match"],
        "heldout_rouge_l": heldout["rouge_l_f"],
        "perplexity": perplexity["perplexity"],
        "bits_per_char": base["bits_per_char"],
    }
    write_json(METRICS, metrics)
    pairs, asked, metric = trained["pairs"], heldout["pairs"], metrics.get
    print(f"trained questions:  exact match {metric('trained_exact_match'):.3f} (a sample of {pairs})")
    print(f"held-out questions: exact match {metric('heldout_exact_match'):.3f} (all {asked}), ", end="")
    print(f"Rouge-L {metric('heldout_rouge_l'):.3f}, perplexity {metric('perplexity'):.2f}")
    print(f"base model: {metric('bits_per_char'):.2f} bits a character on articles about subjects it never saw")
    memory = f"at most {metrics['peak_memory_mb']} MB" if metrics["peak_memory_mb"] else "memory not measured"
    print(f"{metric('seconds'):.0f} s, {memory}; figures: {METRICS}; loss curves: {PLOT}")
    print("\nNext: ask it yourself (make sample, or python sample.py), have its report card written (python")
    print("evaluations-report.py). Then with your own articles and questions:")
    print("give config/demo.py your input_dir, config/demo_sft.py your qa_files and articles, and run this again;")
    print('with a graphics card, go on with config/train_config.py, the 124M model (README.md, "Your own model").')


if __name__ == "__main__":
    run_script(main)
