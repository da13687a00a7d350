"""The Hugging Face Hub: networks from `hf:<owner>/<name>`, and exports to it."""
