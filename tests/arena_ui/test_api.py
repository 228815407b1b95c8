"""Each function of the page, called with gradio_client. The models repeat the prompt."""

import csv
import json
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import gradio_client
import pytest
from arena_fakes import write_checkpoints, write_votes
from arena_visitors import ELSEWHERE, FIELDS, table, texts, visitor
from page_in_browser import HANG_SECONDS
from peer_fakes import peer

from minigpt.arena_ui.preferences import WANTED_PAIRS, describe_pairs


@pytest.fixture(scope="module")
def client(arena):
    """A visitor; tests do not rely on what the earlier ones left in the session."""
    client = visitor(arena)
    yield client
    client.close()


def wait_until(condition):
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < HANG_SECONDS
        time.sleep(0.02)


def votes_of(folder):
    path = folder / "arena" / "votes.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def test_one_model_answers_with_its_time(client):
    client.predict(api_name="/clear")
    chat, _, state = client.predict("alpha", "full stop", *FIELDS, api_name="/ask")
    assert texts(chat) == [("user", "full stop"), ("assistant", "full stop")]
    assert "首字" in state and "9 token" in state
    chat, _, _ = client.predict("base", "full stop too", *FIELDS, api_name="/ask")
    assert len(chat) == 4  # what came before stays
    chat, _, state = client.predict(api_name="/clear")
    assert (chat, state) == ([], "")


def test_text_comes_while_it_is_made(client):
    job = client.submit("alpha", "slow" * 5, *FIELDS, api_name="/ask")
    job.result(HANG_SECONDS)
    lengths = [len(texts(output[0])[-1][1]) for output in job.outputs() if isinstance(output[0], list) and output[0]]
    assert len(set(lengths)) > 5 and lengths == sorted(lengths) and lengths[-1] == 30


def test_stop_stops_the_generation_and_the_text_stays(client, arena):
    job = client.submit("alpha", "slow" * 100, 4000, *FIELDS[1:], api_name="/ask")
    wait_until(lambda: len(job.outputs()) >= 4)
    assert client.predict(api_name="/stop") == "已停止"
    chat, _, state = job.result(HANG_SECONDS)
    assert "已停止" in state and 0 < len(texts(chat)[-1][1]) < 4000
    assert client.predict(api_name="/stop") == "没有正在生成的回答"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["alpha", "  ", *FIELDS], "先写点什么"),
        (["alpha", "长" * 40000, *FIELDS], "32768"),
        (["alpha", "好", 0, *FIELDS[1:]], "token"),
        (["alpha", "好", 30, 9, *FIELDS[2:]], "temperature"),
        (["alpha", "好", *FIELDS[:5], "-1"], "随机种子"),
    ],
)
def test_a_mistake_is_said_and_what_was_typed_stays(client, values, said):
    try:
        _, prompt, state = client.predict(*values, api_name="/ask")
    except Exception as error:  # Gradio's own check of a slider's range comes first
        assert "value" in str(error).lower() or "minimum" in str(error).lower() or "maximum" in str(error).lower()
    else:
        assert state.startswith("⚠") and said in state and prompt == values[1]


def test_handlers_speak_the_readers_language(arena):
    client = visitor(arena, **{"Accept-Language": "en-GB,en;q=0.9,zh;q=0.5"})
    assert client.predict(api_name="/stop") == "No answer is being generated"
    _, _, state = client.predict("alpha", "full stop", *FIELDS, api_name="/ask")
    assert state.startswith("first token") and "tokens/s" in state
    client.close()


def test_an_engine_that_fails_is_said_and_what_came_before_it_stays(client):
    chat, _, state = client.predict("alpha", "fail slow", *FIELDS, api_name="/ask")
    assert texts(chat)[-1] == ("assistant", "fa") and state.startswith("⚠ alpha")


