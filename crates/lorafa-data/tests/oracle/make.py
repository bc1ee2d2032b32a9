#!/usr/bin/env python3
"""Makes the tokenizers of this folder and what Hugging Face does with them.

    python crates/lorafa-data/tests/oracle/make.py

Needs tokenizers 0.23, transformers 5.17, torch 2.11, trl 1.16 (with datasets and pyarrow). Nothing is downloaded. Tokenizers
that are there are kept, because the trainers of WordPiece and Unigram give slightly different ones each time.

encode.json    texts with the ids of every tokenizer; pairs and cut texts with token types
chat.json      chats rendered and tokenized by `apply_chat_template`, with the assistant's tokens. The templates are those of
               model families, from memory. `marked` is the same template with {% generation %}, which is what
               `return_assistant_tokens_mask` reads; the template without must give the same tokens by prefixes.
completion.json  prompts with completions as TRL's SFTTrainer tokenizes them
pack.json      the rows of TRL's `_pack_bfd`
seq2seq.json   a batch of T5's own shift
permutation.json  orders by ChaCha8, written down here from its definition
"""
import json
import random
from pathlib import Path

import pyarrow as pa
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration
from trl.data_utils import _pack_bfd

HERE = Path(__file__).parent
CORPUS = [
    "The quick brown fox jumps over the lazy dog.", "Hello there, how are you today?", "I'm fine, thanks; and you?",
    "In 2024 there were 1,234,567 of them.", "def f(x):\n    return x + 1\n", "Zwölf Boxkämpfer jagen Viktor über den Deich.",
    "What is the capital of France? The capital of France is Paris.", "You are a helpful assistant.",
]
TEXTS = CORPUS + [
    "", " ", "  two  spaces  ", "tab\there", "line\nbreak\r\n\r\nends  \n", "naïve café 東京 🦊👩‍🚀 ﬁ", "don't CAN'T we'LL",
    "<s>already begun", "ended</s>", "a <|im_end|> inside", "ﬀ½Ⅷ é é", "x" * 40, "\u200bzero\u00a0width",
]
LLAMA3_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
                r"|\s+(?!\S)|\s+")


def special(*tokens):
    return [AddedToken(token, special=True) for token in tokens]


def byte_level(tokens, size, split=None):
    tokenizer = Tokenizer(models.BPE())
    if split is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=special(*tokens),
        show_progress=False))
    return tokenizer


def gpt2():
    tokenizer = byte_level(["<|endoftext|>"], 330)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer, dict(bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def roberta():
    tokenizer = byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], 330)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False)
    return tokenizer, dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", cls_token="<s>", sep_token="</s>")


def llama2():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    # Without a pre-tokenizer merges would span words; sentencepiece's do not.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=420, special_tokens=special("<unk>", "<s>", "</s>", "<|im_end|>") + [
            AddedToken(f"<0x{byte:02X}>", normalized=False) for byte in range(256)], show_progress=False))
    data = json.loads(tokenizer.to_str())
    data["pre_tokenizer"] = None
    # Byte tokens are part of the vocabulary, not tokens that are searched for in a text.
    data["added_tokens"] = [token for token in data["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    return tokenizer, dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def llama3():
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>",
             "<|im_end|>", "<|user|>", "<|system|>", "<|assistant|>"]
    tokenizer = byte_level(names, 340, LLAMA3_SPLIT)
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
                                      special_tokens=[("<|begin_of_text|>", 0)])])
    return tokenizer, dict(bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


def bert():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=special("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer, dict(unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")


def t5():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(CORPUS, trainers.UnigramTrainer(
        vocab_size=150, special_tokens=special("<pad>", "</s>", "<unk>"), unk_token="<unk>", show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    return tokenizer, dict(eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


CHATML = """{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}GEN{{message['content'] + '<|im_end|>' + '\n'}}END{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

LLAMA2_CHAT = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}GEN{{ ' '  + content.strip() + ' ' + eos_token }}END{% endif %}{% endfor %}"""

LLAMA3_CHAT = """{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = message['content'] | trim + '<|eot_id|>' %}{% set header = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' %}{% if loop.index0 == 0 %}{% set header = bos_token + header %}{% endif %}{{ header }}GEN{{ content }}END{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" and not message.tool_calls %}
        {{- '<|im_start|>' + message.role + '\\n' }}GEN{{- message.content + '<|im_end|>' + '\\n' }}END
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' }}GEN
        {%- if message.content %}
            {{- message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}END
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n' }}GEN{{ message['content'] + eos_token }}
END{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] not in ["user", "assistant", "tool"] %}
        {%- continue %}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
    {%- if message["role"] == "user" %}
        {%- if ns.index == 1 and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        GEN{{- " " + message["content"]|trim + eos_token }}END
    {%- else %}
        {{- raise_exception("Only user, system and assistant roles are supported!") }}
    {%- endif %}
{%- endfor %}
"""

# What templates of recent models do: methods, slices backwards, macros, break, replacement, printing of what is not text.
METHODS = """{%- macro head(role) -%}<|im_start|>{{ role.title() }}
{% endmacro -%}
{%- set ns = namespace(last=-1, nothing=none) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' and ns.last == -1 %}
        {%- set ns.last = messages|length - 1 - loop.index0 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}{{ 'keys:' + (messages[0].keys() | list | join(',')) }} {{ ns.nothing }} {{ true }} {{ add_generation_prompt }}
{% for message in messages %}
{{ head(message['role']) }}{% if message.role == 'assistant' %}
GEN{{ message.content.split('</think>')[-1].lstrip('\\n').replace('a', 'o') }}{% for key, value in message.items() if key not in ['role', 'content'] %}[{{ key }}={{ value | tojson(indent=2) }}]{% endfor %}<|im_end|>END
{% elif message.content is string and message.content.startswith('H') %}
H:{{ message.content[1:].rstrip() | upper }}{{ message.get('name', '?') }}
{% else %}
{{ message.content | trim }}{{ undefined_thing }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ head('assistant') }}{% endif %}
"""

U = lambda role: lambda text, **more: {"role": role, "content": text, **more}
user, assistant, system, tool = U("user"), U("assistant"), U("system"), U("tool")
CHATS = {
    "one": [user("Hello there"), assistant("I'm fine, thanks")],
    "two": [system("You are a helpful assistant."), user("What is the capital of France?"), assistant("Paris."),
            user("  and über 東京?  "), assistant("  The capital 🦊\n\nof Japan.  ")],
    "user last": [user("Hello there"), assistant("Hi"), user("today?")],
}
TOOL_CHAT = [user("What is in 2024?"), assistant("", tool_calls=[
    {"type": "function", "function": {"name": "look", "arguments": {"year": 2024, "b": "é\"<&'", "a": [1, 2.5, None, True]}}}]),
    tool("<12>"), assistant("It is 12.")]
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks it <up>", "parameters": {
    "type": "object", "properties": {"year": {"type": "integer"}}, "required": ["year"]}}}]
