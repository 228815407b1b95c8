"""Ask a checkpoint: streams the answer, or the continuation, as it is made.

    python sample.py                                  # the newest run under out/, an interactive prompt
    python sample.py --prompt=铁的元素符号是什么？
    echo 地球是 | python sample.py --ckpt=out/pretrain/ckpt.pt

At a fine-tuned checkpoint a prompt is a question: the answer mark is put behind it for you.
"""

import sys

from checkpoint import open_model
from configurator import load_settings
from device import pick_device
from errors import run_script
from generation import SamplingParams, TextGenerator


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


def main():
    settings = load_settings("sample")
    path, content, model, tokenizer = open_model(settings.ckpt, settings.out_root, pick_device(settings.device))
    stage, step = content["stage"], content["progress"]["step"]
    print(f"{path}: {stage}, step {step}, {model.num_params() / 1e6:.2f}M parameters. Ctrl-C ends.", file=sys.stderr)
    generator, params = TextGenerator(model, tokenizer, stage), SamplingParams.from_settings(settings)
    for prompt in prompts_of(settings, stage):
        if generator.prompt_ids(prompt)[1]:
            print("note: the prompt is longer than the model's block; only its end is used", file=sys.stderr)
        if stage == "pretrain":
            print(prompt, end="", flush=True)
        for text in generator.stream(prompt, params):
            print(text, end="", flush=True)
        print(flush=True)


if __name__ == "__main__":
    run_script(main)
