"""Which proteins of a file are most alike? Cosine similarity of their embeddings.

python examples/nearest.py examples/ecoli.fasta
"""

import sys

import numpy as np

import protembed

model = protembed.load()
records, vectors = zip(*model.embed(sys.argv[1]), strict=True)
matrix = np.stack(vectors) - np.mean(vectors, axis=0)
matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
similarity = matrix @ matrix.T - 2 * np.eye(len(matrix))
for record, row in zip(records, similarity, strict=True):
    best = int(row.argmax())
    print(f"{record.id}\t{records[best].id}\t{row[best]:.3f}")
