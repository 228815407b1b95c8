"""The models of the arena: checkpoints and their cache, peers and their file, answers."""

import json
import os
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from adapter_files import write_adapter
from arena_fakes import (
    TASKS,
    arena_settings,
    open_fake,
    write_checkpoint,
    write_checkpoints,
    write_task_checkpoints,
)
from hugging_folders import write_model
from peer_fakes import peer
from serving_fakes import FakeGenerator
from tiny import tiny_model, tiny_tokenizer

from minigpt.arena.answers import ModelAnswer, RunningRequests, follow_answers
from minigpt.arena.arena import Arena
from minigpt.arena.models import ModelCache
from minigpt.arena.peers import Peers
from minigpt.arena.problems import Problem, clean_name
from minigpt.common.errors import UserError
from minigpt.inference.params import SamplingParams
from minigpt.openai_client import ApiFailure


@pytest.fixture
def arena(tmp_path):
    write_checkpoints(tmp_path / "out")
    arena = Arena(arena_settings(tmp_path), open_fake)
    yield arena
    arena.close()


def key_of(raised):
    return raised.value.key


# Checkpoints


def test_a_hugging_face_folder_is_listed_and_loaded(tmp_path):
    pytest.importorskip("transformers")
    folder, model = write_model(tmp_path / "out" / "models" / "Qwen3-0.6B")
    write_checkpoint(tmp_path / "out" / "run" / "ckpt.pt", tiny_model(), tiny_tokenizer())
    cache = ModelCache(arena_settings(tmp_path, device="cpu", dtype="float32"))
    found, broken = cache.checkpoints()
    assert [c.name for c in found] == ["run", "models/Qwen3-0.6B"] and not broken
    size = sum(p.numel() for p in model.parameters())
    assert (found[1].stage, found[1].parameters, found[1].val_loss) == ("sft", size, None)
    generator, _ = cache.acquire("models/Qwen3-0.6B")
    assert generator.tokenizer.name == "Qwen3-0.6B" and generator.generate(["江？"], SamplingParams(max_new_tokens=2))
    cache.close()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    assert "not supported" in str(cache.checkpoints()[1][0])


def test_every_checkpoint_is_listed_with_what_it_is_and_broken_ones_cost_no_other(tmp_path):
    root, model, tokenizer = tmp_path / "out", tiny_model(), tiny_tokenizer()
    write_checkpoint(root / "run" / "ckpt.pt", model, tokenizer, "pretrain", 3, 2.5)
    write_checkpoint(root / "run" / "last.pt", model, tokenizer, "pretrain", 9)
    write_checkpoint(root / "run" / "last.prev.pt", model, tokenizer)
    write_checkpoint(root / "run" / "step_000006.pt", model, tokenizer, step=6)
    qwen3 = tiny_model(architecture="qwen3")
    write_checkpoint(root / "deep" / "er" / "ckpt.pt", qwen3, tokenizer, loss=float("inf"))
    (root / "bad").mkdir()
    (root / "bad" / "ckpt.pt").write_bytes(b"PK\x03\x04 nonsense")
    cache = ModelCache(arena_settings(tmp_path), open_fake)
    found, broken = cache.checkpoints()
    about = {c.name: (c.stage, c.step, c.parameters, c.val_loss) for c in found}
    size = model.num_params()
    assert about == {
        "run": ("pretrain", 3, size, 2.5), "run/last": ("pretrain", 9, size, 2.5),
        "run/step_000006": ("sft", 6, size, 2.5), "deep/er": ("sft", 7, qwen3.num_params(), None),
    }  # fmt: skip
    assert len(broken) == 1 and "bad/ckpt.pt" in str(broken[0]).replace("\\", "/")
    assert [c.name for c in found][:2] == ["deep/er", "run"]  # saved last; a run's best first
    assert ModelCache(arena_settings(tmp_path, out_root=str(tmp_path / "none"))).checkpoints() == ([], [])


