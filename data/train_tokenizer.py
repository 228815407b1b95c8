"""Trains a byte-level BPE tokenizer on your own articles and writes it as a `.tiktoken` file.

    python data/train_tokenizer.py --input_dir=my_wiki --tokenizer_vocab=8192
    python data/prepare.py --input_dir=my_wiki --tokenizer=data/tokenizer.tiktoken

GPT-2's tokenizer takes about 2 tokens for a Chinese character, one of your own well under 1. Its smaller vocabulary
also makes a small model's output layer, and so its training, many times faster.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from tqdm import tqdm

from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.common.files import write_atomic
from minigpt.corpus.cleaning import Cleaner
from minigpt.corpus.losses import Losses, check_losses
from minigpt.corpus.questions import check_question_files, read_questions
from minigpt.corpus.records import Problems, dropped_text
from minigpt.corpus.sources import cleaned_articles, find_articles
from minigpt.corpus.splits import read_heldout
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import TokenizerSettings
from minigpt.tokenizer import SPECIAL_NAMES, format_vocabulary, load_tokenizer

BYTE_TOKENS = 256
SPECIAL_TOKENS = len(SPECIAL_NAMES)
MAX_VOCAB = 2**16
# Runs of Han characters are separate from Latin words. Digits are single, so that numbers are always split alike.
PATTERN = r"\p{Han}+| ?[^\s\p{Han}\p{N}\p{P}\p{S}]+|\p{N}|[\p{P}\p{S}]|\s+"


def byte_of_symbol():
    """{symbol: byte} of the printable characters by which byte-level BPE represents bytes (GPT-2's encoder.py)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {**{chr(b): b for b in plain}, **{chr(256 + i): b for i, b in enumerate(others)}}


def train_ranks(texts, n_ranks, max_token_chars):
    """{token bytes: rank} of a byte-level BPE trained on an iterator of texts; at most n_ranks tokens."""
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = byte_of_symbol()
    trainer = trainers.BpeTrainer(
        vocab_size=n_ranks,
        min_frequency=2,
        initial_alphabet=list(alphabet),
        max_token_length=3 * max_token_chars,  # in bytes; a Han character has 3 in UTF-8
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return {bytes(alphabet[c] for c in token): rank for token, rank in bpe.get_vocab().items()}


class TrainingTexts:
    """Iterable over the cleaned text of every article, question and answer, with a progress bar.

    Questions that contain a held-out subject are left out: they belong to the test part. articles, questions: how
    many so far; problems: of rows that are neither.
    """

    def __init__(self, settings):
        self.settings = settings
        self.problems = Problems()
        self.articles, self.questions = 0, 0

    def __iter__(self):
        settings = self.settings
        files, qa_files = find_articles(settings), settings.tokenizer_qa
        heldout, cleaner = read_heldout(settings.heldout), Cleaner(settings)
        n_bytes = sum(map(os.path.getsize, files + qa_files))
        with tqdm(total=n_bytes, unit="B", unit_scale=True, desc="tokenizer") as bar:
            for _, _, text in cleaned_articles(settings, files, cleaner, self.problems, bar.update):
                self.articles += 1
                yield text
            for _, qa in read_questions(qa_files, self.problems, bar.update, form=settings):
                self.questions += 1
                if not any(subject in qa.question for subject in heldout):
                    yield from (cleaner.text(qa.question), cleaner.text(qa.answer))


def main():
    settings = load_settings(TokenizerSettings)
    check_question_files(settings.tokenizer_qa, "tokenizer_qa")
    if not BYTE_TOKENS + SPECIAL_TOKENS < settings.tokenizer_vocab <= MAX_VOCAB:
        raise UserError(
            f"tokenizer_vocab is {settings.tokenizer_vocab}; it must be over {BYTE_TOKENS + SPECIAL_TOKENS} "
            f"and at most {MAX_VOCAB}"
        )
    texts = TrainingTexts(settings)
    ranks = train_ranks(texts, settings.tokenizer_vocab - SPECIAL_TOKENS, settings.max_token_chars)
    warnings = check_losses(Losses(texts.problems, texts.articles + texts.questions))
    if len(ranks) <= BYTE_TOKENS:
        raise UserError(f"no text to train on in {', '.join(settings.input_dir)}: no two characters come twice")
    specials = {name: len(ranks) + i for i, name in enumerate(SPECIAL_NAMES)}
    path = Path(settings.tokenizer_path)
    try:
        write_atomic(path, lambda file: file.write(format_vocabulary(ranks, specials, PATTERN)))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another with --tokenizer_path=…") from None
    tokenizer = load_tokenizer(str(path))
    print(dropped_text(texts.problems.about()))
    print(f"articles {texts.articles}; questions {texts.questions}")
    for line in warnings:
        print(line)
    print(f"{tokenizer.n_vocab} ids, sha256 {tokenizer.sha256[:12]}…, written to {path}")


if __name__ == "__main__":
    run_script(main)
