"""Sparse coders, one file an architecture, and the dictionary they become when saved."""

from monosemy.coders.batch_topk import BatchTopK
from monosemy.coders.changes import (
    Add,
    Amounts,
    Change,
    Clamp,
    ErrorTerm,
    ProjectOut,
    Scale,
    SuppressAll,
    Swap,
    ablate,
    changed,
)
from monosemy.coders.code import Code
from monosemy.coders.coder import SparseCoder
from monosemy.coders.diagnosis import Diagnosis
from monosemy.coders.dictionary import Dictionary
from monosemy.coders.doctor import attach, attach_once, diagnose
from monosemy.coders.fingerprint import Figures, Fingerprint
from monosemy.coders.first import meet
from monosemy.coders.provenance import Provenance
from monosemy.coders.registry import ARCHITECTURES, make_coder
from monosemy.coders.relu import ReLU
from monosemy.coders.topk import TopK

__all__ = [
    "ARCHITECTURES",
    "Add",
    "Amounts",
    "BatchTopK",
    "Change",
    "Clamp",
    "Code",
    "Diagnosis",
    "Dictionary",
    "ErrorTerm",
    "Figures",
    "Fingerprint",
    "ProjectOut",
    "Provenance",
    "ReLU",
    "Scale",
    "SparseCoder",
    "SuppressAll",
    "Swap",
    "TopK",
    "ablate",
    "attach",
    "attach_once",
    "changed",
    "diagnose",
    "make_coder",
    "meet",
]
