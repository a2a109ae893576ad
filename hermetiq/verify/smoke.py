"""Does the artifact end its turns where the source would, and keep its tags to itself?

The artifact answers fixed prompts greedily in llama.cpp. The source cannot answer cheaply (a model that is walked one
block at a time computes a whole text at once, not token after token), so it is asked about the artifact's own answers:
after each token, would the source have stopped? What is claimed is exactly this: along every answer, at every token,
artifact and source agree on whether the turn ends here, ties aside. An artifact that runs on past the source's end, or
stops in the middle of the source's sentence, is caught. That both use the same words is not claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from hermetiq.chat.contract import ChatContract
from hermetiq.chat.conversations import Prompt
from hermetiq.runtimes.llama_cpp import Generation


@dataclass(frozen=True)
class Answer:
    """One prompt, the artifact's greedy answer, and the token ids of both."""

    prompt: str
    """What the user asked."""
    prompt_ids: tuple[int, ...]
    generation: Generation

    @property
    def ids(self) -> tuple[int, ...]:
        """Prompt and answer without its last token: what the source reads to say what should come last."""
        return self.prompt_ids + self.generation.ids[:-1]


def answered(prompt: Prompt, generation: Generation) -> Answer:
    """What was generated, as the answer to a smoke prompt."""
    return Answer(str(prompt.messages[-1]["content"]), prompt.ids, generation)


def generated(ids: tuple[int, ...], stop_ids: Collection[int], decode: Callable[[Sequence[int]], str]) -> Generation:
    """Ids that something else than llama.cpp made, the stop that ended them included; it is no part of the text."""
    stopped = bool(ids) and ids[-1] in stop_ids
    return Generation(ids, decode(ids[:-1] if stopped else ids), stopped)


def stop_leads(logprobs: Tensor, stop_ids: Collection[int]) -> Tensor:
    """By how much each position prefers to stop: best stop token minus best other token, in nats; positive means stop.

    `logprobs` is (tokens, vocabulary); the result is (tokens,).
    """
    stops = sorted(stop_ids)
    others = logprobs.clone()
    others[:, stops] = -float("inf")
    return logprobs[:, stops].amax(dim=1) - others.amax(dim=1)


def stop_fault(answer: Answer, leads: Sequence[float], *, margin: float) -> str:
    """In words, the first place where the artifact and the source disagree on ending the turn; empty if there is none.

    Args:
        leads: `stop_leads` of the source before each generated token.
        margin: a lead of less, in nats, is a tie.
    """
    last = len(leads) - 1
    for index, lead in enumerate(leads):
        stopped = answer.generation.stopped and index == last
        if not stopped and lead > margin:
            return f"{answer.prompt!r}: goes on after {index} tokens, where the source ends the turn by {lead:.2f} nats"
        if stopped and lead < -margin:
            return f"{answer.prompt!r}: ends after {index} tokens, where the source goes on by {-lead:.2f} nats"
    return ""


def leak(
    answer: Answer,
    contract: ChatContract,
    *,
    choices: Sequence[int],
    decode: Callable[[Sequence[int]], str],
) -> str:
    """In words, the first tag or padding row that shows up in an answer; empty if there is none.

    Args:
        choices: the source's first choice for each generated token; a tag that is its choice too (`<think>`) belongs.
        decode: text of ids, by the source's tokenizer.
    """
    generation = answer.generation
    body = generation.ids[:-1] if generation.stopped else generation.ids
    if generation.stopped and generation.ids[-1] not in contract.stop_ids:
        return f"{answer.prompt!r}: ended by token {generation.ids[-1]}, which is no stop of the source"
    tags = {tag.id: tag.text for tag in contract.tags}
    for token, choice in zip(body, choices, strict=False):
        if token >= contract.tokens:
            return f"{answer.prompt!r}: generated the padding row {token}"
        if token in tags and token != choice:
            return f"{answer.prompt!r}: generated {tags[token]} ({token}) inside the answer"
    text = decode([token for token in body if token not in tags])
    spelled = next((tag for tag in tags.values() if tag in text), None)
    return f"{answer.prompt!r}: spelled out {spelled} in {text!r}" if spelled else ""