def test_a_flagged_answer_is_in_the_csv_with_its_settings(client, folder):
    client.predict(api_name="/clear")
    assert client.predict(api_name="/flag") == "还没有可标记的回答"
    client.predict("alpha", "full stop, =标记", *FIELDS, api_name="/ask")
    assert "flagged.csv" in client.predict(api_name="/flag")
    text = (folder / "arena" / "flagged.csv").read_text(encoding="utf-8-sig")
    assert "full stop, =标记" in text and '""max_new_tokens"": 30' in text and "alpha (step 7)" in text


def test_two_models_answer_at_once_by_name_and_a_vote_counts_once(client, folder):
    before = len(votes_of(folder))
    left, right, left_line, right_line, _, state, *_ = client.predict(
        False, "alpha", "base", "full stop 甲", *FIELDS, api_name="/duel_ask"
    )
    assert texts(left) == texts(right) == [("user", "full stop 甲"), ("assistant", "full stop 甲")]
    assert left_line.startswith("alpha (step 7)") and right_line.startswith("base (step 7)") and "哪个更好" in state
    assert "已投票" in client.predict(api_name="/vote_right")[0]
    assert client.predict(api_name="/vote_right")[0].startswith("⚠")
    (vote,) = votes_of(folder)[before:]
    assert (vote["left"], vote["right"], vote["result"]) == ("alpha (step 7)", "base (step 7)", "right")
    assert vote["prompt"] == vote["left_answer"] == "full stop 甲" and not vote["blind"]
    assert client.predict(api_name="/duel_flag").startswith("已记入")


def test_a_blind_battle_tells_no_name_before_the_vote(client):
    job = client.submit(True, "alpha", "base", "slow full stop", *FIELDS, api_name="/duel_ask")
    result = job.result(HANG_SECONDS)
    shown = json.dumps([*job.outputs(), result], ensure_ascii=False, default=str)
    assert not any(name in shown for name in ("alpha", "beta", "base (")) and "token" not in shown
    said, left_line, *_ = client.predict(api_name="/vote_tie")
    assert "step 7" in said and "token/s" in left_line


def test_stopping_a_duel_stops_both(client):
    job = client.submit(False, "alpha", "beta", "slow" * 100, 4000, *FIELDS[1:], api_name="/duel_ask")
    wait_until(lambda: len(job.outputs()) >= 4)
    client.predict(api_name="/duel_stop")
    left, right, left_line, right_line, *_ = job.result(HANG_SECONDS)
    assert "已停止" in left_line and "已停止" in right_line and texts(left)[-1][1] and texts(right)[-1][1]


def test_the_board_shows_the_votes_and_exports_them(client):
    before = decided_battles(client.predict("vote", api_name="/board")[3])
    for _ in range(3):
        client.predict(False, "alpha", "beta", "full stop 榜", *FIELDS, api_name="/duel_ask")
        client.predict(api_name="/vote_left")
    state, standings, plot, against, board, *_ = client.predict("vote", api_name="/board")
    assert "票" in state and "alpha (step 7)" in [row[1] for row in table(standings)]
    assert plot["type"] == "altair" and decided_battles(against) == before + 3
    with open(path_of(board), encoding="utf-8") as file:
        assert next(csv.reader(file))[:5] == ["rank", "model", "score", "low", "high"]


def test_two_answers_of_one_model_are_voted_on_as_a_preference_and_no_game(client, folder):
    games = decided_battles(client.predict("vote", api_name="/board")[3])
    left, right, *_ = client.predict(False, "alpha", "alpha", "full stop 同", *FIELDS, api_name="/duel_ask")
    assert texts(left) == texts(right)
    assert "已投票" in client.predict(api_name="/vote_left")[0]
    vote = votes_of(folder)[-1]
    assert vote["left"] == vote["right"] == "alpha (step 7)"
    assert decided_battles(client.predict("vote", api_name="/board")[3]) == games


