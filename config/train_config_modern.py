"""Pretraining a model of the size of GPT-2's 124M in the shape of Qwen3: the one that we recommend.

python data/prepare.py --input_dir=my_wiki
python train.py config/train_config_modern.py
"""

data_dir = "data/processed"
out_dir = "out/pretrain"

# 123.59M parameters too: SwiGLU's three matrices, 2,048 wide, have as many weights as GPT-2's two.
architecture = "qwen3"
block_size = 512
vocab_size = 50304
n_layer = 12
n_head = 12
n_embd = 768
dropout = 0.0

# 8 passes of 8,192 tokens a step, padding counted, which need 8 to 10 GB of GPU memory. A larger GPU makes of them
# fewer and larger passes by itself, of the same tokens a step; a line at the start says how many
# (--merge_batches=False: never).
# Out of memory: lower batch_tokens and raise the other. With several GPUs the passes are shared among them.
batch_tokens = 16 * 512
gradient_accumulation_steps = 8
max_epochs = 8
optimizer = "muon"
muon_learning_rate = 0.02
learning_rate = 2e-3  # of the embeddings, which AdamW keeps; with optimizer = "adamw" take 6e-4
warmup_iters = 200
min_lr_ratio = 0.0
weight_decay = 0.1
beta2 = 0.95
grad_clip = 1.0

eval_interval = 250
eval_iters = 100
log_interval = 10
