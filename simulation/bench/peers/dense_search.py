"""Plain sentence-transformers search: `python dense_search.py JOB.json`, JSON out.

Encode the query, `util.semantic_search` over the corpus' embeddings, one query at a time. The corpus is encoded here
as well, `encoded` texts of it by the clock, or read from a file of embeddings that the other side made.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer, models, util


def main(path: str) -> None:
    """Search and print seconds a query, seconds a text encoded, and the rows found."""
    job = json.loads(Path(path).read_text())
    text = json.loads(Path(job["corpus"]).read_text())
    torch.set_num_threads(1)
    transformer: Any = models.Transformer(job["model"], max_seq_length=job["max_tokens"])
    pooling: Any = models.Pooling(384, pooling_mode="mean")
    encoder: Any = SentenceTransformer(modules=[transformer, pooling, models.Normalize()], device="cpu")
    corpus = torch.from_numpy(np.load(job["embeddings"]))
    some = text["texts"][: job["encoded"]]
    begun = time.process_time()
    made = encoder.encode(some, batch_size=16, show_progress_bar=False)
    encoded = (time.process_time() - begun) / len(some)
    apart = float(np.abs(made - corpus[: len(some)].numpy()).max())
    found, took = [], []
    for query in text["asked"]:
        begun = time.process_time()
        vector = encoder.encode([query], show_progress_bar=False, convert_to_tensor=True)
        hits = util.semantic_search(vector, corpus, top_k=job["k"])[0]
        took.append(time.process_time() - begun)
        found.append([hit["corpus_id"] for hit in hits])
    answer = {"query_s": float(np.median(took)), "encode_s": encoded, "found": found, "apart": apart}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
