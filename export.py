"""Write a checkpoint in the formats of other programs.

    python export.py                                             # transformers and vLLM: a Hugging Face folder
    python export.py --format=gguf --dtype=q8_0                  # llama.cpp, LM Studio and Ollama: a GGUF file
    python export.py --ckpt=out/sft/ckpt.pt --format=hf --dtype=bfloat16 --out=my_model

Without --out it is written beside the checkpoint. docs/export.md says how to run it elsewhere.
"""

import time
from pathlib import Path

from safetensors import SafetensorError

from minigpt.checkpoint import check_generates, model_names, only_checkpoint, open_model
from minigpt.common.cli import run_script
from minigpt.common.errors import UserError, first_line
from minigpt.common.files import write_atomic, write_folder_atomic
from minigpt.formats.exported_tokenizer import explain_inexactness
from minigpt.formats.gguf_file import MODELFILE_MARK, STAGE_KEY, modelfile, write_gguf
from minigpt.formats.huggingface import HUGGINGFACE_FILES, MODEL_CARD, write_huggingface
from minigpt.formats.model_card import CARD_MARK, model_card
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import ExportSettings

MODELFILE = "Modelfile"
MARK_BYTES = 1024  # the beginning of a file, in which the mark of an earlier export is


def check_export_settings(settings):
    """Raise UserError for settings that contradict each other."""
    if settings.format == "hf" and settings.dtype in ("q8_0", "q4_0"):
        raise UserError(f"format hf has no {settings.dtype}; take --format=gguf, or --dtype=bfloat16")
    if settings.format == "hf" and settings.out.endswith(".gguf"):
        raise UserError(f"out is {settings.out}, but format hf writes a folder; a .gguf file is --format=gguf")


def is_marked(path, mark):
    """Whether a mark stands at the beginning of a file."""
    with open(path, "rb") as file:
        return mark.encode() in file.read(MARK_BYTES)


def check_replaceable(target, mark):
    """Raise UserError if a file is there and is no earlier export, in which `mark` stands."""
    if target.is_dir() or (target.exists() and not is_marked(target, mark)):
        raise UserError(f"{target} is there and was not written by export.py; remove it, or give another --out")


def check_folder_replaceable(folder):
    """Raise UserError if a folder is there and is no earlier export, or has further files."""
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if others := sorted(names - HUGGINGFACE_FILES):
        raise UserError(f"{folder} has files that export.py did not write ({others[0]}); give another --out")
    card = folder / MODEL_CARD
    if names and not (card.is_file() and is_marked(card, CARD_MARK)):
        raise UserError(f"{folder} is there and was not written by export.py; remove it, or give another --out")


def export_huggingface(settings, folder, model, tokenizer, content):
    """Write a Hugging Face folder."""
    check_folder_replaceable(folder)
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


def main():
    settings = load_settings(ExportSettings)
    check_export_settings(settings)
    started = time.perf_counter()
    path, content, model, tokenizer = open_model(only_checkpoint(settings), settings.out_root, "cpu")
    check_generates(content["stage"], path)
    name = f"{model_names([path])[0].replace('/', '-')}-{settings.dtype}"
    target = Path(settings.out or Path(path).parent)
    if settings.format == "gguf":
        target = target if target.suffix == ".gguf" else target / f"{name}.gguf"
        export = export_gguf
    else:
        target = target if settings.out else target / name
        export = export_huggingface
    print(f"exporting {path} to {target}")
    try:
        export(settings, target, model, tokenizer, content)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{target} could not be written ({first_line(error)}); no half of it is left") from None
    files = target.iterdir() if target.is_dir() else [target]
    size = sum(file.stat().st_size for file in files)
    print(f"{size / 1e6:,.1f} MB in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    run_script(main)
