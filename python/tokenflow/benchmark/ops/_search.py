"""What the searches have in common: the judge, and peers that find a nearest row.

Peers are given what suits them best, outside of the timing: rows of unit length, the
joined book, indexes filled. `case.query` [N, D] is searched in `case.rows` [K, D]; of
rows of unit length the nearest one has the largest product.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tokenflow.benchmark.method import Call, Methods, Values, compiled

_GIB = 2**30
_TRUTH = 5e10  # float64 operations that the judge may take
_REFERENCE = 2e8  # entries × width that the reference itself is asked for


def scores_of(case: Any, indices: Tensor) -> Tensor:
    """Scores of one entry per vector as docs/numerics.md defines them."""
    rows, query = case.rows[indices].double(), case.query[: len(indices)].double()
    total = torch.zeros(len(indices), dtype=torch.float64, device=rows.device)
    squares = torch.zeros_like(total)
    for d in range(rows.shape[1]):
        total += query[:, d] * rows[:, d]
        squares += rows[:, d] * rows[:, d]
    return total if case.unit else total - 0.5 * squares


def truth(case: Any) -> dict[str, Tensor]:
    """Winners by a float64 product, and of the first vectors by the reference."""
    n, (k, d) = len(case.query), case.rows.shape
    count = int(min(n, max(16, _TRUTH / (2 * k * d))))
    first = int(min(n, max(4, _REFERENCE / (k * d))))
    rows = case.rows.double()
    offset = 0.0 if case.unit else 0.5 * rows.square().sum(1)
    step = max(1, (1 << 26) // k)
    parts = [
        (part.double() @ rows.T - offset).argmax(1)
        for part in case.query[:count].split(step)
    ]
    return {"product": torch.cat(parts), "reference": case.reference(first)}


def judge(found: Tensor, right: dict[str, Tensor], case: Any) -> dict[str, Any]:
    """Count what is not the first entry of the largest exact score.

    Entries within the rounding of a float64 product of each other are told apart by
    their exact scores, and against the reference not at all: there an index is right
    or wrong. `excess` is the largest squared distance beyond the smallest.
    """
    found = found.to(case.query.device)
    judged, first = len(right["product"]), len(right["reference"])
    ours, best = found[:judged], right["product"]
    inside = (ours >= 0) & (ours < len(case.rows))
    mine = scores_of(case, torch.where(inside, ours, 0))
    theirs = scores_of(case, best)
    lesser = ~inside | (mine < theirs) | ((mine == theirs) & (ours > best))
    lesser[:first] = ours[:first] != right["reference"]
    excess = torch.where(inside, 2 * (theirs - mine), torch.inf).max().item()
    wrong = int(lesser.sum())
    scale = max(1.0, float(case.rows.double().square().sum(1).max()))
    return {
        "mismatches": wrong,
        "judged": judged,
        "excess": excess if excess < 1e30 else None,
        "right": excess <= 1e-3 * scale,
    }


def work(n: int, k: int, width: int) -> dict[str, float]:
    """A product and an addition for each vector, entry and feature."""
    operations = 2.0 * n * k * width
    return {"fma": operations, "int8": operations}


def matrices(count: float) -> Any:
    """`takes` of a method that stores that many N × K matrices of float32."""

    def takes(values: Values) -> float:
        return count * values["n"] * values["k"] * 4

    return takes


def _offset(case: Any) -> Tensor:
    """Half of the entries' squares; zero where they do not matter."""
    half = 0.5 * case.rows.square().sum(1)
    return torch.zeros_like(half) if case.unit else half


def _best(query: Tensor, columns: Tensor) -> Tensor:
    return (query @ columns).argmax(1)


def _best_with_offset(query: Tensor, columns: Tensor, offset: Tensor) -> Tensor:
    return torch.addmm(-offset, query, columns).argmax(1)


def _form(case: Any, compile_it: bool) -> Call:
    columns, offset = case.rows.T, _offset(case)
    best, given = _best_with_offset, (case.query, columns, offset)
    if case.unit:
        best, given = _best, (case.query, columns)
    function = compiled(best) if compile_it else best
    return lambda: function(*given)


