"""Each function of the page by gradio_client, over models that say the prompt back, and what the page refuses."""

import csv
import html
import http.client
import json
import socket
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import gradio_client
import pytest
from arena_fakes import __file__ as fake
from arena_fakes import write_checkpoints
from peer_fakes import peer
from serving_fakes import started

FIELDS = [30, 0.1, 20, 1, 0, ""]  # as the page sends them
ELSEWHERE = {"X-Forwarded-For": "203.0.113.7"}
FILE = {"_type": "gradio.FileData"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arena")
    write_checkpoints(folder / "out")
    return folder


@pytest.fixture(scope="module")
def arena(folder):
    with started(fake, "--port=0", "--peers=peers.json", cwd=folder) as server:
        yield server


@pytest.fixture
def client(arena):
    client = visitor(arena)
    yield client
    client.close()


def visitor(arena, **headers):
    """A new session, in Chinese unless told otherwise."""
    headers = {"Accept-Language": "zh-CN", **headers}
    return gradio_client.Client(arena.url, headers=headers, verbose=False)


def texts(chat):
    """[(role, text)] of a chatbot's value, whose text is HTML."""
    return [(message["role"], html.unescape("".join(part["text"] for part in message["content"]))) for message in chat]


def table(value):
    """Rows of a Dataframe's value, or of an update of one."""
    return value.get("value", value)["data"]


def votes_of(folder):
    path = folder / "arena" / "votes.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def test_one_model_answers_with_its_time(client):
    chat, _, state = client.predict("alpha", "full stop", *FIELDS, api_name="/ask")
    assert texts(chat) == [("user", "full stop"), ("assistant", "full stop")]
    assert "首字" in state and "9 token" in state
    chat, _, _ = client.predict("base", "full stop too", *FIELDS, api_name="/ask")
    assert len(chat) == 4  # what came before stays
    assert client.predict(api_name="/clear") == ([], "")


def test_text_comes_while_it_is_made(client):
    job = client.submit("alpha", "slow" * 5, *FIELDS, api_name="/ask")
    job.result(timeout=30)
    lengths = [len(texts(output[0])[-1][1]) for output in job.outputs() if isinstance(output[0], list) and output[0]]
    assert len(set(lengths)) > 5 and lengths == sorted(lengths) and lengths[-1] == 30


def test_stop_stops_the_generation_and_the_text_stays(client, arena):
    job = client.submit("alpha", "slow" * 100, 4000, *FIELDS[1:], api_name="/ask")
    while len(job.outputs()) < 4:
        time.sleep(0.02)
    started_at = time.monotonic()
    assert client.predict(api_name="/stop") == "已停止"
    chat, _, state = job.result(timeout=10)
    assert time.monotonic() - started_at < 2 and "已停止" in state and len(texts(chat)[-1][1]) < 400
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
    assert client.predict(api_name="/stop") == "nothing is being generated"
    _, _, state = client.predict("alpha", "full stop", *FIELDS, api_name="/ask")
    assert state.startswith("first token") and "tokens/s" in state
    client.close()


def test_an_engine_that_fails_is_said_and_what_came_before_it_stays(client):
    chat, _, state = client.predict("alpha", "fail slow", *FIELDS, api_name="/ask")
    assert texts(chat)[-1] == ("assistant", "fa") and state.startswith("⚠ alpha")


def test_a_flagged_answer_is_in_the_csv_with_its_settings(client, folder):
    assert client.predict(api_name="/flag") == "还没有可标记的回答"
    client.predict("alpha", "full stop, =标记", *FIELDS, api_name="/ask")
    assert "flagged.csv" in client.predict(api_name="/flag")
    text = (folder / "arena" / "flagged.csv").read_text(encoding="utf-8-sig")
    assert "full stop, =标记" in text and '""max_new_tokens"": 30' in text and "alpha (step 7)" in text


def test_two_models_answer_at_once_by_name_and_a_vote_counts_once(client, folder):
    before = len(votes_of(folder))
    left, right, left_line, right_line, _, state, *_ = client.predict(
        False, "alpha", "base", "full stop 甲", *FIELDS, api_name="/duel"
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
    job = client.submit(True, "alpha", "base", "slow full stop", *FIELDS, api_name="/duel")
    result = job.result(timeout=30)
    shown = json.dumps([*job.outputs(), result], ensure_ascii=False, default=str)
    assert not any(name in shown for name in ("alpha", "beta", "base (")) and "token" not in shown
    said, left_line, *_ = client.predict(api_name="/vote_tie")
    assert "step 7" in said and "token/s" in left_line


def test_stopping_a_duel_stops_both(client):
    job = client.submit(False, "alpha", "beta", "slow" * 100, 4000, *FIELDS[1:], api_name="/duel")
    while len(job.outputs()) < 4:
        time.sleep(0.02)
    client.predict(api_name="/duel_stop")
    left, right, left_line, right_line, *_ = job.result(timeout=10)
    assert "已停止" in left_line and "已停止" in right_line and texts(left)[-1][1] and texts(right)[-1][1]


def test_the_board_shows_the_votes_and_exports_them(client, arena):
    for _ in range(3):
        client.predict(False, "alpha", "beta", "full stop 榜", *FIELDS, api_name="/duel")
        client.predict(api_name="/vote_left")
    state, standings, plot, against, board, preferences = client.predict("vote", api_name="/board")
    assert "票" in state and "alpha (step 7)" in [row[1] for row in table(standings)]
    assert plot["type"] == "altair" and any("3-0-" in str(row) for row in table(against))
    with open(path_of(board), encoding="utf-8") as file:
        assert next(csv.reader(file))[:5] == ["rank", "model", "score", "low", "high"]
    assert path_of(preferences).endswith(".jsonl")
    far = visitor(arena, **ELSEWHERE)
    assert "path" not in json.dumps(far.predict("all", api_name="/board")[-1] or {})  # others' prompts
    far.close()


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


def test_a_peer_is_added_asked_and_removed(client, folder):
    with peer(["echo"], "minigpt") as other:
        *form, rows, said, _ = client.predict("小明", other.address, "k", api_name="/add_peer")[:6]
        assert form == ["", "", ""] and "已添加" in said
        (row,) = table(rows)
        assert row[:2] == ["小明", other.address] and "ms" in row[2] and row[3] == "echo"
        chat, _, state = client.predict("echo @ 小明", "你好", *FIELDS, api_name="/ask")
        assert texts(chat)[-1] == ("assistant", "你好") and "首字" in state
        assert other.seen[-1][1]["Authorization"] == "Bearer k"
        assert "k" in (folder / "peers.json").read_text(encoding="utf-8")
        assert '"k"' not in json.dumps(client.predict(api_name="/peers"), default=str)
    assert "⚠" in client.predict("file", "file:///etc/passwd", "", api_name="/add_peer")[4]
    _, said, *_ = client.predict("小明", api_name="/remove_peer")
    assert "已删除" in said and (folder / "peers.json").read_text(encoding="utf-8").strip() == "[]"


@pytest.mark.parametrize("headers", [ELSEWHERE, {"Forwarded": "for=1.2.3.4"}, {"X-Real-IP": "1.2.3.4"}])
def test_who_comes_from_elsewhere_can_add_and_remove_no_peer(arena, folder, headers):
    (folder / "peers.json").write_text('[{"name": "a", "address": "x"}]', encoding="utf-8")
    client = visitor(arena, **headers)
    form = client.predict("b", "127.0.0.1:80", "k", api_name="/add_peer")
    assert "坐在这台机器前" in form[4] and [*form[:3]] == ["b", "127.0.0.1:80", "k"]
    assert "坐在这台机器前" in client.predict("a", api_name="/remove_peer")[1]
    assert (folder / "peers.json").read_text(encoding="utf-8") == '[{"name": "a", "address": "x"}]'
    client.close()
    (folder / "peers.json").unlink()


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


def test_a_tab_that_is_closed_stops_its_answer(arena, folder):
    client = visitor(arena)
    job = client.submit("beta", "slow" * 100, 4000, *FIELDS[1:], api_name="/ask")
    while len(job.outputs()) < 3:
        time.sleep(0.02)
    job.cancel()
    client.close()
    begun = time.monotonic()
    other = visitor(arena)
    # A fake's whole batch slows down while anything slow is in it.
    while True:
        asked = time.monotonic()
        other.predict("beta", "quick", *FIELDS, api_name="/ask")
        if time.monotonic() - asked < 0.8:
            break
        assert time.monotonic() - begun < 20
    other.close()


def test_clear_stops_an_answer_and_what_it_had_made_is_not_shown(client):
    job = client.submit("alpha", "slow" * 100, 4000, *FIELDS[1:], api_name="/ask")
    while len(job.outputs()) < 4:
        time.sleep(0.02)
    client.predict(api_name="/clear")
    assert job.result(timeout=10)[0] == []
    job = client.submit(False, "alpha", "beta", "slow" * 100, 4000, *FIELDS[1:], api_name="/duel")
    while len(job.outputs()) < 4:
        time.sleep(0.02)
    client.predict(api_name="/duel_clear")
    assert job.result(timeout=10)[:2] == ([], [])
    assert "没有等待投票" in client.predict(api_name="/vote_left")[0]


def test_a_vote_stays_possible_when_the_next_question_cannot_be_asked(client):
    client.predict(False, "alpha", "beta", "full stop", *FIELDS, api_name="/duel")
    for left, right, prompt in (("gone", "beta", "x"), ("alpha", "alpha", "x"), ("alpha", "beta", " ")):
        result = client.predict(False, left, right, prompt, *FIELDS, api_name="/duel")
        assert result[5].startswith("⚠") and result[4] == prompt
    assert "已投票" in client.predict(api_name="/vote_bad")[0]


def test_stop_while_a_model_is_loading_stops_what_would_come(folder):
    with started(fake, "--port=0", "--arena_dir=late", cwd=folder, FAKE_LOADING="1") as server:
        client = visitor(server)
        job = client.submit("alpha", "slow" * 50, *FIELDS, api_name="/ask")
        while not job.outputs():  # "loading"
            time.sleep(0.01)
        assert client.predict(api_name="/stop") == "已停止"
        assert texts(job.result(timeout=10)[0])[-1][1] in ("", "（没有回答）", "s")
        job = client.submit(["beta", "base"], None, 5, *FIELDS, api_name="/match")
        time.sleep(0.4)
        assert client.predict(api_name="/match_stop") == "已停止"
        assert "没有计票" in job.result(timeout=10)[0] and not (folder / "late").exists()
        client.close()


# What the page refuses


def ask_raw(arena, method, path, body=b"", **headers):
    """(status, body) of a plain request."""
    return arena.ask(method, path, body, headers={k.replace("_", "-"): v for k, v in headers.items()})[::2]


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/file=/etc/passwd", "/gradio_api/file=peers.json", "/gradio_api/file=../peers.json",
     "/gradio_api/file=arena/votes.jsonl", "/gradio_api/file=out/alpha/ckpt.pt", "/file=/etc/passwd",
     "/gradio_api/file=http://127.0.0.1:9/", "/gradio_api/file=https://example.com/x", "/gradio_api/file=HTTP://x/",
     "/gradio_api/proxy=http://127.0.0.1:9/", "/gradio_api/vibe-code", "/gradio_api/deep_link", "/monitoring",
     "/monitoring/summary", "/gradio_api/run-history/buckets", "/gradio_api/custom_component/x/y/z/w",
     "/static/../../peers.json",
     "/gradio_api/../peers.json", "/assets/..%2f..%2f..%2fpeers.json"],
)  # fmt: skip
def test_no_file_and_no_address_is_fetched_for_a_visitor(arena, folder, path):
    (folder / "peers.json").write_text('[{"name": "a", "address": "x", "key": "geheim"}]', encoding="utf-8")
    status, body = ask_raw(arena, "GET", path)
    assert status in (403, 404, 405, 422) and b"geheim" not in body and b"root:" not in body
    (folder / "peers.json").unlink()


