"""Loss masks of hand-made rows, batches, row files, and the order of rows."""

import errno
import itertools
import json
import os

import numpy as np
import pytest
import torch
from tiny import PAD, padded_rows, tiny_meta, tiny_tokenizer, write_rows

from data_utils import (
    BatchOrder,
    TrainingData,
    bucket_widths,
    check_tokenizer,
    loss_mask,
    make_batch,
    open_rows,
    padded_widths,
    row_lengths,
    row_prompts,
    split_row,
)
from minigpt.common.errors import UserError
from minigpt.corpus.row_files import RowWriter
from minigpt.corpus.task_rows import make_task_row
from minigpt.corpus.tasks import LabelledExample
from minigpt.settings.stages import TrainSettings
from minigpt.tokenizer import load_tokenizer
from model import kept_indices

M, E, P = 2235, 50256, 50257  # GPT-2's answer mark, EOT, PAD
SPECIAL = {"answer": M, "eot": E, "pad": P}


def mask_of(row, stage, **options):
    """The mask of one row as a string of 0 and 1, one for each target in row[1:]."""
    mask = loss_mask(np.array([row], dtype=np.uint16), SPECIAL, stage, **options)
    return "".join("01"[int(kept)] for kept in mask[0])


SFT_ROWS = {
    "plain": ([5, 6, M, 7, 8, E, P, P], "0011100"),
    "## in the question, as two #": ([5, 2, 2, 6, M, 7, E, P], "0000110"),
    "## in the answer, as two #": ([5, M, 2, 2, 7, E, P], "011110"),
    "the answer fills the row": ([5, M, 7, 8, 9, E], "01111"),
    "no PAD and no EOT": ([5, M, 7, 8, 9, 10], "01111"),
    "a mark inside the answer": ([5, M, 7, M, 8, E, P, P], "0111100"),
    "no mark": ([5, 6, 7, E, P, P], "00000"),
    "an empty question": ([M, 7, 8, E, P], "1110"),
    "an empty answer": ([5, M, E, P], "010"),
    "an EOT before the mark": ([5, E, 6, M, 7, E, P], "000110"),
    "tokens behind the answer's EOT": ([5, M, 7, E, 8, 9, 6], "011000"),
    "two turns": ([5, M, 7, E, 8, M, 9, E], "0110011"),
    "an EOT behind an EOT": ([5, M, 7, E, E, P], "01100"),
}
PRETRAIN_ROWS = {
    "plain": ([5, 6, 7, E, P, P], "11100", "11000"),
    "no PAD": ([5, 6, 7, E], "111", "110"),
    "the mark's id in a text": ([5, M, 6, E, P], "1110", "1100"),
    "no EOT": ([5, 6, 7, 8], "111", "111"),
}


@pytest.mark.parametrize("name", SFT_ROWS)
def test_fine_tuning_has_loss_on_the_answer_and_its_eot_only(name):
    row, expected = SFT_ROWS[name]
    assert mask_of(row, "sft") == mask_of(row, "sft", train_on_eot=False) == expected


@pytest.mark.parametrize("name", PRETRAIN_ROWS)
def test_pretraining_has_no_loss_on_pad_and_on_eot_as_set(name):
    row, with_eot, without_eot = PRETRAIN_ROWS[name]
    assert mask_of(row, "pretrain") == mask_of(row, "pretrain", train_on_eot=True) == with_eot
    assert mask_of(row, "pretrain", train_on_eot=False) == without_eot


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_a_batch_without_its_empty_columns_is_the_same_batch(stage):
    rows = np.full((len(SFT_ROWS), 24), P, dtype=np.uint16)
    for row, (ids, _) in zip(rows, SFT_ROWS.values(), strict=True):
        row[: len(ids)] = ids
    x, y, mask = make_batch(rows, {"stage": stage, "special_ids": SPECIAL})
    assert x.shape == y.shape == mask.shape == (len(rows), 8)  # the longest row has 7 targets: up to a multiple of 8
    assert (x.dtype, y.dtype, mask.dtype) == (torch.int64, torch.int64, torch.bool)
    assert x.tolist() == rows[:, :8].tolist()
    assert y.tolist() == rows[:, 1:9].tolist()
    whole = np.concatenate([loss_mask(row[None], SPECIAL, stage) for row in rows])
    assert mask.tolist() == whole[:, :8].tolist()
    assert not whole[:, 8:].any()


