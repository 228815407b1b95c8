"""What the experiments ask, and what their figures say to it."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Column:
    """A figure of a run. path: keys into its figures; more_is: "better" or "worse"; digits: after the point; articles:
    of pretrained models alone (the same figure of answers is another matter)."""

    title: str
    path: str
    more_is: str = "better"
    digits: int = 3
    articles: bool = False

    def of(self, figures):
        """Its value, or None where a run has none."""
        if self.articles and "trained" in figures:
            return None
        for key in self.path.split("."):
            figures = figures.get(key) if isinstance(figures, dict) else None
        return figures


@dataclass(frozen=True)
class Claim:
    """That run `better` has a higher figure than run `worse` (lower, where more is worse). report: whether the report
    says so ("report"), or it is what one would expect ("expected")."""

    better: str
    worse: str
    column: Column
    text: str
    text_zh: str
    source: str = "report"


@dataclass(frozen=True)
class Experiment:
    """A comparison: title and question in English and Chinese, the runs in the table's order, columns, claims."""

    name: str
    title: str
    title_zh: str
    about: str
    about_zh: str
    runs: tuple
    columns: tuple
    claims: tuple


def values_of(column, runs):
    """(seeds,) of a column over a run's seeds; [] where it has no such figure."""
    found = [column.of(figures) for figures in runs]
    return np.array([v for v in found if v is not None], dtype=np.float64)


@dataclass(frozen=True)
class Verdict:
    """What the seeds say to a claim. differences: (seeds,) how much better the one is, seed by seed."""

    claim: Claim
    differences: np.ndarray

    @property
    def for_it(self):
        return int((self.differences > 0).sum())

    @property
    def holds(self):
        """True or False where every seed says so, None where they do not agree."""
        return True if (self.differences > 0).all() else False if (self.differences < 0).all() else None

    @property
    def error(self):
        """Standard error of the mean difference; nan for one seed."""
        n = len(self.differences)
        return float(self.differences.std(ddof=1) / n**0.5) if n > 1 else float("nan")


def judge(claim, results):
    """The `Verdict` of {run: [figures of each seed]}."""
    a, b = (values_of(claim.column, results[name]) for name in (claim.better, claim.worse))
    return Verdict(claim, (a - b) * (1 if claim.column.more_is == "better" else -1))


TRAINED = Column("trained questions, exact match", "trained.exact_match")
ASKED = Column("never asked, exact match", "never_asked.exact_match")
SEEN = Column("never seen, exact match", "never_seen.exact_match")
ASKED_F = Column("never asked, Rouge-L F", "never_asked.rouge_l_f")
SEEN_F = Column("never seen, Rouge-L F", "never_seen.rouge_l_f")
NUMBERS = Column("never asked, numbers right", "never_asked.numbers")
LOSS = Column("validation loss (nats a token)", "loss", "worse", articles=True)
BITS = Column("bits a character", "bits_per_char", "worse", articles=True)
NATS = Column("loss (nats a token)", "loss", "worse")
PERPLEXITY = Column("perplexity", "perplexity", "worse", 2)
EMPTY = Column("texts with empty brackets", "empty_brackets", "worse")
CONTINUED = Column("continuations, Rouge-L F", "continuation_rouge_l")
ANSWERS = (TRAINED, ASKED, SEEN, ASKED_F, NUMBERS)

