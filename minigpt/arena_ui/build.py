"""Builds the page: its tabs, and what happens when a visitor opens and closes it."""

import gradio as gr

from minigpt.arena.peers import CHECK_WAIT_SECONDS
from minigpt.arena_ui.board import BoardTab
from minigpt.arena_ui.common import PRIVATE, UNQUEUED, PageContext, T, update_model_lists, visitor_key
from minigpt.arena_ui.duel import DuelTab
from minigpt.arena_ui.inspecting import LookTab
from minigpt.arena_ui.match import MatchTab
from minigpt.arena_ui.models import ModelsTab
from minigpt.arena_ui.peers import PeersTab
from minigpt.arena_ui.single import SingleTab
from minigpt.arena_ui.tasks import TasksTab
from minigpt.arena_ui.training import TrainingTab

EXAMPLES_PER_PAGE = 8
DELETE_CACHE_SECONDS = (3600, 86400)  # Gradio's copies of files: time between clean-ups, and age of deleted files
MAX_CONCURRENT_EVENTS = 64  # for each handler


def create_page(arena):
    """The gr.Blocks of an Arena, to be served by PageServer."""
    with (
        GuardedBlocks(
            title="MiniGPT", analytics_enabled=False, delete_cache=DELETE_CACHE_SECONDS, fill_width=True
        ) as blocks,
        gr.Column(elem_id="page"),
    ):
        page = PageContext(arena, blocks.load)
        refresh = add_header()
        no_models = gr.Markdown(T("no_models"), visible=not arena.choices(), elem_id="no-models", elem_classes="empty")
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab(T("tab_single"), id="single") as single_tab:
                add_examples(arena.examples, SingleTab(page).prompt, "examples")
            with gr.Tab(T("tab_duel"), id="duel") as duel_tab:
                add_examples(arena.examples, DuelTab(page).prompt, "duel-examples")
            with gr.Tab(T("tab_models"), id="models") as models_tab:
                ModelsTab(page, models_tab)
            with gr.Tab(T("tab_tasks"), id="tasks") as tasks_tab:
                TasksTab(page)
            with gr.Tab(T("tab_look"), id="look") as look_tab:
                LookTab(page)
            with gr.Tab(T("tab_board"), id="board") as board_tab:
                BoardTab(page, board_tab)
            with gr.Tab(T("tab_match"), id="match") as match_tab:
                MatchTab(page)
            with gr.Tab(T("tab_training"), id="training") as training_tab:
                training = TrainingTab(page, training_tab)
            with gr.Tab(T("tab_peers"), id="peers") as peers_tab:
                peers = PeersTab(page, peers_tab)

        def list_models(request: gr.Request):
            """Updates of the notice for a page without models, and of the lists of models."""
            return [gr.Markdown(visible=not arena.choices()), *update_model_lists(page, request)]

        def list_models_after_check(request: gr.Request):
            """As `list_models`, after a check of the peers."""
            arena.peers.check(CHECK_WAIT_SECONDS)
            return list_models(request)

        def stop_requests(request: gr.Request):
            """Stop the requests of a visitor who has closed the page."""
            for tab in (SingleTab, DuelTab, MatchTab):
                arena.running.stop(visitor_key(request, tab.name))

        def switch_timers(tab):
            """The handler of selecting a tab: only that tab's timer runs, if it has one."""
            return lambda: [gr.Timer(active=tab is owner) for owner in (training_tab, peers_tab)]

        opened = gr.on([blocks.load, refresh.click], list_models, None, [no_models, *page.models], **PRIVATE)
        opened.then(list_models_after_check, None, [no_models, *page.models], api_name="refresh", **UNQUEUED)
        blocks.unload(stop_requests)
        tabs = (single_tab, duel_tab, models_tab, tasks_tab, look_tab, board_tab, match_tab, training_tab, peers_tab)
        for tab in tabs:
            tab.select(switch_timers(tab), None, [training.timer, peers.timer], **PRIVATE)
    blocks.queue(default_concurrency_limit=MAX_CONCURRENT_EVENTS, api_open=False)
    return blocks


def add_header():
    """The page's name and what it is for, with the buttons that concern the whole page. Returns the one of Refresh."""
    with gr.Row(elem_id="head"):
        gr.Markdown(T("head"), elem_id="title")
        with gr.Row(elem_id="page-buttons"):
            refresh = gr.Button(T("refresh"), elem_id="refresh", size="sm", scale=0, min_width=64)
            theme = gr.Button(T("switch_theme"), elem_id="switch-theme", size="sm", scale=0, min_width=64)
            language = gr.Button(T("switch_language"), elem_id="switch-language", size="sm", scale=0, min_width=64)
    theme.click(None, None, None, js="() => minigpt.switchTheme()", api_visibility="private")
    language.click(None, None, None, js="() => minigpt.switchLanguage()", api_visibility="private")
    return refresh


def add_examples(rows, prompt, elem_id):
    """Buttons for the rows [prompt, kind, note], those of fine-tuned models first. A click fills the prompt."""
    for kind, suffix in (("sft", ""), ("pretrain", "-pretrain")):
        dataset = gr.Dataset(
            label=T(f"examples_{kind}"), components=[gr.Textbox(visible=False)], type="values",
            samples=[row[:1] for row in rows if row[1] == kind], samples_per_page=EXAMPLES_PER_PAGE,
            elem_id=elem_id + suffix,
        )  # fmt: skip
        dataset.click(lambda row: row[0], dataset, prompt, **PRIVATE)


class GuardedBlocks(gr.Blocks):
    """gr.Blocks that accept files for gr.File components only, and no addresses of files.

    Gradio copies a value that looks like a file into its cache, and serves it from there, for any component.
    """

    async def preprocess_data(self, block_fn, inputs, *more, **named):
        for component, value in zip(block_fn.inputs, inputs, strict=False):
            refuse_files(value, isinstance(component, gr.File))
        return await super().preprocess_data(block_fn, inputs, *more, **named)


def refuse_files(value, allowed):
    """Raises gr.Error if a value sent by a browser contains a file that is not allowed, or the address of one."""
    if isinstance(value, list):
        for item in value:
            refuse_files(item, allowed)
    elif isinstance(value, dict):
        if {"path", "url", "meta"} & set(value) and not (allowed and "://" not in str(value.get("path"))):
            raise gr.Error("files are not accepted here", print_exception=False)
        for item in value.values():
            refuse_files(item, allowed)
