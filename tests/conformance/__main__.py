"""``python -m tests.conformance``: run all cases and compare with what is published, or publish."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import onnx

from tests.conformance import published, runner
from tests.conformance.cases import Case, core_ops, element_types, load, reason_against
from tests.conformance.published import OpRecord, Published


def collect(targets: Iterable[str]) -> tuple[Published, list[str]]:
    """Run everything; also returns what went wrong."""
    targets = list(targets)
    cases, refused = load()
    records: dict[str, OpRecord] = {}
    good: list[Case] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case in cases:
            reason = reason_against(case, folder)
            if reason is None:
                good.append(case)
            else:
                refused[case.name] = (case.op, reason)
        for op in sorted({case.op for case in good}):
            own = [case for case in good if case.op == op]
            record = records[op] = OpRecord()
            record.core = sorted({n for case in own for n in core_ops(case, folder)})
            record.types = element_types(own[0], folder)
    for name, (op, reason) in sorted(refused.items()):
        records.setdefault(op, OpRecord()).refused[name] = reason
    faults: dict[str, str] = {}
    for target in targets:
        for group in runner.groups(good):
            results = runner.run(group, target)
            for case in group:
                result, record = results[case.name], records[case.op]
                if result.fault:
                    faults[case.name] = f"{case.name} on {target}: {result.fault}"
                record.ulp = max(record.ulp, float(f"{result.ulp:.2g}"))
                record.absolute = max(record.absolute, float(f"{result.absolute:.1g}"))
            print(f"{target}: {len(group)} cases", file=sys.stderr)
    for case in good:
        if case.name not in faults:
            records[case.op].passing.append(case.name)
    for record in records.values():
        record.passing.sort()
    ops = dict(sorted(records.items()))
    return Published(onnx.__version__, targets, ops), list(faults.values())


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--write", action="store_true", help="publish the results")
    parser.add_argument("--target", action="append", help="default: generic, and AVX-512")
    options = parser.parse_args()
    results, faults = collect(options.target or runner.usable_targets())
    print("\n".join(faults))
    print(f"{len(results.passing)} cases pass")
    if faults:
        return 1
    if options.write:
        published.write(results)
        return 0
    lost = sorted(set(published.read().passing) - set(results.passing))
    print("\n".join(f"{name} no longer passes" for name in lost))
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
