"""Tokenizers of others: byte-level BPE, as Hugging Face folders have it, and their chat templates.

A tokenizer of ours marks an answer by one id; these write a chat by a template (Jinja), in which the mark is the text
that the template puts before an answer, a list of ids. Neither needs transformers, and both give what it gives.
"""

import hashlib
import json
import re
from datetime import datetime
from functools import cached_property
from pathlib import Path

import jinja2
import jinja2.ext
import jinja2.sandbox
import numpy as np
import tokenizers

from minigpt.common.errors import UserError, first_line

TOKENIZER_JSON, TEMPLATE_FILE = "tokenizer.json", "chat_template.jinja"
TOKEN_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")  # what templates may name
SPLIT_MARK = "\ufdd0"  # breaks up a special token's name in a message; no character of any text
# Texts that stand for messages when a template is examined.
QUESTION, ANSWER, EARLIER = "a question of the user", "the answer to it", "an earlier message"


class GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`, which marks an answer in some templates: the text in it."""

    tags = frozenset({"generation"})

    def parse(self, parser):
        """The statements of the block."""
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(["name:endgeneration"], drop_needle=True)).set_lineno(line)


def compile_template(text):
    """The Jinja template of a chat, in a sandbox, with what transformers gives to templates. Raises TemplateError."""

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    extensions = [jinja2.ext.loopcontrols, GenerationBlock]
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=extensions
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(text)


def map_bytes_to_symbols():
    """{byte: symbol} of the printable characters by which byte-level BPE writes bytes (GPT-2's encoder.py)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def id_type(tokenizer):
    """The numpy type of a tokenizer's ids in rows."""
    return np.uint16 if max(tokenizer.n_vocab, tokenizer.pad_id + 1) <= 2**16 else np.uint32


class HuggingFaceTokenizer:
    """A tokenizer of a Hugging Face folder. It has the methods of `minigpt.tokenizer.Tokenizer`.

    name: of the folder; vocabulary: bytes of a JSON that holds all of it, which checkpoints and row folders carry;
    sha256: of these bytes; n_vocab: number of ids; eot_id: the end of a turn, or of a text where there is no chat
    template; pad_id: an id that no text and no chat has; stop_ids: all that end an answer; chat_template: text, None
    for a base model; special_texts: {id: how it is written} of ids that stand for no text.
    """

    is_gpt2 = False

    def __init__(self, name, vocabulary):
        """`vocabulary`: as `bundle_folder` returns it. Raises UserError where it is no tokenizer that can be used."""
        self.name, self.vocabulary = name, vocabulary
        self.sha256 = hashlib.sha256(vocabulary).hexdigest()
        bundle = json.loads(vocabulary)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(bundle["tokenizer"])
        except Exception as error:  # the library raises plain Exceptions
            raise UserError(f"{name}: {TOKENIZER_JSON} is damaged ({first_line(error)})") from None
        if type(self._tokenizer.decoder) is not tokenizers.decoders.ByteLevel:
            kind = type(self._tokenizer.decoder or self._tokenizer.model).__name__
            raise UserError(
                f"{name}: {TOKENIZER_JSON} is no byte-level BPE (it has {kind}); tokenizers such as those of Qwen, "
                "GPT-2 and Llama 3 can be used"
            )
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # in a text, the name of a special token is text

        # Special tokens.
        eos_text = next((self._tokenizer.id_to_token(token_id) for token_id in bundle["stop_ids"][:1]), None)
        tokens = {**bundle["tokens"], "eos_token": bundle["tokens"]["eos_token"] or eos_text}
        self.token_names = {key: text for key, text in tokens.items() if text is not None}
        known = [text for text in self.token_names.values() if self._tokenizer.token_to_id(text) is not None]
        self._tokenizer.add_special_tokens(known)  # some files do not say that they are special
        self._added = self._tokenizer.get_added_tokens_decoder()
        specials = {i: token for i, token in self._added.items() if token.special}
        self.special_texts = {i: token.content for i, token in specials.items()}
        self._special_ids = {text: token_id for token_id, text in self.special_texts.items()}
        patterns = [
            r"\s*" * token.lstrip + re.escape(token.content) + r"\s*" * token.rstrip
            for token in sorted(specials.values(), key=lambda token: -len(token.content))
        ]
        self._special_pattern = re.compile("|".join(patterns) or r"(?!)")
        self.n_vocab = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

        # What the chat template says.
        self.chat_template = bundle["chat_template"]
        self._template = None
        if self.chat_template is not None:
            try:
                self._template = compile_template(self.chat_template)
            except jinja2.TemplateError as error:
                raise UserError(f"{name}: the chat template cannot be read ({first_line(error)})") from None
        eos_id = self._special_ids.get(self.token_names.get("eos_token"))
        self.eot_id = self._end_of_turn() if self._template else eos_id
        if self.eot_id is None:
            raise UserError(f"{name}: {TOKENIZER_JSON} has no eos_token; name one in tokenizer_config.json")
        self.stop_ids = sorted({self.eot_id, *bundle["stop_ids"], *([] if eos_id is None else [eos_id])})
        self.pad_id = self._choose_pad()
        with_prefix = self._tokenizer.encode("a").ids
        self.prefix_ids = with_prefix[: with_prefix.index(self.encode("a")[0])]  # what begins a text: BOS, or nothing

    def _end_of_turn(self):
        """The id of the special token that a chat's answer ends with; that of eos_token where there is none."""
        text = self._render([("user", QUESTION), ("assistant", ANSWER)], False)
        match = self._special_pattern.match(text, text.rfind(ANSWER) + len(ANSWER))
        return self._special_ids.get(match[0].strip() if match else self.token_names.get("eos_token"))

    def _choose_pad(self):
        """The pad_token where it is neither EOT nor BOS, else a special token that no chat has, else the first id that
        the vocabulary does not have."""
        named = {key: self._special_ids.get(text) for key, text in self.token_names.items()}
        if named.get("pad_token") not in (None, self.eot_id, named.get("bos_token")):
            return named["pad_token"]
        used = {*self.stop_ids, *named.values()}
        if self._template:
            chat = [("system", EARLIER), ("user", QUESTION), ("assistant", ANSWER), ("user", QUESTION)]
            used |= set(self.encode_marked(self._render(chat, True)))
        free = [i for i in self.special_texts if i not in used]
        free.sort(key=lambda i: not re.search("pad|reserved|unused", self.special_texts[i].lower()))
        return free[0] if free else self.n_vocab

    # Text

    def encode(self, text):
        """Ids of plain text, as a list. They contain no special id."""
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError):  # a surrogate without its other half
            return self.encode(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))

    def encode_array(self, text):
        """The same ids as an array of uint16 (uint32 for a vocabulary of more than 65,536 ids)."""
        return np.array(self.encode(text), dtype=id_type(self))

    def encode_joined(self, texts):
        """(ids of all texts, concatenated, and how many each has), as `encode_array` gives them."""
        each = [self.encode_array(text) for text in texts]
        return np.concatenate(each), np.array([len(ids) for ids in each], dtype=np.int64)

    def encode_prompt(self, text, answer=False):
        """Ids of a prompt. answer: the text is a question, and its ids are those of a chat up to the answer."""
        return (
            self.chat_ids([{"role": "user", "content": text.strip()}])
            if answer
            else self.prefix_ids + self.encode(text)
        )

    def encode_marked(self, text):
        """Ids of a text in which the names of special tokens are these tokens. SPLIT_MARK is left out."""
        ids, start = [], 0
        for match in self._special_pattern.finditer(text):
            ids += [
                *self.encode(text[start : match.start()].replace(SPLIT_MARK, "")),
                self._special_ids[match[0].strip()],
            ]
            start = match.end()
        return ids + self.encode(text[start:].replace(SPLIT_MARK, ""))

    @cached_property
    def _bytes(self):
        """[bytes of each id], b"" for special tokens and ids that the vocabulary does not have."""
        found = [b""] * self.n_vocab
        table = {ord(symbol): byte for byte, symbol in map_bytes_to_symbols().items()}
        for token, token_id in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if token_id in self._added:
                found[token_id] = b"" if self._added[token_id].special else token.encode()
                continue
            try:
                found[token_id] = token.translate(table).encode("latin-1")
            except UnicodeEncodeError:  # no byte's character: the token is plain text
                found[token_id] = token.encode()
        return found

    def token_bytes(self, token_id):
        """Bytes that one id stands for; b"" for special tokens and ids that the vocabulary does not have."""
        return self._bytes[token_id] if 0 <= token_id < self.n_vocab else b""

    @cached_property
    def token_lengths(self):
        """(n_vocab,) number of bytes that each id stands for."""
        return np.array(list(map(len, self._bytes)))

    def decode(self, ids):
        """Text of ids. Incomplete characters and special tokens are left out."""
        data = b"".join(self.token_bytes(int(token_id)) for token_id in ids)
        return data.decode("utf-8", errors="ignore").replace("\ufffd", "")

    # Chats

    @property
    def prompt_template(self):
        """The chat template for others to write prompts with: as here, answers begin without thoughts."""
        return self.chat_template and "{%- set enable_thinking = false -%}\n" + self.chat_template

    def _render(self, pairs, add_generation_prompt):
        """The template's text of [(role, text)]. Raises UserError where the template refuses them."""
        messages = [{"role": role, "content": text} for role, text in pairs]
        try:
            return self._template.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=add_generation_prompt,
                enable_thinking=False, **self.token_names,
            )  # fmt: skip
        except Exception as error:  # a template is a program of others
            raise UserError(f"the chat template of {self.name} refuses these messages ({first_line(error)})") from None

    def chat_ids(self, messages, answer=""):
        """Ids of a chat [{"role", "content"}] up to the answer that follows it, and of (the beginning of) that answer.

        They are what transformers' `apply_chat_template` gives with add_generation_prompt and enable_thinking=False,
        but the name of a special token in a message is text. Raises UserError where the template refuses the chat, or
        where there is no template.
        """
        if self._template is None:
            raise UserError(
                f"tokenizer {self.name} has no chat template; put one into its folder as {TEMPLATE_FILE}, by which "
                "questions and answers are written"
            )

        def break_up(match):  # the name of a special token in a message
            name = match[0].strip()
            return match[0].replace(name, name[0] + SPLIT_MARK + name[1:])

        pairs = [(one["role"], self._special_pattern.sub(break_up, one["content"])) for one in messages]
        return self.encode_marked(self._render(pairs, True)) + self.encode(answer)

    @cached_property
    def marks(self):
        """{"answer": the answer mark, "question": [what stands before a question, what behind it]}: lists of ids.

        The mark is what the template adds with add_generation_prompt or, where it adds nothing, what stands between
        question and answer. Raises UserError where no special token is in it, by which it is found in a row.
        """
        single = self._render([("user", QUESTION)], True)
        without_mark = self._render([("user", QUESTION)], False)
        later = self._render([("user", EARLIER), ("assistant", ANSWER), ("user", QUESTION)], True)
        if any(text.count(QUESTION) != 1 for text in (single, without_mark, later)):
            raise UserError(f"the chat template of {self.name} does not write a question as it is")
        behind = single.split(QUESTION)[1]
        has_mark = single.startswith(without_mark) and len(single) > len(without_mark)
        mark = single[len(without_mark) :] if has_mark else behind
        mark_ids, behind_ids = self.encode_marked(mark), self.encode_marked(behind)
        if not set(mark_ids) & set(self.special_texts) or behind_ids[len(behind_ids) - len(mark_ids) :] != mark_ids:
            raise UserError(f"the chat template of {self.name} marks an answer by no special token, so it cannot train")
        # Before a first question and before a later one stand the same ids, unless a chat begins with more.
        before = [self.encode_marked(text.split(QUESTION)[0]) for text in (single, later)]
        same = 0
        while same < min(map(len, before)) and before[0][-same - 1] == before[1][-same - 1]:
            same += 1
        head = before[0][len(before[0]) - same :]
        # The EOT of an earlier answer, and what follows it, are not the question's.
        for i in [i for i, token_id in enumerate(head) if token_id == self.eot_id][-1:]:
            head = head[i + 1 :]
        head = head[next((i for i, token_id in enumerate(head) if token_id in self.special_texts), 0) :]
        return {"answer": mark_ids, "question": [head, behind_ids[: len(behind_ids) - len(mark_ids)]]}

    def special_ids(self):
        """{"eot": id, "pad": id, …, and with a chat template what `marks` has}"""
        return {"eot": self.eot_id, "pad": self.pad_id, **(self.marks if self._template else {"answer": []})}


def bundle_folder(folder):
    """The bytes of a JSON that holds a Hugging Face folder's tokenizer: its tokenizer.json, special tokens, ids that
    end an answer, and chat template. Raises UserError where there is none, or a file is damaged."""
    folder = Path(folder)
    config = read_json_object(folder / "tokenizer_config.json")
    older = read_json_object(folder / "special_tokens_map.json")
    model, generation = read_json_object(folder / "config.json"), read_json_object(folder / "generation_config.json")
    path = folder / TOKENIZER_JSON
    if not path.is_file():
        raise UserError(
            f"{path} is not there; a folder with a tokenizer has it (transformers writes it by save_pretrained)"
        )

    tokens = {key: token_text(config.get(key) or older.get(key)) for key in TOKEN_NAMES}
    stops = generation.get("eos_token_id", model.get("eos_token_id"))
    stops = [] if stops is None else stops if isinstance(stops, list) else [stops]

    template = config.get("chat_template")
    if isinstance(template, list):
        template = {one["name"]: one["template"] for one in template}.get("default")
    if (folder / TEMPLATE_FILE).is_file():
        template = (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    text = json.dumps(read_json_object(path), ensure_ascii=False)
    bundle = {"tokenizer": text, "tokens": tokens, "stop_ids": stops, "chat_template": template}
    return json.dumps(bundle, ensure_ascii=False).encode()


def token_text(token):
    """The text of a special token in a config: a text, or a dict of its flags; None as it is."""
    return token["content"] if isinstance(token, dict) else token


def read_json_object(path):
    """A JSON file's object; {} where there is no such file. Raises UserError where it is damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); download it again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is no JSON object; download it again")
    return values
