"""Every wire format by its name."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.protocols.base import EmbeddingWire, Wire
from gateway.protocols.chat.wire import CHAT_WIRE
from gateway.protocols.cohere.wire import COHERE_EMBEDDINGS, COHERE_WIRE
from gateway.protocols.completions.wire import COMPLETIONS_WIRE
from gateway.protocols.converse.wire import BEDROCK_EMBEDDINGS, CONVERSE_WIRE
from gateway.protocols.embeddings.wire import EMBEDDINGS_WIRE
from gateway.protocols.gemini.wire import GEMINI_EMBEDDINGS, GEMINI_WIRE, VERTEX_EMBEDDINGS
from gateway.protocols.messages.wire import MESSAGES_WIRE
from gateway.protocols.ollama.wire import OLLAMA_EMBEDDINGS, OLLAMA_WIRE
from gateway.protocols.responses.wire import RESPONSES_WIRE
from gateway.types import WireName

WIRES: Mapping[WireName, Wire] = {
    "chat": CHAT_WIRE,
    "responses": RESPONSES_WIRE,
    "messages": MESSAGES_WIRE,
    "completions": COMPLETIONS_WIRE,
    "gemini": GEMINI_WIRE,
    "converse": CONVERSE_WIRE,
    "cohere": COHERE_WIRE,
    "ollama": OLLAMA_WIRE,
}
EMBEDDINGS: Mapping[WireName, EmbeddingWire] = {
    "embeddings": EMBEDDINGS_WIRE,
    "gemini": GEMINI_EMBEDDINGS,
    "predict": VERTEX_EMBEDDINGS,
    "converse": BEDROCK_EMBEDDINGS,
    "cohere": COHERE_EMBEDDINGS,
    "ollama": OLLAMA_EMBEDDINGS,
}
