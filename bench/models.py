"""The model shapes that the benchmark knows, by name."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaConfig


@dataclass(frozen=True)
class Shape:
    """A Llama with as many key/value heads as query heads."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    vocab: int
    positions: int

    def config(self) -> LlamaConfig:
        """What transformers builds the model from. No cache of keys and values, as in the Trainer."""
        from transformers import LlamaConfig

        return LlamaConfig(
            hidden_size=self.hidden, intermediate_size=self.ffn, num_hidden_layers=self.layers,
            num_attention_heads=self.heads, num_key_value_heads=self.heads, vocab_size=self.vocab,
            max_position_embeddings=self.positions, rms_norm_eps=1e-5, use_cache=False, bos_token_id=1, eos_token_id=2)

    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of the linear layers of one decoder layer: q, k, v, o, gate, up, down."""
        d, f = self.hidden, self.ffn
        return [(d, d)] * 4 + [(d, f), (d, f), (f, d)]


MODELS = {
    # The shape of examples/llama-tiny-*.onnx.
    "llama-tiny": Shape(hidden=32, ffn=88, layers=2, heads=4, vocab=64, positions=32),
    # 2,048 words, not 32,000: with those, the loss takes most of time and memory at this width, as in no real model.
    "llama-small": Shape(hidden=512, ffn=1376, layers=8, heads=8, vocab=2048, positions=2048),
    "llama-2-7b": Shape(hidden=4096, ffn=11008, layers=32, heads=32, vocab=32000, positions=4096),
    "llama-2-13b": Shape(hidden=5120, ffn=13824, layers=40, heads=40, vocab=32000, positions=4096),
}
