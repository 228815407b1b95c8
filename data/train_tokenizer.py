"""Trains a byte-level BPE tokenizer on your own articles and writes it as a `.tiktoken` file.

    python data/train_tokenizer.py --input_dir=my_wiki --tokenizer_vocab=8192
    python data/prepare.py --input_dir=my_wiki --tokenizer=data/tokenizer.tiktoken

GPT-2's tokenizer takes about 2 tokens for a Chinese character, one of your own well under 1. Its smaller vocabulary
also makes a small model's output layer, and so its training, many times faster.
"""

import itertools
import os
import sys
from collections import Counter, deque
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
from minigpt.tokenizer import QWEN2_PATTERN, SPECIAL_NAMES, format_vocabulary, load_tokenizer

BYTE_TOKENS = 256
SPECIAL_TOKENS = len(SPECIAL_NAMES)
MAX_VOCAB = 2**16
MAX_CHARACTERS = 20_000  # that the merges are trained on, the most frequent of a corpus
MIN_COUNT = 2  # of a character or a pair that becomes a token
# The pieces of QWEN2_PATTERN are split again before training: runs of Han characters are separate from Latin words, and
# digits and marks are single, so that a token neither crosses a sentence's end nor joins digits. Encoding needs no such
# split: no token joins what it separates.
FINER_PATTERN = r"\p{Han}+| ?[^\s\p{Han}\p{N}\p{P}\p{S}]+|\p{N}|[\p{P}\p{S}]|\s+"


def train_ranks(texts, n_ranks, max_token_chars):
    """{token bytes: rank} of a byte-level BPE trained on an iterator of texts; at most n_ranks tokens.

    Tokens are single bytes, beginnings of one character, and whole characters of one kind. Merges are trained on
    characters, since merges of bytes would also join parts of two.
    """
    counts = Counter()

    def counted():
        for text in texts:
            counts.update(text)
            yield text

    bpe = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(p), behavior="isolated") for p in (QWEN2_PATTERN, FINER_PATTERN)]
    bpe.pre_tokenizer = pre_tokenizers.Sequence(splits)
    max_bytes = 3 * max_token_chars  # a Han character has 3 in UTF-8
    trainer = trainers.BpeTrainer(
        vocab_size=n_ranks + MAX_CHARACTERS,
        min_frequency=MIN_COUNT,
        limit_alphabet=MAX_CHARACTERS,
        max_token_length=max_bytes,
        show_progress=False,
    )
    bpe.train_from_iterator(counted(), trainer)
    trained = bpe.get_vocab()
    merged = [token for token in sorted(trained, key=trained.get) if len(token) > 1]
    return rank_tokens(counts, [token for token in merged if len(token.encode()) <= max_bytes], n_ranks)


def rank_tokens(counts, merged, n_ranks):
    """{token bytes: rank} of the 256 bytes, the characters of `counts` ({character: count}) and the merged tokens.

    A merge is at most as frequent as its rarest character, so it comes behind all characters that are as frequent as
    that. A character comes behind its beginnings: the first two of its bytes, the first three. Merges then reach every
    token.
    """
    ranks = {bytes([byte]): byte for byte in range(BYTE_TOKENS)}
    characters = deque(character for character, count in counts.most_common() if count >= MIN_COUNT)
    for token in [*merged, ""]:
        rarest = min((counts[character] for character in token), default=MIN_COUNT)
        while characters and counts[characters[0]] >= rarest:
            character = characters.popleft().encode()
            for n_bytes in range(2, len(character) + 1):
                ranks.setdefault(character[:n_bytes], len(ranks))
        if token:
            ranks.setdefault(token.encode(), len(ranks))
    return dict(itertools.islice(ranks.items(), n_ranks))


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
