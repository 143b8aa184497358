"""all-MiniLM-L6-v2, pruned in blocks of four and quantized; see README.md."""
