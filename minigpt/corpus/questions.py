"""Questions: reading them from files of any format, and the forms that a question's row may have.

A row becomes a list of messages, whatever its form, and the messages become turns. FORMS is the table of the forms. A
talk is written as
    [{"role" (or "from", …), "content" (or "value", …)}, …]     each message may have other keys than the one before
    [{"human", "assistant"}, …], [{"question", "answer"}, …]    an object a turn
    [[question, answer], …], [question, answer, question, …]    lists
    {"turn_1": {"Human", "MOSS"}, …}                            an object of turns
    "Human: …\nAssistant: …", "<|im_start|>user\n…<|im_end|>…"  a text with marks
"""

import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

from minigpt.common.errors import UserError
from minigpt.corpus.chat import MESSAGE_ROLES, ChatMessage, group_turns, join_text_parts
from minigpt.corpus.readers.blocks import PLAIN_MARK
from minigpt.corpus.records import name_field, read_rows, text_field
from minigpt.settings.stages import QuestionForm

MAX_FIELDS_IN_REASON = 12
MAX_FIELD_CHARS = 40

# Fields

# Fields whose text is a question also where the row has no answer.
QUESTION_NAMES = (
    "question", "prompt", "instruction", "query", "query_text", "problem", "ask", "q", "问题", "问", "提问", "指令",
)  # fmt: skip
ANSWER_NAMES = (
    "answer", "reference", "output", "response", "completion", "target", "chosen", "answers", "reply", "solution",
    "human_answers", "pos_resp", "best_answer", "summary", "答案", "答", "回答", "输出", "回复", "参考答案",
)  # fmt: skip
ROLE_NAMES = ("from", "role", "speaker", "author", "角色")
MESSAGE_TEXT_NAMES = ("value", "content", "text", "utterance", "message", "内容")
SYSTEM_NAMES = ("system", "system_prompt", "meta_instruction", "系统")
HISTORY_NAMES = ("history", "历史")
THINKING_NAMES = ("reasoning_content", "reasoning", "thinking", "thought", "complex_cot")
PARTS_NAMES = ("paragraphs", "pairs", "qas", "qa_pairs")  # lists of rows inside a row
# Keys of an object that is a turn: who says their text.
TURN_ROLES = {
    "system": "system", "系统": "system",
    "user": "user", "human": "user", "question": "user", "query": "user", "instruction": "user", "prompt": "user",
    "input": "user", "q": "user", "用户": "user", "问": "user", "问题": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "moss": "assistant",
    "ai": "assistant", "answer": "assistant", "response": "assistant", "output": "assistant", "target": "assistant",
    "a": "assistant", "助手": "assistant", "答": "assistant", "答案": "assistant",
}  # fmt: skip
ROLE_ORDER = ("system", "user", "assistant")


class RowForm(NamedTuple):
    """A form that rows may have."""

    name: str
    question: str  # the field of the question, or of a whole talk
    more: tuple = ()  # fields whose texts stand behind the question
    answer: tuple = ANSWER_NAMES  # fields of the answer, of which the first that a row has counts
    is_talk: bool = False  # whether a row needs no answer beside the field `question`
    one_of: tuple = ()  # a row must have one of these fields, too


def talk_form(name, question):
    """The `RowForm` of rows with a talk in the field `question`; "chosen" may hold its last answer."""
    return RowForm(name, question, answer=("chosen",), is_talk=True)


# The first form whose fields a row has counts, else the first whose question it has. Names are in lower case.
FORMS = (
    RowForm("pair", "question"), RowForm("pair", "问题"), RowForm("pair", "问"), RowForm("pair", "提问"),
    RowForm("alpaca", "instruction", ("input",), ("output", *ANSWER_NAMES)),
    RowForm("alpaca", "指令", ("输入",), ("输出", *ANSWER_NAMES)),
    talk_form("sharegpt", "conversations"), talk_form("openai", "messages"), talk_form("conversation", "conversation"),
    talk_form("dialog", "dialog"), talk_form("dialog", "dialogue"), talk_form("dialog", "对话"),
    talk_form("moss", "chat"), talk_form("turns", "turns"),
    RowForm("pair", "prompt"), RowForm("pair", "query"), RowForm("pair", "query_text"), RowForm("pair", "problem"),
    RowForm("pair", "ask"), RowForm("pair", "q", answer=("a", *ANSWER_NAMES)),
    RowForm("pair", "human", answer=("assistant", "bot", "gpt", "ai")),
    RowForm("pair", "user", answer=("assistant", "bot", "gpt", "ai")),
    RowForm("firefly", "input", answer=("target", "output", *ANSWER_NAMES)),
    RowForm("webtext", "title", ("desc",), ("answer", "reply")),
    RowForm("webtext", "title", ("desc",), ("content",), one_of=("desc", "qid", "topic", "star")),
    RowForm("summary", "text", answer=("summary",)), RowForm("summary", "content", answer=("summary",)),
    RowForm("label", "review", answer=("label",)),
    RowForm("pair", "source", answer=("target", "corrections", "references")), RowForm("pair", "src", answer=("tgt",)),
    RowForm("pair", "inputs", answer=("targets",)),
    RowForm("columns", "column 1", answer=("column 2",)), talk_form("preference", "chosen"), talk_form("talk", "text"),
)  # fmt: skip
# Rows that have both of these fields hold no questions.
SENTENCE_PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("text_a", "text_b"))

