"""From votes to a model: pairs of answers, their file, the command, and the model that it trains."""

import json
import shlex

import pytest
from arena_fakes import arena_settings, write_checkpoint
from corpora import ROOT
from tiny import confident_model, tiny_tokenizer

import train
from minigpt.arena.answers import follow_answers
from minigpt.arena.arena import Arena
from minigpt.arena.preferences import free_run_folder, preference_pairs, training_command, write_pairs
from minigpt.arena.problems import Problem
from minigpt.inference.params import SamplingParams
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import TrainSettings
from minigpt.training.setup import TrainingRun


def vote(left="a", right="b", result="left", **more):
    answers = {"prompt": "问", "left_answer": "左答", "right_answer": "右答"}
    return {"left": left, "right": right, "result": result, **answers, **more}


def test_preferences_are_what_dpo_trainers_read():
    votes = [
        vote(),
        vote(result="right"),
        vote(result="tie"),
        vote(result="bad"),
        vote(right_answer="左答"),
        {**vote(), "prompt": None},
    ]
    assert preference_pairs(votes) == [
        {"prompt": "问", "chosen": "左答", "rejected": "右答"},
        {"prompt": "问", "chosen": "右答", "rejected": "左答"},
    ]


def test_pairs_are_written_whole_in_the_place_of_earlier_ones_or_not_at_all(tmp_path):
    path = tmp_path / "arena" / "preferences.jsonl"
    for count in (3, 2):
        write_pairs(path, preference_pairs([vote()] * count))
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == preference_pairs([vote()] * 2)
    with pytest.raises(Problem) as raised:
        write_pairs(path / "below a file" / "preferences.jsonl", [])
    assert raised.value.key == "not_written"


@pytest.mark.parametrize(
    ("checkpoint", "there", "folder"),
    [
        ("demo_sft/ckpt.pt", [], "demo_sft_votes"),
        ("deep/er/last.pt", [], "er_votes"),
        ("demo_sft/ckpt.pt", ["demo_sft_votes", "demo_sft_votes2"], "demo_sft_votes3"),
        ("demo_sft_votes2/ckpt.pt", ["demo_sft_votes", "demo_sft_votes2"], "demo_sft_votes3"),
        ("Qwen3", ["Qwen3"], "Qwen3_votes"),  # a Hugging Face folder
    ],
)
def test_each_tuning_by_votes_has_a_folder_of_its_own(tmp_path, checkpoint, there, folder):
    for name in there:
        (tmp_path / name).mkdir()
    assert free_run_folder(tmp_path, tmp_path / checkpoint) == tmp_path / folder


def compete(arena, names, numbers):
    """Let two models answer the questions of some numbers, and vote on each battle for the answer with more small
    letters. Returns the left one's share of the battles that have a winner."""
    prompts = {f"q{number}": number for number in numbers}
    answers = [
        arena.ask(name, prompt, SamplingParams(temperature=1.0, top_k=0, max_new_tokens=8, seed=2 * number + side))
        for prompt, number in prompts.items()
        for side, name in enumerate(names)
    ]
    for _ in follow_answers(answers):
        pass
    results = []
    for prompt, *pair in zip(prompts, answers[::2], answers[1::2], strict=True):
        left, right = (sum(char.islower() for char in answer.text) for answer in pair)
        id = arena.battles.begin(prompt, pair, False, {})
        results.append(arena.battles.cast(id, "left" if left > right else "right" if right > left else "tie")["result"])
    return results.count("left") / (results.count("left") + results.count("right"))


@pytest.mark.numeric
def test_sixty_votes_of_a_taste_make_a_model_that_has_it(tmp_path):
    write_checkpoint(tmp_path / "out" / "sft" / "ckpt.pt", confident_model("gpt2"), tiny_tokenizer())
    arena = Arena(arena_settings(tmp_path, device="cpu", dtype="float32"))
    (before,) = arena.tunable_choices()
    assert 0.3 < compete(arena, ["sft", "sft"], range(90)) < 0.7
    pairs = preference_pairs(arena.votes.all()[0])[:60]
    write_pairs(arena.preferences, pairs)
    command = shlex.split(training_command(arena.preferences, before.checkpoint.path, tmp_path / "out"))
    given = [str(ROOT / word) if word.startswith("config/") else word for word in command[2:]]
    tiny = ["--block_size=64", "--device=cpu", "--dtype=float32"]
    train.train(TrainingRun(load_settings(TrainSettings, [*given, *tiny]), say=lambda line: None))
    assert sorted(choice.name for choice in arena.choices()) == ["sft", "sft_votes", "sft_votes/last"]
    assert len(pairs) == 60 and compete(arena, ["sft_votes", "sft"], range(100, 300)) > 0.6
    arena.close()
