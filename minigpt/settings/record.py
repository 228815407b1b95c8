"""Every setting: its default, its unit and what it means, in one place. How they are given: parse.py."""

from dataclasses import asdict, dataclass, fields

from minigpt.settings.scripts import ANSWERS, ASKING, GENERATION, MEASURING, ON_DEVICE, ON_MODEL, setting

# The cleaning steps in the order that they are taken, and what each does.
CLEANING = {
    "controls": "control and zero-width characters go",
    "widths": "full-width letters and digits, and other compatibility forms, become plain (NFKC, but for punctuation)",
    "simplify": "traditional characters become simplified (OpenCC)",
    "templates": "remnants of templates, tables, references and links go",
    "title": "the first paragraph goes where it is the title",
    "litter": "empty brackets and quotes, -{}-, div tags and line breaks go",
    "short": "articles of fewer than min_chars characters are dropped",
    "foreign": "articles with less than min_chinese_share of Han characters are dropped",
    "boilerplate": "disambiguation pages, redirects and lists of links are dropped",
    "near": "articles that nearly repeat an earlier one are dropped (MinHash)",
}


@dataclass
class Settings:
    # Text from elsewhere
    urls: list[str] = setting(
        [],
        "download",
        "addresses to fetch, or text files of them (a line each: address, sha256 and bytes, the last two if known); "
        "[]: all files of dataset",
    )
    dataset: str = setting(
        "wikimedia/wikipedia/20231101.zh",
        "download",
        "a Hugging Face dataset and a folder in it: the Chinese Wikipedia",
    )
    mirror: str = setting(
        "",
        "download",
        "address that takes the place of https://huggingface.co, such as https://hf-mirror.com; '': the environment's "
        "HF_ENDPOINT, if set",
    )
    download_dir: str = setting("data/downloads", "download", "folder that the files are written to")
    retries: int = setting(
        8, "download", "tries again after a broken connection without progress, for each file", low=0
    )
    stall_seconds: float = setting(
        30.0, "download", "seconds without a byte after which a connection is broken", low=0.1
    )
    # Text in
    input_dir: list[str] = setting(
        ["data/wiki_sample"],
        "prepare tokenizer generate correction_data bench experiments",
        "folders of articles, walked to any depth, or files",
    )
    qa_files: list[str] = setting(
        ["sft/sample_qa.jsonl"], "prepare_sft bench experiments", "jsonl files of question, answer, id"
    )
    articles: list[str] = setting(
        [],
        "prepare_sft bench experiments",
        "folders or files of the articles that the ids in qa_files name (one for all, or one each), so that the parts "
        "are split by subject; []: split by id",
    )
    text_field: str = setting(
        "text", "prepare correction_data", "the field that an article's text is in, such as content"
    )
    plain_text: bool = setting(
        False, "prepare", "read .txt files, too: documents with a blank line between them, or one a line"
    )
    workers: int = setting(
        0,
        "prepare experiments",
        "processes that clean and encode; 0: one a core; any number gives the same bytes",
        low=0,
    )
    weights: list[str] = setting(
        [],
        "prepare",
        "how often the articles of each input_dir are taken in training: 2 is twice, 0.5 a half of them (by hash); "
        "[]: all once",
    )
    report: bool = setting(False, "prepare", "write report.html beside the rows: lengths, characters, what was dropped")
    clean: list[str] = setting(
        ["controls", "widths", "title", "litter"],
        "tokenizer prepare prepare_sft generate correction_data",
        "cleaning steps, in any order",
        list(CLEANING),
    )
    min_chars: int = setting(
        50, "tokenizer prepare generate correction_data", "step short: fewest characters of an article", low=0
    )
    min_chinese_share: float = setting(
        0.5,
        "tokenizer prepare generate correction_data",
        "step foreign: least share of Han characters among an article's letters, 0 to 1",
    )
    near_share: float = setting(
        0.8, "prepare", "step near: share of common shingles (by MinHash) from which an article repeats an earlier one"
    )
    heldout: str = setting(
        "",
        "tokenizer prepare prepare_sft",
        "file with a subject a line: always pretrained on, never asked about in training (they make the test part)",
    )
    tokenizer: str = setting("gpt2", "prepare prepare_sft", "gpt2, or the path of a trained .tiktoken file")
    # The trained table
    tokenizer_path: str = setting("data/tokenizer.tiktoken", "tokenizer", "where the trained table is written")
    tokenizer_vocab: int = setting(8192, "tokenizer experiments", "ids in the trained table, its 3 special ids counted")
    max_token_chars: int = setting(
        8, "tokenizer", "longest run of Han characters that one token may span, in characters", low=1
    )
    tokenizer_qa: list[str] = setting(
        [], "tokenizer", "jsonl files of questions and answers that the table is trained on as well"
    )
    # Rows
    data_dir: str = setting(
        "data/processed",
        f"prepare train {MEASURING}",
        "folder of the rows; '': that of the checkpoint's training (report card)",
    )
    sft_data_dir: str = setting("data/processed_sft", "prepare_sft", "folder of the fine-tuning rows")
    overflow: str = setting(
        "truncate",
        "prepare",
        "article longer than a block: truncate drops the rest, split makes more rows",
        ["truncate", "split"],
    )
    val_share: float = setting(
        0.05, "prepare prepare_sft experiments", "share of subjects in the validation part, 0 to 1"
    )
    test_share: float = setting(
        0.05, "prepare_sft", "share of subjects in the test part where no heldout file is given, 0 to 1"
    )
    turns: str = setting(
        "each",
        "prepare_sft",
        "chats of several turns: each makes a row of every turn, first of the first alone, joined puts what was said "
        "before into the question",
        ["each", "first", "joined"],
    )
    # Questions and answers by a large model
    api_base: str = setting(
        "http://localhost:1234/v1",
        "generate",
        "address of an OpenAI-compatible API (this one is LM Studio's; Ollama: http://localhost:11434/v1, vLLM: "
        "http://localhost:8000/v1); a key comes from the environment's OPENAI_API_KEY",
    )
    api_model: str = setting("", "generate", "the model's name there; '': the first that it offers")
    saves: str = setting("sft/sft_saves.jsonl", "generate", "file that accepted pairs are appended to")
    rejects: str = setting(
        "", "generate", "file of the articles that failed for good, with the replies; '': beside saves"
    )
    concurrency: int = setting(4, "generate", "requests at once", low=1)
    requests_per_minute: float = setting(0.0, "generate", "most requests a minute; 0: no limit", low=0)
    articles_per_request: int = setting(
        1, "generate", "articles a request; more is quicker and worse, as the report found", low=1
    )
    article_sample: float = setting(1.0, "generate", "share of the articles asked about (by hash), 0 to 1", low=0)
    article_chars: int = setting(2000, "generate", "characters of an article that the model is shown", low=50)
    min_pairs: int = setting(3, "generate", "fewest pairs an article", low=1)
    max_pairs: int = setting(6, "generate", "most pairs an article", low=1)
    longest_question: int = setting(15, "generate", "longest question, in characters", low=1)
    longest_answer: int = setting(300, "generate", "longest answer, in characters", low=1)
    tries: int = setting(4, "generate", "replies asked for before an article is given up", low=1)
    wait_minutes: float = setting(
        30.0, "generate", "how long a server that is away, too busy or failing is waited for, in minutes", low=0
    )
    # Model
    block_size: int = setting(512, "prepare prepare_sft train experiments", "longest row, in tokens", low=8)
    vocab_size: int = setting(
        0, "train", "rows of the embedding; 0: the tokenizer's ids, rounded up to a multiple of 64", low=0
    )
    n_layer: int = setting(12, "train experiments", "transformer blocks", low=1)
    n_head: int = setting(12, "train experiments", "attention heads a block", low=1)
    n_embd: int = setting(768, "train experiments", "width of the model", low=1)
    dropout: float = setting(0.0, "train", "share of activations dropped in training, 0 to 1")
    bias: bool = setting(False, "train", "biases in linear layers and layer norms, as GPT-2 has them")
    # Training
    init_from: str = setting(
        "scratch", "train", "scratch, resume (goes on with out_dir), or a checkpoint's path (fine-tuning)"
    )
    out_dir: str = setting("out/pretrain", "train experiments", "the run's folder: checkpoints and log.jsonl")
    max_iters: int = setting(10000, "train experiments", "optimizer steps", low=0)
    max_epochs: float = setting(
        0.0, "train", "passes over the rows; above 0 it takes the place of max_iters", low=0, replaces="max_iters"
    )
    max_seconds: float = setting(
        0.0,
        "train",
        "shorten a run, and its schedule, that by its pace would take longer, in seconds; 0: never",
        low=0,
    )
    batch_size: int = setting(
        16, "train perplexity experiments", "rows a forward pass; 0 (measuring perplexity): found by itself", low=0
    )
    batch_tokens: int = setting(
        0,
        "train",
        "tokens a forward pass, padding counted: rows of like length are taken until so many are full; "
        "above 0 it takes the place of batch_size",
        low=0,
        replaces="batch_size",
    )
    gradient_accumulation_steps: int = setting(
        1, "train", "forward passes an optimizer step, over all processes together", low=1
    )
    sampling: str = setting(
        "random",
        "train",
        "order of rows: random is a fresh permutation each epoch, traverse the file's order",
        ["random", "traverse"],
    )
    train_on_eot: bool = setting(
        True, "train perplexity", "pretraining: EOT is a target too, so the model learns to stop"
    )
    optimizer: str = setting(
        "muon", "train", "muon (for the matrices of the blocks, AdamW for the rest), or adamw", ["muon", "adamw"]
    )
    learning_rate: float = setting(
        4e-3,
        "train experiments",
        "AdamW's peak learning rate; where it has the matrices too, a quarter of the default or less",
        low=0,
    )
    muon_learning_rate: float = setting(0.02, "train experiments", "Muon's peak learning rate, for the matrices", low=0)
    min_lr_ratio: float = setting(0.1, "train", "learning rate at the end, as a share of the peak", low=0)
    decay_lr: bool = setting(True, "train", "cosine decay after warm-up; False keeps the peak")
    warmup_iters: int = setting(200, "train", "steps of linear warm-up", low=0)
    weight_decay: float = setting(0.1, "train", "decoupled weight decay of the matrices", low=0)
    beta1: float = setting(0.9, "train", "AdamW's first moment decay", low=0)
    beta2: float = setting(0.95, "train", "AdamW's second moment decay", low=0)
    grad_clip: float = setting(1.0, "train", "largest norm of the gradient; 0: no clipping", low=0)
    # Watching a run
    eval_interval: int = setting(500, "train", "steps between validations (and saves)", low=1)
    eval_iters: int = setting(0, "train", "validation batches of full rows each time; 0: the whole part", low=0)
    log_interval: int = setting(10, "train", "steps between lines of log.jsonl", low=1)
    patience: int = setting(0, "train", "stop after this many validations without a new best; 0: never", low=0)
    stop_at_answered: float = setting(
        0.0,
        "train",
        "fine-tuning: at each validation ask 200 training questions, greedily, and stop once this share, 0 to 1, "
        "is answered word for word (ckpt.pt is then that model); 0: do not ask",
        low=0,
    )
    keep_every: int = setting(0, "train", "keep step_*.pt at the validations every so many steps; 0: none", low=0)
    tensorboard: bool = setting(False, "train", "write TensorBoard's event files too (pip install tensorboard)")
    wandb: str = setting("", "train", "Weights & Biases project to log to (pip install wandb); '': none")
    sample_prompt: str = setting(
        "", "train", "prompt of the sample shown at each validation; '': a validation row's start"
    )
    # Device
    device: str = setting("auto", ON_DEVICE, "auto (cuda, mps or cpu, the first that is there), or a torch device")
    dtype: str = setting(
        "auto",
        "train experiments",
        "compute type; auto: bfloat16 on CUDA cards that compute in it, on older ones float16 (with a loss scaler) or "
        "float32, on a CPU bfloat16 or float32, whichever a short timing finds faster; float32 on MPS",
        ["auto", "float32", "bfloat16", "float16"],
    )
    deterministic: bool = setting(
        False,
        "train",
        "CUDA: torch's deterministic kernels, which are slower, so that a resumed run has the very numbers of one "
        "never stopped (a CPU's are the same without it)",
    )
    fsdp: bool = setting(
        False,
        "train",
        "under torchrun: shard weights and optimizer over the processes (FSDP2), for a model too large for one card; "
        "False: each has all of them (DDP)",
    )
    compile: str = setting(
        "auto",
        "train server",
        "torch.compile; auto: in training on CUDA where Triton is there, in serving on a CPU where a C++ compiler is "
        "there (in the background: a minute or three of a CPU, then steps are two to three times as fast)",
        ["auto", "on", "off"],
    )
    seed: int = setting(
        1337, f"train sample {MEASURING} correction_data", "seed of weights, order of rows, sampling, resamples", low=0
    )
    # Checkpoints and sampling
    out_root: str = setting(
        "out",
        f"sample {MEASURING} visualize server arena",
        "folder whose newest run is used when no ckpt is named; the arena offers all that are in it",
    )
    ckpt: str = setting(
        "",
        f"sample {MEASURING} server",
        "a checkpoint's path (but for sample.py: several, by commas); in evaluations a run's folder stands for every "
        "checkpoint that is kept in it, and an address (model@http://…, or http://…) for a model behind an API; "
        "'': the newest under out_root",
    )
    prompt: str = setting("", "sample", "prompt or question; '': from standard input, or typed in")
    temperature: float = setting(0.1, ANSWERS, "sharpness of sampling; 0: greedy", low=0)
    top_k: int = setting(20, GENERATION, "sample among the k likeliest tokens; 0: all", low=0)
    max_new_tokens: int = setting(225, ANSWERS, "longest answer, in tokens", low=1)
    top_p: float = setting(
        1.0, GENERATION, "sample among the likeliest tokens that together have this probability, 0 to 1", low=0
    )
    frequency_penalty: float = setting(
        0.0, GENERATION, "taken off a token's logit for each time it stands in prompt or answer"
    )
    repetition_penalty: float = setting(
        1.0, GENERATION, "divides the logits of tokens that stand in prompt or answer; 1: none", low=0.01
    )
    stop: list[str] = setting([], GENERATION, "texts that end an answer and are not part of it")
    precision: str = setting(
        "auto",
        ON_MODEL,
        "what a model generates in; auto: bf16 on cards that compute in it, on a CPU what a short timing finds "
        "fastest (int8: weights in eight bits, within 1% of float32's perplexity); evaluations: float32",
        ["auto", "float32", "bf16", "int8"],
    )
    max_batch: int = setting(32, ON_MODEL, "prompts that are answered together", low=1)
    # Serving
    host: str = setting("127.0.0.1", "server arena", "address to listen at; 0.0.0.0: those of every network it is in")
    port: int = setting(5000, "server arena", "port to listen at (the arena's is 7860); 0: a free one", low=0)
    api_key: str = setting("", "server", "key that clients must send; '': the environment's MINIGPT_API_KEY, if set")
    cors: list[str] = setting([], "server", "origins whose pages may ask, such as http://localhost:3000; *: all")
    max_queue: int = setting(64, "server", "prompts that may wait for a place; beyond: 429 with Retry-After", low=0)
    max_body_bytes: int = setting(1 << 20, "server", "longest body of a request, in bytes", low=1024)
    max_prompt_chars: int = setting(32768, "server arena", "longest prompt, in characters (or token ids)", low=1)
    max_tokens_limit: int = setting(4096, "server arena", "most tokens that a request may ask for", low=1)
    request_seconds: float = setting(
        120.0, "server arena generate", "seconds after which a request ends with what it has", low=0.1
    )
    stop_seconds: float = setting(30.0, "server", "at a stop, time for what is under way, in seconds", low=0)
    # The arena
    auth: str = setting(
        "",
        "arena",
        "user:password that the page asks for; '': the environment's MINIGPT_AUTH, if set, or none",
    )
    peers: str = setting("config/arena_peers.json", "arena", "file of the remote models: name, address, perhaps a key")
    arena_dir: str = setting("arena", "arena", "folder of votes.jsonl and flagged.csv")
    loaded_models: int = setting(
        3, "arena", "checkpoints in memory at once; beyond, the least recently used one leaves", low=1
    )
    answer_chars: int = setting(32768, "arena", "longest answer that is taken from a peer, in characters", low=1)
    # Evaluation
    split: str = setting(
        "",
        MEASURING,
        "part measured: train, val or test; '': val, and where questions are asked test",
        ["", "train", "val", "test"],
    )
    questions: str = setting("", ASKING, "jsonl of questions and answers to ask; '': those of data_dir's part")
    max_samples: int = setting(0, ASKING, "questions asked (drawn by seed); 0: all", low=0)
    show: int = setting(20, "rouge correction", "pairs printed with question, reference, prediction, score", low=0)
    words: bool = setting(False, "rouge", "Rouge-L over words (as jieba cuts them), too")
    resamples: int = setting(1000, MEASURING, "resamples of the bootstrap intervals; 0: no intervals", low=0)
    check_leak: bool = setting(
        True, MEASURING, "look for the measured rows among those trained on first, and say what was found"
    )
    json: str = setting("", f"{MEASURING} bench", "file that the figures are written to, as JSON")
    csv: str = setting("", MEASURING, "file that the figures of each article or question are written to, as CSV")
    page: str = setting("evaluations.md", "card", "Markdown file of the report card; its plots go beside it")
    sweep: list[str] = setting(
        ["temperature", "top_k", "top_p", "frequency_penalty", "repetition_penalty"],
        "decoding card",
        "what is varied, one at a time from the values given",
        ["temperature", "top_k", "top_p", "frequency_penalty", "repetition_penalty"],
    )
    quick: bool = setting(False, "bench", "measure in five to ten minutes at most, and leave out what takes longer")
    docs: str = setting(
        "docs/benchmarks.md", "bench experiments", "Markdown file that the table of a whole measurement goes into"
    )
    seeds: list[str] = setting(["1", "2", "3"], "experiments", "seeds, with each of which every run is made")
    tune_iters: int = setting(400, "experiments", "optimizer steps of a fine-tuning", low=1)
    # Sentence correction
    corrections: str = setting(
        "sft/corrections.jsonl", "correction_data", "file of wrong and right sentences that is written"
    )
    mistakes: list[str] = setting(
        ["dropped", "doubled", "swapped", "wrong", "order"],
        "correction_data",
        "kinds of mistakes: a character left out, doubled, swapped with the next, replaced; clauses or words in wrong "
        "order",
        ["dropped", "doubled", "swapped", "wrong", "order"],
    )
    unchanged_share: float = setting(0.3, "correction_data", "share of sentences that stay right, 0 to 1")
    variants: int = setting(1, "correction_data", "rows made of a sentence, each with another mistake", low=1)
    max_sentences: int = setting(0, "correction_data", "sentences used (drawn by seed), held in memory; 0: all", low=0)
    max_sentence_chars: int = setting(60, "correction_data", "longest sentence used, in characters", low=4)
    systems: list[str] = setting(
        [],
        "correction",
        "system prompts of the table, none for no such, or files of them (a line each); []: none, and one that asks",
    )
    shots: list[str] = setting([], "correction", "numbers of examples in the table, such as 0,1,4; []: no table")
    # Plots
    runs: list[str] = setting([], "visualize", "runs' folders or log.jsonl files; []: the newest under out_root")
    together: bool = setting(False, "visualize", "draw the runs in one panel (by seconds, unless told otherwise)")
    x: str = setting(
        "",
        "visualize",
        "what the curves go by; '': step, and together seconds",
        ["", "step", "tokens", "epoch", "seconds"],
    )
    smooth: float = setting(
        0.9, "visualize", "weight of what came before in the smoothed training loss, 0 to 1; less in a short run", low=0
    )
    figures: list[str] = setting(
        [], "visualize", "JSON files of evaluations over checkpoints, whose curves are drawn as well"
    )
    live: bool = setting(False, "visualize", "draw again every few seconds until Ctrl-C")
    plot: str = setting(
        "",
        "visualize correction decoding",
        "file of the plot, a PNG; an SVG goes beside it; '': loss.png, correction.png or decoding.png in the run's "
        "folder",
    )

    given = frozenset()  # no field: names of the settings that a file or a flag set

    def to_dict(self, script=""):
        """Plain dict of the settings that a script (a key of SCRIPTS) reads, "": of all, keys and passwords too."""
        of_script = {f.name for f in fields(self) if not script or script in f.metadata["used_by"]}
        return {name: value for name, value in asdict(self).items() if name in of_script}
