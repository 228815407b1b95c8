"""Serve checkpoints: a page, POST /generate that streams text, and OpenAI's API, on port 5000.

    python server.py                                     # the newest run under out/
    python server.py --ckpt=out/demo_sft/ckpt.pt,out/demo/ckpt.pt
    python server.py --host=0.0.0.0                      # other machines may ask too

Ctrl-C or SIGTERM stops: no new requests, those that run are finished (for --stop_seconds at most), exit code 0.
"""

import logging
import os
import time

from minigpt.checkpoint import model_names
from minigpt.common.cli import Signals, run_script
from minigpt.common.errors import UserError
from minigpt.common.net import addresses, listening_socket
from minigpt.inference.engine import compile_in_background, open_generator
from minigpt.inference.model_runner import should_compile
from minigpt.serving import Listener, create_app
from minigpt.settings.parse import load_settings

KEY_VARIABLE = "MINIGPT_API_KEY"


def announce(settings, models, key, port):
    """Print what is served, where, and to whom."""
    print(f"serving {', '.join(models)} at", flush=True)
    for address in addresses(settings.host, port):
        print(f"  {address}", flush=True)
    if settings.host not in ("127.0.0.1", "localhost", "::1") and not key:
        print(f"warning: everyone who reaches this machine may use it; set a key with --api_key= or {KEY_VARIABLE}")
    print("open the address in a browser for examples; Ctrl-C stops", flush=True)


def stop(settings, app, listener, generators):
    """Finish what is under way, within settings.stop_seconds, then end the rest."""
    print(f"stopping; what is under way has {settings.stop_seconds:g} s to finish", flush=True)
    until = time.monotonic() + settings.stop_seconds
    listener.stop_accepting()
    finished = app.service.places.stop(settings.stop_seconds)
    for generator in generators:
        generator.close(0)
    # Streams that were just cut short have a last piece to send.
    listener.finish(max(1.0, until - time.monotonic()) if finished else 2.0)
    print("stopped" if finished else "stopped; some answers were cut short", flush=True)


def main(open_generator=open_generator):
    settings = load_settings("server")
    signals = Signals()
    sock = listening_socket(settings.host, settings.port)  # a taken port is told before a model is loaded
    checkpoints = [part for part in settings.ckpt.split(",") if part] or [""]
    paths, _, generators = zip(*(open_generator(checkpoint, settings) for checkpoint in checkpoints), strict=True)
    for generator in generators:
        print(generator.about, flush=True)
    models = dict(zip(model_names(paths), generators, strict=True))
    key = settings.api_key or os.environ.get(KEY_VARIABLE, "")
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # requests beyond the threads are for an instant only
    app = create_app(models, settings, key)
    listener = Listener(app, sock)
    listener.start()
    announce(settings, models, key, listener.port)
    wanted = []
    for generator in generators:
        compiling, why = should_compile(settings.compile, generator.model)
        print(f"compile {compiling} ({why})", flush=True)
        if compiling:
            wanted.append(generator)
    compile_in_background(wanted)
    while not signals.asked:
        time.sleep(0.1)  # Windows wakes no wait for a Ctrl-C
        if not listener.is_alive():
            raise UserError("the listening thread has ended; start the server again")
    stop(settings, app, listener, generators)
    # A compiler at work cannot be stopped, and torch aborts where the interpreter's end cuts its thread off.
    os._exit(0)


if __name__ == "__main__":
    run_script(main)
