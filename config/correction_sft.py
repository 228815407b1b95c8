"""Sentence correction on a CPU: rows, training and measuring, of what config/correction.py makes.

From scratch, so that what a model learns first and what it learns later is seen: to keep a right sentence, and to
change a wrong one. A long training, to be drawn beside the short one:

    python train.py config/correction_sft.py --max_iters=4000 --keep_every=400 --out_dir=out/correction_long
    python evaluations-correction.py config/correction_sft.py --ckpt=out/correction,out/correction_long --plot=both.png
"""

qa_files = ["sft/corrections.jsonl"]
tokenizer = "out/correction.tiktoken"
sft_data_dir = "data/processed_correction"
data_dir = "data/processed_correction"
out_dir = "out/correction"
block_size = 384  # a row has an eighth of it; the rest is for a system prompt and four examples
val_share = 0.02
test_share = 0.05

n_layer = 4
n_head = 4
n_embd = 128

max_iters = 1000
batch_size = 64
optimizer = "muon"
learning_rate = 4e-3
muon_learning_rate = 0.03
warmup_iters = 50
min_lr_ratio = 0.0
eval_interval = 100
keep_every = 100  # the checkpoints that the curves are drawn over
compile = "off"  # compiling takes longer than this run gains by it

# Measuring
max_samples = 500
