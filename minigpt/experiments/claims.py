"""The experiments: which runs each compares, which claims it tests, and whether the figures support them."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Column:
    """A figure of a run. path: keys into its figures, joined by dots; more_is: "better" or "worse"; digits: decimal
    places; articles: only for pretrained models, since a loss on articles and one on answers cannot be compared."""

    title: str
    path: str
    more_is: str = "better"
    digits: int = 3
    articles: bool = False

    def value(self, figures):
        """Its value among a run's figures, or None where there is none."""
        if self.articles and "trained" in figures:
            return None
        for key in self.path.split("."):
            figures = figures.get(key) if isinstance(figures, dict) else None
        return figures


@dataclass(frozen=True)
class Claim:
    """Run `better` has a better figure in `column` than run `worse`. source: "report" where the report says so,
    "expected" where it is only what one would expect."""

    better: str
    worse: str
    column: Column
    text: str
    text_zh: str
    source: str = "report"


@dataclass(frozen=True)
class Experiment:
    """A comparison: title and description in English and Chinese, runs in the order of the table, columns, claims."""

    name: str
    title: str
    title_zh: str
    about: str
    about_zh: str
    runs: tuple
    columns: tuple
    claims: tuple


def column_values(column, runs):
    """(seeds,) float64: a column over the figures of a run's seeds; (0,) where it has no such figure."""
    found = [column.value(figures) for figures in runs]
    return np.array([v for v in found if v is not None], dtype=np.float64)


@dataclass(frozen=True)
class Verdict:
    """Whether seeds support a claim. differences: (seeds,) by how much the run claimed to be better is better."""

    claim: Claim
    differences: np.ndarray

    @property
    def seeds_in_favour(self):
        """Number of seeds that support the claim."""
        return int((self.differences > 0).sum())

    @property
    def holds(self):
        """True where every seed supports the claim, False where every seed contradicts it, else None."""
        return True if (self.differences > 0).all() else False if (self.differences < 0).all() else None

    @property
    def standard_error(self):
        """Standard error of the mean difference; NaN for one seed."""
        n = len(self.differences)
        return float(self.differences.std(ddof=1) / n**0.5) if n > 1 else float("nan")


def judge_claim(claim, results):
    """The `Verdict` on a claim. results: {run: [figures of each seed]}."""
    difference = column_values(claim.column, results[claim.better]) - column_values(claim.column, results[claim.worse])
    return Verdict(claim, difference if claim.column.more_is == "better" else -difference)


def select_experiments(names):
    """The experiments of those names; all of them where there are no names."""
    return [experiment for experiment in EXPERIMENTS if not names or experiment.name in names]


TRAINED_MATCH = Column("trained questions, exact match", "trained.exact_match")
NEVER_ASKED_MATCH = Column("never asked, exact match", "never_asked.exact_match")
NEVER_SEEN_MATCH = Column("never seen, exact match", "never_seen.exact_match")
NEVER_ASKED_F = Column("never asked, Rouge-L F", "never_asked.rouge_l_f")
NEVER_SEEN_F = Column("never seen, Rouge-L F", "never_seen.rouge_l_f")
NUMBER_ACCURACY = Column("never asked, numbers right", "never_asked.numbers")
VALIDATION_LOSS = Column("validation loss (nats a token)", "loss", "worse", articles=True)
BITS_PER_CHAR = Column("bits a character", "bits_per_char", "worse", articles=True)
NATS_PER_TOKEN = Column("loss (nats a token)", "loss", "worse")
PERPLEXITY = Column("perplexity", "perplexity", "worse", 2)
EMPTY_BRACKETS_SHARE = Column("texts with empty brackets", "empty_brackets", "worse")
CONTINUATION_F = Column("continuations, Rouge-L F", "continuation_rouge_l")
ANSWER_COLUMNS = (TRAINED_MATCH, NEVER_ASKED_MATCH, NEVER_SEEN_MATCH, NEVER_ASKED_F, NUMBER_ACCURACY)

