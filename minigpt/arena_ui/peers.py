"""The tab of peers: whether each is online and how fast it responds. Trusted visitors can add and remove peers."""

import gradio as gr
import pandas

from minigpt.arena.peers import CHECK_WAIT_SECONDS, MAX_PEER_NAME_CHARS
from minigpt.arena.problems import Problem
from minigpt.arena_ui.common import (
    PRIVATE,
    TABLE,
    UNQUEUED,
    T,
    explain_error,
    is_trusted,
    status_line,
    translate,
    update_model_lists,
    warning_line,
)

PEER_COLUMNS = ("col_name", "col_address", "col_answers", "col_models")
PEERS_REFRESH_SECONDS = 5.0  # between checks while the tab is open
MAX_SHOWN_MODELS = 5


class PeersTab:
    """Adds its components to the open gr.Tab, `tab`; selecting it checks the peers."""

    def __init__(self, page, tab):
        self.page, self.peers = page, page.arena.peers
        gr.Markdown(T("peer_info"), elem_id="peer-info")
        empty = gr.Markdown(T("no_peers"), visible=not self.peers.all(), elem_id="no-peers", elem_classes="empty")
        table = gr.Dataframe(label=T("peers_table"), elem_id="peers", visible=bool(self.peers.all()), **TABLE)
        with gr.Column(elem_id="peer-form"):
            with gr.Row():
                name = gr.Textbox(label=T("peer_name"), max_length=MAX_PEER_NAME_CHARS, elem_id="peer-name")
                address = gr.Textbox(label=T("peer_address"), max_length=200, elem_id="peer-address")
                key = gr.Textbox(label=T("peer_key_label"), type="password", max_length=200, elem_id="peer-key")
            add = gr.Button(T("peer_add"), variant="primary", elem_id="peer-add")
            with gr.Row(visible=bool(self.peers.all()), elem_id="peer-removal") as removal:
                which = gr.Dropdown([], label=T("peer_which"), elem_id="peer-which", allow_custom_value=True, scale=3)
                remove = gr.Button(T("peer_remove"), variant="stop", elem_id="peer-remove", min_width=120)
        state = status_line("state-peers")
        self.timer = gr.Timer(PEERS_REFRESH_SECONDS, active=False)
        outputs = [table, state, which, empty, removal, *page.models]
        opened = tab.select(self.open, None, [*outputs, self.timer], **PRIVATE)
        opened.then(self.check, None, outputs, api_name="peers", **UNQUEUED)
        self.timer.tick(self.tick, None, outputs, **PRIVATE)
        form = [name, address, key]
        add.click(self.add, form, [*form, *outputs], api_name="add_peer", **UNQUEUED)
        remove.click(self.remove, which, outputs, api_name="remove_peer", **UNQUEUED)

    def open(self, request: gr.Request):
        """The results of earlier checks, before new ones."""
        return [*self.render(request), gr.Timer(active=True)]

    def check(self, request: gr.Request):
        """The table after a check."""
        self.peers.check(CHECK_WAIT_SECONDS)
        return self.render(request)

    def tick(self, request: gr.Request):
        """As `check`, but leaves the status line as it is."""
        table, _, *rest = self.check(request)
        return [table, gr.skip(), *rest]

    def render(self, request, message=""):
        """[table, status line, names that can be removed, visibility of the notice for an empty table and of the row
        that removes, lists of models]."""
        rows = [[peer.name, peer.address, self.describe(request, peer), self.models(peer)] for peer in self.peers.all()]
        table = pandas.DataFrame(rows, columns=[translate(request, column) for column in PEER_COLUMNS])
        problems = self.page.arena.problems()
        notes = [translate(request, "also", what=explain_error(request, problem)) for problem in problems]
        lines = [message, *notes] if message else notes
        names = gr.update(choices=[peer.name for peer in self.peers.all()])
        seen = gr.update(value=table, visible=bool(rows)), "\n".join(lines), names
        return [
            *seen,
            gr.update(visible=not rows),
            gr.update(visible=bool(rows)),
            *update_model_lists(self.page, request),
        ]

    def describe(self, request, peer):
        """Whether a peer is online, with its response time or error."""
        status = self.peers.status(peer.name)
        if status is None:
            return translate(request, "peer_asking")
        if status.failure:
            return translate(request, "peer_down", reason=explain_error(request, status.failure))
        return translate(request, "peer_up", ms=status.seconds * 1000)

    def models(self, peer):
        """The names of a peer's models, up to MAX_SHOWN_MODELS."""
        status = self.peers.status(peer.name)
        names = [model["id"] for model in status.models] if status else []
        return ", ".join(names[:MAX_SHOWN_MODELS]) + ("…" if len(names) > MAX_SHOWN_MODELS else "")

    def add(self, request: gr.Request, name, address, key):
        """Add a peer, if the visitor is trusted. If it cannot be added, the inputs stay."""
        try:
            if not is_trusted(request):
                raise Problem("not_allowed")
            self.peers.add(name or "", address or "", key or "")
        except Exception as error:
            return [name, address, key, *self.render(request, warning_line(request, error))]
        self.peers.check(CHECK_WAIT_SECONDS)
        state = next(self.describe(request, peer) for peer in self.peers.all() if peer.name == name.strip())
        message = translate(request, "peer_added", name=name.strip(), state=state)
        return ["", "", "", *self.render(request, message)]

    def remove(self, request: gr.Request, name):
        """Remove a peer, if the visitor is trusted."""
        try:
            if not is_trusted(request):
                raise Problem("not_allowed")
            self.peers.remove(name or "")
        except Exception as error:
            return self.render(request, warning_line(request, error))
        return self.render(request, translate(request, "peer_removed", name=name))
