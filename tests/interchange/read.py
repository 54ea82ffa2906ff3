# SPDX-License-Identifier: MIT
"""read.py PROGRAM FOLDER: what the library wrote, read by NumPy and by Python's faiss, as their users would."""
import json, os, subprocess, sys

try:
    import faiss, numpy as np
except ImportError as e:
    print("skipped:", e)
    sys.exit(77)

program, folder = sys.argv[1:]
os.makedirs(folder, exist_ok=True)
for name in ("index.faiss", "index.faiss.trained"):
    if os.path.exists(f"{folder}/{name}"):
        os.unlink(f"{folder}/{name}")
said = json.loads(subprocess.run([program, folder], check=True, capture_output=True, text=True).stdout)
n, d, k = said["rows"], said["d"], said["k"]

keys, values = np.load(f"{folder}/store/keys.npy", mmap_mode="r"), np.load(f"{folder}/store/values.npy")
assert keys.shape == (n, d) and keys.dtype == np.float16, (keys.shape, keys.dtype)
assert values.shape == (n,) and values.dtype == np.int32 and int(values.sum()) == said["value_sum"]
about = json.load(open(f"{folder}/store/mnemo.json"))
assert about["rows"] == n, about

# The kNN-LM reference opens its files like this (fairseq/knnlm.py).
for prefix, key_type, value_type in (("fp32", np.float32, np.int64), ("fp16", np.float16, np.int16)):
    raw_keys = np.memmap(f"{folder}/{prefix}_keys.npy", dtype=key_type, mode="r", shape=(n, d))
    raw_values = np.memmap(f"{folder}/{prefix}_vals.npy", dtype=value_type, mode="r", shape=(n, 1))
    assert os.path.getsize(f"{folder}/{prefix}_keys.npy") == n * d * np.dtype(key_type).itemsize
    assert np.array_equal(raw_keys, keys.astype(key_type)) and np.array_equal(raw_values[:, 0], values)

index = faiss.read_index(f"{folder}/index.faiss")
index.nprobe = 16
assert index.ntotal == n and index.d == d
# The first five keys were the queries, before they were rounded to half.
distances, ids = index.search(np.asarray(keys[:5], dtype=np.float32), k)
scores = np.array(said["scores"], dtype=np.float32).reshape(5, k)
assert np.allclose(-distances, scores, rtol=1e-2, atol=0.1), np.abs(-distances - scores).max()
assert all(i in row for i, row in enumerate(ids))
print("NumPy", np.__version__, "and faiss", faiss.__version__, "read", n, "rows")
