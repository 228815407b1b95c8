"""The arena: a web page on port 7860 on which you try and compare models, your own and your friends'.

    python sample_gradio.py                                    # http://127.0.0.1:7860
    python sample_gradio.py --host=0.0.0.0 --auth=me:secret    # open it to other machines, with a password

The page offers all checkpoints under out/. config/arena_peers.json lists friends' models. Ctrl-C stops.
"""

import os
import time

from minigpt.common.cli import Signals, run_script
from minigpt.common.errors import UserError
from minigpt.common.net import announce_server, listening_socket
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import ArenaSettings

AUTH_VARIABLE = "MINIGPT_AUTH"


def read_auth(settings):
    """The "user:password" of the settings or the environment, or "". Raises UserError if one of the two is missing."""
    auth = settings.auth or os.environ.get(AUTH_VARIABLE, "")
    user, _, password = auth.partition(":")
    if auth and not (user and password):
        raise UserError("--auth needs user:password, such as --auth=me:a-long-secret")
    return auth


def main(open_generator=None):
    """open_generator: replaces inference.classify.open_labeller_or_generator in tests."""
    settings = load_settings(ArenaSettings)
    auth = read_auth(settings)
    signals = Signals()
    sock = listening_socket(settings.host, settings.port)  # before the slow imports: a taken port is reported at once
    from minigpt.arena.arena import Arena
    from minigpt.arena_ui import PageServer, create_page

    arena = Arena(settings, **({"open": open_generator} if open_generator else {}))
    server = PageServer(create_page(arena), sock, settings.host, auth)
    if not server.start():
        raise UserError("the page did not start; the lines above say why")
    protection = f"--auth=user:password, or {AUTH_VARIABLE}"
    announce_server("the arena is", settings.host, server.port, bool(auth), protection)
    for problem in arena.problems():
        print(f"note: {problem}", flush=True)
    while not signals.asked:
        time.sleep(0.1)  # on Windows, Ctrl-C does not interrupt a wait for an event
        if not server.is_alive():
            raise UserError("the page's thread has ended; start it again")
    print("stopping", flush=True)
    server.stop()
    arena.close()
    # A handler that still waits for a peer must not keep the process alive.
    os._exit(0)


if __name__ == "__main__":
    run_script(main)
