"""What training leaves behind: a network, how its outputs become a judgement, and their bytes in a file.

A file is MAGIC, the SHA-256 of the rest, the length of a JSON header, the header, the names of the features one a line,
and the arrays, little-endian, in the order of `_ARRAYS`. Nothing in it is executed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from gateway.routing.domain_features import Vocabulary, split_words
from gateway.routing.domain_network import Network
from gateway.routing.domain_training import Calibration, Scorer

MAGIC = b"hatchway domains 1\n"
MAX_BYTES = 32 * 1024 * 1024
MAX_HEADER_BYTES = 1024 * 1024
MAX_DOMAINS, MAX_CLASSES, MAX_FEATURES, MAX_UNITS = 1_000, 10_000, 200_000, 1_024
MIN_KNOWN = 0.15
"""Of a text, the part that has to be known (see `Network.logits`): what shares a few letters alone is no match."""

MAX_NUMBER = 1e6
"""Far beyond what training arrives at; with it no judgement overflows."""


class Learned(msgspec.Struct, frozen=True):
    """What a model was made from and what to expect of it. `threshold`: of confidence. `in_scope_accuracy` and
    `none_recall` are cross-validated shares from 0 to 1; None: there was nothing to measure them with."""

    lines: int
    classes: int
    features: int
    threshold: float
    in_scope_accuracy: float | None
    none_recall: float | None


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    domains: tuple[str, ...]
    groups: tuple[int, ...]
    slope: float
    shift: float
    learned: Learned
    features: int
    units: int
    names_bytes: int
    unknown_weight: float


class Model:
    """Immutable. Judges texts that are given as their words."""

    __slots__ = ("calibration", "domains", "learned", "network", "scorer")

    def __init__(
        self, domains: Sequence[str], network: Network, scorer: Scorer, calibration: Calibration, learned: Learned
    ) -> None:
        self.domains = tuple(domains)
        self.network, self.scorer, self.calibration, self.learned = network, scorer, calibration, learned

    def judge(self, text: str) -> tuple[str, float, bool]:
        """The best domain, the confidence in it, and whether that is enough: never below MIN_KNOWN."""
        logits, known = self.network.logits(self.network.vocabulary.encode(split_words(text)))
        best, score = self.scorer.score(logits, known)
        confidence = self.calibration.confidence(score)
        return self.domains[best], confidence, confidence > self.calibration.threshold and known >= MIN_KNOWN

    def to_bytes(self) -> bytes:
        network = self.network
        names = "\n".join(network.vocabulary.names).encode("utf-8", "surrogatepass")
        header = msgspec.json.encode(
            _Header(
                domains=self.domains,
                groups=self.scorer.groups,
                slope=self.calibration.slope,
                shift=self.calibration.shift,
                learned=self.learned,
                features=network.rows.shape[0],
                units=network.rows.shape[1],
                names_bytes=len(names),
                unknown_weight=network.vocabulary.unknown_weight,
            )
        )
        arrays: tuple[Any, ...] = (
            network.rows,
            network.scales,
            np.array(network.vocabulary.weights),
            network.bias,
            network.output,
            network.output_bias,
        )
        parts = [array.astype(kind).tobytes() for array, (kind, _) in zip(arrays, _ARRAYS, strict=True)]
        rest = b"".join([len(header).to_bytes(4, "little"), header, names, *parts])
        return MAGIC + hashlib.sha256(rest).digest() + rest

    @classmethod
    def from_bytes(cls, data: bytes) -> Model:
        """Raises ValueError for anything that `to_bytes` did not write."""
        header, names, arrays = _take_apart(data)
        rows, scales, weights, bias, output, output_bias = arrays
        if not all((np.abs(array) <= MAX_NUMBER).all() for array in arrays if array.dtype != np.int8):
            raise _damaged("a number in it is out of range")
        if not (weights > 0).all():
            raise _damaged("a feature has no weight")
        network = Network(
            Vocabulary(names, weights.tolist(), header.unknown_weight), rows, scales, bias, output, output_bias
        )
        calibration = Calibration(header.slope, header.shift, header.learned.threshold)
        return cls(header.domains, network, Scorer(header.groups, len(header.domains)), calibration, header.learned)


# Type and shape (of F features, H units and C classes) of each array.
_ARRAYS = (("<i1", "FH"), ("<f4", "F"), ("<f4", "F"), ("<f4", "H"), ("<f4", "HC"), ("<f4", "C"))


def _take_apart(data: bytes) -> tuple[_Header, list[str], list[Any]]:
    start = len(MAGIC) + 32
    if len(data) > MAX_BYTES:
        raise _damaged(f"it is over {MAX_BYTES} bytes")
    if not data.startswith(MAGIC) or len(data) < start + 4:
        raise ValueError("not a domain model\nhint: `hatchway domains train` makes one")
    rest = data[start:]
    if hashlib.sha256(rest).digest() != data[len(MAGIC) : start]:
        raise _damaged("its checksum does not fit")
    size = int.from_bytes(rest[:4], "little")
    if size > MAX_HEADER_BYTES:
        raise _damaged("its header is too long")
    try:
        header = msgspec.json.decode(rest[4 : 4 + size], type=_Header)
        _check(header)
        at = 4 + size + header.names_bytes
        names = rest[4 + size : at].decode("utf-8", "surrogatepass").split("\n") if header.features else []
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(str(error)) from None
    if len(names) != header.features or len(set(names)) != len(names) or not all(names):
        raise _damaged("its features are not those that it announces")
    lengths = {"F": header.features, "H": header.units, "C": len(header.groups)}
    arrays = []
    for kind, letters in _ARRAYS:
        shape = [lengths[letter] for letter in letters]
        count = int(np.prod(shape))
        end = at + count * np.dtype(kind).itemsize
        if end > len(rest):
            raise _damaged("it ends early")
        arrays.append(np.frombuffer(rest, kind, count, at).reshape(shape))
        at = end
    if at != len(rest):
        raise _damaged("it goes on after its end")
    return header, names, arrays


def _check(header: _Header) -> None:
    groups = header.groups
    if not 1 <= len(header.domains) <= MAX_DOMAINS or len(set(header.domains)) != len(header.domains):
        raise _damaged("its domains are no list of names")
    if not 1 <= len(groups) <= MAX_CLASSES or list(groups) != sorted(groups):
        raise _damaged("its classes are not in order")
    if groups[0] < 0 or groups[0] == len(header.domains) or groups[-1] > len(header.domains):
        raise _damaged("its classes have no domain")
    numbers = (header.slope, header.shift, header.unknown_weight, header.learned.threshold)
    if not all(abs(number) <= MAX_NUMBER for number in numbers) or header.unknown_weight <= 0:
        raise _damaged("a number in it is out of range")
    if not (0 <= header.features <= MAX_FEATURES and 1 <= header.units <= MAX_UNITS and header.names_bytes >= 0):
        raise _damaged("its sizes are out of range")


def _damaged(why: str) -> ValueError:
    return ValueError(f"the domain model is damaged: {why}\nhint: make it again with `hatchway domains train`")
