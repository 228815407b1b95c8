"""The tab of peers: whether each answers and how fast; adding and removing them, for who may."""

import gradio as gr
import pandas

from minigpt.arena.problems import Problem
from minigpt.arena_ui.common import (
    AT_ONCE,
    QUIET,
    TABLE,
    T,
    explain,
    may_change,
    model_lists,
    say,
    status_line,
    warning,
)

COLUMNS = ("peer_name", "col_address", "col_answers", "col_models")
EVERY = 5.0  # seconds between checks while the tab is open
PATIENCE = 3.5  # seconds that a check waits for peers that have not answered yet
MODELS_SHOWN = 5


class PeersTab:
    """Built in the Tab that is open; `tab` is that, whose choosing checks the peers."""

    def __init__(self, page, tab):
        self.page, self.peers = page, page.arena.peers
        gr.Textbox(T("peer_info"), interactive=False, container=False, lines=1, max_lines=6, elem_classes="status")
        table = gr.Dataframe(label=T("peers_table"), elem_id="peers", **TABLE)
        state = status_line("state-peers")
        with gr.Column(elem_id="peer-form"):
            with gr.Row():
                name = gr.Textbox(label=T("peer_name"), max_length=40, elem_id="peer-name")
                address = gr.Textbox(label=T("peer_address"), max_length=200, elem_id="peer-address")
                key = gr.Textbox(label=T("peer_key_label"), type="password", max_length=200, elem_id="peer-key")
            with gr.Row():
                add = gr.Button(T("peer_add"), variant="primary", elem_id="peer-add")
                which = gr.Dropdown([], label=T("peer_which"), elem_id="peer-which", allow_custom_value=True)
                remove = gr.Button(T("peer_remove"), variant="stop", elem_id="peer-remove")
        self.timer = gr.Timer(EVERY, active=False)
        shown = [table, state, which, *page.models]
        opened = tab.select(self.open, None, [*shown, self.timer], **QUIET)
        opened.then(self.look, None, shown, api_name="peers", **AT_ONCE)
        self.timer.tick(self.tick, None, shown, **QUIET)
        form = [name, address, key]
        add.click(self.add, form, [*form, *shown], api_name="add_peer", **AT_ONCE)
        remove.click(self.remove, which, shown, api_name="remove_peer", **AT_ONCE)

    def open(self, request: gr.Request):
        """What is known before anyone is asked."""
        return [*self.show(request), gr.Timer(active=True)]

    def look(self, request: gr.Request):
        """The table after a check."""
        self.peers.check(PATIENCE)
        return self.show(request)

    def tick(self, request: gr.Request):
        """As `look`, but what was said stays."""
        table, _, *rest = self.look(request)
        return [table, gr.skip(), *rest]

    def show(self, request, said=""):
        """The table as it is known now, a line, who can be removed, and the lists of models."""
        rows = [[peer.name, peer.address, self.state(request, peer), self.models(peer)] for peer in self.peers.all()]
        table = pandas.DataFrame(rows, columns=[say(request, column) for column in COLUMNS])
        notes = [say(request, "also", what=explain(request, problem)) for problem in self.page.arena.problems()]
        names = [peer.name for peer in self.peers.all()]
        return [
            table,
            "\n".join([*([said] if said else []), *notes]),
            gr.update(choices=names),
            *model_lists(self.page, request),
        ]

    def state(self, request, peer):
        """Whether a peer answers, and how fast."""
        status = self.peers.status(peer.name)
        if status is None:
            return say(request, "peer_asking")
        if status.failure:
            return say(request, "peer_down", reason=explain(request, status.failure))
        return say(request, "peer_up", ms=status.seconds * 1000)

    def models(self, peer):
        """The names of a peer's models, the first few."""
        status = self.peers.status(peer.name)
        names = [model["id"] for model in status.models] if status else []
        return ", ".join(names[:MODELS_SHOWN]) + ("…" if len(names) > MODELS_SHOWN else "")

    def add(self, request: gr.Request, name, address, key):
        """Add a peer, if the reader may; what was typed stays where it could not be used."""
        try:
            if not may_change(request):
                raise Problem("not_allowed")
            self.peers.add(name or "", address or "", key or "")
        except Exception as error:
            return [name, address, key, *self.show(request, warning(request, error))]
        self.peers.check(PATIENCE)
        state = next(self.state(request, peer) for peer in self.peers.all() if peer.name == name.strip())
        return ["", "", "", *self.show(request, say(request, "peer_added", name=name.strip(), state=state))]

    def remove(self, request: gr.Request, name):
        """Remove a peer, if the reader may."""
        try:
            if not may_change(request):
                raise Problem("not_allowed")
            self.peers.remove(name or "")
        except Exception as error:
            return self.show(request, warning(request, error))
        return self.show(request, say(request, "peer_removed", name=name))
