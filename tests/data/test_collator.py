"""The batch: documents of one row do not see each other, proven on real models."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.collator import Collator
from qlora_cli.data.example import Place
from qlora_cli.data.packing import unpacked
from qlora_cli.data.token_row import TokenRow
from tests.data.packed import pack

NUM_TOKENS = 64
LLAMA = LlamaConfig(
    vocab_size=NUM_TOKENS,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
GPT2 = GPT2Config(vocab_size=NUM_TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=64)


def setup_model(kind, attn_implementation):
    torch.manual_seed(0)
    config = LLAMA if kind is LlamaForCausalLM else GPT2
    return kind._from_config(config, attn_implementation=attn_implementation).eval()


def features(rows):
    return [{"input_ids": row.input_ids, "labels": row.labels, "seq_lengths": row.seq_lengths} for row in rows]


def random_document(generator, low=2, high=12):
    length = int(torch.randint(low, high, (), generator=generator))
    tokens = torch.randint(1, NUM_TOKENS, (length,), generator=generator).tolist()
    num_prompt = max(1, length // 3)
    return TokenRow(tokens, [IGNORE_INDEX] * num_prompt + tokens[num_prompt:], Place("test", 1, 1))


def logits_of(model, batch):
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits


MODELS = pytest.mark.parametrize("kind", [LlamaForCausalLM, GPT2LMHeadModel], ids=["llama", "gpt2"])
ATTENTION = pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])


@MODELS
@ATTENTION
def test_another_first_document_moves_no_logit_of_the_second(kind, attn_implementation):
    model = setup_model(kind, attn_implementation)
    generator = torch.Generator().manual_seed(1)
    collate = Collator(pad_token_id=0)
    for _ in range(50):
        first, second = random_document(generator), random_document(generator)
        changed = TokenRow([(token + 7) % NUM_TOKENS for token in first.input_ids], first.labels, first.place)
        num_first = len(first.input_ids)
        logits = [
            logits_of(model, collate(features(pack([document, second], 32))))[0, num_first:]
            for document in (first, changed)
        ]
        assert (logits[0] - logits[1]).abs().max().item() == 0.0


@MODELS
@ATTENTION
def test_a_changed_first_document_does_move_its_own_logits(kind, attn_implementation):
    model = setup_model(kind, attn_implementation)
    collate = Collator(pad_token_id=0)
    place = Place("test", 1, 1)
    batches = [collate(features(pack([TokenRow([token, 3], [-100, 3], place)], 8))) for token in (1, 2)]
    assert (logits_of(model, batches[0]) - logits_of(model, batches[1])).abs().max() > 1e-3


def mean_loss(model, batch):
    """Mean over the trained tokens; shifted here, as causal models do it."""
    logits_BLV = logits_of(model, batch)[:, :-1]
    labels_BL = batch["labels"][:, 1:]
    return cross_entropy(logits_BLV.transpose(1, 2), labels_BL, ignore_index=IGNORE_INDEX)


@MODELS
@ATTENTION
def test_packed_and_unpacked_rows_have_the_same_loss(kind, attn_implementation):
    model = setup_model(kind, attn_implementation)
    generator = torch.Generator().manual_seed(2)
    rows = [random_document(generator) for _ in range(20)]
    collate = Collator(pad_token_id=0)
    packed = mean_loss(model, collate(features(pack(rows, 32))))
    alone = mean_loss(model, collate(features(unpacked(rows))))
    assert packed.item() == pytest.approx(alone.item(), abs=1e-6)


def test_rows_are_padded_with_a_document_of_their_own_that_has_no_labels():
    batch = Collator(pad_token_id=9)(
        [
            {"input_ids": [1, 2, 3, 4], "labels": [-100, 2, -100, 4], "seq_lengths": [2, 2]},
            {"input_ids": [5, 6], "labels": [-100, 6], "seq_lengths": [2]},
        ]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [5, 6, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 2, -100, 4], [-100, 6, -100, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1], [0, 1, 0, 1]]
    assert "attention_mask" not in batch


def test_a_label_across_a_document_border_is_taken_out():
    batch = Collator(pad_token_id=0)([{"input_ids": [1, 2, 3], "labels": [1, 2, 3], "seq_lengths": [2, 1]}])
    assert batch["labels"].tolist() == [[-100, 2, -100]]


def test_flattened_documents_carry_their_bounds_for_the_variable_length_kernel():
    rows = [
        {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "seq_lengths": [3]},
        {"input_ids": [4, 5, 6], "labels": [-100, 5, -100], "seq_lengths": [2, 1]},
    ]
    batch = Collator(pad_token_id=0, flatten=True)(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0]]
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 3, 5, 6]
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert batch["max_length_q"] == batch["max_length_k"] == 3
