#!/usr/bin/env python3
"""Makes expected.json: what PEFT adapts on the architectures of examples/export.py, for a table of flags.

    python tests/peft/expected.py [--out FILE]

Needs what examples/export.py needs: torch 2.11.0, transformers 5.17.0, peft 0.21.2. Nothing is downloaded.

A row is {model, flags, adapters: {module: [rank, scale]}, modules_to_save: [parameter]}: a family of examples/export.py,
flags as `lorafa-opt` spells them, every adapted module, and the names of the parameters that train in full. `embeddings`
lists adapted modules that are no linear layers. Where PEFT raises an error a row is {model, flags, refused: its type}.

PEFT tells a list of names from a regular expression by its type. Here, as on the command line, text made of names and
commas is a list. Left out is where lorafa-opt differs on purpose: `--layers` next to `all-linear` or a regular
expression, which PEFT refuses, and targets in the head of a token classifier, which PEFT wraps in adapters before it
takes the head as a module to save.
"""
import argparse
import json
import re
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "examples"))
from export import TASK, build
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Embedding, LoraLayer

TASKS = {"causal-lm": "CAUSAL_LM", "seq-cls": "SEQ_CLS", "token-cls": "TOKEN_CLS", "seq2seq": "SEQ_2_SEQ_LM"}
ROWS = {
    "llama": r"""
        --targets all-linear
        --targets ALL-Linear
        --targets all-linear --rslora --rank 8
        --targets q_proj,v_proj
        --targets q_proj
        --targets proj
        --targets q_proj,nothing
        --targets nothing
        --targets self_attn.q_proj,mlp.up_proj
        --targets attn.q_proj
        --targets model.layers.0.self_attn.q_proj
        --targets layers.0.self_attn.q_proj
        --targets model.layers.0
        --targets layers.0.mlp
        --targets lm_head
        --targets q_proj,lm_head
        --targets .*lm_head
        --targets .*\.q_proj
        --targets .*(q|v)_proj
        --targets (q|v)_proj
        --targets model\.layers\.1\.mlp\.(gate|up)_proj
        --targets .*\.1\..*_proj
        --targets .*_PROJ
        --targets (?i).*Q_PROJ
        --targets .*self_attn\.[kv]_proj$|.*up_proj
        --targets ^model.*q_proj
        --targets nothing.*
        --targets .*
        --targets all-linear --exclude q_proj
        --targets all-linear --exclude q_proj,mlp.up_proj,model.layers.1.mlp.down_proj
        --targets all-linear --exclude .*mlp.*
        --targets all-linear --exclude mlp
        --targets all-linear --exclude nothing
        --targets all-linear --exclude .*
        --targets q_proj,k_proj --exclude .*\.0\..*
        --targets q_proj --exclude q_proj
        --targets .*_proj --exclude .*(gate|up|down)_proj
        --targets q_proj,v_proj --layers 0
        --targets q_proj,v_proj --layers 1,0
        --targets q_proj --layers 1,7
        --targets q_proj --layers 7
        --targets lm_head --layers 0
        --targets q_proj,lm_head --layers 0
        --targets model.layers.0.self_attn.q_proj --layers 1
        --targets model.layers.0.self_attn.q_proj,k_proj --layers 1
        --targets layers.0.self_attn.q_proj --layers 1
        --targets layers.0.self_attn.q_proj,layers.1.self_attn.k_proj --layers 1
        --targets q_proj,k_proj --layers 0 --exclude k_proj
        --targets q_proj,v_proj --rank-pattern q_proj=8
        --targets q_proj,v_proj --rank-pattern proj=8
        --targets q_proj,v_proj --rank-pattern .*proj=2
        --targets q_proj,v_proj --rank-pattern self_attn.q_proj=2 --alpha-pattern v_proj=3
        --targets q_proj,v_proj --rank-pattern model.layers.1.self_attn.q_proj=16 --alpha-pattern model.layers.0.self_attn.q_proj=1
        --targets q_proj,v_proj --rank-pattern layers\.1\..*=16 --alpha-pattern layers\.0\..*=2
        --targets q_proj,v_proj --rank-pattern ^model\.layers\.1\..*=16
        --targets q_proj,v_proj --rank-pattern ^layers\.1\..*=16
        --targets q_proj,v_proj --rank-pattern q_proj=2 --rank-pattern layers\.1\..*=16
        --targets q_proj,v_proj --rank-pattern layers\.1\..*=16 --rank-pattern q_proj=2
        --targets q_proj,v_proj --rank-pattern q_proj|k_proj=2 --rank-pattern nothing=9
        --targets q_proj,v_proj --rank-pattern (q|k)_proj=2 --alpha-pattern (v|k)_proj=5 --rslora
        --targets q_proj,v_proj --rank-pattern layers.=2
        --targets q_proj,v_proj --alpha 32
        --targets q_proj,v_proj --alpha 1 --rank 16 --rslora
        --targets q_proj,v_proj --alpha-pattern q_proj=0.5 --alpha 2.5
        --targets q_proj --rank-pattern q_proj=0
        --targets q_proj,embed_tokens
        --targets embed_tokens
        --targets .*\.(q_proj|embed_tokens)
        --targets q_proj,embed_tokens --exclude embed_tokens
        --targets q_proj,input_layernorm
        --targets self_attn
        --targets q_proj,self_attn
        --targets .*layers\.0\..*
        --targets q_proj,v_proj --loss seq-cls
        --targets all-linear --loss token-cls
    """,
    "llamagqa": r"""
        --targets all-linear
        --targets k_proj,v_proj --layers 1 --rank-pattern v_proj=1
    """,
    "qwen2": r"""
        --targets all-linear
        --targets (.*)self_attn(.*)proj --rank-pattern layers.0.self_attn.o_proj=3 --rslora
    """,
    "gpt2": r"""
        --targets all-linear
        --targets c_attn
        --targets c_proj
        --targets attn.c_proj,c_fc
        --targets attn
        --targets lm_head
        --targets c_attn,lm_head
        --targets wte
        --targets .*\.(c_fc|c_attn)
        --targets all-linear --exclude mlp.c_proj
        --targets c_attn,c_proj --layers 1
        --targets transformer.h.0.mlp.c_fc,c_attn --layers 1
        --targets h.0.mlp.c_fc,c_attn --layers 0
        --targets c_attn,c_proj --rank-pattern h.0.attn.c_proj=2 --alpha-pattern mlp.c_proj=1 --rslora
        --targets c_attn,c_proj --rank-pattern h\.\d+\.attn\..*=6
    """,
    "roberta": r"""
        --targets all-linear
        --targets query,value
        --targets query,value --loss token-cls
        --targets all-linear --exclude classifier.dense,out_proj --loss token-cls
        --targets dense
        --targets output.dense
        --targets attention.output.dense,classifier.dense
        --targets classifier.dense
        --targets classifier
        --targets classifier,query
        --targets .*dense
        --targets .*(dense|out_proj)
        --targets all-linear --exclude dense
        --targets all-linear --exclude roberta.encoder.layer.0.output.dense
        --targets query,dense --layers 0
        --targets query,dense --layers 1 --exclude attention.output.dense
        --targets query,value --rank-pattern layer.1.attention.self.value=2 --alpha-pattern query=4
        --targets query,word_embeddings
        --targets query --layers 5
        --targets all-linear --exclude .*encoder.*
    """,
    "t5": r"""
        --targets all-linear
        --targets q,v
        --targets q,v --rslora
        --targets k
        --targets SelfAttention.q,EncDecAttention.v
        --targets wo
        --targets lm_head
        --targets wo,lm_head
        --targets encoder.*\.(q|v)
        --targets decoder.*EncDecAttention\..
        --targets all-linear --exclude DenseReluDense.wi,k
        --targets all-linear --exclude encoder.*
        --targets q,v --layers 0
        --targets q,v --layers 1
        --targets q,v --layers 2
        --targets wi,wo --layers 1
        --targets o --layers 0,1
        --targets q,encoder.block.0.layer.0.SelfAttention.v --layers 1
        --targets q,v --rank-pattern EncDecAttention.q=2 --alpha-pattern encoder\..*=1
        --targets q,v --rank-pattern block\.1\..*=2 --rank-pattern decoder\..*=6
        --targets decoder\..*SelfAttention\..*
        --targets decoder\..*SelfAttention\..* --exclude relative_attention_bias
        --targets q,relative_attention_bias
        --targets SelfAttention
    """,
}
RANK, ALPHA = 4, 8