EXPERIMENTS = (
    Experiment(
        "order", "Rows in random order or in file order", "随机顺序还是文件顺序",
        "The same rows, seen equally often: in a new random order each epoch, or in the order of the files, where "
        "articles about one kind of subject follow each other.",
        "同样的行、同样的次数：每轮重新打乱，或按文件顺序（同类文章相邻）。",
        ("base", "in_order", "tuned", "tuned_in_order"), (VALIDATION_LOSS, BITS_PER_CHAR, *ANSWER_COLUMNS),
        (
            Claim("base", "in_order", VALIDATION_LOSS, "random order ends at a lower validation loss",
                  "随机顺序的验证损失更低"),
            Claim("tuned", "tuned_in_order", NEVER_ASKED_MATCH,
                  "after fine-tuning, more questions that were never asked are answered",
                  "微调后对从未问过的主题答得更准"),
        ),
    ),
    Experiment(
        "layout", "One article per row, or concatenated", "一行一篇，还是首尾相接",
        "Equally many tokens per step and in all. Either each row begins with an article, or rows are cut from one "
        "long text with EOT between articles. Both are validated on rows of one article each.",
        "总词元数与每步词元数相同；前者每行从一篇文章开头，后者把文章用 EOT 接成长文再切块。验证都用一行一篇。",
        ("base", "concatenated", "tuned", "tuned_concatenated"), (VALIDATION_LOSS, BITS_PER_CHAR, *ANSWER_COLUMNS),
        (
            Claim("base", "concatenated", VALIDATION_LOSS, "one article per row ends at a lower validation loss",
                  "一行一篇的验证损失更低"),
            Claim("tuned", "tuned_concatenated", NEVER_ASKED_MATCH,
                  "after fine-tuning, more questions that were never asked are answered",
                  "微调后对从未问过的主题答得更准"),
        ),
    ),
    Experiment(
        "cleaning", "Cleaned or not", "清洗与否",
        "The same articles with and without the step `litter`, which removes empty brackets and quotes. The texts of "
        "the pretrained model are searched for empty brackets.",
        "同样的文章，做或不做 `litter`（去掉空括号、空引号）这一步，再看预训练模型写出的文字里有没有空括号。",
        ("base", "uncleaned", "tuned", "tuned_uncleaned"), (EMPTY_BRACKETS_SHARE, CONTINUATION_F, *ANSWER_COLUMNS),
        (
            Claim("base", "uncleaned", EMPTY_BRACKETS_SHARE,
                  "a model trained on cleaned text writes fewer empty brackets",
                  "清洗过的模型写出的空括号更少"),
        ),
    ),
    Experiment(
        "overflow", "Long articles truncated or split", "长文截断还是切分",
        "Blocks so short that many articles do not fit: the rest is dropped, or becomes further rows. The number of "
        "steps is equal, so each row is seen less often where there are more rows.",
        "块很短，许多文章放不下：截掉余下部分，或另起一行。步数相同，因此行多者每行看得更少。",
        ("tuned_truncated", "tuned_split"), ANSWER_COLUMNS,
        (
            Claim("tuned_split", "tuned_truncated", NEVER_ASKED_MATCH, "split articles teach more",
                  "切分保留了更多知识", "expected"),
        ),
    ),
    Experiment(
        "table", "GPT-2's tokenizer or a trained one, at equal time", "GPT-2 词表还是自训词表（等时间）",
        "The same articles and equal training time, which includes the training of the tokenizer. GPT-2's tokenizer "
        "needs several times as many tokens for Chinese.",
        "同样的文章、同样的训练秒数（训练词表的时间计入）。GPT-2 词表写中文要多用数倍词元。",
        ("base", "gpt2", "tuned", "tuned_gpt2"),
        (BITS_PER_CHAR, Column("steps", "steps", "better", 0), *ANSWER_COLUMNS),
        (
            Claim("base", "gpt2", BITS_PER_CHAR, "a trained tokenizer gives fewer bits per character",
                  "自训词表每字比特更少", "expected"),
            Claim("tuned", "tuned_gpt2", NEVER_ASKED_MATCH, "and more questions that were never asked are answered",
                  "对从未问过的主题也答得更准", "expected"),
        ),
    ),
    Experiment(
        "data", "The amount of pretraining data", "预训练数据多少",
        "A quarter, half or all of the articles, selected by hash (each subject has several articles, so fewer "
        "articles mean fewer wordings of each), equally many steps, then the same fine-tuning; and fine-tuning without"
        " pretraining.",
        "四分之一、一半或全部文章（按哈希取；每个主题有多种写法，取少即写法变少），步数相同，再做同样的微调；"
        "另有不预训练、直接微调。",
        ("tuned_nothing", "tuned_articles_0.25", "tuned_articles_0.5", "tuned"), ANSWER_COLUMNS,
        (
            Claim("tuned", "tuned_articles_0.5", NEVER_ASKED_MATCH, "all articles are better than half of them",
                  "全部好于一半"),
            Claim("tuned_articles_0.5", "tuned_articles_0.25", NEVER_ASKED_MATCH,
                  "half of them are better than a quarter",
                  "一半好于四分之一"),
            Claim("tuned_articles_0.25", "tuned_nothing", NEVER_ASKED_MATCH, "a quarter is better than none",
                  "四分之一好于没有"),
        ),
    ),
    Experiment(
        "questions", "The size of the fine-tuning set", "微调数据多少",
        "A quarter, half or all of the questions, and equally many steps. The trained questions that are asked are in "
        "all three sets.",
        "四分之一、一半或全部问题，步数相同。所问的训练题三者都有。",
        ("tuned_questions_0.25", "tuned_questions_0.5", "tuned"), ANSWER_COLUMNS,
        (
            Claim("tuned", "tuned_questions_0.25", NEVER_ASKED_MATCH,
                  "with more questions, more that were never asked are answered",
                  "问题越多，对从未问过的主题答得越准"),
            Claim("tuned_questions_0.25", "tuned", TRAINED_MATCH,
                  "fewer questions, seen more often, are memorized better",
                  "问题越少、看得越多，背得越熟", "expected"),
        ),
    ),
    Experiment(
        "overfitting", "Over-fitting", "过拟合",
        "Pretraining for many epochs, and fine-tuning for many epochs: how many questions the models answer at the end "
        "and, in fine-tuning, after each epoch (plot).",
        "多轮预训练与多轮微调之后还会什么；微调逐轮的变化见图。",
        ("tuned", "tuned_long", "tuned_pretrained_long"), (*ANSWER_COLUMNS, NEVER_SEEN_F),
        (
            Claim("tuned_long", "tuned", TRAINED_MATCH, "many epochs of fine-tuning help with trained questions",
                  "多轮微调更能背出训练过的问题"),
            Claim("tuned", "tuned_long", NEVER_ASKED_MATCH,
                  "and harm with questions that were never asked", "而对从未问过的主题有害"),
            Claim("tuned", "tuned_long", NEVER_SEEN_F,
                  "and with questions about subjects never seen", "对从未见过的主题也有害"),
            Claim("tuned_pretrained_long", "tuned", NEVER_ASKED_MATCH,
                  "many epochs of pretraining help with questions that were never asked",
                  "多轮预训练对从未问过的主题有益", "expected"),
        ),
    ),
    Experiment(
        "perplexity", "Perplexity of pretrained and fine-tuned", "预训练与微调的困惑度",
        "Pretrained: on articles about subjects never seen. Fine-tuned: on answers about subjects never asked about. "
        "These are two kinds of text; the report compares them.",
        "预训练：从未见过主题的文章；微调：从未问过主题的答案；与报告一样，比较的是两种文本。",
        ("base", "pretrained_long", "tuned", "tuned_long"), (PERPLEXITY, NATS_PER_TOKEN),
        (
            Claim("tuned", "base", PERPLEXITY, "the fine-tuned model's perplexity is lower", "微调后的困惑度更低"),
        ),
    ),
)  # fmt: skip