def test_a_batch_of_full_rows_keeps_every_column():
    x, y, mask = make_batch(padded_rows([[1, 2, 3, 4], [5]], 4), tiny_meta("pretrain"))
    assert (x[0].tolist(), y[0].tolist()) == ([1, 2, 3], [2, 3, 4])
    assert mask.tolist() == [[True] * 3, [False] * 3]


@pytest.fixture
def task_folder(tmp_path):
    """A folder of tagged rows of 2, 9 and 5 tokens; the label of a token is that of its id."""
    tokenizer, examples = tiny_tokenizer(), ["a", "bcdefghi", "的的河a"]
    with RowWriter(tmp_path, ["train", "val"], 16, tokenizer) as writer:
        for text in examples:
            tags = ["O" if character.isascii() else "B-P" for character in text]
            row, n = make_task_row(tokenizer, 16, LabelledExample("a", 1, text, tags=tags), {"O": 0, "B-P": 1})
            for part in ("train", "val"):
                writer.add_rows(part, row[None], len(text) + 1, n)
        writer.finish({"stage": "task", "task": {"kind": "tag", "labels": ["O", "B-P"]}})
    return tmp_path


def test_rows_of_a_task_have_labels_where_their_tokens_are(task_folder):
    rows, meta = open_rows(task_folder, "train", 16)
    assert rows.shape == (3, 2, 16) and row_lengths(rows, PAD).tolist() == [2, 9, 5]
    x, y, mask = make_batch(rows[[0, 2]], meta)
    assert (x.dtype, y.dtype, mask.dtype) == (torch.int64, torch.int64, torch.bool)
    assert x.tolist() == np.where(rows[[0, 2], 0, :8] == PAD, -1, rows[[0, 2], 0, :8].astype(int)).tolist()
    assert mask.tolist() == [[True] + [False] * 7, [True] * 4 + [False] * 4]
    assert y.tolist() == [[0] * 8, [1, 1, 1, 0, 0, 0, 0, 0]]
    x, y, mask = make_batch(rows, meta)
    assert x.shape == y.shape == mask.shape == (3, 16)  # the longest row has 9 tokens, of which EOT has no label


def test_training_data_gives_the_batches_of_a_task(task_folder):
    data = TrainingData(TrainSettings(data_dir=str(task_folder), block_size=16, batch_size=2, eval_iters=1))
    assert data.longest_input() == 16
    step = data.step((0, 0))
    assert (step.rows, len(data.val)) == (2, 2) and step.tokens in (7, 11, 14)
    (x, y, mask) = step.batches[0]
    assert x.shape == y.shape == mask.shape and mask.sum() == step.tokens - 2


def test_a_folder_of_a_task_that_is_not_there_names_its_script(tmp_path):
    with pytest.raises(UserError, match=r"run: python data/prepare_task\.py --task_data_dir=.*processed_task"):
        open_rows(tmp_path / "processed_task", "train")


def mask_up_to_the_first_eot(row):
    """The mask of a row of one turn as a plain loop: an answer begins at the first mark, and ends with its EOT."""
    mask, in_answer, ended = [], False, False
    for x, y in itertools.pairwise(row):
        in_answer = in_answer or x == M
        mask.append(in_answer and not ended and y != P)
        ended = ended or (in_answer and y == E)
    return mask


