"""How the token of one row of logits is drawn where the logits are. No torch: it is made beside the scheduler."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Draw:
    """The parameters of one answer. What they mean is told at `kernels.reference.sample`."""

    temperature: float
    top_k: int  # 0: off
    top_p: float  # 1: off
    min_p: float  # 0: off
    key: int  # of the answer's noise, 0 .. 2**64 - 1
    vocab_size: int  # logits beyond belong to no token