def test_models_with_a_head_are_listed_apart_and_label_what_they_are_asked(tmp_path):
    write_checkpoints(tmp_path / "out", ["alpha"])
    write_task_checkpoints(tmp_path / "out")
    task = {"kind": "reward", "labels": ["reward"]}  # which labels no text
    write_checkpoint(
        tmp_path / "out" / "reward" / "ckpt.pt", tiny_model(n_labels=1), tiny_tokenizer(), "task", task=task
    )
    masked = tiny_model(causal=False)
    write_checkpoint(tmp_path / "out" / "masked" / "ckpt.pt", masked, tiny_tokenizer(), "mlm")
    arena = Arena(arena_settings(tmp_path, device="cpu", dtype="float32"))
    assert [choice.name for choice in arena.choices()] == ["alpha"] and not arena.models.checkpoints()[1]
    assert {choice.name: choice.checkpoint.task for choice in arena.task_choices()} == {kind: kind for kind in TASKS}
    assert sum(arena.label("classify", "河").probabilities.values()) == pytest.approx(1)
    assert arena.label("pair", "河", "的").label and len(arena.label("tag", "河的").tags) == 2
    for name, texts, key in (
        ("alpha", ("a",), "no_labels"),
        ("", ("a",), "no_task_model"),
        ("pair", ("a",), "no_prompt"),
    ):
        with pytest.raises(Problem, match=key):
            arena.label(name, *texts)
    with pytest.raises(Problem, match="labels_only"):
        arena.ask("classify", "a", SamplingParams())
    with pytest.raises(UserError, match="of stage mlm"):
        arena.ask("masked", "a", SamplingParams())
    arena.close()


def test_an_adapter_is_listed_and_answers_and_a_missing_base_costs_no_other(tmp_path):
    model = tiny_model()
    base = write_checkpoint(tmp_path / "out" / "base" / "ckpt.pt", model, tiny_tokenizer(), "pretrain")
    write_adapter(tmp_path / "out" / "lora" / "ckpt.pt", base, method="lora", rank=2)
    cache = ModelCache(arena_settings(tmp_path, device="cpu", dtype="float32"))
    about = {c.name: (c.stage, c.step, c.parameters, c.val_loss) for c in cache.checkpoints()[0]}
    size = model.num_params()
    assert about == {"base": ("pretrain", 7, size, 1.5), "lora": ("sft", 7, size, 1.5)}
    generator, _ = cache.acquire("lora")
    assert "lora with" in generator.about and len(generator.generate(["河"], SamplingParams(max_new_tokens=2))) == 1
    cache.close()
    write_checkpoint(base, tiny_model(seed=1), tiny_tokenizer(), "pretrain")
    with pytest.raises(UserError, match="is not the base"):
        cache.acquire("lora")
    base.unlink()
    found, broken = cache.checkpoints()
    assert [c.name for c in found] == ["lora"] and not broken
    with pytest.raises(UserError, match="base cannot be loaded"):
        cache.acquire("lora")


def test_fine_tuned_models_alone_can_be_tuned_further_and_no_adapter(tmp_path):
    write_checkpoints(tmp_path / "out")
    write_task_checkpoints(tmp_path / "out")
    write_adapter(tmp_path / "out" / "lora" / "ckpt.pt", tmp_path / "out" / "base" / "ckpt.pt", method="lora", rank=2)
    arena = Arena(arena_settings(tmp_path), open_fake)
    assert "lora" in [choice.name for choice in arena.choices()]
    assert sorted(choice.name for choice in arena.tunable_choices()) == ["alpha", "beta"]
    arena.close()


def test_a_checkpoint_that_the_system_withholds_is_told_apart_from_a_broken_one(tmp_path, monkeypatch):
    write_checkpoints(tmp_path / "out", ["alpha"])
    (tmp_path / "out" / "none").mkdir()
    torch.save({"model": 1, "model_args": 2, "tokenizer": 3, "stage": 4, "progress": 5}, tmp_path / "out/none/ckpt.pt")
    load = torch.load

    def withheld(path, **options):
        if path.parent.name == "alpha":
            raise PermissionError(13, "Permission denied")
        return load(path, **options)

    monkeypatch.setattr(torch, "load", withheld)
    cache = ModelCache(arena_settings(tmp_path), open_fake)
    found, (alpha, none) = cache.checkpoints()
    assert found == [] and "is no checkpoint" in str(none)
    assert "alpha" in str(alpha) and str(alpha).endswith("cannot be read (Permission denied)")
    monkeypatch.undo()
    assert [c.name for c in cache.checkpoints()[0]] == ["alpha"]


