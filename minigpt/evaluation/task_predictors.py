"""Predictors of a task that is told in words to a language model: by the likelihood of the labels, or by its answers.

Both are called as minigpt/evaluation/tasks.py describes it: with examples, and they return a `TaskPrediction` for each.
"""

from dataclasses import replace

import numpy as np

from minigpt.corpus.tasks import TAG
from minigpt.evaluation.tasks import TaskPrediction
from minigpt.inference.label_likelihood import label_logprobs, prompt_room

BY_LIKELIHOOD, BY_ANSWER = "likelihood", "answer"
MARGIN_TOKENS_OF_ANSWER = 8  # beyond the longest answer to a training example: a longer answer is wrong already


class LikelihoodPredictor:
    """Takes the label whose word is likeliest behind the prompt.

    generator: a `TextGenerator` with a causal language model, or with a masked one. label_score:
      sum         log p(word | prompt), the sum over its tokens. Behind the answer of a fine-tuned model, EOT is counted
      mean        the mean over these tokens, so that long words are not at a disadvantage
      calibrated  sum, minus that of the same prompt with an empty text, which shows what the examples and the words
                  alone make likely (Zhao et al. 2021, "Calibrate Before Use", section 5: W = diag(p)^-1, b = 0)
      auto        sum for a fine-tuned model, calibrated for others (measured in docs/evaluation.md)
    prompter: a `TaskPrompter`, whose `ids_of` and `room` are set here.
    """

    def __init__(self, generator, prompter, label_score):
        self.model, self.tokenizer = generator.model, generator.tokenizer
        is_tuned = prompter.stage == "sft"
        self.prompter, self.label_score = prompter, label_score
        if label_score == "auto":
            self.label_score = "sum" if is_tuned else "calibrated"
        end = [self.tokenizer.eot_id] if is_tuned else []
        self.labels = list(prompter.task.words)
        self.words = [[*self.tokenizer.encode(word), *end] for word in prompter.task.words.values()]
        prompter.ids_of, prompter.room = generator.prompt_ids, prompt_room(self.model, self.words)

    def __call__(self, examples, progress=None):
        """[`TaskPrediction`] of examples. progress(n): n more are done."""
        built = [(example, *self.prompter.build(example)) for example in examples]
        scores = self.likelihoods([messages for _, messages, _ in built], progress)
        if self.label_score == "mean":
            scores = scores / [len(ids) for ids in self.words]
        elif self.label_score == "calibrated":
            scores = scores - self.likelihoods([self.prompter.blank(example, shots) for example, _, shots in built])
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        return [TaskPrediction(self.labels[row.argmax()], float(row.max())) for row in p]

    def likelihoods(self, chats, progress=None):
        """Log likelihoods (len(chats), number of labels) of the words. Equal prompts are computed once."""
        prompts = [tuple(self.prompter.ids_of(messages)) for messages in chats]
        numbers = {ids: number for number, ids in enumerate(dict.fromkeys(prompts))}
        found = label_logprobs(self.model, [list(ids) for ids in numbers], self.words, self.tokenizer, progress)
        return found[[numbers[ids] for ids in prompts]]


class AnswerPredictor:
    """Lets a model answer, greedily, and finds the label in its answer.

    opened: a `LocalModel` or `RemoteModel`; params: the `SamplingParams`, of which the number of new tokens is limited
    to the longest right answer to a training example.
    """

    def __init__(self, opened, prompter, params, training):
        self.opened, self.prompter, self.params = opened, prompter, params
        generator = getattr(opened, "generator", None)
        if generator:
            answers = {prompter.task.answer(example) for example in training}
            longest = max((len(generator.tokenizer.encode(answer)) for answer in answers), default=0)
            new_tokens = min(params.max_new_tokens, longest + MARGIN_TOKENS_OF_ANSWER)
            self.params = replace(params, max_new_tokens=new_tokens)
            prompter.ids_of = generator.prompt_ids
            prompter.room = prompt_room(generator.model, [[0] * new_tokens])

    def __call__(self, examples, progress=None):
        """[`TaskPrediction`] of examples. progress(n): n more are answered."""
        task = self.prompter.task
        chats = [self.prompter.build(example)[0] for example in examples]
        answers = self.opened.answers(chats, self.params, progress)
        if self.prompter.stage == "pretrain":  # it goes on after its answer: keep the first line
            answers = [(text.strip().splitlines() or [""])[0] for text in answers]
        pairs = zip(answers, examples, strict=True)
        return [TaskPrediction(task.parse(answer or "", example), answer=answer) for answer, example in pairs]


def ways_of(kind, stage, is_remote=False, wanted=()):
    """The ways in which a model of a stage can be asked about a task of a kind: some of BY_LIKELIHOOD and BY_ANSWER.

    wanted: the setting `ways`; [] stands for the labels' likelihood, and of fine-tuned models the answers, too. Tags
    can only be told in an answer, a masked model only fills masks, and an API gives no likelihoods of a text.
    """
    able = set() if kind == TAG or is_remote else {BY_LIKELIHOOD}
    able |= set() if stage == "mlm" else {BY_ANSWER}
    usual = {BY_LIKELIHOOD} if stage == "pretrain" and BY_LIKELIHOOD in able else able
    return [way for way in (BY_LIKELIHOOD, BY_ANSWER) if way in (able & set(wanted) if wanted else usual)]