def raw(arena, name, data):
    """What a function's stream says to data sent as they are (gradio_client would upload files first)."""
    session, config = uuid.uuid4().hex, json.loads(ask_raw(arena, "GET", "/config")[1])
    (index,) = (each["id"] for each in config["dependencies"] if each["api_name"] == name)
    body = json.dumps({"data": data, "fn_index": index, "session_hash": session}).encode()
    status, answer = ask_raw(arena, "POST", "/gradio_api/queue/join", body)
    assert status == 200, answer
    return ask_raw(arena, "GET", f"/gradio_api/queue/data?session_hash={session}")[1].decode()


@pytest.mark.parametrize("path", ["/etc/passwd", "peers.json", "http://127.0.0.1:9/x", "https://example.com/x"])
def test_a_file_that_is_named_in_the_place_of_a_text_is_not_read(arena, folder, path):
    (folder / "peers.json").write_text('[{"name": "a", "address": "x", "key": "geheim"}]', encoding="utf-8")
    path = str(folder / path) if path == "peers.json" else path
    for payload in ({"path": path, "meta": FILE}, {"path": path}, [{"path": path, "meta": FILE}], {"url": path}):
        for name, data in (
            ("ask", ["alpha", payload, None, *FIELDS]),
            ("duel", [False, "alpha", payload, "x", None, *FIELDS]),
            ("match", [["alpha", "beta"], payload, 1, *FIELDS]),
        ):
            said = raw(arena, name, data)
            assert '"success":false' in said and not any(word in said for word in ("root:", "geheim", "/tmp/gradio"))
        status, said = ask_raw(
            arena, "POST", "/gradio_api/run/add_peer", json.dumps({"data": [payload, "x", ""]}).encode()
        )
        assert status == 500 and b"passwd" not in said and b"geheim" not in said
    (folder / "peers.json").unlink()


