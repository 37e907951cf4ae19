"""rank-bm25 over a corpus of words: `python bm25_search.py JOB.json`, JSON out.

The job names a file with `documents` and `queries`, both lists of words; what is timed is a query to its best rows.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from rank_bm25 import BM25Okapi


def main(path: str) -> None:
    """Search and print seconds a query, seconds to index, and the rows found."""
    job = json.loads(Path(path).read_text())
    text = json.loads(Path(job["corpus"]).read_text())
    begun = time.process_time()
    index = BM25Okapi(text["documents"])
    indexed = time.process_time() - begun
    found, took = [], []
    for query in text["queries"]:
        begun = time.process_time()
        rows = np.argsort(index.get_scores(query))[::-1][: job["k"]]
        took.append(time.process_time() - begun)
        found.append(rows.tolist())
    sys.stdout.write(json.dumps({"query_s": float(np.median(took)), "index_s": indexed, "found": found}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
