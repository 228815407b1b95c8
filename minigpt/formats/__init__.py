"""The files of other programs that a model comes from or goes to: Hugging Face folders and GGUF."""