# Marks in texts

CHATML = re.compile(r"<\|im_start\|>[ \t]*(\w+)[ \t]*\n?")
CHATML_END = re.compile(r"<\|im_end\|>\s*")
SPEAKERS = "human|user|assistant|bot|gpt|ai|system|instruction|response|用户|人类|助手|机器人|问|答|提问|回答"
SPEAKER_MARK = re.compile(rf"(?:^|\n)[ \t]*(?:#+[ \t]*)?(?:<\|)?({SPEAKERS})(?:\|>)?[ \t]*(?:[:：]|(?<=\|>)\n)", re.I)
MARK_ROLES = {**MESSAGE_ROLES, "instruction": "user", "response": "assistant"}
LLAMA_MARKS = {"[INST]": "\nHuman:", "[/INST]": "\nAssistant:", "<s>": "", "</s>": ""}
MOSS_START = re.compile(r"^\s*<\|[^|\n]{1,30}\|>\s*[:：]\s*")
MOSS_END = re.compile(r"\s*<eo[a-z]>\s*$")
# OpenAI's old fine-tuning ended prompts and completions with texts such as these.
OLD_PROMPT_END = re.compile(r"\s*(?:\n\s*(?:###|===|---)|->)\s*$")
OLD_COMPLETION_END = re.compile(r"\s*(?:END|###|<\|endoftext\|>)\s*$")
THOUGHTS = re.compile(
    r"\s*(?:<(think|thinking|thought|reasoning)>.*?</\1>|<\|begin_of_thought\|>.*?<\|end_of_thought\|>)\s*",
    re.DOTALL,
)
OPEN_THOUGHT = re.compile(r"^\s*<(?:think|thinking)>.*", re.DOTALL)  # it does not end
ENDED_THOUGHT = re.compile(r"^.*</(?:think|thinking)>\s*", re.DOTALL)  # its beginning was in the prompt
SOLUTION_MARKS = re.compile(r"</?answer>|<\|(?:begin|end)_of_solution\|>")


@dataclass
class Question:
    source: str
    id: object  # of the article that it was made from, or None
    turns: list  # [`ChatTurn`]: the question's, and those before it where they are joined
    subject: str = ""  # of its article, where the row names it
    kind: str = ""  # of its mistake, in rows of sentence correction

    @property
    def question(self):
        return self.turns[-1].question

    @property
    def answer(self):
        """The answer, "" where the row has none, and none is required."""
        return self.turns[-1].answer

    @property
    def other_answers(self):
        """The other texts of a row whose answer is a list of texts."""
        return self.turns[-1].others


@dataclass
class QuestionCounts:
    """What was found in the rows that were read.

    forms: {form: rows}; chats: rows of several turns; trimmed: messages before the first question or behind the last
    answer; joined: messages joined to the one before, which was of the same role; systems: rows with a system message;
    thoughts: answers with the model's thinking.
    """

    forms: Counter = field(default_factory=Counter)
    chats: int = 0
    trimmed: int = 0
    joined: int = 0
    systems: int = 0
    thoughts: int = 0

    def about_chats(self):
        """The counts but for the forms, as meta.json has them."""
        return {name: getattr(self, name) for name in ("chats", "trimmed", "joined", "systems", "thoughts")}


