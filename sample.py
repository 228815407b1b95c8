"""Ask a checkpoint: streams the answer, or the continuation, as it is made.

    python sample.py                                  # the newest run under out/, an interactive prompt
    python sample.py --prompt=铁的元素符号是什么？
    echo 地球是 | python sample.py --ckpt=out/pretrain/ckpt.pt

At a fine-tuned checkpoint a prompt is a question: the answer mark is put behind it for you.
"""

import queue
import sys
import threading

from minigpt.common.cli import run_script
from minigpt.inference.engine import open_generator
from minigpt.inference.params import SamplingParams
from minigpt.settings.parse import load_settings


def prompts_of(settings, stage):
    """Yields prompts: the setting's, standard input's lines, or what the user types until Ctrl-D."""
    if settings.prompt:
        yield settings.prompt
    elif not sys.stdin.isatty():
        yield from (line.strip("\n") for line in sys.stdin if line.strip())
    else:
        asked = "问题 question> " if stage == "sft" else "开头 prompt> "
        while True:
            try:
                prompt = input(asked).strip()
            except EOFError:
                print()
                return
            if prompt:
                yield prompt


def streams_of(prompts, generator, params, settings):
    """Yields (prompt, Stream); lines from standard input are asked as they come, many together, answered in order."""
    if settings.prompt or sys.stdin.isatty():
        yield from ((prompt, generator.submit(prompt, params)) for prompt in prompts)
        return
    asked = queue.Queue(settings.max_batch)

    def read():
        try:
            for prompt in prompts:
                asked.put((prompt, generator.submit(prompt, params)))
        finally:
            asked.put(None)

    threading.Thread(target=read, name="reader", daemon=True).start()
    yield from iter(asked.get, None)


def main():
    settings = load_settings("sample")
    _, _, generator = open_generator(settings.ckpt, settings)
    print(f"{generator.about}. Ctrl-C ends.", file=sys.stderr)
    params = SamplingParams.from_settings(settings)
    for prompt, stream in streams_of(prompts_of(settings, generator.stage), generator, params, settings):
        if stream.prompt_cut:
            print("note: the prompt leaves no room for an answer; only its end is used", file=sys.stderr)
        if generator.stage == "pretrain":
            print(prompt, end="", flush=True)
        for text in stream:
            print(text, end="", flush=True)
        print(flush=True)


if __name__ == "__main__":
    run_script(main)
