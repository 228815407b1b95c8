"""The tab of the leaderboard: scores with intervals, who met whom, and both exports."""

import json

import altair
import gradio as gr
import pandas

from minigpt.arena.leaderboard import countable, head_to_head, standings
from minigpt.arena.votes import preferences, to_csv
from minigpt.arena_ui.common import AT_ONCE, TABLE, T, may_change, say, status_line, styled, warning

KINDS = ("all", "vote", "match")
COLUMNS = ("rank", "model", "score", "interval", "games", "won", "lost", "tied", "rate", "automatic")
ROW_PIXELS = 34


class BoardTab:
    """Built in the Tab that is open; `tab` is that, whose choosing shows the board anew."""

    def __init__(self, page, tab):
        self.page, self.arena, self._known = page, page.arena, {}
        with gr.Row():
            kind = gr.Radio(
                [(T(f"kind_{kind}"), kind) for kind in KINDS], value="all", label=T("votes_counted"), scale=4
            )
            refresh = gr.Button(T("refresh"), scale=1, min_width=80, elem_id="board-refresh")
        state = status_line("state-board")
        table = gr.Dataframe(label=T("standings"), elem_id="standings", **TABLE)
        plot = gr.Plot(label=T("plot"), elem_id="board-plot")
        against = gr.Dataframe(label=T("head_to_head"), elem_id="head-to-head", **TABLE)
        with gr.Row():
            save_board = gr.DownloadButton(T("save_board"), elem_id="save-board")
            save_preferences = gr.DownloadButton(T("save_preferences"), elem_id="save-preferences")
        gr.on(
            [tab.select, refresh.click, kind.change], self.show, kind,
            [state, table, plot, against, save_board, save_preferences], api_name="board", **AT_ONCE,
        )  # fmt: skip

    def show(self, request: gr.Request, kind):
        """The board of the votes of a kind."""
        try:
            votes, unreadable = self.arena.votes.all()
            counted, lines = self.standings(votes, kind)
        except Exception as error:  # whatever is in the file, the page lives on
            return [warning(request, error), *[gr.skip()] * 5]
        exports = [gr.update(value=self.page.file("leaderboard.csv", board_csv(lines)))]
        if may_change(request):  # the prompts of others are for who runs the arena
            pairs = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in preferences(counted))
            exports.append(gr.update(value=self.page.file("preferences.jsonl", pairs), visible=True))
        else:
            exports.append(gr.update(value=None, visible=False))
        headers = [say(request, f"col_{column}") for column in COLUMNS]
        table = pandas.DataFrame([shown(place, line) for place, line in enumerate(lines, 1)], columns=headers)
        models = [line.model for line in lines]
        return [
            self.state(request, counted, lines, unreadable), table, chart(request, lines),
            against_table(counted, models, say(request, "col_model")), *exports,
        ]  # fmt: skip

    def standings(self, votes, kind):
        """([vote] that count, [Standing]), computed once for the same votes."""
        known = self._known.get(kind)
        if known is None or known[0] is not votes:  # the list is another when the file has changed
            counted = countable(votes, kind)
            known = self._known[kind] = votes, counted, standings(counted)
        return known[1:]

    def state(self, request, votes, lines, unreadable):
        """How much the board rests on."""
        torn = say(request, "unreadable", count=unreadable) if unreadable else ""
        if not votes:
            return say(request, "no_votes") + torn
        automatic = sum(vote.get("kind") == "match" for vote in votes)
        counts = {"votes": len(votes), "automatic": automatic, "models": len(lines)}
        return say(request, "board_state", **counts, unreadable=torn)


def shown(place, line):
    """A Standing as a row of the page's table."""
    return [
        place, line.model, round(line.score), f"{line.low:.0f} – {line.high:.0f}", line.games, line.wins, line.losses,
        line.ties, f"{line.win_rate:.0%}", line.automatic,
    ]  # fmt: skip


def board_csv(lines):
    """The board as CSV, with the field's names."""
    head = ["rank", "model", "score", "low", "high", "games", "wins", "losses", "ties", "win_rate", "automatic"]
    rows = [
        [
            place, line.model, *(round(points, 1) for points in (line.score, line.low, line.high)), line.games,
            line.wins, line.losses, line.ties, round(line.win_rate, 4), line.automatic,
        ]
        for place, line in enumerate(lines, 1)
    ]  # fmt: skip
    return to_csv([head, *rows])


def against_table(votes, models, corner):
    """A DataFrame whose cells say how often the row's model beat, lost to and tied with the column's."""
    tally = head_to_head(votes, models)
    rows = []
    for i, model in enumerate(models):
        cells = [
            f"{tally[i, j, 0]}-{tally[j, i, 0]}-{tally[i, j, 1]}"
            if i != j and (tally[i, j] + tally[j, i]).any()
            else ""
            for j in range(len(models))
        ]
        rows.append([model, *cells])
    return pandas.DataFrame(rows, columns=[corner, *models])


def chart(request, lines):
    """The scores with their intervals; None without any."""
    if not lines:
        return None
    rows = [{"model": line.model, "score": line.score, "low": line.low, "high": line.high} for line in lines]
    order = [line.model for line in lines]
    score = say(request, "col_score")
    base = altair.Chart(pandas.DataFrame(rows)).encode(
        y=altair.Y("model:N", sort=order, title=None, axis=altair.Axis(labelLimit=200)),
        tooltip=["model", *(altair.Tooltip(column, format=".0f") for column in ("score", "low", "high"))],
    )
    scale = altair.Scale(zero=False, nice=True)
    spans = base.mark_rule(strokeWidth=3, color="#8aa4f0").encode(
        x=altair.X("low:Q", title=score, scale=scale), x2="high:Q"
    )
    points = base.mark_point(filled=True, size=90, color="#3b5bdb").encode(x=altair.X("score:Q", scale=scale))
    return styled(spans + points, ROW_PIXELS * len(lines) + 20)
