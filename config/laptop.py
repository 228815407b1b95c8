"""Your own articles on a laptop without a GPU: a small model with a tokenizer of its own.

    python data/train_tokenizer.py config/laptop.py --input_dir=my_wiki
    python data/prepare.py config/laptop.py --input_dir=my_wiki
    python train.py config/laptop.py
    python sample.py

README.md says how much text this needs and how long it takes. Then config/laptop_sft.py fine-tunes on questions.
"""

tokenizer_path = "out/laptop.tiktoken"
tokenizer_vocab = 4096  # a small vocabulary: most of a small model's work is its output layer
tokenizer = "out/laptop.tiktoken"
data_dir = "data/processed_laptop"
out_dir = "out/laptop"

# 4 x 256: 4.3 million parameters. A row holds an article of about 300 characters; longer ones become several rows.
block_size = 256
overflow = "split"
architecture = "qwen3"
n_layer = 4
n_head = 4
n_embd = 256

max_epochs = 10
max_seconds = 1800  # a machine that would take longer than half an hour makes fewer passes
batch_size = 16
learning_rate = 4e-3
muon_learning_rate = 0.03
warmup_iters = 50
min_lr_ratio = 0.0
eval_interval = 200
compile = "off"  # compiling takes longer than this run gains by it
