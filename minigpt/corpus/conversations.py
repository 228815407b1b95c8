"""Questions and answers in the forms that fine-tuning data usually has, told apart row by row.

| form | fields |
|---|---|
| pair | question, answer; or pairs: [{"question", "answer"}, …] about one article |
| alpaca | instruction, input (may be missing or empty), output, history ([[question, answer], …], may be missing) |
| sharegpt | conversations: [{"from": "human" or "gpt" or "system", "value"}, …] |
| openai | messages: [{"role": "user" or "assistant" or "system", "content"}, …] |
"""

from minigpt.corpus.fields import text_field

ROLES = {
    "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "bot": "assistant",
    "chatgpt": "assistant", "system": "system", "developer": "system",
}  # fmt: skip
FORMS = {"question": "pair", "instruction": "alpaca", "conversations": "sharegpt", "messages": "openai"}


def rows_in(row):
    """The rows of questions in a row: one for each of an article's "pairs" (a list, as sft/sft_generate.py writes
    them), with the article's other fields; for any other row, itself."""
    pairs = row.get("pairs")
    if not isinstance(pairs, list) or not pairs:
        return [row]
    return [{**row, **pair} if isinstance(pair, dict) else {} for pair in pairs]


def turns_of(row):
    """(form, [(question, answer), …], None) of a row's turns, or (form, [], reason) where it is not understood."""
    form = next((form for field, form in FORMS.items() if field in row), None)
    if form is None:
        return None, [], 'no "question"'
    turns, reason = READERS[form](row)
    return form, turns, reason


def pair_turns(row):
    question, reason = text_field(row, "question")
    answer, other = text_field(row, "answer")
    return ([(question, answer)], None) if not (reason or other) else ([], reason or other)


def alpaca_turns(row):
    instruction, reason = text_field(row, "instruction")
    answer, other = text_field(row, "output")
    if reason or other:
        return [], reason or other
    extra, reason = text_field(row, "input") if row.get("input") not in (None, "") else ("", None)
    if reason and reason != '"input" is empty':
        return [], reason
    history = row.get("history") or []
    if not isinstance(history, list):
        return [], '"history" is no list of question and answer'
    turns = [pair_of(value) for value in history]
    if not all(turns):
        return [], '"history" is no list of question and answer'
    question = f"{instruction}\n{extra}" if extra else instruction
    return [*turns, (question, answer)], None


def pair_of(value):
    """(question, answer) of an item of a history, or None."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    texts = [text_field({"text": text}, "text")[0] for text in value]
    return tuple(texts) if all(texts) else None


def sharegpt_turns(row):
    return spoken_turns(row, "conversations", "from", "value")


def openai_turns(row):
    return spoken_turns(row, "messages", "role", "content")


def spoken_turns(row, field, who, what):
    """([(question, answer), …], None) of a list of messages, or ([], reason). A system message is left out."""
    messages = row[field]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return [], f'"{field}" is no list of messages'
    said = []
    for number, message in enumerate(messages):
        role = ROLES.get(str(message.get(who)).lower())
        if not role or message.get("tool_calls") or message.get("function_call"):
            return [], f'"{field}" has a {who} that is not user, assistant or system'
        text, reason = text_field({what: joined_parts(message.get(what))}, what)
        if reason:
            return [], f'"{field}": {reason}'
        if role == "system" and number:
            return [], f'"{field}" has a system message in the middle'
        if role != "system":
            said.append((role, text))
    roles = [role for role, _ in said]
    if not said or roles != ["user", "assistant"] * (len(said) // 2):
        return [], f'"{field}" is not question and answer in turn'
    texts = [text for _, text in said]
    return list(zip(texts[::2], texts[1::2], strict=True)), None


def joined_parts(content):
    """A message's content: OpenAI's list of text parts as one text; anything else as it is."""
    if (
        isinstance(content, list)
        and content
        and all(
            isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
            for part in content
        )
    ):
        return "".join(part["text"] for part in content)
    return content


READERS = {"pair": pair_turns, "alpaca": alpaca_turns, "sharegpt": sharegpt_turns, "openai": openai_turns}


def chosen_turns(turns, choice):
    """[(question, answer)] to train on: "each" turn, the "first", or "joined": each behind what was said before."""
    if choice == "first":
        return turns[:1]
    if choice == "each":
        return turns
    pairs, before = [], []
    for question, answer in turns:
        pairs.append(("\n".join([*before, question]), answer))
        before += [question, answer]
    return pairs
