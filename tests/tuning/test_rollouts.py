"""Rollouts: what is sampled, its log-probabilities and rewards, and how it is divided into steps."""

import gc
import json
import weakref

import numpy as np
import pytest
import torch
from tiny import EOT, MARK, tiny_model, tiny_tokenizer, write_rows

from minigpt.common.errors import UserError
from minigpt.inference.engine import TextGenerator
from minigpt.inference.params import SamplingParams
from minigpt.run_log import ANSWERS_LOG
from minigpt.settings.stages import TrainSettings
from minigpt.tuning import rollouts as rollouts_module
from minigpt.tuning.rollouts import PolicyObjective, Rollouts, has_signal, pad_answers

QUESTIONS = [b"abc", b"de", b"fghi", b"j", b"klm", b"no", b"pq"]


class Constant(PolicyObjective):
    """An objective whose column numbers the answers."""

    def prepare_rollout(self, rollout):
        rollout.columns = (torch.arange(len(rollout.x)).float(),)


def open_rollouts(folder, model=None, stage="sft", **settings):
    """`Rollouts` over QUESTIONS, whose answers are one letter, and the model that samples."""
    rows = [[*question, MARK, 100 + i] for i, question in enumerate(QUESTIONS)]
    write_rows(folder, {"train": rows, "val": [[*b"xyz", MARK, *b"uv"]]}, block_size=24, stage=stage)
    defaults = {"rollout_questions": 3, "group_size": 4, "updates": 2, "rollout_tokens": 6, "batch_size": 5, "seed": 0}
    settings = TrainSettings(
        objective="grpo", data_dir=str(folder), block_size=24, **{**defaults, "sampling": "traverse", **settings}
    )
    rollouts, model = Rollouts(settings), model or tiny_model()

    def count_even_ids(answers):
        return [sum(token_id % 2 == 0 for token_id in answer.ids) / 2 for answer in answers]

    Constant(settings, rollouts, model, tiny_model(seed=1), count_even_ids)
    return rollouts, model


def plain_logprobs(model, x, y, temperature):
    return (model(x) / temperature).log_softmax(-1).gather(2, y[..., None])[..., 0]


