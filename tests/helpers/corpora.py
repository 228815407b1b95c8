"""A small corpus made on the spot, a tokenizer for it, and where the project lies."""

import json
from pathlib import Path

from minigpt.tokenizer import Tokenizer, format_vocabulary

ROOT = Path(__file__).resolve().parents[2]


def byte_tokenizer():
    """A tokenizer of single bytes: 259 ids, so that a model that is trained in a test is small."""
    ranks = {bytes([b]): b for b in range(256)}
    return Tokenizer("bytes", format_vocabulary(ranks, {"eot": 256, "pad": 257, "answer": 258}, r"[\s\S]"))


def write_jsonl(path, rows):
    """Write rows, as dicts or as raw text or bytes, a line each; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for row in rows:
            line = (
                row if isinstance(row, bytes) else row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)
            )
            file.write((line if isinstance(line, bytes) else line.encode()) + b"\n")
    return path


def made_up_articles(n_subjects=40, tellings=3):
    """Articles about invented towns, each told several times."""
    rows = []
    for i in range(n_subjects):
        name, river = f"第{i}镇", "东西南北"[i % 4] + "河"
        sentences = [f"{name}位于{river}边。", f"{name}有{i + 3}座桥。", f"流过{name}的是{river}。"]
        for k in range(tellings):
            text = "".join(sentences[k % 3 :] + sentences[: k % 3])
            rows.append({"id": len(rows), "title": name, "text": f"{name}\n\n{text}"})
    return rows


def made_up_questions(n_subjects=40, tellings=3):
    """Two questions about each of the towns; ids are those of `made_up_articles`."""
    rows = []
    for i in range(n_subjects):
        name, river = f"第{i}镇", "东西南北"[i % 4] + "河"
        rows.append({"question": f"{name}位于哪里？", "answer": f"{name}位于{river}边。", "id": i * tellings})
        rows.append({"question": f"{name}有几座桥？", "answer": f"{name}有{i + 3}座桥。", "id": i * tellings})
    return rows
