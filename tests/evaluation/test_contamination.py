"""The contamination check finds rows that were trained on, and does not confuse them with similar ones."""

from dataclasses import asdict

import numpy as np
import pytest
from corpora import ROOT, byte_tokenizer, made_up_articles, made_up_questions
from tiny import tiny_model

from data_utils import read_meta
from minigpt.checkpoint import load_checkpoint, save_checkpoint
from minigpt.corpus.records import Problems, read_articles
from minigpt.corpus.row_files import RowWriter
from minigpt.corpus.splits import pretrain_part, sft_part
from minigpt.evaluation import contamination
from minigpt.evaluation.contamination import check_contamination
from minigpt.settings.stages import TrainSettings
from minigpt.tokenizer import load_tokenizer

BLOCK = 512


def write_texts(folder, parts, stage="pretrain", tokenizer=None):
    """Write rows of {part: texts, or (question, answer)}; returns the folder as a string."""
    tokenizer = tokenizer or byte_tokenizer()
    with RowWriter(folder, list(parts), BLOCK, tokenizer) as writer:
        for part, texts in parts.items():
            for text in texts:
                pair = (text,) if isinstance(text, str) else text
                ids = tokenizer.encode(pair[0])
                ids += [tokenizer.answer_id, *tokenizer.encode(pair[1])] if len(pair) > 1 else []
                writer.add(part, ids[: BLOCK - 1], sum(map(len, pair)))
        writer.finish({"stage": stage})
    return str(folder)


def content_of(folder, stage="pretrain", init_from="scratch", tokenizer=None):
    """The dict of a checkpoint that was trained on a folder, without weights."""
    tokenizer = tokenizer or byte_tokenizer()
    about = {"name": tokenizer.name, "sha256": tokenizer.sha256, "table": tokenizer.vocabulary}
    return {"stage": stage, "tokenizer": about, "settings": {"data_dir": folder, "init_from": init_from}}


def towns(parts=("train", "val")):
    """Made-up articles in parts by subject, as prepare.py splits them."""
    found = {part: [] for part in parts}
    for row in made_up_articles(120):
        found[pretrain_part(row["title"], 0.3)].append(row["text"].partition("\n\n")[2])
    return found


def questions():
    """Made-up questions in parts by subject, as prepare_sft.py splits them."""
    found = {"train": [], "val": [], "test": []}
    for row in made_up_questions(120):
        found[sft_part(str(row["id"]), 0.2, 0.3)].append((row["question"], row["answer"]))
    return found


def check_part(folder, part="val", **more):
    return check_contamination(content_of(folder, read_meta(folder)["stage"], **more), source=(folder, part))


def test_articles_that_share_sentences_but_not_subjects_are_clean(tmp_path):
    parts = towns()
    result = check_part(write_texts(tmp_path / "towns", parts))
    assert (result.verdict, result.leaked_rows, result.rows) == ("clean", 0, len(parts["val"]))
    assert result.line().startswith("contamination check: clean: 0 of ") and "WARNING" not in result.line()
    assert asdict(result) == {
        "checked": [str(tmp_path / "towns")], "share": result.share, "leaked_rows": 0, "rows": result.rows,
        "verdict": "clean", "notes": [],
    }  # fmt: skip


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_a_validation_part_of_which_all_or_a_tenth_is_in_training_is_leaked(tmp_path, share):
    parts = towns()
    leaked = parts["val"][: max(1, round(share * len(parts["val"])))]
    result = check_part(write_texts(tmp_path / "towns", {**parts, "train": [*parts["train"], *leaked]}))
    assert result.verdict == "leaked" and "WARNING" in result.line()
    assert len(leaked) <= result.leaked_rows <= 3 * len(leaked)  # a town has three similar articles
    if share == 1.0:
        assert result.share == 1.0


def test_half_of_each_row_in_training_is_leaked_though_no_whole_row_is(tmp_path):
    text = "".join(chr(c) for c in np.random.default_rng(0).integers(0x4E00, 0x9F00, size=5000))
    rows = [text[i : i + 100] for i in range(0, 5000, 100)]
    result = check_part(write_texts(tmp_path / "rows", {"train": [row[:60] for row in rows], "val": rows}))
    assert result.verdict == "leaked" and result.leaked_rows == 0
    assert result.share == pytest.approx(45 / 85, abs=0.03)  # n-grams of the first 60 characters, of those of 100


def test_a_row_shorter_than_an_ngram_has_to_be_a_whole_training_row(tmp_path):
    parts = {"train": ["天地玄黄。", "宇宙洪荒。", "日月盈昃，"], "val": ["天地玄黄。", "天地", "辰宿列张。"]}
    assert check_part(write_texts(tmp_path / "short", parts)).leaked_rows == 1


