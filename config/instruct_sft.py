"""Instruct tuning: one model on the embedded tasks told in words, but one, from the demo's base (config/demo.py).

python sft/make_instructions.py config/instruct_sft.py
python data/prepare_sft.py config/instruct_sft.py
python train.py config/instruct_sft.py
python evaluations-tasks.py --ckpt=out/instruct/ckpt.pt --data_dir=data/processed_names --shots=0,1,4
"""

tasks = ["data/processed_field", "data/processed_same_subject", "data/processed_names"]
leave_out = ["names"]

qa_files = ["sft/instructions.jsonl"]
tokenizer = "out/demo.tiktoken"
sft_data_dir = "data/processed_instruct"
data_dir = "data/processed_instruct"
out_dir = "out/instruct"
init_from = "out/demo/last.pt"
block_size = 192
test_share = 0.0  # evaluations ask the tasks' own test parts

max_epochs = 3
max_seconds = 240
batch_size = 32
optimizer = "muon"
# As in config/demo_sft.py, but the embeddings of newlines and of the labels' words have more to learn.
learning_rate = 1e-4
muon_learning_rate = 0.004
warmup_iters = 20
min_lr_ratio = 0.0
eval_interval = 100
compile = "off"
