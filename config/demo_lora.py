"""The CPU demo's fine-tuning by LoRA instead of full tuning (config/demo_sft.py), after `python demo.py`.

    python train.py config/demo_lora.py
    python sample.py --ckpt=out/demo_lora/ckpt.pt

Its file has 3% of the parameters. They begin at zero and not at a trained value, so the learning rate is larger.
"""

method = "lora"
rank = 8

data_dir = "data/processed_demo_sft"
out_dir = "out/demo_lora"
init_from = "out/demo/last.pt"
block_size = 192

max_epochs = 3
batch_size = 32
optimizer = "adamw"
learning_rate = 1e-3
weight_decay = 0.0
warmup_iters = 20
min_lr_ratio = 0.0
eval_interval = 231  # of 693 steps
compile = "off"