def test_the_way_from_votes_to_a_model_is_written_out_and_the_tuned_model_is_listed(arena, folder):
    client = visitor(arena, **{"Accept-Language": "en"})
    before = int(re.search(r"(\d+) of them make pairs", pairs_shown(client, None)[1])[1])
    write_votes(folder / "arena", [f"问{number}" for number in range(WANTED_PAIRS - 1)])
    model, state, download, command = pairs_shown(client, None)
    assert model["value"] == "alpha" and f"{before + WANTED_PAIRS - 1} of them" in state
    flags = ["--preferences=arena/preferences.jsonl", "--init_from=out/alpha/ckpt.pt", "--out_dir=out/alpha_votes"]
    assert command.split() == ["python", "train.py", "config/dpo.py", *flags]

    # The file that the command names has what can be downloaded.
    said, command = client.predict("vote", "beta", api_name="/write_preferences")
    assert "arena/preferences.jsonl" in said and "--init_from=out/beta/ckpt.pt" in command
    lines = (folder / "arena" / "preferences.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == before + WANTED_PAIRS - 1
    assert json.loads(lines[-1]) == {"prompt": f"问{WANTED_PAIRS - 2}", "chosen": "短", "rejected": "长长"}
    with open(path_of(download), encoding="utf-8") as file:
        assert file.read().splitlines() == lines

    # What the command trains is in the list without a restart, and can be trained again.
    write_checkpoints(folder / "out", ["alpha_votes"])
    listed = json.dumps(client.predict(api_name="/refresh"), ensure_ascii=False)
    assert "alpha_votes · " in listed
    write_votes(folder / "arena", ["再问"] * 100, "alpha_votes (step 7)")
    *_, command = pairs_shown(client, None)
    assert "--init_from=out/alpha_votes/ckpt.pt --out_dir=out/alpha_votes2" in command
    shutil.rmtree(folder / "out" / "alpha_votes")
    client.close()


def pairs_shown(client, model):
    """The section of the way from votes to a model: updates of the model and the download, texts of the state and the
    command."""
    return client.predict("vote", model, api_name="/preferences")


@pytest.mark.parametrize(("votes", "wanted"), [(0, True), (WANTED_PAIRS - 1, True), (WANTED_PAIRS, False)])
def test_too_few_pairs_are_said(votes, wanted):
    assert ("at least 60" in describe_pairs(None, [{}] * 99, [{}] * votes)) == wanted


def test_who_comes_from_elsewhere_gets_no_preferences_and_writes_none(arena, folder):
    file = folder / "arena" / "preferences.jsonl"
    file.unlink(missing_ok=True)
    write_votes(folder / "arena", ["别人的话"])
    client = visitor(arena, **ELSEWHERE)
    shown = pairs_shown(client, None)
    assert not re.search("path|preferences|票", json.dumps(shown, ensure_ascii=False))  # others' prompts
    assert "坐在这台机器前" in client.predict("vote", "alpha", api_name="/write_preferences")[0]
    assert not file.exists()
    client.close()


def decided_battles(against):
    """Number of battles with a winner, by a table of wins, losses and ties such as 3-0-1."""
    counts = re.findall(r"\b(\d+)-\d+-\d+\b", str(table(against)))
    return sum(map(int, counts))


def path_of(value):
    """The downloaded file of a DownloadButton's value."""
    value = value.get("value", value) if isinstance(value, dict) else value
    return value["path"] if isinstance(value, dict) else value


def test_a_match_runs_a_file_and_feeds_the_board(client, folder, tmp_path):
    path = tmp_path / "questions.jsonl"
    rows = [{"question": f"full stop {i}", "answer": f"full stop {i}"} for i in range(20)]
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join(["{broken", *lines]), encoding="utf-8")
    before = len(votes_of(folder))
    state, summary, answers, file = client.predict(
        ["alpha", "base"], gradio_client.handle_file(str(path)), 0, *FIELDS, api_name="/match"
    )
    assert "20 题" in state and "跳过 1 行" in state and "20 票" in state and "平" in state
    assert [row[1:] for row in table(summary)] == [["20 / 20", "1.000", "1.000"]] * 2
    assert len(table(answers)) == 20 and table(answers)[0][0] == "full stop 0"
    assert {vote["kind"] for vote in votes_of(folder)[before:]} == {"match"} and len(votes_of(folder)) == before + 20
    with open(path_of(file), encoding="utf-8") as file:
        assert len(file.readlines()) == 21
    assert "⚠" in client.predict(["alpha"], None, 5, *FIELDS, api_name="/match")[0]
    assert "2 题" in client.predict(["alpha", "base"], None, 2, *FIELDS, api_name="/match")[0]


