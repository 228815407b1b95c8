"""From votes to a model: pairs of answers, their file, the command, and the model that it trains."""

import json

import pytest

from minigpt.arena.preferences import free_run_folder, preference_pairs, write_pairs
from minigpt.arena.problems import Problem


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
