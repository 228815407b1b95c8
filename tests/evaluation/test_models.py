"""Models under evaluation: a checkpoint's answers do not depend on batching, and servers may fail."""

from dataclasses import replace

import pytest
from evaluation_fakes import add_picky, make_project, save_tiny
from hugging_folders import write_model
from peer_fakes import peer

from minigpt.common.errors import UserError
from minigpt.evaluation.asking import EvaluatedModel
from minigpt.evaluation.models import find_models, is_address, params_of_prompt
from minigpt.evaluation.prompts import RowQuestion
from minigpt.inference.params import SamplingParams
from minigpt.settings.stages import RougeSettings

PARAMS = SamplingParams(temperature=1.0, top_k=0, max_new_tokens=12, seed=5)
PROMPTS = ["第1镇位于哪里？", "a?", "的", "河", "a?", "第2镇有几座桥？", "a?"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("project"))


def opened(project, **settings):
    return EvaluatedModel("tuned", project / "out/tuned/ckpt.pt").open(RougeSettings(device="cpu", **settings))


def test_answers_are_reproducible_at_any_batch_size(project):
    model = opened(project)
    first, counts = model.answers(PROMPTS, PARAMS), []
    assert model.answers(PROMPTS, PARAMS, counts.append) == first
    assert sum(counts) == len(PROMPTS)
    for max_batch in (1, 2, 5):
        assert opened(project, max_batch=max_batch).answers(PROMPTS, PARAMS) == first
    assert model.answers(PROMPTS, replace(PARAMS, seed=6)) != first


def test_each_prompt_has_its_own_seed(project):
    same = opened(project).answers(["a?"] * 8, PARAMS)
    assert len(set(same)) > 4
    assert len(set(opened(project).answers(["a?"] * 8, replace(PARAMS, temperature=0.0)))) == 1


def test_a_chat_is_asked_as_well_as_a_text(project):
    model, greedy = opened(project), replace(PARAMS, temperature=0.0)
    text, chat, shots = model.answers(
        [
            "a?",
            [{"role": "user", "content": "a?"}],
            [{"role": "system", "content": "b"}, {"role": "user", "content": "a?"}],
        ],
        greedy,
    )
    assert text == chat != shots
    long = [{"role": "user", "content": "河" * 200}]
    assert model.cut_prompts(["a?", long, "河" * 200], greedy) == 2


def test_a_hugging_face_folder_is_a_model_and_a_run_s_folder_is_its_checkpoints(tmp_path):
    pytest.importorskip("transformers")
    folder, _ = write_model(tmp_path / "Qwen3-0.6B")
    ((name, path),) = find_models([str(folder)], "out")
    assert (name, path) == ("Qwen3-0.6B", folder)
    model = EvaluatedModel(name, path)
    assert (model.stage, model.step, model.content["tokenizer"]["name"]) == ("sft", 0, "Qwen3-0.6B")
    opened = model.open(RougeSettings(device="cpu"))
    ids = opened.generator.prompt_ids("a?")
    assert opened.answers(["a?"], PARAMS) == opened.answers([RowQuestion("shown", ids)], PARAMS)


def test_content_has_no_weights(project):
    model = EvaluatedModel("tuned", project / "out/tuned/ckpt.pt")
    assert (model.name, model.stage, model.step) == ("tuned", "sft", 20)
    assert model.content["settings"]["data_dir"] == "data/tuned" and "model" not in model.content


def test_a_runs_folder_means_its_checkpoints_by_step(project, tmp_path):
    run = tmp_path / "run"
    for name, step in (("step_100", 100), ("step_20", 20), ("ckpt", 100), ("last", 120), ("last.prev", 110)):
        save_tiny(run / f"{name}.pt", step=step)
    found = find_models([str(run), str(project / "out/base/ckpt.pt"), "echo@http://127.0.0.1:1/v1"], "out")
    names = ["run/step_20", "run/step_100", "run/last", "base", "echo@http://127.0.0.1:1/v1"]
    assert [name for name, _ in found] == names
    assert find_models([], project / "out")[0][1].suffix == ".pt"