def read_questions(
    files, problems, progress=None, turns="each", counts=None, answer_required=True, form=None, system="drop"
):
    """Yields (number, `Question`) of every question, one for each turn; other rows are added to `problems`.

    Files may have every format of articles, and be CSV; a line of a `.txt` file is a question without an answer.
    turns: as `select_turns` takes it; counts: a `QuestionCounts`; answer_required: whether a row without an answer is
    dropped; form: a `QuestionForm`, whose fields are used; system: "keep" or "drop" system messages.
    """
    counts = QuestionCounts() if counts is None else counts
    form = form or QuestionForm()
    parser = RowParser(form, counts, answer_required, system == "keep")
    for path in files:
        lines = read_rows(path, problems, progress, one_per_line=True, encoding=form.encoding)
        for number, row in ((number, row) for number, line in lines for row in expand_parts(line)):
            found, reasons = parser.parse(row)
            for reason in reasons:
                problems.add(reason, path, number)
            subject, kind = name_field(row, "subject"), name_field(row, "kind")
            for chat in select_turns(found, turns):
                yield number, Question(path, row.get("id"), chat, subject, kind)


def check_question_files(files, setting):
    """Raises UserError where a file of questions, named by `setting`, does not exist."""
    for file in files:
        if not os.path.isfile(file):
            raise UserError(f"{file} is not there; name your questions with --{setting}=…")


def expand_parts(row):
    """Yields the rows of questions in a row: those of its lists "pairs", "paragraphs", "qas", or the row itself.

    They have the row's other fields, too. sft/sft_generate.py writes {"source", "id", "subject", "pairs": [{"question",
    "answer"}, …]}; SQuAD and CMRC have {"title", "paragraphs": [{"context", "qas": [{"question", "answers"}, …]}, …]}.
    """
    name = next((name for name in PARTS_NAMES if isinstance(row.get(name), list) and row[name]), None)
    if not name:
        yield row
        return
    outer = {key: value for key, value in row.items() if key != name}
    if name != "pairs" and "subject" not in outer and isinstance(outer.get("title"), str):
        outer["subject"] = outer["title"]
    for part in row[name]:
        # The id is the article's, not the question's.
        own = {**outer, **part, **({"id": row["id"]} if "id" in row else {})} if isinstance(part, dict) else {}
        yield from expand_parts(own)


def select_turns(turns, choice):
    """[[`ChatTurn`]] to use: "each" turn alone, the "first", or all in one list ("joined").

    In `turns` the system message stands where it begins to hold. Here it stands before the first turn of each list.
    """
    chats, system = [], ""
    for turn in turns:
        system = turn.system or system
        chats.append([replace(turn, system=system)])
    return chats[:1] if choice == "first" else chats if choice == "each" else [turns] if turns else []


