"""The page as a whole: its tabs, what happens when it is opened and closed."""

import gradio as gr

from minigpt.arena_ui.board import BoardTab
from minigpt.arena_ui.common import AT_ONCE, QUIET, Page, T, model_lists, session
from minigpt.arena_ui.duel import DuelTab
from minigpt.arena_ui.match import MatchTab
from minigpt.arena_ui.peers import PeersTab
from minigpt.arena_ui.single import SingleTab
from minigpt.arena_ui.training import TrainingTab

EXAMPLE_HEADERS = ["提示 prompt", "适合 for", "说明 note"]
EXAMPLES_A_PAGE = 6
PATIENCE = 3.5  # seconds that an opening page's lists wait for peers
KEEP_FILES = (3600, 86400)  # uploads and downloads: seconds between looks for old ones, and how old they are then
CONCURRENT = 64  # events of a kind at once


def create_page(arena):
    """The gr.Blocks of an Arena. Serve it with page.PageServer."""
    with GuardedBlocks(
        title="MiniGPT arena", analytics_enabled=False, delete_cache=KEEP_FILES, fill_width=True
    ) as blocks:
        page = Page(arena, blocks.load)
        with gr.Row(elem_id="head"):
            gr.Markdown(T("title"), elem_id="title")
            refresh = gr.Button(T("refresh"), elem_id="refresh", size="sm", scale=0, min_width=90)
        with gr.Tabs():
            with gr.Tab(T("tab_single"), id="single") as single_tab:
                examples(arena.examples, SingleTab(page).prompt, "examples")
            with gr.Tab(T("tab_duel"), id="duel") as duel_tab:
                examples(arena.examples, DuelTab(page).prompt, "duel-examples")
            with gr.Tab(T("tab_board"), id="board") as board_tab:
                BoardTab(page, board_tab)
            with gr.Tab(T("tab_match"), id="match") as match_tab:
                MatchTab(page)
            with gr.Tab(T("tab_training"), id="training") as training_tab:
                training = TrainingTab(page, training_tab)
            with gr.Tab(T("tab_peers"), id="peers") as peers_tab:
                peers = PeersTab(page, peers_tab)

        def lists(request: gr.Request):
            """What can be chosen now."""
            return model_lists(page, request)

        def lists_with_peers(request: gr.Request):
            """What can be chosen once the peers have answered, or have had time to."""
            arena.peers.check(PATIENCE)
            return model_lists(page, request)

        def leave(request: gr.Request):
            """The tab has been closed: nobody reads on."""
            for tab in (SingleTab, DuelTab, MatchTab):
                arena.running.stop(session(request, tab.name))

        def clocks(tab):
            """The handler of a tab's opening: only its own clock runs, if it has one."""
            return lambda: [gr.Timer(active=tab is owner) for owner in (training_tab, peers_tab)]

        opened = gr.on([blocks.load, refresh.click], lists, None, page.models, **QUIET)
        opened.then(lists_with_peers, None, page.models, api_name="refresh", **AT_ONCE)
        blocks.unload(leave)
        for tab in (single_tab, duel_tab, board_tab, match_tab, training_tab, peers_tab):
            tab.select(clocks(tab), None, [training.timer, peers.timer], **QUIET)
    blocks.queue(default_concurrency_limit=CONCURRENT, api_open=False)
    return blocks


def examples(rows, prompt, elem_id):
    """Rows of [prompt, kind, note], paged; a click fills one in."""
    dataset = gr.Dataset(
        label=T("examples"), components=[gr.Textbox(visible=False) for _ in EXAMPLE_HEADERS], headers=EXAMPLE_HEADERS,
        samples=rows, samples_per_page=EXAMPLES_A_PAGE, elem_id=elem_id, type="values",
    )  # fmt: skip
    dataset.click(lambda row: row[0], dataset, prompt, **QUIET)


class GuardedBlocks(gr.Blocks):
    """Blocks that take no file but where one is asked for, and none that would first be fetched from an address.

    Gradio moves whatever looks like a file into its cache, from where it is served, for any component.
    """

    async def preprocess_data(self, block_fn, inputs, *more, **named):
        for component, value in zip(block_fn.inputs, inputs, strict=False):
            refuse_files(value, isinstance(component, gr.File))
        return await super().preprocess_data(block_fn, inputs, *more, **named)


def refuse_files(value, wanted):
    """Raises gr.Error where a value sent by a browser has a file in it that is not wanted, or is an address."""
    if isinstance(value, list):
        for item in value:
            refuse_files(item, wanted)
    elif isinstance(value, dict):
        if {"path", "url", "meta"} & set(value) and not (wanted and "://" not in str(value.get("path"))):
            raise gr.Error("a file has no place here", print_exception=False)
        for item in value.values():
            refuse_files(item, wanted)
