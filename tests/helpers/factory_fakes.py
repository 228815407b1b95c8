"""A real server with large models that write questions and answers, some badly. As a script it is its own process.

The articles are `corpora.made_up_articles`. A model's name says how it behaves:

| model | behaviour |
|---|---|
| good | three correct pairs about every article |
| slow | like good, once `together` requests are open |
| stormy | one first reply in three has one of FAULTS; some requests get 429, 500, no answer, or half a reply |
| poison | status 500 for the articles of POISONED |
| long, moderated, crowded | status 400 (too long), 403 (moderation), 429 (busy) for the article LONG |
| warm, short | status 400 unless temperature is 1; if prompt and max_tokens exceed 2,048 |
| moody | status 400 unless temperature is 0.6; the first reply is bad |
| cutting, thinking | reports 2,048 tokens for every prompt and greets; thinks until max_tokens |
| endless, trickling | text without end until max_tokens; until the client leaves |
| poor, refusing, away, unloaded | every request: no quota, wrong key, 503, no model |
| babbling | no JSON |
| dying | the connection closes within the reply |
| stubborn | a pronoun in one pair of four, every time |
| halves | two of three pairs at a time |
| group | of several articles the second is missing and the third is bad |
"""

import json
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

from peer_fakes import Handler, delta

POISONED = ("第3镇", "第7镇")
LONG = "第2镇"
HANG_SECONDS = 30.0


def facts(text):
    """[(town, river, bridges)] of the articles in a prompt, in order."""
    towns = re.findall(r"标题：(第\d+镇)", text)
    return [
        (town, *re.search(rf"{town}位于(.河)", text).groups(), *re.search(rf"{town}有(\d+)座桥", text).groups())
        for town in towns
    ]


def good_pairs(town, river, bridges):
    """Three pairs that pass every rule."""
    return [
        {"question": f"{town}位于哪里？", "answer": f"{town}位于{river}边。"},
        {"question": f"{town}有几座桥？", "answer": f"{town}有{bridges}座桥。"},
        {"question": f"哪条河流过{town}？", "answer": f"流过{town}的是{river}。"},
    ]


def with_first(pairs, **fields):
    return [{**pairs[0], **fields}, *pairs[1:]]


# For each rule, how good pairs become a reply that breaks it.
FAULTS = {
    "no_json": lambda pairs: "好的，下面是关于文章的问答。",
    "cut_off": lambda pairs: json.dumps(pairs, ensure_ascii=False)[:-20],
    "pair_count": lambda pairs: pairs[:2],
    "question_length": lambda pairs: with_first(
        pairs, question=pairs[0]["question"][:-1] + "究竟位于哪里呢" * 2 + "？"
    ),
    "answer_length": lambda pairs: with_first(pairs, answer=pairs[0]["answer"] * 40),
    "pronoun": lambda pairs: with_first(pairs, question="它位于哪里？"),
    "duplicate": lambda pairs: [*pairs, {**pairs[1], "question": pairs[1]["question"].replace("？", "呢？")}],
    "characters": lambda pairs: with_first(pairs, answer=pairs[0]["answer"] + "**"),
    "unsupported": lambda pairs: with_first(pairs, answer="此地建于1999年。"),
    "no_subject": lambda pairs: with_first(pairs, question="位置在哪里？"),
    "not_a_question": lambda pairs: with_first(pairs, question=pairs[0]["answer"]),
}


def number_of(town):
    return int(re.search(r"\d+", town)[0])


