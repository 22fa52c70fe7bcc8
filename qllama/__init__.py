"""qllama: run Llama-family language models on ordinary CPUs."""
