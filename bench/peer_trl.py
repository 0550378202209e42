"""TRL's GRPOTrainer on the workload of bench/peers.py, which starts this file in TRL's own environment.

python peer_trl.py MODEL PROMPTS GROUP PROMPT COMPLETION MICRO_BATCH_ROWS FOLDER
"""

import os
import sys

import numpy as np
import torch
from datasets import Dataset
from peer_protocol import SHAPES, Iteration
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

NAME, FOLDER = sys.argv[1], sys.argv[7]
P, G, S, T, ROWS = map(int, sys.argv[2:7])
M, STEPS = SHAPES[NAME], 100
torch.set_num_threads(len(os.sched_getaffinity(0)))
torch.manual_seed(0)

LlamaForCausalLM(
    LlamaConfig(
        vocab_size=M["vocab"],
        hidden_size=M["width"],
        intermediate_size=M["mlp"],
        num_hidden_layers=M["layers"],
        num_attention_heads=M["heads"],
        num_key_value_heads=M["kv_heads"],
        head_dim=M["head_dim"],
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
).save_pretrained(FOLDER)
words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, M["vocab"])}
bare = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
bare.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=bare, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
)
tokenizer.save_pretrained(FOLDER)
rng = np.random.default_rng(0)
questions = [" ".join(f"w{i}" for i in rng.integers(3, M["vocab"], S)) for _ in range(P * STEPS)]
lengths, iteration = [], Iteration()


def reward(completions, completion_ids, **_):
    lengths.extend(map(len, completion_ids))
    return [float(len(set(ids))) for ids in completion_ids]


class Wait(TrainerCallback):
    def on_step_begin(self, *_, **__):
        iteration.start()

    def on_step_end(self, *_, **__):
        assert set(lengths) == {T}, "a completion ended early"
        iteration.end()


trainer = GRPOTrainer(
    model=FOLDER,
    reward_funcs=reward,
    train_dataset=Dataset.from_dict({"prompt": questions}),
    processing_class=tokenizer,
    callbacks=[Wait()],
    args=GRPOConfig(
        output_dir=FOLDER + "/out",
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=ROWS,
        gradient_accumulation_steps=P * G // ROWS,
        num_generations=G,
        max_completion_length=T,
        temperature=1.0,
        max_steps=STEPS,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=False,
        beta=0.04,
        learning_rate=1e-6,
        logging_steps=1000,
        max_grad_norm=1.0,
        model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
        generation_kwargs={"eos_token_id": [M["vocab"] + 7], "top_k": 0},
        dataloader_num_workers=0,
    ),
)
trainer.eos_token_ids = [M["vocab"] + 7]  # not in the vocabulary, so no completion ends early
trainer.train()
