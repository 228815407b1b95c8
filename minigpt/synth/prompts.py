"""The prompts: what a question and an answer must be, the articles, and what was wrong with the previous reply."""

import json
import tomllib
from pathlib import Path

CHARS_PER_PAIR = 120  # characters of an article for each pair that is asked for
MAX_QUOTED_REPLY_CHARS = 3000  # of the previous reply in the prompt of a retry
MAX_REASONS = 12  # listed in the prompt of a retry

PROMPTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def system_message(settings, several):
    """The text of the system message. several: whether the user's message contains several articles."""
    text = PROMPTS["system"].format(
        question=settings.longest_question,
        answer=settings.longest_answer,
        low=settings.min_pairs,
        high=settings.max_pairs,
        example=PROMPTS["example_of_several" if several else "example"],
    )
    return text + PROMPTS["several"] if several else text


def wanted_pairs(text, settings):
    """Number of pairs to ask for: one for every CHARS_PER_PAIR characters, from min_pairs + 1 to max_pairs.

    The one above min_pairs allows a pair to break a rule without failing the whole reply.
    """
    return min(settings.max_pairs, max(settings.min_pairs + 1, len(text) // CHARS_PER_PAIR))


def article_message(articles, settings):
    """The text of the user's message: articles [(title, text)] and the number of pairs wanted for each."""
    form = PROMPTS["article" if len(articles) == 1 else "numbered_article"]
    return "\n\n".join(
        form.format(number=number, title=title or PROMPTS["no_title"], text=text, pairs=wanted_pairs(text, settings))
        for number, (title, text) in enumerate(articles, start=1)
    )


def messages_for(articles, settings, previous="", reasons=()):
    """The chat messages of a request about articles [(title, text)].

    previous, reasons: in a retry, the previous reply and why it was refused.
    """
    chat = [
        {"role": "system", "content": system_message(settings, len(articles) > 1)},
        {"role": "user", "content": article_message(articles, settings)},
    ]
    if reasons:
        unique = list(dict.fromkeys(reasons))
        lines = [f"- {reason}" for reason in unique[:MAX_REASONS]]
        if len(unique) > MAX_REASONS:
            lines.append(PROMPTS["more_reasons"].format(n=len(unique) - MAX_REASONS))
        chat += [
            {"role": "assistant", "content": previous[:MAX_QUOTED_REPLY_CHARS] or PROMPTS["empty_reply"]},
            {"role": "user", "content": PROMPTS["retry"].format(reasons="\n".join(lines))},
        ]
    return chat


def reply_text(pairs):
    """Pairs as the text of a reply about a single article."""
    rows = [{"question": question, "answer": answer} for question, answer in pairs]
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
