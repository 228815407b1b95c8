"""Pretraining rows mixed into fine-tuning: which rows, with which mask, exactly again, and what is refused."""

import numpy as np
import pytest
import torch
from runs import TINY, finish_run, write_stages
from tiny import EOT, MARK, PAD, write_rows

import train
from data_utils import TrainingData, open_rows
from minigpt.common.errors import UserError
from minigpt.settings.stages import TrainSettings
from minigpt.training.setup import TrainingRun

ARTICLES = [[10 + i, 40 + i, 70 + i] for i in range(20)]
QUESTIONS = [[20 + i, MARK, 50 + i] for i in range(12)]


@pytest.fixture
def replaying(tmp_path):
    """TrainingData of 12 questions, of which a share of pretraining rows is mixed in: a function of settings."""
    write_rows(tmp_path / "articles", {"train": ARTICLES, "val": ARTICLES[:1]})
    write_rows(tmp_path / "sft", {"train": QUESTIONS, "val": QUESTIONS[:1]}, stage="sft")

    def make(rank=0, count=1, **changes):
        given = {"data_dir": str(tmp_path / "sft"), "block_size": 16, "batch_size": 8, "seed": 3}
        given |= {"replay_share": 0.2, "replay_dir": str(tmp_path / "articles")}
        return TrainingData(TrainSettings(**{**given, **changes}), rank, count)

    return make


def replayed_rows(step):
    """The articles in the last batch of a `StepRows`, as lists of ids, sorted."""
    x, y, mask = step.batches[-1]
    rows = torch.cat([x[:, :1], y], dim=1).tolist()
    # Pretraining's mask: all targets but PAD, EOT among them.
    assert mask.tolist() == [[token != PAD for token in row[1:]] for row in rows]
    assert all(EOT in row for row in rows)
    return sorted([token for token in row if token not in (EOT, PAD)] for row in rows)


def test_articles_are_the_share_of_all_rows_of_a_step_with_pretrainings_mask(replaying):
    for share, rows, replayed in ((0.2, 8, 2), (0.5, 8, 8), (0.01, 8, 1), (0.7, 8, 19)):
        step = replaying(replay_share=share).step((0, 0))
        articles = replayed_rows(step)
        assert len(articles) == replayed and all(row in ARTICLES for row in articles)
        assert len({tuple(row) for row in articles}) == replayed  # none twice in a step
        assert (step.rows, step.tokens, step.squares) == (
            rows + replayed,
            4 * (rows + replayed),
            16 * (rows + replayed),
        )
        (question_rows, *_) = step.batches[0]
        assert len(step.batches) == 2 and len(question_rows) == rows
    accumulated = replaying(gradient_accumulation_steps=2, batch_size=4).step((0, 0))
    assert [len(x) for x, _, _ in accumulated.batches] == [4, 4, 2]
    alone = replaying(replay_share=0.0).step((0, 0))
    assert len(alone.batches) == 1 and alone.rows == 8


def test_a_steps_articles_depend_on_seed_and_position_alone_and_processes_share_them(replaying):
    data = replaying()
    steps = [data.step((0, 0)), data.step((0, 1)), data.step((1, 0))]
    drawn = [replayed_rows(step) for step in steps]
    assert len({str(rows) for rows in drawn}) == 3
    assert replayed_rows(replaying().step((1, 0))) == drawn[2]
    assert replayed_rows(replaying(seed=4).step((1, 0))) != drawn[2]
    shares = [replaying(rank, 2).step((0, 0)) for rank in range(2)]
    assert sorted(replayed_rows(shares[0]) + replayed_rows(shares[1])) == drawn[0]
    # Where there are fewer articles than processes, one takes part with a row without a loss.
    few = [replaying(rank, 2, replay_share=0.01).step((0, 0)).batches[-1] for rank in range(2)]
    assert sorted(int(mask.sum()) for _, _, mask in few) == [0, 3]


def test_the_longest_input_counts_articles(tmp_path):
    write_rows(tmp_path / "articles", {"train": [[1] * 15], "val": [[1]]}, block_size=24)
    write_rows(tmp_path / "sft", {"train": QUESTIONS, "val": QUESTIONS}, block_size=24, stage="sft")
    given = {"data_dir": str(tmp_path / "sft"), "replay_dir": str(tmp_path / "articles"), "block_size": 24}
    assert TrainingData(TrainSettings(**given)).longest_input() == 8
    assert TrainingData(TrainSettings(**given, replay_share=0.1)).longest_input() == 16


@pytest.fixture
def tuning(tmp_path):
    """Settings of a fine-tuning with replay from a small base: a function of further settings."""
    folders = write_stages(tmp_path)
    finish_run(**TINY, data_dir=folders["pretrain"], out_dir=str(tmp_path / "base"))

    def settings(**changes):
        given = {"data_dir": folders["sft"], "out_dir": str(tmp_path / "tuned"), "replay_share": 0.3}
        return TrainSettings(**{**TINY, "init_from": str(tmp_path / "base/last.pt"), **given, **changes})

    return settings


def test_a_run_with_replay_takes_its_bases_rows_and_resumes_exactly(tuning, tmp_path):
    given = {"gradient_accumulation_steps": 2, "max_iters": 6}
    whole = finish_run(**tuning(**given, out_dir=str(tmp_path / "whole")).to_dict())
    said, asked = [], []
    stopped = TrainingRun(tuning(**given), say=said.append)
    articles = len(open_rows(tmp_path / "pretrain", "train")[0])
    assert f"replay: 7 of {articles} pretraining rows of {tmp_path / 'pretrain'} beside 16 rows a step" in said
    # The signal comes between the batches of a step, each of which asks once.
    stopped.stop_requested = lambda: asked.append(stopped.progress.step) or asked.count(4) > 2
    train.train(stopped)
    assert (stopped.progress.step, stopped.stopped_by) == (4, "interrupted")
    (tmp_path / "base/last.pt").unlink()  # a resumed run knows the rows' folder by itself
    resumed = finish_run(**tuning(**given, init_from="resume").to_dict())
    for own, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(own, expected)


def test_replay_changes_what_is_learned(tuning, tmp_path):
    runs = [finish_run(**tuning(replay_share=share, max_iters=2).to_dict()) for share in (0.0, 0.3)]
    weights = [run.model.wte.weight.detach().numpy() for run in runs]
    assert not np.allclose(*weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": "scratch"}, "name a base with --init_from="),
        ({"data_dir": "pretrain"}, "holds pretrain rows"),
        ({"replay_dir": "sft"}, "replay_dir=.*sft holds sft rows"),
        ({"replay_dir": "narrow"}, "block_size is 96, but the rows in .*narrow have 16 tokens"),
        ({"replay_dir": "other"}, "made with tokenizer"),
        ({"replay_dir": "nowhere"}, "no prepared data in .*nowhere"),
        ({"objective": "mlm", "data_dir": "pretrain"}, "replay_share is for objective causal"),
    ],
)
def test_what_cannot_be_replayed_is_said_in_one_line(tuning, tmp_path, changes, message):
    write_rows(tmp_path / "narrow", {"train": ARTICLES, "val": ARTICLES})
    write_rows(tmp_path / "other", {"train": ARTICLES, "val": ARTICLES}, block_size=96)
    paths = {name: str(tmp_path / value) for name, value in changes.items() if name.endswith("dir")}
    with pytest.raises(UserError, match=message) as caught:
        TrainingRun(tuning(**{**changes, **paths}), say=lambda line: None)
    assert "\n" not in str(caught.value)
