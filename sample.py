"""Generate text with a checkpoint and print it while it is generated.

    python sample.py                                  # the newest run under out/, an interactive prompt
    python sample.py --prompt=铁的元素符号是什么？
    echo 地球是 | python sample.py --ckpt=out/pretrain/ckpt.pt

With a fine-tuned checkpoint a prompt is a question, to which the answer mark is appended automatically. With a
pretrained one, the prompt is continued. With a task's head, the prompt gets its label (two texts: `text##text`) or its
entities. A model of masked tokens fills each [MASK] of the prompt. A reward model rewards `question ## answer`.
"""

import queue
import sys
import threading

from minigpt.checkpoint import only_checkpoint
from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.inference.classify import find_stage, label_line, open_classifier
from minigpt.inference.engine import open_generator
from minigpt.inference.masks import filled_line, open_mask_filler
from minigpt.inference.params import SamplingParams
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import SampleSettings
from minigpt.tuning.reward_model import open_reward_model


def read_prompts(settings, stage):
    """Yield prompts: that of the settings, else the lines of standard input, else what the user types until Ctrl-D."""
    if settings.prompt:
        yield settings.prompt
    elif not sys.stdin.isatty():
        yield from (line.strip("\n") for line in sys.stdin if line.strip())
    else:
        label = {"sft": "问题 question> ", "pretrain": "开头 prompt> "}.get(stage, "文本 text> ")
        while True:
            try:
                prompt = input(label).strip()
            except EOFError:
                print()
                return
            if prompt:
                yield prompt


def submit_prompts(prompts, generator, params, settings):
    """Yield (prompt, Stream) for each prompt, in order.

    Lines of standard input are submitted as soon as they are read, so that they are answered together in one batch.
    """
    if settings.prompt or sys.stdin.isatty():
        yield from ((prompt, generator.submit(prompt, params)) for prompt in prompts)
        return

    # A thread reads ahead, up to max_batch lines.
    submitted = queue.Queue(settings.max_batch)

    def read():
        try:
            for prompt in prompts:
                submitted.put((prompt, generator.submit(prompt, params)))
        finally:
            submitted.put(None)

    threading.Thread(target=read, name="reader", daemon=True).start()
    yield from iter(submitted.get, None)


def answer_each(opened, settings, answer):
    """Print the line `answer(prompt)` for each prompt; opened: a `Classifier`, `MaskFiller` or `RewardModel`."""
    print(f"{opened.about}. Ctrl-C ends.", file=sys.stderr)
    for prompt in read_prompts(settings, opened.stage):
        try:
            print(answer(prompt), flush=True)
        except UserError as error:
            if settings.prompt:
                raise
            print(f"note: {error}", file=sys.stderr)


def main():
    settings = load_settings(SampleSettings)
    path, stage = find_stage(only_checkpoint(settings), settings.out_root)
    if stage == "task":
        _, _, classifier = open_classifier(path, settings)
        return answer_each(classifier, settings, lambda prompt: label_line(classifier, prompt))
    if stage == "mlm":
        _, _, filler = open_mask_filler(path, settings)
        return answer_each(filler, settings, lambda prompt: filled_line(filler.fill(prompt)))
    if stage == "reward":
        _, _, scorer = open_reward_model(path, settings)
        return answer_each(scorer, settings, lambda prompt: f"{scorer.score_text(prompt):.4f}")
    _, _, generator = open_generator(path, settings)
    print(f"{generator.about}. Ctrl-C ends.", file=sys.stderr)
    params = SamplingParams.from_settings(settings)
    for prompt, stream in submit_prompts(read_prompts(settings, generator.stage), generator, params, settings):
        if stream.prompt_cut:
            print("note: the prompt leaves no room for an answer; only its end is used", file=sys.stderr)
        if generator.stage == "pretrain":
            print(prompt, end="", flush=True)
        for text in stream:
            print(text, end="", flush=True)
        print(flush=True)


if __name__ == "__main__":
    run_script(main)
