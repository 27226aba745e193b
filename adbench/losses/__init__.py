"""The papers' equations as pure functions, a module for each paper; `similarity` and `neighbours` serve several."""