def flags_parser():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    pair = lambda number: lambda text: (text.rpartition("=")[0], number(text.rpartition("=")[2]))
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--alpha", type=float, default=ALPHA)
    parser.add_argument("--rslora", action="store_true")
    parser.add_argument("--targets")
    parser.add_argument("--exclude")
    parser.add_argument("--layers", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--rank-pattern", type=pair(int), action="append", default=[])
    parser.add_argument("--alpha-pattern", type=pair(float), action="append", default=[])
    parser.add_argument("--loss", choices=TASKS)
    return parser


def choice(text):
    """A list of names, or a string, which PEFT takes as a regular expression or a word of its own."""
    if text is None or text.lower() == "all-linear" or not re.fullmatch(r"[\w.,-]+", text):
        return text
    return text.split(",")


def expected(family, flags):
    args = flags_parser().parse_args(flags.split())
    row = {"model": family, "flags": flags}
    try:
        config = LoraConfig(
            r=args.rank, lora_alpha=args.alpha, use_rslora=args.rslora, target_modules=choice(args.targets),
            exclude_modules=choice(args.exclude), layers_to_transform=args.layers, rank_pattern=dict(args.rank_pattern),
            alpha_pattern=dict(args.alpha_pattern),
            task_type=TASKS[args.loss] if args.loss else TASK.get(family, "CAUSAL_LM"))
        model = get_peft_model(build(family, False), config)
    except ValueError as error:
        return row | {"refused": type(error).__name__}
    path = lambda name: name.removeprefix("base_model.model.")
    layers = {path(name): m for name, m in sorted(model.named_modules()) if isinstance(m, LoraLayer)}
    row["adapters"] = {name: [m.r["default"], m.scaling["default"]] for name, m in layers.items()}
    row["modules_to_save"] = sorted(n for n, p in model.named_parameters() if p.requires_grad and ".lora_" not in n)
    embeddings = [name for name, m in layers.items() if isinstance(m, Embedding)]
    return row | ({"embeddings": embeddings} if embeddings else {})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "expected.json")
    out = parser.parse_args().out
    warnings.simplefilter("ignore")
    rows = [expected(family, line.strip()) for family, lines in ROWS.items() for line in lines.strip().splitlines()]
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    out.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
