"""Tokenizers: GPT-2's byte-pair encoding, or one that is trained on your own corpus, both by tiktoken.

Three ids are special, and each tokenizer has its own:
  EOT     ends every article and every answer
  PAD     fills a row behind EOT; never encodes text
  answer  the answer mark between a question and its answer, shown as `##`
"""

import base64
import codecs
import hashlib
import itertools
import math
import re
from functools import cached_property
from pathlib import Path

import numpy as np
import tiktoken

from minigpt.common.errors import UserError
from minigpt.common.files import PROJECT
from minigpt.huggingface_tokenizer import HuggingFaceTokenizer, bundle_folder

ANSWER_TEXT = "##"
GPT2_PATH = PROJECT / "data" / "gpt2.tiktoken"
GPT2_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
# GPT-2 splits text into these pieces; no token spans two of them (Radford et al. 2019).
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
# Trained tokenizers split as Qwen2 does, so that other programs can, too. It is written as in llama.cpp, which has no
# (?i:…) and no letter ſ (long s) among the English endings.
QWEN2_PATTERN = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_NAMES = ("eot", "pad", "answer")
# tiktoken's regular expression overflows its stack on a million spaces in a row.
MAX_SPACES = 1000
# Characters that a process encodes as arrays before it loads the compiled encoding, which takes about as long.
COMPILE_CHARS = 2_000_000
LONG_SPACES = re.compile(rf"\s{{{MAX_SPACES},}}")


def bounded_spaces(text):
    """The text with every run of MAX_SPACES or more spaces replaced by one space."""
    return LONG_SPACES.sub(" ", text) if len(text) > MAX_SPACES else text


