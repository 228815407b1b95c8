"""The CPU demo's fine-tuning by LoRA instead of full tuning (config/demo_sft.py), after `python demo.py`.

    python train.py config/demo_lora.py
    python sample.py --ckpt=out/demo_lora/ckpt.pt

It trains 3.5% of the parameters. The learning rate goes with lora_init: a gaussian start, which is larger, takes 1e-3
to 2e-3, and answers a little less here.
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
learning_rate = 4e-3
weight_decay = 0.0
warmup_iters = 20
min_lr_ratio = 0.0
eval_interval = 231  # of 693 steps
compile = "off"
