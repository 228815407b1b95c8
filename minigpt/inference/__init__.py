"""From prompts to text: sampling, the passes over the KV cache, int8 weights, continuous batching; and likelihood."""
