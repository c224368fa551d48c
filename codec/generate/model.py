"""Generators: small Llama-type decoders over the ids of a tokenizer's codes, from `transformers` (configuration only).

::

    codes [B, K, *window] -> Sequencer -> ids  begin x1 x2 ... xn end
    embedding of x(i) + place of x(i+1): its stream, and its cell along each axis -> LlamaModel -> h(i)
    h(i) -> logits of the ids that x(i+1) may have, and of no others -> p(x(i+1) | begin x1 ... x(i))

The place tells what comes next, so nothing is spent on what is certain: an id has the probabilities of its stream's
block alone, of a digit only values that some code has after the digits before it, and begin and end cost nothing.
Whatever is sampled is therefore a sequence of codes. A grid that is smaller than the window keeps the places (and the
rotary positions) that its cells have in the window.

The digits of large codes are those of the tokenizer's context prior, and a copy of their tree lies in the weights.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...entropy.tree import CodeTree
from ...tokenizers import weights
from ...tokenizers.api import BROKEN_SETTINGS
from ...tokenizers.budget import Budget
from ...tokenizers.folders import CONFIG_FILE, find_model, read_config
from ...tokenizers.graphed import record
from ...tokenizers.quantize.base import ABSENT
from ...tokenizers.sequence import BEGIN, END, MISSING, PAD, Pattern, Sequencer
from ...tokenizers.tokens import Tokens, TokenSpec
from ..corpus.token_files import parse_spec
from ..errors import ModelError
from ..models import pick_device
from ..registry import GENERATOR
from .sampling import choose

PATTERNS: tuple[Pattern, ...] = ("levels", "interleaved")  # those with one id a step
ATTENTION = "tokodec_sdpa"  # fused attention under a name for which transformers makes no masks of its own
INT8 = ("llama.",)  # weights that are released as int8
INT8_LARGEST = 11  # of these integers


@dataclass(frozen=True)
class GeneratorConfig:
    """What a :class:`Generator` makes, and its sizes."""

    window: TokenSpec  # of the tokens that it makes, and the largest that it looks at
    levels: int = 2  # so many of the tokenizer's, coarse to fine
    pattern: Pattern = "levels"  # order of the ids, see tokenizers/sequence.py
    bases: tuple[tuple[int, ...], ...] = ()  # of the digits of each level's codes; none: a code is one id
    hidden: int = 384  # width
    inner: int = 1024  # width inside the MLP of a block
    layers: int = 7
    heads: int = 6

    def __post_init__(self) -> None:
        if any(type(n) is not int for n in (self.levels, self.hidden, self.inner, self.layers, self.heads)):
            raise ValueError("levels, hidden, inner, layers and heads are integers")
        if any(type(n) is not int for bases in self.bases for n in bases):
            raise ValueError("bases of digits are integers")
        if not 1 <= self.levels <= len(self.window.codebook_sizes):
            raise ValueError(f"levels must be 1 to {len(self.window.codebook_sizes)}, got {self.levels}")
        if self.pattern not in PATTERNS:
            raise ValueError(f"a generator knows the patterns {' and '.join(PATTERNS)}, not {self.pattern!r}")
        if self.bases and len(self.bases) != self.levels:
            raise ValueError(f"digits for {len(self.bases)} of {self.levels} levels")
        if min(self.hidden, self.inner, self.layers, self.heads) < 1 or self.hidden % (2 * self.heads):
            raise ValueError("every head wants an even share of the width, and nothing may be below 1")
        if 0 in self.window.grid:
            raise ValueError("a window has a cell at least")


@dataclass(frozen=True)
class Order:
    """The steps of sequences over one grid: step i looks at position i and tells of the id at position i + 1.

    Attributes:
        stream, cell: ``[T]`` what the id is, see ``Sequencer.layout``.
        axes: ``[ndim, T]`` the cell along each axis.
        rotary: ``[T]`` place of the id among those of a whole window.
        groups: the steps of each stream, as ``(stream, [t])``; ``back [T]`` sorts what they give, one after the other.
    """

    stream: Tensor
    cell: Tensor
    axes: Tensor
    rotary: Tensor
    groups: tuple[tuple[int, Tensor], ...]
    back: Tensor

    def __len__(self) -> int:
        return len(self.stream)


class Generator(nn.Module):
    """See the module's text.

    Args:    trees: the digits of each level's codes, for ``config.bases``.
    Raises:  ImportError without `transformers`; ValueError if the trees do not fit the config.
    """

    def __init__(
        self, config: GeneratorConfig, trees: Sequence[CodeTree] = (), name: str = "generator", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.config, self.name, self.weights_hash, self.dropout = config, name, "", dropout
        sizes = config.window.codebook_sizes[: config.levels]
        if tuple(tuple(tree.bases) for tree in trees) != config.bases:
            raise ValueError("the trees have other digits than the config says")
        self.sequencer = Sequencer(sizes, config.pattern, list(trees) or None)
        self.spec = dataclasses.replace(config.window, codebook_sizes=sizes)  # of what it sees
        self.tables: dict[int, str] = {}  # stream -> buffer of the digits that a code has after those before them
        for k, tree in enumerate(trees):
            self.register_buffer(f"leaf_{k}", torch.from_numpy(tree.leaf.copy()))
            for s, stream in enumerate(self.sequencer.streams):
                if stream.codebook == k and not (used := torch.from_numpy(tree.used(stream.digit))).all():
                    self.tables[s] = f"used_{s}"
                    self.register_buffer(self.tables[s], used, persistent=False)
        self.llama = llama(config, self.sequencer.vocabulary_size, self._steps(math.prod(config.window.grid)), dropout)
        self.streams = nn.Embedding(self.sequencer.n_streams(), config.hidden)
        self.axes = nn.ModuleList(nn.Embedding(n, config.hidden) for n in config.window.grid)
        for table in (self.streams, *self.axes):
            assert isinstance(table, nn.Embedding)
            nn.init.normal_(table.weight, std=0.02)
        names = inspect.signature(self.llama.model.forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"  # its name in transformers 5.0
        self._orders: dict[tuple[object, ...], Order] = {}

    @property
    def device(self) -> torch.device:
        return self.streams.weight.device

    @property
    def window(self) -> tuple[int, ...]:
        """Cells along each axis of what it makes."""
        return self.config.window.grid

    # ---------------------------------------------------------------- sequences

    def _steps(self, cells: int, levels: int | None = None) -> int:
        return self.sequencer.length(cells, levels) - 2

    def order(self, grid: tuple[int, ...], levels: int | None = None) -> Order:
        """The steps of a grid that fits the window. levels: as in :class:`Sequencer`."""
        key = (grid, levels, self.device)
        if key not in self._orders:
            self._orders[key] = self._make_order(grid, levels)
        return self._orders[key]

    def _make_order(self, grid: tuple[int, ...], levels: int | None) -> Order:
        whole_stream, whole_cell = (x[1:-1] for x in self.sequencer.layout(math.prod(self.window)))
        place = torch.empty(self.sequencer.n_streams(), math.prod(self.window), dtype=torch.int64)
        place[whole_stream, whole_cell] = torch.arange(len(whole_stream))
        stream, cell = (x[1:-1] for x in self.sequencer.layout(math.prod(grid), levels))
        axes = torch.stack(torch.unravel_index(cell, grid))  # [ndim, T]
        inside = torch.zeros_like(cell)
        for along, n in zip(axes, self.window, strict=True):
            inside = inside * n + along
        groups = [(s, (stream == s).nonzero()[:, 0]) for s in stream.unique().tolist()]
        back = torch.cat([at for _, at in groups]).argsort()
        stream, cell, axes, rotary, back = (
            x.to(self.device) for x in (stream, cell, axes, place[stream, inside], back)
        )
        return Order(stream, cell, axes, rotary, groups=tuple((s, at.to(self.device)) for s, at in groups), back=back)

    def ids(self, codes: Tensor) -> Tensor:
        """Codes ``[B, K, *grid]`` of this model's levels at least to ids ``[B, T + 2]``; nothing is checked."""
        return self.sequencer.ids(codes[:, : self.config.levels])

    def tokens(self, ids: Tensor, spec: TokenSpec | None = None) -> Tokens:
        """Ids ``[B, T + 2]``, those of :meth:`ids`, to tokens. spec: of the grid; that of the window by default."""
        spec = spec or self.config.window
        narrow = dataclasses.replace(spec, codebook_sizes=self.spec.codebook_sizes)
        return Tokens(self.sequencer.unflatten(ids, narrow).codes, spec)

    def check(self, tokens: Tokens) -> None:
        """Raise ValueError unless these are tokens of this model's tokenizer, on a grid that fits the window."""
        spec, own = tokens.spec, self.config.window
        if (spec.model, spec.weights_hash) != (own.model, own.weights_hash):
            raise ValueError(
                f"{self.name} knows tokens of {own.model} {own.weights_hash}, not of {spec.model} {spec.weights_hash}"
            )
        if any(n > most for n, most in zip(spec.grid, self.window, strict=True)) or 0 in spec.grid:
            raise ValueError(f"a grid of {spec.grid} cells does not fit the window of {self.window}")

    def windows(self, codes: Tensor) -> Tensor:
        """All whole windows in codes ``[K, *grid]``, side by side and in raster order: ``[m, K, *window]``."""
        parts = [codes[None]]
        for axis, n in enumerate(self.window):
            parts = [piece for part in parts for piece in part.split(n, axis + 2) if piece.shape[axis + 2] == n]
        return torch.cat(parts) if parts else codes.new_zeros(0, len(codes), *self.window)

    # ---------------------------------------------------------------- the net

    def embed(self, ids: Tensor, order: Order, step: Tensor) -> Tensor:
        """Ids ``[B, t]`` at steps ``[t]`` to what the net takes, ``[B, t, D]``."""
        places = self.streams(order.stream[step])
        for table, along in zip(self.axes, order.axes, strict=True):
            places = places + table(along[step])
        return F.dropout(self.llama.model.embed_tokens(ids) + places, self.dropout, self.training)

    def hidden(self, ids: Tensor, order: Order) -> Tensor:
        """Ids ``[B, t]`` of the first t steps to ``[B, t, D]``."""
        step = torch.arange(ids.shape[1], device=ids.device)
        x = self.embed(ids, order, step)
        positions = order.rotary[None, : len(step)]
        found: Tensor = self.llama.model(inputs_embeds=x, position_ids=positions, use_cache=False).last_hidden_state
        return found

    def logits(self, hidden: Tensor, stream: int) -> Tensor:
        """``[B, t, D]`` to the logits of a stream's ids, ``[B, t, base]`` float32."""
        low, high = self.sequencer.allowed(stream)
        return F.linear(hidden, self.llama.lm_head.weight[low:high]).float()

    def possible(self, logits: Tensor, ids: Tensor, stream: int, position: Tensor) -> Tensor:
        """Logits ``[B, t, base]`` of the ids at positions ``[t]``, -inf for digits that no code has there."""
        if stream not in self.tables:
            return logits
        digit = self.sequencer.streams[stream].digit
        before = self.sequencer.streams[stream - digit : stream]
        prefix = torch.zeros_like(ids[:, position])
        for one in before:
            value = ids[:, position - (digit - one.digit)] - one.offset
            prefix = prefix * one.base + value
        return logits.masked_fill(~self.get_buffer(self.tables[stream])[prefix], -math.inf)

    def forward(self, ids: Tensor, order: Order | None = None) -> Tensor:
        """Whole sequences ``[B, T + 2]`` to what each id but begin and end costs, ``[B, T]`` nats.

        Args:   order: that of the grid; of the window by default.
        """
        order = order or self.order(self.window)
        hidden = self.hidden(ids[:, : len(order)], order)
        parts = []
        for s, at in order.groups:
            logits = self.possible(self.logits(hidden.index_select(1, at), s), ids, s, at + 1)
            target = ids.index_select(1, at + 1) - self.sequencer.streams[s].offset
            parts.append(F.cross_entropy(logits.transpose(1, 2), target, reduction="none"))
        return torch.cat(parts, 1).index_select(1, order.back)

    @torch.no_grad()
    def bits(self, tokens: Tokens, batch: int = 16) -> Tensor:
        """What each code costs given those before it, ``[B, levels, *grid]`` float64 bits, digits added up.

        Args:    tokens: of this model's tokenizer with its levels at least; more are left out.  batch: at a time.
        Raises:  ValueError for other tokens, a grid beyond the window (see :meth:`windows`), or absent codes.
        """
        self.check(tokens)
        codes = tokens.codes[:, : self.config.levels].to(self.device)
        if codes.shape[1] < self.config.levels or bool((codes == ABSENT).any()):
            raise ValueError(f"bits are those of complete codes of {self.config.levels} levels")
        order = self.order(tokens.spec.grid)
        cells = math.prod(tokens.spec.grid)
        book = torch.tensor([s.codebook for s in self.sequencer.streams], device=self.device)[order.stream]
        training = self.training
        self.eval()
        found = torch.zeros(len(codes), self.config.levels * cells, dtype=torch.float64, device=self.device)
        for rows, part in zip(found.split(batch), codes.split(batch), strict=True):
            rows.index_add_(1, book * cells + order.cell, self(self.ids(part), order).double() / math.log(2))
        self.train(training)
        return found.unflatten(1, (self.config.levels, *tokens.spec.grid))

    # ---------------------------------------------------------------- sampling

    @torch.no_grad()
    def sample(
        self,
        n: int = 1,
        prompt: Tokens | None = None,
        *,
        levels: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        use_cache: bool = True,
        progress: Callable[[float], None] | None = None,
    ) -> Tokens:
        """Draw tokens, one id after the other.

        Equal seeds give equal tokens on one device, with and without the cache (but for probabilities that differ in
        the last bit just where a draw falls).

        Args:
            n: samples.
            prompt: what is known, a batch of 1 or n; codes that are ``ABSENT`` are drawn, as are levels that are
                missing. Its grid is that of the samples; without a prompt it is the window. Codes that come later in
                the sequence do not bear on those before.
            levels: so many, at most this model's; all by default.
            temperature: logits are divided by it; 0 takes the most probable id each time.
            top_k: only the k most probable ids.  top_p: only the most probable ids that have this share together.
            generator: of the random numbers, one for each id and sample, drawn in advance.
            use_cache: keep keys and values; else every id costs a pass over all before it.
            progress: is called with the share that is done.
        Raises: ValueError for settings out of range, or a prompt that is not this model's.
        """
        levels = self.config.levels if levels is None else levels
        if not 1 <= levels <= self.config.levels:
            raise ValueError(f"levels must be 1 to {self.config.levels}, got {levels}")
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"temperature must be 0 or more, got {temperature}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top-k must be at least 1, got {top_k}")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top-p must be above 0 and at most 1, got {top_p}")
        if n < 1 or (prompt is not None and len(prompt.codes) not in (1, n)):
            raise ValueError("samples are one at least, and a prompt is a batch of one or of their number")
        spec = self.config.window if prompt is None else prompt.spec
        drawn = levels if self.config.pattern == "levels" else self.config.levels  # else all are needed on the way
        codes = torch.full((n, drawn, *spec.grid), ABSENT, device=self.device)
        if prompt is not None:
            self.check(prompt)
            held = min(drawn, prompt.n_levels)
            codes[:, :held] = prompt.codes[:, :held].to(self.device)
        ids = self.sequencer.ids(codes)
        order = self.order(spec.grid, drawn)
        open_ = ids == MISSING  # an ABSENT code
        wanted = open_.any(0).tolist()
        device = self.device if generator is None else generator.device
        draws = torch.rand(n, len(order), generator=generator, device=device, dtype=torch.float64).to(self.device)
        training = self.training
        self.eval()
        walk = Cached(self, n, order) if use_cache else Uncached(self, order)
        position = torch.arange(ids.shape[1], device=self.device)
        for i, s in enumerate(order.stream.tolist()):
            if not wanted[i + 1]:
                continue
            logits = self.logits(walk(ids, i + 1)[:, None], s)
            logits = self.possible(logits, ids, s, position[i + 1 : i + 2])[:, 0]
            chosen = choose(logits, draws[:, i], temperature, top_k, top_p) + self.sequencer.streams[s].offset
            ids[:, i + 1] = torch.where(open_[:, i + 1], chosen, ids[:, i + 1])
            if progress is not None:
                progress((i + 1) / len(order))
        self.train(training)
        return self.tokens(ids, spec).levels(levels)

    # ---------------------------------------------------------------- on disk

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into ``folder`` (made if missing), matrices as int8."""
        folder = Path(folder)
        entry = {"class": GENERATOR, "name": self.name, "config": dataclasses.asdict(self.config)}
        with weights.together(folder) as beside:
            weights.save(self.state_dict(), beside / weights.WEIGHTS_FILE, INT8, INT8_LARGEST)
            (beside / CONFIG_FILE).write_text(json.dumps(entry, indent=2) + "\n")
        self.weights_hash = weights.file_hash(folder / weights.WEIGHTS_FILE)

    @classmethod
    def from_pretrained(cls, name: str | Path, dropout: float = 0.0) -> Generator:
        """Load a generator by the name of a release, a folder, or a Hugging Face hub id written `hf:USER/MODEL`.

        Args:   dropout: for training that goes on.
        Raises: FileNotFoundError if there is none, ValueError if it is damaged or something else, ImportError without
                `transformers`.
        """
        folder = find_model(name, (GENERATOR,))
        found = read_config(folder, (GENERATOR,))
        state, weights_hash = weights.load_hashed(folder / weights.WEIGHTS_FILE)
        try:
            settings = _tuples(found["config"])
            config = GeneratorConfig(**{**settings, "window": parse_spec(settings["window"])})
            leaves = [state[f"leaf_{k}"].numpy() for k in range(len(config.bases))]
            trees = [CodeTree(bases, leaf) for bases, leaf in zip(config.bases, leaves, strict=True)]
            with Budget(state):
                model = cls(config, trees, found["name"], dropout)
            model.load_state_dict(state)
        except BROKEN_SETTINGS as error:
            detail = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(f"{folder}: {CONFIG_FILE} or the weights are not a generator's: {detail}") from error
        model.weights_hash = weights_hash
        return model.eval()


def _tuples(value: Any) -> Any:
    """Lists of a JSON text as tuples, all the way down."""
    if isinstance(value, dict):
        return {key: _tuples(v) for key, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def llama(config: GeneratorConfig, vocabulary: int, steps: int, dropout: float) -> Any:
    """An untrained ``LlamaForCausalLM``. Nothing is downloaded."""
    from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(ATTENTION, sdpa_attention_forward)
    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": config.hidden,
        "intermediate_size": config.inner,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "max_position_embeddings": steps,
        "attention_dropout": dropout,
        "use_cache": False,
        "pad_token_id": PAD,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "attn_implementation": ATTENTION,
    }
    return LlamaForCausalLM(LlamaConfig(**settings))


class Uncached:
    """Hidden states without a cache: every call is a pass over all ids so far."""

    def __init__(self, model: Generator, order: Order) -> None:
        self.model, self.order = model, order

    def __call__(self, ids: Tensor, end: int) -> Tensor:
        """``[n, D]`` of the last of the first ``end`` ids."""
        return self.model.hidden(ids[:, :end], self.order)[:, -1]


class Cached:
    """Hidden states with keys and values kept, so that a call is a pass over the ids that are new.

    To `transformers` this is a cache (what its layers call is :meth:`update`), with buffers of the final size. On a
    GPU a step of one id is one CUDA graph.
    """

    def __init__(self, model: Generator, n: int, order: Order) -> None:
        config, self.model, self.order = model.config, model, order
        shape = (config.layers, n, config.heads, len(order), config.hidden // config.heads)
        like = model.streams.weight
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.fed = 0  # ids that were taken
        self.step = torch.zeros(0, dtype=torch.int64)  # those of the pass at hand
        self.room = 0  # positions that the pass at hand looks at
        self.replay: Callable[..., Tensor] | None = None

    def __call__(self, ids: Tensor, end: int) -> Tensor:
        """``[n, D]`` of the last of the first ``end`` ids."""
        new = ids[:, self.fed : end]
        step = torch.arange(self.fed, end, device=ids.device)
        self.fed = end
        if not ids.is_cuda:
            self.room = end
            return self._pass(new, step)
        self.room = len(self.order)
        if new.shape[1] > 1:
            return self._pass(new, step)
        if self.replay is None:
            self.replay = record(self._pass, (new, step))
        return self.replay(new, step)

    def _pass(self, ids: Tensor, step: Tensor) -> Tensor:
        self.step = step
        mask = None  # one id that looks at all there is
        if len(step) > 1 or ids.is_cuda:
            mask = (torch.arange(self.room, device=ids.device) <= step[:, None])[None, None]
        arguments: dict[str, Any] = {self.model._cache_name: self, "use_cache": True}
        found: Tensor = self.model.llama.model(
            inputs_embeds=self.model.embed(ids, self.order, step),
            position_ids=self.order.rotary[step][None],
            attention_mask=mask,
            **arguments,
        ).last_hidden_state
        return found[:, -1]

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Put ``[n, heads, t, d]`` in its place; all of the layer so far."""
        self.keys[layer].index_copy_(2, self.step, key)
        self.values[layer].index_copy_(2, self.step, value)
        return self.keys[layer][:, :, : self.room], self.values[layer][:, :, : self.room]

    def get_seq_length(self, *_: Any) -> int:
        return self.fed


def load_generator(name: str | Path, device: str = "auto") -> Generator:
    """Load a generator by release name, folder or `hf:USER/MODEL`.

    Raises: ModelError if there is none, if it is damaged, or if `transformers` is missing.
    """
    try:
        return Generator.from_pretrained(name).to(pick_device(device))
    except ImportError as error:
        raise ModelError(f"generators need transformers: pip install 'tokodec[generate]' ({error})") from error
    except (OSError, ValueError) as error:
        raise ModelError(" ".join(str(error).split())) from error
