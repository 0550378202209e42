"""Seconds of a plan: floors that no run can go below, and estimates by the compiler's cycles."""

from __future__ import annotations

from rl_likelihood.planning.aot import Target
from rl_likelihood.runtime.devices import Devices


def floors(plan: dict, where: Target, devices: Devices, steps: int) -> dict[str, float] | None:
    """Seconds that no run can go below, from the data sheet: the step's arithmetic, its traffic, and decoding in so
    many steps."""
    if where.chip is None:
        return None
    chip = where.chip
    slices, data = where.slices, devices.learner.shape["data"]

    def sent(row: dict, between: bool) -> float:  # bytes a device, inside a slice or to the next one
        return sum(x["sent"] for x in row["collectives"] if ("data" in x["axes"].split("+") and slices > 1) == between)

    by_name = {row["name"]: row for row in plan["programs"]}
    step, sampling = by_name["learner step"], by_name.get("sampling")
    out = {"step_arithmetic": plan["model_flops"] / (chip.flops * devices.learner.size)}
    if not step["refused"]:
        out["step_traffic"] = sent(step, False) / chip.links
        if slices > 1 and chip.network:  # of data's ring only every so many-th edge leaves the slice
            out["step_traffic_between_slices"] = sent(step, True) / (data // slices) / chip.network
    if sampling is not None:
        on = 1 if plan["sampler_streams"] else devices.sampler.size
        out["sampling_arithmetic"] = sampling["flops"] / (chip.flops * on)
        if not sampling["refused"]:
            # Each step reads the weights and the caches, of which those of the rows are half full on average. A
            # stream's program is given both, one for all devices only the weights.
            read = sampling["arguments"] - plan["cache"]["rows"] / 2
            if not plan["sampler_streams"]:
                read = sampling["arguments"] + plan["cache"]["prompts"] + plan["cache"]["rows"] / 2
            out["sampling_reads"] = read * steps / chip.bandwidth
            out["sampling_traffic"] = sent(sampling, False) / chip.links
    return out


def estimates(plan: dict, where: Target, devices: Devices) -> dict[str, float] | None:
    """Seconds that the step and sampling may take by the compiler's cycles, what it gives none for (Pallas kernels) at
    peak; and how often each that is its floor, of arithmetic or of reads. Transfers between devices are not in it."""
    if where.chip is None:
        return None
    out = {}
    for row in plan["programs"]:
        name = {"learner step": "step", "prefill": "sampling", "sampling": "sampling"}.get(row["name"])
        if name and not row["refused"]:
            on = devices.learner.size if name == "step" else 1  # no kernel samples
            in_kernels = row["kernel_flops"] / (where.chip.flops * on)
            out[name] = out.get(name, 0) + row["cycles"] / where.chip.clock + in_kernels
    for name, floor in (("step", "step_arithmetic"), ("sampling", "sampling_reads")):
        if name in out and floor in plan["floors"]:
            out[f"{name}_over_floor"] = out[name] / plan["floors"][floor]
    return out
