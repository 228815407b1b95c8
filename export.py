"""Write a checkpoint in the formats of other programs.

    python export.py                                             # transformers and vLLM: a Hugging Face folder
    python export.py --format=gguf --dtype=q8_0                  # llama.cpp, LM Studio and Ollama: a GGUF file
    python export.py --ckpt=out/sft/ckpt.pt --format=hf --dtype=bfloat16 --out=my_model
    python export.py --ckpt=out/lora/ckpt.pt --format=ckpt       # an adapter, merged into a checkpoint of its own
    python export.py --ckpt=out/lora/ckpt.pt --format=peft       # an adapter alone, for Hugging Face's peft

Without --out it is written beside the checkpoint. docs/export.md says how to run it elsewhere.
"""

import time
from dataclasses import fields
from pathlib import Path

from safetensors import SafetensorError

from minigpt.adapters.attach import merge_adapter
from minigpt.adapters.peft_format import PEFT_WEIGHTS, write_peft
from minigpt.checkpoint import (
    BEST,
    check_generates,
    model_names,
    only_checkpoint,
    open_model,
    save_checkpoint,
    stage_of,
)
from minigpt.common.cli import run_script
from minigpt.common.errors import UserError, first_line
from minigpt.common.files import write_atomic, write_folder_atomic
from minigpt.formats.adoption import PEFT_CONFIG, is_model_folder
from minigpt.formats.exported_tokenizer import explain_inexactness
from minigpt.formats.gguf_file import MODELFILE_MARK, STAGE_KEY, modelfile, write_gguf
from minigpt.formats.huggingface import HUGGINGFACE_FILES, MODEL_CARD, write_huggingface
from minigpt.formats.model_card import CARD_MARK, adapter_card, model_card
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import ExportSettings, TrainSettings

MODELFILE = "Modelfile"
MARK_BYTES = 1024  # the beginning of a file, in which the mark of an earlier export is


def check_export_settings(settings):
    """Raise UserError for settings that contradict each other."""
    form, dtype, out = settings.format, settings.dtype, settings.out
    if form == "hf" and dtype in ("q8_0", "q4_0"):
        raise UserError(f"format hf has no {dtype}; take --format=gguf, or --dtype=bfloat16")
    if form in ("ckpt", "peft") and dtype != "float32":
        raise UserError(f"format {form} has no {dtype}, but float32; leave dtype out")
    if form in ("hf", "peft") and out.endswith((".gguf", ".pt")):
        raise UserError(
            f"out is {out}, but format {form} writes a folder; a .gguf file is --format=gguf, a .pt file --format=ckpt"
        )


def is_marked(path, mark):
    """Whether a mark stands at the beginning of a file."""
    with open(path, "rb") as file:
        return mark.encode() in file.read(MARK_BYTES)


def check_replaceable(target, mark):
    """Raise UserError if a file is there and is no earlier export, in which `mark` stands."""
    if target.is_dir() or (target.exists() and not is_marked(target, mark)):
        raise UserError(f"{target} is there and was not written by export.py; remove it, or give another --out")


def check_folder_replaceable(folder, written):
    """Raise UserError if a folder is there and is no earlier export, or has other files than the names in `written`."""
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if others := sorted(names - written):
        raise UserError(f"{folder} has files that export.py did not write ({others[0]}); give another --out")
    card = folder / MODEL_CARD
    if names and not (card.is_file() and is_marked(card, CARD_MARK)):
        raise UserError(f"{folder} is there and was not written by export.py; remove it, or give another --out")


def export_huggingface(settings, folder, model, tokenizer, content):
    """Write a Hugging Face folder."""
    check_folder_replaceable(folder, HUGGINGFACE_FILES)
    card = model_card(folder.name, model, tokenizer, content)
    write_folder_atomic(
        folder, lambda new: write_huggingface(new, model, tokenizer, content["stage"], settings.dtype, card)
    )
    print(f"transformers: AutoModelForCausalLM.from_pretrained({str(folder)!r}); vLLM: vllm serve {folder}")


