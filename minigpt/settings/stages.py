"""Every setting, in a dataclass for each stage: its default, unit, range and meaning. How they are given: parse.py.

The small classes are groups that several scripts share; each script has one class, composed of groups and fields of
its own, with the script's path in SCRIPT. A checkpoint contains the `TrainSettings` of its run and no others.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import ClassVar

# The cleaning steps in the order in which they run, and what each does.
CLEANING = {
    "controls": "removes control and zero-width characters",
    "widths": "makes full-width letters and digits, and other compatibility forms, plain (NFKC, but for punctuation)",
    "simplify": "converts traditional characters to simplified ones (OpenCC)",
    "chat_marks": "removes the marks of chat templates, such as <|im_start|>user and </s>",
    "templates": "removes remnants of templates, tables, references and links",
    "title": "removes the first paragraph where it is the title",
    "litter": "removes empty brackets and quotes, -{}-, div tags and line breaks",
    "short": "drops articles of fewer than min_chars characters",
    "foreign": "drops articles with less than min_chinese_share of Han characters",
    "boilerplate": "drops disambiguation pages, redirects and lists of links",
    "near": "drops articles that nearly repeat an earlier one (MinHash)",
}
SWEPT = ["temperature", "top_k", "top_p", "frequency_penalty", "repetition_penalty"]
MISTAKES = ["dropped", "doubled", "swapped", "wrong", "order"]


def setting(default, help, choices=None, low=None, high=None, below=None, replaces=None):
    """A field: default, meaning, allowed values, least value, largest value, value that it must be below.

    replaces: the setting whose place this one takes where it is above 0.
    """
    metadata = {"help": help, "choices": choices, "low": low, "high": high, "below": below, "replaces": replaces}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def share(default, help):
    """A field for a share: at least 0 and below 1."""
    return setting(default, help, low=0, below=1)


def same_as(stage, name, default=None, choices=None):
    """A field of another stage again, with its meaning and range, and with another default or other choices."""
    known = next(f for f in fields(stage) if f.name == name)
    if default is None:
        default = known.default_factory() if isinstance(known.default_factory, type(lambda: 0)) else known.default
    return setting(default, **{**known.metadata, **({"choices": choices} if choices else {})})


class Stage:
    """What the settings of every script have."""

    SCRIPT: ClassVar[str]
    given: ClassVar[frozenset] = frozenset()  # names of the settings that a file or a flag has set

    def to_dict(self):
        """The settings as a plain dict."""
        return asdict(self)


# Groups that several scripts share.


@dataclass
class ArticleFiles:
    input_dir: list[str] = setting(["data/wiki_sample"], "folders of articles, walked to any depth, or files")
    text_field: str = setting(
        "text", "the field that a text is in, such as content; tasks: of a pair two (a,b), '' for the known names"
    )
    plain_text: bool = setting(
        False, "read .txt files, too: documents between blank lines or <|endoftext|>, or one a line"
    )
    encoding: str = setting("", "encoding of the files, such as gb18030; '': recognized by their content")


@dataclass
class CleaningSteps:
    clean: list[str] = setting(
        ["controls", "widths", "chat_marks", "title", "litter"], "cleaning steps, in any order", list(CLEANING)
    )
    min_chars: int = setting(50, "step short: fewest characters of an article", low=0)
    min_chinese_share: float = share(0.5, "step foreign: least share of Han characters among an article's letters")


@dataclass
class HeldoutSubjects:
    heldout: str = setting("", "file with a subject a line: never asked about in fine-tuning (they are the test part)")


@dataclass
class RowSettings:
    tokenizer: str = setting("gpt2", "gpt2, the path of a trained .tiktoken file, or a Hugging Face folder")
    block_size: int = setting(512, "longest row, in tokens", low=8)
    val_share: float = share(
        0.05,
        "share of subjects in the validation part (of each document's rows, where there are fewer than 20; of a task's "
        "texts, where there are no dev_files; of the prompts of pairs, in objectives dpo and reward)",
    )


@dataclass
class QuestionForm:
    """How rows of questions are read, wherever they are."""

    question_field: str = setting(
        "", "the field of the question, or of a whole talk (a.b: field b of the object a); '': the known forms"
    )
    answer_field: str = setting("", "the field of the answer; '': the known forms")
    thinking: str = setting(
        "drop", "a model's thinking in answers (<think>, reasoning_content): drop or keep it", ["drop", "keep"]
    )
    encoding: str = same_as(ArticleFiles, "encoding")


@dataclass
class QuestionFiles(QuestionForm):
    qa_files: list[str] = setting(["sft/sample_qa.jsonl"], "files of question, answer, id")
    articles: list[str] = setting(
        [],
        "folders or files of the articles that the ids in qa_files name (one for all, or one each); []: split by id",
    )


@dataclass
class DeviceChoice:
    device: str = setting("auto", "auto (cuda, mps or cpu, the first that is there), or a torch device")


@dataclass
class Seed:
    seed: int = setting(1337, "seed of weights, order of rows, sampling and resampling", low=0)


@dataclass
class AnswerSampling:
    temperature: float = setting(0.1, "sharpness of sampling; 0: greedy", low=0)
    top_k: int = setting(20, "sample among the k likeliest tokens; 0: all", low=0)
    max_new_tokens: int = setting(225, "longest answer, in tokens", low=1)
    top_p: float = setting(1.0, "sample among the likeliest tokens that have this probability together", low=0, high=1)
    frequency_penalty: float = setting(0.0, "subtracted from a token's logit for each time it occurred before")
    repetition_penalty: float = setting(1.0, "divides the logits of tokens that occurred before; 1: none", low=0.01)
    stop: list[str] = setting([], "texts that end an answer and are not part of it")


@dataclass
class LocalModels(DeviceChoice):
    out_root: str = setting("out", "folder whose newest run is used without ckpt; the arena offers all models in it")
    dtype: str = setting(
        "auto",
        "compute type; auto: bfloat16 on GPUs that have it, on a CPU what a short timing finds fastest (int8: 8-bit "
        "weights, within 1% of float32's perplexity), in evaluations float32",
        ["auto", "float32", "bfloat16", "float16", "int8"],
    )
    max_batch: int = setting(32, "prompts that are answered together", low=1)
    compile: str = setting(
        "auto",
        "compiled code; auto: in training, torch.compile on CUDA with Triton; in generation CUDA's graphs, on a CPU "
        "numba's kernels for a model of 10M parameters or more",
        ["auto", "on", "off"],
    )


@dataclass
class CheckpointChoice:
    ckpt: list[str] = setting(
        [],
        "checkpoints or Hugging Face folders (sample.py, export.py, bench.py: one); in evaluations also runs' folders "
        "(all their checkpoints) and APIs' addresses (model@http://…, or http://…); []: the newest under out_root",
    )
    base: str = setting("", "checkpoint or folder that adapters were trained on; '': where it was then")


@dataclass
class Measuring(CheckpointChoice, Seed, DeviceChoice):
    data_dir: str = setting("data/processed", "folder of the rows; '' (report): that of the checkpoint's training")
    out_root: str = same_as(LocalModels, "out_root")
    split: str = setting("", "part measured; '': val, and where questions are asked test", ["", "train", "val", "test"])
    resamples: int = setting(1000, "resamples of the bootstrap intervals; 0: no intervals", low=0)
    check_leak: bool = setting(True, "look for the measured rows among the training rows first, and report it")
    json: str = setting("", "file that the figures are written to, as JSON")
    csv: str = setting("", "file that the figures of each article or question are written to, as CSV")


@dataclass
class Asking(AnswerSampling, LocalModels, Measuring, QuestionForm):
    questions: str = setting("", "file of questions and answers to ask; '': those of data_dir's part")
    max_samples: int = setting(0, "questions asked (drawn by seed); 0: all", low=0)


@dataclass
class WordedTasks:
    label_words: list[str] = setting(
        [], "words that stand for labels in prompts and answers: label:word, such as 0:差评,1:好评; []: the labels"
    )


@dataclass
class PlotFile:
    plot: str = setting("", "file of the plot, a PNG; an SVG is written beside it; '': a file in the run's folder")


@dataclass
class Listening:
    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0: all addresses of this machine")
    port: int = setting(5000, "port to listen on; 0: a free one", low=0, high=65535)
    max_prompt_chars: int = setting(32768, "longest prompt, in characters (or token ids)", low=1)
    max_tokens_limit: int = setting(4096, "most tokens that a request may ask for", low=1)
    request_seconds: float = setting(120.0, "seconds after which a request ends with what it has", low=0.1)


# Preparing.


@dataclass
class DownloadSettings(Stage):
    SCRIPT = "data/download.py"
    urls: list[str] = setting([], "addresses, or files of them (a line each: address [sha256] [bytes]); []: dataset")
    dataset: str = setting("wikimedia/wikipedia/20231101.zh", "a Hugging Face dataset, and a folder in it")
    mirror: str = setting("", "address in place of huggingface.co, such as https://hf-mirror.com; '': HF_ENDPOINT")
    download_dir: str = setting("data/downloads", "folder that the files are written to")
    retries: int = setting(8, "tries again after a broken connection without progress, for each file", low=0)
    stall_seconds: float = setting(30.0, "seconds without a byte after which a connection is broken", low=0.1)


@dataclass
class TokenizerSettings(QuestionForm, HeldoutSubjects, CleaningSteps, ArticleFiles, Stage):
    SCRIPT = "data/train_tokenizer.py"
    tokenizer_path: str = setting("data/tokenizer.tiktoken", "where the trained tokenizer is written")
    tokenizer_vocab: int = setting(8192, "ids of the trained tokenizer, its 3 special ids counted", low=1)
    max_token_chars: int = setting(8, "longest run of Han characters that one token may span", low=1)
    tokenizer_qa: list[str] = setting([], "files of questions and answers that the tokenizer is trained on as well")


@dataclass
class PrepareSettings(RowSettings, HeldoutSubjects, CleaningSteps, ArticleFiles, Stage):
    SCRIPT = "data/prepare.py"
    near_share: float = share(0.8, "step near: share of common shingles from which an article repeats an earlier one")
    weights: list[float] = setting(
        [],
        "how often the articles of each input_dir are taken in training: 2 twice, 0.5 a half of them; []: all once",
        low=0,
        high=100,
    )
    data_dir: str = same_as(Measuring, "data_dir")
    overflow: str = setting(
        "auto",
        "of a long article: truncate drops the rest, split makes more rows; auto: split plain text, and all texts of "
        "a corpus of fewer than 20 documents, else truncate",
        ["auto", "truncate", "split"],
    )
    report: bool = setting(False, "write report.html beside the rows: lengths, characters, what was dropped")
    workers: int = setting(0, "processes that clean and encode; 0: one a core; any number gives the same bytes", low=0)


@dataclass
class PrepareSftSettings(RowSettings, HeldoutSubjects, QuestionFiles, Stage):
    SCRIPT = "data/prepare_sft.py"
    text_field: str = same_as(ArticleFiles, "text_field")
    plain_text: bool = same_as(ArticleFiles, "plain_text")
    clean: list[str] = same_as(CleaningSteps, "clean")
    sft_data_dir: str = setting("data/processed_sft", "folder of the fine-tuning rows")
    test_share: float = share(
        0.05, "share of subjects (of a task's texts) in the test part where no heldout file (no test_files) is given"
    )
    turns: str = setting(
        "each",
        "rows of a chat: each turn alone, the first alone, or joined (all turns in one row)",
        ["each", "first", "joined"],
    )
    system: str = setting("drop", "system messages: drop, or keep them at the head of their rows", ["drop", "keep"])


@dataclass
class PrepareTaskSettings(RowSettings, Stage):
    SCRIPT = "data/prepare_task.py"
    task_files: list[str] = setting(
        ["data/task_sample/field_train.jsonl"],
        "files of labelled texts (text, label), pairs (text_a, text_b, label) or tagged texts (text, tags)",
    )
    dev_files: list[str] = setting([], "files of the validation part; []: a share of task_files (by the texts' hash)")
    test_files: list[str] = setting([], "files of the test part; []: a share of task_files (by the texts' hash)")
    text_field: str = same_as(ArticleFiles, "text_field", "")
    label_field: str = setting("", "the field of the label or the tags; '': the known names")
    labels: list[str] = setting(
        [], "all labels in their order; numbers in a file count from 0; []: those found, sorted"
    )
    encoding: str = same_as(ArticleFiles, "encoding")
    task_data_dir: str = setting("data/processed_task", "folder of the task's rows")
    val_share: float = same_as(RowSettings, "val_share", 0.1)
    test_share: float = same_as(PrepareSftSettings, "test_share", 0.1)


@dataclass
class GenerateSettings(CleaningSteps, ArticleFiles, Stage):
    SCRIPT = "sft/sft_generate.py"
    api_base: str = setting(
        "http://localhost:1234/v1",
        "address of an OpenAI-compatible API (LM Studio's; Ollama: port 11434, vLLM: 8000); key: OPENAI_API_KEY",
    )
    api_model: str = setting("", "the model's name there; '': the first that it offers")
    saves: str = setting("sft/sft_saves.jsonl", "file that accepted pairs are appended to")
    rejects: str = setting("", "file of the articles that failed for good, with the replies; '': beside saves")
    concurrency: int = setting(4, "requests at once", low=1)
    requests_per_minute: float = setting(0.0, "most requests a minute; 0: no limit", low=0)
    articles_per_request: int = setting(1, "articles a request; more is quicker and worse, as the report found", low=1)
    article_sample: float = setting(1.0, "share of the articles asked about (by hash), 0 to 1", low=0, high=1)
    article_chars: int = setting(2000, "characters of an article that the model is shown", low=50)
    min_pairs: int = setting(3, "fewest pairs an article", low=1)
    max_pairs: int = setting(6, "most pairs an article", low=1)
    longest_question: int = setting(15, "longest question, in characters", low=1)
    longest_answer: int = setting(300, "longest answer, in characters", low=1)
    tries: int = setting(4, "replies asked for before an article is given up", low=1)
    wait_minutes: float = setting(30.0, "minutes to wait for a server that is down, busy or failing", low=0)
    temperature: float = same_as(AnswerSampling, "temperature", 0.45)
    max_new_tokens: int = same_as(AnswerSampling, "max_new_tokens", 2048)
    request_seconds: float = same_as(Listening, "request_seconds")
    api_extra: str = setting("", 'JSON object whose fields each request has too, such as {"reasoning_effort": "none"}')


@dataclass
class CorrectionDataSettings(Seed, CleaningSteps, ArticleFiles, Stage):
    SCRIPT = "sft/make_correction.py"
    corrections: str = setting("sft/corrections.jsonl", "file of wrong and right sentences that is written")
    mistakes: list[str] = setting(
        MISTAKES, "a character left out, doubled, swapped with the next, replaced; words in wrong order", MISTAKES
    )
    unchanged_share: float = share(0.3, "share of sentences that stay right")
    variants: int = setting(1, "rows made of a sentence, each with another mistake", low=1)
    max_sentences: int = setting(0, "sentences used (drawn by seed), held in memory; 0: all", low=0)
    max_sentence_chars: int = setting(60, "longest sentence used, in characters", low=4)


@dataclass
class InstructionDataSettings(WordedTasks, Seed, Stage):
    SCRIPT = "sft/make_instructions.py"
    tasks: list[str] = setting([], "folders of tasks, of data/prepare_task.py, whose train parts are told in words")
    leave_out: list[str] = setting([], "names of tasks that are left out (a folder's, without processed_)")
    max_examples: int = setting(0, "examples used of each task (drawn by seed); 0: all", low=0)
    instructions: str = setting("sft/instructions.jsonl", "file of questions and answers that is written")


@dataclass
class PreferenceDataSettings(AnswerSampling, LocalModels, CheckpointChoice, Seed, Stage):
    SCRIPT = "sft/make_preferences.py"
    data_dir: str = same_as(Measuring, "data_dir", "data/processed_sft")
    pairs: str = setting("sft/preferences.jsonl", "file of prompts with a chosen and a rejected answer that is written")
    samples: int = setting(8, "answers sampled for a question", low=1)
    max_samples: int = same_as(Asking, "max_samples")
    chosen: str = setting(
        "reference", "the chosen answer: the question's reference, or the best sample", ["reference", "best"]
    )
    rejected: str = setting(
        "frequent",
        "rejected answers: the most frequent ones among those that are worse, or the worst",
        ["frequent", "worst"],
    )
    min_gap: float = setting(0.1, "least difference between the scores of a pair's answers", low=0, high=1)
    pairs_a_question: int = setting(1, "most pairs of a question", low=1)
    temperature: float = same_as(AnswerSampling, "temperature", 1.0)
    top_k: int = same_as(AnswerSampling, "top_k", 0)
    max_batch: int = same_as(LocalModels, "max_batch", 256)


# Training.

MATRICES = ["q", "k", "v", "o", "gate", "up", "down"]


@dataclass
class Adapting:
    """What a fine-tuning trains. Checkpoints of adapters contain these settings."""

    method: str = setting(
        "full",
        "what trains: full (everything), lora, adapter (bottlenecks), prompt, p-tuning or prefix (virtual tokens), or "
        "head (a task's output layer alone); dpo, reward, grpo and ppo: everything, for that objective",
        ["full", "lora", "adapter", "prompt", "p-tuning", "prefix", "head", "dpo", "reward", "grpo", "ppo"],
    )
    rank: int = setting(8, "lora: rank of a matrix's update", low=1)
    alpha: float = setting(16.0, "lora: the update is scaled by alpha / rank", low=0)
    lora_dropout: float = share(0.0, "lora: share of the update's inputs dropped in training")
    matrices: list[str] = setting(
        MATRICES,
        "lora: matrices that are updated: queries, keys, values and output of the attention; gate, up and down of the "
        "MLP (gpt2: q, k and v are one matrix, and there is no gate)",
        MATRICES,
    )
    lora_init: str = setting(
        "kaiming",
        "lora: start of A: kaiming, as in peft, or gaussian (standard deviation 1/√rank): it is larger, take a quarter "
        "of the learning rate",
        ["kaiming", "gaussian"],
    )
    dora: bool = setting(False, "lora: train each row's length apart from its direction (DoRA)")
    adalora_rank: int = setting(
        0, "lora: mean rank that is left at the end, the most important parts of all matrices (AdaLoRA); 0: rank", low=0
    )
    bottleneck: int = setting(64, "adapter: width of the bottlenecks", low=1)
    virtual_tokens: int = setting(20, "prompt, p-tuning, prefix: number of virtual tokens", low=1)
    prompt_text: str = setting("", "prompt, p-tuning, prefix: text that the virtual tokens begin as; '': random tokens")
    prefix_width: int = setting(
        0,
        "p-tuning, prefix: width of the encoder that makes the virtual tokens; 0: n_embd, in prefix no encoder",
        low=0,
    )
    quantize: str = setting("none", "the base, which is frozen: none, or nf4 (4 bits: QLoRA)", ["none", "nf4"])


@dataclass
class Preferring:
    """What a fine-tuned model is tuned for further: preferences and rewards."""

    preferences: list[str] = setting(
        [], "dpo, reward: files of {prompt, chosen, rejected}, from the arena's export or sft/make_preferences.py"
    )
    val_share: float = same_as(RowSettings, "val_share")
    beta: float = setting(0.1, "dpo: how strongly the model is held to the one that it began as", low=1e-6)
    chosen_weight: float = setting(
        0.0, "dpo: weight of the chosen answers' own loss (nats a token), which is added", low=0
    )
    rewards: list[str] = setting(
        ["exact"],
        "grpo, ppo: what an answer is rewarded for, name or name:weight: exact (the reference word for word), rouge_l, "
        "numbers, format",
    )
    reward_model: str = setting("", "grpo, ppo: checkpoint of objective reward that rewards, in place of rewards")
    group_size: int = setting(8, "grpo, ppo: answers that are sampled of a question", low=1)
    rollout_questions: int = setting(32, "grpo, ppo: questions that are asked before an update", low=1)
    updates: int = setting(4, "grpo, ppo: optimizer steps on the answers that were sampled together", low=1)
    rollout_temperature: float = setting(1.0, "grpo, ppo: temperature of sampling", low=0.01)
    rollout_tokens: int = setting(48, "grpo, ppo: longest sampled answer, in tokens", low=1)
    clip: float = setting(0.2, "grpo, ppo: a token's ratio of probabilities counts within 1 ± this", low=0)
    kl_weight: float = setting(
        0.02, "weight of the KL divergence to the model that it began as: grpo in the loss, ppo in the reward", low=0
    )
    value_weight: float = setting(0.5, "ppo: weight of the value head's loss", low=0)


@dataclass
class TrainSettings(Preferring, Adapting, DeviceChoice, Seed, Stage):
    SCRIPT = "train.py"
    # The run
    init_from: str = setting(
        "scratch", "scratch, resume (goes on with out_dir), or a checkpoint or Hugging Face folder"
    )
    base: str = same_as(CheckpointChoice, "base")
    data_dir: str = same_as(Measuring, "data_dir")
    out_dir: str = setting("out/pretrain", "the run's folder: checkpoints and log.jsonl")
    objective: str = setting(
        "causal",
        "causal (the next token), mlm (pretraining as BERT's: masked tokens, which attend in both directions); of a "
        "fine-tuned model: dpo (preferences), reward (a reward model of preferences), grpo or ppo (rewards)",
        ["causal", "mlm", "dpo", "reward", "grpo", "ppo"],
    )
    mask_share: float = setting(0.15, "mlm: share of the tokens that are to be found", low=0.01, high=0.9)
    both_ways: bool = setting(False, "tasks: attend in both directions, whatever the base has learned")
    # Model
    block_size: int = same_as(RowSettings, "block_size")
    vocab_size: int = setting(0, "rows of the embedding; 0: the tokenizer's ids, rounded up to a multiple of 64", low=0)
    n_layer: int = setting(12, "transformer blocks", low=1)
    architecture: str = setting(
        "gpt2", "gpt2 (2019), or qwen3: RMSNorm, rotary positions, query and key norms, SwiGLU", ["gpt2", "qwen3"]
    )
    n_head: int = setting(12, "attention heads a block", low=1)
    n_kv_head: int = setting(0, "heads of keys and values, which several attention heads share; 0: n_head", low=0)
    n_embd: int = setting(768, "width of the model", low=1)
    n_inner: int = setting(0, "width of the MLP; 0: 4 n_embd, in qwen3 8/3 n_embd (its MLP has three matrices)", low=0)
    tied: bool = setting(True, "the output layer is the embedding's matrix; False: a matrix of its own")
    dropout: float = share(0.0, "share of activations dropped in training")
    bias: bool = setting(False, "gpt2: biases in linear layers and layer norms, as GPT-2 has them")
    # Length
    max_iters: int = setting(10000, "optimizer steps", low=0)
    max_epochs: float = setting(0.0, "passes over the rows; above 0 it replaces max_iters", low=0, replaces="max_iters")
    max_seconds: float = setting(0.0, "shorten the run, and its schedule, to so many seconds; 0: never", low=0)
    # Batches
    batch_size: int = setting(16, "rows a forward pass", low=1)
    batch_tokens: int = setting(
        0,
        "tokens a forward pass, padding counted (rows have like lengths); above 0 it replaces batch_size",
        low=0,
        replaces="batch_size",
    )
    gradient_accumulation_steps: int = setting(1, "forward passes an optimizer step, of all processes together", low=1)
    merge_batches: bool = setting(
        True, "CUDA, with batch_tokens: make fewer, larger passes of a step where the GPU's memory allows it"
    )
    sampling: str = setting(
        "random", "order of rows: a fresh permutation each epoch, or the file's (traverse)", ["random", "traverse"]
    )
    train_on_eot: bool = setting(True, "pretraining: EOT is a target too, so the model learns to stop")
    replay_share: float = share(0.0, "fine-tuning: share of a step's rows that are rows of pretraining")
    replay_dir: str = setting("", "fine-tuning: folder of the rows for replay_share; '': that of the base's training")
    # Optimizer
    optimizer: str = setting(
        "muon",
        "muon (matrices of the blocks; AdamW for the rest) or adamw; in little memory: lomo (SGD within the backward "
        "pass) or mezo (two forward passes)",
        ["muon", "adamw", "lomo", "mezo"],
    )
    mezo_epsilon: float = setting(1e-3, "mezo: its two losses are at the weights ± this times N(0, 1)", low=1e-6)
    learning_rate: float = setting(
        4e-3,
        "peak learning rate of AdamW (with adamw alone take a quarter or less), of lomo (its authors: 3e-2) or of mezo "
        "(1e-7 for 13B weights, more for fewer; LoRA 5e-5, prefixes 1e-3)",
        low=0,
    )
    muon_learning_rate: float = setting(0.02, "Muon's peak learning rate, for the matrices", low=0)
    head_learning_rate: float = setting(
        1e-3, "AdamW's peak learning rate of a task's output layer, which is new", low=0
    )
    min_lr_ratio: float = setting(0.1, "learning rate at the end, as a share of the peak", low=0)
    decay_lr: bool = setting(True, "linear decay after warm-up; False keeps the peak")
    warmup_iters: int = setting(200, "steps of linear warm-up", low=0)
    weight_decay: float = setting(0.1, "decoupled weight decay of the matrices", low=0)
    beta1: float = setting(0.9, "AdamW's first moment decay", low=0)
    beta2: float = setting(0.95, "AdamW's second moment decay", low=0)
    grad_clip: float = setting(1.0, "largest norm of the gradient; 0: no clipping (lomo and mezo: never)", low=0)
    # Watching
    eval_interval: int = setting(500, "steps between validations (and saves)", low=1)
    eval_iters: int = setting(0, "validation batches of full rows each time; 0: the whole part", low=0)
    log_interval: int = setting(10, "steps between lines of log.jsonl", low=1)
    patience: int = setting(0, "stop after this many validations without a new best; 0: never", low=0)
    stop_at_answered: float = setting(
        0.0,
        "fine-tuning: at each validation ask 200 training questions; stop once this share is answered; 0: do not ask",
        low=0,
        high=1,
    )
    keep_every: int = setting(0, "keep step_*.pt at the validations every so many steps; 0: none", low=0)
    tensorboard: bool = setting(False, "write TensorBoard's event files too (pip install tensorboard)")
    wandb: str = setting("", "Weights & Biases project to log to (pip install wandb); '': none")
    sample_prompt: str = setting("", "prompt of the sample shown at each validation; '': a validation row's start")
    watch_prompts: list[str] = setting(
        [], "prompts or questions: shown after each tenth of the run with the model's text"
    )
    # Device
    dtype: str = setting(
        "auto",
        "compute type; auto: bfloat16 on GPUs that have it, float32 on MPS, else what a short timing finds fastest",
        ["auto", "float32", "bfloat16", "float16"],
    )
    compile: str = same_as(LocalModels, "compile")
    fsdp: bool = setting(False, "torchrun: shard a model too large for one GPU over the processes (FSDP2)")
    tensor_parallel: int = setting(1, "torchrun: divide each matrix over so many processes", low=1)
    pipeline_parallel: int = setting(1, "torchrun: divide the layers over so many processes", low=1)
    deterministic: bool = setting(False, "CUDA: slower, deterministic kernels, so that resuming gives the same numbers")


# Generating and serving.


@dataclass
class SampleSettings(AnswerSampling, LocalModels, CheckpointChoice, Seed, Stage):
    SCRIPT = "sample.py"
    prompt: str = setting("", "prompt or question; '': from standard input, or typed in")


@dataclass
class ExportSettings(CheckpointChoice, Stage):
    SCRIPT = "export.py"
    out_root: str = same_as(LocalModels, "out_root")
    format: str = setting(
        "hf",
        "hf: a folder for transformers and vLLM; gguf: a file for llama.cpp, LM Studio and Ollama; ckpt: a checkpoint "
        "(these three merge an adapter into its base); peft: a folder of an adapter alone, for Hugging Face's peft",
        ["hf", "gguf", "ckpt", "peft"],
    )
    dtype: str = setting(
        "float32",
        "type of the weights; gguf alone: q8_0 and q4_0, blocks of 8-bit and 4-bit integers with a scale each",
        ["float32", "bfloat16", "float16", "q8_0", "q4_0"],
    )
    out: str = setting(
        "",
        "hf, peft: the folder that is written; gguf: the .gguf file, or the folder that it is put into; ckpt: the .pt "
        "file, or a run's folder; '': beside ckpt",
    )


@dataclass
class ServerSettings(Listening, LocalModels, CheckpointChoice, Stage):
    SCRIPT = "server.py"
    api_key: str = setting("", "key that clients must send; '': the environment's MINIGPT_API_KEY, if set")
    strict: bool = setting(False, "refuse requests with unknown fields; False: name these in X-Ignored-Fields")
    cors: list[str] = setting([], "origins whose pages may ask, such as http://localhost:3000; *: all")
    max_queue: int = setting(64, "prompts that may wait for a place; beyond: 429 with Retry-After", low=0)
    max_body_bytes: int = setting(1 << 20, "longest body of a request, in bytes", low=1024)
    stop_seconds: float = setting(30.0, "at a stop, time for what is under way, in seconds", low=0)


@dataclass
class ArenaSettings(Listening, LocalModels, Stage):
    SCRIPT = "sample_gradio.py"
    port: int = same_as(Listening, "port", 7860)
    auth: str = setting("", "user:password that the page asks for; '': the environment's MINIGPT_AUTH, if set, or none")
    peers: str = setting("config/arena_peers.json", "file of the remote models: name, address, perhaps a key")
    base: str = same_as(CheckpointChoice, "base")
    arena_dir: str = setting("arena", "folder of votes.jsonl, preferences.jsonl and flagged.csv")
    loaded_models: int = setting(3, "checkpoints in memory at once; the least recently used one is dropped", low=1)
    answer_chars: int = setting(32768, "longest answer that is taken from a peer, in characters", low=1)


# Measuring.


@dataclass
class PerplexitySettings(Measuring, Stage):
    SCRIPT = "evaluations-perplexity.py"
    batch_size: int = setting(0, "rows a forward pass; 0: found by itself", low=0)
    train_on_eot: bool = same_as(TrainSettings, "train_on_eot")


@dataclass
class GrammarSettings(PlotFile, CheckpointChoice, Seed, DeviceChoice, Stage):
    SCRIPT = "evaluations-grammar.py"
    grammar_files: list[str] = setting(
        ["data/grammar_sample"], "files or folders of right and wrong sentences (minimal pairs), as SLING or ZhoBLiMP"
    )
    out_root: str = same_as(LocalModels, "out_root")
    batch_size: int = same_as(PerplexitySettings, "batch_size")
    resamples: int = same_as(Measuring, "resamples")
    json: str = same_as(Measuring, "json")
    csv: str = setting("", "file that the figures of each pair are written to, as CSV")


@dataclass
class RougeSettings(Asking, Stage):
    SCRIPT = "evaluations-RougeL.py"
    show: int = setting(20, "pairs printed with question, reference, prediction, score", low=0)
    words: bool = setting(False, "Rouge-L over words (as jieba cuts them), too")


@dataclass
class CorrectionSettings(PlotFile, Asking, Stage):
    SCRIPT = "evaluations-correction.py"
    temperature: float = same_as(AnswerSampling, "temperature", 0.0)
    show: int = same_as(RougeSettings, "show")
    systems: list[str] = setting(
        [],
        "system prompts of the table: none (no prompt), texts, or files of them, a line each; of tasks also task (its "
        "instruction), and []: none and task",
    )
    shots: list[int] = setting([], "numbers of examples in the prompt, such as 0,1,4; []: no table", low=0)


@dataclass
class TasksSettings(WordedTasks, LocalModels, Measuring, Stage):
    SCRIPT = "evaluations-tasks.py"
    data_dir: str = same_as(Measuring, "data_dir", "data/processed_task")
    max_samples: int = same_as(Asking, "max_samples")
    page: str = setting("", "Markdown file that the figures are written to; plots of a report are written beside it")
    # Language models, which are told the task in words.
    shots: list[int] = same_as(CorrectionSettings, "shots", [0])
    systems: list[str] = same_as(CorrectionSettings, "systems")
    ways: list[str] = setting(
        [],
        "likelihood: the label whose word is likeliest behind the prompt; answer: the label in the model's answer; []: "
        "likelihood, of fine-tuned models both; of tags answer",
        ["likelihood", "answer"],
    )
    label_score: str = setting(
        "auto",
        "likelihood: sum over a label's tokens, mean over them, or calibrated: sum less that of an empty text; auto: "
        "sum of fine-tuned models, calibrated of others",
        ["auto", "sum", "mean", "calibrated"],
    )


@dataclass
class DecodingSettings(PlotFile, Asking, Stage):
    SCRIPT = "evaluations-decoding.py"
    sweep: list[str] = setting(SWEPT, "what is varied, one at a time from the values given", SWEPT)


@dataclass
class ReportSettings(Asking, Stage):
    SCRIPT = "evaluations-report.py"
    max_samples: int = same_as(Asking, "max_samples", 500)
    data_dir: str = same_as(Measuring, "data_dir", "")
    sweep: list[str] = same_as(DecodingSettings, "sweep")
    grammar_files: list[str] = same_as(GrammarSettings, "grammar_files")
    page: str = setting(
        "evaluations.md", "Markdown file that the figures are written to; plots of a report are written beside it"
    )


@dataclass
class VisualizeSettings(PlotFile, Stage):
    SCRIPT = "visualize.py"
    runs: list[str] = setting([], "runs' folders or log.jsonl files; []: the newest under out_root")
    out_root: str = same_as(LocalModels, "out_root")
    together: bool = setting(False, "draw the runs in one panel (by seconds, unless --x is given)")
    x: str = setting("", "horizontal axis; '': step, together seconds", ["", "step", "tokens", "epoch", "seconds"])
    smooth: float = share(0.9, "weight of earlier values in the smoothed training loss; less in a short run")
    figures: list[str] = setting([], "JSON files of evaluations over checkpoints, whose curves are drawn as well")
    live: bool = setting(False, "draw again every few seconds until Ctrl-C")


@dataclass
class BenchSettings(CheckpointChoice, QuestionFiles, ArticleFiles, DeviceChoice, Stage):
    SCRIPT = "bench.py"
    quick: bool = setting(False, "measure in five to ten minutes at most, and leave out what takes longer")
    minimind: str = setting(
        "",
        "train: folder of a clone of github.com/jingyaogong/minimind, whose pretraining is measured too (it needs pip "
        "install transformers datasets); '': is not",
    )
    json: str = same_as(Measuring, "json")
    docs: str = setting("docs/benchmarks.md", "Markdown file that the table of a whole measurement goes into")


# About half of the embedded corpus, so that many runs fit into an hour.
EXPERIMENT_FILES = [
    f"data/wiki_sample/{name}.jsonl"
    for name in ("elements", "provinces", "rivers", "writers", "dynasties", "solar_terms")
]


@dataclass
class ExperimentSettings(QuestionForm, CleaningSteps, ArticleFiles, Stage):
    SCRIPT = "experiments/run.py"
    input_dir: list[str] = same_as(ArticleFiles, "input_dir", EXPERIMENT_FILES)
    qa_files: list[str] = same_as(QuestionFiles, "qa_files")
    articles: list[str] = same_as(QuestionFiles, "articles", ["data/wiki_sample"])
    workers: int = same_as(PrepareSettings, "workers")
    tokenizer_vocab: int = same_as(TokenizerSettings, "tokenizer_vocab", 2048)
    val_share: float = same_as(RowSettings, "val_share", 0.1)
    block_size: int = same_as(RowSettings, "block_size", 128)
    n_layer: int = same_as(TrainSettings, "n_layer", 3)
    n_head: int = same_as(TrainSettings, "n_head", 2)
    n_embd: int = same_as(TrainSettings, "n_embd", 128)
    max_iters: int = same_as(TrainSettings, "max_iters", 1300)
    tune_iters: int = setting(400, "optimizer steps of a fine-tuning", low=1)
    batch_size: int = same_as(TrainSettings, "batch_size")
    learning_rate: float = same_as(TrainSettings, "learning_rate")
    muon_learning_rate: float = same_as(TrainSettings, "muon_learning_rate", 0.04)
    dtype: str = same_as(TrainSettings, "dtype")
    seeds: list[int] = setting([1, 2, 3], "seeds, with each of which every run is made", low=0)
    out_dir: str = same_as(TrainSettings, "out_dir", "out/experiments")
    docs: str = same_as(BenchSettings, "docs", "docs/experiments.md")


@dataclass
class TuningPageSettings(Stage):
    SCRIPT = "experiments/run.py tuning"
    base_config: str = setting("config/demo.py", "settings file of the base: articles, tokenizer, pretraining")
    questions_config: str = setting("config/demo_sft.py", "settings file of the questions: data/prepare_sft.py's")
    field_config: str = setting("config/demo_task.py", "settings file of the classification: data/prepare_task.py's")
    correction_config: str = setting("config/correction.py", "settings file of the corrections: make_correction.py's")
    tune_iters: int = same_as(ExperimentSettings, "tune_iters", 350)
    batch_size: int = same_as(TrainSettings, "batch_size", 32)
    max_samples: int = same_as(Asking, "max_samples", 400)
    dtype: str = same_as(TrainSettings, "dtype", "float32")
    workers: int = same_as(PrepareSettings, "workers")
    seeds: list[int] = same_as(ExperimentSettings, "seeds")
    out_dir: str = same_as(TrainSettings, "out_dir", "out/tuning")
    docs: str = same_as(BenchSettings, "docs", "docs/tuning.md")


STAGES = [
    DownloadSettings, TokenizerSettings, PrepareSettings, PrepareSftSettings, PrepareTaskSettings, GenerateSettings,
    CorrectionDataSettings, InstructionDataSettings, PreferenceDataSettings, TrainSettings, SampleSettings,
    ExportSettings, ServerSettings,
    ArenaSettings, PerplexitySettings, RougeSettings, CorrectionSettings, TasksSettings, DecodingSettings,
    ReportSettings, VisualizeSettings, BenchSettings, ExperimentSettings, TuningPageSettings,
]  # fmt: skip
