"""Labels and tags of models with a head, held against one text at a time."""

import pytest
import torch
from tiny import EOT, TAGS, tiny_classifier

from minigpt.common.errors import UserError
from minigpt.inference.quantize import choose_weight_type
from minigpt.metrics import find_entities

TEXTS = ["河的", "a", "", "b河的c桥", "一二三", "ab" * 5]
PAIRS = [("河", "的"), ("a", ""), ("桥桥", "b河")]


def plain_probabilities(classifier, ids, places):
    """Probabilities (len(places), labels) of the labels of one row's tokens, without a batch."""
    with torch.no_grad():
        states = classifier.model.hidden(torch.tensor([ids]))
        return classifier.model.lm_head(states)[0, places].softmax(dim=-1)


@pytest.mark.numeric
@pytest.mark.parametrize("causal", [True, False])
def test_labels_of_a_batch_are_those_of_one_text_at_a_time(architecture, causal):
    classifier = tiny_classifier(architecture=architecture, causal=causal)
    encode = classifier.tokenizer.encode
    for text, found in zip(TEXTS, classifier.classify(TEXTS), strict=True):
        ids = [*encode(text), EOT]
        p = plain_probabilities(classifier, ids, [len(ids) - 1])[0]
        assert found.probabilities == pytest.approx(dict(zip(classifier.labels, p.tolist(), strict=True)), abs=1e-5)
        assert found.label == classifier.labels[p.argmax()] and not found.cut and found.tokens == len(ids)
    assert len({found.label for found in classifier.classify(TEXTS)}) > 1


@pytest.mark.numeric
def test_the_label_of_a_pair_stands_behind_its_second_text():
    classifier = tiny_classifier("pair")
    encode, done = classifier.tokenizer.encode, []
    for (a, b), found in zip(PAIRS, classifier.classify(PAIRS, done.append), strict=True):
        ids = [*encode(a), EOT, *encode(b), EOT]
        p = plain_probabilities(classifier, ids, [len(ids) - 1])[0]
        assert list(found.probabilities.values()) == pytest.approx(p.tolist(), abs=1e-5)
    assert sum(done) == len(PAIRS)


@pytest.mark.numeric
@pytest.mark.parametrize("causal", [True, False])
def test_a_tag_stands_at_the_last_token_of_its_character(causal):
    classifier = tiny_classifier("tag", causal=causal)
    for text, found in zip(TEXTS, classifier.tag(TEXTS), strict=True):
        ids, places = [], []
        for character in text:
            ids += classifier.tokenizer.encode(character)
            places.append(len(ids) - 1)
        p = plain_probabilities(classifier, [*ids, EOT], places)
        assert found.tags == [TAGS[i] for i in p.argmax(dim=1)]
        assert found.probabilities == pytest.approx(p.max(dim=1).values.tolist(), abs=1e-5)
        spans = [(entity["type"], entity["start"], entity["end"]) for entity in found.entities]
        assert spans == find_entities(found.tags)
        assert all(entity["text"] == text[entity["start"] : entity["end"]] for entity in found.entities)


def test_texts_longer_than_the_block_are_cut_and_say_so():
    (found,) = tiny_classifier().classify(["a" * 40])
    assert found.cut and found.tokens == 32
    (tagged,) = tiny_classifier("tag").tag(["a" * 40])
    assert tagged.cut and len(tagged.tags) == 40
    assert set(tagged.tags[31:]) == {"O"} and tagged.probabilities[30] > 0 and tagged.probabilities[31] is None


@pytest.mark.parametrize(
    ("kind", "ask", "wanted"),
    [
        ("classify", lambda c: c.classify([("a", "b")]), "one text"),
        ("pair", lambda c: c.classify(["a"]), "two texts"),
        ("tag", lambda c: c.classify(["a"]), "tags the characters"),
        ("classify", lambda c: c.tag(["a"]), "one text"),
    ],
)
def test_a_model_of_another_kind_of_task_is_refused(kind, ask, wanted):
    with pytest.raises(UserError, match=wanted):
        ask(tiny_classifier(kind))


@pytest.mark.numeric
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_head_runs_in_the_types_of_generation(dtype):
    classifier = tiny_classifier(architecture="qwen3")
    expected = classifier.classify(TEXTS)
    classifier.model, _, _ = choose_weight_type(classifier.model, dtype)
    for found, exact in zip(classifier.classify(TEXTS), expected, strict=True):
        assert found.probabilities == pytest.approx(exact.probabilities, abs=0.1)
