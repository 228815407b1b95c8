"""How a chat is written as token ids: the rows that a model is fine-tuned on, and the prompts that it is asked.

A fine-tuned model reads, for each turn, `question MARK answer EOT`, where MARK is the answer mark. A system message is
a line before the question that follows it. The last question of a prompt ends with the mark, and the answer is
generated behind it. So the ids of a prompt are the beginning of the row of the same chat. A base model reads lines.

The tokenizer of a Hugging Face folder writes chats by its own template, and the mark is what that puts before an
answer. A row is the prompt of its last question, that answer and EOT. So where a template writes earlier answers
without the mark (without their thoughts, for example), only the last answer of a row is trained on.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

from minigpt.huggingface_tokenizer import HuggingFaceTokenizer

# What a message's role means. "tool" is a tool's result, or a call of one.
MESSAGE_ROLES = {
    "system": "system", "developer": "system", "系统": "system",
    "user": "user", "human": "user", "usr": "user", "prompter": "user", "customer": "user", "patient": "user",
    "用户": "user", "人类": "user", "客户": "user", "患者": "user", "提问": "user", "问": "user", "问题": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant",
    "ai": "assistant", "moss": "assistant", "agent": "assistant", "doctor": "assistant", "助手": "assistant",
    "助理": "assistant", "机器人": "assistant", "客服": "assistant", "医生": "assistant", "回答": "assistant",
    "答": "assistant", "答案": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_call": "tool", "tool_call": "tool",
    "tool_response": "tool", "ipython": "tool",
}  # fmt: skip


class ChatMessage(NamedTuple):
    role: str  # "system", "user", "assistant" or "tool"
    text: str
    reason: str | None = None  # why its turn cannot be trained on
    others: tuple = ()  # of an answer: further texts that are right, too


@dataclass
class ChatTurn:
    """A question and its answer. system: the system message that begins to hold with this turn, "" for none."""

    system: str = ""
    question: str = ""
    answer: str = ""
    reason: str | None = None  # why it cannot be trained on
    others: tuple = ()  # further answers that are right, too


@dataclass
class _TurnTexts:
    """The messages of a turn, while they are collected."""

    systems: list = field(default_factory=list)
    questions: list = field(default_factory=list)
    answers: list = field(default_factory=list)
    reasons: list = field(default_factory=list)
    others: list = field(default_factory=list)

    def joined(self):
        # Equal messages in a row are one that was sent twice.
        texts = ("\n".join(dict.fromkeys(part)) for part in (self.systems, self.questions, self.answers))
        return ChatTurn(*texts, next(iter(self.reasons), None), tuple(self.others))


def group_turns(messages):
    """[`ChatTurn`] of `ChatMessage`s. Messages of one role in a row are joined by newlines.

    A system message between a question and its answer is a part of the question. An answer that no question stands
    before is left out, unless it is in the last turn. Only the last turn may lack a question or an answer.
    """
    turns, turn = [], _TurnTexts()
    for message in messages:
        if message.role in ("system", "user") and turn.answers:
            systems = turn.systems if message.role == "user" and not turn.questions else []
            turns += [turn] if turn.questions else []
            turn = _TurnTexts(systems)
        texts = {
            "system": turn.questions if turn.questions else turn.systems,
            "user": turn.questions,
        }.get(message.role, turn.answers)
        texts.append(message.text)
        turn.reasons += [message.reason] if message.reason else []
        turn.others += message.others
    is_empty = not (turn.systems or turn.questions or turn.answers)
    return [one.joined() for one in (turns if is_empty else [*turns, turn])]


def turn_ids(tokenizer, turns):
    """Token ids of `ChatTurn`s for a fine-tuned model, without the EOT of the last answer.

    Where the last answer is empty, they end with the answer mark: that is a prompt.
    Raises UserError where the chat template of a tokenizer of others refuses the turns.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        *earlier, last = turns
        asked = [*turn_messages(earlier), *turn_messages([replace(last, answer="")])]
        return tokenizer.chat_ids(asked, last.answer.lstrip())
    ids = []
    for i, turn in enumerate(turns):
        ids += [tokenizer.eot_id] if i else []
        ids += tokenizer.encode(f"{turn.system.strip()}\n") if turn.system.strip() else []
        ids += tokenizer.encode_prompt(turn.question, answer=True)
        # The space behind an answer that is to be continued belongs to it.
        ids += tokenizer.encode(turn.answer.lstrip() if i == len(turns) - 1 else turn.answer.strip())
    return ids


