"""``sparsec serve``: pipelines on HTTP."""

from __future__ import annotations

import argparse
import os
from typing import Any

from sparsec.cli.common import HelpFormatter, guessed_task, lengths, option, positive
from sparsec.console import say
from sparsec.errors import InputError
from sparsec.paths import user_path

TOKEN = "SPARSEC_ADMIN_TOKEN"
KEYS = "SPARSEC_API_KEYS"
ZOO = "SPARSEZOO_MODELS_PATH"


def register(commands: Any, common: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the command's parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "serve",
        parents=[common],
        help="answer HTTP requests",
        description="answer HTTP requests: one model by flags, or what a YAML file lists",
        epilog="Examples: sparsec serve model.sparsec; sparsec serve --task ner.  SIGTERM finishes "
        "what was accepted; SIGHUP reads the configuration file again.",
        formatter_class=HelpFormatter,
    )
    what = parser.add_argument_group("what to serve")
    what.add_argument(
        "model", nargs="?", metavar="MODEL",
        help="an artifact, a folder with model.onnx, tokenizer.json and config.json, an ONNX file "
        "beside those, or hf:org/name[/file.onnx][@revision]; without one, the task's small model "
        "of sparsec[models]",
    )  # fmt: skip
    what.add_argument("--model-path", "--model_path", metavar="MODEL", help="the same")
    what.add_argument(
        "--task",
        help="such as token-classification, question-answering, ner, qa (default: what the model's "
        "files say)",
    )
    what.add_argument(
        "--tokenizer", metavar="PATH", help="tokenizer.json or its folder, if not beside the model"
    )
    what.add_argument(
        "--option", action="append", type=option, metavar="NAME=VALUE",
        help="an option of the task, such as aggregation_strategy=simple; lists as JSON or with "
        "commas; may be repeated",
    )  # fmt: skip
    what.add_argument(
        "--config-file", "--config_file", metavar="FILE", help="a YAML file with several endpoints"
    )
    what.add_argument(
        "--hot-reload-config", "--hot_reload_config", action="store_true",
        help="follow changes of the file: endpoints come and go without dropping a request",
    )  # fmt: skip
    what.add_argument(
        "--sequence-length", "--sequence_length", type=lengths, metavar="LENGTHS",
        help="tokens, or buckets such as 16,128 (default: those of the artifact)",
    )  # fmt: skip
    what.add_argument(
        "--batch-size", "--batch_size", type=positive, metavar="N",
        help="batch size to cut the layers of an ONNX model for; any other runs too",
    )  # fmt: skip
    what.add_argument(
        "--engine-type", "--engine_type", choices=("sparsec", "onnxruntime"),
        help="what runs the model",
    )  # fmt: skip
    what.add_argument(
        "--on-nonfinite", choices=("warn", "error", "ignore"),
        help="what to do if the model gives NaN or infinity (default: warn, in the log)",
    )  # fmt: skip
    what.add_argument(
        "--truncate", action="store_true",
        help="cut texts that are too long, as DeepSparse does; without, they are refused",
    )  # fmt: skip
    what.add_argument(
        "--zoo-dir", "--zoo_dir", metavar="DIR",
        help=f"where models with zoo: names are looked up (default: ${ZOO})",
    )  # fmt: skip
    where = parser.add_argument_group("where and how")
    where.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    where.add_argument("--port", type=int, help="port to listen on; 0: any (default: 5543)")
    where.add_argument(
        "--grpc-port", "--grpc_port", type=int, metavar="PORT",
        help="turn gRPC on (the Open Inference Protocol) at this port; 0: any",
    )  # fmt: skip
    where.add_argument(
        "--root-path", "--root_path", metavar="PATH",
        help="path that a proxy serves this server under, such as /models, for links to itself",
    )  # fmt: skip
    where.add_argument(
        "--num-workers", "--num_workers", type=positive, metavar="N",
        help="processes that split the cores (default: 1)",
    )  # fmt: skip
    where.add_argument(
        "--num-cores", "--num_cores", type=positive, metavar="N",
        help="cores of all workers together (default: all that this process may use)",
    )  # fmt: skip
    where.add_argument(
        "--max-batch", type=positive, metavar="N",
        help="sequences that run at once, at most (default: 32)",
    )  # fmt: skip
    where.add_argument(
        "--max-delay-us", type=int, metavar="US",
        help="how long a batch that is not full waits for more (default: 0)",
    )  # fmt: skip
    where.add_argument(
        "--queue-size", type=positive, metavar="N",
        help="sequences that may wait for a model; more get a 503 (default: 256)",
    )  # fmt: skip
    where.add_argument(
        "--admin-token", metavar="TOKEN",
        help=f"turn POST and DELETE /endpoints on (default: ${TOKEN})",
    )  # fmt: skip
    where.add_argument(
        "--api-key", "--api_key", action="append", metavar="KEY",
        help="a key that predictions need (Authorization: Bearer KEY); may be repeated; better a "
        f"file, or ${KEYS} with keys separated by commas: command lines are seen by others",
    )  # fmt: skip
    where.add_argument(
        "--api-keys-file", "--api_keys_file", metavar="FILE",
        help="a file with such keys, one a line; it is read again when it changes",
    )  # fmt: skip
    where.add_argument(
        "--otlp-endpoint", "--otlp_endpoint", metavar="URL",
        help="send traces to an OpenTelemetry collector, such as http://localhost:4318 (default: "
        "what the variables OTEL_... say; none without them)",
    )  # fmt: skip
    where.add_argument(
        "--cors-origin", action="append", metavar="ORIGIN",
        help="let browsers call from this origin; may be repeated",
    )  # fmt: skip
    where.add_argument("--access-log", action="store_true", help="log every request")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    from sparsec.serving import server
    from sparsec.serving.server import config, errors

    overrides = _overrides(args)
    if args.zoo_dir:
        os.environ[ZOO] = args.zoo_dir  # for the workers, and endpoints that come later
    if args.config_file:
        given = [name for name in _ENDPOINT if getattr(args, name)]
        if given:
            words = {name: "--" + name.replace("_", "-") for name in given} | {"model": "MODEL"}
            flags = ", ".join(words[name] for name in given)
            raise InputError(f"{flags}: the configuration file says this for each endpoint")
        settings = config.load(args.config_file, **overrides)
        if not settings.endpoints and not settings.admin_token and not args.hot_reload_config:
            raise InputError(f"{args.config_file} lists no endpoints")
    else:
        if args.hot_reload_config:
            raise InputError("--hot-reload-config needs --config-file")
        settings = config.check({**overrides, "endpoints": [_endpoint(args)]}, "the command line")
    errors.configure_logging()
    supervisor = server.Supervisor(
        settings,
        user_path(args.config_file) if args.config_file else None,
        args.hot_reload_config,
        overrides,
        None if args.quiet else say,
    )
    return supervisor.run()