def test_a_run_without_a_best_checkpoint_comes_after_those_that_have_one(tmp_path):
    root, model, tokenizer = tmp_path / "out", tiny_model(), tiny_tokenizer()
    for age, name in ((9, "run/old/ckpt.pt"), (1, "run/last.pt"), (5, "other/ckpt.pt")):
        write_checkpoint(root / name, model, tokenizer)
        os.utime(root / name, (1_700_000_000 - age,) * 2)
    found = ModelCache(arena_settings(tmp_path), open_fake).checkpoints()[0]
    assert [c.name for c in found] == ["other", "run/old", "run/last"]


def test_nothing_is_loaded_before_it_is_chosen_and_the_least_recently_used_leaves(arena, tmp_path):
    cache = ModelCache(arena_settings(tmp_path, loaded_models=2), open_fake)
    assert not any(cache.is_loaded(name) for name in ("alpha", "beta", "base"))
    for name in ("alpha", "beta", "alpha", "base"):
        cache.acquire(name)
        cache.release(name)
    assert [cache.is_loaded(name) for name in ("alpha", "beta", "base")] == [True, False, True]
    for name in ("alpha", "beta", "base"):  # what is in use stays, whatever the limit
        cache.acquire(name)
    assert all(cache.is_loaded(name) for name in ("alpha", "beta", "base"))
    cache.release("beta")
    assert not cache.is_loaded("beta") and cache.is_loaded("alpha")


