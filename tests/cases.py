"""The reliability cases for blocks, files and names, by number.

A test of case 35 has the marker `@pytest.mark.case35`. `pytest -m case35` runs it, and `pytest --markers` lists all
cases.
"""

CASES = {
    1: "C = 1", 2: "C = 2", 3: "C prime", 4: "C < reduction", 5: "C = 0", 6: "C < 0", 7: "C = 8.0", 8: "C = True",
    9: "reduction 0, negative, float", 10: "even or zero kernel", 11: "batch 0", 12: "1 x 1 space", 13: "1 x N space",
    14: "odd space", 15: "empty space", 16: "space smaller than the kernel", 17: "wrong C", 18: "rank 2",
    19: "rank 3", 20: "rank 5 into 2-D", 21: "rank 4 into 3-D", 22: "the other layout", 23: "gate: g coarser",
    24: "gate: g finer", 25: "gate: batch 1 against 2", 26: "gate: g 1 x 1",
    27: "U-Net: size not divisible", 28: "U-Net: size smaller than 2^depth", 29: "C = 4096",
    30: "int64 input", 31: "uint8 input", 32: "bool input", 33: "complex input", 34: "float64 into float32",
    35: "float16 sum past 65504", 36: "float16 near its maximum", 37: "bfloat16", 38: "autocast", 39: "one NaN",
    40: "one +inf", 41: "one -inf", 42: "all zeros: every value ties", 43: "constant input: no variance",
    44: "scale 1e3: gates saturate", 45: "scale 1e-30: subnormal products", 46: "NumPy array to torch",
    47: "tensor of the other framework", 48: "None, str",
    49: "non-contiguous input", 50: "channels_last memory kept", 51: "expanded input", 52: "negative-stride array",
    53: "input not changed", 54: "requires_grad False", 55: "gradcheck", 56: "gradgradcheck",
    57: "no_grad, inference_mode", 58: "every parameter gets a gradient", 59: "vmap", 60: "train against eval",
    61: "batch norm of one value per channel", 62: "rerun is bitwise equal", 63: "1, 2, 4 threads",
    64: "batch invariance", 65: "deterministic algorithms", 66: "DDP on two processes", 67: "DataParallel",
    68: "deepcopy", 69: "pickle", 70: "worker processes", 71: "hooks run", 72: "torch.export, dynamic sizes",
    73: "torch.compile fullgraph, second shape", 74: "torch.jit.script", 75: "torch.jit.trace", 76: "torch.fx",
    77: "ONNX at odd and even sizes", 78: "meta device", 79: "SavedModel", 80: "LiteRT", 81: ".keras reload",
    82: ".keras reload without attzoo imported", 83: "state_dict both ways", 84: "missing weight",
    85: "surplus weight", 86: "misshapen weight", 87: "weight of wrong dtype", 88: "integer weight",
    89: "NaN weight", 90: "pickle bomb", 91: "legacy .pt", 92: "whole-module .pt", 93: "truncated file",
    94: "empty file", 95: "random bytes", 96: "bad shape in the file", 97: "offset past the end",
    98: "overlapping offsets", 99: "hole between offsets", 100: "bad dtype in the file", 101: "shape of 2^62",
    102: "negative shape", 103: "header not UTF-8", 104: "duplicate key", 105: "header of 2^63 bytes",
    106: "a directory", 107: "no such file", 108: "object .npy", 109: ".keras with os.system",
    110: ".keras with subprocess", 111: ".keras with builtins.eval", 112: ".keras that turns safety off",
    113: "zip with a ../ member", 114: "file without weights", 115: "Lambda in .keras", 116: "Lambda in .h5",
    117: "traversal and symlinks in names", 118: "file over the size cap", 119: "unknown name, nearest offered",
    120: "hostile names", 121: "a name registered twice", 122: "unknown backend", 123: "plugin raises on import",
    124: "plugin without the class", 125: "plugin shadows a built-in", 126: "framework absent: the extra is named",
    127: "TensorFlow before triton", 128: "import attzoo loads no framework", 129: "framework older than the floor",
    130: "KERAS_BACKEND changed after import", 131: "read-only home", 132: "no network",
}  # fmt: skip