def test_the_embedded_corpus_is_clean_if_split_by_subject_and_leaked_if_split_by_row(tmp_path):
    tokenizer, parts, mixed = load_tokenizer(), {"train": [], "val": []}, {"train": [], "val": []}
    paths = [str(ROOT / "data/wiki_sample" / f"{name}.jsonl") for name in ("instruments", "dynasties")]
    for number, article in read_articles(paths, Problems()):
        text = article.text.partition("\n\n")[2]
        parts[pretrain_part(article.subject, 0.1)].append(text)
        mixed["val" if number % 20 == 0 else "train"].append(text)
    by_subject = check_part(write_texts(tmp_path / "subject", parts, tokenizer=tokenizer), tokenizer=tokenizer)
    assert (by_subject.verdict, by_subject.leaked_rows) == ("clean", 0) and 0 < by_subject.share < 0.15
    by_row = check_part(write_texts(tmp_path / "row", mixed, tokenizer=tokenizer), tokenizer=tokenizer)
    assert by_row.verdict == "leaked" and by_row.share > 0.25


def test_questions_that_share_templates_and_short_answers_are_clean(tmp_path):
    parts = questions()
    parts["train"] += [("法国的首都是哪里？", "巴黎"), ("第1镇的河叫什么？", "东河")]
    parts["test"] += [("第999镇的首都是哪里？", "巴黎"), ("第2镇的河叫什么？", "东河"), ("法国的首都是哪里？", "里昂")]
    result = check_part(write_texts(tmp_path / "qa", parts, "sft"), "test")
    assert (result.verdict, result.leaked_rows) == ("clean", 0)


def test_a_question_with_its_answer_and_a_long_answer_to_another_question_are_leaked(tmp_path):
    parts, long = questions(), "第七镇位于东河的左岸，那里有三座石桥。"
    parts["train"] += [parts["test"][0], ("第七镇位于哪里？", long)]
    parts["test"] += [("说说第七镇。", long)]
    result = check_part(write_texts(tmp_path / "qa", parts, "sft"), "test")
    assert result.leaked_rows == 2
    parts["train"] += parts["test"][:20]
    assert check_part(write_texts(tmp_path / "more", parts, "sft"), "test").verdict == "leaked"


def test_pairs_without_a_source_are_checked(tmp_path):
    qa = questions()
    content = content_of(write_texts(tmp_path / "qa", qa, "sft"), "sft")
    assert check_contamination(content, pairs=qa["test"]).verdict == "clean"
    asked = [(f" {question}\n", answer) for question, answer in qa["train"]]
    result = check_contamination(content, pairs=asked)
    assert (result.verdict, result.leaked_rows) == ("leaked", len(asked))
    content = content_of(write_texts(tmp_path / "towns", towns()))
    for part, verdict in (("val", "clean"), ("train", "leaked")):
        continuations = [(text[:9], text[9:]) for text in towns()[part]]
        assert check_contamination(content, pairs=continuations).verdict == verdict


def test_a_folder_prepared_with_another_tokenizer_is_checked(tmp_path):
    parts, gpt2 = towns(), load_tokenizer()
    measured = write_texts(tmp_path / "bytes", parts)
    clean = write_texts(tmp_path / "gpt2", parts, tokenizer=gpt2)
    assert check_contamination(content_of(clean), source=(measured, "val")).verdict == "clean"
    leaked = write_texts(tmp_path / "leaked", {**parts, "train": [*parts["train"], *parts["val"]]}, tokenizer=gpt2)
    result = check_contamination(content_of(leaked), source=(measured, "val"))
    assert (result.verdict, result.leaked_rows) == ("leaked", len(parts["val"]))


def save_base(path, folder, stage="pretrain", init_from="scratch"):
    model, settings = tiny_model(), TrainSettings(data_dir=folder, init_from=init_from)
    progress = {"step": 1}
    save_checkpoint(path, model.state_dict(), model.config, settings, stage, byte_tokenizer(), progress)
    return str(path)


def test_questions_are_searched_for_in_the_articles_of_the_base(tmp_path):
    qa, articles = questions(), towns()
    facts = [f"{row['text']}" for row in made_up_articles(120)]  # they contain every answer, which is no contamination
    base = save_base(tmp_path / "base.pt", write_texts(tmp_path / "towns", {"train": facts, "val": articles["val"]}))
    content = content_of(write_texts(tmp_path / "qa", qa, "sft"), "sft", base)
    result = check_contamination(content, pairs=[*qa["test"], ("第5镇位于东河边。", "第5镇位于东河边。")])
    assert (result.verdict, result.leaked_rows) == ("clean", 0)
    assert result.checked == [str(tmp_path / "qa"), str(tmp_path / "towns")]
    asked = [f"问：{question}答：{answer}" for question, answer in qa["test"]]
    write_texts(tmp_path / "towns", {"train": [*facts, *asked], "val": articles["val"]})
    result = check_contamination(content, pairs=qa["test"])
    assert (result.verdict, result.leaked_rows) == ("leaked", len(qa["test"]))


