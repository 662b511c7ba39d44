"""Stand-ins for the attention kernels of others: their signatures, their checks, and what their
documentation says that they compute, in plain PyTorch.

H query and K KV heads, d channels; a cache is [blocks, block tokens, K, d]."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, left: int
) -> torch.Tensor:
    """query [n, H, d], key and value [L, K, d] → [n, H, d]: the last query sees the last key, each
    one `left` keys before its own (-1: all)."""
    (tokens, heads, _), (length, kv_heads, _) = query.shape, key.shape
    assert heads % kv_heads == 0, "the kernels want as many queries for each KV head"
    key, value = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (key, value))
    own = torch.arange(length - tokens, length)[:, None]
    at = torch.arange(length)[None, :]
    hidden = (at > own) | ((at < own - left) if left >= 0 else False)
    scores = torch.einsum("nhd,lhd->hnl", query, key) * scale
    return torch.einsum("hnl,lhd->nhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), value)


def from_blocks(cache: torch.Tensor, table: torch.Tensor, length: int) -> torch.Tensor:
    """[length, K, d] of one sequence."""
    return cache[table.long()].flatten(0, 1)[:length]


def _paged(
    query: torch.Tensor,
    starts: list[int],
    caches: tuple[torch.Tensor, torch.Tensor],
    tables: torch.Tensor,
    lengths: list[int],
    scale: float,
    left: int,
) -> torch.Tensor:
    parts = []
    for i, length in enumerate(lengths):
        key, value = (from_blocks(c, tables[i], length) for c in caches)
        parts.append(attend(query[starts[i] : starts[i + 1]], key, value, scale, left))
    return torch.cat(parts)


def _int32(*tensors: torch.Tensor) -> None:
    assert all(t.dtype is torch.int32 and t.is_contiguous() for t in tensors)


def _left(causal: bool, window_size: tuple[int, int]) -> int:
    assert causal and window_size[1] in (-1, 0)
    return window_size[0]


class Flash2Module:
    """`flash_attn`."""

    def flash_attn_with_kvcache(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        k: None = None,
        v: None = None,
        *,
        cache_seqlens: torch.Tensor,
        block_table: torch.Tensor,
        softmax_scale: float,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
    ) -> torch.Tensor:
        _int32(cache_seqlens, block_table)
        rows, one = q.shape[:2]
        assert one == 1 and tuple(cache_seqlens.shape) == (rows,) == block_table.shape[:1]
        lengths, left = cache_seqlens.tolist(), _left(causal, window_size)
        starts = list(range(rows + 1))
        caches = (k_cache, v_cache)
        return _paged(q[:, 0], starts, caches, block_table, lengths, softmax_scale, left)[:, None]

    def flash_attn_varlen_func(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float = 0.0,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        *,
        block_table: torch.Tensor,
    ) -> torch.Tensor:
        _int32(cu_seqlens_q, cu_seqlens_k, block_table)
        starts, lengths = cu_seqlens_q.tolist(), cu_seqlens_k.diff().tolist()
        assert (max_seqlen_q, max_seqlen_k) == (cu_seqlens_q.diff().max(), max(lengths))
        assert starts[-1] == q.shape[0] and len(lengths) == block_table.shape[0]
        left = _left(causal, window_size)
        return _paged(q, starts, (k, v), block_table, lengths, softmax_scale, left)


class Flash3Module:
    """`flash_attn_interface`."""

    def flash_attn_with_kvcache(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        k: None = None,
        v: None = None,
        *,
        cache_seqlens: torch.Tensor,
        page_table: torch.Tensor,
        cu_seqlens_q: torch.Tensor | None = None,
        max_seqlen_q: int | None = None,
        softmax_scale: float,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
    ) -> torch.Tensor:
        _int32(cache_seqlens, page_table)
        lengths, left = cache_seqlens.tolist(), _left(causal, window_size)
        caches = (k_cache, v_cache)
        if cu_seqlens_q is None:
            assert q.shape[:2] == (len(lengths), 1)
            starts = list(range(len(lengths) + 1))
            out = _paged(q[:, 0], starts, caches, page_table, lengths, softmax_scale, left)
            return out[:, None]
        _int32(cu_seqlens_q)
        assert q.dim() == 3 and max_seqlen_q == cu_seqlens_q.diff().max()
        starts = cu_seqlens_q.tolist()
        return _paged(q, starts, caches, page_table, lengths, softmax_scale, left)


def varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: object = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    num_splits: int | None = None,
) -> torch.Tensor:
    """`torch.nn.attention.varlen.varlen_attn` of PyTorch 2.12 and 2.13."""
    assert enable_gqa or query.shape[1] == key.shape[1]
    return varlen_attn_211(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size
    )


def varlen_attn_211(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: object = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """The same of PyTorch 2.11."""
    assert cu_seq_k is not None and scale is not None and window_size[1] == 0
    _int32(cu_seq_q, cu_seq_k)
    assert (max_q, max_k) == (cu_seq_q.diff().max(), cu_seq_k.diff().max())
    assert all(x.stride(-1) == 1 for x in (query, key, value))
    q, k = cu_seq_q.tolist(), cu_seq_k.tolist()
    assert (q[-1], k[-1]) == (query.shape[0], key.shape[0])
    parts = [
        attend(query[q[i] : q[i + 1]], key[k[i] : k[i + 1]], value[k[i] : k[i + 1]], scale, left)
        for i, left in enumerate([window_size[0]] * (len(q) - 1))
    ]
    return torch.cat(parts)


class FlashInferModule:
    """`flashinfer`; `made` are the wrappers, each with its plans."""

    def __init__(self) -> None:
        self.made: list[_Wrapper] = []
        self.BatchDecodeWithPagedKVCacheWrapper = self._make(_DecodeWrapper)
        self.BatchPrefillWithPagedKVCacheWrapper = self._make(_PrefillWrapper)

    def _make(self, kind: type[_Wrapper]) -> Any:
        def make(*args: Any, **options: Any) -> _Wrapper:
            self.made.append(kind(*args, **options))
            return self.made[-1]

        return make


class _Wrapper:
    def __init__(
        self,
        float_workspace_buffer: torch.Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        use_tensor_cores: bool = False,
        paged_kv_indptr_buffer: torch.Tensor | None = None,
        paged_kv_indices_buffer: torch.Tensor | None = None,
        paged_kv_last_page_len_buffer: torch.Tensor | None = None,
    ):
        assert float_workspace_buffer.dtype is torch.uint8 and kv_layout == "NHD"
        self.workspace, self.fixed = float_workspace_buffer, use_cuda_graph
        self.tensor_cores, self.plans = use_tensor_cores, 0
        self.buffers = (
            paged_kv_indptr_buffer,
            paged_kv_indices_buffer,
            paged_kv_last_page_len_buffer,
        )

    def _plan(
        self,
        queries: torch.Tensor,
        indptr: torch.Tensor,
        indices: torch.Tensor,
        last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        window_left: int,
        sm_scale: float,
    ) -> None:
        _int32(queries, indptr, indices, last_page_len)
        assert int(indptr[-1]) == len(indices) and len(indptr) == len(last_page_len) + 1
        assert 1 <= int(last_page_len.min()) <= int(last_page_len.max()) <= page_size
        if self.fixed:
            for buffer, values in zip(self.buffers, (indptr, indices, last_page_len), strict=True):
                assert buffer is not None and len(values) <= len(buffer)
                buffer[: len(values)].copy_(values)
            assert self.buffers[2] is not None and len(self.buffers[2]) == len(last_page_len)
        self.plans += 1
        self.planned = SimpleNamespace(
            starts=queries.tolist(),
            indptr=indptr.tolist(),
            indices=indices,
            lengths=((indptr.diff() - 1) * page_size + last_page_len).tolist(),
            heads=(num_qo_heads, num_kv_heads, head_dim),
            left=window_left,
            scale=sm_scale,
        )

    def run(self, q: torch.Tensor, paged_kv_cache: tuple[torch.Tensor, ...]) -> torch.Tensor:
        p, parts = self.planned, []
        assert (q.shape[1], *paged_kv_cache[0].shape[2:]) == p.heads
        for i, length in enumerate(p.lengths):
            table = p.indices[p.indptr[i] : p.indptr[i + 1]]
            key, value = (from_blocks(c, table, length) for c in paged_kv_cache)
            own = q[p.starts[i] : p.starts[i + 1]]
            parts.append(attend(own, key, value, p.scale, p.left))
        return torch.cat(parts)


class _DecodeWrapper(_Wrapper):
    def plan(
        self,
        indptr: torch.Tensor,
        indices: torch.Tensor,
        last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        *,
        window_left: int = -1,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
        sm_scale: float,
    ) -> None:
        assert self.tensor_cores or num_qo_heads // num_kv_heads in (1, 2, 4, 8)
        queries = torch.arange(len(indptr), dtype=torch.int32)
        heads = (num_qo_heads, num_kv_heads, head_dim)
        blocks = (indptr, indices, last_page_len)
        self._plan(queries, *blocks, *heads, page_size, window_left, sm_scale)


class _PrefillWrapper(_Wrapper):
    def plan(
        self,
        qo_indptr: torch.Tensor,
        paged_kv_indptr: torch.Tensor,
        paged_kv_indices: torch.Tensor,
        paged_kv_last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        *,
        causal: bool = False,
        sm_scale: float,
        window_left: int = -1,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
    ) -> None:
        assert causal
        heads = (num_qo_heads, num_kv_heads, head_dim_qk)
        blocks = (paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len)
        self._plan(qo_indptr, *blocks, *heads, page_size, window_left, sm_scale)
