"""Chosen and rejected answers: every form is read, no row is lost silently, batches pair the right rows."""

import pytest
import torch
from corpora import write_jsonl
from evaluation_fakes import save_tiny
from preferring import pair_row, preference_data
from tiny import EOT, MARK, PAD, tiny_tokenizer

from minigpt.common.errors import UserError
from minigpt.corpus.records import Problems
from minigpt.tuning.pairs import read_pairs, split_prompts

TOKENIZER = tiny_tokenizer()


def said(role, text):
    return {"role": role, "content": text}


SHORT = [("", "问", "")]
TALK = [("", "一", "二"), ("", "问", "")]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        (pair_row("问"), SHORT),
        ({"question": "问", "answer": "参考", "chosen": "好", "rejected": "坏"}, SHORT),
        (pair_row("问", [said("assistant", "好")], [said("assistant", "坏")]), SHORT),
        (pair_row([said("system", "简"), said("user", "问")]), [("简", "问", "")]),
        (pair_row([said("user", "一"), said("assistant", "二"), said("user", "问")]), TALK),
        (
            {
                "conversations": [{"from": "human", "value": "问"}],
                "chosen": {"from": "gpt", "value": "好"},
                "rejected": {"from": "gpt", "value": "坏"},
            },
            SHORT,
        ),
        ({"instruction": "答", "input": "问", "chosen": "好", "rejected": "坏"}, [("", "答\n问", "")]),
        ({"instruction": "问", "history": [["一", "二"]], "chosen": "好", "rejected": "坏"}, TALK),
        (
            {
                "prompt": "问",
                "messages": [said("user", "问"), said("assistant", "好")],
                "chosen": [said("user", "问"), said("assistant", "好")],
                "rejected": [said("user", "问"), said("assistant", "坏")],
                "score_chosen": 9.0,
            },
            SHORT,
        ),
        ({"chosen": "\n\nHuman: 问\n\nAssistant: 好", "rejected": "\n\nHuman: 问\n\nAssistant: 坏"}, SHORT),
        (
            {
                "chosen": "Human: 一\n\nAssistant: 二\n\nHuman: 问\n\nAssistant: 好",
                "rejected": "Human: 一\n\nAssistant: 二\n\nHuman: 问\n\nAssistant: 坏",
            },
            TALK,
        ),
    ],
)
def test_the_forms_of_other_projects_are_read(tmp_path, row, prompt):
    problems = Problems()
    ((_, line, pair),) = read_pairs([write_jsonl(tmp_path / "a.jsonl", [row])], problems)
    assert line == 1 and not problems.counts
    assert [(turn.system, turn.question, turn.answer) for turn in pair.prompt] == prompt
    assert (pair.chosen, pair.rejected) == ("好", "坏")


def test_an_answer_with_the_marks_of_a_talk_is_one_text(tmp_path):
    chosen = "问：一\n答：二"
    ((_, _, pair),) = read_pairs([write_jsonl(tmp_path / "a.jsonl", [pair_row("问", chosen)])], Problems())
    assert pair.chosen == chosen and pair.prompt[0].question == "问"


BAD_ROWS = [
    ({"prompt": "问", "chosen": "好"}, 'no "rejected"'),
    (pair_row("问", "好", "好"), "are equal"),
    (pair_row("问", "好", ""), "is empty"),
    (pair_row("", "好", "坏"), "empty"),
    (pair_row("问", "好", 3), "not a text"),
    ({"chosen": "好", "rejected": "坏"}, "chosen: "),
    ({"chosen": "Human: 问\n\nAssistant: 好", "rejected": "Human: 别的\n\nAssistant: 坏"}, "different prompts"),
    ("{", "JSON"),
    (pair_row("问", "长" * 30), "no room"),
]


@pytest.fixture
def load(tmp_path, capsys):
    """`preference_data` of rows, with settings; and what it printed."""

    def run(rows, **given):
        data = preference_data(tmp_path, rows, **given)
        return data, capsys.readouterr().out

    return run


def test_rows_that_cannot_be_used_are_counted_and_named(load):
    good = [pair_row(f"问{i}") for i in range(4)]
    data, out = load([*good, *(row for row, _ in BAD_ROWS)])
    assert len(data.train) + len(data.val) == 4
    assert sum(data.meta["dropped"].values()) == len(BAD_ROWS)
    for number, (_, reason) in enumerate(BAD_ROWS, start=5):
        (place,) = (place for place in data.meta["first_dropped"] if f"pairs.jsonl, line {number}:" in place)
        assert reason in place and place in out
    with pytest.raises(UserError, match=r"no pair .*pairs\.jsonl, line 1: no \"rejected\""):
        load([row for row, _ in BAD_ROWS])


def test_a_missing_file_and_a_base_model_are_refused(load, tmp_path):
    save_tiny(tmp_path / "base.pt", stage="pretrain")
    with pytest.raises(UserError, match="fine-tune it first"):
        load([pair_row("问"), pair_row("别的")], init_from=str(tmp_path / "base.pt"))
    with pytest.raises(UserError, match=r"none\.jsonl is not there"):
        load([], preferences=["none.jsonl"])