def write_chat_template(mark, ends_last_answer):
    """The template, in jinja, that writes the usual chats as the text of their `turn_ids`.

    mark: how the answer mark is written; ends_last_answer: whether EOT follows an answer that stands last, as in a row
    for training, or the answer is continued, as in a prompt. Filters are among those that llama.cpp has.
    """
    trimmed = "{{ message['content'] | trim }}"
    last_answer = f"{trimmed}<|endoftext|>" if ends_last_answer else "{{ message['content'].lstrip() }}"
    return (
        "{% for message in messages %}"
        "{% set following = 'none' if loop.last else messages[loop.index0 + 1]['role'] %}"
        "{% if message['role'] == 'assistant' and loop.last %}"
        + last_answer
        + "{% else %}"
        + trimmed
        + "{% if message['role'] == 'assistant' %}{{ '\\n' if following == 'assistant' else '<|endoftext|>' }}"
        f"{{% elif following in ['assistant', 'none'] %}}{mark}{{% else %}}{{{{ '\\n' }}}}{{% endif %}}"
        "{% endif %}{% endfor %}"
    )


def forbidden_ids(tokenizer, stage):
    """Set of the ids that no answer of a model of a stage has: PAD, and our own answer mark where it is fine-tuned."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return {tokenizer.pad_id} - set(tokenizer.stop_ids)
    return {tokenizer.pad_id, tokenizer.answer_id} if stage == "sft" else {tokenizer.pad_id}


def chat_ids(tokenizer, messages, stage="sft"):
    """Token ids of a prompt that is a list of chat messages {"role", "content"}, for a model of a stage.

    Roles are those of MESSAGE_ROLES; a role that is not there is taken for the user's. A message's content is a text, a
    list of OpenAI's text parts, or None. Stage sft: a last message of the assistant's is continued; one of any other
    role is answered, and a tool's result is a part of the question. Stage pretrain: each message is a line.
    """
    if stage == "pretrain":
        texts = [message_text(message) for message in messages]
        lines = [*(f"{text.strip()}\n" for text in texts[:-1]), *texts[-1:]]
        prefix = tokenizer.prefix_ids if isinstance(tokenizer, HuggingFaceTokenizer) else []
        return [*prefix, *(token_id for line in lines for token_id in tokenizer.encode(line))]
    return turn_ids(tokenizer, prompt_turns(messages))


def prompt_turns(messages):
    """[`ChatTurn`] of a prompt: as `group_turns`, and what the last turn lacks is found among its messages."""
    known = [(MESSAGE_ROLES.get(str(m.get("role")).lower(), "user"), message_text(m)) for m in messages]
    spoken = [
        ChatMessage("user" if role == "tool" else role, text)
        for i, (role, text) in enumerate(known)
        if text.strip() or (role == "user" and i == len(known) - 1)
    ]
    turns = group_turns(spoken) or [ChatTurn()]
    last = turns[-1]
    if not last.question:  # a system message stands last: it is the request
        turns[-1] = replace(last, system="", question=last.system)
    return turns


def message_text(message):
    """A message's content as a text; "" where it has none."""
    content = join_text_parts(message.get("content"))
    return content if isinstance(content, str) else ""


def join_text_parts(content):
    """A message's content: OpenAI's list of text parts as one text; anything else as it is."""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return content
    texts = [part.get("text") if part.get("type") == "text" else None for part in content]
    return "".join(texts) if texts and all(isinstance(text, str) for text in texts) else content


def turn_messages(turns):
    """The messages {"role", "content"} of `ChatTurn`s, stripped; the inverse of `prompt_turns`."""
    parts = [
        (role, text.strip())
        for turn in turns
        for role, text in (("system", turn.system), ("user", turn.question), ("assistant", turn.answer))
    ]
    return [{"role": role, "content": text} for role, text in parts if text or role == "user"]
