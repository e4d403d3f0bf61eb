"""Drop-ins for inference engines: rows of many members in one batch, and a worker extension for vLLM."""
