"""What exported files say of a tokenizer, be it one of ours or one that came with an adopted model."""

import json
from typing import NamedTuple

from gguf import TokenType

from minigpt.common.errors import UserError
from minigpt.corpus.chat import forbidden_ids
from minigpt.formats.vocabulary import (
    CHAT_TEMPLATE,
    LLAMA_CPP_NAMES,
    gguf_vocabulary,
    inexact_outside,
    special_names,
    tokenizer_json,
)
from minigpt.huggingface_tokenizer import HuggingFaceTokenizer

ENGLISH_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
AFTER_NUMBERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Names of splitting patterns in llama.cpp: those of our tokenizers, of Qwen and of Llama 3.
KNOWN_SPLITTINGS = LLAMA_CPP_NAMES | {
    ENGLISH_ENDINGS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + AFTER_NUMBERS: "qwen2",
    ENGLISH_ENDINGS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + AFTER_NUMBERS: "llama-bpe",
}


class ExportedTokenizer(NamedTuple):
    """A tokenizer, as the files of an export need it.

    content: of tokenizer.json; names: {"bos_token": text …} of those that there are; bos_id: None where there is none;
    adds_bos: whether each text begins with it; stop_ids: what ends an answer, the EOS first; pad_id; forbidden: ids
    that our own engine never samples; chat_template: None for a base model; is_ours; n_vocab: number of ids.
    """

    content: dict
    names: dict
    bos_id: int | None
    adds_bos: bool
    stop_ids: list
    pad_id: int
    forbidden: set
    chat_template: str | None
    is_ours: bool
    n_vocab: int


def describe_for_export(tokenizer, stage):
    """The `ExportedTokenizer` of a model of a stage ("pretrain" or "sft")."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        bundle = json.loads(tokenizer.vocabulary)
        content = json.loads(bundle["tokenizer"])
        ids = {text: token_id for token_id, text in tokenizer.special_texts.items()}
        eos_id = ids.get(tokenizer.token_names.get("eos_token"), tokenizer.eot_id)
        return ExportedTokenizer(
            content,
            tokenizer.token_names,
            ids.get(tokenizer.token_names.get("bos_token")),
            bool(tokenizer.prefix_ids),
            [eos_id, *(token_id for token_id in tokenizer.stop_ids if token_id != eos_id)],
            tokenizer.pad_id,
            forbidden_ids(tokenizer, stage),
            tokenizer.chat_template,
            False,
            tokenizer.n_vocab,
        )
    is_chat, texts = stage == "sft", special_names(tokenizer)
    eot, pad = texts[tokenizer.eot_id], texts[tokenizer.pad_id]
    return ExportedTokenizer(
        tokenizer_json(tokenizer),
        {"bos_token": eot, "eos_token": eot, "pad_token": pad},
        tokenizer.eot_id,
        False,
        [tokenizer.eot_id],
        tokenizer.pad_id,
        forbidden_ids(tokenizer, stage),
        CHAT_TEMPLATE if is_chat else None,
        True,
        tokenizer.n_vocab,
    )


def list_gguf_tokens(tokenizer, n_rows):
    """(tokens, their types, merges, name of the splitting pattern) of a GGUF file with n_rows rows of the embedding.

    Raises UserError for an adopted tokenizer that llama.cpp does not know.
    """
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return gguf_vocabulary(tokenizer, n_rows)
    content = json.loads(json.loads(tokenizer.vocabulary)["tokenizer"])
    splitting = name_splitting(content["pre_tokenizer"])
    if splitting is None:
        raise UserError(
            f"the tokenizer {tokenizer.name} splits text in a way that llama.cpp has no name for here; --format=hf "
            "takes it as it is"
        )
    tokens, types = [f"[PAD{i}]" for i in range(n_rows)], [TokenType.UNUSED] * n_rows
    for text, token_id in content["model"]["vocab"].items():
        tokens[token_id], types[token_id] = text, TokenType.NORMAL
    for token in content["added_tokens"]:
        is_special = token["id"] in tokenizer.special_texts
        tokens[token["id"]] = token["content"]
        types[token["id"]] = TokenType.CONTROL if is_special else TokenType.USER_DEFINED
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
    return tokens, list(map(int, types)), merges, splitting


def name_splitting(splitter):
    """llama.cpp's name of how a tokenizer.json's `pre_tokenizer` splits text; None where it is not known."""
    parts = splitter["pretokenizers"] if splitter["type"] == "Sequence" else [splitter]
    *splits, last = parts
    if last["type"] != "ByteLevel" or last.get("add_prefix_space") or any(part["type"] != "Split" for part in splits):
        return None
    by_regex = last.get("use_regex", True)
    if by_regex and not splits:
        return "gpt-2"
    return KNOWN_SPLITTINGS.get(splits[0]["pattern"].get("Regex")) if len(splits) == 1 and not by_regex else None


def explain_inexactness(tokenizer):
    """A sentence about texts that llama.cpp tokenizes otherwise; None where there are none."""
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return inexact_outside(tokenizer)
    content = json.loads(json.loads(tokenizer.vocabulary)["tokenizer"])
    if not content.get("normalizer"):
        return None
    return (
        f"tokenizer {tokenizer.name} normalizes texts ({content['normalizer']['type']}) and llama.cpp does not, so "
        "texts that are not in this form get other tokens there"
    )
