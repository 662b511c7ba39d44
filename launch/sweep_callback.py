"""Hydra's callback at a sweep's start: which points it will have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from launch.sweep import expect_points

_BASIC = f"{BasicSweeper.__module__}.{BasicSweeper.__name__}"


def grid(arguments: list[str]) -> list[list[str]]:
    """The points of a grid as Hydra's own sweeper makes them, without what is Hydra's."""
    overrides = OverridesParser.create().parse_overrides(arguments)
    (points,) = BasicSweeper.split_arguments(overrides, None)
    return [[o for o in point if not o.startswith("hydra.")] for point in points]


class ExpectPoints(Callback):
    """Sweepers that decide as they go can't tell; what they never start isn't missed."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        sweeper = config.hydra.sweeper
        if sweeper.get("_target_") == _BASIC:
            params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
            points = grid([*params, *config.hydra.overrides.task])
            expect_points(Path(config.hydra.sweep.dir), points)
