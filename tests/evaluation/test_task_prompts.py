"""Tasks told in words: answers and how they are parsed, prompts that fit the block, and the predictors."""

import numpy as np
import pytest
from tiny import EOT, tiny_model, tiny_tokenizer

from minigpt.common.errors import UserError
from minigpt.corpus.tasks import LabelledExample
from minigpt.evaluation.task_predictors import AnswerPredictor, LikelihoodPredictor
from minigpt.evaluation.task_prompts import (
    TaskPrompter,
    TaskShots,
    build_task_chat,
    check_label_words,
    parse_label_words,
    word_task,
)
from minigpt.inference.engine import TextGenerator
from minigpt.inference.label_likelihood import label_logprobs
from minigpt.inference.params import SamplingParams

FIELD = word_task("landforms", "classify", ["河", "河流", "山"])
REVIEWS = word_task("reviews", "classify", ["0", "1"], parse_label_words(["0:差评", "1:好评"]))
NAMES = word_task("places", "tag", ["O", "B-人", "I-人", "B-地", "I-地"])
BARE = word_task("bare", "tag", ["B", "I", "O"])


def text(content, label="河", number=1, **more):
    return LabelledExample("a.jsonl", number, content, label=label, **more)


def tagged(content, tags):
    return LabelledExample("a.jsonl", 1, content, tags=tags.split())


TRAINING = [text(f"{label}{i}", label) for i in range(6) for label in ("河", "河流", "山")]


@pytest.mark.parametrize(
    ("task", "answer", "label"),
    [
        (FIELD, "山", "山"),
        (FIELD, " 河流。", "河流"),  # the longest word that begins there
        (FIELD, "是山，不是河", "山"),  # the first word
        (FIELD, "海", None),
        (FIELD, "", None),
        (REVIEWS, "好评", "1"),
        (REVIEWS, "1", None),  # the words stand for the labels
    ],
)
def test_the_label_of_an_answer(task, answer, label):
    assert task.parse(answer, text("")) == label


@pytest.mark.parametrize(
    ("task", "content", "tags", "answer"),
    [
        (NAMES, "李白去成都", "B-人 I-人 O B-地 I-地", "人：李白；地：成都"),
        (NAMES, "去年", "O O", "无"),
        (NAMES, "京京", "B-地 B-地", "地：京；地：京"),  # each is sought behind the one before it
        (BARE, "去京都", "O B I", "名称：京都"),
    ],
)
def test_tags_are_told_in_words_and_read_back(task, content, tags, answer):
    example = tagged(content, tags)
    assert task.answer(example) == answer
    assert task.parse(answer, example) == tags.split()


@pytest.mark.parametrize(
    ("answer", "tags"),
    [
        ("地: 成都; 人:李白", "B-人 I-人 O B-地 I-地"),  # in another order, with other marks
        ("人：杜甫；神：李白；地", "O O O O O"),  # not in the text, of no type, without a text
        ("人：李白；地：白去", "B-人 I-人 O O O"),  # overlaps
        ("好的", "O O O O O"),
    ],
)
def test_what_an_answer_says_of_a_text(answer, tags):
    assert NAMES.parse(answer, text("李白去成都")) == tags.split()


def test_label_words_must_be_words_of_labels_each_its_own():
    assert "差评、好评" in REVIEWS.instructions[0]
    for wrong in (["0"], ["0:"], [":a"]):
        with pytest.raises(UserError, match="label:word"):
            parse_label_words(wrong)
    with pytest.raises(UserError, match="2 is no label"):
        check_label_words({"2": "中评"}, [FIELD, REVIEWS])
    with pytest.raises(UserError, match="have the word 好"):
        word_task("reviews", "classify", ["0", "1"], {"0": "好", "1": "好"})


def test_shots_are_balanced_the_same_each_time_and_never_the_example_itself():
    shots = TaskShots(TRAINING, seed=1)
    for example in TRAINING[:3]:
        drawn = shots.draw(example, 6)
        assert drawn == TaskShots(TRAINING, seed=1).draw(example, 6) and example not in drawn
        assert sorted(shot.label for shot in drawn) == ["山", "山", "河", "河", "河流", "河流"]
    assert shots.draw(TRAINING[0], 6) != shots.draw(TRAINING[1], 6)
    assert len(shots.draw(TRAINING[0], 17)) == 17
    with pytest.raises(UserError, match="only 17"):
        shots.draw(TRAINING[0], 18)


