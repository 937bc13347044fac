"""A plan for people, in tables: what stands on the devices, and what each model is promised."""

from rich.table import Table

from gpulet.device import Mechanism
from gpulet.plan import Plan, TimelineRun
from gpulet.units import MIB, Duration, to_ms


def shape_table(plan: Plan) -> Table:
    """What stands on the devices: sessions, or gpulets, or just the models that share them uncut."""
    if plan.timelines:
        return timeline_table(plan)
    return resident_table(plan) if plan.residents and not plan.gpulets else gpulet_table(plan)


def gpulet_table(plan: Plan) -> Table:
    """One row per turn; where several processes share a gpulet, each with a batch of its own, it says 3 x 16 rows."""
    table = Table(title=f"{len(plan.gpulets)} gpulets on {plan.devices_used} of {len(plan.devices)} devices")
    for name in ("device", "gpulet", "size", "duty ms", "model", "batch", "rows/s", "run ms"):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=name in {"model", "size"})
    mig = {device.index for device in plan.devices if device.mechanism is Mechanism.MIG}
    for g in plan.gpulets:
        for turn in g.turns:
            table.add_row(
                str(g.device),
                str(g.id),
                g.size.label if g.device in mig else f"{g.size.sms} ({g.size.share_pct:.3g} %)",
                f"{to_ms(g.duty_cycle):.4g}",
                turn.model,
                f"{g.processes} x {turn.batch}" if g.processes > 1 else str(turn.batch),
                f"{turn.rate:.1f}",
                f"{to_ms(turn.latency):.4g}",
            )
    return table


def timeline_table(plan: Plan) -> Table:
    """One row per run of every device's session; devices that repeat the same one are named together."""
    alike: dict[tuple[Duration, tuple[TimelineRun, ...]], list[str]] = {}
    for line in plan.timelines:
        alike.setdefault((line.period, line.runs), []).append(str(line.device))
    periods = dict.fromkeys(f"{to_ms(line.period):g} ms" for line in plan.timelines)
    table = Table(title=f"sessions of {', '.join(periods)} on {len(plan.timelines)} of {len(plan.devices)} devices")
    for name in ("devices", "start ms", "end ms", "model", "size", "batch"):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=name == "model")
    for (_, runs), devices in alike.items():
        for run in runs:
            size = f"{run.size.sms} ({run.size.share_pct:.3g} %)"
            span = (f"{to_ms(run.start):.4g}", f"{to_ms(run.start + run.length):.4g}")
            table.add_row(", ".join(devices), *span, run.model, size, str(run.batch))
    return table


def resident_table(plan: Plan) -> Table:
    """One row per model; devices that hold the same ones are named together."""
    alike: dict[tuple[tuple[str, int, float], ...], list[str]] = {}
    for device in plan.devices:
        held = tuple((r.model, r.memory, r.guaranteed) for r in plan.residents if r.device == device.index)
        alike.setdefault(held, []).append(str(device.index))
    used = len({r.device for r in plan.residents})
    table = Table(title=f"{len(plan.residents)} replicas on {used} of {len(plan.devices)} devices, uncut")
    for name in ("devices", "model", "memory MiB", "guaranteed SMs"):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=name == "model")
    for held, devices in alike.items():
        for model, memory, sms in held:
            filled = (f"{memory / MIB:.0f}" if memory else "", f"{sms:.1f}" if sms else "")
            table.add_row(", ".join(devices), model, *filled)
    return table


def promise_table(plan: Plan) -> Table:
    """One row per model."""
    caption = "worst latency: a batch assembled and run, not a bound on waits" if plan.timelines else None
    table = Table(title="what each model is promised", caption=caption)
    for name in ("model", "demand", "throughput", "headroom", "worst latency", "SLO"):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=name == "model")
    for name, p in plan.promises.items():
        table.add_row(
            name,
            f"{p.demand:.1f}/s",
            f"{p.throughput:.1f}/s",
            f"{p.headroom:.0%}" if p.demand else "",
            f"{to_ms(p.worst_latency):.1f} ms",
            f"{to_ms(p.slo):.1f} ms",
        )
    return table