def ids_of_prompt(prompt):
    """Ids of a prompt, which is a text or a talk of three messages, as a model is asked it."""
    if isinstance(prompt, str):
        return TOKENIZER.encode_prompt(prompt, answer=True)
    first, second, third = (message["content"] for message in prompt)
    earlier = [*TOKENIZER.encode_prompt(first, answer=True), *TOKENIZER.encode(second), EOT]
    return [*earlier, *TOKENIZER.encode_prompt(third, answer=True)]


def test_batches_have_both_answers_of_each_pair_and_a_loss_on_them_alone(load):
    talk = [said("user", "a"), said("assistant", "b"), said("user", "c")]
    rows = [pair_row(talk, "好", "不好"), *(pair_row(f"{i}的", f"{i}", f"{i}河的") for i in range(9))]
    data, _ = load(rows, val_share=0.3)
    answers = {tuple(ids_of_prompt(row["prompt"])): [row["chosen"], row["rejected"]] for row in rows}
    seen = []
    for part in ("train", "val"):
        for x, y, mask, numbers in data.batches_of(part):
            assert len(x) == len(y) == len(mask) == len(numbers)
            for i in range(len(x)):
                whole, answer = torch.cat([x[i, :1], y[i]]).tolist(), y[i][mask[i]].tolist()
                prompt = tuple(whole[: int(mask[i].nonzero()[0]) + 1])
                assert answer == [*TOKENIZER.encode(answers[prompt][i % 2]), EOT]
                assert set(whole[len(prompt) + len(answer) :]) <= {PAD}
            seen += numbers.tolist()
    assert sorted(seen) == list(range(2 * len(rows)))
    step = data.step((0, 0))
    ((_, y, _, _),) = step.batches
    assert (step.rows, step.tokens) == (2, int((y != PAD).sum()) + len(y))  # the first token is no target


def test_a_step_is_shared_by_processes(load):
    rows = [pair_row(f"{i}的") for i in range(9)]
    whole = load(rows)[0].step((0, 0)).batches[0]
    shares = [load(rows, rank=rank, count=2)[0].step((0, 0)).batches[0] for rank in (0, 1)]
    assert sorted(torch.cat([share[3] for share in shares]).tolist()) == sorted(whole[3].tolist())
    # A process without a pair computes one without a loss.
    lone = [load(rows, rank=rank, count=2, batch_size=1)[0].step((0, 0)).batches[0] for rank in (0, 1)]
    assert [bool(share[2].any()) for share in lone] == [True, False]


def test_pairs_of_one_prompt_are_in_one_part(load):
    rows = [pair_row(f"{i}的", f"{k}", "坏") for i in range(12) for k in range(3)]
    data, _ = load(rows, val_share=0.3)
    prompts = [{tuple(row[0][: row[0].tolist().index(MARK)]) for row in part} for part in (data.train, data.val)]
    assert all(prompts) and not prompts[0] & prompts[1] and len(prompts[0] | prompts[1]) == 12
    for share, fewest in ((0.0, 1), (0.999, 1)):
        in_val = split_prompts(["甲", "乙", "丙", "乙"], share)
        assert in_val[1] == in_val[3] and fewest <= in_val.sum() <= 3
    with pytest.raises(UserError, match="the same prompt"):
        split_prompts(["甲", "甲"], 0.5)


def test_a_prompt_that_is_too_long_loses_its_beginning(load):
    prompt = "甲乙丙" * 6
    data, out = load([pair_row(prompt, "好", "坏的"), pair_row("问")])
    assert "1 of 2 prompts are too long" in out
    (row,) = (row for part in (data.train, data.val) for row in part if row[1, -1] == EOT)
    whole = TOKENIZER.encode_prompt(prompt, answer=True)
    answer = TOKENIZER.encode("坏的")
    assert row[1].tolist() == [*whole[-(31 - len(answer)) :], *answer, EOT]
    assert row[0].tolist()[: 31 - len(answer)] == row[1].tolist()[: 31 - len(answer)]
    assert data.longest_input() == 31


def test_rows_of_a_reward_model_are_judged_at_their_end(load):
    data, _ = load([pair_row("甲乙丙" * 6, "好", "坏的"), pair_row("问")], objective="reward")
    assert data.meta["stage"] == "task" and data.meta["task"]["kind"] == "reward"
    for part in ("train", "val"):
        for x, y, mask, numbers in data.batches_of(part):
            assert x.shape == y.shape == mask.shape and len(numbers) == 2
            assert (x[mask] == EOT).all() and (mask.sum(dim=1) == 1).all() and not y.any()
            assert all((row[int(at.nonzero()) + 1 :] == -1).all() for row, at in zip(x, mask, strict=True))
    assert data.longest_input() == 32
