"""`python -m scripts.bench engine|gateway|router|ranks ...`: what the parts do and cost. No Ray."""

import argparse
import sys

from scripts import bench_engine, bench_gateway, bench_ranks, bench_router


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    modules = {"engine": bench_engine, "gateway": bench_gateway, "router": bench_router, "ranks": bench_ranks}
    for name, module in modules.items():
        subparser = kinds.add_parser(name, help=(module.__doc__ or "").splitlines()[0])
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    args = parser.parse_args()
    return int(args.run(args) or 0)


if __name__ == "__main__":
    sys.exit(main())
