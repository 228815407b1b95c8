"""The CPU demo's fine-tuning by prefix tuning instead of full tuning (config/demo_sft.py), after `python demo.py`.

    python train.py config/demo_prefix.py
    python sample.py --ckpt=out/demo_prefix/ckpt.pt

The learning rate is far above that of weights: keys and values are numbers of about 1 to 2, each moved by itself.
"""

method = "prefix"
virtual_tokens = 20

data_dir = "data/processed_demo_sft"
out_dir = "out/demo_prefix"
init_from = "out/demo/last.pt"
block_size = 192

max_epochs = 3
batch_size = 32
optimizer = "adamw"
learning_rate = 0.3
weight_decay = 0.0  # it would pull the keys and values to zero at this learning rate
warmup_iters = 20
min_lr_ratio = 0.0
eval_interval = 231  # of 693 steps
compile = "off"
