"""How real llama.cpp tokenizes texts by a GGUF file's vocabulary. Run as a script, this file is a process that does."""

import json
import signal
import subprocess
import sys
import urllib.request

import gguf
import numpy as np
import pytest
from llama_file import open_file
from llama_server import ILLEGAL_INSTRUCTION

from minigpt.formats.vocabulary import CHAT_TEMPLATE, gguf_vocabulary

WIDTH, POSITIONS, PADDING_ROWS = 32, 64, 10


def write_vocabulary(path, tokenizer):
    """Write a GGUF file with a tokenizer's vocabulary, and a GPT-2 of one layer, since llama.cpp takes no file without
    a model."""
    n_rows = tokenizer.n_vocab + PADDING_ROWS
    tokens, types, merges, splitting = gguf_vocabulary(tokenizer, n_rows)
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(1)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokenizer.eot_id)
    writer.add_bos_token_id(tokenizer.eot_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    shapes = {"token_embd.weight": (n_rows, WIDTH), "position_embd.weight": (POSITIONS, WIDTH)}
    shapes |= {"blk.0.attn_qkv.weight": (3 * WIDTH, WIDTH), "blk.0.attn_qkv.bias": (3 * WIDTH,)}
    for name in ("blk.0.attn_output", "blk.0.ffn_up", "blk.0.ffn_down"):
        shapes |= {f"{name}.weight": (WIDTH, WIDTH), f"{name}.bias": (WIDTH,)}
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        shapes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ask_llama_tokens(path, tokenizer, texts, chats=()):
    """[ids of each text], and [text of each chat, by our template], of llama.cpp; path: where the GGUF file goes.

    Skips the test where llama.cpp is not installed or does not run on this processor.
    """
    pytest.importorskip("xllamacpp")
    write_vocabulary(path, tokenizer)
    asked = {"texts": texts, "separator": tokenizer.eot_id, "chats": list(chats)}
    command = [sys.executable, __file__, str(path)]
    process = subprocess.run(command, input=json.dumps(asked), capture_output=True, encoding="utf-8")
    if process.returncode in (-getattr(signal, "SIGILL", 4), ILLEGAL_INSTRUCTION):
        pytest.skip("xllamacpp does not run on this processor; on x86 it needs AVX2, FMA, F16C and BMI2")
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def post_json(url, body):
    """The answer to a POST of a JSON body, also JSON."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


if __name__ == "__main__":
    server, asked = open_file(sys.argv[1], POSITIONS), json.load(sys.stdin)
    # The server takes a list of texts and ids, and gives all ids in one list.
    content = [part for text in asked["texts"] for part in (text, asked["separator"])]
    ids, parts = post_json(f"{server.listening_address}/tokenize", {"content": content})["tokens"], [[]]
    for token_id in ids:
        if token_id == asked["separator"]:
            parts.append([])
        else:
            parts[-1].append(token_id)
    rendered = [post_json(f"{server.listening_address}/apply-template", {"messages": chat}) for chat in asked["chats"]]
    print(json.dumps([parts[:-1], [answer["prompt"] for answer in rendered]]))