# Flags that describe the one endpoint of a server without a file.
_ENDPOINT = (
    "task", "model", "model_path", "tokenizer", "option", "sequence_length", "batch_size",
    "engine_type", "max_batch", "max_delay_us", "queue_size", "on_nonfinite", "truncate",
)  # fmt: skip


def _overrides(args: argparse.Namespace) -> dict[str, Any]:
    """Settings of the server that were given as flags."""
    values = {
        "host": args.host,
        "port": args.port,
        "grpc_port": args.grpc_port,
        "root_path": args.root_path,
        "num_workers": args.num_workers,
        "num_cores": args.num_cores,
        "admin_token": args.admin_token or os.environ.get(TOKEN) or None,
        "api_keys": args.api_key or _keys(os.environ.get(KEYS, "")),
        "api_keys_file": args.api_keys_file,
        "otlp_endpoint": args.otlp_endpoint,
        "cors_origins": args.cors_origin,
        "access_log": args.access_log or None,
    }
    return {name: value for name, value in values.items() if value is not None}


def _keys(text: str) -> list[str] | None:
    return [key.strip() for key in text.split(",") if key.strip()] or None


def _endpoint(args: argparse.Namespace) -> dict[str, Any]:
    """The one endpoint of a server without a file.

    Raises:
        InputError: neither task nor model is given, or the task cannot be guessed.
    """
    from sparsec.serving.pipelines import base

    if args.model and args.model_path:
        raise InputError(f"two models: {args.model} and --model-path {args.model_path}")
    model = args.model or args.model_path
    if not model and not args.task:
        raise InputError(
            "say what to serve: a model (sparsec serve MODEL), a task that has one of its own "
            "(sparsec serve --task ner), or --config-file"
        )
    task = args.task or guessed_task(args, model)
    kwargs = base.parse_options(base.find(task), args.option or ())
    for name in ("engine_type", "tokenizer"):
        if getattr(args, name):
            kwargs[name] = getattr(args, name)
    batching = {"max_batch": args.max_batch, "max_delay_us": args.max_delay_us}
    batching["queue_size"] = args.queue_size
    values = {
        "task": task,
        "model": model,
        "sequence_length": args.sequence_length,
        "batch_size": args.batch_size,
        "batching": {name: value for name, value in batching.items() if value is not None},
        "on_nonfinite": args.on_nonfinite,
        "truncate": args.truncate or None,
        "kwargs": kwargs,
    }
    return {name: value for name, value in values.items() if value is not None}
