"""`python -m scripts.bench engine|gateway|metrics|quotas|router|...`: what the parts do and cost.

Without Ray, but for `overload` and `rebuild`, which start `manta serve`.
"""

import argparse
import sys

from scripts import (
    bench_auth,
    bench_engine,
    bench_gateway,
    bench_metrics,
    bench_offload,
    bench_overload,
    bench_quotas,
    bench_ranks,
    bench_rebuild,
    bench_router,
)

_KINDS = {
    "engine": bench_engine,
    "gateway": bench_gateway,
    "metrics": bench_metrics,
    "auth": bench_auth,
    "quotas": bench_quotas,
    "router": bench_router,
    "ranks": bench_ranks,
    "rebuild": bench_rebuild,
    "offload": bench_offload,
    "overload": bench_overload,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for name, module in _KINDS.items():
        subparser = kinds.add_parser(name, help=(module.__doc__ or "").splitlines()[0])
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    args = parser.parse_args()
    return int(args.run(args) or 0)


if __name__ == "__main__":
    sys.exit(main())
