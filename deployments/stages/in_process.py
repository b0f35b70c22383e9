"""Runs a stage inside the Ingress replica (`layout: together`): the same class, called in the same way.

For one small machine, where calls between processes cost more than they gain. The stages cannot scale separately, and a crash stops
all of them.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from ray.serve.handle import DeploymentHandle


@dataclass(frozen=True, slots=True)
class LocalStage:
    """Names a stage to start in this process; bound in place of a deployment.

    Args:
        module: of the stage, such as `deployments.detector`.
        name: of the deployment in that module.
        arguments: for its constructor.
    """

    module: str
    name: str
    arguments: tuple[Any, ...]


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
        """Cancel the call."""
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
"""A handle to a stage, in replicas of its own or in this process."""


def to_handle(stage: StageHandle | LocalStage) -> StageHandle:
    """The stage's handle; constructs a stage that runs in this process."""
    if not isinstance(stage, LocalStage):
        return stage
    deployment = getattr(importlib.import_module(stage.module), stage.name)
    return LocalHandle(deployment.func_or_class(*stage.arguments))