def test_rows_of_one_turn_have_the_loss_of_their_only_answer():
    rng = np.random.default_rng(0)
    for _ in range(200):
        question, answer, padding = (rng.integers(3, 9, rng.integers(0, 5)).tolist() for _ in range(3))
        if rng.random() < 0.3:
            answer.insert(len(answer) // 2, M)  # as rows of earlier versions may have it
        row = [*question, M, *answer, E, *[P] * len(padding)]
        assert loss_mask(np.array([row]), SPECIAL, "sft")[0].tolist() == mask_up_to_the_first_eot(row)


def test_a_mark_of_several_ids_is_found_only_as_a_whole():
    """Random rows of few ids, in which parts of the mark are frequent, against plain loops."""
    special, rng = {**SPECIAL, "answer": [4, 5, 4], "question": [[3], [E, 6]]}, np.random.default_rng(0)
    found = 0
    for _ in range(300):
        row = [*rng.choice([3, 4, 5, 6, E], 20, p=[0.1, 0.4, 0.3, 0.1, 0.1]).tolist(), P, P]
        ends = [i + 2 for i in range(len(row) - 2) if row[i : i + 3] == [4, 5, 4]]
        last_mark = [max([i for i in ends if i <= t], default=-1) for t in range(len(row))]
        last_eot = [max([i for i in range(t + 1) if row[i] == E], default=-1) for t in range(len(row))]
        expected = [last_mark[t] > last_eot[t] and row[t + 1] != P for t in range(len(row) - 1)]
        assert loss_mask(np.array([row]), special, "sft")[0].tolist() == expected
        for (prompt, answer), (_, again) in zip(
            row_prompts(np.array(row), special), split_row(np.array(row), special), strict=True
        ):
            assert prompt == row[: len(prompt)] and prompt[-3:] == [4, 5, 4] and answer == again
            assert row[len(prompt) :][: len(answer)] == answer and row[len(prompt) + len(answer) :][:1] in ([E], [])
            found += 1
    assert found > 100
    row = np.array([9, 3, 7, E, 6, 4, 5, 4, 8, E, 6, 3, 2, E, 6, 4, 5, 4, 1, E])
    assert split_row(row, special) == [([7], [8]), ([2], [1])]


def test_a_row_is_split_into_turns_and_each_prompt_is_all_before_its_answer():
    row = np.array([5, 2, 2, M, 7, M, 8, E, P], dtype=np.uint16)
    assert split_row(row, SPECIAL) == [([5, 2, 2], [7, M, 8])]
    assert split_row(row[:7], SPECIAL) == [([5, 2, 2], [7, M, 8])]  # without EOT
    row = np.array([5, M, 7, E, 8, M, 9, 9, E, P, P], dtype=np.uint16)
    assert split_row(row, SPECIAL) == [([5], [7]), ([8], [9, 9])]
    assert row_prompts(row, SPECIAL) == [([5, M], [7]), ([5, M, 7, E, 8, M], [9, 9])]
    assert split_row(np.array([5, 6, E, P], dtype=np.uint16), SPECIAL) == []


def test_rows_are_read_as_they_were_written(tmp_path):
    full = list(range(15))  # with EOT it fills a row of 16
    meta = write_rows(tmp_path, {"train": [[1, 2], full], "val": [[3]]}, tokenizer=load_tokenizer())
    rows, read = open_rows(tmp_path, "train", block_size=16)
    assert rows.tolist() == [[1, 2, E, *[P] * 13], [*full, E]]
    assert not rows.flags.writeable
    assert open_rows(tmp_path, "val")[0].shape == (1, 16)
    assert read == meta == json.loads((tmp_path / "meta.json").read_text(encoding="utf-8"))
    assert meta["parts"]["train"] == {"rows": 2, "tokens": 3 + 16, "characters": 17, "tokens_per_character": 1.0}
    assert meta["special_ids"] == SPECIAL
    assert (meta["block_size"], meta["layout"], meta["stage"]) == (16, "one_per_row", "pretrain")
    assert meta["tokenizer"]["sha256"] == load_tokenizer().sha256
    assert row_lengths(rows, P).tolist() == [3, 16]


def test_a_trained_tokenizer_is_stored_beside_its_rows_and_removed_with_them(tmp_path):
    write_rows(tmp_path, {"train": [[1]]})
    assert load_tokenizer(str(tmp_path / "tokenizer.tiktoken")).sha256 == tiny_tokenizer().sha256
    write_rows(tmp_path, {"train": [[1]]}, tokenizer=load_tokenizer())
    assert not (tmp_path / "tokenizer.tiktoken").exists()


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_crash_while_writing_rows_leaves_the_old_data_and_nothing_else(tmp_path):
    write_rows(tmp_path, {"train": [[1, 2], [3]], "val": [[4]]})
    before = files_of(tmp_path)
    with pytest.raises(ZeroDivisionError), RowWriter(tmp_path, ["train", "val"], 32, load_tokenizer()) as writer:
        writer.add("train", [7], 1)
        during = files_of(tmp_path)
        raise ZeroDivisionError
    assert {name: during[name] for name in before} == before
    assert files_of(tmp_path) == before
    assert [p for p in tmp_path.iterdir() if p.is_dir()] == []


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_crash_while_moving_the_parts_leaves_no_mixture(tmp_path, monkeypatch, number):
    write_rows(tmp_path, {"train": [[1]], "val": [[2]]})
    move = os.replace

    def fails_at_val(source, target):
        if str(target).endswith("val.bin"):
            raise OSError(number, "made to fail", str(target))
        move(source, target)

    monkeypatch.setattr(os, "replace", fails_at_val)
    with pytest.raises(UserError, match=r"val\.bin"):
        write_rows(tmp_path, {"train": [[3]], "val": [[4]]})
    with pytest.raises(UserError, match="no prepared data"):
        open_rows(tmp_path, "train")


def test_files_that_cannot_be_moved_at_all_leave_the_old_data_as_it_was(tmp_path, monkeypatch):
    write_rows(tmp_path, {"train": [[1]], "val": [[2]]})
    before = files_of(tmp_path)

    def refuse(source, target):
        raise PermissionError(errno.EACCES, "mapped elsewhere", str(target))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=r"train\.bin"):
        write_rows(tmp_path, {"train": [[3]], "val": [[4]]})
    assert files_of(tmp_path) == before


