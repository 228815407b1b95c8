"""What the evaluation scripts share: models, prompts, the contamination check, metrics by task, tables and plots."""