def export_gguf(settings, target, model, tokenizer, content):
    """Write a GGUF file, and Ollama's Modelfile beside it."""
    ollama = target.with_name(MODELFILE)
    check_replaceable(target, STAGE_KEY)
    check_replaceable(ollama, MODELFILE_MARK)
    unquantized = write_gguf(target, model, tokenizer, content["stage"], settings.dtype, target.stem)
    text = modelfile(target.name, tokenizer, content["stage"], model.config)
    write_atomic(ollama, lambda file: file.write(text.encode()))
    if remark := explain_inexactness(tokenizer):
        print(f"note: {remark}")
    if unquantized:
        print(f"note: rows of {', '.join(unquantized)} are no multiple of 32 wide, so these are float16")
    if model.config.is_gpt2 and not model.config.tanh_gelu:
        print("note: llama.cpp computes GPT-2's GELU by tanh and in float16, so its logits differ slightly")
    print(f"LM Studio: lms import --copy {target}; Ollama: ollama create {target.stem.lower()} -f {ollama}")


def export_checkpoint(settings, target, model, tokenizer, content):
    """Write a checkpoint that needs no other file; it lacks what resuming needs."""
    if target.exists():
        raise UserError(f"{target} is there, and checkpoints are not replaced; remove it, or give another --out")
    known = {f.name for f in fields(TrainSettings)}
    trained = TrainSettings(**{name: value for name, value in content["settings"].items() if name in known})
    about = model.config, trained, content["stage"], tokenizer, content["progress"]
    save_checkpoint(target, model.state_dict(), *about, **({"task": content["task"]} if "task" in content else {}))
    print(f"it needs no other file: python sample.py --ckpt={target}")


def export_adapter(settings, folder, model, tokenizer, content):
    """Write an adapter alone as a folder of peft's, which names the Hugging Face folder of its base."""
    check_folder_replaceable(folder, {PEFT_CONFIG, PEFT_WEIGHTS, MODEL_CARD})
    path = settings.base or content["base"]["path"]
    base = path if is_model_folder(path) else default_folder(path, settings.dtype)

    def write(new):
        write_peft(new, model, base)
        (new / MODEL_CARD).write_text(adapter_card(folder.name, base, content), encoding="utf-8")

    write_folder_atomic(folder, write)
    if model.adapter.quantize != "none":
        print("note: it was trained on a base in 4 bits; peft adds it to the base as that is loaded there")
    if base != path:
        print(f"its base has to be in {base}: python export.py --ckpt={path}")
    print(f"peft: AutoPeftModelForCausalLM.from_pretrained({str(folder)!r})")


EXPORTS = {"hf": export_huggingface, "gguf": export_gguf, "ckpt": export_checkpoint, "peft": export_adapter}


def default_folder(path, ending):
    """The folder that is written beside a checkpoint; ending: what its name tells besides the model's."""
    return Path(path).parent / f"{model_names([path])[0].replace('/', '-')}-{ending}"


def choose_target(path, settings):
    """The file or folder that is written for the model of a path."""
    out = Path(settings.out)
    beside = default_folder(path, "peft" if settings.format == "peft" else settings.dtype)
    if settings.format in ("hf", "peft"):
        return out if settings.out else beside
    if settings.format == "gguf":
        return out if out.suffix == ".gguf" else (out if settings.out else beside.parent) / f"{beside.name}.gguf"
    return out if out.suffix == ".pt" else out / BEST if settings.out else beside.with_name("merged.pt")


def prepare_model(path, content, model, settings):
    """Merge an adapter, unless it is written alone. Raises UserError where the format cannot hold the model."""
    if settings.format != "ckpt":
        check_generates(stage_of(content), path)
    if settings.format == "peft" and "adapter" not in content:
        raise UserError(f"{path} is no adapter; --format=peft writes adapters, --format=hf whole models")
    if settings.format != "peft" and "adapter" in content:
        merge_adapter(model)


def main():
    settings = load_settings(ExportSettings)
    check_export_settings(settings)
    started = time.perf_counter()
    path, content, model, tokenizer = open_model(only_checkpoint(settings), settings.out_root, "cpu", settings.base)
    prepare_model(path, content, model, settings)
    target = choose_target(path, settings)
    print(f"exporting {path} to {target}")
    try:
        EXPORTS[settings.format](settings, target, model, tokenizer, content)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{target} could not be written ({first_line(error)}); no half of it is left") from None
    files = target.iterdir() if target.is_dir() else [target]
    size = sum(file.stat().st_size for file in files)
    print(f"{size / 1e6:,.1f} MB in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    run_script(main)
