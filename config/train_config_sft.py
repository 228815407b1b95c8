"""Fine-tuning the 124M model on questions and answers, from its best pretrained checkpoint.

python data/prepare_sft.py --qa_files=sft/sft_saves.jsonl --articles=my_wiki
python train.py config/train_config_sft.py
"""

data_dir = "data/processed_sft"
out_dir = "out/sft"
init_from = "out/pretrain/ckpt.pt"

block_size = 512

# A question and answer are short: 4,096 tokens are dozens of them.
batch_tokens = 8 * 512
gradient_accumulation_steps = 1
max_epochs = 4
# A fortieth of pretraining's: what was learned there should stay.
optimizer = "muon"
muon_learning_rate = 5e-4
learning_rate = 5e-5
warmup_iters = 50
min_lr_ratio = 0.1
weight_decay = 0.1
beta2 = 0.95
grad_clip = 1.0

eval_interval = 200
log_interval = 10
