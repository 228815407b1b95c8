"""Your own questions on a laptop: fine-tunes the model that config/laptop.py made.

python data/prepare_sft.py config/laptop_sft.py --qa_files=my_qa.jsonl --articles=my_wiki
python train.py config/laptop_sft.py
python sample.py
"""

tokenizer = "out/laptop.tiktoken"
sft_data_dir = "data/processed_laptop_sft"
data_dir = "data/processed_laptop_sft"
init_from = "out/laptop/last.pt"
out_dir = "out/laptop_sft"
block_size = 256

max_epochs = 4
max_seconds = 900
batch_size = 32
# The embeddings (AdamW's) stay nearly as they are, so that the model keeps what it read about other subjects.
learning_rate = 1e-5
muon_learning_rate = 0.002
warmup_iters = 20
min_lr_ratio = 0.0
eval_interval = 50
compile = "off"
