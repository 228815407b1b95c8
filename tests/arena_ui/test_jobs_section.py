"""Training from the page, as visitors ask for it. No job is started here: tests/arena/test_jobs.py does that."""

import json

import gradio_client
import pytest
from arena_visitors import ELSEWHERE, visitor
from filelock import FileLock

from minigpt.arena.job_files import JOB_LOCK


@pytest.fixture(scope="module")
def client(arena):
    client = visitor(arena)
    yield client
    client.close()


@pytest.fixture
def locked(folder):
    """The folder of the page's jobs, whose lock is held, as a running job holds it."""
    place = folder / "out/page"
    place.mkdir(parents=True, exist_ok=True)
    job = {"kind": "tune", "name": "page/tuned-1", "commands": [{"arguments": []}] * 2, "next": 1, "status": "running"}
    (place / "job.json").write_text(json.dumps(job), encoding="utf-8")
    with FileLock(place / JOB_LOCK):
        yield place
    for path in place.iterdir():
        path.unlink()


def test_who_is_not_trusted_starts_and_stops_nothing(arena, locked):
    stranger = visitor(arena, **ELSEWHERE)
    for name, inputs in (("start_demo", ()), ("start_tuning", ("base", None, 3)), ("stop_job", ()), ("resume_job", ())):
        assert "坐在这台机器前" in str(stranger.predict(*inputs, api_name=f"/{name}"))
    assert not (locked / "job.stop").exists()
    stranger.close()


def test_a_second_visitor_is_told_that_a_job_runs_and_may_stop_it(client, arena, locked):
    other = visitor(arena, **{"Accept-Language": "en"})
    assert "a training runs already" in str(other.predict(api_name="/start_demo"))
    assert "已经有一个训练在运行" in str(client.predict(api_name="/resume_job"))
    assert "微调 page/tuned-1：正在停止并保存" in str(client.predict(api_name="/stop_job"))
    assert (locked / "job.stop").read_bytes() == b"."
    other.close()


def test_a_hostile_upload_is_refused_with_its_reason(client, folder, tmp_path):
    (tmp_path / "bad.jsonl").write_bytes(b"\x00\xff<script>alert(1)</script>\n" * 50)
    file = gradio_client.handle_file(tmp_path / "bad.jsonl")
    assert "只有 0 个能用的问答" in str(client.predict("base", file, 3, api_name="/start_tuning"))
    assert "没有模型 ../base" in str(client.predict("../base", file, 3, api_name="/start_tuning"))
    assert "没有训练在运行" in str(client.predict(api_name="/stop_job"))
    assert not list((folder / "out/page").glob("tuned-*"))
