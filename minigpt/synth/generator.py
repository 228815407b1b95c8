"""Generation of questions and answers: concurrent requests, retries, and the writing of accepted and rejected articles.

The n-th request for an article depends only on the article and on the earlier replies to it, not on the other articles
or on timing. Worker threads make the requests; the caller's thread reads the articles.
"""

import heapq
import itertools
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field

from minigpt.common.errors import UserError, first_line
from minigpt.openai_client import ApiFailure
from minigpt.synth.articles import PromptArticle, short_hash
from minigpt.synth.client import (
    ARTICLE,
    FATAL,
    MODEL_LIST_SECONDS,
    RESTART_HINT,
    SERVER,
    ending_message,
    failure_cause,
    fatal_message,
    wait_exceeded_message,
)
from minigpt.synth.diagnosis import (
    FILTER,
    KEY,
    OTHER,
    TEMPERATURE,
    WRONG_MODEL,
    PromptSizes,
    TroubleLog,
    cut_trouble,
    refusal_topic,
    refusal_trouble,
    reply_trouble,
)
from minigpt.synth.prompts import messages_for, reply_text
from minigpt.synth.rate_limit import backoff_seconds
from minigpt.synth.reply_parser import parse_reply, strip_thoughts
from minigpt.synth.rules import ArticleIndex, check_reply, merge_pairs

MAX_TASK_FAILURES = 5  # failures of one task, while other requests succeed, after which its article is given up
MAX_BUSY_FAILURES = 20  # the same if the server answers that it is busy
RETRY_TEMPERATURE_STEP = 0.1  # added to the temperature with each further reply to an article
DELAYED_TASKS_PER_WORKER = 4  # with more delayed tasks no new article is started
TASK_POLL_SECONDS = 0.1
JOIN_SECONDS = 5.0
MAX_OFFERED = 5  # models that a message lists
NO_MORE_ARTICLES = object()


@dataclass
class GenerationCounts:
    """Counts of a run: articles by outcome, pairs, requests and tokens."""

    # By outcome: accepted (a whole reply passed), in_part (only good pairs of the replies were kept), rejected, and
    # unanswered (refused, or all replies show a trouble of the server's: asked about again in the next run).
    articles: Counter = field(default_factory=Counter)
    done_before: int = 0
    pairs: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    faults: Counter = field(default_factory=Counter)  # by rule, over all replies
    failures: Counter = field(default_factory=Counter)  # of requests, by ApiFailure.code


@dataclass
class PendingArticle:
    """An article that is being asked about, with the replies to it so far."""

    article: PromptArticle
    index: ArticleIndex
    replies: list = field(default_factory=list)
    reasons: list = field(default_factory=list)  # one list for each reply: why it was refused
    previous: str = ""  # the last reply, as the next request quotes it
    good_pairs: list = field(default_factory=list)  # of all replies
    sound_replies: int = 0  # replies that show no trouble of the server's
    is_refused: bool = False  # by the server


@dataclass(order=True)
class RequestTask:
    """A request to make: about one article, or about several that had no reply yet. Tasks are ordered by due time."""

    due: float  # time.monotonic(); of equal ones the older task is first
    number: int = field(default_factory=itertools.count().__next__, init=False)
    pending: list = field(compare=False)  # of PendingArticle
    failures: int = field(default=0, compare=False)
    own_failures: float = field(default=0.0, compare=False)  # while other requests succeeded; a busy server counts less
    replies_before: int = field(default=0, compare=False)  # replies of the whole run up to the last failure
    chars: int = field(default=0, compare=False)  # of its prompt


