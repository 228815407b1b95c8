"""Losses are loud: a warning from a tenth on, with the cause and the setting that mends it; nearly all is an error."""

import json

import pytest
from corpora import made_up_articles, write_jsonl
from processes import done, error_of

from minigpt.common.errors import UserError
from minigpt.corpus.losses import Losses, check_losses
from minigpt.corpus.records import Problems


def losses(used, dropped, **characters):
    problems = Problems()
    for reason, count in dropped.items():
        for line in range(count):
            problems.add(reason, "a.jsonl", line + 1)
    return Losses(problems, used, **characters)


@pytest.mark.parametrize(
    ("used", "dropped", "warned"),
    [
        (90, {'no "text"': 10}, []),
        (89, {'no "text"': 11}, ['11 of 100 rows (11.0%) were dropped, for the reason: no "text"', "--text_field="]),
        (50, {'no "text"': 4, "bad UTF-8": 6}, ["10 of 60 rows", "most for the reason: bad UTF-8", "--encoding="]),
        (50, {"no sentence end": 50}, ["--overflow=split"]),
        (50, {"first sentence longer than the block": 50}, ["--block_size"]),
        (50, {"longer than the block": 50}, ["--block_size"]),
        (50, {'no "answer"': 50}, ["--answer_field="]),
        (5, {"empty line": 95}, []),
        (5, {"exact duplicate": 95}, ["note: 95 of 100 rows (95.0%) repeat earlier ones"]),
        (11, {"fewer than 50 characters": 80, "near duplicate": 9}, []),  # the user asked for it
        (9, {"fewer than 50 characters": 91}, ["91 of 100 rows", "--min_chars"]),
        (1000, {"longer than 8 MiB": 1}, ["1 times longer than 8 MiB, which may be much of the text"]),
        (1000, {"the file is damaged from here on (it ends in the middle)": 1}, ["download or copy the file again"]),
    ],
)
def test_a_loss_of_over_a_tenth_is_warned_of_with_its_cause_and_the_setting(used, dropped, warned):
    lines = check_losses(losses(used, dropped))
    assert len(lines) == bool(warned) and all(part in line for part in warned for line in lines)


@pytest.mark.parametrize(
    ("used", "dropped", "message"),
    [
        (4, {'no "text"': 96}, '96 of 100 rows (96.0%) were dropped, for the reason: no "text"; name the field'),
        (0, {"bad JSON": 2}, "none of 2 rows could be used, for the reason: bad JSON; "),
        (0, {"fewer than 50 characters": 2}, "none of 2 rows could be used"),
        (0, {}, "none of 0 rows could be used"),
    ],
)
def test_a_loss_of_nearly_all_rows_is_an_error_with_the_first_places(used, dropped, message):
    with pytest.raises(UserError) as error:
        check_losses(losses(used, dropped))
    assert message in str(error.value) and ("a.jsonl, line 1: " in str(error.value) or not dropped)


def test_cut_characters_are_warned_of_and_an_error_where_they_are_nearly_all():
    assert check_losses(losses(5, {}, characters=1000, characters_lost=100)) == []
    (line,) = check_losses(losses(5, {}, characters=1000, characters_lost=101))
    assert "10.1% of the characters are in no row" in line and "--overflow=split" in line
    with pytest.raises(UserError, match="--overflow=split"):
        check_losses(losses(5, {}, characters=1000, characters_lost=960))
    assert len(check_losses(losses(5, {}, characters=1000, characters_lost=960, is_truncated=True))) == 1


SCRIPTS = {
    "data/prepare.py": ["--data_dir=out"],
    "data/train_tokenizer.py": ["--tokenizer_path=out/t.tiktoken", "--tokenizer_vocab=300"],
    "sft/make_correction.py": ["--corrections=out/c.jsonl"],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_that_reads_articles_warns_and_keeps_what_was_there_where_it_fails(script, tmp_path, name):
    rows = [{"title": row["title"], "text": row["text"]} for row in made_up_articles(30, tellings=1)]
    others = [{"title": row["title"], "inhalt": row["text"]} for row in rows]
    write_jsonl(tmp_path / "some.jsonl", [*rows[:24], *others[24:]])
    write_jsonl(tmp_path / "few.jsonl", [rows[0], *others[1:]])
    said = done(script(name, "--input_dir=some.jsonl", *SCRIPTS[name]))
    assert "warning: 6 of 30 rows (20.0%) were dropped" in said and "--text_field=" in said
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    message = error_of(script(name, "--input_dir=few.jsonl", *SCRIPTS[name]))
    assert "29 of 30 rows (96.7%) were dropped" in message and "few.jsonl, line 2: " in message
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    # The advice works.
    said = done(script(name, "--input_dir=some.jsonl,few.jsonl", "--text_field=inhalt", *SCRIPTS[name]))
    assert "rows left out" not in said and "were dropped" not in said


def test_articles_that_are_cut_by_over_a_tenth_are_warned_of(script, tmp_path):
    long = [{"title": f"第{i}镇", "text": f"第{i}镇有桥。" * 100} for i in range(40)]
    write_jsonl(tmp_path / "long.jsonl", long)
    run = ["data/prepare.py", "--input_dir=long.jsonl", "--data_dir=out", "--val_share=0.2"]
    assert "of the characters are in no row" in done(script(*run, "--block_size=512"))
    assert "--overflow=split" in error_of(script(*run, "--block_size=32"))  # nearly all
    assert "warning: 9" in done(script(*run, "--block_size=32", "--overflow=truncate"))  # as the user asks
    assert "characters are in no row" not in done(script(*run, "--block_size=32", "--overflow=split"))
    meta = json.loads((tmp_path / "out/meta.json").read_text(encoding="utf-8"))
    assert meta["characters_cut"] == 0 and meta["split"] == "by subject"
