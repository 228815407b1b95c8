"""Plain text and corpora of few documents: split whole, validated on documents' ends, and trained on."""

import itertools
import json

import numpy as np
import pytest
from corpora import write_jsonl
from processes import done, error_of

from minigpt.tokenizer import load_tokenizer

SENTENCES = [f"第{i}天，{'东西南北'[i % 4]}河的水涨了{i + 1}寸，桥边的人都看见了。" for i in range(60)]
NOVEL = "".join(SENTENCES)
POEM = "".join(f"第{i}座桥下水长流，{'东西南北'[i % 4]}岸人家又到秋" for i in range(60))
ENGLISH = " ".join(f"On day {i} the river rose by {i + 1} inches, as people saw from the bridge." for i in range(80))


def prepared(folder):
    """(meta, {part: texts of its rows})."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    tokenizer, texts = load_tokenizer(), {}
    for part in meta["parts"]:
        rows = np.fromfile(folder / f"{part}.bin", dtype="<u2").reshape(-1, meta["block_size"]).tolist()
        texts[part] = [tokenizer.decode(row[: row.index(meta["special_ids"]["eot"])]) for row in rows]
    return meta, texts


@pytest.mark.parametrize(
    "content",
    [NOVEL, f"{NOVEL}（全书完", POEM, ENGLISH],  # the last two without a Chinese sentence end
    ids=["novel", "unfinished", "poem", "english"],
)
def test_one_text_is_split_whole_and_validated_on_its_end(tmp_path, script, content):
    (tmp_path / "novel.txt").write_text(content, encoding="utf-8")
    said = done(script("data/prepare.py", "--input_dir=novel.txt", "--block_size=128"))
    meta, texts = prepared(tmp_path / "data/processed")
    assert "".join([*texts["train"], *texts["val"]]) == content
    assert meta["split"] == "from each document's end" and "parts: from each document's end" in said
    rows = len(texts["train"]) + len(texts["val"])
    assert len(texts["val"]) == max(1, round(rows * 0.05)) and rows >= 10
    assert meta["characters_cut"] == 0 and "characters are in no row" not in said


def test_a_text_of_three_rows_can_be_trained_on(tmp_path, script):
    (tmp_path / "novel.txt").write_text("".join(SENTENCES[:5]), encoding="utf-8")
    done(script("data/prepare.py", "--input_dir=novel.txt", "--block_size=128"))
    meta, _ = prepared(tmp_path / "data/processed")
    assert {part: counts["rows"] for part, counts in meta["parts"].items()} == {"train": 2, "val": 1}
    model = ["--n_layer=1", "--n_head=1", "--n_embd=16", "--block_size=128", "--compile=off", "--dtype=float32"]
    done(
        script("train.py", "--out_dir=out", "--max_iters=1", "--batch_size=1", "--device=cpu", *model, own_process=True)
    )


def test_a_text_of_one_row_is_an_error_whose_advice_works(tmp_path, script):
    (tmp_path / "note.txt").write_text("".join(SENTENCES[:3]), encoding="utf-8")
    message = error_of(script("data/prepare.py", "--input_dir=note.txt"))
    advice = message[message.index("--block_size=") :].split()[0]
    assert "val has none of the 1 rows" in message and not (tmp_path / "data/processed/meta.json").exists()
    done(script("data/prepare.py", "--input_dir=note.txt", advice))
    truncated = error_of(script("data/prepare.py", "--input_dir=note.txt", advice, "--overflow=truncate"))
    assert "--overflow=split" in truncated


def test_few_articles_are_split_and_their_last_rows_validated_on_while_many_are_split_by_subject(tmp_path, script):
    rows = [{"title": f"第{i}镇", "text": "".join(SENTENCES[i : i + 40])} for i in range(20)]
    write_jsonl(tmp_path / "few.jsonl", [*rows[:19], rows[0]])  # an equal one is not another document
    write_jsonl(tmp_path / "many.jsonl", rows)
    (tmp_path / "held.txt").write_text("第3镇\n", encoding="utf-8")
    flags = ["--block_size=512", "--val_share=0.3", "--heldout=held.txt"]
    done(script("data/prepare.py", "--input_dir=few.jsonl", "--data_dir=few", *flags))
    meta, texts = prepared(tmp_path / "few")
    assert meta["split"] == "from each document's end" and meta["overflow"] == "auto" and meta["characters_cut"] == 0
    ends = [row["text"][-20:] for i, row in enumerate(rows[:19]) if i != 3]
    assert sorted(text[-20:] for text in texts["val"] if text[-20:] in ends) == sorted(ends)
    done(script("data/prepare.py", "--input_dir=many.jsonl", "--data_dir=many", *flags))
    meta, texts = prepared(tmp_path / "many")
    assert meta["split"] == "by subject" and len(texts["train"]) + len(texts["val"]) == 20  # truncated


def test_few_articles_of_a_row_each_give_validation_one_of_them(tmp_path, script):
    write_jsonl(tmp_path / "few.jsonl", [{"text": sentence} for sentence in SENTENCES[:5]])
    done(script("data/prepare.py", "--input_dir=few.jsonl"))
    _, texts = prepared(tmp_path / "data/processed")
    assert (len(texts["train"]), len(texts["val"])) == (4, 1)


def test_plain_texts_are_split_and_articles_truncated_in_one_corpus(tmp_path, script):
    write_jsonl(tmp_path / "in/wiki.jsonl", [{"title": f"第{i}镇", "text": NOVEL[i:]} for i in range(30)])
    (tmp_path / "in/novel.txt").write_text("江湖。" + NOVEL, encoding="utf-8")
    (tmp_path / "in/strings.json").write_text(json.dumps(["山川。" + NOVEL]), encoding="utf-8")
    done(script("data/prepare.py", "--input_dir=in", "--plain_text", "--val_share=0.2", "--block_size=512"))
    _, texts = prepared(tmp_path / "data/processed")
    rows = [*texts["train"], *texts["val"]]
    for start in ("江湖。", "山川。"):
        (first,) = (i for i, row in enumerate(rows) if row.startswith(start))
        joined = itertools.accumulate(rows[first:])
        assert start + NOVEL in joined
    assert len(rows) == 30 + 2 * (len(rows) - 30) // 2 and len(rows) > 40


def test_processes_change_nothing_of_a_small_corpus(tmp_path, script):
    for i in range(3):
        (tmp_path / f"in/{i}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / f"in/{i}.txt").write_text(NOVEL[i:] * 3, encoding="utf-8")
    flags = ["data/prepare.py", "--input_dir=in", "--plain_text", "--block_size=128"]
    for n in (1, 2):
        done(script(*flags, f"--workers={n}", f"--data_dir={n}"))
    made = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "12"]
    assert made[0] == made[1]
