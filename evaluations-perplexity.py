"""Perplexity and bits per character of a checkpoint over a whole part of prepared rows.

    python evaluations-perplexity.py                                         # the newest checkpoint, data/processed
    python evaluations-perplexity.py --ckpt=out/sft/ckpt.pt --data_dir=data/processed_sft --split=test

Perplexity is over all tokens that the stage's mask keeps. Bits per character leave EOT out, and compare
models with different tokenizers where the rows were cut with overflow=split from the same articles.
"""

from tqdm import tqdm

from checkpoint import open_model
from configurator import load_settings
from data_utils import check_rows, open_rows, read_meta
from device import pick_device
from errors import UserError, run_script
from files import write_json
from metrics import likelihood


def main():
    settings = load_settings("perplexity")
    path, content, model, tokenizer = open_model(settings.ckpt, settings.out_root, pick_device(settings.device))
    part = settings.split or "val"
    check_rows(settings.data_dir, read_meta(settings.data_dir), content)
    rows, meta = open_rows(settings.data_dir, part)
    if meta["block_size"] > model.config.block_size:
        raise UserError(
            f"rows of {meta['block_size']} do not fit the checkpoint's block_size {model.config.block_size}"
        )
    with tqdm(total=len(rows), unit="row", desc=f"{part} part") as bar:
        result = likelihood(
            model, rows, meta, settings.batch_size, tokenizer, train_on_eot=settings.train_on_eot, progress=bar.update
        )
    print(
        f"{path} on {settings.data_dir} ({part}, {len(rows)} rows, {result.tokens} tokens): "
        f"perplexity {result.perplexity:.3f}, "
        f"{result.loss:.4f} nats a token, {result.bits_per_char:.4f} bits a character ({result.characters} characters)"
    )
    if meta.get("overflow") == "truncate" and meta.get("characters_cut"):
        print("note: these rows were truncated; to compare tokenizers, prepare both with --overflow=split")
    if settings.json:
        figures = {
            "checkpoint": str(path), "data_dir": settings.data_dir, "part": part, "tokens": result.tokens,
            "characters": result.characters, "perplexity": result.perplexity, "loss": result.loss,
            "bits_per_char": result.bits_per_char,
        }  # fmt: skip
        write_json(settings.json, figures)


if __name__ == "__main__":
    run_script(main)
