"""A stand-in for a large model: a server that writes questions by simple rules, with faults on purpose.

    python docs/course/scripts/07_stand_in.py
    python docs/course/scripts/07_stand_in.py --faults=0.5     # spoils half of the pairs, and half of the replies

It speaks the two addresses of OpenAI's API that sft/sft_generate.py needs. What it draws depends on the request's seed
only, so it says the same in every run. It reads no meaning: chapter 7 needs its faults, not its wit.
"""

import argparse
import json
import random
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT, MODEL = 5017, "stand-in"
ARTICLE = re.compile(r"标题：(.*)\n\n文章：\n(.*)\n\n请写(\d+)对问答。", re.DOTALL)  # as the prompt has it
STATEMENT = re.compile(r".*?(?:是|属于|位于|叫作|写作)")  # the part of a statement that becomes a question
LONGEST_START = 12  # characters of that part: the prompt allows questions of 15
# What can be wrong with a pair, and with the form of a whole reply.
PAIR_FAULTS = "number", "invented", "long", "pronoun", "mixed_up"
REPLY_FAULTS = "preface", "lost_comma", "wide_quotes", "excuse"


def statements_of(title, text):
    """{question: answer} for the statements of a text that name its title before a verb of STATEMENT.

    铁的元素符号是Fe gives 铁的元素符号是什么？
    """
    found = {}
    for part in re.split("[，。]", text):
        verb = STATEMENT.match(part.removeprefix("所以"))
        if verb and title in verb[0] and len(verb[0]) <= LONGEST_START and verb[0] != verb.string:
            found.setdefault(f"{verb[0]}什么？", f"{verb.string}。")
    return found


def spoiled(kind, question, answer, title, other):
    """A pair with a fault of a kind of PAIR_FAULTS. other: the answer to another question."""
    if kind == "number":
        wrong = re.sub(r"\d+", lambda digits: str(int(digits[0]) + 1), answer)
        return question, wrong if wrong != answer else f"{answer[:-1]}，发现于1789年。"
    if kind == "invented":
        return question, "相传由一位热爱旅行的商人从遥远海岛带回。"
    if kind == "long":
        return f"请仔细阅读上面的文章，然后告诉我{question}", answer
    if kind == "pronoun":
        return question.replace(title, "它", 1), answer
    return question, other


def make_pairs(title, text, count, draw, share):
    """At most `count` rows (question, answer, kind) about an article; kind: "" for a good pair, else its fault.

    draw: a `random.Random`; share: the chance that a pair is spoiled.
    """
    answers, rows = statements_of(title, text), []
    for question in draw.sample(sorted(answers), min(count, len(answers))):
        answer, kind = answers[question], ""
        if draw.random() < share:
            others = [other for other in answers.values() if other != answer]
            kind = draw.choice(PAIR_FAULTS if others else PAIR_FAULTS[:-1])
            question, answer = spoiled(kind, question, answer, title, draw.choice(others or [answer]))
        rows.append((question, answer, kind))
    return rows


def reply_about(message, seed, share):
    """The text of the reply to a user's message with an article."""
    if not (article := ARTICLE.search(message)):
        return "好"
    draw = random.Random(seed)
    rows = make_pairs(article[1], article[2], int(article[3]), draw, share)
    parts = [json.dumps({"question": question, "answer": answer}, ensure_ascii=False) for question, answer, _ in rows]
    kind = draw.choice(REPLY_FAULTS) if draw.random() < share else ""
    text = f"[{(' ' if kind == 'lost_comma' else ', ').join(parts)}]"
    if kind == "preface":
        text = f"好的！以下是根据文章编写的问答对：\n```json\n{text}\n```\n希望对您有帮助。"
    elif kind == "wide_quotes":
        text = re.sub('"([^"]*)"', r"“\1”", text)
    elif kind == "excuse":
        text = "抱歉，我暂时无法完成这个任务，请稍后再试。"
    return text


class Handler(BaseHTTPRequestHandler):
    """Answers /v1/models and /v1/chat/completions."""

    def do_GET(self):
        self.send("application/json", json.dumps({"data": [{"id": MODEL}]}))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = next(m["content"] for m in body["messages"] if m["role"] == "user")  # in a retry: the first
        text = reply_about(asked, body.get("seed", 0), self.server.share)
        if not body.get("stream"):
            message = {"role": "assistant", "content": text}
            self.send("application/json", json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}))
            return
        events = [{"delta": {"content": text}, "finish_reason": None}, {"delta": {}, "finish_reason": "stop"}]
        lines = [f"data: {json.dumps({'choices': [{'index': 0, **event}]})}\n\n" for event in events]
        self.send("text/event-stream", "".join([*lines, "data: [DONE]\n\n"]))

    def send(self, kind, text):
        """Send a text as a whole response."""
        content = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        """Print nothing about a request."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--faults", type=float, default=0.3, help="share of pairs, and of replies, that are spoiled")
    arguments = parser.parse_args()
    try:
        server = ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler)
    except OSError as error:
        raise SystemExit(f"port {arguments.port} cannot be used ({error}); does a stand-in run already?") from None
    server.share = arguments.faults
    print(f"the stand-in listens at http://127.0.0.1:{arguments.port}/v1; Ctrl-C stops", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