class Tokenizer:
    """A byte-pair tokenizer and its three special ids.

    name: "gpt2", or the trained file's name; vocabulary: the bytes of its `.tiktoken` file; sha256: of these bytes,
    by which data and checkpoints are matched; n_vocab: number of ids; eot_id, pad_id, answer_id: the special ids;
    special_texts: {id: how it is written} of those that stand for no text; pattern: the regular expression that splits
    a text into pieces; ranks: {bytes: id} of the tokens that a text is encoded with.
    """

    def __init__(self, name, vocabulary):
        """`vocabulary`: the bytes of a `.tiktoken` file. Raises UserError when they are no such file."""
        self.name, self.vocabulary = name, vocabulary
        self.sha256 = hashlib.sha256(vocabulary).hexdigest()
        self.is_gpt2 = self.sha256 == GPT2_SHA256
        ranks, specials, pattern = parse_vocabulary(vocabulary, name)
        if self.is_gpt2:
            # PAD is the first id that the vocabulary does not use; `##` is one of its ordinary tokens.
            specials, pattern = {"eot": 50256, "pad": 50257, "answer": 2235}, GPT2_PATTERN
        missing = [s for s in SPECIAL_NAMES if s not in specials]
        if missing or not pattern:
            what = ", ".join(missing) or "its pattern"
            raise UserError(f"tokenizer {name} has no line for {what}; make it with data/train_tokenizer.py")
        self.eot_id, self.pad_id, self.answer_id = (specials[s] for s in SPECIAL_NAMES)
        self.n_vocab = max(max(ranks.values()), *specials.values()) + 1
        self._bytes = {i: token for token, i in ranks.items() if i not in (self.eot_id, self.pad_id)}
        shown = {"<|endoftext|>": self.eot_id, "<|pad|>": self.pad_id}
        if self.answer_id not in self._bytes:
            shown["<|answer|>"] = self.answer_id
        self.special_texts = {token_id: text for text, token_id in shown.items()}
        mark = self._bytes.get(self.answer_id)
        self.pattern, self.ranks = pattern, drop_tokens_through(mark, ranks) if mark else ranks
        self._bytes[self.answer_id] = ANSWER_TEXT.encode()
        # What stands before a look-ahead is faster as a group, which tiktoken's regular expressions match at once.
        before, look_ahead, behind = pattern.partition(r"|\s+(?!\S)")
        pattern = f"(?:{before}){look_ahead}{behind}" if look_ahead else pattern
        try:
            self._encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=self.ranks, special_tokens=shown)
        except ValueError:
            raise UserError(
                f"tokenizer {name} is damaged: its pattern is no regular expression; train it again"
            ) from None

        self._compiled, self._array_chars = None, 0  # a CompiledEncoder, after COMPILE_CHARS

    def encode(self, text):
        """Ids of plain text, as a list. They contain no special id: a `##` in the text is encoded as two `#`."""
        return self._encoding.encode_ordinary(bounded_spaces(text))

    def encode_array(self, text):
        """The same ids as an array of uint16 (uint32 for a vocabulary of more than 65,536 ids)."""
        return self._encode_bounded(bounded_spaces(text))

    def _encode_bounded(self, text):
        self._array_chars += len(text)
        if self._array_chars > COMPILE_CHARS >= self._array_chars - len(text):
            self._compile()
        ids = self._compiled.encode(text) if self._compiled else None
        if ids is None:
            # The special tokens' names, such as <|endoftext|>, are ordinary text here.
            ids = self._encoding.encode_to_numpy(text, disallowed_special=())
        return ids.astype(np.uint16 if self.n_vocab <= 2**16 else np.uint32)

    def _compile(self):
        from minigpt.compiled_encoding import CompiledEncoder  # numba takes a moment to load

        if self.pattern in (GPT2_PATTERN, QWEN2_PATTERN):
            encoder = CompiledEncoder(self.ranks, self.pattern == QWEN2_PATTERN)
            self._compiled = encoder if encoder.is_exact else None

    def encode_joined(self, texts):
        """(ids of all texts, concatenated, and how many each has), as `encode_array` gives them, by one call.

        The texts are joined by newlines, at which the splitting patterns split. Returns None where that is impossible:
        a text has a newline, begins or ends with a space, or a token merges a newline with what is before it.
        """
        if any(not text or text != text.strip() for text in texts):
            return None
        joined = "\n".join(map(bounded_spaces, texts))  # not all at once: a search in a short text is left out
        ids = self._encode_bounded(joined)
        is_newline = ids == self._encoding.encode_single_token("\n")
        ends = np.flatnonzero(is_newline)
        if len(ends) != len(texts) - 1 or joined.count("\n") != len(ends):
            return None
        lengths = np.diff(ends, prepend=-1, append=len(ids)) - 1
        return ids[~is_newline], lengths

    @cached_property
    def token_lengths(self):
        """(n_vocab,) number of bytes that each id stands for, 0 for EOT and PAD."""
        return np.array([len(self.token_bytes(i)) for i in range(self.n_vocab)])

    @cached_property
    def merges(self):
        """[(left bytes, right bytes)] by which programs that have no ranks encode as this does, first merges first.

        A token has one pair, the only one that is ever merged to it. One that merges do not reach has none.
        """
        tokens = sorted(self.ranks, key=self.ranks.get)
        return [pair for token in tokens if (pair := find_last_merge(token, self.ranks))]

    def encode_prompt(self, text, answer=False):
        """Ids of a prompt.

        A `##` at its end, with or without spaces before it, is the answer mark. answer: append the mark if the prompt
        has none.
        """
        stripped = text.strip() if answer else text.rstrip()
        if stripped.endswith(ANSWER_TEXT):
            return [*self.encode(stripped[: -len(ANSWER_TEXT)].rstrip()), self.answer_id]
        return [*self.encode(stripped), self.answer_id] if answer else self.encode(text)

    def encode_marked(self, text):
        """Ids of a text in which every `##` is the answer mark and every `<|endoftext|>` an EOT."""
        ids = []
        for i, turn in enumerate(text.split(self.special_texts[self.eot_id])):
            *parts, last = turn.split(ANSWER_TEXT)
            ids += [self.eot_id] if i else []
            ids += [token_id for part in parts for token_id in self.encode_prompt(part, answer=True)]
            ids += self.encode(last)
        return ids

    def token_bytes(self, token_id):
        """Bytes that one id stands for; b"" for EOT, PAD and ids that the vocabulary does not have."""
        return self._bytes.get(token_id, b"")

    def decode(self, ids):
        """Text of ids. Incomplete characters, EOT and PAD are left out."""
        decoder = StreamDecoder(self)
        return "".join(decoder.feed(i) for i in ids)

    def special_ids(self):
        """{"eot": id, "pad": id, "answer": id}"""
        return {"eot": self.eot_id, "pad": self.pad_id, "answer": self.answer_id}


