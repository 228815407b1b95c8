"""A task told in words to language models: the table of system prompt × model × way × number of examples."""

import itertools
from functools import partial

from tqdm import tqdm

from minigpt.common.errors import UserError
from minigpt.evaluation.contamination import check_models
from minigpt.evaluation.correction import NO_SYSTEM_PROMPT, parse_system_prompts
from minigpt.evaluation.task_predictors import BY_LIKELIHOOD, AnswerPredictor, LikelihoodPredictor, ways_of
from minigpt.evaluation.task_prompts import TaskPrompter, TaskShots
from minigpt.evaluation.tasks import measure_predictor
from minigpt.inference.engine import TextGenerator, open_converted
from minigpt.inference.params import SamplingParams

INSTRUCTION = "task"  # in the setting `systems`: the first of the task's instructions
LONGEST_ANSWER_TOKENS = 256
TUNED_OF_STAGE = {"sft": "yes", "pretrain": "no", "mlm": "no (masked)", "task": "head"}
WORDED_HEADS = ("model", "fine-tuned", "way", "system", "shots", "fewer shots")


class MaskedModel:
    """A loaded masked model, which can be asked by likelihood alone. Its prompts are a base model's."""

    def __init__(self, path, settings):
        _, _, model, tokenizer, _ = open_converted(str(path), settings, exact=True)
        self.generator = TextGenerator(model, tokenizer, "pretrain")


def task_systems(task, names):
    """The system prompts that the setting `systems` names; INSTRUCTION is the task's own. [] is none, and that one."""
    texts = parse_system_prompts(names or [NO_SYSTEM_PROMPT, INSTRUCTION])
    return [task.instructions[0] if text == INSTRUCTION else text for text in texts]


def check_trained_texts(models, data, task):
    """Look for the examples of `TaskData` among the training rows of language models, and print what was found.

    models: `EvaluatedModel`s, whose `contamination` is set. Fine-tuning rows are compared with the question in each of
    the `WordedTask`'s wordings and its answer, the articles of base models with the texts.
    """
    asked = [(f"{text}\n{task.ask(e)}", task.answer(e)) for text in task.instructions for e in data.examples]
    texts = [(e.text, e.text_b or "") for e in data.examples]
    for is_tuned, pairs in ((True, asked), (False, texts)):
        if some := [model for model in models if (model.stage == "sft") == is_tuned]:
            check_models(some, pairs)


def make_word_predictor(way, opened, prompter, training, label_score):
    """The predictor of a way (BY_LIKELIHOOD, BY_ANSWER) of a `LocalModel`, `MaskedModel` or `RemoteModel`."""
    if way == BY_LIKELIHOOD:
        return LikelihoodPredictor(opened.generator, prompter, label_score)
    params = SamplingParams(temperature=0.0, max_new_tokens=LONGEST_ANSWER_TOKENS)
    return AnswerPredictor(opened, prompter, params, training)


def measure_in_words(model, data, task, settings):
    """[`TaskResult`] of a language model, for each way, system prompt and number of examples. Raises UserError.

    model: an `EvaluatedModel`; data: `TaskData`; task: its `WordedTask`. The results' `about` has, beside what the
    model is, "model" (its name), "way", "system", "shots", and how many prompts have fewer examples than that
    ("fewer_shots"), or a text that was cut ("cut_texts").
    """
    is_masked = model.stage == "mlm"
    ways = ways_of(data.kind, model.stage, bool(model.remote), settings.ways)
    if not ways:
        what = "a masked model" if is_masked else "a model behind an API" if model.remote else "tags"
        raise UserError(f"{model.name} cannot be asked so ({what}: see --ways in --help)")
    opened = MaskedModel(model.path, settings) if is_masked else model.open(settings)
    systems, shots, results = task_systems(task, settings.systems), TaskShots(data.training, settings.seed), []
    numbers = {system: number for number, system in enumerate(filter(None, systems), start=1)}
    for way, system, count in itertools.product(ways, systems, dict.fromkeys(settings.shots)):
        prompter = TaskPrompter(task, shots, count, system, "pretrain" if is_masked else model.stage)
        predict = make_word_predictor(way, opened, prompter, data.training, settings.label_score)
        name = f"{model.name}, {way}, {f'system {numbers[system]}, ' if system else ''}{count} shots"
        about = {**model.about(), "name": name, "model": model.name, "way": way, "system": system, "shots": count}
        with tqdm(total=len(data.examples), unit="text", desc=name) as bar:
            result = measure_predictor(about, partial(predict, progress=bar.update), data, settings)
        about |= {"fewer_shots": prompter.with_fewer, "cut_texts": prompter.with_cut, "leak": model.contamination}
        results.append(result)
        if prompter.with_cut:
            print(f"note: {name}: {prompter.with_cut} of {len(data.examples)} texts are too long and lose their middle")
    return results


def worded_rows(results, names):
    """(rows of the table of [`TaskResult`], the system prompts that the rows number).

    Its columns are WORDED_HEADS and the figures of these names. Models with a head and the majority class have no
    prompt.
    """
    systems = [text for text in dict.fromkeys(result.about.get("system") for result in results) if text]
    rows = []
    for result in results:
        about, intervals = result.about, result.figures["intervals"]
        system = about.get("system")
        number = None if system is None else systems.index(system) + 1 if system else NO_SYSTEM_PROMPT
        cells = [about.get("model", about["name"]), TUNED_OF_STAGE.get(about.get("stage")), about["way"], number]
        cells += [about.get("shots"), about.get("fewer_shots")]
        for name in names:
            edges = " [{:.3f}, {:.3f}]".format(*intervals[name]) if intervals[name] else ""
            cells.append(f"{result.figures[name]:.3f}{edges}")
        rows.append(cells)
    return rows, systems