def test_a_row_that_does_not_fit_raises_an_error(tmp_path):
    for n in (16, 17, 40):
        with pytest.raises((IndexError, ValueError)):
            write_rows(tmp_path, {"train": [[1] * n]})


def test_a_reader_refuses_a_mismatch_and_names_both_values(tmp_path):
    meta = write_rows(tmp_path, {"train": [[1], [2]], "val": []})
    with pytest.raises(UserError, match=r"block_size is 24.*16"):
        open_rows(tmp_path, "train", block_size=24)
    with pytest.raises(UserError, match=r"test part.*train, val"):
        open_rows(tmp_path, "test")
    with pytest.raises(UserError, match=r"val part.*no rows"):
        open_rows(tmp_path, "val")
    gpt2 = load_tokenizer()
    with pytest.raises(UserError, match=rf"tiny\.tiktoken.*{tiny_tokenizer().sha256[:8]}.*gpt2.*{gpt2.sha256[:8]}"):
        check_tokenizer(tmp_path, meta, {"name": "gpt2", "sha256": gpt2.sha256}, "the checkpoint's")
    with open(tmp_path / "train.bin", "r+b") as file:
        file.truncate(63)
    with pytest.raises(UserError, match=r"train\.bin has 63 bytes.*64"):
        open_rows(tmp_path, "train")
    (tmp_path / "meta.json").write_text(json.dumps({**meta, "layout": "concatenated"}), encoding="utf-8")
    with pytest.raises(UserError, match=r"'concatenated'.*'one_per_row'"):
        open_rows(tmp_path, "train")


@pytest.mark.parametrize(
    ("folder", "command"),
    [("rows", "data/prepare.py --data_dir="), ("rows_sft", "data/prepare_sft.py --sft_data_dir=")],
)
def test_data_that_was_not_prepared_is_answered_with_the_command(tmp_path, folder, command):
    with pytest.raises(UserError, match=f"{folder}; run: python {command}.*{folder}$"):
        open_rows(tmp_path / folder, "train")


@pytest.mark.parametrize("damage", ["", '{"layout": "one_per', "[]", '{"layout": "one_per_row"}'])
def test_a_damaged_meta_is_a_user_error(tmp_path, damage):
    write_rows(tmp_path, {"train": [[1]]})
    (tmp_path / "meta.json").write_text(damage, encoding="utf-8")
    with pytest.raises(UserError, match=r"meta\.json"):
        open_rows(tmp_path, "train")


LENGTHS = np.random.default_rng(0).integers(5, 120, size=1000)


def order_of(n_rows, **settings):
    return BatchOrder(LENGTHS[:n_rows], **{"seed": 3, "batch_size": 8, **settings})


def rows_of(batches):
    return np.concatenate(batches).tolist()


