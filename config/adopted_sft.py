"""Fine-tuning a model of others: a Hugging Face folder with a Qwen3 of 0.6B, for example. docs/export.md has the steps.

python data/prepare_sft.py --tokenizer=models/Qwen3-0.6B --qa_files=my_qa.jsonl --sft_data_dir=data/processed_qwen
python train.py config/adopted_sft.py
"""

init_from = "models/Qwen3-0.6B"
sft_data_dir = "data/processed_qwen"
data_dir = "data/processed_qwen"
out_dir = "out/qwen"
block_size = 512  # of the rows; the model's own length stays

# 8 passes of 2,048 tokens a step, padding counted. Out of memory: lower batch_tokens and raise the other.
batch_tokens = 2048
gradient_accumulation_steps = 8
max_epochs = 2
# The model has learned already: small steps, and AdamW, whose state takes less memory while it is computed.
optimizer = "adamw"
learning_rate = 1e-5
warmup_iters = 20
min_lr_ratio = 0.1
weight_decay = 0.0
eval_interval = 100
