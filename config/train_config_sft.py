"""Fine-tuning the 124M model on questions and answers, from its best pretrained checkpoint.

python data/prepare_sft.py --qa_files=sft/sft_saves.jsonl --articles=my_wiki
python train.py config/train_config_sft.py
"""

data_dir = "data/processed_sft"
out_dir = "out/sft"
init_from = "out/pretrain/ckpt.pt"

block_size = 512

# A question and answer are short: 16,384 tokens are hundreds of them. Muon's work is the same for a step of any size;
# with a quarter of these tokens it is a third of all. A larger GPU makes one pass of the two.
batch_tokens = 16 * 512
gradient_accumulation_steps = 2
max_epochs = 4
# A tenth of pretraining's: what was learned there should stay. Few questions (less than 100 steps in all): a quarter of
# the tokens and of both rates.
optimizer = "muon"
muon_learning_rate = 2e-3
learning_rate = 2e-4
warmup_iters = 15
min_lr_ratio = 0.1
weight_decay = 0.1
beta2 = 0.95
grad_clip = 1.0

eval_interval = 50
log_interval = 10
