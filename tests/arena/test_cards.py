"""The cards of models: the chain of a run, its curve, and which evaluation's figures are shown."""

import json

import pytest
from arena_fakes import arena_settings, write_checkpoint
from tiny import tiny_model, tiny_tokenizer

from minigpt.arena.cards import ModelCards
from minigpt.arena.models import ModelCache
from minigpt.common.errors import UserError
from minigpt.settings.stages import TrainSettings


@pytest.fixture
def root(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def cards(tmp_path):
    return ModelCards(ModelCache(arena_settings(tmp_path)))


def write_run(root, name, stage="sft", init_from="scratch", **more):
    """<root>/<name>/ckpt.pt of a run that started from a path."""
    settings = TrainSettings()
    settings.init_from = str(init_from)
    path = root / name / "ckpt.pt"
    return write_checkpoint(path, tiny_model(), tiny_tokenizer(), stage, settings=settings, **more)


def write_evaluation(path, checkpoint, step=7, verdict="clean", **figures):
    content = {"checkpoint": str(checkpoint), "step": step, "leak": {"verdict": verdict}, **figures}
    path.write_text(json.dumps(content), encoding="utf-8")


def card_of(cards, name):
    (card,) = [card for card in cards.read() if card.info.name == name]
    return card


def test_a_chain_goes_back_to_the_first_model_even_if_a_checkpoint_is_gone_or_names_itself(root, cards):
    base = write_run(root, "base", "pretrain")
    sft = write_run(root, "sft", init_from=base)
    write_run(root, "votes", init_from=sft)
    write_run(root, "orphan", init_from=root / "gone" / "last.pt")
    write_run(root, "circle", init_from=root / "circle" / "ckpt.pt")
    chains = {card.info.name: card.chain for card in cards.read()}
    assert chains == {
        "base": ("base",), "sft": ("base", "sft"), "votes": ("base", "sft", "votes"), "orphan": ("gone/last", "orphan"),
        "circle": ("circle",),
    }  # fmt: skip


def test_a_curve_has_the_validation_losses_and_a_run_without_a_log_has_none(root, cards):
    write_run(root, "a")
    write_run(root, "b")
    lines = [{"step": i, "train_loss": 1.0, "val_loss": i / 10 if i % 2 else None} for i in range(6)]
    (root / "a" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert card_of(cards, "a").curve == ((1, 0.1), (3, 0.3), (5, 0.5)) and card_of(cards, "a").active
    assert card_of(cards, "b").curve == () and not card_of(cards, "b").active


def test_figures_on_questions_that_were_not_trained_come_before_all_others(root, cards):
    path = write_run(root, "a")
    write_evaluation(
        root / "a" / "heldout.json", path, exact_match=0.5, pairs=40, intervals={"exact_match": [0.4, 0.6]}
    )
    write_evaluation(root / "a" / "trained.json", path, verdict="trained on", exact_match=0.9, rouge_l_f=0.95)
    figures = card_of(cards, "a").figures
    exact = figures["exact_match"]
    assert (exact.value, exact.low, exact.high, exact.pairs, exact.clean) == (0.5, 0.4, 0.6, 40, True)
    assert figures["rouge_l_f"].value == 0.95 and not figures["rouge_l_f"].clean


def test_figures_of_another_step_or_another_checkpoint_and_broken_files_are_not_shown(root, cards):
    path = write_run(root, "a")
    other = write_run(root, "b")
    write_evaluation(root / "a" / "old.json", path, step=3, exact_match=0.1)
    write_evaluation(root / "a" / "other.json", other, exact_match=0.2)
    write_evaluation(root / "a" / "strange.json", path, exact_match="many", perplexity=float("nan"), bits_per_char=True)
    for name, text in (
        ("broken", "{"),
        ("list", "[1]"),
        ("deep", "[" * 100_000),
        ("long", '"' + "x" * (2 << 20) + '"'),
    ):
        (root / "a" / f"{name}.json").write_text(text, encoding="utf-8")
    assert card_of(cards, "a").figures == {} and card_of(cards, "b").figures["exact_match"].value == 0.2


def test_an_evaluation_that_is_written_again_is_read_again(root, cards):
    path = write_run(root, "a")
    write_evaluation(root / "a" / "e.json", path, exact_match=0.1)
    assert card_of(cards, "a").figures["exact_match"].value == 0.1
    write_evaluation(root / "a" / "e.json", path, exact_match=0.25)
    assert card_of(cards, "a").figures["exact_match"].value == 0.25


def test_a_run_with_two_checkpoints_has_one_card_of_the_best(root, cards):
    best = write_run(root, "a", loss=1.25)
    write_checkpoint(best.with_name("last.pt"), tiny_model(), tiny_tokenizer(), step=9)
    (card,) = cards.read()
    assert card.info.name == "a" and card.info.step == 7 and card.info.val_loss == 1.25


def test_a_log_that_cannot_be_read_costs_no_card_but_its_own_curve(root, cards, monkeypatch):
    for name in ("good", "bad"):
        write_run(root, name)
        (root / name / "log.jsonl").write_text('{"step": 5, "val_loss": 2.0}\n', encoding="utf-8")
    read = cards.logs.read_columns

    def read_columns(path):
        if path.parent.name == "bad":
            raise UserError("could not be read (Permission denied)")
        return read(path)

    monkeypatch.setattr(cards.logs, "read_columns", read_columns)
    assert {card.info.name: card.curve for card in cards.read()} == {"good": ((5, 2.0),), "bad": ()}