@pytest.mark.parametrize("n_rows", [1, 5, 64, 100, 1000])
@pytest.mark.parametrize("batch_tokens", [0, 1000])
def test_each_epoch_draws_every_row_once_in_a_fresh_order(n_rows, batch_tokens):
    order = order_of(n_rows, batch_tokens=batch_tokens)
    epochs = [rows_of(order.batches(epoch)) for epoch in range(4)]
    assert all(sorted(epoch) == list(range(n_rows)) for epoch in epochs)
    if n_rows > 20:
        assert len({tuple(epoch) for epoch in epochs}) == 4
        assert list(range(n_rows)) not in epochs
        assert rows_of(order_of(n_rows, seed=4).batches(0)) != epochs[0]


@pytest.mark.parametrize("sampling", ["random", "traverse"])
@pytest.mark.parametrize("batch_tokens", [0, 500])
def test_the_order_is_the_same_from_any_position(sampling, batch_tokens):
    def order():
        return order_of(100, sampling=sampling, batch_tokens=batch_tokens)

    whole, position = [], (0, 0)
    for _ in range(60):
        (batch,), after = order().take(*position, 1)
        whole.append((position, batch.tolist()))
        position = after
    one = order()
    for start in (0, 1, 11, 50, 7):  # the last one back again
        batches, after = one.take(*whole[start][0], 7)
        assert [b.tolist() for b in batches] == [b for _, b in whole[start : start + 7]]
        assert after == whole[start + 7][0]


def test_a_step_goes_on_into_the_next_epochs():
    order = order_of(5, batch_size=2)
    batches, position = order.take(0, 2, 8)  # 3 batches an epoch
    assert [len(b) for b in batches] and position == (3, 1)
    assert rows_of(batches[1:4]) == rows_of(order.batches(1))


@pytest.mark.parametrize("batch_tokens", [0, 500])
def test_traverse_draws_rows_as_the_file_has_them(batch_tokens):
    order = order_of(100, sampling="traverse", batch_tokens=batch_tokens)
    assert rows_of(order.batches(0)) == rows_of(order.batches(1)) == list(range(100))


