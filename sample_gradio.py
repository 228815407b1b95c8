"""The arena: a page on port 7860 on which models are tried and compete, your own and your friends'.

    python sample_gradio.py                                    # http://127.0.0.1:7860
    python sample_gradio.py --host=0.0.0.0 --auth=me:secret    # open it to other machines, behind a password

Checkpoints under out/ are offered by themselves; friends' models stand in config/arena_peers.json. Ctrl-C stops.
"""

import os
import time

from minigpt.common.cli import Signals, run_script
from minigpt.common.errors import UserError
from minigpt.common.net import addresses, listening_socket
from minigpt.settings.parse import load_settings

AUTH_VARIABLE = "MINIGPT_AUTH"


def checked_auth(settings):
    """ "user:password" of the settings or the environment, or "". Raises UserError where it is no such pair."""
    auth = settings.auth or os.environ.get(AUTH_VARIABLE, "")
    user, _, password = auth.partition(":")
    if auth and not (user and password):
        raise UserError("--auth wants user:password, both of them, such as --auth=me:a-long-secret")
    return auth


def announce(settings, auth, port):
    """Print where the page is, and who can open it."""
    print("the arena is at", flush=True)
    for address in addresses(settings.host, port):
        print(f"  {address}", flush=True)
    if settings.host not in ("127.0.0.1", "localhost", "::1") and not auth:
        print(f"warning: everyone who reaches this machine may use it; set --auth=user:password, or {AUTH_VARIABLE}")
    print("open it in a browser; Ctrl-C stops", flush=True)


def main(open_generator=None):
    """open_generator: as generation.open_generator, for tests."""
    settings = load_settings("arena")
    auth = checked_auth(settings)
    signals = Signals()
    sock = listening_socket(settings.host, settings.port)  # a taken port is told before the slow imports
    from minigpt.arena.arena import Arena
    from minigpt.arena_ui import PageServer, create_page

    arena = Arena(settings, **({"open": open_generator} if open_generator else {}))
    server = PageServer(create_page(arena), sock, settings.host, auth)
    if not server.start():
        raise UserError("the page did not start; what stands above says why")
    announce(settings, auth, server.port)
    for problem in arena.problems():
        print(f"note: {problem}", flush=True)
    while not signals.asked:
        time.sleep(0.1)  # Windows wakes no wait for a Ctrl-C
        if not server.is_alive():
            raise UserError("the page's thread has ended; start it again")
    print("stopping", flush=True)
    server.stop()
    arena.close()
    # A handler that still waits for a peer must not keep the process.
    os._exit(0)


if __name__ == "__main__":
    run_script(main)
