"""Sentence correction on a CPU: the sentences and the table; with config/correction_sft.py, which trains on them.

    python sft/make_correction.py config/correction.py
    python data/train_tokenizer.py config/correction.py
    python data/prepare_sft.py config/correction_sft.py
    python train.py config/correction_sft.py
    python evaluations-correction.py config/correction_sft.py --ckpt=out/correction --plot=out/correction/curves.png

Minutes in all on two cores.
"""

input_dir = ["data/wiki_sample"]
corrections = "sft/corrections.jsonl"
# Short sentences: what there is to learn in minutes is to copy all but the mistake.
max_sentence_chars = 16
variants = 2
unchanged_share = 0.45  # of sentences; of the rows, since a wrong one makes two of them, three in ten

# A token a character, so that a mistake in one is not hidden in a longer token.
tokenizer_path = "out/correction.tiktoken"
tokenizer_vocab = 4096
max_token_chars = 1
