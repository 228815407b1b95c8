"""The work itself: many requests at once, each article asked until its reply is good, nothing lost and nothing twice.

What an article is asked, and the n-th time, depends on the article and on what was replied to it alone: which other
articles are asked beside it, and when, changes nothing. Threads do the asking; the caller's thread reads the articles.
"""

import heapq
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field

from minigpt.common.errors import UserError
from minigpt.synth.articles import short_hash
from minigpt.synth.client import AGAIN, ARTICLE, FATAL, SERVER, blame, gave_up, hint_of
from minigpt.synth.prompts import as_reply, messages_for
from minigpt.synth.rate_limit import pause_after
from minigpt.synth.reply_parser import parse, without_thoughts
from minigpt.synth.rules import ShownArticle, judge, union

STRIKES = 5  # failures of one article's request, others succeeding between them, from which it is given up
BUSY_STRIKES = 20  # the same where the server says that it is busy
WARMER = 0.1  # added to the temperature at each further try
AHEAD = 4  # tasks a worker that may wait for their time
JOIN_SECONDS = 5.0
TICK = 0.1
END = object()  # of the articles


@dataclass
class ReplyCounts:
    """Counts of a run."""

    accepted: int = 0
    in_part: int = 0
    rejected: int = 0
    done_before: int = 0
    pairs: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    faults: Counter = field(default_factory=Counter)  # by rule, over all replies
    failures: Counter = field(default_factory=Counter)  # of requests, by code

    @property
    def finished(self):
        return self.accepted + self.in_part + self.rejected


@dataclass
class Ask:
    """An article on its way: the replies to it so far, and the good ones of all their pairs."""

    article: object  # of articles.Shown
    case: ShownArticle
    replies: list = field(default_factory=list)
    reasons: list = field(default_factory=list)  # of each reply
    former: str = ""  # the last reply, as it is shown to the model again
    good: list = field(default_factory=list)


@dataclass(order=True)
class Task:
    """A request to be made, for one article or several that have not been asked about; the earliest due goes first."""

    due: float
    number: int
    asks: list = field(compare=False)
    failures: int = field(default=0, compare=False)
    strikes: float = field(default=0.0, compare=False)
    seen: int = field(default=0, compare=False)  # how many replies had come when it last failed


