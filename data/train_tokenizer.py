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
from minigpt.tokenizer import (
    QWEN2_PATTERN,
    SPECIAL_NAMES,
    find_last_merge,
    format_vocabulary,
    load_tokenizer,
    map_bytes_to_symbols,
)

BYTE_TOKENS = 256
SPECIAL_TOKENS = len(SPECIAL_NAMES)
MAX_VOCAB = 2**16
# The pieces of QWEN2_PATTERN are split again before training: runs of Han characters are separate from Latin words, and
# digits and marks are single, so that a token neither crosses a sentence's end nor joins digits. Encoding needs no such
# split: no token joins what it separates.
FINER_PATTERN = r"\p{Han}+| ?[^\s\p{Han}\p{N}\p{P}\p{S}]+|\p{N}|[\p{P}\p{S}]|\s+"
SPARE_SHARE = 0.25  # of the tokens that are trained; some of them cross characters and are left out


def train_ranks(texts, n_ranks, max_token_chars):
    """{token bytes: rank} of a byte-level BPE trained on an iterator of texts; at most n_ranks tokens."""
    bpe = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(p), behavior="isolated") for p in (QWEN2_PATTERN, FINER_PATTERN)]
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    byte_of = {symbol: byte for byte, symbol in map_bytes_to_symbols().items()}
    trainer = trainers.BpeTrainer(
        vocab_size=int(n_ranks * (1 + SPARE_SHARE)),
        min_frequency=2,
        initial_alphabet=list(byte_of),
        max_token_length=3 * max_token_chars,  # in bytes; a Han character has 3 in UTF-8
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    trained = bpe.get_vocab()
    return choose_tokens([bytes(byte_of[c] for c in token) for token in sorted(trained, key=trained.get)], n_ranks)


def choose_tokens(trained, n_ranks):
    """{token bytes: rank} of at most n_ranks tokens, the first of `trained` (bytes, in order; the 256 bytes first).

    Left out are those that contain a part of a character beside another. Where merges reached a token only through
    such ones, they now reach it through its characters and its beginnings, which are added before it.
    """
    ranks = {}

    def add(token):
        if token not in ranks and (len(token) == 1 or find_last_merge(token, ranks)):
            ranks[token] = len(ranks)
        return token in ranks

    for token in trained:
        characters = whole_characters(token)
        if (characters or is_part_of_character(token)) and not add(token) and characters:
            encoded = [character.encode() for character in characters]
            for one in encoded:
                for n_bytes in range(2, len(one) + 1):
                    add(one[:n_bytes])
            for n_characters in range(2, len(encoded) + 1):
                add(b"".join(encoded[:n_characters]))
    return {token: rank for token, rank in ranks.items() if rank < n_ranks}


def whole_characters(token):
    """The text of a token's bytes; "" where they are no whole characters."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return ""


def is_part_of_character(token):
    """Whether no character begins behind the first byte of a token that is no whole characters."""
    return all(0x80 <= byte < 0xC0 for byte in token[1:])


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
        write_atomic(path, lambda file: file.write(format_vocabulary(ranks, specials, QWEN2_PATTERN)))
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