def test_another_name_and_another_origin_are_refused(arena):
    for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example"):
        assert ask_raw(arena, "GET", "/", Host=host)[0] == 403
    assert ask_raw(arena, "GET", "/", Host=f"localhost:{arena.port}")[0] == 200
    posted = {"Content_Type": "text/plain", "Origin": "http://evil.example"}
    assert ask_raw(arena, "POST", "/gradio_api/queue/join", b"{}", **posted)[0] == 403
    assert ask_raw(arena, "POST", "/gradio_api/queue/join", b"{}", Origin="null")[0] == 403


def test_no_page_of_another_origin_reads_anything(arena):
    for path in ("/config", "/gradio_api/token", "/gradio_api/info", "/"):
        status, body = ask_raw(arena, "GET", path, Origin="https://evil.example")
        assert status in (403, 404) and b"token" not in body.replace(b"tokens", b"")


def test_what_is_far_too_long_is_refused_before_it_is_read(arena):
    connection = http.client.HTTPConnection("127.0.0.1", arena.port, timeout=10)
    connection.putrequest("POST", "/gradio_api/queue/join")
    connection.putheader("Content-Length", str(1 << 40))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
    connection = http.client.HTTPConnection("127.0.0.1", arena.port, timeout=10)
    chunks = (b"x" * 65536 for _ in range(10))
    connection.request("POST", "/gradio_api/queue/join", chunks, {"Transfer-Encoding": "chunked"}, encode_chunked=True)
    assert connection.getresponse().status == 411
    connection.close()


