"""answered_share, and fine-tuning that stops once enough of its questions are answered."""

import pytest
import torch
from runs import TINY, log_of, write_stages
from tiny import EOT, MARK, padded_rows, tiny_meta, tiny_tokenizer

import train
from minigpt.checkpoint import load_checkpoint
from minigpt.common.errors import UserError
from minigpt.inference.engine import open_generator
from minigpt.settings.stages import SampleSettings, TrainSettings
from minigpt.training import validation
from minigpt.training.setup import TrainingRun
from minigpt.training.validation import answered_share


class Parrot:
    """Stands for TextGenerator: gives each prompt the answer that `answers` holds for its question."""

    tokenizer = tiny_tokenizer()

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def generate(self, prompts, params):
        assert all(prompt[-1] == MARK and p.temperature == 0 for prompt, p in zip(prompts, params, strict=True))
        self.asked = [self.tokenizer.decode(prompt[:-1]) for prompt in prompts]
        return [self.answers.get(question, "") for question in self.asked]


def rows_of(pairs):
    encode = tiny_tokenizer().encode
    return padded_rows([[*encode(question), MARK, *encode(answer), EOT] for question, answer in pairs], 32)


@pytest.mark.parametrize(("right", "share"), [(10, 1.0), (5, 0.5), (0, 0.0)])
def test_the_share_is_of_answers_that_are_the_rows_word_for_word(right, share):
    pairs = [(f"q{i}", f"a{i}的") for i in range(10)]
    parrot = Parrot({q: a if i < right else a + "河" for i, (q, a) in enumerate(pairs)})
    assert answered_share(parrot, rows_of(pairs), tiny_meta("sft")) == share


def test_so_many_are_asked_from_all_over_the_rows():
    pairs, parrot = [(f"q{i}", f"a{i}") for i in range(50)], Parrot({})
    assert answered_share(parrot, rows_of(pairs), tiny_meta("sft"), n=8) == 0
    assert len(set(parrot.asked)) == 8 and {"q0", "q49"} <= set(parrot.asked)


@pytest.fixture
def tuning(tmp_path):
    """Tiny settings of a fine-tuning, which a test may change."""
    folders = write_stages(tmp_path)

    def make(**changes):
        run = TrainSettings(data_dir=folders["sft"], out_dir=str(tmp_path / "out"))
        for key, value in {**TINY, **changes}.items():
            setattr(run, key, value)
        return run

    return make


def finish(settings):
    run = TrainingRun(settings)
    train.train(run)
    return run.stopped_by


def test_a_run_stops_at_the_check_that_reaches_the_share_and_ckpt_is_that_model(tuning, monkeypatch, capsys):
    settings, shares, losses = tuning(stop_at_answered=0.9), iter([0.4, 0.9, 1.0]), iter([1.0, 2.0, 0.5])
    monkeypatch.setattr(validation, "answered_share", lambda *_: next(shares))
    monkeypatch.setattr(train, "validate", lambda run: next(losses))
    assert finish(settings) == "answered 0.900 of the training questions"
    checks = [line for line in log_of(settings.out_dir) if line["val_loss"] is not None]
    assert [(line["step"], line["answered"]) for line in checks] == [(4, 0.4), (8, 0.9)]
    assert "answered 0.900" in capsys.readouterr().out
    best, last = (load_checkpoint(f"{settings.out_dir}/{name}") for name in ("ckpt.pt", "last.pt"))
    assert best["progress"]["step"] == last["progress"]["step"] == 8  # though the validation loss was better at step 4


def test_a_run_that_never_reaches_it_goes_to_its_end_and_keeps_the_best_validation_loss(tuning, monkeypatch):
    settings, losses = tuning(stop_at_answered=0.9), iter([2.0, 1.0, 3.0])
    monkeypatch.setattr(validation, "answered_share", lambda *_: 0.5)
    monkeypatch.setattr(train, "validate", lambda run: next(losses))
    assert finish(settings) is None
    assert load_checkpoint(f"{settings.out_dir}/ckpt.pt")["progress"]["step"] == 8
    assert log_of(settings.out_dir)[-1]["step"] == settings.max_iters


def test_nothing_is_asked_without_the_setting(tuning, monkeypatch):
    monkeypatch.setattr(validation, "answered_share", None)
    settings = tuning()
    assert finish(settings) is None
    assert not any("answered" in line for line in log_of(settings.out_dir))


def test_a_model_that_learns_its_questions_stops_early(tuning):
    settings = tuning(
        stop_at_answered=0.9, max_iters=2000, eval_interval=50, log_interval=50, dropout=0.0, learning_rate=1e-2,
        min_lr_ratio=1.0,
    )  # fmt: skip
    torch.manual_seed(0)
    assert "of the training questions" in finish(settings)
    shares = [line["answered"] for line in log_of(settings.out_dir)]
    assert shares[0] < 0.9 <= shares[-1] and all(share < 0.9 for share in shares[:-1])


def test_articles_are_refused(tuning, tmp_path):
    with pytest.raises(UserError, match="holds articles, not questions"):
        TrainingRun(tuning(stop_at_answered=0.9, data_dir=str(tmp_path / "pretrain")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_prompts_to_watch_are_shown_after_each_tenth_and_change_nothing(tuning, tmp_path, capsys, stage):
    prompts, folder = ["第一", "问"], str(tmp_path / stage)
    finish(tuning(max_iters=20, data_dir=folder, out_dir=str(tmp_path / "plain")))
    assert "→" in capsys.readouterr().out
    settings = tuning(max_iters=20, data_dir=folder, watch_prompts=prompts)
    finish(settings)
    shown = [line.strip().split("  ", 1) for line in capsys.readouterr().out.splitlines() if "%  " in line]
    assert [percent for percent, _ in shown] == [f"{10 * i}%" for i in range(1, 11) for _ in prompts]

    # What is shown at the end is what the saved model says.
    _, _, generator = open_generator(f"{settings.out_dir}/last.pt", SampleSettings(device="cpu"))
    texts = generator.generate(prompts, validation.WATCHED_PARAMS)
    generator.close()
    ending = [f"{prompt} → {text}".replace("\n", " ").strip() for prompt, text in zip(prompts, texts, strict=True)]
    assert [line for _, line in shown[-2:]] == ending
    plain, watched = (load_checkpoint(f"{tmp_path}/{name}/last.pt")["model"] for name in ("plain", "out"))
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