class RowParser:
    """Finds the turns of rows, and counts what it finds.

    fields: a `QuestionForm`; counts: a `QuestionCounts`; answer_required: as in `read_questions`; keep_system: whether
    system messages are kept.
    """

    def __init__(self, fields, counts, answer_required=True, keep_system=False):
        self.fields = fields
        self.counts = counts
        self.answer_required = answer_required
        self.keep_system = keep_system
        self.reasons = {}  # {reason: its text with the fields of the first row that it was given for}

    def parse(self, row):
        """([`ChatTurn`] that can be used, [reason of each that cannot, or of the row])."""
        row = name_columns(lower_names(row))
        form, reason = self.find_form(row)
        if reason:
            return [], [reason]
        messages = self.row_messages(row, form)
        self.counts.systems += any(message.role == "system" and message.text for message in messages)
        messages = [message for message in messages if self.keep_system or message.role != "system"]
        turns, reasons = self.split_turns(messages)
        if not turns and not reasons:
            where = form.question if form.is_talk else form.answer[0]
            reasons = [f'"{where}" has no question with an answer' if form.is_talk else f'"{where}" is empty']
        if turns:
            self.counts.forms[form.name] += 1
            self.counts.chats += len(turns) > 1
        return turns, reasons

    # The form

    def find_form(self, row):
        """(the `RowForm` of a row, None), or (None, reason)."""
        if self.fields.question_field or self.fields.answer_field:
            return self.find_given_form(row)
        asking = [form for form in FORMS if form.question in row and (not form.one_of or has_any(row, form.one_of))]
        for form in asking:
            if holds_talk(row[form.question]) if form.is_talk else has_any(row, form.answer):
                return form, None
        if isinstance(row.get("columns"), list):
            return None, f"{len(row['columns'])} columns without names are no question and answer"
        if any(a in row and b in row for a, b in SENTENCE_PAIRS):
            return None, "two sentences are no question and answer"
        asked = next((form for form in asking if form.question in QUESTION_NAMES), None)
        if set(row) == {"text"}:  # as a line of a .txt file
            asked = RowForm("pair", "text")
        if asked:
            missing = self.list_fields('no "answer"', row) if self.answer_required else None
            return (None, missing) if missing else (asked, None)
        talk = next((form.question for form in asking if form.is_talk and form.question != "text"), None)
        return None, f'"{talk}" is no list of messages' if talk else self.list_fields('no "question"', row)

    def find_given_form(self, row):
        """As `find_form`, by the fields that the settings name. Nested ones are added to the row under their path."""
        question, answer = self.fields.question_field.lower(), self.fields.answer_field.lower()
        for path in filter(None, (question, answer)):
            value = value_at(row, path)
            if value is None and (path == question or self.answer_required):
                what = "question" if path == question else "answer"
                return None, self.list_fields(f'no "{what}": the field {path} is missing', row)
            row[path] = value
        question = question or next((name for name in QUESTION_NAMES if name in row), None)
        form = RowForm("given", question, answer=(answer,) if answer else ANSWER_NAMES)
        if question is None:
            return None, self.list_fields('no "question"', row)
        if not has_any(row, form.answer) and holds_talk(row[question]):
            form = form._replace(is_talk=True)
        elif self.answer_required and not has_any(row, form.answer):
            return None, self.list_fields('no "answer"', row)
        return form, None

    def list_fields(self, reason, row):
        """A reason with the fields of the first row that it was given for, so that alike rows have the same reason."""
        if reason not in self.reasons:
            names = [name[:MAX_FIELD_CHARS] for name in row][:MAX_FIELDS_IN_REASON]
            more = ", …" * (len(row) > MAX_FIELDS_IN_REASON)
            self.reasons[reason] = (
                f"{reason} (fields of the first such row: {', '.join(names) or 'none'}{more}; name yours with "
                "--question_field=… and --answer_field=…)"
            )
        return self.reasons[reason]

    # The messages

    def row_messages(self, row, form):
        """[`ChatMessage`] of a row that has a form."""
        names = (*SYSTEM_NAMES, "instruction") if form.is_talk and form.question != "instruction" else SYSTEM_NAMES
        system = next((row[name] for name in names if isinstance(row.get(name), str)), None)
        messages = [self.text_message("system", {"content": system}, "content", "")] if system else []
        for name in HISTORY_NAMES:
            messages += self.read_talk(load_json(row[name]), name) if row.get(name) else []

        asked = load_json(row[form.question]) if form.is_talk else row[form.question]
        question = self.read_talk(asked, form.question)
        for name in form.more:
            if not is_blank(row.get(name)):
                more, last = self.text_message("user", row, name, ""), question.pop()
                question.append(last._replace(text=f"{last.text}\n{more.text}", reason=last.reason or more.reason))
        answer = next((name for name in form.answer if name in row and name != form.question), None)
        talk_is_whole = form.is_talk and question and question[-1].role == "assistant"
        replies = self.read_answer(row, answer) if answer and not talk_is_whole else []
        if form.question == "prompt" and answer == "completion":
            question = [strip_text(message, OLD_PROMPT_END) for message in question]
            replies = [strip_text(message, OLD_COMPLETION_END) for message in replies]
        return [*messages, *question, *replies]

    def read_talk(self, value, name):
        """[`ChatMessage`] of a question or a talk, in any of the ways that the module's head lists.

        name: the field that it is in.
        """
        if not isinstance(value, (list, dict)):
            marked = split_marked_text(value) if isinstance(value, str) else []
            if not marked:
                return [self.text_message("user", {name: value}, name, "")]
            return [self.text_message(role, {"content": text}, "content", name) for role, text in marked]
        if (
            isinstance(value, dict)
            and not has_any(value, ROLE_NAMES)
            and all(isinstance(turn, dict) for turn in value.values())
        ):
            value = [value[key] for key in sorted(value, key=number_in_name)]  # MOSS's {"turn_1": {…}, …}
        messages, roles = [], roles_of_talk(value)
        for item in value if isinstance(value, list) else [value]:
            # Who speaks, where an item does not say it.
            speaker = "assistant" if messages and messages[-1].role == "user" else "user"
            if isinstance(item, dict):
                messages += self.read_turn(lower_names(item, keep_none=True), name, speaker, roles)
            elif isinstance(item, list):
                pair = item if len(item) == 2 else [None, None]
                turn = zip(("user", "assistant"), pair, strict=True)
                messages += [self.text_message(role, {"content": text}, "content", name) for role, text in turn]
            else:
                messages.append(self.text_message(speaker, {"content": item}, "content", name))
        return messages

    def read_turn(self, item, name, speaker, roles):
        """[`ChatMessage`] of an object in a talk: a message, or a turn whose keys say who speaks.

        speaker: whose message it is where it has no role; roles: {name of a role: role}.
        """
        role_name = next((key for key in ROLE_NAMES if key in item), None)
        text_name = next((key for key in MESSAGE_TEXT_NAMES if key in item), MESSAGE_TEXT_NAMES[1])
        if role_name:
            role = roles.get(str(item[role_name]).strip().lower())
            if not role:
                return [ChatMessage("tool", "", f'"{name}" has a {role_name} that is not user, assistant or system')]
            return [self.text_message(role, item, text_name, name)]
        said = sorted((key for key in item if key in TURN_ROLES), key=lambda key: ROLE_ORDER.index(TURN_ROLES[key]))
        if not said:
            return [self.text_message(speaker, item, text_name, name)]
        command = item.get("commands")  # of MOSS
        calls = isinstance(command, str) and MOSS_END.sub("", MOSS_START.sub("", command)) not in ("None", "")
        messages = []
        for key in said:
            role = TURN_ROLES[key]
            if key != "input" or not is_blank(item[key]):
                own = {**item, "tool_calls": calls} if role == "assistant" else item
                messages.append(self.text_message(role, own, key, name))
        return messages

    def read_answer(self, row, name):
        """[`ChatMessage`] of an answer: a text, the first of several, SQuAD's {"text": […]}, or messages."""
        value, others = row[name], []
        while value:
            if isinstance(value, dict) and "text" in value and not has_any(value, ROLE_NAMES):
                value = value["text"]
            elif isinstance(value, list) and not (isinstance(value[0], dict) and has_any(value[0], ROLE_NAMES)):
                value, *others = value
            else:
                break
        if value in ([], {}):
            value = ""
        if isinstance(value, (list, dict)):
            replies = self.read_talk(value, name)
            return replies if name == "chosen" else [reply._replace(role="assistant") for reply in replies]
        if isinstance(value, str) and name == "chosen" and split_marked_text(value):
            return self.read_talk(value, name)
        if name == "label" and isinstance(value, (int, float)):
            value = f"{value:g}"
        texts = [value, *(item.get("text") if isinstance(item, dict) else item for item in others)]
        message, *more = (self.text_message("assistant", {**row, name: text}, name, "") for text in texts)
        return [message._replace(others=tuple(other.text for other in more if not other.reason))]

    def text_message(self, role, item, text_name, where):
        """The `ChatMessage` of a text in an object; where: the talk's field, "" for a field of the row itself."""
        if role == "tool" or (where and (item.get("tool_calls") or item.get("function_call"))):
            return ChatMessage("tool", "", f'"{where}" has a turn that calls a tool')
        content = {text_name: join_text_parts(item[text_name])} if text_name in item else {}
        text, reason = text_field(content, text_name)
        if not reason:
            text = MOSS_END.sub("", MOSS_START.sub("", text)).strip()
            text = self.answer_text(text, item) if role == "assistant" else text
            reason = None if text else f'"{text_name}" is nothing but thinking'
        if reason:
            return ChatMessage(role, "", None if role == "system" else f'"{where}": {reason}' if where else reason)
        return ChatMessage(role, text)

    def answer_text(self, text, item):
        """An answer with the model's thinking or without it, as the setting `thinking` says."""
        thought = next((item[name] for name in THINKING_NAMES if isinstance(item.get(name), str)), "").strip()
        bare = OPEN_THOUGHT.sub("", ENDED_THOUGHT.sub("", THOUGHTS.sub("", text)))
        if bare == text and not thought:
            return text
        self.counts.thoughts += 1
        if self.fields.thinking == "keep":
            return f"<think>\n{thought}\n</think>\n\n{text}" if thought and bare == text else text
        return SOLUTION_MARKS.sub("", bare).strip()

    # The turns

    def split_turns(self, messages):
        """([`ChatTurn`] that can be used, [reason of each that cannot])."""
        if not self.answer_required:  # a question is asked also where its answer cannot be read
            messages = [m for m in messages if not (m.reason and m.role == "assistant")]
        good, reasons, system = [], [], ""
        for turn in group_turns(messages):
            system = turn.system or system
            if turn.reason:
                reasons.append(turn.reason)
            elif turn.question and (turn.answer or not self.answer_required):
                good.append(replace(turn, system=system))
                system = ""
        self.count_ends(messages)
        return good, reasons

    def count_ends(self, messages):
        """Counts the messages that are trimmed off, and those that are joined to the one before."""
        roles = [message.role for message in messages if message.role != "system"]
        first = roles.index("user") if "user" in roles else 0
        behind = roles[::-1].index("assistant") if self.answer_required and "assistant" in roles else 0
        self.counts.trimmed += first + behind
        roles = roles[first : len(roles) - behind]
        self.counts.joined += sum(a == b for a, b in pairwise(roles))


