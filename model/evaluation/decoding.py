"""How fills are made: the decoding options that the subcommands share, and running them."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from tqdm import tqdm

from model import api, engines
from model.backbone.catalogue import DEFAULT

logger = logging.getLogger(__name__)

Policy = Literal[
    "verified", "autoregressive", "fixed", "threshold", "entropy", "factor", "left-to-right"
]
"""As in `model.api`, and `fixed`: a canvas in a fixed number of steps."""

_DEFAULTS = api.InfillRequest(prefix="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """One way to decode; `request` applies it to a hole.

    Raises `ValueError` or `InvalidRequestError` when its values do not go together.
    """

    policy: Policy | None = None
    """None: the model's own way."""
    steps: int | None = None
    """`fixed`: denoising steps of a canvas."""
    threshold: float = _DEFAULTS.threshold
    entropy_bound: float = _DEFAULTS.entropy_bound
    factor: float = _DEFAULTS.factor
    oracle_length: bool = False
    """Tell the model how many tokens the true text has."""
    max_lines: int | None = None
    """Tell the model how many lines are wanted at most."""
    priority: Literal["auto", "manual"] = "auto"
    prefix_tokens: int = _DEFAULTS.prefix_tokens
    suffix_tokens: int = _DEFAULTS.suffix_tokens
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        if (self.policy == "fixed") != (self.steps is not None):
            raise ValueError("the policy 'fixed' and a number of steps go together")
        self.request(prefix="")

    @property
    def label(self) -> str:
        """Its name in reports and plots."""
        parameter = {
            "threshold": f" {self.threshold:g}",
            "entropy": f" {self.entropy_bound:g}",
            "factor": f" {self.factor:g}",
            "fixed": f" {self.steps}",
        }.get(self.policy or "", "")
        label = (self.policy or "the model's own") + parameter
        if self.oracle_length:
            label += ", oracle length"
        elif self.max_lines is not None:
            label += f", at most {self.max_lines} lines"
        return label

    def request(
        self, *, prefix: str, suffix: str = "", language: str = "", middle: str = ""
    ) -> api.InfillRequest:
        """The request for a hole that truly holds `middle`. The texts go in as they are, cut where
        the cursor is, also inside a word. An empty middle has no length to tell."""
        return api.InfillRequest(
            prefix=prefix,
            suffix=suffix,
            language=language,
            max_new_tokens=self.max_new_tokens,
            prefix_tokens=self.prefix_tokens,
            suffix_tokens=self.suffix_tokens,
            max_lines=self.max_lines,
            steps=self.steps,
            policy=None if self.policy == "fixed" else self.policy,
            threshold=self.threshold,
            entropy_bound=self.entropy_bound,
            factor=self.factor,
            length_of=middle if self.oracle_length and middle else None,
            priority=self.priority,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """What came back for one request, and what it cost."""

    text: str
    finished: bool
    """Whether the model ended it, rather than the limit of tokens."""
    confidence: float
    probabilities: tuple[float, ...]
    forwards: int
    tokens: int
    ms: float
    """In the engine."""


def fill_all(
    completer: api.Completer, requests: Sequence[api.InfillRequest]
) -> tuple[list[Fill], bool]:
    """Fill holes greedily, one after the other, so that times are those of a lone user; closes the
    completer. Returns the fills, and whether Ctrl-C left the last requests without one.

    Raises `CompletionError`, and `KeyboardInterrupt` when it came before the first fill.
    """
    fills: list[Fill] = []
    try:
        asyncio.run(_fill_into(fills, completer, requests))
    except KeyboardInterrupt:
        if not fills:
            raise
        logger.warning("interrupted: going on with the %d holes that are filled", len(fills))
        return fills, True
    return fills, False


async def _fill_into(
    fills: list[Fill], completer: api.Completer, requests: Sequence[api.InfillRequest]
) -> None:
    try:
        for request in tqdm(requests, desc="filling", unit="hole", smoothing=0.1):
            result = await completer.complete(request)
            best = result.candidates[0]
            fills.append(
                Fill(
                    text=best.text,
                    finished=best.finished,
                    confidence=best.confidence,
                    probabilities=best.probabilities,
                    forwards=result.forwards,
                    tokens=result.tokens,
                    ms=result.ms,
                )
            )
    finally:
        await completer.close()


# --- The command line -----------------------------------------------------------------------


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model runs, and where."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", type=Path, default=Path(DEFAULT), metavar="MODEL",
        help="a backbone's name, a GGUF file or a checkpoint directory (%(default)s)",
    )  # fmt: skip
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    group.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16")
    group.add_argument(
        "--engine", metavar="URL",
        help="use a running engine instead (`mezzotint serve`; its token in MEZZOTINT_TOKEN)",
    )  # fmt: skip


