"""Measure, side by side, what the project's ways of working bring.

    python bench.py train                     # training, beside nanoGPT's: up to 30 minutes on two cores
    python bench.py train --quick             # five minutes, without the time to a given quality
    python bench.py train --input_dir=my_wiki --qa_files=my_qa.jsonl --articles=my_wiki --json=figures.json
    python bench.py generate                  # generation, beside a plain loop and Hugging Face's, and the server
    python bench.py generate --quick
    python bench.py prepare                   # data/prepare.py on a gigabyte, beside tiktoken's own encoding

Every figure is of the same machine and run. The table is printed and, unless --quick, put into docs/benchmarks.md.
"""

import sys

from minigpt.bench import generating, preparing, training
from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.settings.parse import load_settings

BENCHES = {"prepare": preparing.bench, "train": training.bench, "generate": generating.bench}


def main():
    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    if asked not in BENCHES and asked not in ("--help", "-h"):
        raise UserError(f"say what to measure: python bench.py {' | '.join(BENCHES)}")
    settings = load_settings("bench", sys.argv[2:] if asked in BENCHES else sys.argv[1:])
    BENCHES[asked](settings)


if __name__ == "__main__":
    run_script(main)
