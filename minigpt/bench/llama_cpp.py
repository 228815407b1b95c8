"""Runs llama.cpp with GGUF files of our models, for the benchmarks. llama.cpp is the package xllamacpp."""

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import gguf
import torch

from minigpt.bench.common import fresh_process
from minigpt.checkpoint import load_checkpoint, load_model
from minigpt.common.errors import UserError
from minigpt.formats.gguf_file import GGUF_TYPES, tensor_type, write_gguf
from minigpt.inference.params import SamplingParams

# Fields of a request: always the likeliest token, never an end, and no keys and values of an earlier request.
GREEDY_REQUEST = {"temperature": 0, "top_k": 1, "samplers": ["top_k"], "ignore_eos": True, "cache_prompt": False}
LONGEST_ANSWER_SECONDS = 300
CHECKED_TOKENS, MIN_EQUAL_SHARE = 8, 0.8  # of llama.cpp's answers in float32; the others may be near-ties

running = []  # in the process of a `LlamaCpp`: its xllamacpp.Server


def open_llama_cpp(path, positions, streams):
    """llama.cpp with a GGUF file, an xllamacpp.Server, which listens on a free port of 127.0.0.1, too.

    positions: of a stream, prompt and answer; streams: the most requests that it answers together. It has as many
    threads as torch. Raises UserError where xllamacpp is not installed.
    """
    try:
        import xllamacpp
    except ImportError:
        raise UserError("pip install -r requirements-dev.txt: llama.cpp is measured too") from None
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(path), positions * streams, streams, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
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


def llama_cpp_way(gguf_type):
    """Name of llama.cpp's way with a file of a type."""
    return f"llama.cpp, {gguf_type}"


def open_llama_cpps(stack, path, folder, types, streams):
    """{type: `LlamaCpp`} with GGUF files of a checkpoint, which are written into a folder, open until a stack closes.

    types: keys of GGUF_TYPES; streams: as in `open_llama_cpp`. {} with a printed line where llama.cpp is not installed
    or does not run on this processor.
    """
    model, tokenizer = load_model(load_checkpoint(path))
    opened = {}
    for name in types:
        file = f"{folder}/{name}.gguf"
        write_gguf(file, model, tokenizer, "pretrain", name, name)
        llama = LlamaCpp(file, model.config.block_size, streams)
        try:
            opened[name] = stack.enter_context(llama)
        except UserError as error:
            print(f"  llama.cpp is not measured: {error}", flush=True)
            return {}
    print(f"  {opened[name].about}", flush=True)
    return opened


def check_same_text(generator, llamas, prompts):
    """{type: share of prompts after which llama.cpp's first CHECKED_TOKENS ids are those of our generator in float32}.

    llamas: {type: `LlamaCpp`}. Prints the shares. Raises UserError where that of float32 is below MIN_EQUAL_SHARE: then
    the two do not compute the same, and comparing their speeds means nothing.
    """
    params = SamplingParams(temperature=0, max_new_tokens=CHECKED_TOKENS)
    ours = [stream.ids for stream in generator.generate_streams(prompts, params)]
    shares = {}
    for name, llama in llamas.items():
        with ThreadPoolExecutor(len(prompts)) as pool:
            theirs = list(pool.map(partial(llama.greedy_ids, n_new=CHECKED_TOKENS), prompts))
        equal = sum(a == b for a, b in zip(theirs, ours, strict=True))
        shares[name] = equal / len(prompts)
        print(
            f"  {llama_cpp_way(name)}: the first {CHECKED_TOKENS} tokens are ours in float32 after {equal} of "
            f"{len(prompts)} prompts",
            flush=True,
        )
    if shares.get("float32", 1) < MIN_EQUAL_SHARE:
        raise UserError("llama.cpp computes something else in float32 (see above), so its speed is not measured")
    return shares


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