EXPERIMENTS = (
    Experiment(
        "order", "Rows at random or in the file's order", "随机顺序还是文件顺序",
        "The same rows, as often; drawn by a fresh permutation each epoch, or as they lie in the file, where articles "
        "of one kind follow each other.",
        "同样的行、同样的次数：每轮重新打乱，或按文件顺序（同类文章相邻）。",
        ("base", "in_order", "tuned", "tuned_in_order"), (LOSS, BITS, *ANSWERS),
        (
            Claim("base", "in_order", LOSS, "random order ends at a lower validation loss",
                  "随机顺序的验证损失更低"),
            Claim("tuned", "tuned_in_order", ASKED, "after fine-tuning it knows more of what was never asked",
                  "微调后对从未问过的主题答得更准"),
        ),
    ),
    Experiment(
        "layout", "One article a row, or concatenated", "一行一篇，还是首尾相接",
        "As many tokens in all and a step; in the one case each row begins with an article, in the other rows are cut "
        "from one long text with EOT between articles. Both are validated on rows of one article.",
        "总词元数与每步词元数相同；前者每行从一篇文章开头，后者把文章用 EOT 接成长文再切块。验证都用一行一篇。",
        ("base", "concatenated", "tuned", "tuned_concatenated"), (LOSS, BITS, *ANSWERS),
        (
            Claim("base", "concatenated", LOSS, "one article a row ends at a lower validation loss",
                  "一行一篇的验证损失更低"),
            Claim("tuned", "tuned_concatenated", ASKED, "after fine-tuning it knows more of what was never asked",
                  "微调后对从未问过的主题答得更准"),
        ),
    ),
    Experiment(
        "cleaning", "Cleaned or not", "清洗与否",
        "The same articles with and without the step `litter`, which takes out empty brackets and quotes. What the "
        "pretrained model writes is searched for them.",
        "同样的文章，做或不做 `litter`（去掉空括号、空引号）这一步，再看预训练模型写出的文字里有没有空括号。",
        ("base", "uncleaned", "tuned", "tuned_uncleaned"), (EMPTY, CONTINUED, *ANSWERS),
        (
            Claim("base", "uncleaned", EMPTY, "a model of cleaned text writes fewer empty brackets",
                  "清洗过的模型写出的空括号更少"),
        ),
    ),
    Experiment(
        "overflow", "Long articles truncated or split", "长文截断还是切分",
        "A block so short that many articles do not fit: the rest is dropped, or makes further rows. As many steps, so "
        "that each row is seen less often where there are more of them.",
        "块很短，许多文章放不下：截掉余下部分，或另起一行。步数相同，因此行多者每行看得更少。",
        ("tuned_truncated", "tuned_split"), ANSWERS,
        (
            Claim("tuned_split", "tuned_truncated", ASKED, "split articles leave more to know",
                  "切分保留了更多知识", "expected"),
        ),
    ),
    Experiment(
        "table", "GPT-2's table or a trained one, at equal time", "GPT-2 词表还是自训词表（等时间）",
        "The same articles and as many seconds of training; the table's own training counts. GPT-2's needs several "
        "times as many tokens for Chinese.",
        "同样的文章、同样的训练秒数（训练词表的时间计入）。GPT-2 词表写中文要多用数倍词元。",
        ("base", "gpt2", "tuned", "tuned_gpt2"), (BITS, Column("steps", "steps", "better", 0), *ANSWERS),
        (
            Claim("base", "gpt2", BITS, "a trained table needs fewer bits a character",
                  "自训词表每字比特更少", "expected"),
            Claim("tuned", "tuned_gpt2", ASKED, "and answers more of what was never asked",
                  "对从未问过的主题也答得更准", "expected"),
        ),
    ),
    Experiment(
        "data", "How much is pretrained on", "预训练数据多少",
        "A quarter, half or all of the articles (by hash; each subject is told several times, so that fewer articles "
        "are fewer tellings of each), as many steps, then the same fine-tuning; and fine-tuning alone, of a new model.",
        "四分之一、一半或全部文章（按哈希取；每个主题有多种写法，取少即写法变少），步数相同，再做同样的微调；"
        "另有不预训练、直接微调。",
        ("tuned_nothing", "tuned_articles_0.25", "tuned_articles_0.5", "tuned"), ANSWERS,
        (
            Claim("tuned", "tuned_articles_0.5", ASKED, "all articles are better than half of them",
                  "全部好于一半"),
            Claim("tuned_articles_0.5", "tuned_articles_0.25", ASKED, "half of them are better than a quarter",
                  "一半好于四分之一"),
            Claim("tuned_articles_0.25", "tuned_nothing", ASKED, "a quarter is better than none",
                  "四分之一好于没有"),
        ),
    ),
    Experiment(
        "questions", "The size of the fine-tuning set", "微调数据多少",
        "A quarter, half or all of the questions, as many steps. The trained questions that are asked are in all.",
        "四分之一、一半或全部问题，步数相同。所问的训练题三者都有。",
        ("tuned_questions_0.25", "tuned_questions_0.5", "tuned"), ANSWERS,
        (
            Claim("tuned", "tuned_questions_0.25", ASKED, "more questions help with what was never asked",
                  "问题越多，对从未问过的主题答得越准"),
            Claim("tuned_questions_0.25", "tuned", TRAINED, "fewer, seen more often, are known better by heart",
                  "问题越少、看得越多，背得越熟", "expected"),
        ),
    ),
    Experiment(
        "overfitting", "Over-fitting", "过拟合",
        "Pretraining for many epochs, and fine-tuning for many epochs: what the models still know, by the end and, "
        "for fine-tuning, after each epoch (plot).",
        "多轮预训练与多轮微调之后还会什么；微调逐轮的变化见图。",
        ("tuned", "tuned_long", "tuned_pretrained_long"), (*ANSWERS, SEEN_F),
        (
            Claim("tuned_long", "tuned", TRAINED, "many epochs of fine-tuning help to recall what was trained",
                  "多轮微调更能背出训练过的问题"),
            Claim("tuned", "tuned_long", ASKED, "and hurt with what was never asked", "而对从未问过的主题有害"),
            Claim("tuned", "tuned_long", SEEN_F, "and with what was never seen", "对从未见过的主题也有害"),
            Claim("tuned_pretrained_long", "tuned", ASKED, "many epochs of pretraining help with what was never asked",
                  "多轮预训练对从未问过的主题有益", "expected"),
        ),
    ),
    Experiment(
        "perplexity", "Perplexity of pretrained and fine-tuned", "预训练与微调的困惑度",
        "Of articles about subjects never seen (pretrained), of answers about subjects never asked (fine-tuned): two "
        "kinds of text, as the report compares them.",
        "预训练：从未见过主题的文章；微调：从未问过主题的答案；与报告一样，比较的是两种文本。",
        ("base", "pretrained_long", "tuned", "tuned_long"), (PERPLEXITY, NATS),
        (
            Claim("tuned", "base", PERPLEXITY, "the fine-tuned model's perplexity is lower", "微调后的困惑度更低"),
        ),
    ),
)  # fmt: skip
