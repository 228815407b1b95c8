"""A GGUF file in real llama.cpp, asked in a process of its own. Run as a script, this file is that process."""

import json
import signal
import subprocess
import sys

import pytest
from llama_server import ILLEGAL_INSTRUCTION


def ask_llama_cpp(path, requests, n_ctx=256):
    """The replies (dicts of OpenAI's API) of llama.cpp with the GGUF file `path` to requests: dicts with a prompt of
    ids or with messages. Skips the test where llama.cpp is not installed or does not run on this processor.

    It computes as exactly as it can: with one thread, float32 caches, and no flash attention. Unless a request says
    otherwise it is greedy, and each reply has the 20 likeliest tokens at each place.
    """
    pytest.importorskip("xllamacpp")
    command = [sys.executable, __file__, str(path), str(n_ctx)]
    process = subprocess.run(command, input=json.dumps(requests), capture_output=True, encoding="utf-8")
    if process.returncode in (-getattr(signal, "SIGILL", 4), ILLEGAL_INSTRUCTION):
        pytest.skip("xllamacpp does not run on this processor; on x86 it needs AVX2, FMA, F16C and BMI2")
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def reply_tokens(reply):
    """[(id, {id: log probability} of the likeliest)] of a reply's tokens, without those of parts of characters."""
    tokens = (reply["choices"][0]["logprobs"] or {"content": []})["content"]
    return [(token["id"], {top["id"]: top["logprob"] for top in token["top_logprobs"]}) for token in tokens]


def open_file(path, n_ctx):
    """llama.cpp's server for a GGUF file, which also listens on a free port of 127.0.0.1."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel = n_ctx, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.warmup = params.cache_prompt = False
    return xllamacpp.Server(params)


if __name__ == "__main__":
    server = open_file(sys.argv[1], int(sys.argv[2]))
    replies = []
    for request in json.load(sys.stdin):
        is_chat = "messages" in request
        exact = {"temperature": 0, "logprobs": True if is_chat else 20, "top_logprobs": 20, "cache_prompt": False}
        ask = server.handle_chat_completions if is_chat else server.handle_completions
        replies.append(ask(exact | request))
    print(json.dumps(replies), flush=True)