def open_completer(args: argparse.Namespace) -> api.Completer:
    """The completer that the model's arguments ask for. Raises `CompletionError`."""
    if args.engine is not None:
        return engines.connect(args.engine, os.environ.get("MEZZOTINT_TOKEN", ""))
    return engines.load(args.model, device=args.device, dtype=args.dtype)


def add_request_arguments(parser: argparse.ArgumentParser) -> None:
    """What every decoding of a run has in common."""
    defaults = Decoding()
    group = parser.add_argument_group("decoding")
    group.add_argument(
        "--oracle-length", action="store_true", help="tell the model the true number of tokens"
    )
    group.add_argument(
        "--max-lines", type=int, metavar="N", help="tell the model that N lines are wanted at most"
    )
    group.add_argument(
        "--prefix-tokens", type=int, default=defaults.prefix_tokens, metavar="N",
        help="the most that is read before the hole (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--suffix-tokens", type=int, default=defaults.suffix_tokens, metavar="N",
        help="the most that is read behind it (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--max-new-tokens", type=int, default=defaults.max_new_tokens, metavar="N",
        help="the longest fill (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--priority", choices=("auto", "manual"), default=defaults.priority,
        help="for models that fill canvases: a first one of 32 slots, as while typing, or of 64, "
        "as on demand (%(default)s)",
    )  # fmt: skip


def add_policy_arguments(parser: argparse.ArgumentParser) -> None:
    """The decoding of a run that has one."""
    defaults = Decoding()
    add_request_arguments(parser)
    group = parser.add_argument_group("policy")
    group.add_argument(
        "--policy", choices=get_args(Policy),
        help="how tokens are decided (verified with a backbone, threshold without one)",
    )  # fmt: skip
    group.add_argument("--steps", type=int, metavar="T", help="steps of a canvas (--policy fixed)")
    group.add_argument(
        "--threshold", type=float, metavar="P",
        help=f"commit slots that are surer than P (--policy threshold; {defaults.threshold:g})",
    )  # fmt: skip
    group.add_argument(
        "--entropy-bound", type=float, metavar="NATS",
        help="joint entropy of what a step commits (--policy entropy; "
        f"{defaults.entropy_bound:g})",
    )  # fmt: skip
    group.add_argument(
        "--factor", type=float, metavar="F",
        help="commit the n surest slots that are surer than 1 - F / (n + 1) (--policy factor; "
        f"{defaults.factor:g})",
    )  # fmt: skip


def decoding_of(args: argparse.Namespace) -> Decoding:
    """The decoding that `add_policy_arguments`' options name; a policy follows from its parameter.

    Raises `ValueError` for options of two policies.
    """
    given: dict[Policy, object] = {
        "fixed": args.steps,
        "threshold": args.threshold,
        "entropy": args.entropy_bound,
        "factor": args.factor,
    }
    named: set[Policy] = {policy for policy, value in given.items() if value is not None}
    if args.policy is not None:
        named.add(args.policy)
    if len(named) > 1:
        raise ValueError(f"the options ask for {' and '.join(sorted(named))} at once; choose one")
    decoding = Decoding(
        policy=named.pop() if named else None,
        steps=args.steps,
        threshold=_DEFAULTS.threshold if args.threshold is None else args.threshold,
        entropy_bound=_DEFAULTS.entropy_bound if args.entropy_bound is None else args.entropy_bound,
        factor=_DEFAULTS.factor if args.factor is None else args.factor,
    )
    return with_request_arguments(decoding, args)


def with_request_arguments(decoding: Decoding, args: argparse.Namespace) -> Decoding:
    """`decoding` with `add_request_arguments`' options. Raises `ValueError`."""
    return replace(
        decoding,
        oracle_length=args.oracle_length,
        max_lines=args.max_lines,
        priority=args.priority,
        prefix_tokens=args.prefix_tokens,
        suffix_tokens=args.suffix_tokens,
        max_new_tokens=args.max_new_tokens,
    )