def lower_names(row, keep_none=False):
    """A row with its fields' names in lower case, without those that are None."""
    kept = {name: value for name, value in row.items() if name != PLAIN_MARK and (keep_none or value is not None)}
    return {str(name).strip().lower(): value for name, value in kept.items()}


def name_columns(row):
    """A row with names for its cells, where it is a pair of a table without a header ({"columns": [cell, cell]})."""
    cells = row.get("columns")
    is_pair = isinstance(cells, list) and len(cells) == 2
    return dict(zip(("column 1", "column 2"), cells, strict=True)) if is_pair else row


def has_any(row, names):
    """Whether a row has one of the fields."""
    return any(name in row for name in names)


def is_blank(value):
    """Whether a field adds nothing: it is missing, or an empty text."""
    return value is None or (isinstance(value, str) and not value.strip())


def value_at(row, path):
    """The value of a field, which may be in objects: "a.b" is field b of the object a. None where it is missing."""
    value = row
    for name in [path] if path in row else path.split("."):
        value = lower_names(value).get(name) if isinstance(value, dict) else None
    return value


def load_json(value):
    """The list or object that a text is the JSON of, as in a table's cell; any other value as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def holds_talk(value):
    """Whether a field's value holds a talk."""
    value = load_json(value)
    return bool(split_marked_text(value)) if isinstance(value, str) else isinstance(value, (list, dict)) and bool(value)


