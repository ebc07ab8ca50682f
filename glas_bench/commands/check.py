"""What `check` does: test a variant against the contract."""

from __future__ import annotations

from glas_bench import contract, registry
from glas_bench.commands import Answer


def carry_out(reference: str) -> Answer:
    """Test a variant against every promise of the contract; exit code 1 if one is broken.

    Raises:
        UsageError: no such variant.
    """
    variant = registry.find(reference)
    findings = contract.check(variant)
    lines = []
    for finding in findings:
        lines.append(f"{'ok    ' if finding.problem is None else 'BROKEN'}  {finding.promise}")
        if finding.problem is not None:
            lines.append(f"        {finding.problem}")
    broken = sum(finding.problem is not None for finding in findings)
    if broken:
        lines.append(f"{variant.name}: {broken} of {len(findings)} promises are broken.")
    else:
        lines.append(f"{variant.name}: all {len(findings)} promises are kept.")
    return Answer("\n".join(lines), exit_code=1 if broken else 0)
