"""Runs llama.cpp with GGUF files of our models, for the benchmarks. llama.cpp is the package xllamacpp."""

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import gguf
import torch

from minigpt.bench.common import count_cores, fresh_process
from minigpt.common.errors import UserError
from minigpt.formats.gguf_file import GGUF_TYPES, tensor_type

# Fields of a request: always the likeliest token, never an end, and no keys and values of an earlier request.
GREEDY_REQUEST = {"temperature": 0, "top_k": 1, "samplers": ["top_k"], "ignore_eos": True, "cache_prompt": False}
LONGEST_ANSWER_SECONDS = 300

running = []  # in the process of a `LlamaCpp`: its xllamacpp.Server


def open_llama_cpp(path, positions, streams):
    """llama.cpp with a GGUF file, an xllamacpp.Server, which listens on a free port of 127.0.0.1, too.

    positions: of a stream, prompt and answer; streams: the most requests that it answers together. It has a thread for
    each core. Raises UserError where xllamacpp is not installed.
    """
    try:
        import xllamacpp
    except ImportError:
        raise UserError("pip install -r requirements-dev.txt: llama.cpp is measured too") from None
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(path), positions * streams, streams, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = count_cores()
    params.hostnames, params.port = ["127.0.0.1"], 0
    return xllamacpp.Server(params)


class LlamaCpp:
    """Context manager: llama.cpp with a GGUF file in a process of its own.

    address: its server's, http://; about: its version and the instruction sets that it was built for. path, positions,
    streams: as in `open_llama_cpp`. Entering raises UserError where it is not installed or does not run.
    """

    def __init__(self, path, positions, streams):
        self.path, self.positions, self.streams = Path(path), positions, streams

    def __enter__(self):
        with ExitStack() as stack:
            self._call = stack.enter_context(fresh_process())
            self.address, self.about = self._call(start_here, self.path.name, self.path, self.positions, self.streams)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        self._stack.__exit__(*error)

    def generate(self, prompts, n_new):
        """Answer prompts (lists of ids) with n_new tokens each, at the same time, without HTTP; returns the texts."""
        return self._call(answer_here, self.path.name, prompts, n_new)

    def greedy_ids(self, prompt, n_new):
        """The n_new ids that follow a prompt's ids. (Only its server tells them.)"""
        parts = urlsplit(self.address)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=LONGEST_ANSWER_SECONDS)
        body = {"prompt": prompt, "n_predict": n_new, "return_tokens": True, **GREEDY_REQUEST}
        connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        reply = json.load(connection.getresponse())
        connection.close()
        return reply["tokens"]


def start_here(_, path, positions, streams):
    """(address, about) of llama.cpp, which is started in this process."""
    server = open_llama_cpp(path, positions, streams)
    running.append(server)
    return server.listening_address, describe_llama_cpp()


def describe_llama_cpp():
    """The version of xllamacpp and what llama.cpp's system information names, in one line.

    llama.cpp's kernels are chosen when it is built, unless it is built as a library for each processor.
    """
    import xllamacpp

    flags = [part.split("=")[0].strip(" :") for part in xllamacpp.get_system_info().split("|") if "= 1" in part]
    return f"llama.cpp: xllamacpp {xllamacpp.__version__}, built for {', '.join(flags)}".replace("CPU : ", "")


def answer_here(_, prompts, n_new):
    """The texts of n_new tokens that follow prompts, by this process's llama.cpp."""
    (server,) = running

    def ask(prompt):
        reply = server.handle_completions({"prompt": prompt, "max_tokens": n_new, **GREEDY_REQUEST})
        if reply["usage"]["completion_tokens"] != n_new:
            raise UserError(f"llama.cpp made {reply['usage']['completion_tokens']} tokens where {n_new} were asked for")
        return reply["choices"][0]["text"]

    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(ask, prompts))


@torch.no_grad()
def round_as_gguf(model, dtype):
    """Round a GPT's weights to the values that its GGUF file of a type has, in place; returns the model.

    dtype: one of GGUF_TYPES. The blocks of a type lie within rows, so a matrix may be rounded as a whole.
    """
    for name, weight in model.named_parameters():
        stored_name = "position_embd.weight" if name == "wpe.weight" else name
        kind = tensor_type(stored_name, weight, GGUF_TYPES[dtype][0])
        weight.copy_(torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind)))
    return model
