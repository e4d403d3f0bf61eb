"""RandOpt: sample N members, score each once, keep the best K.

run.py holds `search`; evaluation.py scores members over batches.py, in chunks.py that fit memory; store.py
keeps every score; report.py compares base, best members and their vote on held-out data.
"""

from .run import SearchResult, sample_member, search

__all__ = ["SearchResult", "sample_member", "search"]
