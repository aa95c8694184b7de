"""The scripts that are written beside the rows, with `@name@` for each value that the run gives."""

from __future__ import annotations

_END = """

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL, help="folder or Hub id of the model")
    parser.add_argument("--max-steps", type=int, default=-1, help="steps; -1: one epoch")
    parser.add_argument("--out", default=str(HERE / "model"), help="folder of the trained adapter")
    given = parser.parse_args()
    trainer = make_trainer(given.model, given.max_steps, given.out)
    trainer.train()
    trainer.save_model(given.out)
"""
_CONSTANTS = """
HERE = Path(__file__).resolve().parent
MODEL, REVISION = @model@, @revision@
"""
_TOKENIZER = """
    tokenizer = AutoTokenizer.from_pretrained(model, revision=REVISION if model == MODEL else None)
"""
PLAIN = """    if tokenizer.chat_template is None:  # the format that the rows were scored in
        tokenizer.chat_template = (HERE / "chat_template.jinja").read_text(encoding="utf-8")
"""
"""The lines that a model without a chat template needs; the scripts for other models are without them."""
IMPORTED = "from transformers import AutoTokenizer\n"
DENSE = """        model_init_kwargs={"revision": REVISION} if REVISION and model == MODEL else None,
"""
"""How most models are opened."""
LARGE = """        model_init_kwargs={
            **({"revision": REVISION} if REVISION and model == MODEL else {}),
@opened@        },
"""
"""How one is that was scored with few bits, or spread over GPUs."""
_ADAPTER = 'LoraConfig(r=@lora_r@, lora_alpha=@lora_alpha@, target_modules="all-linear", task_type="CAUSAL_LM")'
_SAME = """output_dir=out,
        max_steps=max_steps,
        num_train_epochs=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        learning_rate=@rate@,
        seed=@seed@,
        report_to="none","""

SFT = (
    '''"""Trains an adapter on train.jsonl by TRL's SFTTrainer."""

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer
'''
    + _CONSTANTS
    + """

def make_trainer(model, max_steps, out):"""
    + _TOKENIZER
    + PLAIN
    + f"""    settings = SFTConfig(
        {_SAME}
        max_length=@max_length@,
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
{DENSE}    )
    return SFTTrainer(
        model=model,
        args=settings,
        train_dataset=load_dataset("json", data_files=str(HERE / "train.jsonl"), split="train"),
        processing_class=tokenizer,
        peft_config={_ADAPTER},
    )
"""
    + _END
)
DPO = (
    SFT.replace("SFTTrainer", "DPOTrainer")
    .replace("SFTConfig", "DPOConfig")
    .replace("        max_length=", "        beta=0.1,\n        max_length=")
)

UNSLOTH = (
    '''"""Trains an adapter on train.jsonl by Unsloth and TRL's SFTTrainer."""

import argparse
from pathlib import Path

from unsloth import FastLanguageModel  # before trl, which it changes

from datasets import load_dataset
from trl import SFTConfig, SFTTrainer
'''
    + _CONSTANTS
    + """MAX_LENGTH = @max_length@


def make_trainer(model, max_steps, out):
    loaded, tokenizer = FastLanguageModel.from_pretrained(
        model_name=model,
        max_seq_length=MAX_LENGTH,
        load_in_4bit=@four@,
        load_in_8bit=@eight@,
        revision=REVISION if model == MODEL else None,
    )
"""
    + PLAIN
    + f"""    adapted = FastLanguageModel.get_peft_model(loaded, r=@lora_r@, lora_alpha=@lora_alpha@, random_state=@seed@)
    settings = SFTConfig(
        {_SAME}
        max_length=MAX_LENGTH,
    )
    return SFTTrainer(
        model=adapted,
        args=settings,
        train_dataset=load_dataset("json", data_files=str(HERE / "train.jsonl"), split="train"),
        processing_class=tokenizer,
    )
"""
    + _END
)

_CLASSIFIER = (
    '''"""<SAYS>"""

import argparse
from pathlib import Path

from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    <AUTO>,
    AutoTokenizer,
    <COLLATOR>,
    Trainer,
    TrainingArguments,
)
'''
    + _CONSTANTS
    + """LABELS = @labels@


def encode(tokenizer, row):
<BODY>

def make_trainer(model, max_steps, out):
    revision = REVISION if model == MODEL else None
    tokenizer = AutoTokenizer.from_pretrained(model, revision=revision<TOKENS>)
    base = <AUTO>.from_pretrained(
        model,
        revision=revision,
        num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)),
        label2id={label: number for number, label in enumerate(LABELS)},
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if base.config.pad_token_id is None:
        base.config.pad_token_id = tokenizer.pad_token_id
    adapter = LoraConfig(
        r=@lora_r@,
        lora_alpha=@lora_alpha@,
        target_modules="all-linear",
        exclude_modules=r".*\\b(classifier|score)\\b.*",  # the new head, which is trained in full
        task_type="<TYPE>",
    )
    rows = load_dataset("json", data_files=str(HERE / "train.jsonl"), split="train")
    settings = TrainingArguments(
        """
    + _SAME.replace("batch_size=4", "batch_size=16").replace("\n        gradient_accumulation_steps=4,", "")
    + """
    )
    return Trainer(
        model=get_peft_model(base, adapter),
        args=settings,
        train_dataset=rows.map(lambda row: encode(tokenizer, row), remove_columns=rows.column_names),
        data_collator=<COLLATOR>(tokenizer),
        processing_class=tokenizer,
    )
"""
    + _END
)


def _classifier(says: str, auto: str, collator: str, kind: str, body: str, tokens: str = "") -> str:
    text, values = _CLASSIFIER, {"SAYS": says, "AUTO": auto, "COLLATOR": collator, "TYPE": kind, "BODY": body}
    for name, value in {**values, "TOKENS": tokens}.items():
        text = text.replace(f"<{name}>", value)
    return text


TAGGER = _classifier(
    "Trains a classifier of words on train.jsonl by transformers' Trainer.", "AutoModelForTokenClassification",
    "DataCollatorForTokenClassification", "TOKEN_CLS",
    '''    """A row as tokens; the first token of a word has its tag, the others none, as the rows were scored."""
    encoded = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, max_length=@max_length@)
    words = encoded.word_ids()
    encoded["labels"] = [
        -100 if word is None or word in words[:place] else LABELS.index(row["ner_tags"][word])
        for place, word in enumerate(words)
    ]
    return encoded
''',
    ", add_prefix_space=True",
)  # fmt: skip
HEAD = _classifier(
    "Trains a classifier of texts on train.jsonl by transformers' Trainer.", "AutoModelForSequenceClassification",
    "DataCollatorWithPadding", "SEQ_CLS",
    '''    """A row as tokens, and the number of its label."""
    encoded = tokenizer(row["text"], truncation=True, max_length=@max_length@)
    return {**encoded, "label": LABELS.index(row["label"])}
''',
)  # fmt: skip