def test_a_missing_model_is_an_error_before_any_is_asked(project):
    with pytest.raises(UserError, match=r"none\.pt is not there"):
        find_models([str(project / "out/tuned/ckpt.pt"), "none.pt"], "out")
    with pytest.raises(UserError, match="no checkpoint in"):
        find_models([str(project / "data")], "out")


def test_addresses_and_paths_are_distinguished():
    assert is_address("http://a/v1") and is_address("m@https://a")
    assert not is_address("out/sft/ckpt.pt") and not is_address("http_runs/a.pt")


def asked(about, model="echo"):
    return EvaluatedModel(model, f"{model}@http://{about.address}/v1").open(RougeSettings())


def test_a_servers_answers_come_in_order_and_a_failed_one_is_none(monkeypatch):
    add_picky(monkeypatch)
    prompts, counts = ["一", "桥二二二二", "三", "四桥五六", "七"], []
    with peer(models=("other", "picky")) as about:
        model = asked(about, "picky")
        assert model.answers(prompts, PARAMS, counts.append) == ["一", None, "三", None, "七"]
    assert sum(counts) == 5 and "broke off" in str(model.failure)


def test_a_server_gets_the_parameters_and_a_seed_for_each_prompt():
    with peer() as about:
        asked(about).answers(["一", [{"role": "user", "content": "二"}]], replace(PARAMS, stop=("。",)))
        bodies = sorted((body for _, _, body in about.seen if body), key=lambda body: body["seed"])
        paths = {path for path, _, body in about.seen if body}
    assert paths == {"/v1/chat/completions"}
    assert [body["seed"] for body in bodies] == [5, 6]
    assert [body["messages"][-1]["content"] for body in bodies] == ["一", "二"]
    assert (bodies[0]["temperature"], bodies[0]["max_tokens"], bodies[0]["stop"]) == (1.0, 12, ["。"])


def test_this_projects_server_gets_texts_as_completions_and_chats_as_chats():
    with peer(owner="minigpt") as about:
        assert asked(about).answers(["一", [{"role": "user", "content": "二"}]], PARAMS) == ["一", "二"]
        assert sorted(path for path, _, body in about.seen if body) == ["/v1/chat/completions", "/v1/completions"]


def test_a_server_that_answers_nothing_is_given_up():
    with peer(models=("junk",)) as about:
        with pytest.raises(UserError, match=r"junk.* answered none of \d+ prompts \(.*does not speak"):
            asked(about, "junk").answers(["一"] * 500, PARAMS)
        assert len([body for _, _, body in about.seen if body]) < 200
        with pytest.raises(UserError, match="answered none of 2 prompts"):
            asked(about, "junk").answers(["一"] * 2, PARAMS)


def test_ctrl_c_cancels_running_requests():
    def stop(n):
        raise KeyboardInterrupt

    with peer(models=("slow",)) as about:
        with pytest.raises(KeyboardInterrupt):
            asked(about, "slow").answers(["一", *["很长的问题" * 20] * 100], PARAMS, stop)
        assert about.finished == ["slow"]  # of 101; the next would have taken five seconds each


@pytest.mark.parametrize(
    ("address", "said"),
    [("no@http://{}/v1", "offers echo; name one as model@"), ("http://127.0.0.1:9/v1", "not answer")],
)
def test_an_unusable_server_is_one_line(address, said):
    with peer() as about, pytest.raises(UserError, match=said) as caught:
        EvaluatedModel("m", address.format(about.address))
    assert "\n" not in str(caught.value)


def test_without_a_seed_prompts_have_none():
    assert params_of_prompt(replace(PARAMS, seed=None), 3).seed is None
    assert params_of_prompt(PARAMS, 3) == replace(PARAMS, seed=8)