def test_a_cyclic_chain_of_checkpoints_is_followed_and_ends(tmp_path):
    qa = questions()
    first = write_texts(tmp_path / "first", {"train": qa["test"], "val": qa["val"]}, "sft")
    save_base(tmp_path / "a.pt", first, "sft", str(tmp_path / "a.pt"))
    content = content_of(write_texts(tmp_path / "qa", qa, "sft"), "sft", str(tmp_path / "a.pt"))
    result = check_contamination(content, pairs=qa["test"])
    assert result.checked == [str(tmp_path / "qa"), first] and result.leaked_rows == len(qa["test"])


def test_notes_name_what_could_not_be_checked(tmp_path):
    qa = questions()
    folder = write_texts(tmp_path / "qa", qa, "sft")
    no_base = check_contamination(content_of(folder, "sft", "no/base.pt"), pairs=qa["test"])
    assert no_base.verdict == "clean" and "no/base.pt" in no_base.line()
    resumed = check_contamination(content_of(folder, "sft", "resume"), pairs=qa["test"])
    assert "resumed" in resumed.line()
    no_folder = check_contamination(content_of(str(tmp_path / "none"), "sft"), pairs=qa["test"])
    assert (no_folder.verdict, no_folder.share, no_folder.checked) == ("not checked", None, [])
    assert str(tmp_path / "none") in no_folder.line()
    api = check_contamination(None, pairs=qa["test"])
    assert (api.verdict, api.rows) == ("not checked", len(qa["test"])) and "API" in api.line()
    nothing = check_contamination({**content_of(folder, "sft"), "settings": {}}, pairs=qa["test"])
    assert nothing.verdict == "not checked"


def test_a_training_part_evaluated_on_purpose_gives_no_warning(tmp_path):
    folder = write_texts(tmp_path / "towns", towns())
    result = check_contamination(content_of(folder), source=(f"{folder}/../towns", "train"))
    assert result.verdict == "trained on" and result.leaked_rows == result.rows > 0
    assert result.line().startswith("contamination check: these rows were trained on")
    other = write_texts(tmp_path / "other", towns())
    assert check_contamination(content_of(other), source=(folder, "train")).verdict == "leaked"


def test_ngram_hashes_equal_a_plain_loop():
    ids = np.random.default_rng(1).integers(0, 60000, size=300).astype(np.uint16)
    values, multiplier = contamination.TOKEN_VALUES, int(contamination.MULTIPLIER)
    plain = []
    for start in range(300 - 7 + 1):
        value = sum(int(values[x]) * multiplier**j for j, x in enumerate(ids[start : start + 7].tolist()))
        plain.append(value % 2**64)
    assert contamination.ngram_hashes(ids, 7).tolist() == plain
    assert contamination.ngram_hashes(ids[:6], 7).tolist() == []


def test_shares_equal_a_plain_loop_over_sets_of_ngrams(monkeypatch):
    rng, special = np.random.default_rng(2), {"eot": 8, "pad": 9, "answer": 7}
    texts = [rng.integers(0, 3, size=n).astype(np.uint16) for n in (30, 4, 0, 12, 30)]
    train = np.full((40, 20), 9, dtype=np.uint16)
    for row in train:
        length = rng.integers(3, 20)
        row[:length], row[length] = rng.integers(0, 3, size=length), 8
    known = {tuple(row[i : i + 5]) for row in train.tolist() for i in range(16)}
    monkeypatch.setattr(contamination, "CHUNK_TOKENS", 60)  # three rows at a time
    search = contamination.NgramSearch(texts, 5)
    contamination.scan_rows(train, special, [search])
    found = [[tuple(ids[i : i + 5].tolist()) in known for i in range(len(ids) - 4)] for ids in texts]
    assert search.shares() == pytest.approx([np.mean(hits) if hits else 0.0 for hits in found])
    assert search.share() == pytest.approx(np.mean([hit for hits in found for hit in hits]))
    assert 0 < search.share() < 1


def test_a_sample_of_many_ngrams_gives_the_share_of_all():
    rng = np.random.default_rng(3)
    texts = [rng.integers(0, 5000, size=400).astype(np.uint16) for _ in range(50)]
    train = np.array([ids[:200] for ids in texts], dtype=np.uint16)
    search = contamination.NgramSearch(texts, 8, max_ngrams=4000)
    assert 3000 < len(search.owners) < 4500
    contamination.scan_rows(train, {"eot": 8000, "pad": 8001, "answer": 8002}, [search])
    assert search.share() == pytest.approx(193 / 393, abs=0.05)


def test_a_checkpoint_file_is_checked(tmp_path):
    folder = write_texts(tmp_path / "towns", towns())
    content = load_checkpoint(save_base(tmp_path / "ckpt.pt", folder))
    assert check_contamination(content, source=(folder, "val")).verdict == "clean"
