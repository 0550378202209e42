"""A plan for people: what `rl_likelihood.plan` prints without --json."""

from __future__ import annotations

GIB = 2**30


def table(plan: dict) -> str:
    """The plan for people."""
    gib = lambda n: f"{n / GIB:.2f}"
    b, limit = plan["batch"], f" of {gib(plan['memory'])} GiB" if plan["memory"] else ""
    slices = f" x {plan['slices']} slices" if plan["slices"] > 1 else ""
    held = ", ".join(f"{name} {gib(n)}" for name, n in plan["held"].items())
    lines = [
        f"model    {plan['model']}: {plan['parameters'] / 1e6:.1f} M parameters, compute {plan['compute_dtype']}, "
        f"remat {plan['remat']}, attention {plan['attention']}",
        f"devices  {plan['topology']}{slices}: {plan['devices']}{limit}, mesh "
        + " x ".join(f"{k} {v}" for k, v in plan["mesh"].items())
        + ", sampler "
        + " x ".join(map(str, plan["sampler_mesh"].values()))
        + " on each host"
        + (", a stream on each" if plan["sampler_streams"] else ""),
        f"batch    {b['prompts']} prompts x {b['rows']} rows, {b['prompt_tokens']} + {b['row_tokens']} tokens at most, "
        f"{b['micro_batch_prompts']} prompts at a time",
        f"held     {held} GiB on each device",
        f"in turns activations and gradients {gib(plan['activations'])}, sampler's keys and values "
        f"{gib(sum(plan['cache'].values()))}"
        " GiB, parts of what the programs need below",
        "",
        f"{'GiB on each device':<20}{'arguments':>10}{'temporary':>10}{'code':>7}{'peak':>8}{'others':>8}{'total':>8}"
        f"{'compiled':>10}  fits",
    ]
    for row in plan["programs"]:
        verdict = {True: "yes", False: "NO", None: "-"}[row["fits"]]
        lines.append(
            f"{row['name']:<20}{gib(row['arguments']):>10}{gib(row['temporaries']):>10}{gib(row['code']):>7}"
            f"{gib(row['peak']):>8}{gib(row['others']):>8}{gib(row['total']):>8}{row['seconds']:>8.0f} s  {verdict}"
        )
        if row["refused"]:
            lines.append(f"    the compiler: {row['refused']}")
    lines += ["", f"{'collectives, each run':<36}{'axes':<14}{'times':>8}{'GiB sent by a device':>23}"]
    for row in plan["programs"]:
        for x in row["collectives"]:
            if x["sent"] > 0.001 * sum(y["sent"] for y in row["collectives"]):
                lines.append(f"{row['name'] + ': ' + x['kind']:<36}{x['axes']:<14}{x['count']:>8}{gib(x['sent']):>23}")
    step = plan["programs"][0]
    again = step["flops"] / plan["model_flops"] - 1
    lines += [
        "",
        f"flops    {plan['model_flops']:.3e} a step, and {again:.0%} of that again for what is computed twice",
    ]
    if plan["floors"]:
        seconds = ", ".join(f"{k.replace('_', ' ')} {v:.3g} s" for k, v in plan["floors"].items())
        lines.append(f"floors   {seconds} (data-sheet peaks; no run is that fast)")
    if plan["estimates"]:
        e = plan["estimates"]
        words = [f"{k} {e[k]:.3g} s, {e[f'{k}_over_floor']:.2f} of its floor" for k in ("step", "sampling") if k in e]
        lines.append(f"estimate {'; '.join(words)} (the compiler's cycles, no transfers; never compared with a TPU)")
    lines.append("sources  memory is the compiler's number, traffic is counted in the program, as rings; nothing ran")
    if plan["fits"] is None:
        lines.append("verdict  no limit is known of these devices; --memory_gib=X judges against X")
    elif plan["fits"]:
        spare = plan["memory"] - max(row["total"] for row in plan["programs"])
        lines.append(f"verdict  fits, {gib(spare)} GiB to spare")
    else:
        lines.append(f"verdict  does not fit, {gib(plan['short'])} GiB short; {plan['advice']}")
    return "\n".join(lines)
