"""Rewards of sampled answers without a judge: an answer is compared with its reference, or its form is looked at."""

from minigpt.common.errors import UserError
from minigpt.metrics import exact_match, extract_numbers, rouge_l
from minigpt.tokenizer import ANSWER_TEXT


def exact_reward(text, reference, ended):
    """1 if the answer ended and is the reference. One that was cut off is not known to end there."""
    return float(ended and exact_match(text, reference))


def rouge_l_reward(text, reference, ended):
    """Rouge-L F of the answer, 0 to 1."""
    return rouge_l(text, reference)[2]


def numbers_reward(text, reference, ended):
    """1 if the answer has exactly the reference's numbers, and none where the reference has none."""
    return float(extract_numbers(text) == extract_numbers(reference))


def format_reward(text, reference, ended):
    """1 if the answer ended within its longest length, is not empty, and has no answer mark, and no line break unless
    the reference has one."""
    one_line = "\n" not in text.strip() or "\n" in reference.strip()
    return float(ended and bool(text.strip()) and ANSWER_TEXT not in text and one_line)


# By name: (answer's text, reference, whether the answer ended by itself) -> reward from 0 to 1.
REWARDS = {"exact": exact_reward, "rouge_l": rouge_l_reward, "numbers": numbers_reward, "format": format_reward}


def parse_rewards(given):
    """{name: weight} from a list of "name" (weight 1) and "name:weight". Raises UserError."""
    weights = {}
    for text in given:
        name, colon, weight = text.partition(":")
        if name not in REWARDS:
            raise UserError(f"there is no reward {name!r} in rewards={text}; there are: {', '.join(REWARDS)}")
        if name in weights:
            raise UserError(f"rewards names {name} twice; give it once, with one weight")
        try:
            weights[name] = float(weight) if colon else 1.0
        except ValueError:
            weights[name] = 0.0
        if not 0 < weights[name] < float("inf"):
            raise UserError(f"the weight in rewards={text} is no number above 0; write {name} or {name}:0.5")
    if not weights:
        raise UserError(f"rewards is empty; name at least one of: {', '.join(REWARDS)}")
    return weights


def weighted_rewards(answers, weights):
    """The reward of each `Answer`: the sum of its rewards times their weights ({name: weight})."""
    return [sum(w * REWARDS[name](a.text, a.reference, a.ended) for name, w in weights.items()) for a in answers]
