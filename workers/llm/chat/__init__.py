"""The Chat Completions API, as OpenAI, vLLM, Ollama, LiteLLM and others speak it: client, messages, answers, limits."""