def test_a_login_is_needed_where_one_is_set_and_lets_one_add_peers(folder):
    with started(fake, "--port=0", "--host=0.0.0.0", "--auth=me:geheim", "--peers=peers.json", cwd=folder) as server:
        assert "warning" not in "".join(server.lines)
        for path in ("/config", "/gradio_api/info", "/gradio_api/file=x", "/gradio_api/queue/data?session_hash=a"):
            assert ask_raw(server, "GET", path)[0] == 401
        with pytest.raises(Exception, match=r"(?i)login|auth|credentials|401"):
            gradio_client.Client(server.url, verbose=False, auth=("me", "wrong"))
        client = gradio_client.Client(server.url, verbose=False, auth=("me", "geheim"), headers=ELSEWHERE)
        assert "127.0.0.1:9" in json.dumps(client.predict("x", "127.0.0.1:9", "", api_name="/add_peer"), default=str)
        assert (folder / "peers.json").exists()
        client.close()
    (folder / "peers.json").unlink()


def test_a_proxy_of_any_kind_in_the_environment_does_not_keep_the_page_from_starting(folder):
    with peer(["echo"]) as other:
        (folder / "peers.json").write_text(json.dumps([{"name": "p", "address": other.address}]), encoding="utf-8")
        proxies = {"ALL_PROXY": "socks5://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "NO_PROXY": ""}
        with started(fake, "--port=0", "--peers=peers.json", cwd=folder, **proxies) as server:
            client = visitor(server)
            assert "ms" in table(client.predict(api_name="/peers")[0])[0][2]
            assert texts(client.predict("echo @ p", "你好", *FIELDS, api_name="/ask")[0])[-1] == ("assistant", "你好")
            client.close()
    (folder / "peers.json").unlink()


def test_mistakes_at_the_start_are_one_line(folder, script):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = script("sample_gradio.py", f"--port={port}", cwd=folder)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and f"port {port} is taken" in done.stderr
    for auth in ("onlyuser", "user:", ":password"):
        done = script("sample_gradio.py", f"--auth={auth}", cwd=folder)
        assert done.returncode == 1 and "user:password" in done.stderr


def test_an_open_page_without_a_login_warns_and_stops_at_ctrl_c_with_zero(folder):
    with started(fake, "--port=0", "--host=0.0.0.0", cwd=folder) as server:
        assert "warning: everyone" in "".join(server.lines)
        code, said = server.stop()
        assert code == 0 and "Traceback" not in said
