"""A tokenizer in the files of other programs: Hugging Face's tokenizer.json, and the vocabulary of a GGUF file.

Both encode by merges: of all pairs of neighbouring tokens, the one that stands first in the list of merges is merged
first. tiktoken has no such list. It merges the pair whose union has the lowest id.
"""

from gguf import TokenType

from minigpt.corpus.chat import write_chat_template
from minigpt.huggingface_tokenizer import map_bytes_to_symbols
from minigpt.tokenizer import GPT2_PATTERN, QWEN2_PATTERN

MARK_NAME = "<|answer|>"  # the answer mark's spelling in exported files, where a `##` of a text is two `#`
CHAT_TEMPLATE = write_chat_template(MARK_NAME, ends_last_answer=True)
# What llama.cpp calls the splitting patterns that it has (tokenizer.ggml.pre).
LLAMA_CPP_NAMES = {GPT2_PATTERN: "gpt-2", QWEN2_PATTERN: "qwen2"}


def has_tokens_without_merges(tokenizer):
    """Whether a `Tokenizer` has tokens that only encode a piece of text which equals them."""
    return len(tokenizer.merges) < sum(len(token) > 1 for token in tokenizer.ranks)


def special_names(tokenizer):
    """{id: how it is written in exported files} of a `Tokenizer`'s three special ids, ascending."""
    names = {tokenizer.eot_id: "<|endoftext|>", tokenizer.pad_id: "<|pad|>", tokenizer.answer_id: MARK_NAME}
    return dict(sorted(names.items()))


def symbols_by_id(tokenizer):
    """{id: text} of all tokens, ascending: special ones by name, others with a printable symbol for each byte."""
    symbols = map_bytes_to_symbols()
    texts = {i: "".join(map(symbols.get, tokenizer.token_bytes(i))) for i in range(tokenizer.n_vocab)}
    return {i: text for i, text in (texts | special_names(tokenizer)).items() if text}


def merge_lines(tokenizer):
    """["left right"] of a `Tokenizer`'s merges, in symbols."""
    symbols = map_bytes_to_symbols()
    return [" ".join("".join(map(symbols.get, part)) for part in pair) for pair in tokenizer.merges]


def tokenizer_json(tokenizer):
    """The content (dict) of a tokenizer.json that encodes and decodes as a `Tokenizer` does."""
    split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": name, **plain, "special": True} for i, name in special_names(tokenizer).items()
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, by_bytes]},
        "post_processor": None,
        "decoder": by_bytes,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": has_tokens_without_merges(tokenizer),
            "vocab": {text: i for i, text in symbols_by_id(tokenizer).items()},
            "merges": merge_lines(tokenizer),
        },
    }


def gguf_vocabulary(tokenizer, n_rows):
    """(tokens, their types, merges, name of the splitting pattern) of a GGUF file, for n_rows rows of the embedding.

    Tokens are texts, types are ints of gguf's TokenType, merges are "left right". Ids without a token are [PAD<id>], as
    llama.cpp's own converter names them. The pattern's name is llama.cpp's; where it has no such pattern, see
    `inexact_outside`.
    """
    texts, specials = symbols_by_id(tokenizer), special_names(tokenizer)
    tokens = [texts.get(i, f"[PAD{i}]") for i in range(n_rows)]
    types = [
        TokenType.CONTROL if i in specials else TokenType.NORMAL if i in texts else TokenType.UNUSED
        for i in range(n_rows)
    ]
    return tokens, list(map(int, types)), merge_lines(tokenizer), LLAMA_CPP_NAMES.get(tokenizer.pattern, "qwen2")


def inexact_outside(tokenizer):
    """None where llama.cpp encodes as a `Tokenizer` does; else a sentence that says how far it does not."""
    if tokenizer.pattern in LLAMA_CPP_NAMES and not has_tokens_without_merges(tokenizer):
        return None
    return (
        f"tokenizer {tokenizer.name} encodes by an older pattern that llama.cpp does not know: a Hugging Face folder "
        "has the pattern and is exact, a GGUF file takes the nearest (qwen2), which differs at runs of spaces and line "
        "breaks (in 1 of 3,696 paragraphs of Wikipedia, in 8% of odd strings); train a tokenizer with "
        "data/train_tokenizer.py for an exact one"
    )