METHODS_CHAT = [user("Hello there  "), assistant("<think>hm</think>\n\nA banana", score={"b": [], "a": {"x": "<é>"}, "c": [1]}),
                user("plain", name="Ann"), assistant("last")]


def plain(template):
    return template.replace("GEN", "").replace("END", "")


def marked(template):
    """The template with generation blocks around what the assistant says."""
    if "if (message['role']" not in template and "message['role'] + '\n'}}GEN" in template or "{{ header }}GEN" in template:
        # One line for every role: the blocks stand in a condition.
        body = template[template.index("GEN") + 3:template.index("END")]
        both = ("{% if message['role'] == 'assistant' %}{% generation %}" + body + "{% endgeneration %}{% else %}" + body
                + "{% endif %}")
        return template[:template.index("GEN")] + both + template[template.index("END") + 3:]
    # `{%-` would take the white space before an answer, which the template without blocks may keep.
    return template.replace("GEN", "{% generation %}").replace("END", "{% endgeneration %}")


def encode_cases(fasts):
    cases = []
    for name, fast in fasts.items():
        for text in TEXTS:
            cases.append({"tokenizer": name, "text": text, "ids": fast(text)["input_ids"]})
    cut = []
    pairs = [("Hello there, how are you?", None), (CORPUS[0], CORPUS[1]), (CORPUS[1], "you"), ("you", CORPUS[0]), ("", "I'm fine")]
    for name in ("bert", "roberta", "t5"):
        for text, pair in pairs:
            for limit in (8, 13, 64):
                out = fasts[name](text, pair, truncation=True, max_length=limit, return_token_type_ids=True)
                whole = fasts[name](text, pair)["input_ids"]
                cut.append({"tokenizer": name, "text": text, "pair": pair, "limit": limit, "ids": out["input_ids"],
                            "types": out["token_type_ids"], "lost": len(whole) - len(out["input_ids"])})
    return {"texts": cases, "cut": cut}


def chat_cases(fasts):
    cases = []
    families = [("chatml", CHATML, "llama3"), ("llama2", LLAMA2_CHAT, "llama2"), ("llama3", LLAMA3_CHAT, "llama3"),
                ("qwen", QWEN, "llama3"), ("zephyr", ZEPHYR, "llama3"), ("mistral", MISTRAL, "llama2"),
                ("methods", METHODS, "llama3")]
    for family, template, name in families:
        fast = fasts[name]
        chats = list(CHATS.items())
        if family == "qwen":
            chats += [("tools", TOOL_CHAT)]
        if family == "methods":
            chats = [("methods", METHODS_CHAT)]
        for chat_name, messages in chats:
            tools = TOOLS if chat_name == "tools" else None
            render = lambda template, **kw: fast.apply_chat_template(
                messages, tools=tools, chat_template=template, tokenize=False, **kw)
            out = fast.apply_chat_template(messages, tools=tools, chat_template=marked(template), return_dict=True,
                                           return_assistant_tokens_mask=True)
            text = render(plain(template))
            same = render(marked(template)) == text
            assert same or family == "methods", (family, chat_name)
            cases.append({
                "family": family, "chat": chat_name, "tokenizer": name, "template": plain(template) if same else None,
                "marked": marked(template), "messages": messages, "tools": tools, "text": render(marked(template)),
                "prompt": render(marked(template), add_generation_prompt=True), "ids": out["input_ids"],
                "mask": out["assistant_masks"]})
    return cases


