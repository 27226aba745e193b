"""`hydra/launcher=ray`: the jobs of a sweep as tasks of a Ray cluster, or of this machine.

The released hydra-ray-launcher needs a cloudpickle that excludes current versions of joblib, and nothing of what it
adds. Hydra imports its plugins at every start, so Ray itself is imported at the launch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from omegaconf import open_dict

log = logging.getLogger(__name__)


class RayLauncher(Launcher):
    """One task per job; a task that dies is a failed job and stops no other.

    Args:
        init: of `ray.init`: `address` of a cluster (null: start one on this machine and stop it afterwards), ...
        cpus_per_job, gpus_per_job: what a job occupies of the cluster; `cpus_per_job` is also its number of threads.
    """

    def __init__(self, init: Mapping[str, Any], cpus_per_job: float, gpus_per_job: float) -> None:
        self.init, self.cpus_per_job, self.gpus_per_job = init, cpus_per_job, gpus_per_job

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        try:
            import ray
        except ImportError:
            from adbench.types import UserError

            raise UserError("hydra/launcher=ray needs Ray: pip install ray") from None
        from adbench.experiment.values import as_mapping

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        for i, overrides in enumerate(job_overrides):
            log.info(f"\t#{initial_job_idx + i} : {' '.join(filter_overrides(overrides))}")
        ours = not ray.is_initialized()
        if ours:
            ray.init(**as_mapping(self.init))
        try:
            # The jobs compose on their own machines, where results and data must be the ones of this command.
            ours_too = {k: v for k, v in os.environ.items() if k.startswith(("ADBENCH_", "WANDB_", "HYDRA_"))}
            options: dict[str, Any] = {"num_cpus": self.cpus_per_job, "num_gpus": self.gpus_per_job, "max_retries": 0}
            options["runtime_env"] = {"env_vars": ours_too}
            task = ray.remote(**options)(_run)
            shared = ray.put((self.hydra_context, self.config, self.task_function, Singleton.get_state()))
            waiting = [task.remote(shared, initial_job_idx + i, list(o)) for i, o in enumerate(job_overrides)]
            return [_result(ray, reference, o) for reference, o in zip(waiting, job_overrides, strict=True)]
        finally:
            if ours:
                ray.shutdown()


def _run(shared: tuple[Any, ...], number: int, overrides: list[str]) -> JobReturn:
    hydra_context, config, task_function, singletons = shared
    Singleton.set_state(singletons)
    setup_globals()
    job_config = hydra_context.config_loader.load_sweep_config(config, overrides)
    with open_dict(job_config):
        job_config.hydra.job.id = job_config.hydra.job.num = number
    return run_job(
        hydra_context=hydra_context,
        task_function=task_function,
        config=job_config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def _result(ray: Any, reference: Any, overrides: Sequence[str]) -> JobReturn:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        return JobReturn(overrides=list(overrides), status=JobStatus.FAILED, _return_value=error)