def test_a_peer_is_added_asked_and_removed(client, peers_file):
    with peer(["echo"], "minigpt") as other:
        *form, rows, said, _ = client.predict("小明", other.address, "k", api_name="/add_peer")[:6]
        assert form == ["", "", ""] and "已添加" in said
        (row,) = table(rows)
        assert row[:2] == ["小明", other.address] and "ms" in row[2] and row[3] == "echo"
        chat, _, state = client.predict("echo @ 小明", "你好", *FIELDS, api_name="/ask")
        assert texts(chat)[-1] == ("assistant", "你好") and "首字" in state
        assert other.seen[-1][1]["Authorization"] == "Bearer k"
        assert "k" in peers_file.read_text(encoding="utf-8")
        assert '"k"' not in json.dumps(client.predict(api_name="/peers"), default=str)
    assert "⚠" in client.predict("file", "file:///etc/passwd", "", api_name="/add_peer")[4]
    _, said, *_ = client.predict("小明", api_name="/remove_peer")
    assert "已删除" in said and peers_file.read_text(encoding="utf-8").strip() == "[]"


@pytest.mark.parametrize("headers", [ELSEWHERE, {"Forwarded": "for=1.2.3.4"}, {"X-Real-IP": "1.2.3.4"}])
def test_who_comes_from_elsewhere_can_add_and_remove_no_peer(arena, peers_file, headers):
    peers_file.write_text('[{"name": "a", "address": "x"}]', encoding="utf-8")
    client = visitor(arena, **headers)
    form = client.predict("b", "127.0.0.1:80", "k", api_name="/add_peer")
    assert "坐在这台机器前" in form[4] and [*form[:3]] == ["b", "127.0.0.1:80", "k"]
    assert "坐在这台机器前" in client.predict("a", api_name="/remove_peer")[1]
    assert peers_file.read_text(encoding="utf-8") == '[{"name": "a", "address": "x"}]'
    client.close()


def test_the_training_tab_gives_the_curves_of_the_runs(client, folder):
    assert "没有训练记录" in client.predict([], api_name="/training")[2]
    lines = [{"step": i, "train_loss": 5 - i / 10, "val_loss": 4.5 if i == 9 else None} for i in range(10)]
    path = folder / "out" / "alpha" / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    _, plot, said, *_ = client.predict([], api_name="/training")
    assert "第 9 步" in said and "4.5000" in said and "训练中" in said and plot["type"] == "altair"
    path.unlink()


@pytest.mark.soak_only
def test_ten_tabs_at_once_each_have_their_own_text_and_none_waits_for_another(arena):
    clients = [visitor(arena) for _ in range(10)]

    def ask(number):
        begun = time.monotonic()
        job = clients[number].submit("alpha", f"slow {number} " * 5, 20, *FIELDS[1:], api_name="/ask")
        while not any(isinstance(o[0], list) and o[0] and texts(o[0])[-1][1] for o in job.outputs()):
            time.sleep(0.01)
        first = time.monotonic() - begun
        return texts(job.result(timeout=60)[0]), first, time.monotonic() - begun

    with ThreadPoolExecutor(10) as pool:
        results = list(pool.map(ask, range(10)))
    for number, (chat, first, whole) in enumerate(results):
        assert chat == [("user", f"slow {number} " * 5), ("assistant", (f"slow {number} " * 5)[:20])]
        assert first < whole
    ends = [whole for _, _, whole in results]
    assert max(first for _, first, _ in results) < max(ends)  # all were under way before the last had ended
    for client in clients:
        client.close()


