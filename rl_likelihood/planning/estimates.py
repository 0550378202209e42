"""Seconds of a plan: floors that no run can beat, and estimates from the compiler's cycles."""

from typing import Any

from rl_likelihood.planning.aot import Target
from rl_likelihood.runtime.devices import Devices


def floors(plan: dict[str, Any], where: Target, devices: Devices, steps: int) -> dict[str, float] | None:
    """Seconds that no run can beat, from the data sheet. `steps`: decoding steps of a rollout. None without a sheet."""
    if where.chip is None:
        return None
    chip, slices = where.chip, where.slices

    def sent(row: dict[str, Any], between: bool) -> float:
        """Bytes that a device sends: to another slice (`between`), or within its own."""
        return sum(x["sent"] for x in row["collectives"] if ("data" in x["axes"].split("+") and slices > 1) == between)

    by_name = {row["name"]: row for row in plan["programs"]}
    step, sampling = by_name["learner step"], by_name.get("sampling")
    out = {"step_arithmetic": plan["model_flops"] / (chip.flops * devices.learner.size)}
    if not step["refused"]:
        out["step_traffic"] = sent(step, False) / chip.links
        if slices > 1 and chip.network:  # of the ring over data, one edge in `data // slices` leaves the slice
            per_slice = devices.learner.shape["data"] // slices
            out["step_traffic_between_slices"] = sent(step, True) / per_slice / chip.network
    if sampling is not None:
        on = 1 if plan["sampler_streams"] else devices.sampler.size
        out["sampling_arithmetic"] = sampling["flops"] / (chip.flops * on)
        if not sampling["refused"]:
            # A step reads the weights and the caches; a row's cache is half full on average. The program of one device
            # has both among its arguments, the program of all devices has only the weights.
            cache = plan["cache"]
            read = sampling["arguments"] - cache["rows"] / 2
            if not plan["sampler_streams"]:
                read = sampling["arguments"] + cache["prompts"] + cache["rows"] / 2
            out["sampling_reads"] = read * steps / chip.bandwidth
            out["sampling_traffic"] = sent(sampling, False) / chip.links
    if "judge" in by_name:  # on one device
        out["judge_arithmetic"] = plan["judge_calls"] * by_name["judge"]["flops"] / chip.flops
    return out


def estimates(plan: dict[str, Any], where: Target, devices: Devices) -> dict[str, float] | None:
    """Seconds of the step and of sampling, from the compiler's cycles, without transfers between devices.

    Pallas kernels have no cycles and count at the chip's peak. Each number also comes divided by its floor.
    """
    if where.chip is None:
        return None
    out: dict[str, float] = {}
    for row in plan["programs"]:
        name = {"learner step": "step", "prefill": "sampling"}.get(row["name"], row["name"])
        if name in ("step", "sampling", "judge") and not row["refused"]:
            on = devices.learner.size if name == "step" else 1  # sampling has no kernels
            in_kernels = row["kernel_flops"] / (where.chip.flops * on)
            times = plan["judge_calls"] if name == "judge" else 1
            out[name] = out.get(name, 0) + times * row["cycles"] / where.chip.clock + in_kernels
    for name, floor in (("step", "step_arithmetic"), ("sampling", "sampling_reads"), ("judge", "judge_arithmetic")):
        if name in out and floor in plan["floors"]:
            out[f"{name}_over_floor"] = out[name] / plan["floors"][floor]
    return out