class StreamDecoder:
    """Decodes ids one at a time to whole characters; bytes that are no UTF-8 are dropped."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        # The incremental decoder holds back incomplete characters; "ignore" drops bytes that are no UTF-8.
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")

    def feed(self, token_id):
        """The text that this id completes; "" while a character is incomplete."""
        text = self._decoder.decode(self._tokenizer.token_bytes(int(token_id)))
        return text.replace("\ufffd", "")  # which text may contain itself


def find_last_merge(token, ranks):
    """The two tokens that byte-pair encoding merges last when it encodes the bytes of `token`.

    None for a single byte, and for a token that merges do not reach. In any text this pair is the only one that is
    ever merged to the token: until it exists, no merge has crossed its borders, so within them all goes as here.
    """
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [left + right for left, right in itertools.pairwise(parts)]
        i = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], math.inf))
        if pairs[i] not in ranks:
            return None
        parts[i : i + 2] = [pairs[i]]
    return tuple(parts) if len(parts) == 2 else None


def drop_tokens_through(part, ranks):
    """The ranks ({bytes: rank}) without the token `part` and without those that merges reach only through it."""
    others = {token: rank for token, rank in ranks.items() if token != part}
    return {
        token: rank for token, rank in others.items() if part not in token or find_last_merge(token, others) is not None
    }


def parse_vocabulary(vocabulary, name):
    """({bytes: id}, {special name: id}, pattern or None) of a `.tiktoken` file's bytes. Raises UserError.

    A line is `base64 id`; in trained tokenizers the lines `#special NAME ID` and `#pattern REGEX` follow.
    """
    ranks, specials, pattern = {}, {}, None
    for number, line in enumerate(vocabulary.decode("utf-8", errors="replace").splitlines(), start=1):
        try:
            if line.startswith("#pattern "):
                pattern = line.removeprefix("#pattern ")
            elif line.startswith("#special "):
                _, special, token_id = line.split()
                specials[special] = int(token_id)
            elif line.strip():
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise UserError(f"tokenizer {name}, line {number}: not a line of a .tiktoken file") from None
    if len(ranks) < 256:
        raise UserError(f"tokenizer {name}: not a .tiktoken file (it has no token for some of the 256 bytes)")
    return ranks, specials, pattern


def format_vocabulary(ranks, specials, pattern):
    """The bytes of a trained `.tiktoken` file; the inverse of `parse_vocabulary`."""
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in sorted(ranks.items(), key=lambda r: r[1])]
    lines += [f"#special {name} {specials[name]}" for name in SPECIAL_NAMES]
    return ("\n".join([*lines, f"#pattern {pattern}"]) + "\n").encode()


def load_tokenizer(name_or_path="gpt2", name=None):
    """The tokenizer "gpt2", or that of a file (`.tiktoken`, or the JSON beside rows), whose name is the file's or
    `name`, or that of a Hugging Face folder.

    Never uses the network. Raises UserError when the file does not exist or is damaged.
    """
    is_gpt2 = name_or_path == "gpt2"
    if not is_gpt2 and Path(name_or_path).is_dir():
        return HuggingFaceTokenizer(Path(name_or_path).resolve().name, bundle_folder(name_or_path))
    path = GPT2_PATH if is_gpt2 else Path(name_or_path)
    try:
        vocabulary = path.read_bytes()
    except OSError:
        raise UserError(f"tokenizer {path} is not there; train one with: python data/train_tokenizer.py") from None
    if is_gpt2 and hashlib.sha256(vocabulary).hexdigest() != GPT2_SHA256:
        raise UserError(
            f"{path} is damaged (its sha256 is not GPT-2's); restore it with: git checkout data/{path.name}"
        )
    return load_vocabulary("gpt2" if is_gpt2 else name or path.name, vocabulary)


def load_vocabulary(name, vocabulary):
    """The `Tokenizer` or `HuggingFaceTokenizer` whose `vocabulary` (bytes) it is. Raises UserError for other bytes."""
    is_json = vocabulary.startswith(b"{")  # no line of a .tiktoken file begins so
    return (HuggingFaceTokenizer if is_json else Tokenizer)(name, vocabulary)