class Factory:
    """Asks a server about every article of a source that is not done. `run` does it; tally: what came of it."""

    def __init__(self, settings, server, model, pace, saves, rejects, done):
        """saves, rejects: `Appender`s; done: hashes of the keys of articles that are in these files already."""
        self.settings, self.server, self.model, self.pace = settings, server, model, pace
        self.saves, self.rejects, self.done = saves, rejects, done
        self.tally, self.replies, self.last_failure = ReplyCounts(), 0, None
        self._changed = threading.Condition()
        self._fresh, self._later, self._numbers = deque(), [], 0
        self._active, self._streams = [], set()
        self._exhausted, self._stopping, self._error = False, False, None

    def run(self, source, stopped, tick):
        """Ask about every article of an iterable (None: none just now), until done or `stopped()`.

        tick(): called some times a second.

        Raises UserError where the server refuses everything or stays away, or a file cannot be written.
        """
        workers = [threading.Thread(target=self._work, daemon=True) for _ in range(self.settings.concurrency)]
        for worker in workers:
            worker.start()
        articles, group, room = iter(source), [], 2 * self.settings.concurrency
        try:
            while not (stopped() or self._error or self._finished()):
                tick()
                if self._exhausted or len(self._fresh) >= room:
                    with self._changed:
                        self._changed.wait(TICK)
                else:
                    article = next(articles, END)
                    group += [] if article is None or article is END else [article]
                    if article is END or len(group) == self.settings.articles_per_request:
                        self._feed(group, article is END)
                        group = []
        finally:
            self._stop(None)
            for worker in workers:
                worker.join(JOIN_SECONDS)
        if self._error:
            raise self._error

    def _feed(self, articles, exhausted):
        """A task of articles, unless all are done. Those that are stay in it, so that the request is what it was."""
        done = sum(short_hash(article.key) in self.done for article in articles)
        asks = []
        if done < len(articles):
            asks = [Ask(article, ShownArticle(article.title, article.text, self.settings)) for article in articles]
        with self._changed:
            self._exhausted = exhausted
            self.tally.done_before += done
            if asks:
                self._numbers += 1
                self._fresh.append(Task(0.0, self._numbers, asks))
            self._changed.notify_all()

    def _finished(self):
        with self._changed:
            return self._exhausted and not (self._fresh or self._later or self._active)

    def _stop(self, error):
        """Take nothing new and give up what is under way; the first error is the run's."""
        with self._changed:
            self._error, self._stopping = self._error or error, True
            for stream in self._streams:
                stream.cancel()
            self._changed.notify_all()

    # In the workers

    def _work(self):
        try:
            while task := self._take():
                try:
                    self._ask(task)
                finally:
                    with self._changed:
                        self._active.remove(task)
                        self._changed.notify_all()
        except UserError as error:
            self._stop(error)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            self._stop(
                UserError(f"a fault in the work itself ({what}); please report it. What is written stays; {AGAIN}")
            )

    def _take(self):
        """The next task once its time has come; None at the end."""
        with self._changed:
            while not self._stopping:
                now = time.monotonic()
                wait = self.pace.ready_in(now)
                if wait <= 0:
                    if task := self._next(now):
                        self.pace.start(now)
                        self._active.append(task)
                        return task
                    wait = self._later[0].due - now if self._later else 1.0
                self._changed.wait(max(0.001, min(wait, 1.0)))
        return None

    def _next(self, now):
        if self._later and self._later[0].due <= now:
            return heapq.heappop(self._later)
        if self._fresh and len(self._later) < AHEAD * self.settings.concurrency:
            return self._fresh.popleft()
        return None

    def _again(self, asks, due=0.0, failures=0, strikes=0.0):
        """A task about articles whose time comes at `due`."""
        with self._changed:
            self._numbers += 1
            heapq.heappush(self._later, Task(due, self._numbers, asks, failures, strikes, self.replies))
            self._changed.notify_all()

    def _ask(self, task):
        # A task that has failed says little about the server; when it fails again, it must be known to be well.
        if task.failures and self.pace.trouble is not None and not self._is_well(task):
            return
        started, stream = time.monotonic(), self._request(task.asks)
        text, failure = self._read(stream)
        if stream.finish_reason == "cancelled":
            return
        if failure:
            return self._failed(task, failure, started)
        with self._changed:
            self.replies += 1
            self.pace.succeeded()
            self.tally.prompt_tokens += stream.prompt_tokens
            self.tally.completion_tokens += stream.completion_tokens
        self._replied(task, text, stream.finish_reason == "length")

    def _request(self, asks):
        """The stream of a task's request."""
        settings, first = self.settings, asks[0]
        tries = len(first.replies)
        fields = {
            "temperature": min(max(1.0, settings.temperature), settings.temperature + WARMER * tries),
            "seed": short_hash(f"{first.article.key}:{tries}") % 2**31,
            "max_tokens": settings.max_new_tokens,
        }
        shown = [(ask.article.title, ask.article.text) for ask in asks]
        chat = messages_for(shown, settings, first.former, first.reasons[-1] if first.reasons else ())
        return self.server.chat(self.model, chat, **fields)

    def _read(self, stream):
        """(text, None or ApiFailure) of a stream, which a stop cancels."""
        with self._changed:
            self.tally.requests += 1
            self._streams.add(stream)
            if self._stopping:
                stream.cancel()
        try:
            return self.server.read_all(stream)
        finally:
            with self._changed:
                self._streams.discard(stream)

    def _replied(self, task, text, cut):
        """Judge a reply; the articles that fail are asked about again, each alone."""
        reply, alone = parse(text), len(task.asks) == 1
        for number, ask in enumerate(task.asks, start=1):
            if short_hash(ask.article.key) in self.done:
                continue
            pairs = reply.all() if alone else reply.of(number)
            # Of several articles only those behind the break are cut off.
            verdict = judge(ask.case, pairs, (cut or reply.cut) and (alone or not reply.of(number + 1)))
            ask.replies.append(text)
            ask.reasons.append([reason for _, reason in verdict.faults])
            ask.former = without_thoughts(text).strip() if alone else as_reply(pairs)
            ask.good = union(ask.case, ask.good, verdict.pairs)
            with self._changed:
                self.tally.faults.update(name for name, _ in verdict.faults)
            if verdict.good:
                self._accept(ask, verdict.pairs, "accepted")
            elif len(ask.replies) >= self.settings.tries:
                self._give_up(ask)
            else:
                self._again([ask])

    def _failed(self, task, failure, started):
        """A request that came to nothing: wait and ask again, give the article up, or end the run."""
        fault = blame(failure, self.replies)
        if fault == ARTICLE:
            other = self._probe()  # what every request would be told is no fault of this article
            if other is None:
                return None if self._stopping else self._drop(task, str(failure))
            fault = SERVER if blame(other, self.replies) == SERVER else FATAL
        if fault == FATAL:
            raise UserError(f"{failure}; {hint_of(failure)}, then {AGAIN}")
        busy = failure.code == "busy"
        self._wait(task, failure, started, STRIKES / BUSY_STRIKES if busy else 1.0)

    def _is_well(self, task):
        """Whether a request that nothing is wrong with is answered; else the task is put off."""
        started, failure = time.monotonic(), self._probe()
        if self._stopping:
            return False
        fault = ARTICLE if failure is None else blame(failure, self.replies)
        if fault == FATAL:
            raise UserError(f"{failure}; {hint_of(failure)}, then {AGAIN}")
        if fault == SERVER:
            self._wait(task, failure, started, 0.0)
        return fault == ARTICLE

    def _wait(self, task, failure, started, strike):
        """Put a task off; it is given up where others are answered again and again between its failures."""
        with self._changed:
            now, others = time.monotonic(), self.replies > task.seen
            self.tally.failures[failure.code] += 1
            self.last_failure = failure
            busy = failure.code == "busy"
            if not self.pace.failed(started, now, failure.retry_after, busy):
                raise UserError(gave_up(failure, self.settings))
            failures, strikes = task.failures + 1, task.strikes + others * strike
        if strikes >= STRIKES:
            times = BUSY_STRIKES if busy else STRIKES
            return self._drop(task, f"{failure} ({times} times, while other articles were answered)")
        self._again(task.asks, now + pause_after(failures), failures, strikes)

    def _probe(self):
        """The failure of a request that nothing is wrong with, or None where it is answered."""
        _, failure = self._read(self.server.probe(self.model))
        if failure is None:
            with self._changed:
                self.replies += 1
                self.pace.succeeded()
        return failure

    def _drop(self, task, reason):
        """Give up a request that only this task's articles make fail: of several, each is asked about alone."""
        for ask in task.asks:
            if short_hash(ask.article.key) in self.done:
                continue
            if len(task.asks) > 1:
                self._again([ask])
            else:
                ask.reasons.append([reason])
                self._give_up(ask)

    def _give_up(self, ask):
        """Keep what is good of all replies, or write the article down as failed."""
        if len(ask.good) >= self.settings.min_pairs:
            return self._accept(ask, ask.good, "in_part")
        article = ask.article
        row = {"source": article.source, "id": article.id, "title": article.title}
        self.rejects.add({**row, "reasons": ask.reasons, "replies": ask.replies})
        self._count("rejected", 0)

    def _accept(self, ask, pairs, how):
        article = ask.article
        texts = [{"question": question, "answer": answer} for question, answer in pairs]
        self.saves.add({"source": article.source, "id": article.id, "subject": article.subject, "pairs": texts})
        self._count(how, len(pairs))

    def _count(self, how, pairs):
        with self._changed:
            setattr(self.tally, how, getattr(self.tally, how) + 1)
            self.tally.pairs += pairs