@pytest.mark.parametrize("n_rows", [1, 5, 100, 1000])
@pytest.mark.parametrize("sampling", ["random", "traverse"])
def test_batches_hold_what_was_asked_for_and_all_but_the_last_are_full(n_rows, sampling):
    sizes = [len(b) for b in order_of(n_rows, sampling=sampling).batches(0)]
    assert sorted(sizes)[1:] == [8] * (len(sizes) - 1) and sum(sizes) == n_rows
    batches = order_of(n_rows, sampling=sampling, batch_tokens=500).batches(0)
    padded = [len(b) * -(-LENGTHS[b].max() // 8) * 8 for b in batches]
    assert max(padded) <= 500
    if n_rows == 1000 and sampling == "random":
        assert sorted(padded)[1] > 500 - 120  # no room for another row


def test_a_row_longer_than_batch_tokens_is_a_batch():
    assert [len(b) for b in order_of(100, batch_tokens=8).batches(0)] == [1] * 100


def test_batches_are_counted_by_epochs():
    order = order_of(100)
    assert order.count(1) == 13 and order.count(2.5) == 26 + 7 and order.count(0) == 0


@pytest.mark.parametrize("batch_tokens", [0, 1000])
def test_rows_of_like_length_share_a_batch_in_every_epoch(batch_tokens):
    def padding(batches):
        return 1 - sum(LENGTHS[b].sum() for b in batches) / sum(len(b) * LENGTHS[b].max() for b in batches)

    plain = padding(np.split(np.random.default_rng(0).permutation(1000), range(16, 1000, 16)))
    order = order_of(1000, batch_size=16, batch_tokens=batch_tokens)
    for epoch in range(4):
        assert padding(order.batches(epoch)) < plain / 4


@pytest.fixture
def rows_folder(tmp_path):
    lists = [list(range(1, 2 + i % 12)) for i in range(30)]
    write_rows(tmp_path, {"train": lists, "val": [[1, 2]]})
    return tmp_path


def kept_targets(steps):
    """The targets with a loss in all batches of some `StepRows`, sorted."""
    return sorted(t for step in steps for _, y, mask in step.batches for t in y[mask].tolist())


@pytest.mark.parametrize(("count", "accumulation"), [(2, 4), (2, 1), (3, 2), (8, 1)])
def test_processes_share_a_step_and_leave_nothing_out(rows_folder, count, accumulation):
    """Also if a batch has fewer rows (7) than there are processes."""
    settings = TrainSettings(
        data_dir=str(rows_folder), block_size=16, batch_size=7, gradient_accumulation_steps=accumulation
    )
    alone = TrainingData(settings).step((0, 0))
    shares = [TrainingData(settings, rank, count).step((0, 0)) for rank in range(count)]
    assert kept_targets(shares) == kept_targets([alone])
    assert {(s.rows, s.tokens, s.position, s.squares) for s in shares} == {
        (alone.rows, alone.tokens, alone.position, alone.squares)
    }
    assert len({len(s.batches) for s in shares}) == 1  # each takes part in every gradient exchange


def test_a_step_prepared_in_advance_equals_the_requested_step(rows_folder):
    settings = TrainSettings(data_dir=str(rows_folder), block_size=16, batch_size=7)
    data, position, ahead = TrainingData(settings), (0, 0), []
    for _ in range(10):
        step = data.step(position)
        ahead.append(step)
        fresh = TrainingData(settings).step(position)
        assert all(torch.equal(a, b) for a, b in zip(step.batches[0], fresh.batches[0], strict=True))
        position = step.position
    again = data.step(ahead[2].position)  # not the one that was prepared
    assert torch.equal(again.batches[0][0], ahead[3].batches[0][0])
    assert ahead[0].tokens == sum(len(row) - row.tolist().count(PAD) for row in data.train[data.order.batches(0)[0]])


def test_the_longest_input_is_the_widest_batch_of_both_parts(tmp_path):
    for train, val, width in ((5, 11, 16), (11, 5, 16), (1, 1, 8), (23, 1, 23)):
        folder = tmp_path / f"{train}-{val}"
        write_rows(folder, {"train": [[1] * train], "val": [[1] * val]}, block_size=24)
        settings = TrainSettings(data_dir=str(folder), block_size=24, batch_size=1)
        assert TrainingData(settings).longest_input() == width


def test_bucket_widths_end_with_the_block():
    assert bucket_widths(512) == [64, 128, 192, 256, 384, 512]
    assert bucket_widths(1024)[-3:] == [512, 768, 1024]
    assert bucket_widths(100) == [64, 100] and bucket_widths(64) == [64] and bucket_widths(16) == [16]
    assert padded_widths([0, 1, 64, 65, 100], bucket_widths(100)).tolist() == [64, 64, 64, 100, 100]


@pytest.fixture
def bucketed(tmp_path):
    """Makes `TrainingData` of 60 rows of 2 to 48 tokens, with buckets of 8, 24 and 48; the default is one process."""
    lists = [list(range(1, 2 + (7 * i) % 47)) for i in range(60)]
    for stage in ("pretrain", "sft"):
        write_rows(tmp_path / stage, {"train": lists, "val": [[1, 2]]}, block_size=48, stage=stage)

    def make(rank=0, count=1, stage="pretrain", buckets=(8, 24, 48), **changes):
        changes = {"batch_tokens": 160, "gradient_accumulation_steps": 3, **changes}
        settings = TrainSettings(data_dir=str(tmp_path / stage), block_size=48, **changes)
        return TrainingData(settings, rank, count, buckets=buckets and list(buckets))

    return make


def steps_of_an_epoch(data):
    steps, position = [], (0, 0)
    while position[0] == 0:
        steps.append(data.step(position))
        position = steps[-1].position
    return steps


@pytest.mark.parametrize(
    ("changes", "shapes"),
    [
        ({}, {(20, 8), (6, 24), (3, 48)}),
        ({"batch_tokens": 0, "batch_size": 5}, {(5, 8), (5, 24), (5, 48)}),
        ({"batch_tokens": 0, "batch_size": 5, "sampling": "traverse"}, {(5, 8), (5, 24), (5, 48)}),
        ({"objective": "mlm"}, {(20, 8), (6, 24), (3, 48)}),
        ({"buckets": (48,)}, {(3, 48)}),
    ],
)
def test_batches_of_buckets_have_few_shapes_and_every_row_once(bucketed, changes, shapes):
    data = bucketed(**changes)
    steps = steps_of_an_epoch(data)
    batches = [batch for step in steps for batch in step.batches]
    assert data.shapes == shapes
    assert {tuple(t.shape) for batch in batches for t in batch[:3]} <= shapes
    assert all(len({t.shape for t in batch[:3]}) == 1 for batch in batches)
    for step in steps:  # only real rows are counted
        rows = [row for x, *_ in step.batches for row in x.tolist() if row[0] > 0]
        assert step.rows == len(rows)
    n_batches = sum(len(step.batches) for step in steps)
    in_epoch = len(data.order.batches(0))
    sizes = sum(data.order.full_batch(w) * w for w in (min(w for w in data.buckets if w >= data.lengths[rows].max())
                                                      for rows in data.order.batches(0)))  # fmt: skip
    assert data.order.padding() == 1 - data.lengths.sum() / sizes
    taken, _ = data.order.take(0, 0, n_batches)  # the last step goes on into the next epoch
    tokens = sum(int(data.lengths[rows].sum()) for rows in taken)
    assert sum(step.tokens for step in steps) == tokens
    assert sum(step.squares for step in steps) == sum(
        int((data.lengths[rows].astype(int) ** 2).sum()) for rows in taken
    )
    assert sorted(rows_of(taken[:in_epoch])) == list(range(60))
    if not changes:
        kept = sum(int(batch[2].sum()) for batch in batches)
        assert kept == tokens - sum(step.rows for step in steps)  # all tokens but the first of a row
        narrowest = [batch for batch in batches if batch[0].shape[1] == 8]
        assert narrowest and not narrowest[-1][2].all(), "filled up"


def test_a_batch_of_a_bucket_is_the_plain_batch_and_what_is_added_has_no_loss(bucketed):
    same = {"batch_tokens": 0, "batch_size": 7}
    for ours, plain in zip(*(steps_of_an_epoch(bucketed(buckets=b, **same)) for b in ((8, 24, 48), None)), strict=True):
        assert (ours.rows, ours.tokens, ours.squares) == (plain.rows, plain.tokens, plain.squares)
        for (x, y, mask, kept), (plain_x, plain_y, plain_mask) in zip(ours.batches, plain.batches, strict=True):
            n, width = plain_x.shape
            assert (x[:n, :width] == plain_x).all() and (x[:n, width:] == -1).all() and (x[n:, 0] == 0).all()
            assert (mask[:n, :width] == plain_mask).all() and mask.sum() == plain_mask.sum()
            assert len(kept) % 128 == 0 and y.flatten()[kept[kept >= 0]].tolist() == plain_y[plain_mask].tolist()


@pytest.mark.parametrize("changes", [{}, {"batch_tokens": 0, "batch_size": 7}])
@pytest.mark.parametrize(("count", "accumulation"), [(3, 3), (2, 3), (2, 1), (8, 1)])
def test_processes_share_a_step_of_buckets(bucketed, changes, count, accumulation):
    changes = {**changes, "gradient_accumulation_steps": accumulation}
    alone = bucketed(**changes)
    shares = [bucketed(rank, count, **changes) for rank in range(count)]
    for step, *parts in zip(steps_of_an_epoch(alone), *map(steps_of_an_epoch, shares), strict=True):
        targets = [sorted(t for s in steps for _, y, mask, _ in s.batches for t in y[mask].tolist())
                   for steps in ([step], parts)]  # fmt: skip
        assert targets[0] == targets[1]
        assert {(s.rows, s.tokens, s.position, s.squares) for s in parts} == {
            (step.rows, step.tokens, step.position, step.squares)
        }
        for i in range(len(parts[0].batches)):
            shapes = {tuple(part.batches[i][0].shape) for part in parts}
            assert shapes <= shares[0].shapes
            assert len(shapes) == 1 or accumulation == 3 == count  # rows of one batch, or batches of their own


def test_the_indices_of_the_kept_targets_are_padded():
    mask = torch.zeros(4, 50, dtype=torch.bool)
    kept, n = kept_indices(mask)
    assert n == 0 and kept.tolist() == [-1] * 128
    mask[1, 3] = mask[3, 49] = True
    kept, n = kept_indices(mask)
    assert n == 2 and kept.tolist() == [53, 199, *[-1] * 126]
    assert len(kept_indices(torch.ones(1, 128, dtype=torch.bool))[0]) == 128
    assert len(kept_indices(torch.ones(1, 129, dtype=torch.bool))[0]) == 256
