"""The CPU demo: a small model of the embedded corpus, with a tokenizer of its own. Run by demo.py."""

input_dir = ["data/wiki_sample"]
heldout = "sft/sample_heldout.txt"
tokenizer_path = "out/demo.tiktoken"
tokenizer_vocab = 4096
tokenizer_qa = ["sft/sample_qa.jsonl"]
tokenizer = "out/demo.tiktoken"
data_dir = "data/processed_demo"
out_dir = "out/demo"
block_size = 192
val_share = 0.02

# Two blocks: at equal tokens they learn these facts sooner than four do, for three fifths of the operations.
architecture = "qwen3"
n_layer = 2
n_head = 3
n_embd = 192

max_epochs = 3
# A machine that would take longer makes fewer passes.
max_seconds = 780
# Small batches: at equal tokens, more steps learn more of the facts.
batch_size = 16
optimizer = "muon"
learning_rate = 4e-3
muon_learning_rate = 0.04
warmup_iters = 50
min_lr_ratio = 0.0
eval_interval = 500
watch_prompts = ["狮子是", "锿的英文名称是", "李白是"]
compile = "off"  # compiling takes longer than this run gains by it
