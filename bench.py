"""Measures the project beside others on the same machine: training, generation, preparation of data, what learns best,
and what it takes to adapt a model in each way.

    python bench.py train                     # training beside nanoGPT's: up to 30 minutes on two cores
    python bench.py train --quick             # five minutes; the time to a given quality is left out
    python bench.py train --minimind=../minimind    # beside minimind's pretraining too, from a clone of it
    python bench.py train --input_dir=my_wiki --qa_files=my_qa.jsonl --articles=my_wiki --json=figures.json
    python bench.py generate                  # generation beside a plain loop and Hugging Face's; the server under load
    python bench.py generate --quick
    python bench.py prepare                   # data/prepare.py on a gigabyte, beside tiktoken alone
    python bench.py export --ckpt=out/sft/ckpt.pt    # answers to held-out questions, beside llama.cpp's
    python bench.py learn --input_dir=my_wiki # architectures, schedules, optimizers at equal time; goes on after a stop
    python bench.py adapt                     # memory and speed of every way to adapt the 124M model, on random ids
    python bench.py gpu                       # an NVIDIA GPU: checks, training, generation, memory; eight minutes

All figures of a table are from one run on one machine. It is printed and, without --quick, put into
docs/benchmarks.md; that of a GPU into docs/gpu.md, with a JSON beside it.
"""

import sys
import time

from minigpt.bench import adapting, exporting, generating, gpu, learning, preparing, training
from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import BenchSettings

BENCHES = {
    "prepare": preparing.bench_preparing,
    "train": training.bench_training,
    "generate": generating.bench_generation,
    "export": exporting.bench_exporting,
    "learn": learning.bench_learning,
    "adapt": adapting.bench_adapting,
    "gpu": gpu.bench_gpu,
}


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in BENCHES and name not in ("--help", "-h"):
        raise UserError(f"name what to measure: python bench.py {' | '.join(BENCHES)}")
    settings = load_settings(BenchSettings, sys.argv[2:] if name in BENCHES else sys.argv[1:])
    started = time.perf_counter()
    BENCHES[name](settings)
    print(f"\n{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    run_script(main)
