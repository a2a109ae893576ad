"""A checkpoint's tokenizer in the class that the harness speaks to."""

from __future__ import annotations

from typing import Any

import tokenizers
import transformers
from tokenizers.processors import TemplateProcessing

from hermetiq.chat.contract import ChatContract
from hermetiq.checkpoint.tokenizer import Tokenizer


def fast_tokenizer(tokenizer: Tokenizer, contract: ChatContract, *, add_bos: bool) -> Any:
    """transformers' fast tokenizer over a copy of the checkpoint's own backend.

    transformers' own loader is not asked: it rebuilds some tokenizers, and has none for a `.gguf`.

    Args:
        contract: of the source; a text ends with its terminator.
        add_bos: encoding with special tokens puts BOS in front; nothing is put behind a text that is to be continued.
    """
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    bos = None if contract.bos_token_id is None else backend.id_to_token(contract.bos_token_id)
    front = f"{bos} " if bos is not None and add_bos else ""
    backend.post_processor = TemplateProcessing(
        single=f"{front}$A", special_tokens=[(bos, contract.bos_token_id)] if front else []
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=contract.terminator,
        unk_token=tokenizer.unk_token,
        pad_token=tokenizer.pad_token,
        clean_up_tokenization_spaces=False,
    )