def in_chunks(query: Tensor, rows: Tensor, offset: Tensor, step: int = 2048) -> Tensor:
    """The best of each chunk of entries, kept where it beats the ones before."""
    best = torch.full((len(query),), -torch.inf, device=query.device)
    index = torch.zeros(len(query), dtype=torch.int64, device=query.device)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        top, where = torch.addmm(-offset[part], query, rows[part].T).max(1)
        better = top > best
        best = torch.where(better, top, best)
        index = torch.where(better, where + start, index)
    return index


def add_peers(method: Methods) -> None:
    """Register the searches of others."""

    @method("product + argmax", takes=matrices(1))
    def product(case: Any) -> Call:
        """One matrix product, then its largest column."""
        return _form(case, compile_it=False)

    @method("chunks 256 × 2048")
    def chunks(case: Any) -> Call:
        """Products that stay in the cache."""
        offset = _offset(case)
        parts = case.query.split(256 if case.query.device.type == "cpu" else 16384)
        return lambda: torch.cat([in_chunks(p, case.rows, offset) for p in parts])

    @method("compiled", compiled=True, takes=matrices(1), fits=_one_compiled)
    def one_compiled(case: Any) -> Call:
        """The product and argmax under torch.compile."""
        return _form(case, compile_it=True)

    @method("faiss IndexFlatIP", library="faiss", device="cpu")
    def faiss_ip(case: Any) -> Call:
        """Largest inner product; an added column stands for the squares."""
        import faiss

        query, rows = case.query, case.rows
        if not case.unit:
            query = torch.cat([query, torch.ones(len(query), 1)], 1)
            rows = torch.cat([rows, -_offset(case)[:, None]], 1)
        return _faiss(faiss.IndexFlatIP(rows.shape[1]), query, rows)

    @method("faiss IndexFlatL2", library="faiss", device="cpu")
    def faiss_l2(case: Any) -> Call:
        """Smallest distance."""
        import faiss

        index = faiss.IndexFlatL2(case.rows.shape[1])
        return _faiss(index, case.query, case.rows)

    @method(
        "vector-quantize-pytorch",
        library="vector_quantize_pytorch",
        takes=matrices(6),
    )
    def vector_quantize(case: Any) -> Call:
        """The codebook of VectorQuantize, evaluating."""
        from vector_quantize_pytorch import VectorQuantize

        k, width = case.rows.shape
        model = VectorQuantize(dim=width, codebook_size=k).eval()
        book = model._codebook.to(case.rows.device)
        book.embed.data.copy_(case.rows[None])
        return lambda: book(case.query[None])[1][0]

    @method("scikit-learn", library="sklearn", device="cpu")
    def scikit_learn(case: Any) -> Call:
        """pairwise_distances_argmin, Euclidean."""
        from sklearn.metrics import pairwise_distances_argmin

        query, rows = case.query.numpy(), case.rows.numpy()
        return lambda: torch.from_numpy(pairwise_distances_argmin(query, rows))

    @method("flash-kmeans", library="flash_kmeans", device="cuda")
    def flash_kmeans(case: Any) -> Call:
        """Its Triton kernel for the nearest centre, float32 in, TF32 inside."""
        from flash_kmeans.assign_euclid_triton import euclid_assign_triton

        query, rows = case.query[None].contiguous(), case.rows[None].contiguous()
        squares = query.square().sum(-1)
        return lambda: euclid_assign_triton(query, rows, squares)[0].long()

    @method("numpy", library="numpy", takes=matrices(1), device="cpu")
    def numpy(case: Any) -> Call:
        """One matrix product, then its largest column."""
        query, rows = case.query.numpy(), case.rows.numpy()
        offset = _offset(case).numpy()

        def call() -> Tensor:
            scores = query @ rows.T
            if not case.unit:
                scores -= offset
            return torch.from_numpy(scores.argmax(1))

        return call


def _faiss(index: Any, query: Tensor, rows: Tensor) -> Call:
    index.add(rows.numpy())
    given = query.contiguous().numpy()
    return lambda: torch.from_numpy(index.search(given, 1)[1][:, 0])


def _one_compiled(values: Values) -> str:
    """Compiling takes ten seconds a shape."""
    return "" if values.get("compile", True) else "not compiled for this case"


def namespace(**facts: Any) -> SimpleNamespace:
    """A case."""
    return SimpleNamespace(**facts)
