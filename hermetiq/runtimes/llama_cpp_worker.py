"""The child process that holds llama.cpp: a file it dislikes ends this process and not hermetiq.

Run as a script by `llama_cpp.py`, with nothing of hermetiq imported. Input, on stdin: one line of JSON (`model`,
`context`, `threads`, `key`). Output, on stdout: one line of JSON (`address`) once the model is loaded. llama.cpp's log
goes to stderr. The process ends when its stdin closes, so it cannot outlive its parent, however that ended.
"""

from __future__ import annotations

import json
import os
import sys
import threading


def exit_with_parent() -> None:
    """Wait until the parent is gone or hangs up, then leave at once."""
    sys.stdin.read()
    os._exit(0)


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    # llama.cpp may print to stdout too: only our own line belongs there.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    watcher = threading.Thread(target=exit_with_parent, daemon=True)
    watcher.start()

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.n_ctx = settings["context"]
    params.cpuparams.n_threads = settings["threads"]
    params.api_keys = [settings["key"]]
    params.port = 0
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = False
    params.fit_params = False
    # Repacked weights would be a second copy in memory; as they are, they stay mapped from the file.
    params.no_extra_bufts = True
    try:
        server = xllamacpp.Server(params)
    except RuntimeError:
        sys.exit(1)  # llama.cpp's own log, just above, says why
    print(json.dumps({"address": server.listening_address}), file=answers, flush=True)
    watcher.join()


if __name__ == "__main__":
    main()