def test_a_base_model_reads_lines_and_a_fine_tuned_one_a_chat():
    shot, example = text("长江", "河"), text("泰山", "山")
    chat = build_task_chat(FIELD, example, "分类。", [shot], "sft")
    assert [m["role"] for m in chat] == ["system", "user", "assistant", "user"]
    assert [m["content"] for m in chat] == ["分类。", "文本：长江", "河", "文本：泰山"]
    lines = build_task_chat(FIELD, example, "", [shot], "pretrain")
    assert [m["content"] for m in lines] == ["文本：长江", "类别：河", "文本：泰山", "类别："]


@pytest.mark.parametrize("stage", ["sft", "pretrain"])
@pytest.mark.parametrize("room", [30, 70, 200])
def test_prompts_fit_the_room_with_as_many_examples_as_fit(stage, room):
    generator = TextGenerator(tiny_model(), tiny_tokenizer(), stage)
    prompter = TaskPrompter(FIELD, TaskShots(TRAINING, 0), 4, "", stage, generator.prompt_ids, room)
    short, long = text("山", number=1), text("b" * 150 + "c" * 150)
    taken = {}
    for example in (short, long):
        messages, shots = prompter.build(example)
        assert len(generator.prompt_ids(messages)) <= room
        taken[example.text] = len(shots)
        more = prompter.messages(example, prompter.shots.draw(example, 4)[: len(shots) + 1])
        assert len(shots) == 4 or len(generator.prompt_ids(more)) > room
    assert taken[long.text] == 0 and (taken["山"] == 4) == (room == 200) and (taken["山"] > 0) == (room > 30)
    assert (prompter.with_fewer, prompter.with_cut) == (1 + (room < 200), 1)
    question = next(m["content"] for m in messages if m["role"] == "user")
    assert question.startswith("文本：b") and question.endswith("c")  # the middle is left out


def test_a_prompt_whose_instruction_alone_is_too_long_is_an_error():
    generator = TextGenerator(tiny_model(), tiny_tokenizer(), "sft")
    prompter = TaskPrompter(FIELD, TaskShots(TRAINING, 0), 0, "很长" * 20, "sft", generator.prompt_ids, 30)
    with pytest.raises(UserError, match="30 tokens"):
        prompter.build(text("山"))


def likelihood_predictor(stage, label_score, count=1):
    model, tokenizer = tiny_model(block_size=128), tiny_tokenizer()
    prompter = TaskPrompter(FIELD, TaskShots(TRAINING, 0), count, "分类。", stage)
    generator = TextGenerator(model, tokenizer, stage)
    return LikelihoodPredictor(generator, prompter, label_score)


@pytest.mark.numeric
@pytest.mark.parametrize("stage", ["sft", "pretrain"])
@pytest.mark.parametrize("label_score", ["sum", "mean", "calibrated"])
def test_the_label_is_the_likeliest_by_each_score(stage, label_score):
    predict = likelihood_predictor(stage, label_score)
    tokenizer, end = predict.tokenizer, [EOT] if stage == "sft" else []
    words = [[*tokenizer.encode(word), *end] for word in ("河", "河流", "山")]
    examples = [text("长江"), text("泰山"), text("a")]
    for example, found in zip(examples, predict(examples), strict=True):
        shots = TaskShots(TRAINING, 0).draw(example, 1)
        asked, empty = (
            label_logprobs(
                predict.model,
                [predict.prompter.ids_of(build_task_chat(FIELD, each, "分类。", shots, stage))],
                words,
                tokenizer,
            )[0]
            for each in (example, text(""))
        )
        scores = {"sum": asked, "mean": asked / [len(ids) for ids in words], "calibrated": asked - empty}[label_score]
        p = np.exp(scores) / np.exp(scores).sum()
        assert found.label == ["河", "河流", "山"][p.argmax()]
        assert found.probability == pytest.approx(p.max(), abs=1e-5)


class Answering:
    """A model that gives the same answers to whatever is asked."""

    def __init__(self, *texts):
        self.texts = texts

    def answers(self, prompts, params, progress=None):
        self.prompts = prompts
        return list(self.texts)


def test_labels_are_found_in_answers_of_which_a_base_models_first_line_counts():
    examples = [text("长江"), text("泰山"), text("a")]
    for stage, found in (("sft", ["河", "山", None]), ("pretrain", ["河", None, None])):
        opened = Answering("河。\n山", "我想是\n山", None if stage == "sft" else "")
        predict = AnswerPredictor(
            opened, TaskPrompter(FIELD, TaskShots(TRAINING, 0), 0, stage=stage), SamplingParams(), []
        )
        assert [prediction.label for prediction in predict(examples)] == found
        assert opened.prompts[0][0]["content"] == "文本：长江"
