"""Questions: reading them from files of any format, and the forms that a question's row may have.

| form | fields |
|---|---|
| pair | one of QUESTION_NAMES, one of ANSWER_NAMES |
| alpaca | instruction, input (may be missing or empty), output, history ([[question, answer], …], may be missing) |
| sharegpt | conversations: [{"from": "human" or "gpt" or "system", "value"}, …] |
| openai | messages: [{"role": "user" or "assistant" or "system", "content"}, …] |
"""

import os
from dataclasses import dataclass

from minigpt.common.errors import UserError
from minigpt.corpus.readers.files import TEXT_SUFFIX, split_suffixes
from minigpt.corpus.records import name_field, read_rows, text_field

QUESTION_NAMES = ("question", "prompt", "问题")
ANSWER_NAMES = ("answer", "reference", "output", "答案")
# The form of a row by the first of these fields that it has. Data sets of messages may have a prompt, too.
FORMS = {
    "question": "pair", "问题": "pair", "instruction": "alpaca", "conversations": "sharegpt", "messages": "openai",
    "prompt": "pair",
}  # fmt: skip
MESSAGE_ROLES = {
    "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "bot": "assistant",
    "chatgpt": "assistant", "system": "system", "developer": "system",
}  # fmt: skip


@dataclass
class Question:
    source: str
    id: object  # of the article that it was made from, or None
    question: str
    answer: str  # "" where the row has none, and none is required
    subject: str = ""  # of its article, where the row names it
    kind: str = ""  # of its mistake, in rows of sentence correction


def read_questions(files, problems, progress=None, turns="each", forms=None, answer_required=True):
    """Yields (number, `Question`) of every question, one for each turn; other rows are added to `problems`.

    Files may have every format of articles, and be CSV; a line of a `.txt` file is a question without an answer.
    turns: as `select_turns` takes it. forms: a Counter that counts the rows' forms. answer_required: whether a row
    without an answer is dropped.
    """
    for path in files:
        is_text = split_suffixes(path)[0] == TEXT_SUFFIX
        lines = read_rows(path, problems, progress, one_per_line=True)
        for number, row in ((number, row) for number, line in lines for row in expand_pairs(line)):
            form, pairs, reason = parse_question_row({"question": row["text"]} if is_text else row, answer_required)
            if reason:
                problems.add(reason, path, number)
                continue
            if forms is not None:
                forms[form] += 1
            subject, kind = name_field(row, "subject"), name_field(row, "kind")
            for question, answer in select_turns(pairs, turns):
                yield number, Question(path, row.get("id"), question.strip(), answer.strip(), subject, kind)


def check_question_files(files, setting):
    """Raises UserError where a file of questions, named by `setting`, does not exist."""
    for file in files:
        if not os.path.isfile(file):
            raise UserError(f"{file} is not there; name your questions with --{setting}=…")


def expand_pairs(row):
    """The rows of questions in a row: one for each of an article's "pairs", with the article's other fields.

    sft/sft_generate.py writes such rows, {"source", "id", "subject", "pairs": [{"question", "answer"}, …]}. Any other
    row is one itself.
    """
    pairs = row.get("pairs")
    if not isinstance(pairs, list) or not pairs:
        return [row]
    return [{**row, **pair} if isinstance(pair, dict) else {} for pair in pairs]


def select_turns(turns, choice):
    """[(question, answer)] to use: "each" turn, the "first", or "joined": each behind all turns before it."""
    if choice == "first":
        return turns[:1]
    if choice == "each":
        return turns
    pairs, before = [], []
    for question, answer in turns:
        pairs.append(("\n".join([*before, question]), answer))
        before += [question, answer]
    return pairs


def parse_question_row(row, answer_required=True):
    """(form, [(question, answer), …], None) of a row's turns, or (form, [], reason) where it cannot be used."""
    form = next((form for field, form in FORMS.items() if field in row), None)
    turns, reason = [], 'no "question"'
    if form == "pair":
        turns, reason = parse_pair(row, answer_required)
    elif form == "alpaca":
        turns, reason = parse_alpaca(row, answer_required)
    elif form == "sharegpt":
        turns, reason = parse_messages(row, "conversations", "from", "value")
    elif form == "openai":
        turns, reason = parse_messages(row, "messages", "role", "content")
    return form, turns, reason


def answer_field(row, names, required):
    """(answer, None) of the first of the names that a row has, or (None, reason); ("", None) if it may be missing."""
    name = next((name for name in names if name in row), names[0])
    answer, reason = text_field(row, name)
    return ("", None) if reason and not required else (answer, reason)


def parse_pair(row, answer_required):
    """([(question, answer)], None) of a row of form pair, or ([], reason)."""
    question, reason = text_field(row, next(name for name in QUESTION_NAMES if name in row))
    answer, answer_reason = answer_field(row, ANSWER_NAMES, answer_required)
    return ([], reason or answer_reason) if reason or answer_reason else ([(question, answer)], None)


def parse_alpaca(row, answer_required):
    """([(question, answer), …], None) of a row of form alpaca, or ([], reason)."""
    instruction, reason = text_field(row, "instruction")
    answer, answer_reason = answer_field(row, ("output", *ANSWER_NAMES), answer_required)
    if reason or answer_reason:
        return [], reason or answer_reason
    extra, reason = text_field(row, "input") if row.get("input") not in (None, "") else ("", None)
    if reason and reason != '"input" is empty':
        return [], reason
    history = row.get("history") or []
    turns = [history_turn(item) for item in history] if isinstance(history, list) else [None]
    if not all(turns):
        return [], '"history" is no list of question and answer'
    question = f"{instruction}\n{extra}" if extra else instruction
    return [*turns, (question, answer)], None


def history_turn(item):
    """(question, answer) of an item of a history, or None."""
    if not isinstance(item, list) or len(item) != 2:
        return None
    texts = [text_field({"text": text}, "text")[0] for text in item]
    return tuple(texts) if all(texts) else None


def parse_messages(row, field, role_name, text_name):
    """([(question, answer), …], None) of a list of messages, or ([], reason). A system message is left out."""
    messages = row[field]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return [], f'"{field}" is no list of messages'
    turns = []
    for i, message in enumerate(messages):
        role = MESSAGE_ROLES.get(str(message.get(role_name)).lower())
        if not role or message.get("tool_calls") or message.get("function_call"):
            return [], f'"{field}" has a {role_name} that is not user, assistant or system'
        text, reason = text_field({text_name: join_text_parts(message.get(text_name))}, text_name)
        if reason:
            return [], f'"{field}": {reason}'
        if role == "system" and i:
            return [], f'"{field}" has a system message in the middle'
        if role != "system":
            turns.append((role, text))
    roles = [role for role, _ in turns]
    if not turns or roles != ["user", "assistant"] * (len(turns) // 2):
        return [], f'"{field}" is not question and answer in turn'
    texts = [text for _, text in turns]
    return list(zip(texts[::2], texts[1::2], strict=True)), None


def join_text_parts(content):
    """A message's content: OpenAI's list of text parts as one text; anything else as it is."""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return content
    texts = [part.get("text") if part.get("type") == "text" else None for part in content]
    return "".join(texts) if texts and all(isinstance(text, str) for text in texts) else content