def test_many_that_choose_one_checkpoint_load_it_once(tmp_path):
    write_checkpoints(tmp_path / "out", ["alpha"])
    loads = []

    def slow_open(ckpt, settings):
        loads.append(ckpt)
        time.sleep(0.2)
        return open_fake(ckpt, settings)

    cache, got = ModelCache(arena_settings(tmp_path), slow_open), []
    threads = [threading.Thread(target=lambda: got.append(cache.acquire("alpha")[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1 and len(set(map(id, got))) == 1


def test_a_run_that_saves_again_is_loaded_again(tmp_path):
    root = write_checkpoints(tmp_path / "out", ["alpha"])
    cache = ModelCache(arena_settings(tmp_path), open_fake)
    first, about = cache.acquire("alpha")
    write_checkpoint(root / "alpha" / "ckpt.pt", tiny_model(), tiny_tokenizer(), "sft", 8)
    assert cache.acquire("alpha") == (first, about)  # not while an answer is being made
    cache.release("alpha")
    cache.release("alpha")
    again, about = cache.acquire("alpha")
    assert again is not first and about.key == "alpha (step 8)"


def test_a_checkpoint_that_cannot_be_loaded_can_be_tried_again(tmp_path):
    write_checkpoints(tmp_path / "out", ["alpha"])
    tries = []

    def fails_once(ckpt, settings):
        tries.append(ckpt)
        if len(tries) == 1:
            raise MemoryError
        return open_fake(ckpt, settings)

    cache = ModelCache(arena_settings(tmp_path), fails_once)
    with pytest.raises(MemoryError):
        cache.acquire("alpha")
    assert cache.acquire("alpha")[1].name == "alpha"
    with pytest.raises(Problem) as raised:
        cache.acquire("none")
    assert key_of(raised) == "no_model"


def test_a_real_checkpoint_answers(tmp_path):
    write_checkpoints(tmp_path / "out", ["alpha", "base"])
    arena = Arena(arena_settings(tmp_path, dtype="float32", device="cpu"))
    answer = arena.ask("alpha", "河的河", SamplingParams(max_new_tokens=5, temperature=0))
    for _ in follow_answers([answer]):
        pass
    assert answer.ended and not answer.failure and answer.key == "alpha (step 7)"
    assert answer.tokens <= 5 and answer.seconds_to_first <= answer.seconds
    arena.close()


# Peers


def test_a_peers_file_is_read_again_when_it_changes_and_a_bad_entry_costs_no_good_one(tmp_path):
    path = tmp_path / "peers.json"
    peers = Peers(path)
    assert peers.all() == [] and peers.problems == []
    good = {"name": "小明", "address": "192.168.1.5:5000", "key": "k"}
    bad = [7, {}, {"name": "a\nb", "address": "x"}, {"name": "f", "address": "file:///etc/passwd"}, {**good}]
    path.write_text(json.dumps([good, *bad, {"name": "b", "address": "https://b"}]), encoding="utf-8")
    assert [(each.name, each.key) for each in peers.all()] == [("小明", "k"), ("b", "")]
    assert len(peers.problems) == 5 and isinstance(peers.problems[3], ApiFailure)
    path.write_text("{nonsense", encoding="utf-8")
    assert peers.all() == [] and key_of(SimpleNamespace(value=peers.problems[0])) == "peers_file"


def test_adding_and_removing_rewrites_the_file_and_never_loses_what_was_not_understood(tmp_path):
    path = tmp_path / "config" / "peers.json"
    peers = Peers(path)
    peers.add("小明", "192.168.1.5:5000", "k")
    peers.add("b", "https://b/v1")
    assert json.loads(path.read_text(encoding="utf-8")) == [
        {"name": "小明", "address": "192.168.1.5:5000", "key": "k"}, {"name": "b", "address": "https://b/v1"},
    ]  # fmt: skip
    for name, address, key in (
        ("", "x", ""),
        ("a @ b", "x", ""),
        ("c", "ftp://x", ""),
        ("c", "x", "钥匙"),
    ):
        with pytest.raises(UserError):
            peers.add(name, address, key)
    peers.add("b", "https://other/v1")  # in the place of the one before
    assert [(each.name, each.address) for each in peers.all()][1:] == [("b", "https://other/v1")]
    peers.remove("b")
    assert [each.name for each in peers.all()] == ["小明"]
    path.write_text('[{"name": "half"', encoding="utf-8")
    with pytest.raises(Problem):
        peers.add("c", "x")
    assert path.read_text(encoding="utf-8") == '[{"name": "half"'


def test_each_peer_shows_whether_it_answers_and_one_that_is_down_or_slow_holds_nobody_up(tmp_path):
    with peer(["sft"], "minigpt") as good, peer(None, listing_seconds=2) as slow:
        peers = Peers(tmp_path / "peers.json")
        for name, address in (("good", good.address), ("slow", slow.address), ("down", "127.0.0.1:9")):
            peers.add(name, address)
        while not (peers.status("good") and peers.status("down")):
            peers.check(0.05)
        assert peers.status("good").models == ({"id": "sft", "owned_by": "minigpt"},)
        assert peers.status("good").seconds > 0 and peers.status("slow") is None
        assert peers.status("down").failure.code == "unreachable"
        peers.check(5)
        assert [model["id"] for model in peers.status("slow").models] == ["echo"]
        asked = len(good.seen)
        peers.check(1)  # fresh enough
        assert len(good.seen) == asked
        peers.close()


def test_the_models_of_peers_are_choices_and_asked_in_the_way_that_suits_them(arena):
    with peer(["echo"], "minigpt") as ours, peer(["slow"], "library") as other:
        arena.peers.add("ours", ours.address)
        arena.peers.add("other", other.address)
        arena.peers.check(5)
        assert [c.name for c in arena.choices()][-2:] == ["echo @ ours", "slow @ other"]
        params = SamplingParams(max_new_tokens=9, top_k=5, seed=3)
        answers = arena.ask_all([("echo @ ours", "你好"), ("slow @ other", "世界")], params)
        for _ in follow_answers(answers):
            pass
        assert [answer.text for answer in answers] == ["你好", "世界"]
        assert (ours.seen[-1][0], other.seen[-1][0]) == ("/v1/completions", "/v1/chat/completions")
        assert ours.seen[-1][2]["top_k"] == 5 and ours.seen[-1][2]["seed"] == 3
    for _ in follow_answers([arena.ask("echo @ ours", "还在吗", params)]):  # it has gone
        pass
    assert "echo @ ours" not in [c.name for c in arena.choices()]
    for name in ("echo @ nobody", "nothing"):
        with pytest.raises(Problem):
            arena.ask(name, "x", params)


def test_two_are_drawn_at_random_one_checkpoint_a_run(arena, tmp_path):
    write_checkpoint(tmp_path / "out" / "alpha" / "last.pt", tiny_model(), tiny_tokenizer())
    drawn_pairs = {tuple(arena.draw_models()) for _ in range(60)}
    assert {name for pair in drawn_pairs for name in pair} == {"alpha", "beta", "base"} and len(drawn_pairs) == 6
    only = Arena(arena_settings(tmp_path, out_root=str(tmp_path / "none")), open_fake)
    with pytest.raises(Problem) as raised:
        only.draw_models()
    assert key_of(raised) == "too_few_models"


# Prompts and parameters


def test_prompts_and_parameters_are_checked_by_name(arena):
    assert arena.check_prompt("a\0\ud800") == "a?"
    for prompt in ("", "  \n", None, "\0"):
        with pytest.raises(Problem) as raised:
            arena.check_prompt(prompt)
        assert key_of(raised) == "no_prompt"
    with pytest.raises(Problem) as raised:
        arena.check_prompt("长" * 40000)
    assert key_of(raised) == "long_prompt"
    fine = [225, 0.1, 20, 1, 0, None]
    assert arena.check_params(*fine) == SamplingParams() == arena.check_params(*fine[:5], "")
    assert arena.check_params(*fine[:5], " 42 ").seed == 42
    for place, name in enumerate(("max_new_tokens", "temperature", "top_k", "top_p", "frequency_penalty", "seed")):
        for wrong in (-3, 1e9 if name != "seed" else 2.0**60, "x", "１", float("nan"), True, [1]):
            values = [*fine]
            values[place] = wrong
            with pytest.raises(Problem) as raised:
                arena.check_params(*values)
            assert raised.value.values["field"] == name


def test_a_name_is_shown_without_what_would_turn_the_page_around():
    assert clean_name("a\u202eb\x1b[31m\n\u200bc" + "d" * 100, 8) == "ab[31mcd"


# Answers


def test_stopping_stops_the_generation_and_keeps_what_there_is(arena):
    running = RunningRequests()
    with running.open_token("me") as token:
        answers = arena.ask_all([("alpha", "slow" * 50), ("beta", "slow" * 50)], SamplingParams(max_new_tokens=4000))
        token.add(answers)
        stopped = [running.stop("me") for _ in follow_answers(answers) if all(answer.text for answer in answers)]
    assert stopped[0] and not running.stop("me") and not token.discarded
    assert all(answer.stopped and answer.ended and answer.text and not answer.failure for answer in answers)
    assert all(answer.stream.finish_reason == "cancelled" for answer in answers)


def test_what_is_stopped_before_there_is_an_answer_stops_the_answer(arena):
    running = RunningRequests()
    with running.open_token("me") as token:
        assert running.stop("me", discard=True)
        answer = arena.ask("alpha", "never", SamplingParams())
        token.add([answer])
        for _ in follow_answers([answer]):
            pass
    assert answer.stopped and token.discarded


def test_a_reader_that_goes_away_frees_the_model(arena):
    answer = arena.ask("alpha", "slow" * 50, SamplingParams(max_new_tokens=4000))
    reading = follow_answers([answer])
    next(reading)  # at once: also who leaves before the first token has been waiting here
    reading.close()
    assert answer.ended and answer.stream.cancelled and arena.models._slots["alpha"].users == 0


def test_an_engine_that_fails_costs_what_follows_and_not_what_came_before():
    generator = FakeGenerator()
    answer = ModelAnswer("a", "a", generator.submit("fail slow", SamplingParams()))
    for _ in follow_answers([answer]):
        pass
    assert answer.text == "fa" and answer.ended and isinstance(answer.failure, RuntimeError)


def test_a_question_that_takes_too_long_ends(tmp_path):
    write_checkpoints(tmp_path / "out", ["alpha"])
    arena = Arena(arena_settings(tmp_path, request_seconds=0.3), open_fake)
    answer = arena.ask("alpha", "never", SamplingParams())
    for _ in follow_answers([answer]):
        pass
    assert answer.ended and not answer.stopped and answer.stream.finish_reason == "cancelled"


def test_a_reader_who_asks_again_stops_what_was_asked_before():
    generator, running = FakeGenerator(), RunningRequests()
    old, new = (ModelAnswer("a", "a", generator.submit("never", SamplingParams())) for _ in range(2))
    with running.open_token("me") as first:
        first.add([old])
        with running.open_token("me") as second:
            second.add([new])
            assert old.stopped and not new.stopped and not running.stop("you")
            assert running.stop("me") and new.stopped
    assert not running.stop("me")