def number_in_name(name):
    """(the first number in a text, or 0; the text), to sort by."""
    digits = re.search(r"\d+", str(name))
    return int(digits[0]) if digits else 0, str(name)


def roles_of_talk(talk):
    """{name of a role in lower case: role}. Where no name of a talk is known, and there are two, the first asks."""
    items = [lower_names(item) for item in talk if isinstance(item, dict)] if isinstance(talk, list) else []
    said = ([str(item[key]) for key in ROLE_NAMES if key in item] for item in items)
    names = dict.fromkeys(own[0].strip().lower() for own in said if own)
    unknown = len(names) == 2 and not any(name in MESSAGE_ROLES for name in names)
    return dict(zip(names, ("user", "assistant"), strict=True)) if unknown else MESSAGE_ROLES


def split_marked_text(text):
    """[(role, text), …] of a talk that is written with marks, such as "Human: …\\nAssistant: …"; [] of any other text.

    An empty answer at the end is left out: it is in another field.
    """
    if "[/INST]" in text:
        for mark, other in LLAMA_MARKS.items():
            text = text.replace(mark, other)
    pattern = CHATML if "<|im_start|>" in text else SPEAKER_MARK
    marks = [(m, MARK_ROLES.get(m[1].lower())) for m in pattern.finditer(text)]
    roles = [role for _, role in marks]
    if not {"user", "assistant"} <= set(roles) or text[: marks[0][0].start()].strip():
        return []
    # An answer may have such words, too: only the names that begin the talk are marks.
    names = {marks[roles.index(role)][0][1].lower() for role in ("user", "assistant")} | {"system"}
    marks = [(m, role) for m, role in marks if pattern is CHATML or m[1].lower() in names]
    ends = [*(m.start() for m, _ in marks[1:]), len(text)]
    texts = [CHATML_END.sub("", text[m.end() : end]).strip() for (m, _), end in zip(marks, ends, strict=True)]
    parts = [(role or "tool", own) for (_, role), own in zip(marks, texts, strict=True)]
    return parts[:-1] if parts[-1] == ("assistant", "") else parts


def strip_text(message, pattern):
    """A `ChatMessage` without what a pattern finds at the end of its text."""
    return message._replace(text=pattern.sub("", message.text).strip())