@pytest.mark.numeric
@torch.no_grad()
def test_log_probabilities_are_those_of_the_engine_and_of_a_forward_pass(tmp_path):
    rollouts, model = open_rollouts(tmp_path)
    model.train()
    rollout = rollouts.sample_rollout([0, 1, 2], (0, 0))
    assert model.training
    seeds = np.random.SeedSequence([0, 0, 0]).generate_state(12).tolist()
    params = [SamplingParams(1.0, 0, max_new_tokens=6, seed=seed, logprobs=0) for seed in seeds]
    prompts = [[*QUESTIONS[i // 4], MARK] for i in range(12)]
    generator = TextGenerator(model.eval(), tiny_tokenizer(), "sft")
    for row, stream in enumerate(generator.generate_streams(prompts, params)):
        mask = rollout.loss_mask[row]
        sampled = [token.token_id for token in stream.logprobs]
        assert rollout.y[row][mask].tolist() == sampled == stream.ids
        engine = torch.tensor([token.logprob for token in stream.logprobs])
        torch.testing.assert_close(rollout.old_logprobs[row][mask], engine, atol=1e-4, rtol=1e-4)
        assert rollout.x[row][: len(prompts[row])].tolist() == prompts[row]
    assert not rollout.old_logprobs[~rollout.loss_mask].any()

    rollouts, model = open_rollouts(tmp_path, rollout_temperature=0.7)
    rollout = rollouts.sample_rollout([0, 1, 2], (0, 0))
    for found, by in ((rollout.old_logprobs, model), (rollout.reference_logprobs, rollouts.reference)):
        wanted = plain_logprobs(by, rollout.x, rollout.y, 0.7)
        torch.testing.assert_close(found, wanted * rollout.loss_mask, atol=1e-4, rtol=1e-4)


def test_answers_are_rewarded_as_they_were_sampled(tmp_path):
    rollouts, model = open_rollouts(tmp_path)
    with torch.no_grad():
        model.lm_head.weight[EOT] *= 6  # some answers end
    params = SamplingParams(temperature=1.0, top_k=0, max_new_tokens=6, seed=1)
    answers = rollouts.ask([rollouts.train[i] for i in range(7)], params)
    assert {answer.ended for answer in answers} == {True, False}
    for answer, question in zip(answers, QUESTIONS, strict=True):
        assert answer.question == question.decode() and answer.prompt == [*question, MARK]
        assert answer.reference == chr(100 + QUESTIONS.index(question))
        assert answer.ended == (answer.ids[-1] == EOT) and (answer.ended or len(answer.ids) == 6)
        assert answer.text == rollouts.tokenizer.decode(answer.ids)
    x, y, loss_mask = pad_answers(answers, 24)
    assert [y[i][mask].tolist() for i, mask in enumerate(loss_mask)] == [answer.ids for answer in answers]
    assert loss_mask.shape == x.shape == y.shape and x.shape[1] % 8 == 0


def test_steps_divide_each_rollout_and_then_the_next_questions_are_asked(tmp_path):
    rollouts, _ = open_rollouts(tmp_path)
    asked, position = [], (0, 0)
    ask = rollouts.ask

    def ask_and_note(rows, params):
        asked.append([bytes(row.tolist()[: row.tolist().index(MARK)]) for row in rows])
        return ask(rows, params)

    rollouts.ask = ask_and_note
    for _ in range(3):  # 7 questions are 3 rollouts
        answers = []
        for _ in range(2):
            step = rollouts.step(position)
            position = step.position
            assert all(len(batch[0]) <= 5 for batch in step.batches)
            for x, y, loss_mask, old, reference, column in step.batches:
                assert x.shape == y.shape == loss_mask.shape == old.shape == reference.shape
                answers += column.tolist()
            assert step.rows == sum(len(batch[0]) for batch in step.batches)
        assert sorted(answers) == list(range(4 * len(set(asked[-1]))))  # each answer in one of the two steps
    assert position == (1, 0) and rollouts.order.count(1) == 6
    assert asked == [[q for q in part for _ in range(4)] for part in (QUESTIONS[:3], QUESTIONS[3:6], QUESTIONS[6:])]


def test_what_is_sampled_depends_on_seed_and_place_and_a_resumed_run_has_the_same(tmp_path):
    rollouts, model = open_rollouts(tmp_path)
    first = rollouts.step((0, 0))
    again, _ = open_rollouts(tmp_path, model)
    again.load_state_dict(rollouts.state_dict())
    again.ask = None  # the rollout in use is not sampled again
    for a, b in zip(again.step((0, 1)).batches, rollouts.step((0, 1)).batches, strict=True):
        assert all(map(torch.equal, a, b))
    assert again.take_figures() == rollouts.take_figures() != {}

    fresh, _ = open_rollouts(tmp_path, model)
    assert all(map(torch.equal, fresh.step((0, 0)).batches[0], first.batches[0]))
    other, _ = open_rollouts(tmp_path, model, seed=5)
    assert not torch.equal(other.sample_rollout([0], (0, 0)).y, fresh.sample_rollout([0], (0, 0)).y)
    assert not torch.equal(fresh.sample_rollout([0], (0, 1)).y, fresh.sample_rollout([0], (0, 0)).y)


def test_figures_and_samples(tmp_path):
    rollouts, _ = open_rollouts(tmp_path)
    rollout = rollouts.sample_rollout([0, 1, 2], (0, 0))
    figures = rollouts.take_figures()
    assert figures["reward"] == pytest.approx(rollout.rewards.mean().item())
    assert figures["length"] == pytest.approx(rollout.loss_mask.sum().item() / 12)
    assert figures["signal"] == pytest.approx(has_signal(rollout.rewards).float().mean().item())
    log_ratio = (rollout.reference_logprobs - rollout.old_logprobs)[rollout.loss_mask]
    assert figures["kl"] == pytest.approx((log_ratio.exp() - log_ratio - 1).mean().item(), rel=1e-4)
    assert rollouts.take_figures() == {}
    rewards = [sample["reward"] for sample in rollouts.samples]
    assert rewards == sorted(rewards, reverse=True) and rewards[0] == rollout.rewards.max()

    for step in (4, 8, 12, 8):  # killed behind 12, and gone on from before 8
        rollouts.write_samples(tmp_path, step)
    lines = list(map(json.loads, (tmp_path / ANSWERS_LOG).read_text(encoding="utf-8").splitlines()))
    assert [line["step"] for line in lines] == [4] * len(rewards) + [8] * len(rewards)
    assert set(lines[0]) == {"step", "question", "answer", "reference", "reward"}


def test_rows_that_ask_nothing_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds pretrain rows"):
        open_rollouts(tmp_path, stage="pretrain")


def test_the_cache_of_a_rollout_is_freed_when_it_is_sampled(tmp_path, monkeypatch):
    caches = []

    class Watched(TextGenerator):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            caches.append(weakref.ref(self.engine.runner))

    monkeypatch.setattr(rollouts_module, "TextGenerator", Watched)
    rollouts, _ = open_rollouts(tmp_path)
    gc.disable()
    try:
        rollouts.step((0, 0))
        assert [cache() for cache in caches] == [None]
    finally:
        gc.enable()