def test_a_closed_tab_stops_its_answer(arena, peers_file):
    with peer(["slow"]) as other:
        peers_file.write_text(json.dumps([{"name": "p", "address": other.address}]), encoding="utf-8")
        client = visitor(arena)
        job = client.submit("slow @ p", "慢" * 4000, *FIELDS, api_name="/ask")
        wait_until(lambda: len(job.outputs()) >= 3)
        client.close()
        wait_until(lambda: other.left)  # the peer notices that the connection is closed


def test_clear_stops_an_answer_and_what_it_had_made_is_not_shown(client):
    job = client.submit("alpha", "slow" * 100, 4000, *FIELDS[1:], api_name="/ask")
    wait_until(lambda: len(job.outputs()) >= 4)
    client.predict(api_name="/clear")
    assert job.result(HANG_SECONDS)[0] == []
    job = client.submit(False, "alpha", "beta", "slow" * 100, 4000, *FIELDS[1:], api_name="/duel_ask")
    wait_until(lambda: len(job.outputs()) >= 4)
    client.predict(api_name="/duel_clear")
    assert job.result(HANG_SECONDS)[:2] == ([], [])
    assert "没有等待投票" in client.predict(api_name="/vote_left")[0]


def test_a_vote_stays_possible_when_the_next_question_cannot_be_asked(client):
    client.predict(False, "alpha", "beta", "full stop", *FIELDS, api_name="/duel_ask")
    for left, right, prompt in (("gone", "beta", "x"), ("alpha", None, "x"), ("alpha", "beta", " ")):
        result = client.predict(False, left, right, prompt, *FIELDS, api_name="/duel_ask")
        assert result[5].startswith("⚠") and result[4] == prompt
    assert "已投票" in client.predict(api_name="/vote_bad")[0]


def test_stop_while_a_model_is_loading_stops_what_would_come(client, folder):
    write_checkpoints(folder / "out", ["gated", "gated-2"])
    before = len(votes_of(folder))
    job = client.submit("gated", "slow" * 50, *FIELDS, api_name="/ask")
    wait_until(job.outputs)  # the status line: it is being loaded
    assert client.predict(api_name="/stop") == "已停止"
    (folder / "out" / "gated" / "open").touch()
    assert texts(job.result(HANG_SECONDS)[0])[-1][1] in ("", "（没有回答）", "s")
    job = client.submit(["gated-2", "alpha"], None, 5, *FIELDS, api_name="/match")
    wait_until(lambda: client.predict(api_name="/match_stop") == "已停止")
    (folder / "out" / "gated-2" / "open").touch()
    assert "没有计票" in job.result(HANG_SECONDS)[0] and len(votes_of(folder)) == before
    for name in ("gated", "gated-2"):
        shutil.rmtree(folder / "out" / name)


def test_only_the_timer_of_the_selected_tab_runs(arena):
    config = json.loads(arena.ask("GET", "/config")[2])
    components = {each["id"]: each for each in config["components"]}
    timers = {}  # tab's id: which timers it starts
    for event in config["dependencies"]:
        if event["outputs"] and all(components[output]["type"] == "timer" for output in event["outputs"]):
            ((tab, name),) = event["targets"]
            assert name == "select"
            body = {"data": [], "fn_index": event["id"], "session_hash": "timers"}
            updates = arena.post("/gradio_api/run/predict", **body)[1]["data"]
            timers[components[tab]["props"]["id"]] = [update["active"] for update in updates]
    others = {name: [False, False] for name in ("single", "duel", "models", "tasks", "look", "board", "match")}
    assert timers == {**others, "training": [True, False], "peers": [False, True]}
