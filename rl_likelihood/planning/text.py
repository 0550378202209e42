"""A plan as a table for people: what `rl_likelihood.plan` prints without --json."""

from typing import Any


def table(plan: dict[str, Any]) -> str:
    return "\n".join([*_head(plan), "", *_programs(plan), "", *_collectives(plan), "", *_seconds(plan), _verdict(plan)])


def gib(n: float) -> str:
    """Bytes in GiB."""
    return f"{n / 2**30:.2f}"


def _head(plan: dict[str, Any]) -> list[str]:
    b, limit = plan["batch"], f" of {gib(plan['memory'])} GiB" if plan["memory"] else ""
    slices = f" x {plan['slices']} slices" if plan["slices"] > 1 else ""
    mesh = " x ".join(f"{name} {size}" for name, size in plan["mesh"].items())
    sampler = " x ".join(map(str, plan["sampler_mesh"].values()))
    alone = ", each device with rows of its own" if plan["sampler_streams"] else ""
    packed = f", their rows packed into {b['packed_tokens']} tokens on each device" if "packed_tokens" in b else ""
    held = ", ".join(f"{name} {gib(n)}" for name, n in plan["held"].items())
    return [
        f"model    {plan['model']}: {plan['parameters']:,} parameters, compute {plan['compute_dtype']}, "
        f"remat {plan['remat']}, attention {plan['attention']}",
        f"devices  {plan['topology']}{slices}: {plan['devices']}{limit}, mesh {mesh}, sampler {sampler} on each "
        f"host{alone}",
        f"batch    {b['prompts']} prompts x {b['rows']} rows, at most {b['prompt_tokens']} + {b['row_tokens']} tokens, "
        f"micro-batches of {b['micro_batch_prompts']} prompts{packed}",
        f"held     {held} GiB on each device, all the time",
        f"at times {gib(plan['activations'])} GiB of activations and gradients, {gib(sum(plan['cache'].values()))} GiB "
        "of the sampler's keys and values; both are parts of the programs' memory below",
        f"disk     at most {gib(plan['disk']['training'])} GiB of checkpoints, {gib(plan['disk']['finished'])} GiB "
        "once the run is finished",
    ]


def _programs(plan: dict[str, Any]) -> list[str]:
    columns = f"{'arguments':>10}{'temporary':>10}{'code':>7}{'peak':>8}{'others':>8}{'total':>8}{'compiled':>10}"
    lines = [f"{'GiB on each device':<20}{columns}  fits"]
    for row in plan["programs"]:
        verdict = {True: "yes", False: "NO", None: "-"}[row["fits"]]
        lines.append(
            f"{row['name']:<20}{gib(row['arguments']):>10}{gib(row['temporaries']):>10}{gib(row['code']):>7}"
            f"{gib(row['peak']):>8}{gib(row['others']):>8}{gib(row['total']):>8}{row['seconds']:>8.0f} s  {verdict}"
        )
        if row["refused"]:
            lines.append(f"    the compiler: {row['refused']}")
    return lines


def _collectives(plan: dict[str, Any]) -> list[str]:
    lines = [f"{'collectives, each run':<36}{'axes':<14}{'times':>8}{'GiB sent by a device':>23}"]
    for row in plan["programs"]:
        total = sum(x["sent"] for x in row["collectives"])
        lines += [
            f"{row['name'] + ': ' + x['kind']:<36}{x['axes']:<14}{x['count']:>8}{gib(x['sent']):>23}"
            for x in row["collectives"]
            if x["sent"] > 0.001 * total
        ]
    return lines


def _seconds(plan: dict[str, Any]) -> list[str]:
    again = plan["programs"][0]["flops"] / plan["model_flops"] - 1
    lines = [f"flops    {plan['model_flops']:.3e} per step, and {again:.0%} more for what is computed twice"]
    if plan["floors"]:
        seconds = ", ".join(f"{k.replace('_', ' ')} {v:.3g} s" for k, v in plan["floors"].items())
        lines.append(f"floors   {seconds} (peaks of the data sheet; no run is that fast)")
    if plan["estimates"]:
        e = plan["estimates"]
        names = [name for name in ("step", "sampling", "judge") if name in e]
        words = [f"{k} {e[k]:.3g} s, {e[f'{k}_over_floor']:.2f} of its floor" for k in names]
        lines.append(f"estimate {'; '.join(words)} (the compiler's cycles, no transfers; never compared with a TPU)")
    return [*lines, "sources  memory: the compiler; traffic: counted in the programs, as rings; nothing ran"]


def _verdict(plan: dict[str, Any]) -> str:
    if plan["fits"] is None:
        return "verdict  none: no memory limit of these devices is known; --memory_gib=X sets one"
    if plan["fits"]:
        return f"verdict  fits, {gib(plan['memory'] - max(row['total'] for row in plan['programs']))} GiB to spare"
    return f"verdict  does not fit, {gib(plan['short'])} GiB short; {plan['advice']}"