def completion_cases(fasts):
    """As `tokenize_fn` and `build_labels` of TRL's SFTTrainer."""
    pairs = [("What is the capital of France?", " Paris."), ("The quick brown ", "fox"), ("Hello", " there\n\n"), ("a", "b"),
             ("def f(x):\n", "    return x + 1\n"), ("naïve 東", "京 🦊"), ("Q: you? ", "fine")]
    cases = []
    for name in ("gpt2", "llama2", "llama3", "roberta"):
        fast = fasts[name]
        for prompt, completion in pairs:
            # roberta's post-processor ends texts, so an appended token would be a second one.
            text = prompt + completion + ("" if name == "roberta" else fast.eos_token)
            head, whole = fast(prompt)["input_ids"], fast(text)["input_ids"]
            same = 0
            while same < min(len(head), len(whole)) and head[same] == whole[same]:
                same += 1
            cases.append({"tokenizer": name, "prompt": prompt, "completion": completion, "ids": whole,
                          "mask": [0] * same + [1] * (len(whole) - same)})
    return cases


def pack_case():
    rng = random.Random(0)
    lengths = [rng.choice([rng.randint(2, 64), rng.randint(2, 12)]) for _ in range(300)]
    ids = [[index % 1000] * length for index, length in enumerate(lengths)]
    packed = _pack_bfd(pa.table({"input_ids": ids}), 64)
    rows = [sorted(row) for row in packed["seq_lengths"].to_pylist()]
    return {"lengths": lengths, "seq": 64, "rows": sorted(rows)}


def seq2seq_case(fasts):
    config = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=200, decoder_start_token_id=0, pad_token_id=0)
    pairs = [(CORPUS[1], CORPUS[2]), ("Hello", "you are"), (CORPUS[0], "x")]
    fast = fasts["t5"]
    source = fast([a for a, _ in pairs], padding="max_length", truncation=True, max_length=16)
    target = fast(text_target=[b for _, b in pairs], padding="max_length", truncation=True, max_length=12)
    labels = [[id if one else -100 for id, one in zip(ids, mask)]
              for ids, mask in zip(target["input_ids"], target["attention_mask"])]
    shifted = T5ForConditionalGeneration(config).prepare_decoder_input_ids_from_labels(torch.tensor(labels))
    return {"pairs": pairs, "seq": 16, "target": 12, "input_ids": source["input_ids"], "attention_mask": source["attention_mask"],
            "labels": labels, "decoder_input_ids": shifted.tolist()}


def chacha8(seed, stream):
    """64-bit draws: a key of the seed and zeros, a 64-bit block counter, a 64-bit stream."""
    def words(value, count):
        return [value >> 32 * index & 0xFFFFFFFF for index in range(count)]

    def quarter(x, a, b, c, d):
        for i, j, k, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[i] = x[i] + x[j] & 0xFFFFFFFF
            mixed = x[k] ^ x[i]
            x[k] = (mixed << turn | mixed >> 32 - turn) & 0xFFFFFFFF

    block = 0
    while True:
        start = [int.from_bytes(b"expand 32-byte k"[i:i + 4], "little") for i in (0, 4, 8, 12)]
        start += words(seed, 8) + words(block, 2) + words(stream, 2)
        x = list(start)
        for _ in range(4):
            for a, b, c, d in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
                               (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
                quarter(x, a, b, c, d)
        out = [a + b & 0xFFFFFFFF for a, b in zip(x, start)]
        yield from (out[i] | out[i + 1] << 32 for i in range(0, 16, 2))
        block += 1


def permutation_cases():
    cases = []
    for rows, seed, epoch in ((10, 42, 0), (10, 42, 1), (33, 2**64 - 1, 5)):
        draws, order = chacha8(seed, epoch), list(range(rows))
        for last in range(rows - 1, 0, -1):
            while True:
                product = next(draws) * (last + 1)
                if product % 2**64 >= 2**64 % (last + 1):
                    break
            place = product >> 64
            order[last], order[place] = order[place], order[last]
        cases.append({"rows": rows, "seed": seed, "epoch": epoch, "order": order})
    return cases


def main():
    fasts = {}
    for make in (gpt2, roberta, llama2, llama3, bert, t5):
        tokenizer, tokens = make()
        folder = HERE / make.__name__
        if not folder.exists():
            folder.mkdir()
            tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
            (folder / "tokenizer_config.json").write_text(json.dumps(tokens) + "\n")
        fasts[make.__name__] = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **tokens)
    answers = {"encode": encode_cases(fasts), "chat": chat_cases(fasts), "completion": completion_cases(fasts),
               "pack": pack_case(), "seq2seq": seq2seq_case(fasts),
               "permutation": permutation_cases()}
    for name, answer in answers.items():
        text = json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
        (HERE / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