class PairGenerator:
    """Requests pairs for every article of a source. `run` does the work; `counts` has the results."""

    def __init__(self, settings, client, model, rate_limit, saves, rejects, finished):
        """saves, rejects: `Appender`s; finished: hashes of the keys of the articles in these files."""
        self.settings = settings
        self.client = client
        self.model = model
        self.rate_limit = rate_limit
        self.saves = saves
        self.rejects = rejects
        self.finished = finished
        self.counts = GenerationCounts()
        self.replies = 0
        self.last_failure = None
        self.troubles = TroubleLog(settings.concurrency)
        self.prompt_sizes = PromptSizes()
        self.cut_limit = 0  # tokens at which the server cuts prompts; 0: it cuts none
        self.warming = RETRY_TEMPERATURE_STEP
        # All below is shared with the workers and guarded by this condition.
        self._changed = threading.Condition()
        self._new_tasks = deque()
        self._delayed_tasks = []  # a heap
        self._active_tasks = 0
        self._streams = set()  # open requests, which `_stop` cancels
        self._source_exhausted = False
        self._stopping = False
        self._error = None

    def run(self, source, is_stopped, on_poll):
        """Process every article of an iterable until all are done or `is_stopped()`.

        source: yields `PromptArticle`s, or None if there is none at the moment. on_poll(): called several times a
        second. Raises UserError if the server refuses every request or stays away, or a file cannot be written.
        """
        workers = [threading.Thread(target=self._work, daemon=True) for _ in range(self.settings.concurrency)]
        for worker in workers:
            worker.start()
        articles, group = iter(source), []
        try:
            while not (is_stopped() or self._error or self._is_finished()):
                on_poll()
                if self._source_exhausted or len(self._new_tasks) >= 2 * self.settings.concurrency:
                    with self._changed:
                        self._changed.wait(TASK_POLL_SECONDS)
                    continue
                article = next(articles, NO_MORE_ARTICLES)
                exhausted = article is NO_MORE_ARTICLES
                if article is not None and not exhausted:
                    group.append(article)
                if exhausted or len(group) == self.settings.articles_per_request:
                    self._add_new_task(group, exhausted)
                    group = []
        finally:
            self._stop(None)
            for worker in workers:
                worker.join(JOIN_SECONDS)
        if self._error:
            raise self._error
        if self._is_finished() and self.troubles.last and not (self.troubles.sound_replies or self.finished):
            raise UserError(self._ending_message(self.troubles.last))

    def _add_new_task(self, articles, exhausted):
        """Queue a task for a group of articles unless all are finished.

        A group keeps its finished articles, so that a restart makes the same request again.
        """
        finished = sum(short_hash(article.key) in self.finished for article in articles)
        pending = []
        if finished < len(articles):
            pending = [PendingArticle(a, ArticleIndex(a.title, a.text, self.settings)) for a in articles]
        with self._changed:
            self._source_exhausted = exhausted
            self.counts.done_before += finished
            if pending:
                self._new_tasks.append(RequestTask(0.0, pending))
            self._changed.notify_all()

    def _add_delayed_task(self, pending, due=0.0, failures=0, own_failures=0.0):
        """Queue a task that may start at `due`."""
        with self._changed:
            heapq.heappush(self._delayed_tasks, RequestTask(due, pending, failures, own_failures, self.replies))
            self._changed.notify_all()

    def _is_finished(self):
        with self._changed:
            return self._source_exhausted and not (self._new_tasks or self._delayed_tasks or self._active_tasks)

    def _stop(self, error):
        """Start nothing new and cancel the open requests. The first error becomes that of the run."""
        with self._changed:
            self._error = self._error or error
            self._stopping = True
            for stream in self._streams:
                stream.cancel()
            self._changed.notify_all()

    # The methods below run in the workers.

    def _work(self):
        try:
            while task := self._take_task():
                try:
                    self._process_task(task)
                finally:
                    with self._changed:
                        self._active_tasks -= 1
                        self._changed.notify_all()
        except UserError as error:
            self._stop(error)
        except Exception as error:
            self._stop(UserError(f"internal error ({first_line(error)}); please report it, then {RESTART_HINT}"))

    def _take_task(self):
        """Wait until a task may start and return it; None at the end of the run."""
        with self._changed:
            while not self._stopping:
                now = time.monotonic()
                wait = self.rate_limit.seconds_until_ready(now)
                if wait <= 0:
                    if task := self._next_task(now):
                        self.rate_limit.record_start(now)
                        self._active_tasks += 1
                        return task
                    wait = self._delayed_tasks[0].due - now if self._delayed_tasks else 1.0
                self._changed.wait(max(0.001, min(wait, 1.0)))
        return None

    def _next_task(self, now):
        if self._delayed_tasks and self._delayed_tasks[0].due <= now:
            return heapq.heappop(self._delayed_tasks)
        if self._new_tasks and len(self._delayed_tasks) < DELAYED_TASKS_PER_WORKER * self.settings.concurrency:
            return self._new_tasks.popleft()
        return None

    def _process_task(self, task):
        # Before retrying a failed task, probe the server, so that an outage is not blamed on the article.
        if task.failures and self.rate_limit.failing_since is not None and not self._server_responds(task):
            return
        started = time.monotonic()
        stream = self._start_request(task)
        text, failure = self._read_stream(stream, self.client.read_all)
        if stream.finish_reason == "cancelled":
            return
        if failure:
            # A reply that was still coming when its time was over.
            if failure.code == "too_slow" and (trouble := reply_trouble(stream, text, False, self.settings)):
                self._note_trouble(trouble)
            return self._handle_failure(task, failure, started)
        with self._changed:
            self.replies += 1
            self.rate_limit.record_success()
            self.counts.prompt_tokens += stream.prompt_tokens
            self.counts.completion_tokens += stream.completion_tokens
            self.prompt_sizes.add(stream.prompt_tokens, task.chars)
        self._handle_reply(task, stream, text)

    def _start_request(self, task):
        """The stream of the reply about a task's articles. Temperature and seed depend on the number of replies."""
        settings, first = self.settings, task.pending[0]
        tries = len(first.replies)
        temperature = min(max(1.0, settings.temperature), settings.temperature + self.warming * tries)
        texts = [(each.article.title, each.article.text) for each in task.pending]
        messages = messages_for(texts, settings, first.previous, first.reasons[-1] if first.reasons else ())
        task.chars = sum(len(message["content"]) for message in messages)
        return self.client.ask(self.model, messages, temperature, short_hash(f"{first.article.key}:{tries}") % 2**31)

    @staticmethod
    def _begin_of(stream):
        """Wait until an answer begins, and end it. Returns None, or the ApiFailure of a stream that has none."""
        stream.wait_until_begun()
        stream.cancel()
        return stream.error

    def _read_stream(self, stream, read):
        """read(stream), while `_stop` can cancel the stream."""
        with self._changed:
            self.counts.requests += 1
            self._streams.add(stream)
            if self._stopping:
                stream.cancel()
        try:
            return read(stream)
        finally:
            with self._changed:
                self._streams.discard(stream)

    def _handle_reply(self, task, stream, text):
        """Check a reply. Each article whose pairs fail is asked about again in a request of its own."""
        cut = stream.finish_reason == "length"
        reply, is_alone = parse_reply(text, cut), len(task.pending) == 1
        checked = []
        for number, pending in enumerate(task.pending, start=1):
            if short_hash(pending.article.key) in self.finished:
                continue
            pairs = reply.all_pairs() if is_alone else reply.pairs_of(number)
            # If a reply about several articles is cut off, only the last article in it is incomplete.
            is_cut = (cut or reply.cut) and (is_alone or not reply.pairs_of(number + 1))
            checked.append((pending, pairs, check_reply(pending.index, pairs, is_cut)))
        is_sound = self._is_sound(stream, text, reply, any(check.good_pairs for _, _, check in checked))
        for pending, pairs, check in checked:
            pending.sound_replies += is_sound
            pending.replies.append(text)
            pending.reasons.append([reason for _, reason in check.faults])
            pending.previous = strip_thoughts(text).strip() if is_alone else reply_text(pairs)
            pending.good_pairs = merge_pairs(pending.index, pending.good_pairs, check.good_pairs)
            with self._changed:
                self.counts.faults.update(rule for rule, _ in check.faults if is_sound)
            if not check.faults:
                self._accept(pending, check.good_pairs, "accepted")
            elif len(pending.replies) >= self.settings.tries:
                self._give_up(pending)
            else:
                self._add_delayed_task([pending])

    def _is_sound(self, stream, text, reply, has_good_pairs):
        """Whether a reply shows no trouble of the server's. Raises UserError if troubles alike end the run."""
        with self._changed:
            limit = self.prompt_sizes.limit()
            is_new = limit != self.cut_limit
            self.cut_limit = limit
            works = has_good_pairs or self.counts.pairs
        if limit and limit == stream.prompt_tokens:
            trouble = cut_trouble(limit, self.settings)
            if not works:
                raise UserError(self._ending_message(trouble))
            if is_new:
                self.client.report(f"note: {trouble.text}")
            if not has_good_pairs:
                return False
        if trouble := reply_trouble(stream, text, bool(reply.pairs), self.settings):
            self._note_trouble(trouble)
        else:
            with self._changed:
                self.troubles.add_sound_reply()
        return trouble is None

    def _note_trouble(self, trouble):
        """Count a trouble, and report the first of each kind. Raises UserError if troubles alike end the run."""
        with self._changed:
            is_end = self.troubles.add(trouble)
            is_first = self.troubles.counts[trouble.kind, trouble.alike] == 1
        if is_end:
            raise UserError(self._ending_message(trouble))
        if is_first:
            self.client.report(f"note: {trouble.text}")

    def _ending_message(self, trouble):
        return ending_message(f"{self.client.base}: {trouble.message}", self._advice(trouble.kind, trouble.advice))

    def _advice(self, kind, advice):
        """The advice, for a refused model's name with the names that the server offers."""
        if kind != WRONG_MODEL:
            return advice
        try:
            names = [model["id"] for model in self.client.models(MODEL_LIST_SECONDS)[0]]
        except ApiFailure:
            return advice
        shown = ", ".join(names[:MAX_OFFERED]) + (" …" if len(names) > MAX_OFFERED else "")
        return f"{advice} (it offers {shown})" if names else f"{advice}; it offers none: load one there"

    def _handle_failure(self, task, failure, started):
        """Postpone the task, give its article up, or raise UserError to end the run."""
        cause = failure_cause(failure, self.replies)
        if cause == ARTICLE:
            topic = refusal_topic(failure, self.client.extra)
            if topic == TEMPERATURE and task.pending[0].replies and self.warming:
                self.warming = 0.0
                self.client.report(f"note: {failure}; retries keep --temperature={self.settings.temperature:g}")
                return self._add_delayed_task(task.pending)
            # A request without an article shows whether the server refuses this article or every request.
            probe_failure = self._probe_server()
            if self._stopping:
                return None
            trouble = refusal_trouble(failure, self.settings, task.chars, self.client.extra)
            if probe_failure is None:
                if len(task.pending) == 1:
                    self._note_trouble(trouble)
                return self._drop_task(task, str(failure), is_refused=True)
            if failure_cause(probe_failure, self.replies) != SERVER:
                if topic in (KEY, FILTER, OTHER):
                    raise UserError(fatal_message(failure))
                raise UserError(ending_message(failure, self._advice(topic, trouble.advice)))
            cause = SERVER
        if cause == FATAL:
            raise UserError(fatal_message(failure))
        weight = MAX_TASK_FAILURES / MAX_BUSY_FAILURES if failure.code == "busy" else 1.0
        self._postpone(task, failure, started, weight)

    def _server_responds(self, task):
        """Whether a probe is answered; otherwise the task is postponed, or a UserError ends the run."""
        started, failure = time.monotonic(), self._probe_server()
        if self._stopping:
            return False
        cause = ARTICLE if failure is None else failure_cause(failure, self.replies)
        if cause == FATAL:
            raise UserError(fatal_message(failure))
        if cause == SERVER:
            self._postpone(task, failure, started, weight=0.0)
        return cause == ARTICLE

    def _postpone(self, task, failure, started, weight):
        """Retry a task later. Give it up if other requests have succeeded between MAX_TASK_FAILURES of its failures.

        weight: how much this failure counts. Raises UserError if the server has been away for wait_minutes.
        """
        busy = failure.code == "busy"
        with self._changed:
            now = time.monotonic()
            self.counts.failures[failure.code] += 1
            self.last_failure = failure
            if not self.rate_limit.record_failure(started, now, failure.retry_after, busy):
                raise UserError(wait_exceeded_message(failure, self.settings))
            own_failures = task.own_failures + (weight if self.replies > task.replies_before else 0.0)
        if own_failures >= MAX_TASK_FAILURES:
            times = MAX_BUSY_FAILURES if busy else MAX_TASK_FAILURES
            return self._drop_task(task, f"{failure} ({times} times, while other articles were answered)")
        failures = task.failures + 1
        self._add_delayed_task(task.pending, now + backoff_seconds(failures), failures, own_failures)

    def _probe_server(self):
        """The failure of a short request with the fields of the others, or None as soon as an answer begins."""
        stream = self.client.probe(self.model)
        failure = self._read_stream(stream, self._begin_of)
        if failure is None and not self._stopping:
            with self._changed:
                self.replies += 1
                self.rate_limit.record_success()
        return failure

    def _drop_task(self, task, reason, is_refused=False):
        """Give up a request that fails because of its articles. Several articles are each asked about alone."""
        for pending in task.pending:
            if short_hash(pending.article.key) in self.finished:
                continue
            if len(task.pending) > 1:
                self._add_delayed_task([pending])
            else:
                pending.reasons.append([reason])
                pending.is_refused = is_refused
                self._give_up(pending)

    def _give_up(self, pending):
        """Accept the good pairs of all replies if there are min_pairs of them, otherwise reject the article.

        An article that had no sound reply, for a reason that is not its own, is left for the next run.
        """
        if len(pending.good_pairs) >= self.settings.min_pairs:
            return self._accept(pending, pending.good_pairs, "in_part")
        if not pending.sound_replies and (pending.replies or pending.is_refused):
            return self._count("unanswered", 0)
        article = pending.article
        about = {"source": article.source, "id": article.id, "title": article.title}
        self.rejects.add({**about, "reasons": pending.reasons, "replies": pending.replies})
        self._count("rejected", 0)

    def _accept(self, pending, pairs, outcome):
        article = pending.article
        texts = [{"question": question, "answer": answer} for question, answer in pairs]
        self.saves.add({"source": article.source, "id": article.id, "subject": article.subject, "pairs": texts})
        self._count(outcome, len(pairs))

    def _count(self, outcome, pairs):
        with self._changed:
            self.counts.articles[outcome] += 1
            self.counts.pairs += pairs
