"""Serve checkpoints over HTTP on port 5000: a web page, POST /generate (streams text), and OpenAI's API.

Models with a task's head, which may be among them, answer POST /classify and /tag.

    python server.py                                     # the newest run under out/
    python server.py --ckpt=out/demo_sft/ckpt.pt,out/demo/ckpt.pt
    python server.py --ckpt=out/demo/ckpt.pt,out/lora/ckpt.pt   # an adapter's file: a model that shares its base
    python server.py --host=0.0.0.0                      # accept requests from other machines

Ctrl-C or SIGTERM stops the server: it refuses new requests, finishes those that run (within --stop_seconds), and exits
with code 0.
"""

import logging
import os
import time
from functools import partial

from minigpt.checkpoint import model_names
from minigpt.common.cli import Signals, run_script
from minigpt.common.errors import UserError
from minigpt.common.net import announce_server, listening_socket
from minigpt.inference.classify import open_served
from minigpt.inference.engine import compile_in_background
from minigpt.serving import Listener, create_app
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import ServerSettings

KEY_VARIABLE = "MINIGPT_API_KEY"


def stop(settings, app, listener, generators):
    """Finish the requests that run, within settings.stop_seconds, and cancel the rest."""
    print(f"stopping; running requests have {settings.stop_seconds:g} s to finish", flush=True)
    until = time.monotonic() + settings.stop_seconds
    listener.stop_accepting()
    finished = app.service.admission.stop(settings.stop_seconds)
    for generator in generators:
        generator.close(0)
    # Streams that have just been cancelled still send their last piece.
    listener.finish(max(1.0, until - time.monotonic()) if finished else 2.0)
    print("stopped" if finished else "stopped; some answers were cut short", flush=True)


def main(open_models=open_served):
    settings = load_settings(ServerSettings)
    signals = Signals()
    sock = listening_socket(settings.host, settings.port)  # before the models, so that a taken port is reported at once
    paths, _, generators = zip(*open_models(settings.ckpt or [""], settings), strict=True)
    for generator in generators:
        print(generator.about, flush=True)
    models = dict(zip(model_names(paths), generators, strict=True))
    key = settings.api_key or os.environ.get(KEY_VARIABLE, "")
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # more requests than threads are normal for a moment
    app = create_app(models, settings, key)
    listener = Listener(app, sock)
    listener.start()
    title = f"serving {', '.join(models)}"
    announce_server(title, settings.host, listener.port, bool(key), f"a key with --api_key= or {KEY_VARIABLE}")
    having_steps = [generator for generator in generators if generator.stage != "task"]
    to_compile = [generator for generator in having_steps if generator.should_compile(settings.compile)]
    compile_in_background(to_compile, say=partial(print, flush=True))
    while not signals.asked:
        time.sleep(0.1)  # on Windows, Ctrl-C does not interrupt a wait for an event
        if not listener.is_alive():
            raise UserError("the listening thread has ended; start the server again")
    stop(settings, app, listener, generators)
    # A running compilation cannot be stopped, and torch aborts if the interpreter ends while its thread runs.
    os._exit(0)


if __name__ == "__main__":
    run_script(main)
