"""One arena for all tests of the page."""

import pytest
from arena_fakes import __file__ as fake
from arena_fakes import write_checkpoints, write_task_checkpoints
from page_in_browser import HANG_SECONDS
from serving_fakes import started

# The page must start, and reach peers on this machine, whatever proxies are set for other programs.
PROXIES = {"ALL_PROXY": "socks5://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "NO_PROXY": "", "no_proxy": ""}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The arena's working directory, with the checkpoints alpha, beta and base, and one for each kind of task."""
    folder = tmp_path_factory.mktemp("arena")
    write_checkpoints(folder / "out")
    write_task_checkpoints(folder / "out")
    return folder


@pytest.fixture(scope="session")
def arena(folder):
    """A served page whose models repeat the prompt."""
    flags = "--port=0", "--peers=peers.json", f"--request_seconds={HANG_SECONDS}"
    # Gradio notices a closed page at the next heartbeat; its default is 15 s.
    with started(fake, *flags, cwd=folder, GRADIO_HEARTBEAT_INTERVAL="0.25", **PROXIES) as server:
        yield server


@pytest.fixture
def peers_file(folder):
    """The arena's file of peers; removed after the test."""
    yield folder / "peers.json"
    (folder / "peers.json").unlink(missing_ok=True)
