//! Weights in safetensors files: Hugging Face shards in, PEFT adapters and merged models out.
