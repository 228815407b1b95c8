"""The inspector: who looks at a text does not wait for the vectors of all subjects, which take long."""

import threading

from arena_fakes import arena_settings, write_checkpoint
from tiny import tiny_model, tiny_tokenizer

from minigpt.arena import inspecting
from minigpt.arena.arena import Arena

HANG_SECONDS = 120


def test_a_text_is_read_while_the_vectors_of_subjects_are_computed(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "out/base/ckpt.pt", tiny_model(), tiny_tokenizer(), "pretrain")
    arena = Arena(arena_settings(tmp_path))
    begun, go, computed, found = threading.Event(), threading.Event(), [], []

    def slow_vectors(model, tokenizer, names):
        begun.set()
        assert go.wait(HANG_SECONDS)
        computed.append(len(names))
        return subject_vectors(model, tokenizer, names)

    subject_vectors = inspecting.subject_vectors
    monkeypatch.setattr(inspecting, "subject_vectors", slow_vectors)
    looking = [
        threading.Thread(target=lambda: found.append(arena.inspector.near_subjects("base", "铁")), daemon=True)
        for _ in range(2)
    ]
    reading = threading.Thread(target=lambda: found.append(arena.inspector.tokens("base", "河")), daemon=True)
    try:
        for thread in looking:
            thread.start()
        assert begun.wait(HANG_SECONDS)
        reading.start()
        reading.join(HANG_SECONDS)
        assert len(found) == 1 and found[0].labels == ["河"]
    finally:
        go.set()
    for thread in looking:
        thread.join(HANG_SECONDS)
    assert computed == [666] and found[1] == found[2]  # once for both
    arena.close()
