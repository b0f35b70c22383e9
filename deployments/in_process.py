"""A stage inside the Ingress replica instead of in replicas of its own: same class, same calls, no hop.

For one small machine, where a call between processes costs more than it brings (`layout: together`). Stages then do not scale
apart, and a crash takes all of them.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from ray.serve.handle import DeploymentHandle


@dataclass(frozen=True, slots=True)
class StageInProcess:
    """Says which stage to start; bound in the place of a deployment.

    Args:
        module: of the stage, `deployments.detector` for instance.
        name: of its deployment there.
        arguments: its constructor's.
    """

    module: str
    name: str
    arguments: tuple[Any, ...]

    def start(self) -> LocalHandle:
        """Make the stage, here."""
        deployment = getattr(importlib.import_module(self.module), self.name)
        return LocalHandle(deployment.func_or_class(*self.arguments))


class LocalHandle:
    """Stand-in for a DeploymentHandle that calls a stage in this process: `handle.method.remote(...)`."""

    def __init__(self, stage: Any) -> None:
        self._stage = stage

    def __getattr__(self, method: str) -> _Method:
        return _Method(getattr(self._stage, method))


class LocalResponse:
    """Stand-in for a DeploymentResponse: awaitable, can be cancelled, and can be an argument of the next call."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = task

    def __await__(self) -> Generator[Any, None, Any]:
        return self._task.__await__()

    def cancel(self) -> None:
        """Give the call up."""
        self._task.cancel()


@dataclass(frozen=True, slots=True)
class _Method:
    run: Callable[..., Any]

    def remote(self, *arguments: Any) -> LocalResponse:
        return LocalResponse(asyncio.get_running_loop().create_task(self._run(*arguments)))

    async def _run(self, *arguments: Any) -> Any:
        ready = [await argument if isinstance(argument, LocalResponse) else argument for argument in arguments]
        return await self.run(*ready)


StageHandle = DeploymentHandle[Any] | LocalHandle
"""How the scoring graph reaches a stage."""


def started(stage: StageHandle | StageInProcess) -> StageHandle:
    """The stage's handle; a stage in this process is made."""
    return stage.start() if isinstance(stage, StageInProcess) else stage
