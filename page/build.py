"""The page as a whole: its tabs, what happens when it is opened and closed."""

from pathlib import Path

import gradio as gr

from arena.examples import read_examples
from page.board import BoardTab
from page.common import Page, T, model_lists, say
from page.duel import TAB as DUEL
from page.duel import DuelTab
from page.friends import PeersTab
from page.match import TAB as MATCH
from page.match import MatchTab
from page.single import TAB as SINGLE
from page.single import SingleTab
from page.training import TrainingTab

EXAMPLES = Path(__file__).resolve().parent.parent / "examples.csv"
EXAMPLES_A_PAGE = 6
PATIENCE = 3.5  # seconds that an opening page's lists wait for peers
KEEP_FILES = (3600, 86400)  # uploads and downloads: seconds between looks for old ones, and how old they are then
CONCURRENT = 64  # events of a kind at once


def create_page(arena):
    """The gr.Blocks of an Arena. Server it with page.Server."""
    page = Page(arena)
    with gr.Blocks(title="MiniGPT arena", analytics_enabled=False, delete_cache=KEEP_FILES, fill_width=True) as blocks:
        with gr.Row(elem_id="head"):
            gr.Markdown(T("title"), elem_id="title")
            refresh = gr.Button(T("refresh"), elem_id="refresh", size="sm", scale=0, min_width=90)
        prompts = []
        with gr.Tabs() as tabs:
            with gr.Tab(T("tab_single"), id="single"):
                prompts.append(SingleTab(page).prompt)
                examples(prompts[0], "examples")
            with gr.Tab(T("tab_duel"), id="duel"):
                prompts.append(DuelTab(page).prompt)
                examples(prompts[1], "duel-examples")
            with gr.Tab(T("tab_board"), id="board") as tab:
                BoardTab(page, tab)
            with gr.Tab(T("tab_match"), id="match"):
                MatchTab(page)
            with gr.Tab(T("tab_training"), id="training") as tab:
                training = TrainingTab(page, tab)
            with gr.Tab(T("tab_peers"), id="peers") as tab:
                peers = PeersTab(page, tab)

        def lists(request: gr.Request):
            """What can be chosen now, then also what peers offer that have answered by then."""
            yield model_lists(page, request)
            arena.peers.check(PATIENCE)
            yield model_lists(page, request)

        def leave(request: gr.Request):
            for tab in (SINGLE, DUEL, MATCH):
                arena.running.stop((request.session_hash, tab))

        def rest(event: gr.SelectData):
            """Only the open tab's clock runs."""
            return gr.Timer(active=event.index == 4), gr.Timer(active=event.index == 5)

        refresh.click(lists, None, page.models, api_name="refresh", show_progress="hidden")
        blocks.load(lists, None, page.models, api_visibility="private", show_progress="hidden")
        blocks.unload(leave)
        tabs.select(rest, None, [training.timer, peers.timer], api_visibility="private", show_progress="hidden")
    blocks.queue(default_concurrency_limit=CONCURRENT, api_open=False)
    return blocks


def examples(prompt, elem_id):
    """The prompts of examples.csv, paged; a click fills one in."""
    rows, problems = read_examples(EXAMPLES)
    headers = ["prompt", "kind", "note"]
    dataset = gr.Dataset(
        label=T("examples"), components=[gr.Textbox(visible=False) for _ in headers], headers=headers,
        samples=rows, samples_per_page=EXAMPLES_A_PAGE, elem_id=elem_id, type="values",
    )  # fmt: skip
    dataset.click(lambda row: row[0], dataset, prompt, api_visibility="private", show_progress="hidden")

    def note(request: gr.Request):
        return [gr.Textbox(say(request, problem.key, **problem.values)) for problem in problems[:1]]

    return note
