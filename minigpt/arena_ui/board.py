"""The tab of the leaderboard: scores with intervals, results of each pair of models, their export, and what votes are
for: a model tuned by them (preferences.py)."""

import altair
import gradio as gr
import pandas

from minigpt.arena.leaderboard import compute_standings, count_results, select_votes
from minigpt.arena.votes import format_csv
from minigpt.arena_ui.common import TABLE, UNQUEUED, T, status_line, style_chart, translate, warning_line
from minigpt.arena_ui.preferences import PreferencesSection
from minigpt.arena_ui.theme import CHART_COLOR, CHART_COLOR_SOFT

VOTE_KINDS = ("all", "vote", "match")
BOARD_COLUMNS = ("rank", "model", "score", "interval", "games", "won", "lost", "tied", "rate", "automatic")
ROW_HEIGHT = 34  # pixels of the chart per model


class BoardTab:
    """Adds its components to the open gr.Tab, `tab`; selecting it updates the leaderboard."""

    def __init__(self, page, tab):
        self.page, self.arena, self._computed = page, page.arena, {}
        with gr.Row():
            kind = gr.Radio(
                [(T(f"kind_{kind}"), kind) for kind in VOTE_KINDS], value="all", label=T("votes_counted"), scale=4
            )
            refresh = gr.Button(T("refresh"), scale=0, min_width=96, size="sm", elem_id="board-refresh")
        empty = gr.Markdown(T("board_empty"), visible=False, elem_id="board-empty", elem_classes="empty")
        state = status_line("state-board")
        with gr.Column(visible=False) as results:
            table = gr.Dataframe(label=T("standings"), elem_id="standings", **TABLE)
            plot = gr.Plot(label=T("plot"), elem_id="board-plot")
            against = gr.Dataframe(label=T("head_to_head"), elem_id="head-to-head", **TABLE)
            save_board = gr.DownloadButton(T("save_board"), elem_id="save-board")
        shown_by = [tab.select, refresh.click, kind.change]
        shown = [state, table, plot, against, save_board, empty, results]
        gr.on(shown_by, self.render, kind, shown, api_name="board", **UNQUEUED)
        PreferencesSection(page, shown_by, kind)

    def render(self, request: gr.Request, kind):
        """All outputs of the tab for the votes of a kind (of VOTE_KINDS)."""
        try:
            votes, unreadable = self.arena.votes.all()
            selected, standings = self.standings(votes, kind)
        except Exception as error:  # the file may contain anything
            return [warning_line(request, error), *[gr.skip()] * 6]
        board = self.page.save_download("leaderboard.csv", board_csv(standings))
        headers = [translate(request, f"col_{column}") for column in BOARD_COLUMNS]
        rows = [board_row(rank, standing) for rank, standing in enumerate(standings, 1)]
        models = [standing.model for standing in standings]
        return [
            self.describe(request, selected, standings, unreadable),
            pandas.DataFrame(rows, columns=headers),
            score_chart(request, standings),
            head_to_head_table(selected, models, translate(request, "col_model")),
            gr.update(value=board),
            gr.update(visible=not standings),
            gr.update(visible=bool(standings)),
        ]

    def standings(self, votes, kind):
        """([vote] selected, [Standing]), computed once for the same votes."""
        computed = self._computed.get(kind)
        if computed is None or computed[0] is not votes:  # Votes.all returns a new list when the file has changed
            selected = select_votes(votes, kind)
            computed = self._computed[kind] = votes, selected, compute_standings(selected)
        return computed[1:]

    def describe(self, request, votes, standings, unreadable):
        """The status line: numbers of votes and models, and of unreadable lines."""
        note = translate(request, "unreadable", count=unreadable) if unreadable else ""
        if not votes:  # said by the notice for an empty leaderboard
            return note
        automatic = sum(vote.get("kind") == "match" for vote in votes)
        counts = {"votes": len(votes), "automatic": automatic, "models": len(standings)}
        return translate(request, "board_state", **counts) + note


def board_row(rank, standing):
    """A Standing as a row of the page's table."""
    interval = f"{standing.low:.0f} – {standing.high:.0f}"
    return [
        rank, standing.model, round(standing.score), interval, standing.games, standing.wins, standing.losses,
        standing.ties, f"{standing.win_rate:.0%}", standing.automatic,
    ]  # fmt: skip


def board_csv(standings):
    """The leaderboard as CSV text."""
    header = ["rank", "model", "score", "low", "high", "games", "wins", "losses", "ties", "win_rate", "automatic"]
    rows = [
        [
            rank, s.model, *(round(points, 1) for points in (s.score, s.low, s.high)), s.games, s.wins, s.losses,
            s.ties, round(s.win_rate, 4), s.automatic,
        ]
        for rank, s in enumerate(standings, 1)
    ]  # fmt: skip
    return format_csv([header, *rows])


def head_to_head_table(votes, models, corner):
    """DataFrame whose cells are wins-losses-ties of the row's model against the column's; empty without a vote."""
    results = count_results(votes, models)
    rows = []
    for i, model in enumerate(models):
        cells = [
            f"{results[i, j, 0]}-{results[j, i, 0]}-{results[i, j, 1]}"
            if i != j and (results[i, j] + results[j, i]).any()
            else ""
            for j in range(len(models))
        ]
        rows.append([model, *cells])
    return pandas.DataFrame(rows, columns=[corner, *models])


def score_chart(request, standings):
    """altair.Chart of the scores with their intervals; None without any."""
    if not standings:
        return None
    order = [standing.model for standing in standings]
    score = translate(request, "col_score")
    base = altair.Chart(pandas.DataFrame(standings)).encode(
        y=altair.Y("model:N", sort=order, title=None, axis=altair.Axis(labelLimit=200)),
        tooltip=["model", *(altair.Tooltip(column, format=".0f") for column in ("score", "low", "high"))],
    )
    scale = altair.Scale(zero=False, nice=True)
    intervals = base.mark_rule(strokeWidth=3, color=CHART_COLOR_SOFT).encode(
        x=altair.X("low:Q", title=score, scale=scale), x2="high:Q"
    )
    points = base.mark_point(filled=True, size=90, color=CHART_COLOR).encode(x=altair.X("score:Q", scale=scale))
    return style_chart(intervals + points, ROW_HEIGHT * len(standings) + 20)
