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
    problems = contract.check(variant)
    lines, broken = [], 0
    for promise, problem in problems.items():
        if problem is None:
            lines.append(f"ok      {promise}")
        else:
            lines += [f"BROKEN  {promise}", f"        {problem}"]
            broken += 1
    kept = f"{broken} of {len(problems)} promises {'is' if broken == 1 else 'are'} broken"
    kept = kept if broken else f"all {len(problems)} promises are kept"
    return Answer("\n".join([*lines, f"{variant.name}: {kept}."]), exit_code=1 if broken else 0)
