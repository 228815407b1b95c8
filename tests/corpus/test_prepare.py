"""Articles and questions to rows, and the tokenizer, by the scripts as a user runs them."""

import json
import os
import re

import numpy as np
import pytest
from corpora import byte_tokenizer, made_up_articles, made_up_questions, write_jsonl
from processes import done, error_of

from minigpt.common.errors import UserError
from minigpt.corpus.row_files import RowWriter
from minigpt.tokenizer import load_tokenizer

OLD = {"meta.json": b"old meta", "train.bin": b"old rows"}


def opened(folder, tokenizer=None):
    """(meta, {part: texts of its rows}) of a data folder, each row checked to be `tokens EOT PAD PAD …`."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    tokenizer, ids, texts = tokenizer or load_tokenizer(), meta["special_ids"], {}
    assert meta["tokenizer"]["sha256"] == tokenizer.sha256 and ids == tokenizer.special_ids()
    assert sorted(p.name for p in folder.glob("*.bin")) == sorted(f"{part}.bin" for part in meta["parts"])
    assert list(folder.glob(".*")) == []  # nothing half-written
    for part, counts in meta["parts"].items():
        rows = np.fromfile(folder / f"{part}.bin", dtype="<u2").reshape(-1, meta["block_size"]).tolist()
        lengths = [row.index(ids["eot"]) for row in rows]
        for row, n in zip(rows, lengths, strict=True):
            assert row[n + 1 :] == [ids["pad"]] * (len(row) - n - 1) and ids["pad"] not in row[:n]
            assert row[:n].count(ids["answer"]) == (meta["stage"] == "sft")
        assert (counts["rows"], counts["tokens"]) == (len(rows), sum(lengths) + len(rows))
        texts[part] = [tokenizer.decode(row[:n]) for row, n in zip(rows, lengths, strict=True)]
        assert counts["characters"] == sum(map(len, texts[part])) - 2 * len(rows) * (meta["stage"] == "sft")
    return meta, texts


def names(texts):
    """The made-up towns that texts are about."""
    return {re.search(r"第\d+镇", text)[0] for text in texts}


def test_every_good_article_becomes_a_row_and_every_other_is_counted_and_shown(script, tmp_path):
    good = [
        ({"id": 1, "title": "桥", "text": "桥\n\n桥（）在河<div>上。\n它很「《》」老！尾巴"}, "桥在河上。它很老！"),
        ({"id": 1, "title": "##", "text": "##\n\n甲##乙，<|endoftext|>。"}, "甲##乙，<|endoftext|>。"),
        ({"text": "没有标题的第一段。\n\n第二段😀𠀀。"}, "没有标题的第一段。第二段😀𠀀。"),
        ({"title": 7, "id": None, "text": "前后。"}, "前后。"),
        ({"text": "b" + " c" * 45 + "。"}, "b" + " c" * 45 + "。"),  # 47 tokens and EOT: a full block
    ]
    lines = [json.dumps(row) for row, _ in good]
    broken = ['{"text": "断', b'{"text": "\xff"}', "[]", '{"id": 1}', '{"text": 5}', '{"text": ""}', "甲。"]
    write_jsonl(tmp_path / "wiki/deep/er/wiki_00", [x for pair in zip(broken, lines, strict=False) for x in pair])
    (tmp_path / "wiki/bom.jsonl").write_bytes(
        b"\xef\xbb\xbf" + '{"text": "有标记。"}\r\n{"text": "没有换行。"}'.encode()
    )
    dropped = ["没有句末", "有标记（）。", "b" + " c" * 46 + "。", "题\n\n", "桥\n\n桥在河上。它很老！尾巴"]
    write_jsonl(tmp_path / "wiki/z.jsonl", [*broken[5:], "", *({"text": text} for text in dropped)])
    write_jsonl(tmp_path / "wiki/notes.txt", [{"text": "不读。"}])

    flags = ["--block_size=48", "--val_share=0", "--overflow=truncate", "--clean=controls,widths,title,litter"]
    said = done(script("data/prepare.py", "--input_dir=wiki", *flags))
    meta, texts = opened(tmp_path / "data/processed")
    assert texts == {"train": ["有标记。", "没有换行。", *(text for _, text in good)], "val": []}
    counts = {"bad JSON": 2, "bad UTF-8": 1, "not a JSON object": 1, 'no "text"': 1, '"text" is not a text': 1}
    counts |= {'"text" is empty': 1, "no sentence end": 1, "exact duplicate": 2, "empty line": 1}
    assert meta["dropped"] == counts | {"first sentence longer than the block": 1, "nothing left after cleaning": 1}
    assert meta["articles"] == len(good) + 2 + len(dropped) == meta["parts"]["train"]["rows"] + 5
    assert meta["sources"] == ["wiki/bom.jsonl", "wiki/deep/er/wiki_00", "wiki/z.jsonl"]
    assert meta["characters_cut"] == 2 and len(meta["first_dropped"]) == 10
    assert meta["first_dropped"][0] == "wiki/deep/er/wiki_00, line 1: bad JSON"
    assert meta["first_dropped"][5] == 'wiki/z.jsonl, line 1: "text" is empty'
    assert meta["first_dropped"][7:9] == ["wiki/z.jsonl, line 3: empty line", "wiki/z.jsonl, line 4: no sentence end"]
    assert all(message in said for message in [*meta["first_dropped"], "2 exact duplicate", "tokens a character"])


@pytest.mark.parametrize("overflow", ["truncate", "split"])
def test_a_long_article_is_cut_at_a_sentence_or_split_without_loss(script, tmp_path, overflow):
    sentences = "".join(f"第{i}镇有{i}座桥，“桥很长。”" for i in range(30))
    long_one = "这一句很长，" * 20 + "没有尽头" * 20 + "。"
    write_jsonl(tmp_path / "wiki/a.jsonl", [{"text": sentences + "尾"}, {"text": "短。" + long_one + "尾巴"}])
    done(script("data/prepare.py", "--input_dir=wiki", f"--overflow={overflow}", "--block_size=64", "--val_share=0"))
    meta, texts = opened(tmp_path / "data/processed")
    rows = texts["train"]
    assert meta["dropped"] == {} and meta["articles"] == 2
    if overflow == "split":
        assert "".join(rows) == sentences + "短。" + long_one and meta["characters_cut"] == 3
        assert all(row.endswith("”") for row in rows[: sum("座" in row for row in rows)])
    else:
        assert len(rows) == 2 and sentences.startswith(rows[0]) and rows[0].endswith("”") and rows[1] == "短。"
        assert meta["characters_cut"] == len(sentences + "尾短。" + long_one + "尾巴") - len("".join(rows))
    # No row could have taken the sentence that follows it.
    following = sentences[len(rows[0]) :].partition("”")[0]
    assert len(load_tokenizer().encode(rows[0] + following + "”")) > 63


def test_a_subject_stays_together_adding_files_moves_nothing_and_heldout_ones_are_trained_on(script, tmp_path):
    write_jsonl(tmp_path / "wiki/a.jsonl", made_up_articles(60)[:120])
    flags = ["data/prepare.py", "--input_dir=wiki", "--val_share=0.3"]
    done(script(*flags))
    _, before = opened(tmp_path / "data/processed")
    assert not names(before["train"]) & names(before["val"]) and len(names(before["val"])) > 3
    assert len(before["train"]) + len(before["val"]) == 120

    held = min(names(before["val"]))
    (tmp_path / "held.txt").write_text(f"{held}\n没有这个\n", encoding="utf-8")
    write_jsonl(tmp_path / "wiki/0.jsonl", made_up_articles(60)[120:])
    said = done(script(*flags, "--heldout=held.txt"))
    _, after = opened(tmp_path / "data/processed")
    assert set(after["train"]) > set(before["train"]) and held in names(after["train"])
    assert names(before["val"]) - {held} == names(before["val"]) & names(after["val"])
    assert not names(after["train"]) & names(after["val"])
    assert "1 held-out subjects have no article: 没有这个" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input_dir=nowhere"], "nowhere is not there"),
        (["--input_dir=empty"], "no .jsonl, .json or .parquet file in empty"),
        (["--input_dir=textless"], 'textless/a.jsonl, line 1: no "text"'),
        (["--block_sise=64"], "did you mean block_size?"),
        (["--block_size=7"], "at least 8"),
        (["--data_dir=wiki/a.jsonl"], "wiki/a.jsonl"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_users_mistake_is_one_line_and_leaves_older_rows_as_they_were(script, tmp_path, flags, message):
    write_jsonl(tmp_path / "wiki/a.jsonl", made_up_articles(2))
    write_jsonl(tmp_path / "textless/a.jsonl", [{"id": 1}, "{"])
    (tmp_path / "empty").mkdir()
    folder = tmp_path / "data/processed"
    folder.mkdir(parents=True)
    for name, content in OLD.items():
        (folder / name).write_bytes(content)
    assert message in error_of(script("data/prepare.py", "--input_dir=wiki", *flags))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == OLD


def test_an_interrupted_writer_leaves_the_older_rows_and_nothing_else(tmp_path):
    for name, content in OLD.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(KeyboardInterrupt), RowWriter(tmp_path, ["train", "val"], 16, byte_tokenizer()) as writer:
        writer.add("train", [1, 2, 3], 3)
        raise KeyboardInterrupt
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == OLD


def test_a_crash_while_rows_are_put_in_place_leaves_a_folder_without_meta(tmp_path, monkeypatch):
    for name, content in OLD.items():
        (tmp_path / name).write_bytes(content)
    replace = os.replace

    def crash_at_val(source, target):
        if str(target).endswith("val.bin"):
            raise OSError("the disk is full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash_at_val)
    with pytest.raises(UserError, match="full"), RowWriter(tmp_path, ["train", "val"], 16, byte_tokenizer()) as writer:
        writer.finish({"stage": "pretrain"})
    assert not (tmp_path / "meta.json").exists()


@pytest.mark.parametrize(
    ("name", "folder", "setting", "own"),
    [
        ("data/prepare.py", "data_dir", "input_dir", made_up_articles),
        ("data/prepare_sft.py", "sft_data_dir", "qa_files", made_up_questions),
    ],
)
def test_own_rows_are_not_replaced_by_the_embedded_corpus_by_default(script, tmp_path, name, folder, setting, own):
    default = {"input_dir": "data/wiki_sample", "qa_files": "sft/sample_qa.jsonl"}[setting]
    embedded = tmp_path / default if default.endswith(".jsonl") else tmp_path / default / "a.jsonl"
    write_jsonl(embedded, own(60))
    write_jsonl(tmp_path / "own.jsonl", own(50))
    done(script(name))
    done(script(name))  # the same again
    done(script(name, f"--{setting}=own.jsonl"))
    done(script(name, f"--{setting}=own.jsonl"))
    rows = tmp_path / ("data/processed" if folder == "data_dir" else "data/processed_sft")
    before = {path.name: path.read_bytes() for path in rows.iterdir()}
    message = error_of(script(name))
    assert "own.jsonl" in message and f"--{setting}=…" in message and f"--{folder}=…" in message
    assert {path.name: path.read_bytes() for path in rows.iterdir()} == before
    done(script(name, f"--{folder}=other"))
    (tmp_path / "mine.py").write_text(f"{setting} = {default!r}\n", encoding="utf-8")
    done(script(name, "mine.py"))  # named, if as the default is
    assert default in json.loads((rows / "meta.json").read_text(encoding="utf-8"))["sources"][0]


def warnings_of(script, name, *flags):
    return [line.removeprefix("warning: ") for line in done(script(name, *flags)).splitlines() if "warning: " in line]


def test_a_small_part_is_warned_of_and_an_empty_one_is_an_error_whose_advice_works(script, tmp_path):
    for n in (1, 5, 40, 400):
        write_jsonl(tmp_path / f"{n}.jsonl", made_up_articles(n, tellings=1))
    prepare = "data/prepare.py"
    train, val = warnings_of(script, prepare, "--input_dir=5.jsonl", "--val_share=0.0001")
    assert train == "train has 4 of the 5 rows, too few to learn more than these: give more"
    assert val.startswith("val has 1 of the 5 rows; figures over fewer than 20 have no interval")
    (val,) = warnings_of(script, prepare, "--input_dir=40.jsonl", "--val_share=0.1")
    assert "figures over fewer than 20 have no interval" in val and "(now 0.1; 0.5 would give about 20)" in val
    assert warnings_of(script, prepare, "--input_dir=400.jsonl", "--val_share=0.1") == []
    (val,) = warnings_of(script, prepare, "--input_dir=40.jsonl", "--val_share=0")
    assert val == "val has none of the 40 rows, as --val_share=0 asks; train.py needs some"

    before = (tmp_path / "data/processed/meta.json").read_bytes()
    single = error_of(script(prepare, "--input_dir=1.jsonl"))
    assert "val has none of the 1 rows" in single and "all rows are of one subject" in single
    for share, empty in (("0.0001", "val"), ("0.9999", "train")):
        message = error_of(script(prepare, "--input_dir=40.jsonl", f"--val_share={share}"))
        assert f"{empty} has none of the 40 rows, and training needs some" in message
        assert (tmp_path / "data/processed/meta.json").read_bytes() == before
        done(script(prepare, "--input_dir=40.jsonl", "--data_dir=mended", *re.findall("--val_share=[0-9.]+", message)))
        meta, _ = opened(tmp_path / "mended")
        assert meta["parts"][empty]["rows"] == 1


# data/prepare_sft.py


def test_small_parts_of_questions_are_warned_of(script, tmp_path):
    write_jsonl(tmp_path / "qa.jsonl", made_up_questions(40))
    (tmp_path / "held.txt").write_text("第1镇\n", encoding="utf-8")
    write_jsonl(tmp_path / "wiki/a.jsonl", made_up_articles(40))
    write_jsonl(tmp_path / "few.jsonl", made_up_questions(40)[:4])
    # Without shares of the user's, those that give a validation row are taken.
    assert "note: val has none of the 4 rows" in done(script("data/prepare_sft.py", "--qa_files=few.jsonl"))
    assert opened(tmp_path / "data/processed_sft")[0]["parts"]["val"]["rows"] > 0
    prepare, questions = "data/prepare_sft.py", "--qa_files=qa.jsonl"
    message = warnings_of(script, prepare, questions, "--val_share=0.5", "--test_share=0.0001")
    assert [line.partition(":")[0] for line in message] == ["test has none of the 80 rows, and evaluations need some"]
    message = warnings_of(script, prepare, questions, "--val_share=0.5", "--articles=wiki", "--heldout=held.txt")
    assert len(message) == 1 and message[0].startswith(
        "test has 2 of the 80 rows, those about the subjects of held.txt"
    )


def test_questions_become_rows_split_by_subject_with_heldout_ones_as_the_test_part(script, tmp_path):
    write_jsonl(tmp_path / "wiki/a.jsonl", made_up_articles(60))
    questions = made_up_questions(60)
    for row in questions[1::2]:  # the two questions of a town name two of its three articles
        row["id"] += 1
    room = 80 - 2 - len(load_tokenizer().encode("第1镇"))  # beside the question, the mark and EOT
    fits, too_long = ({"question": "第1镇", "answer": "b" + " b" * n, "id": 3} for n in (room - 1, room))
    hashes = {"question": "第1镇有##吗？", "answer": "第1镇##没有。", "id": "3"}
    duplicate = {**questions[0], "question": f" {questions[0]['question']}\n", "id": 99}
    broken = ["{", '{"question": "问？"}', '{"question": 1, "answer": "答。"}', b"\xff", "[]", "\n"]
    rows = [*questions, *broken, fits, too_long, duplicate, hashes]
    write_jsonl(tmp_path / "qa.jsonl", rows)
    held = {"第2镇", "第33镇"}
    (tmp_path / "held.txt").write_text("\n".join(held), encoding="utf-8")
    flags = ["--qa_files=qa.jsonl", "--articles=wiki", "--heldout=held.txt", "--val_share=0.2", "--block_size=80"]
    said = done(script("data/prepare_sft.py", *flags))
    meta, texts = opened(tmp_path / "data/processed_sft")
    assert names(texts["test"]) == held and len(texts["test"]) == 4
    assert not (names(texts["train"]) | held) & names(texts["val"]) and not names(texts["train"]) & held
    assert len(names(texts["val"])) > 3
    expected = sorted(f"{row['question']}##{row['answer']}" for row in [*questions, fits, hashes])
    assert sorted(text for part in texts.values() for text in part) == expected
    assert meta["questions"] == len(questions) + 4 and meta["without_article"] == 0
    counts = {"bad JSON": 1, 'no "answer"': 1, '"question" is not a text': 1, "bad UTF-8": 1, "not a JSON object": 1}
    dropped = {reason.partition(" (")[0]: count for reason, count in meta["dropped"].items()}
    assert dropped == counts | {"longer than the block": 1, "exact duplicate": 1, "empty line": 2}
    assert "qa.jsonl, line 121: bad JSON" in said and all(place in said for place in meta["first_dropped"])


def test_without_articles_the_questions_of_one_id_stay_together_in_three_parts(script, tmp_path):
    write_jsonl(tmp_path / "qa.jsonl", made_up_questions(60))
    done(script("data/prepare_sft.py", "--qa_files=qa.jsonl", "--val_share=0.2", "--test_share=0.2"))
    meta, texts = opened(tmp_path / "data/processed_sft")
    parts = list(map(names, texts.values()))
    assert min(map(len, parts)) > 3 and sum(map(len, parts)) == 60 == len(set.union(*parts))
    assert meta["without_article"] == 120 == sum(map(len, texts.values()))


def test_ids_that_start_anew_in_each_file_are_told_apart_by_naming_articles_for_each(script, tmp_path):
    articles, questions = made_up_articles(20), made_up_questions(20)
    for name, low, high in (("a", 0, 10), ("b", 10, 20)):
        write_jsonl(tmp_path / f"{name}.jsonl", [{**r, "id": r["id"] - 3 * low} for r in articles[3 * low : 3 * high]])
        write_jsonl(
            tmp_path / f"q{name}.jsonl", [{**r, "id": r["id"] - 3 * low} for r in questions[2 * low : 2 * high]]
        )
    (tmp_path / "held.txt").write_text("第14镇\n", encoding="utf-8")
    flags = ["--qa_files=qa.jsonl,qb.jsonl", "--articles=a.jsonl,b.jsonl", "--heldout=held.txt"]
    done(script("data/prepare_sft.py", *flags))
    _, texts = opened(tmp_path / "data/processed_sft")
    assert names(texts["test"]) == {"第14镇"} and len(texts["test"]) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--qa_files=nowhere.jsonl"], "nowhere.jsonl is not there"),
        (["--qa_files=wiki/a.jsonl"], 'wiki/a.jsonl, line 1: no "question"'),
        (["--qa_files=qa.jsonl,qa.jsonl,qa.jsonl", "--articles=wiki,wiki"], "2 articles for 3 qa_files"),
        (["--articles=nowhere"], "--articles"),  # the flag to mend, which is not --input_dir here
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_users_mistake_with_questions_is_one_line_and_leaves_no_rows(script, tmp_path, flags, message):
    write_jsonl(tmp_path / "wiki/a.jsonl", made_up_articles(1))
    write_jsonl(tmp_path / "qa.jsonl", made_up_questions(1))
    assert message in error_of(script("data/prepare_sft.py", "--qa_files=qa.jsonl", *flags))
    assert list(tmp_path.glob("data/**/*.*")) == []


def test_heldout_subjects_without_a_question_are_an_error(script, tmp_path):
    # Without --articles it is unknown which questions are about them, and they would be trained on.
    write_jsonl(tmp_path / "qa.jsonl", made_up_questions(5))
    (tmp_path / "held.txt").write_text("第1镇\n", encoding="utf-8")
    process = script("data/prepare_sft.py", "--qa_files=qa.jsonl", "--heldout=held.txt")
    assert "held-out" in process.stdout + process.stderr and "Traceback" not in process.stderr


# data/train_tokenizer.py


def test_a_trained_tokenizer_is_the_same_every_time_travels_with_its_rows_and_reads_them_back(script, tmp_path):
    write_jsonl(tmp_path / "wiki/wiki_00", ["{", *made_up_articles(), b"\xff"])
    write_jsonl(tmp_path / "qa.jsonl", [*made_up_questions(), *[{"question": "龘龘龘？", "answer": "龘龘龘！"}] * 9])
    flags = ["data/train_tokenizer.py", "--input_dir=wiki", "--tokenizer_vocab=320", "--tokenizer_qa=qa.jsonl"]
    said = [done(script(*flags, f"--tokenizer_path={name}/t.tiktoken")) for name in ("a", "b")]
    assert (tmp_path / "a/t.tiktoken").read_bytes() == (tmp_path / "b/t.tiktoken").read_bytes()
    assert os.listdir(tmp_path / "a") == ["t.tiktoken"] and "320 ids" in said[0]
    tokenizer = load_tokenizer(str(tmp_path / "a/t.tiktoken"))
    assert len(tokenizer.encode("龘")) == 1  # learned from the questions

    flag = "--tokenizer=a/t.tiktoken"
    done(script("data/prepare.py", "--input_dir=wiki", flag, "--val_share=0.2"))
    done(script("data/prepare_sft.py", "--qa_files=qa.jsonl", flag, "--val_share=0.2"))
    for folder, rows in (("processed", 120), ("processed_sft", 81)):
        meta, texts = opened(tmp_path / "data" / folder, tokenizer)
        assert sum(map(len, texts.values())) == rows and meta["tokenizer"]["name"] == "t.tiktoken"
        assert (tmp_path / "data" / folder / "tokenizer.tiktoken").read_bytes() == tokenizer.vocabulary


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input_dir=nowhere"], "nowhere is not there"),
        (["--input_dir=textless"], 'textless/a.jsonl, line 1: no "text"'),
        (["--tokenizer_vocab=259"], "tokenizer_vocab is 259"),
        (["--tokenizer_vocab=65537"], "tokenizer_vocab is 65537"),
        (["--max_token_chars=-1"], "max_token_chars"),
        (["--tokenizer_qa=nowhere.jsonl"], "nowhere.jsonl"),
        (["--tokenizer_path=textless"], "textless"),
        (["--n_layer=2"], "train.py"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_users_mistake_with_the_tokenizer_is_one_line_and_leaves_no_file(script, tmp_path, flags, message):
    write_jsonl(tmp_path / "wiki/a.jsonl", made_up_articles(3))
    write_jsonl(tmp_path / "textless/a.jsonl", [{"id": 1}])
    before = sorted(tmp_path.rglob("*.*"))
    assert message in error_of(script("data/train_tokenizer.py", "--input_dir=wiki", *flags))
    assert sorted(tmp_path.rglob("*.*")) == before
