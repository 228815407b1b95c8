"""A head on the demo's base (config/demo.py): which field does an article belong to?

python data/prepare_task.py config/demo_task.py
python train.py config/demo_task.py
python evaluations-tasks.py config/demo_task.py --ckpt=out/demo_task/ckpt.pt
"""

task_files = ["data/task_sample/field_train.jsonl"]
dev_files = ["data/task_sample/field_dev.jsonl"]
test_files = ["data/task_sample/field_test.jsonl"]
tokenizer = "out/demo.tiktoken"
task_data_dir = "data/processed_task"
data_dir = "data/processed_task"
out_dir = "out/demo_task"
init_from = "out/demo/last.pt"
block_size = 192

max_epochs = 5
batch_size = 32
optimizer = "muon"
muon_learning_rate = 0.005
learning_rate = 3e-4
warmup_iters = 20
min_lr_ratio = 0.0
eval_interval = 100
compile = "off"