class Model(Handler):
    """Answers as the requested model. `about` has the settings of the server and what it received."""

    def do_POST(self):
        about, body = self.server.about, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with about.lock:
            about.asked.append(body)
            about.busy += 1
            about.most = max(about.most, about.busy)
        chat = body["messages"]
        self.asked, self.first = facts(chat[1]["content"] if len(chat) > 1 else ""), len(chat) == 2
        try:
            if len(chat) == 1 and body["model"] not in ("unloaded", "refusing", "away", "dying", "poor", "warm"):
                return self.write("好")
            getattr(self, f"as_{body['model']}")(body)
        except OSError:  # the client has left
            pass
        finally:
            with about.lock:
                about.busy -= 1

    def once(self, what):
        """Whether this is the first request about `what`."""
        with self.server.about.lock:
            new = what not in self.server.about.met
            self.server.about.met.add(what)
        return new

    def write(self, text, reason="stop", prompt_tokens=7):
        """Send a complete reply in pieces."""
        self.begin()
        for start in range(0, len(text), 40):
            self.say(delta(text[start : start + 40]))
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(text)}
        self.say(
            delta("", reason) + f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode()
        )

    def write_pairs(self, pairs):
        self.write(pairs if isinstance(pairs, str) else json.dumps(pairs, ensure_ascii=False))

    def write_good(self):
        about = [good_pairs(*article) for article in self.asked]
        several = [{"article": number, "pairs": pairs} for number, pairs in enumerate(about, start=1)]
        self.write_pairs(several if len(about) > 1 else about[0])

    def as_good(self, body):
        time.sleep(self.server.about.seconds)
        self.write_good()

    def as_stormy(self, body):
        time.sleep(self.server.about.seconds)
        town = self.asked[0][0]
        number = number_of(town)
        if number % 5 == 1 and self.once(town):
            weather = number // 5 % 4
            if weather == 0:
                return self.send(429, b"{}", Retry_After="0.05")
            if weather == 1:
                return self.send(500, b'{"error": {"message": "out of memory"}}')
            if weather == 2:
                return time.sleep(HANG_SECONDS)
            self.begin()
            self.say(delta('[{"question": "'))
            return self.connection.close()
        if number % 3 == 0 and self.first:
            return self.write_pairs(list(FAULTS.values())[number // 3 % len(FAULTS)](good_pairs(*self.asked[0])))
        self.write_good()

    def as_poison(self, body):
        if any(town in self.server.about.poisoned for town, *_ in self.asked):
            return self.send(500, b'{"error": {"message": "the model has crashed"}}')
        self.write_good()

    def as_long(self, body):
        if any(town == LONG for town, *_ in self.asked):
            return self.send(400, b'{"error": {"message": "the prompt is too long"}}')
        self.write_good()

    def as_moderated(self, body):
        if any(town == LONG for town, *_ in self.asked):
            return self.send(403, b'{"error": {"message": "not to our taste"}}')
        self.write_good()

    def as_crowded(self, body):
        if any(town == LONG for town, *_ in self.asked):
            return self.send(429, b'{"error": {"message": "too many tokens a minute"}}')
        self.write_good()

    def as_warm(self, body):
        if body["temperature"] != 1:
            return self.send(400, b'{"error": {"message": "temperature 0.45 is no good: only 1 is allowed"}}')
        self.write_good()

    def as_short(self, body):
        chars = sum(len(message["content"]) for message in body["messages"])
        if chars + body["max_tokens"] > 2048:
            message = f"maximum context length is 2048 tokens, but you requested {chars} in the messages"
            return self.send(400, json.dumps({"error": {"message": message}}).encode())
        self.write_good()

    def as_moody(self, body):
        if body["temperature"] != 0.6:
            return self.send(400, b'{"error": {"message": "only temperature 0.6 is allowed"}}')
        self.write_pairs(FAULTS["pronoun"](good_pairs(*self.asked[0]))) if self.first else self.write_good()

    def as_cutting(self, body):
        self.write("您好！请问有什么可以帮您？", prompt_tokens=2048)

    def as_thinking(self, body):
        self.begin()
        choice = {"index": 0, "delta": {"content": "", "reasoning": "想一想……"}, "finish_reason": "length"}
        self.say(f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n".encode())

    def as_endless(self, body):
        self.write("从前有座山，山里有座庙，" * 20, reason="length")

    def as_trickling(self, body):
        self.begin()
        self.say(delta("从前有座山"))
        self.server.about.go.wait(HANG_SECONDS)

    def as_poor(self, body):
        self.send(429, b'{"error": {"message": "no money", "code": "insufficient_quota"}}')

    def as_babbling(self, body):
        self.write("从前有座山，山里有座庙，庙里有个老和尚。" * 3)

    def as_dying(self, body):
        self.begin()
        self.say(delta("[{"))
        self.connection.close()

    def as_stubborn(self, body):
        pairs = good_pairs(*self.asked[0])
        self.write_pairs([*pairs, {**pairs[0], "question": "它位于哪里？"}])

    def as_halves(self, body):
        """The first two pairs, then, in the retry, the last two."""
        pairs = good_pairs(*self.asked[0])
        self.write_pairs(pairs[:2] if self.first else pairs[1:])

    def as_slow(self, body):
        """Answers no request until `together` are open."""
        about = self.server.about
        with about.lock:
            about.waiting += 1
            if about.waiting >= about.together:
                about.go.set()
        about.go.wait(HANG_SECONDS)
        self.as_good(body)

    def as_group(self, body):
        """Of several articles the pairs of the second are missing, and those of the third are bad."""
        if len(self.asked) == 1:
            return self.write_good()
        about = [good_pairs(*article) for article in self.asked]
        bad = FAULTS["pronoun"](about[-1])
        self.write_pairs([{"article": 1, "pairs": about[0]}, {"article": 3, "pairs": bad}])

    def as_refusing(self, body):
        self.send(401, b'{"error": {"message": "the key is wrong"}}')

    def as_away(self, body):
        self.send(503, b"{}")

    def as_unloaded(self, body):
        self.send(400, b'{"error": {"message": "no model is loaded"}}')


class LargeServer(ThreadingHTTPServer):
    daemon_threads, block_on_close, request_queue_size = True, False, 128

    def handle_error(self, *_):  # a client that has been killed
        pass


def opened(port=0, models=("good",), seconds=0.0, together=1):
    """A listening server. `about`: its base address, the request bodies `asked`, the `most` requests open at once."""
    server = LargeServer(("127.0.0.1", port), Model)
    server.about = SimpleNamespace(
        models=models, owner="someone", seconds=seconds, listing_seconds=0, together=together, seen=[], asked=[],
        poisoned=POISONED, met=set(), busy=0, most=0, waiting=0, lock=threading.Lock(), go=threading.Event(),
        base=f"http://127.0.0.1:{server.server_port}/v1", port=server.server_port,
    )  # fmt: skip
    return server


@contextmanager
def large_model(**settings):
    """The `about` of a running server in this process."""
    server = opened(**settings)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server.about
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def model_process(port=0, seconds=0.02):
    """(process, port) of a server in its own process, which a test may kill; killed at the end."""
    command = [sys.executable, str(Path(__file__)), str(port), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    running = opened(int(sys.argv[1]), seconds=float(sys.argv[2]))
    print(running.about.port, flush=True)
    running.serve_forever()
