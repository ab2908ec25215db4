"""A Hugging Face model seen as hook points: list them, capture them, edit them, steer."""

from monosemy.lm.hookpoints import HookPoint
from monosemy.lm.hooks import Call, Edit
from monosemy.lm.lm import LM, Continuation, Hooking, Steerable
from monosemy.lm.load import empty_model
from monosemy.lm.many import padded_right
from monosemy.lm.replay import Replay
from monosemy.lm.texts import chat_document, generate_documents
from monosemy.lm.unembedding import Unembedding

__all__ = [
    "LM",
    "Call",
    "Continuation",
    "Edit",
    "HookPoint",
    "Hooking",
    "Replay",
    "Steerable",
    "Unembedding",
    "chat_document",
    "empty_model",
    "generate_documents",
    "padded_right",
]
