"""The configuration trees of a user and of installed plug-ins, on Hydra's search path after this package's own."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class PluginTrees(SearchPathPlugin):
    """The trees of `--config-dir`, then `conf/` of every package that an entry point of `adbench.plugins` names."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        from adbench.experiment.groups import conf_dirs

        for folder in conf_dirs()[1:]:
            search_path.append(provider="adbench-plugin", path=f"file://{folder}")
