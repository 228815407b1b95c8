"""Fine-tuning the 124M model on questions and answers, from its best pretrained checkpoint.

python data/prepare_sft.py --qa_files=sft/sft_saves.jsonl --articles=my_wiki
python train.py config/train_config_sft.py
"""

data_dir = "data/processed_sft"
out_dir = "out/sft"
init_from = "out/pretrain/ckpt.pt"

block_size = 512

batch_size = 16
gradient_accumulation_steps = 2
max_epochs = 4
# A twentieth of pretraining's: what was learned there should stay.
learning_rate = 3e-5
warmup_iters = 50
min_lr_ratio = 0.1
weight_decay = 0.1
beta2 = 0.95
grad_clip = 1.0

eval_interval = 200
log_interval = 10
